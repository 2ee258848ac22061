"""The object's picture: squared and padded, cropped around the foreground, and the grid of part ids over it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from networks.omnipart.masks import BACKGROUND

IMAGE_SIZE = 518  # pixels; 37 patches of 14
GRID_SIZE = 37  # cells; one for each image patch
CROP_MARGIN = 1.2  # side of the crop in units of the foreground's larger extent


@dataclass
class ObjectCrop:
    """What the generator is conditioned on.

    `white`, `black`: float32 [3, H, W] in 0..1, by background; `grid`: int64 [G, G] of part numbers, 0 = none.
    """

    white: np.ndarray
    black: np.ndarray
    grid: np.ndarray


def fitted_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the longer one brought to `size`, the other cut to a whole number of at least 1."""
    if width > height:
        return size, max(1, int(height * (size / width)))
    return max(1, int(width * (size / height))), size


def resize_and_pad(image: Image.Image, size: int = IMAGE_SIZE) -> Image.Image:
    """Fit an RGB or RGBA image into a size x size square, centred; the margin is white, and transparent for RGBA.

    RGBA is pasted through its own alpha, as the published model's input was: colours blend into white at soft edges and
    alpha becomes alpha^2 / 255.
    """
    width, height = fitted_size(*image.size, size)
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    corner = ((size - width) // 2, (size - height) // 2)
    if image.mode == "RGBA":
        canvas = Image.new("RGBA", (size, size), (255, 255, 255, 0))
        canvas.paste(resized, corner, resized)
    else:
        canvas = Image.new("RGB", (size, size), (255, 255, 255))
        canvas.paste(resized.convert("RGB"), corner)
    return canvas


def resize_and_pad_ids(ids: np.ndarray, size: int = IMAGE_SIZE) -> np.ndarray:
    """Bring a part map int [H, W] of the original picture into the square of `resize_and_pad`: int16 [size, size]."""
    width, height = fitted_size(ids.shape[1], ids.shape[0], size)
    scaled = Image.fromarray(ids.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST)
    left, top = (size - width) // 2, (size - height) // 2
    result = np.full((size, size), BACKGROUND, dtype=np.int16)
    result[top : top + height, left : left + width] = np.asarray(scaled)
    return result


def over_white(image: Image.Image) -> Image.Image:
    """RGBA composited over white, as RGB: what the segmenter looks at."""
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def fill_transparent(rgba: np.ndarray, value: int) -> np.ndarray:
    """Colours of a uint8 [H, W, 4] image, fully transparent pixels painted `value`; soft edges keep their colour."""
    rgb = rgba[..., :3].copy()
    rgb[rgba[..., 3] == 0] = value
    return rgb


def foreground_square(alpha: np.ndarray, margin: float = CROP_MARGIN) -> tuple[int, int, int, int]:
    """Square (left, top, right, bottom) around the pixels with alpha > 0, `margin` times their larger extent.

    It may leave the image. Raises ValueError where nothing is opaque.
    """
    rows, columns = np.nonzero(alpha > 0)
    if rows.size == 0:
        raise ValueError("the image has no foreground: its alpha is 0 everywhere")
    left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    half = max(right - left, bottom - top) / 2 * margin
    return int(centre_x - half), int(centre_y - half), int(centre_x + half), int(centre_y + half)


def crop_padded(array: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Cut box (left, top, right, bottom) out of [H, W, ...], zeros where it leaves the image."""
    left, top, right, bottom = box
    height, width = array.shape[:2]
    result = np.zeros((bottom - top, right - left, *array.shape[2:]), dtype=array.dtype)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    result[y0 - top : y1 - top, x0 - left : x1 - left] = array[y0:y1, x0:x1]
    return result


def to_planes(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 [H, W, 3] to `size` (width, height) and return float32 [3, H, W] in 0..1."""
    resized = Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 255.0)


def mask_grid(mask: np.ndarray, grid: int = GRID_SIZE) -> np.ndarray:
    """Most frequent non-zero id in each cell of a grid over an integer mask [H, W] (0 = none); ties to the smaller id.

    Returns int64 [grid, grid]. Neighbouring cells share no pixel; a mask smaller than the grid leaves cells empty.
    """
    height, width = mask.shape
    rows = [int(i * height / grid) for i in range(grid + 1)]
    columns = [int(i * width / grid) for i in range(grid + 1)]
    cells = np.zeros((grid, grid), dtype=np.int64)
    for i in range(grid):
        for j in range(grid):
            counts = np.bincount(mask[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].ravel())
            if counts[1:].any():
                cells[i, j] = 1 + int(np.argmax(counts[1:]))
    return cells


def order_grid(cells: np.ndarray) -> np.ndarray:
    """Renumber the ids of a grid 1, 2, ... by how low they reach in the picture: lowest first, ties by smaller id."""
    ids = np.unique(cells[cells > 0])
    lowest_row = {part: int(np.nonzero((cells == part).any(axis=1))[0].max()) for part in ids}
    result = np.zeros_like(cells)
    for number, part in enumerate(sorted(ids, key=lambda part: (-lowest_row[part], part)), start=1):
        result[cells == part] = number
    return result


def crop_object(
    rgba: np.ndarray,
    mask: np.ndarray,
    size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE),
    grid: int = GRID_SIZE,
    margin: float = CROP_MARGIN,
) -> ObjectCrop:
    """Crop picture (uint8 [H, W, 4]) and mask ([H, W], 0 = background, 1.. = parts) around the foreground.

    `size` is (width, height) of the two returned pictures. Raises ValueError when nothing is opaque.
    """
    box = foreground_square(rgba[..., 3], margin)
    picture = crop_padded(rgba, box)
    cells = mask_grid(crop_padded(mask, box).astype(np.int64), grid)
    return ObjectCrop(
        white=to_planes(fill_transparent(picture, 255), size),
        black=to_planes(fill_transparent(picture, 0), size),
        grid=order_grid(cells),
    )
