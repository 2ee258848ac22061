"""The flags that mean the same in every script. A script's config dataclass inherits from one of these classes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from shared_utils.args import option
from shared_utils.device import check_device_name
from shared_utils.errors import UsageError

_RUN = {"group": "Run", "per_item": False, "replay": False}
_OUT = {"group": "Output", "per_item": False, "replay": False}
_MODEL = {"group": "Model", "per_item": False}


def _shard_rule(value: str) -> str | None:
    index, slash, count = value.partition("/")
    if value == "slurm":
        return None
    if (
        slash
        and index.isascii()
        and index.isdigit()
        and count.isascii()
        and count.isdigit()
        and int(index) < int(count)
    ):
        return None
    return "must be I/N with 0 <= I < N, or slurm"


@dataclasses.dataclass(kw_only=True)
class CommonOptions:
    """Flags of every script."""

    seed: int | None = option(
        None,
        "Random seed; item i of a batch uses seed + i. Drawn, printed and recorded when not given.",
        group="Run",
        minimum=0,
        maximum=2**32 - 1,
    )
    inputs_from: Path | None = option(
        None,
        "Batch: a file with one JSON object (keys are long flag names with _) or one plain input a line; - is stdin.",
        group="Run",
        per_item=False,
    )
    shard: str | None = option(
        None,
        "With --inputs-from: take every N-th item, starting at I (counted from 0), as I/N; 'slurm' takes I and N from a Slurm array job.",
        check=_shard_rule,
        **_RUN,
    )
    resume: Path | None = option(None, "Use exactly this run folder and skip the items already done there.", **_RUN)
    config: Path | None = option(None, "Replay the flags recorded in a run.json; flags given here win.", **_RUN)
    dry_run: bool = option(False, "Check inputs, weights, device, memory and disk, print the plan and stop.", **_RUN)
    smoke_test: bool = option(
        False,
        "Run the whole pipeline offline on a built-in input and, where it needs one, a tiny random model.",
        group="Run",
        per_item=False,
    )
    lock: Path | None = option(None, "Exit at once with code 75 when another process holds this lock file.", **_RUN)
    output: Path | None = option(
        None,
        "File for the main result (one item only); the rest stays in the run folder.",
        aliases=("-o",),
        group="Output",
        replay=False,
    )
    output_dir: Path = option(Path("output"), "Folder in which the run folder YYYYMMDD_HH_MM_SS is made.", **_OUT)
    overwrite: bool = option(False, "Replace an existing --output file.", **_OUT)
    keep_last: int | None = option(
        None, "After success keep only the newest N run folders of this tool.", minimum=1, **_OUT
    )
    json: bool = option(False, "Print the result as JSON on stdout (one line per item in a batch).", **_OUT)
    quiet: bool = option(False, "Print nothing on stderr but errors.", aliases=("-q",), **_OUT)
    verbose: bool = option(False, "Print details on stderr.", aliases=("-v",), **_OUT)
    no_color: bool = option(False, "No colours on stderr.", **_OUT)
    disable_telemetry: bool = option(False, "No spans, no trace file, nothing exported.", **_RUN)
    telemetry_content: bool = option(
        False, "Let telemetry (exported, and the trace file) carry prompts, names and paths.", **_RUN
    )

    def check_common(self) -> None:
        """Rules between the common flags. Raises `UsageError`."""
        if self.shard and not self.inputs_from:
            raise UsageError(f"--shard {self.shard}: only together with --inputs-from")
        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose exclude each other")


@dataclasses.dataclass(kw_only=True)
class ModelOptions(CommonOptions):
    """Flags of the scripts that load model weights."""

    model: tuple[str, ...] = option(
        (), "Model repository or local folder instead of the default; ROLE=REPO where a script has several.", **_MODEL
    )
    revision: tuple[str, ...] = option(
        (), "Commit, tag or branch of the model; ROLE=REVISION where a script has several.", **_MODEL
    )
    offline: bool = option(False, "Use only weights that are on disk.", **_MODEL)
    weights_dir: Path | None = option(
        None,
        "Folder for weights (default: $PRETRAINED_WEIGHTS_DIR, else pretrained_weights/ beside the script).",
        group="Model",
        per_item=False,
        replay=False,
    )
    device: str = option(
        "auto",
        "auto, cuda, cuda:N, mps or cpu; auto takes cuda, then mps, then cpu.",
        check=check_device_name,
        **_MODEL,
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "auto", "Number type of the model; auto is bf16 where the device computes with it.", **_MODEL
    )


@dataclasses.dataclass(kw_only=True)
class MeshOptions:
    """Flags of the scripts that read meshes, beside `CommonOptions` or `ModelOptions`."""

    fbx_timeout: float = option(
        300.0, "Seconds that Blender may take to read an FBX, without the time to install it.", minimum=1.0, **_RUN
    )


def check_ending(output: Path | None, format: str | None, formats: Sequence[str]) -> None:
    """--output ends in one of `formats`, and in what --format says where both are given. Raises `UsageError`."""
    if output is None:
        return
    suffix = output.suffix.lower().lstrip(".")
    if suffix not in formats:
        raise UsageError(f"--output {output}: must end in {', '.join(f'.{name}' for name in formats)}")
    if format not in (None, suffix):
        raise UsageError(f"--output {output}: is not --format {format}")
