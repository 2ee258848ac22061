"""Weights out of pickled training checkpoints, without running anything that is inside them.

A Lightning `.ckpt` holds, beside the tensors, hyper-parameters of classes nobody has installed. Torch's own restricted
unpickler reads it, with an empty stand-in for each such class; what that unpickler refuses by name (`os`, `sys`, ...) or
by kind stays refused. The tensors are then kept as a safetensors file, which later runs map straight into memory.
"""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared_utils.errors import InvalidInputError


class StandIn:
    """Takes the place of a class that is not installed and swallows its arguments.

    It makes an OrderedDict, because torch's restricted unpickler fills and updates plain mappings only; what ends up in
    it is thrown away.
    """

    def __new__(cls, *_args, **_kwargs):
        return OrderedDict()


def read_pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.ckpt` (its `state_dict`, or the file itself where it is one), on the CPU, in their stored dtypes.

    Raises InvalidInputError for a file that is no such checkpoint or that asks for more than tensors and plain data.
    """
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(StandIn, name) for name in unknown]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidInputError(f"{path}: not a checkpoint that can be read safely: {reason}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise InvalidInputError(f"{path}: holds no tensors")
    return tensors


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """`read_pickled_tensors`, remembered as `<name>.safetensors` beside the checkpoint where that folder is writable.

    The copy is used again only while the checkpoint has the size and modification time it was made from.
    """
    path = Path(path)
    copy = path.with_name(path.name + ".safetensors")
    status = path.stat()
    origin = {"size": str(status.st_size), "mtime_ns": str(status.st_mtime_ns)}
    if copy.exists():
        with safe_open(copy, framework="pt") as stored:
            if stored.metadata() == origin:
                return load_file(copy)
    tensors = read_pickled_tensors(path)
    if os.access(path.parent, os.W_OK):
        partial = copy.with_name(f".{copy.name}.{os.getpid()}.partial")
        try:
            # Shared storages (tied matrices) are refused by safetensors, hence the clones.
            save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, partial, origin)
            partial.replace(copy)
        finally:
            partial.unlink(missing_ok=True)
    return tensors
