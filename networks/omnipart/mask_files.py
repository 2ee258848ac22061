"""Part masks as files (EXR, PNG, NPY), merge groups as text, and the numbered picture a user picks groups from.

In a file 0 is background and 1, 2, ... are parts: one more than the id of a part map, which is what the picture shows
and what merge groups name.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from networks.omnipart.masks import BACKGROUND
from shared_utils.errors import InvalidInputError, MissingInputError, UsageError

MAX_PIXELS = 64_000_000
MAX_PARTS = 50  # rows of the part embeddings in the published models, without "no part"
OVERLAY_OPACITY = 0.6
# ColorBrewer's Set3, Set2 and Set1 in a row.
_COLOURS = bytes.fromhex(
    "8dd3c7 ffffb3 bebada fb8072 80b1d3 fdb462 b3de69 fccde5 d9d9d9 bc80bd ccebc5 ffed6f"
    "66c2a5 fc8d62 8da0cb e78ac3 a6d854 ffd92f e5c494 b3b3b3"
    "e41a1c 377eb8 4daf4a 984ea3 ff7f00 ffff33 a65628 f781bf 999999"
)
PALETTE = tuple(tuple(_COLOURS[i : i + 3]) for i in range(0, len(_COLOURS), 3))


def part_colour(part: int) -> tuple[int, int, int]:
    """Colour (0..255) of part 0, 1, ...; the palette repeats."""
    return PALETTE[part % len(PALETTE)]


def write_mask(path: Path, ids: np.ndarray) -> None:
    """Write a part map int [H, W] (-1 = background) as `.exr`, `.png` or `.npy`, by the suffix of `path`.

    EXR: float32 RGB, three equal channels. PNG: 8-bit grey, 16-bit above 255 parts. NPY: int32 [H, W].
    """
    values = ids.astype(np.int32) + 1
    suffix = path.suffix.lower()
    if suffix == ".exr":
        import OpenEXR

        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        pixels = np.repeat(values[..., None].astype(np.float32), 3, axis=2)
        OpenEXR.File(header, {"RGB": pixels}).write(str(path))
    elif suffix == ".png":
        Image.fromarray(values.astype(np.uint8 if values.max() < 256 else np.uint16)).save(path)
    elif suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, values)
    else:
        raise UsageError(f"{path}: a mask is written as .exr, .png or .npy, not as {suffix or 'a file without suffix'}")


def read_mask(path: Path, max_parts: int = MAX_PARTS) -> np.ndarray:
    """Read a mask file: int16 part map [H, W], ids 0, 1, ... in the order of the stored values, -1 = background.

    A PNG may also be in colour: black is background, every other colour a part. Raises MissingInputError, or
    InvalidInputError for a file that is no such mask, has no part, or more than `max_parts`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such mask file")
    readers = {".exr": _read_exr, ".png": _read_png, ".npy": _read_npy}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidInputError(f"{path}: a mask is an .exr, .png or .npy file")
    values = _one_value_per_pixel(path, reader(path))
    found = np.unique(values[values > 0])
    if found.size == 0:
        raise InvalidInputError(f"{path}: the mask has no part: all its pixels are 0")
    if found.size > max_parts:
        raise InvalidInputError(f"{path}: {found.size} different parts, {max_parts} at most")
    return np.where(values > 0, np.searchsorted(found, values), BACKGROUND).astype(np.int16)


