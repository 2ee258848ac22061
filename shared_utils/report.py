"""What is recorded of a run (`run.json`) and told to programs (`--json`)."""

import dataclasses
import json
import platform
import sys
import time
from importlib import metadata
from typing import Any

from shared_utils import __version__, device
from shared_utils.errors import ScriptError
from shared_utils.options import ModelOptions

SCHEMA = "generation-scripts/result/1"

# Distributions whose version decides a result; recorded when the run imported them: module -> distribution.
_PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "diffusers": "diffusers",
    "PIL": "pillow",
    "av": "av",
    "pxr": "usd-core",
    "kokoro": "kokoro",
    "misaki": "misaki",
    "onnxruntime": "onnxruntime",
    "soundfile": "soundfile",
}


@dataclasses.dataclass
class Report:
    """Collected while the run goes on."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    outputs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @staticmethod
    def error_line(tool: str, error: ScriptError) -> str:
        """The `--json` line of a run that failed as a whole."""
        return _line(
            {
                "schema": SCHEMA,
                "tool": tool,
                "status": "error",
                "error": str(error),
                "exit_code": error.exit_code,
                "outputs": [],
            }
        )

    @staticmethod
    def json_line(run: Any, record: dict[str, Any]) -> str:
        """The `--json` line of one item."""
        outputs = [{**o, "path": str((run.output.path / o["path"]).absolute())} for o in record["outputs"]]
        values = {k: v for k, v in record.items() if k not in ("key", "base_seed", "outputs")}
        common = {
            "schema": SCHEMA,
            "tool": run.script.name,
            "status": record["status"],
            "outputs": outputs,
            "seed": record.get("seed"),
            "model": model_name(run),
            "seconds": record.get("seconds", 0.0),
            "peak_memory_bytes": record.get("peak_memory_bytes"),
            "warnings": run.report.warnings,
            "folder": str(run.output.path.absolute()),
        }
        return _line({**common, **values})


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def model_name(run: Any) -> Any:
    """The model as recorded: `smoke-test`, a repository or folder, one per role where there are several, None without a model."""
    if run.smoke is not None and run.smoke.models:
        return "smoke-test"
    if not isinstance(run.config, ModelOptions) or not run.script.weights:
        return None
    names = {role: snapshot.repo for role, snapshot in run.snapshots.items()}
    return next(iter(names.values()), None) if len(run.script.weights) == 1 else names


def peak_memory(run: Any) -> int:
    """Peak bytes on the run's device."""
    return device.peak_memory(run.device if isinstance(run.config, ModelOptions) else "cpu")


def result_record(run: Any, item: Any, out: Any, result: Any, seconds: float) -> dict[str, Any]:
    """The manifest record of a finished item."""
    frame = {
        "index": item.index,
        "key": item.key(),
        "status": "ok",
        "outputs": out.record(run.output.path),
        "seed": item.config.seed,
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory(run),
    }
    clash = frame.keys() & result.report.keys()
    if clash:
        raise ValueError(f"report keys {sorted(clash)} are the frame's own")
    return {**frame, **result.report}


def versions() -> dict[str, str]:
    """Versions of Python, of this toolbox and of the packages this run imported."""
    found = {"python": platform.python_version(), "generation-scripts": __version__}
    for module, distribution in _PACKAGES.items():
        if module in sys.modules:
            try:
                found[distribution] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                found[distribution] = str(getattr(sys.modules[module], "__version__", "unknown"))
    return found


def run_record(run: Any, items: list[Any], config: dict[str, Any], status: str) -> dict[str, Any]:
    """The content of `run.json`."""
    smoke = run.smoke is not None
    models = {
        role: {
            "repo": "smoke-test" if smoke else s.repo,
            "revision": s.revision,
            "commit": s.commit,
            "licence": run.script.weights[role].licence,
        }
        for role, s in run.snapshots.items()
    }
    return {
        "tool": run.script.name,
        "status": status,
        "started": run.started,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": config,
        "seed": run.config.seed,
        "seeds": [item.config.seed for item in items],
        "model": model_name(run),
        "models": models,
        "versions": versions(),
        "platform": platform.platform(),
        "device": run.device if isinstance(run.config, ModelOptions) else "cpu",
        "seconds": {name: round(value, 3) for name, value in run.report.seconds.items()},
        "peak_memory_bytes": peak_memory(run),
        "warnings": run.report.warnings,
        "outputs": run.report.outputs,
        "items": [{k: v for k, v in r.items() if k not in ("key", "outputs")} for r in run.results],
        **run.report.extra,
    }


def print_plan(plan: dict[str, Any], stdout: Any, as_json: bool) -> None:
    """Print what `--dry-run` found out: one JSON object, or a line per fact."""
    if as_json:
        weights = [_plan_record(p) for p in plan.get("weights", [])]
        stdout.write(
            _line({"schema": SCHEMA, "status": "dry-run", **plan, **({"weights": weights} if weights else {})})
        )
        return
    for key, value in plan.items():
        for row in value if isinstance(value, list) else [value]:
            stdout.write(f"{key.replace('_', ' ')}: {row}\n")


def _plan_record(plan: Any) -> dict[str, Any]:
    """A `DownloadPlan` as JSON values; sizes in bytes."""
    return {
        "repo": plan.repo,
        "revision": plan.revision,
        "commit": plan.commit,
        "folder": str(plan.folder),
        "files": [dataclasses.asdict(file) for file in plan.files],
        "total_bytes": plan.total_bytes,
        "fetch_bytes": plan.fetch_bytes,
        "free_bytes": plan.free_bytes,
    }
