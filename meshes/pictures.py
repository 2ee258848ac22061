"""Pictures of a Scene re-coded for formats that hold only some kinds. Deterministic: same pixels, same bytes."""

import io
import warnings

from meshes.scene import Image


def open_picture(image: Image):
    """The image as a loaded Pillow picture. Raises ValueError with the reason if Pillow cannot read it."""
    from PIL import Image as Pillow

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            picture = Pillow.open(io.BytesIO(image.data))
            picture.load()
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        reason = " ".join(str(error).split()).replace(f"{io.BytesIO}", "")
        raise ValueError(f"{image.name!r} ({image.mime}): {reason[:120]}") from error
    return picture


def png_bytes(picture) -> bytes:
    """A Pillow picture as PNG: 8 bits a channel, no time stamps, fixed compression."""
    if picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def encode_for(image: Image, allowed: tuple[str, ...]) -> tuple[bytes, str]:
    """(bytes, media type) of the image as one of the `allowed` types: its own bytes, or re-coded as PNG.

    Raises ValueError with the reason if that is impossible.
    """
    if image.mime in allowed:
        return image.data, image.mime
    return png_bytes(open_picture(image)), "image/png"
