"""Starting Blender (`bpy` 4.5 on Python 3.11, an environment of its own that uv makes) for the slow tests."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

_TOOLS = Path(__file__).resolve().parent / "blender_tools.py"


@functools.cache
def _command() -> tuple[str, ...] | None:
    uv = shutil.which("uv")
    if not uv:
        return None
    command = (uv, "run", "--no-project", "--quiet", "--python", "3.11", "--with", "bpy==4.5.*", "python")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([*command, "-c", "import bpy"], capture_output=True, env=environment, timeout=1800)
    return command if done.returncode == 0 else None


def blender(job: str, *paths: Path) -> object:
    """Run one job of blender_tools.py; what it wrote as JSON into the last path, where there is one. Skips without Blender."""
    command = _command()
    if command is None:
        pytest.skip("uv could not provide Blender (bpy 4.5 on Python 3.11)")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [*command, str(_TOOLS), job, *map(str, paths)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(paths[-1].read_text()) if len(paths) > 1 else None


def blender_batch(paths: list[Path], out: Path) -> dict:
    """What Blender sees in each of many files, by path; null where it cannot read one."""
    listing = out.with_name("list.json")
    listing.write_text(json.dumps([str(path) for path in paths]))
    return blender("batch", listing, out)
