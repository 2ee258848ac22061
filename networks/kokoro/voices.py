"""Voices: tables of style vectors, float32 [510, 1, 256]; a text of n phonemes is spoken with row n - 1.

Voices of the first model version have a row more, for the empty text, and there row n is the one: they are shifted on reading.
"""

import dataclasses
import difflib
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from networks.kokoro.config import MAX_PHONEMES, STYLE_WIDTH
from shared_utils.errors import InvalidInputError, MissingInputError, UsageError

ROWS = (MAX_PHONEMES, MAX_PHONEMES + 1)
SUFFIXES = (".pt", ".safetensors", ".npz", ".npy", ".bin")
NAMELESS = ""  # stands for the only voice of a file without names
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


def read_voice(path: Path, name: str | None = None) -> np.ndarray:
    """Read a voice file, float32 [510, 1, 256]. `name` chooses one where a file holds several.

    Takes `.pt` (a tensor or a dictionary of them, read without running code), `.safetensors`, `.npz`, `.npy` and `.bin` (bare
    little-endian float32, or kokoro-onnx's archive). Raises MissingInputError, InvalidInputError for a file that holds no voice or none of that name,
    UsageError for a name where the file has no names.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such voice file")
    readers: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
        ".pt": _read_torch,
        ".safetensors": _read_safetensors,
        ".npz": _read_numpy,
        ".npy": _read_numpy,
        ".bin": _read_bare,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise InvalidInputError(f"{path}: a voice file ends in {', '.join(SUFFIXES)}")
    try:
        tensors = readers[suffix](path)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        # What unpickling says of a file that is no pickle is a bare number or letter.
        reason = (str(error).strip().splitlines() or [""])[0] if not isinstance(error, KeyError) else ""
        reason = reason or f"not a {suffix} file"
        raise InvalidInputError(f"{path}: cannot be read as a voice ({reason})") from error
    return as_voice(_choose(tensors, name, path), str(path))


def as_voice(values: np.ndarray, where: str) -> np.ndarray:
    """Check shape, type and values; raises InvalidInputError naming `where`."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        raise InvalidInputError(f"{where}: holds {array.dtype} numbers, a voice holds floating-point ones")
    if array.shape not in [(rows, 1, STYLE_WIDTH) for rows in ROWS]:
        raise InvalidInputError(
            f"{where}: has the shape {list(array.shape)}; a voice has [{MAX_PHONEMES}, 1, {STYLE_WIDTH}]"
            f" or [{MAX_PHONEMES + 1}, 1, {STYLE_WIDTH}]"
        )
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InvalidInputError(f"{where}: holds numbers that are not finite")
    return np.ascontiguousarray(array[-MAX_PHONEMES:])


def style_row(voice: np.ndarray, phonemes: int) -> np.ndarray:
    """The row [1, 256] that speaks a text of `phonemes` symbols."""
    return voice[min(phonemes, len(voice)) - 1]


def _choose(tensors: dict[str, np.ndarray], name: str | None, path: Path) -> np.ndarray:
    if not tensors:
        raise InvalidInputError(f"{path}: holds no tensor")
    if NAMELESS in tensors:
        if name is not None:
            raise UsageError(f"--voice {name} and --voice-file {path} exclude each other: the file holds one voice")
        return tensors[NAMELESS]
    names = ", ".join(sorted(tensors)[:12])
    if name is None and len(tensors) > 1:
        raise InvalidInputError(f"{path}: holds {len(tensors)} voices; choose one of them with --voice: {names}")
    if name is not None and name not in tensors:
        raise InvalidInputError(f"{path}: holds no voice {name}; there are {names}")
    return tensors[name] if name is not None else next(iter(tensors.values()))


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor):
        content = {NAMELESS: content}
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return {str(k): _numpy(v) for k, v in content.items() if isinstance(v, torch.Tensor)}


def _numpy(tensor: Any) -> np.ndarray:
    """A torch tensor; bfloat16, which numpy does not have, becomes float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: _numpy(tensor) for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_numpy(path: Path) -> dict[str, np.ndarray]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {NAMELESS: loaded}
    with loaded:
        return {name: loaded[name] for name in loaded.files}


def _read_bare(path: Path) -> dict[str, np.ndarray]:
    if zipfile.is_zipfile(path):  # kokoro-onnx calls its NumPy archive voices-v1.0.bin
        return _read_numpy(path)
    values = np.fromfile(path, dtype="<f4")
    if len(values) not in [rows * STYLE_WIDTH for rows in ROWS] or path.stat().st_size != values.nbytes:
        raise ValueError(f"{path.stat().st_size} bytes are not {ROWS[0]} or {ROWS[1]} rows of {STYLE_WIDTH} float32")
    return {NAMELESS: values.reshape(-1, 1, STYLE_WIDTH)}


@dataclasses.dataclass(frozen=True)
class VoicePart:
    """A voice by name or file, and its share."""

    name: str
    share: float

    @property
    def is_file(self) -> bool:
        return Path(self.name).suffix.lower() in SUFFIXES


class VoiceShelf:
    """Voices by name, from folders with files `<name>.pt`, `.bin` and so on; earlier folders come first."""

    def __init__(self, *folders: Path):
        self._files: dict[str, Path] = {}
        for folder in folders:
            for path in sorted(folder.glob("*")):
                if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                    self._files.setdefault(path.stem, path)

    def names(self) -> list[str]:
        return sorted(self._files)

    def read(self, name: str) -> np.ndarray:
        """A voice by name, or by the path of a file. Raises UsageError for a name that is not there, and as `read_voice`."""
        if VoicePart(name, 1.0).is_file:
            return read_voice(Path(name))
        if name not in self._files:
            close = difflib.get_close_matches(name, self._files, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(self.names()) or 'none'}"
            raise UsageError(f"--voice {name}: no such voice; {hint}")
        return read_voice(self._files[name])


def parse_blend(text: str) -> list[VoicePart]:
    """Read `af_heart`, `af_heart+af_bella`, `af_heart:0.7+af_bella:0.3`; a comma does as well as a plus sign.

    Shares are made to sum to 1; without one a voice counts 1. Raises UsageError.
    """
    parts = []
    for piece in re.split(r"[+,]", text):
        # A colon may belong to a path, as in C:\me.pt.
        name, colon, share = piece.strip().rpartition(":")
        if not colon or "\\" in share or "/" in share:
            name, share = piece.strip(), "1"
        try:
            value = float(share)
        except ValueError:
            raise UsageError(f"--voice {text}: the share {share!r} is not a number") from None
        if not 0 < value <= 1000:
            raise UsageError(f"--voice {text}: the share {share} must be above 0")
        part = VoicePart(name, value)
        if not part.is_file and not _NAME.fullmatch(name):
            raise UsageError(f"--voice {text}: {name!r} is no name of a voice")
        parts.append(part)
    total = sum(part.share for part in parts)
    return [dataclasses.replace(part, share=part.share / total) for part in parts]


def blend(parts: list[VoicePart], read: Callable[[str], np.ndarray]) -> np.ndarray:
    """The weighted mean of the voices, float32 [510, 1, 256]; `read` gives one by name or path."""
    if len(parts) == 1:
        return read(parts[0].name)
    return sum(part.share * read(part.name).astype(np.float64) for part in parts).astype(np.float32)
