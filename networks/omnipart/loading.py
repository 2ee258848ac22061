"""Reading OmniPart's published files: `pipeline.json`, and per network `<stem>.json` with `<stem>.safetensors`."""

import inspect
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from networks.omnipart.sampler import SamplerSettings
from networks.omnipart.slat_decoder import SLatGaussianDecoder, SLatMeshDecoder
from networks.omnipart.slat_flow import SLatFlowModel
from networks.omnipart.sparse_structure import SparseStructureDecoder, SparseStructureFlowModel
from shared_utils.errors import InvalidInputError, MissingInputError

# Role in pipeline.json -> the network that plays it.
ROLES = {
    "sparse_structure_flow_model": SparseStructureFlowModel,
    "sparse_structure_decoder": SparseStructureDecoder,
    "slat_flow_model": SLatFlowModel,
    "slat_decoder_mesh": SLatMeshDecoder,
    "slat_decoder_gs": SLatGaussianDecoder,
}
NETWORKS = {network.__name__: network for network in ROLES.values()}
NAME_PREFIX = "Elastic"  # of a class name: the same network with a memory manager for training
_TRAINING_ONLY = {"use_fp16", "use_checkpoint"}
_FIXED = {"share_mod": False, "use_skip_connection": True}  # switches of which the published networks use one side


@dataclass(frozen=True)
class Pipeline:
    """The parsed `pipeline.json`. `models`: role -> stem of its two files, relative to `folder`."""

    folder: Path
    models: dict[str, str]
    sparse_structure_sampler: SamplerSettings
    slat_sampler: SamplerSettings
    slat_mean: tuple[float, ...]
    slat_std: tuple[float, ...]
    image_cond_model: str | None

    def slat_normalization(self, channels: int) -> tuple[Tensor, Tensor]:
        """mean and std [channels]; channels that the file does not list (the confidence) keep 0 and 1."""
        missing = channels - len(self.slat_mean)
        if missing < 0:
            raise InvalidInputError(f"slat_normalization has {len(self.slat_mean)} values for {channels} channels")
        return (
            torch.tensor([*self.slat_mean, *[0.0] * missing]),
            torch.tensor([*self.slat_std, *[1.0] * missing]),
        )

    def sampler(self, role: str, steps: int, guidance_scale: float) -> SamplerSettings:
        """The published settings of a flow's sampler with other steps and guidance."""
        settings = self.slat_sampler if role == "slat_flow_model" else self.sparse_structure_sampler
        return replace(settings, steps=steps, cfg_strength=guidance_scale)


def read_pipeline(folder: Path | str) -> Pipeline:
    """Parse `folder/pipeline.json`. Raises MissingInputError or InvalidInputError, naming the file and the entry."""
    path = Path(folder) / "pipeline.json"
    args = _read_json(path).get("args")
    if not isinstance(args, dict) or not isinstance(args.get("models"), dict):
        raise InvalidInputError(f"{path}: no args.models")
    normalization = args.get("slat_normalization") or {}
    mean, std = normalization.get("mean"), normalization.get("std")
    if not _is_numbers(mean) or not _is_numbers(std) or len(mean) != len(std) or 0 in std:
        raise InvalidInputError(f"{path}: slat_normalization needs mean and std, lists of the same length, std not 0")
    for role, stem in args["models"].items():
        if not isinstance(stem, str):
            raise InvalidInputError(f"{path}: models.{role} is no file stem")
    return Pipeline(
        folder=Path(folder),
        models=dict(args["models"]),
        sparse_structure_sampler=_read_sampler(path, args, "sparse_structure_sampler"),
        slat_sampler=_read_sampler(path, args, "slat_sampler"),
        slat_mean=tuple(map(float, mean)),
        slat_std=tuple(map(float, std)),
        image_cond_model=args.get("image_cond_model"),
    )


