"""Reading Kokoro's checkpoint strictly.

The `kokoro` package falls back to loading what fits and leaves the rest random, so that a wrong file speaks noise. Here every
weight that the model needs has to be in the file with its shape.
"""

import io
import json
import pickle
import warnings
from pathlib import Path

import torch
from kokoro import KModel
from torch import Tensor, nn
from torch.nn.utils import remove_weight_norm

from networks.kokoro.faster import fuse
from shared_utils.errors import InvalidInputError, MissingInputError

PARTS = ("bert", "bert_encoder", "predictor", "text_encoder", "decoder")
CONFIG_KEYS = (
    "dim_in",
    "dropout",
    "hidden_dim",
    "istftnet",
    "max_dur",
    "n_layer",
    "n_mels",
    "n_token",
    "plbert",
    "style_dim",
    "text_encoder_kernel_size",
    "vocab",
)


def load_kmodel(folder: Path, device: str = "cpu") -> KModel:
    """The model in `folder` (`config.json` and one `.pth`), float32, in evaluation mode, weight normalisation folded.

    Raises MissingInputError for a folder without these files, InvalidInputError for files that are not Kokoro's.
    """
    config = read_config(folder)
    path = find_checkpoint(folder)
    parts = read_parts(path)
    try:
        model = empty_kmodel(config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{folder / 'config.json'}: describes no Kokoro model ({error})") from error
    return fill(model, parts, str(path)).to(device)


def empty_kmodel(config: dict) -> KModel:
    """The model of a `config.json` with random weights."""
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm is deprecated; one-layer LSTMs have no use for dropout
        # An empty checkpoint keeps the constructor from loading in its own, lenient way.
        return KModel(repo_id="hexgrad/Kokoro-82M", config=config, model=nothing)


def fill(model: KModel, parts: dict[str, dict[str, Tensor]], where: str) -> KModel:
    """Give the model its weights, make it fast, set evaluation mode. Raises InvalidInputError naming `where`."""
    for name in PARTS:
        _load_part(getattr(model, name), parts[name], f"{where}: {name}")
    fold_weight_norm(model)
    # The prosody stays as it is: a pitch that differs in its last digit would shift the phase of the whole excitation.
    fuse(model.decoder)
    return model.requires_grad_(False).eval()


def read_config(folder: Path) -> dict:
    """`config.json` of a checkpoint folder. Raises MissingInputError, InvalidInputError."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingInputError(
            f"{path}: no such file; a Kokoro folder has config.json, a .pth file and voices/"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path}: cannot be read as JSON ({error})") from None
    lacking = [key for key in CONFIG_KEYS if not isinstance(config, dict) or key not in config]
    if lacking:
        raise InvalidInputError(f"{path}: is not Kokoro's: lacks {', '.join(lacking)}")
    return config


def find_checkpoint(folder: Path) -> Path:
    """The one `.pth` file of a folder. Raises MissingInputError, or InvalidInputError where there are several."""
    found = sorted(path for path in Path(folder).glob("*.pth") if path.is_file())
    if not found:
        raise MissingInputError(
            f"{folder}: holds no .pth file; a Kokoro folder has config.json, a .pth file and voices/"
        )
    if len(found) > 1:
        raise InvalidInputError(
            f"{folder}: holds {len(found)} .pth files, {', '.join(p.name for p in found)}; keep one"
        )
    return found[0]


def read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """State dicts of the five parts, by name, on the CPU, without the `module.` that parallel training left in the names.

    Raises InvalidInputError for a file that is no checkpoint of Kokoro.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(f"{path}: not a checkpoint that can be read safely ({reason})") from error
    keys = set(content) if isinstance(content, dict) else set()
    if keys != set(PARTS) or not all(isinstance(content[part], dict) for part in PARTS):
        shown = ", ".join(sorted(map(str, keys))[:5]) or "nothing of the kind"
        raise InvalidInputError(f"{path}: must hold the state dicts {', '.join(PARTS)}, and holds {shown}")
    return {part: {k.removeprefix("module."): v for k, v in content[part].items()} for part in PARTS}


def _load_part(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        reason = str(error).strip().splitlines()[-1].strip()
        raise InvalidInputError(f"{where}: does not fit config.json: {reason}") from error
    missing = [name for name in result.missing_keys if not _may_be_missing(module, name)]
    # Older transformers saved the positions as a weight.
    unexpected = [name for name in result.unexpected_keys if not name.endswith("position_ids")]
    for what, names in (("lacks", missing), ("has an unknown", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InvalidInputError(f"{where} {what} {names[0]}{more}: not a checkpoint for this config.json")


def _may_be_missing(module: nn.Module, name: str) -> bool:
    """Scale and shift of instance norms, which the released model does not have (they start as identity), and the pooler of
    BERT, which nothing reads."""
    owner = module.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, nn.InstanceNorm1d) or name.startswith("pooler.")


def fold_weight_norm(model: nn.Module) -> None:
    """Replace direction and length of each weight by their product, once instead of at every call."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)
