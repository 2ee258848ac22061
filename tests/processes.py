"""Run scripts as a user does: as processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ECHO = ROOT / "tests" / "echo_script.py"


def environment(**extra: str) -> dict[str, str]:
    """The environment of a test process: one OpenMP thread, no telemetry variables of the machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "APPSIGNAL_", "HF_", "PYTEST_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **extra}


def run(
    script: Path | str, *args: object, cwd: Path, stdin: str | None = None, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess:
    """Run a script of the repository with `args` in `cwd` and return its exit code and texts."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, args)],
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**env),
    )


def start(script: Path | str, *args: object, cwd: Path, **env: str) -> subprocess.Popen:
    """Start a script and return the process with its pipes open."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *map(str, args)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**env),
    )


def json_lines(text: str) -> list[dict]:
    """Stdout of a `--json` run as objects."""
    return [json.loads(line) for line in text.splitlines()]


def run_record(folder: Path) -> dict:
    """The `run.json` of the single run folder below `folder`, or of `folder` itself."""
    path = folder / "run.json"
    if not path.exists():
        (path,) = folder.glob("*/run.json")
    return json.loads(path.read_text())


def everything_in(folder: Path) -> list[str]:
    """Relative paths of all files below a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