def _one_value_per_pixel(path: Path, pixels: np.ndarray) -> np.ndarray:
    """int64 [H, W] of values >= 0 from [H, W] or [H, W, C] of any numbers."""
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        colours = pixels[..., :3]
        if np.array_equal(colours.min(axis=2), colours.max(axis=2)):
            pixels = colours[..., 0]
        elif colours.dtype == np.uint8:
            pixels = colours.astype(np.int64) @ np.array([65536, 256, 1])
    if pixels.ndim == 3 and pixels.shape[2] <= 2:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or pixels.size == 0 or pixels.dtype.kind not in "biuf":
        raise InvalidInputError(f"{path}: a mask has one number per pixel, this has shape {list(pixels.shape)}")
    if pixels.dtype.kind == "f" and not (np.isfinite(pixels).all() and np.array_equal(pixels, np.round(pixels))):
        raise InvalidInputError(f"{path}: part numbers must be whole and finite")
    values = pixels.astype(np.int64)
    if values.min() < 0:
        raise InvalidInputError(f"{path}: part numbers must not be negative; 0 is the background")
    return values


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InvalidInputError(f"{path}: {width} x {height} pixels, {MAX_PIXELS} at most")


def _read_exr(path: Path) -> np.ndarray:
    import OpenEXR

    try:
        low, high = OpenEXR.File(str(path), header_only=True).header()["dataWindow"]
        _check_pixels(path, int(high[0]) - int(low[0]) + 1, int(high[1]) - int(low[1]) + 1)
        channels = OpenEXR.File(str(path)).channels()
    except RuntimeError as error:
        raise InvalidInputError(f"{path}: not a readable EXR file") from error
    for name in ("RGB", "RGBA", "Y", "R"):
        if name in channels:
            return channels[name].pixels
    return next(iter(channels.values())).pixels


def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            _check_pixels(path, *image.size)
            image.load()
            if image.mode in ("P", "RGBA", "LA"):
                # Transparent pixels are background, whatever their colour.
                rgba = np.asarray(image.convert("RGBA"))
                return np.where(rgba[..., 3:] > 0, rgba[..., :3], 0).astype(np.uint8)
            return np.asarray(image.convert("L") if image.mode == "1" else image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"{path}: not a readable PNG file") from error


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInputError(f"{path}: not a readable NPY file of numbers") from error
    if not isinstance(array, np.ndarray):
        raise InvalidInputError(f"{path}: holds several arrays, a mask is one")
    _check_pixels(path, array.size, 1)
    return np.asarray(array)


def parse_merge_groups(text: str) -> list[list[int]]:
    """ "0,1;3,4" -> [[0, 1], [3, 4]]. UsageError for anything else, or an id named twice."""
    groups = []
    for part in text.split(";"):
        if not part.strip():
            continue
        try:
            groups.append([int(number) for number in part.split(",")])
        except ValueError:
            raise UsageError(f'merge groups look like "0,1;3,4", not like {text!r}') from None
    named = [number for group in groups for number in group]
    if not named:
        raise UsageError(f'merge groups look like "0,1;3,4", not like {text!r}')
    twice = sorted({number for number in named if named.count(number) > 1})
    if twice:
        raise UsageError(f"merge groups {text!r} name part {twice[0]} twice")
    return groups


def check_merge_groups(groups: Sequence[Sequence[int]], ids: np.ndarray) -> None:
    """UsageError when a group names an id that the part map has not."""
    present = {int(part) for part in np.unique(ids)} - {BACKGROUND}
    absent = sorted({number for group in groups for number in group} - present)
    if absent:
        raise UsageError(f"merge groups name part {absent[0]}; the mask has {', '.join(map(str, sorted(present)))}")


def draw_parts(image: Image.Image, ids: np.ndarray) -> Image.Image:
    """The RGB picture with every part tinted in its colour and its id written on it."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32).copy()
    parts = [int(part) for part in np.unique(ids) if part != BACKGROUND]
    for part in parts:
        region = ids == part
        pixels[region] = (1 - OVERLAY_OPACITY) * pixels[region] + OVERLAY_OPACITY * np.array(part_colour(part))
    result = Image.fromarray(np.round(pixels).astype(np.uint8))
    draw = ImageDraw.Draw(result)
    font = ImageFont.load_default(size=max(10, image.width // 30))
    for part in parts:
        place = label_position(ids == part)
        draw.text(place, str(part), fill="white", font=font, anchor="mm", stroke_width=2, stroke_fill="black")
    return result


def label_position(region: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of a bool [H, W] that is deepest inside it."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)
