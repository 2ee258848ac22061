"""Reading UniRig's published checkpoints: Lightning pickles, loaded without running anything a file asks for."""

import json
import logging
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared_utils.errors import InvalidInputError, MissingInputError

PREFIX = "model."  # of the tensors in a Lightning checkpoint
CACHE_SUFFIX = ".safetensors"

logger = logging.getLogger(__name__)


class _Mapping:
    """Stands in for python-box's containers, which the hyper-parameters in a checkpoint are made of.

    The restricted unpickler fills plain mappings only, so the stand-in makes one; what is in it is thrown away.
    """

    def __new__(cls, *args, **kwargs):
        return OrderedDict()


_STAND_INS = [(_Mapping, "box.box.Box"), (_Mapping, "box.box_list.BoxList"), (_Mapping, "box.Box")]


def read_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a `.ckpt` or `.safetensors` file on the CPU, without the `model.` prefix.

    A `.ckpt` is unpickled by torch's weights-only reader and kept as safetensors beside it, which later calls read as
    long as size and time of the original are the same. Raises MissingInputError, or InvalidInputError for a file that
    is damaged, holds anything but data, or has no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return _strip_prefix(_read_safetensors(path))
    stamp = _stamp(path)
    cache = path.with_name(path.name + CACHE_SUFFIX)
    if cache.is_file() and _cached_stamp(cache) == stamp:
        return _read_safetensors(cache)
    tensors = _strip_prefix(_read_pickle(path))
    _write_cache(cache, tensors, stamp)
    return tensors


def read_config(checkpoint: Path | str) -> dict:
    """The `config.json` beside a checkpoint: sizes other than the published ones. Empty when there is none.

    Raises InvalidInputError when it is no JSON object.
    """
    path = Path(checkpoint).with_name("config.json")
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise InvalidInputError(f"{path}: must hold a JSON object of model sizes")
    return config


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, optional: Collection[str] = ()) -> None:
    """Put `weights` into `model` (which may be on the meta device) and tie what the model ties.

    Raises InvalidInputError when a tensor is missing or has another shape; `optional` names may be missing. Tensors the
    model has no place for are left out, with a warning in the log.
    """
    expected = model.state_dict()
    missing = expected.keys() - weights.keys() - set(optional)
    if missing:
        raise InvalidInputError(f"the checkpoint lacks {len(missing)} tensors, such as {min(missing)}")
    for name, tensor in expected.items():
        if name in weights and weights[name].shape != tensor.shape:
            shapes = f"{list(weights[name].shape)}, the model needs {list(tensor.shape)}"
            raise InvalidInputError(f"checkpoint tensor {name} has shape {shapes}")
    unused = weights.keys() - expected.keys()
    if unused:
        logger.warning("%d tensors of the checkpoint are not used, such as %s", len(unused), min(unused))
    model.load_state_dict({name: weights[name] for name in expected if name in weights}, strict=False, assign=True)
    for module in model.modules():
        if hasattr(module, "tie_weights"):
            module.tie_weights()
    model.requires_grad_(False)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else "not a checkpoint"
        raise InvalidInputError(f"{path}: refused, it holds more than weights or is damaged ({reason})") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InvalidInputError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InvalidInputError(f"{path}: no tensors in it")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InvalidInputError(f"{path}: not a readable checkpoint ({error})") from error


def _strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _stamp(path: Path) -> dict[str, str]:
    status = path.stat()
    return {"source_bytes": str(status.st_size), "source_mtime_ns": str(status.st_mtime_ns)}


def _cached_stamp(cache: Path) -> dict[str, str] | None:
    try:
        with safe_open(cache, framework="pt") as file:
            return file.metadata()
    except SafetensorError:
        return None


def _write_cache(cache: Path, tensors: dict[str, Tensor], stamp: dict[str, str]) -> None:
    """Only a convenience: a folder that cannot be written is no error."""
    partial = cache.with_name(f".{cache.name}.partial")
    own: dict[int, str] = {}
    separate = {}
    for name, tensor in tensors.items():  # safetensors stores no tensor twice
        first = own.setdefault(tensor.data_ptr(), name)
        separate[name] = tensor.contiguous() if first == name else tensor.clone()
    try:
        save_file(separate, partial, metadata=stamp)
        os.replace(partial, cache)
    except (OSError, SafetensorError) as error:
        logger.info("%s: not cached (%s)", cache, error)
        partial.unlink(missing_ok=True)
