"""Pictures in and out: reading with a cap on their size, writing with the parameters that made them."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared_utils.errors import InvalidInputError, MissingInputError, PostConditionError, ScriptError

MAX_PIXELS = 100_000_000
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}

# Tags of Exif 2.32 (CIPA DC-008): orientation (5 to 8 lie on their side), software, the pointer to the Exif block, and
# UserComment in it, whose first 8 bytes name the encoding.
_ORIENTATION, _SOFTWARE, _EXIF_BLOCK, _USER_COMMENT = 0x0112, 0x0131, 0x8769, 0x9286


def upright_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an image as it is meant to be seen, from its header alone.

    Raises `MissingInputError` (no such file) and `InvalidInputError` (no image, too large).
    """
    with _opened(path, max_pixels) as image:
        width, height = image.size
        on_its_side = image.getexif().get(_ORIENTATION, 1) >= 5
    return (height, width) if on_its_side else (width, height)


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Any:
    """A PIL image in RGB, upright (its EXIF orientation applied), transparency over white. Raises as `upright_size` does, and for damage."""
    from PIL import Image

    upright = read_upright(path, max_pixels)
    if upright.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return upright


def read_upright(path: Path, max_pixels: int = MAX_PIXELS) -> Any:
    """As `read_image`, but a picture with transparency comes as RGBA."""
    from PIL import ImageOps

    with _opened(path, max_pixels) as image:
        upright = _eight_bit(ImageOps.exif_transpose(image), path)
        transparent = upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info
        return upright.convert("RGBA" if transparent else "RGB")


def _eight_bit(image: Any, path: Path) -> Any:
    """16-bit greys scaled to 8 bits, which PIL's own conversion would clip. Raises `InvalidInputError` for floating point."""
    if image.mode == "F":
        raise InvalidInputError(f"{path}: floating-point pictures are not supported")
    if image.mode == "I" or image.mode.startswith("I;16"):
        import numpy as np
        from PIL import Image

        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return image


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Any]:
    """An image of an allowed size; what goes wrong while it is read is the file's fault."""
    from PIL import Image

    # Pillow's own cap remarks on pictures below ours and stands above it.
    Image.MAX_IMAGE_PIXELS = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on metadata that is not as it should be
        try:
            image = Image.open(path)
        except FileNotFoundError:
            raise MissingInputError(f"{path}: no such file") from None
        except (OSError, SyntaxError, ValueError, RuntimeError) as error:
            raise InvalidInputError(f"{path}: not an image that can be read ({error})") from None
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidInputError(f"{path}: {width} x {height} is more than {max_pixels / 1e6:g} megapixels")
            try:
                yield image
            except (ScriptError, MemoryError):
                raise
            except Exception as error:  # decoders raise whatever the damage leads them to
                raise InvalidInputError(f"{path}: the image is damaged ({error})") from None


def write_image(image: Any, path: Path, format: str, quality: int | None, parameters: dict[str, str]) -> None:
    """Write a PIL image as `png`, `jpg` or `webp`, with `parameters` in it: PNG text chunks, or EXIF.

    In EXIF they are one JSON object in UserComment. The same image and parameters give the same bytes.
    Raises `PostConditionError` when the file does not read back as an image of the same size.
    """
    from PIL import Image

    options: dict[str, Any] = {}
    if format == "png":
        options["pnginfo"] = _png_text(parameters)
    else:
        options["quality"] = 95 if quality is None else quality
        if parameters:
            options["exif"] = _exif(parameters)
    image.save(path, format=FORMATS[format], **options)
    with Image.open(path) as written:
        if written.size != image.size or written.format != FORMATS[format]:
            raise PostConditionError(f"{path.name}: reads back as {written.format} of {written.size}")


def _png_text(parameters: dict[str, str]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in parameters.items():
        # Latin-1 text goes into tEXt, everything else into iTXt (PNG specification, 11.3.3).
        chunks.add_text(key, value)
    return chunks


def _exif(parameters: dict[str, str]) -> Any:
    from PIL import Image

    exif = Image.Exif()
    if "Software" in parameters:
        exif[_SOFTWARE] = parameters["Software"]
    exif.get_ifd(_EXIF_BLOCK)[_USER_COMMENT] = b"ASCII\0\0\0" + json.dumps(parameters).encode("ascii")
    return exif


def read_parameters(path: Path) -> dict[str, str]:
    """What `write_image` put into a file; empty when there is nothing."""
    from PIL import Image

    with Image.open(path) as image:
        if image.format == "PNG":
            return dict(image.text)
        comment = image.getexif().get_ifd(_EXIF_BLOCK).get(_USER_COMMENT, b"")
    return json.loads(comment[8:]) if comment.startswith(b"ASCII") else {}