def load_role(pipeline: Pipeline, role: str, device="cpu", dtype: torch.dtype | None = None) -> nn.Module:
    """The network that plays `role` in the pipeline; see `load_model`."""
    if role not in pipeline.models:
        raise InvalidInputError(f"{pipeline.folder / 'pipeline.json'}: no models.{role}")
    return load_model(pipeline.folder, pipeline.models[role], device, dtype, ROLES[role])


def load_model(
    folder: Path | str,
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    network: type[nn.Module] | None = None,
) -> nn.Module:
    """Build the network of `folder/<name>.json` and fill it from `folder/<name>.safetensors`, ready for inference.

    `dtype` is that of the torso; default float32 on the CPU, float16 (as the files store it) elsewhere. Norms,
    embeddings and the outer layers are float32. `network` overrides the class the file names. Raises MissingInputError
    for a file that is not there and InvalidInputError for one that does not fit.
    """
    config_path = _inside(Path(folder), f"{name}.json")
    weights_path = _inside(Path(folder), f"{name}.safetensors")
    config = _read_json(config_path)
    network = network or _network_named(config_path, config.get("name"))
    arguments = _constructor_arguments(config_path, network, config.get("args"))
    if not weights_path.is_file():
        raise MissingInputError(f"{weights_path}: no such file")
    try:
        with torch.device("meta"):
            model = network(**arguments)
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidInputError(f"{config_path}: {network.__name__} cannot be built: {error}") from error
    try:
        tensors = load_file(weights_path, device=str(device))
    except SafetensorError as error:
        raise InvalidInputError(f"{weights_path}: {error}") from error
    _check_tensors(weights_path, model, tensors)
    model.load_state_dict(tensors, assign=True)
    model.requires_grad_(False).eval()
    model.set_torso_dtype(dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.float16))
    return model


def _network_named(path: Path, name) -> type[nn.Module]:
    network = NETWORKS.get(str(name).removeprefix(NAME_PREFIX))
    if network is None:
        raise InvalidInputError(f"{path}: unknown network {name!r}; known: {', '.join(sorted(NETWORKS))}")
    return network


def _constructor_arguments(path: Path, network: type[nn.Module], args) -> dict:
    if not isinstance(args, dict):
        raise InvalidInputError(f"{path}: no args")
    known = {name for cls in network.__mro__ if "__init__" in vars(cls) for name in inspect.signature(cls).parameters}
    wanted = {}
    for name, value in args.items():
        if name in _TRAINING_ONLY:
            continue
        if name in _FIXED:
            if value != _FIXED[name]:
                raise InvalidInputError(f"{path}: {name} = {value!r} is not supported")
        elif name not in known:
            raise InvalidInputError(f"{path}: {network.__name__} takes no {name!r}")
        else:
            wanted[name] = value
    return wanted


def _check_tensors(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for problem, names in (
        ("has no", sorted(expected.keys() - found.keys())),
        ("has the unknown", sorted(found.keys() - expected.keys())),
    ):
        if names:
            raise InvalidInputError(f"{path}: {problem} tensor {names[0]!r} ({len(names)} such tensors)")
    for name, shape in expected.items():
        if found[name] != shape:
            raise InvalidInputError(f"{path}: {name} has shape {list(found[name])}, expected {list(shape)}")


def _read_sampler(path: Path, args: dict, key: str) -> SamplerSettings:
    sampler = args.get(key) or {}
    values = dict(sampler.get("params") or {})
    if "sigma_min" in (sampler.get("args") or {}):
        values["sigma_min"] = sampler["args"]["sigma_min"]
    if "cfg_interval" in values:
        values["cfg_interval"] = tuple(values["cfg_interval"])
    try:
        return SamplerSettings(**values)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{path}: {key}: {error}") from error


def _is_numbers(values) -> bool:
    return isinstance(values, list) and all(isinstance(value, (int, float)) for value in values)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidInputError(f"{name!r} leads out of {folder}")
    return path


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InvalidInputError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path}: not a JSON object")
    return content
