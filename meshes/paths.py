"""Files which another file names: found beside it, never outside its folder."""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from shared_utils.errors import InvalidInputError, MissingInputError

_MAGIC = [
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x76\x2f\x31\x01", "image/x-exr"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"\xabKTX 20\xbb", "image/ktx2"),
    (b"DDS ", "image/vnd-ms.dds"),
    (b"#?RADIANCE", "image/vnd.radiance"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
]
_SUFFIXES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/x-exr": ".exr",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/webp": ".webp",
    "image/avif": ".avif",
    "image/ktx2": ".ktx2",
    "image/vnd-ms.dds": ".dds",
    "image/vnd.radiance": ".hdr",
    "image/tiff": ".tif",
    "image/x-tga": ".tga",
}


def path_beside(owner: Path, reference: str, *, percent_encoded: bool = False) -> Path:
    """The path of the file that `owner` names as `reference`, which must lie in the owner's folder or below it.

    Raises InvalidInputError for an absolute path, a URL, or a path that leaves the folder. Does not look at the disk.
    """
    text = unquote(reference) if percent_encoded else reference
    text = text.replace("\\", "/")
    if "\x00" in text or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text) or text.startswith("/"):
        raise InvalidInputError(f"{owner}: refers to {_short(reference)}; only files in its own folder are read")
    parts: list[str] = []
    for part in PurePosixPath(text).parts:
        if part == "..":
            if not parts:
                raise InvalidInputError(f"{owner}: refers to {_short(reference)}, which is outside its folder")
            parts.pop()
        else:
            parts.append(part)
    if not parts:
        raise InvalidInputError(f"{owner}: refers to a file without a name ({_short(reference)})")
    return owner.parent.joinpath(*parts)


def read_file(path: Path, *, named_by: Path | None = None) -> bytes:
    """The bytes of a file. Raises MissingInputError or InvalidInputError with one line that says who asked for it."""
    by = f", named by {named_by}," if named_by else ""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}{by} does not exist") from error
    except IsADirectoryError as error:
        raise InvalidInputError(f"{path}{by} is a folder, not a file") from error
    except OSError as error:
        raise InvalidInputError(f"{path}{by} cannot be read: {error.strerror or error}") from error


def image_mime(data: bytes, name: str = "") -> str:
    """The media type of picture bytes by their first bytes, else by the file name's ending."""
    for magic, mime in _MAGIC:
        if data.startswith(magic):
            return mime
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    suffix = PurePosixPath(name).suffix.lower()
    known = {ending: mime for mime, ending in _SUFFIXES.items()} | {".jpeg": "image/jpeg", ".tiff": "image/tiff"}
    return known.get(suffix, "application/octet-stream")


def image_suffix(mime: str) -> str:
    """The file name ending for a media type (".bin" for an unknown one)."""
    return _SUFFIXES.get(mime, ".bin")


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
