"""Low-rank adaptations: what `--lora` names, where its file is, and putting it on the transformer."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from shared_utils.errors import InvalidInputError, MissingInputError, UsageError
from shared_utils.hugging_face import DownloadPlan, HuggingFaceDownloader, Weights

MAX_SCALE = 10.0
DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"  # what diffusers' save_lora_weights writes


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA: its safetensors file, how strongly it is applied, and how it is recorded."""

    file: Path
    scale: float
    name: str


def parse_lora(value: str) -> tuple[str, float]:
    """Split `NAME:SCALE`, NAME being a file or a repository.

    Raises `UsageError` for a scale that is no number and a file of another kind, `MissingInputError` for a missing file.
    """
    name, colon, scale = value.rpartition(":")
    # A colon may belong to the name, as in C:\lora.safetensors.
    if not colon or "/" in scale or "\\" in scale:
        name, scale = value, "1"
    try:
        number = float(scale)
    except ValueError:
        raise UsageError(f"--lora {value}: the scale {scale!r} is not a number") from None
    if not abs(number) <= MAX_SCALE:
        raise UsageError(f"--lora {value}: the scale must be from -{MAX_SCALE:g} to {MAX_SCALE:g}")
    a_file, suffix = os.path.isfile(name), Path(name).suffix  # noqa: PTH113 - takes any text
    if a_file and suffix != ".safetensors":
        raise UsageError(f"--lora {value}: must be a .safetensors file (other formats can carry code)")
    if suffix == ".safetensors" and not a_file:
        raise MissingInputError(f"--lora {value}: no such file")
    return name, number


def find_lora(value: str, downloader: HuggingFaceDownloader) -> Lora:
    """The LoRA of a `--lora`, fetched and verified when it is a repository. Raises what the downloader raises."""
    name, scale = parse_lora(value)
    if Path(name).suffix == ".safetensors":
        return Lora(Path(name).absolute(), scale, Path(name).name)
    snapshot = downloader.fetch(_row(name))
    files = sorted(file for file in snapshot.files if file.endswith(".safetensors"))
    chosen = [file for file in files if Path(file).name == DIFFUSERS_NAME] or files
    if len(chosen) != 1:
        found = ", ".join(files) or "none"
        raise UsageError(f"--lora {value}: one safetensors file is needed, found {found} (give the file itself)")
    recorded = f"{name}@{snapshot.commit}" if snapshot.commit else Path(name).name
    return Lora(snapshot.path / chosen[0], scale, recorded)


def plan_lora(value: str, downloader: HuggingFaceDownloader) -> DownloadPlan | None:
    """What would be fetched for a `--lora`, None when it is a file. Raises what the downloader's `plan` raises."""
    name, _ = parse_lora(value)
    return None if Path(name).suffix == ".safetensors" else downloader.plan(_row(name))


def _row(repo: str) -> Weights:
    return Weights(repo, allow_patterns=("*.safetensors",))


def apply_loras(pipeline: Any, loras: list[Lora]) -> None:
    """Put each LoRA beside the transformer's weights. Raises `InvalidInputError` for a file that does not fit it."""
    for number, lora in enumerate(loras):
        adapter = f"lora_{number}"
        try:
            pipeline.load_lora_weights(
                str(lora.file.parent), weight_name=lora.file.name, adapter_name=adapter, local_files_only=True
            )
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise InvalidInputError(f"--lora {lora.name}: does not fit this model ({reason})") from error
        if adapter not in pipeline.transformer.peft_config:
            raise InvalidInputError(f"--lora {lora.name}: holds nothing for the transformer of this model")
    if loras:
        pipeline.set_adapters([f"lora_{n}" for n in range(len(loras))], [lora.scale for lora in loras])
