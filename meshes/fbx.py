"""FBX -> Scene, through Blender as a Python module (`bpy`) in a child process with an environment of its own.

The bindings to FBX libraries on PyPI crash on common files; Blender reads them, and hands the scene over as USD. The
child is a `uv run` with Python 3.11 and bpy 4.5 (LTS), which uv fetches once (about 400 MB); nothing of it enters
the caller's process.
"""

import contextlib
import importlib.resources
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from meshes import fbx_blender  # noqa: F401 - only so that a bundle of a script takes the child's source along
from meshes.paths import read_file
from meshes.scene import Scene
from shared_utils.errors import InvalidInputError, TemporaryError, UnavailableError

BLENDER = "bpy==4.5.*"
PYTHON = "3.11"
DEFAULT_TIMEOUT = 300.0
# Fetching and unpacking Blender on a slow line.
_INSTALL_SECONDS = 3600.0
_MAGIC = b"Kaydara FBX Binary  \x00\x1a\x00"
_OLDEST = 7100
_NETWORK_WORDS = ("dns error", "failed to fetch", "connection", "network", "timed out", "error sending request")


def read_fbx(path: Path, *, timeout: float | None = None) -> Scene:
    """Read an FBX file. Blender may work on it for `timeout` seconds (default 300).

    Raises MissingInputError; InvalidInputError (no binary FBX of version 7.1 or later, refused by Blender, Blender
    crashed or took too long); UnavailableError (no uv, no Python 3.11, Blender cannot be installed); TemporaryError
    (the network failed).
    """
    path, timeout = Path(path), timeout or DEFAULT_TIMEOUT
    check_header(path)
    with tempfile.TemporaryDirectory(prefix="fbx") as folder:
        child = Path(folder) / "fbx_blender.py"
        child.write_text(
            importlib.resources.files("meshes").joinpath("fbx_blender.py").read_text(encoding="utf-8"), "utf-8"
        )
        _install(folder)
        report = _convert(path.absolute(), child, Path(folder), timeout)
        return _read_result(path, Path(folder), report)


def check_header(path: Path) -> None:
    """Refuse what Blender cannot read without starting it: text FBX, old versions, other files."""
    data = read_file(path)
    if not data:
        raise InvalidInputError(f"{path}: empty file")
    if data.startswith(_MAGIC[:20]):
        version = int.from_bytes(data[23:27], "little")
        if len(data) < 160 or version < _OLDEST:
            raise InvalidInputError(f"{path}: FBX version {version} or cut off; version {_OLDEST} or later is readable")
    elif data.lstrip()[:1] == b";" and b"FBX" in data[:2000]:
        raise InvalidInputError(f"{path}: a text (ASCII) FBX; only binary FBX is readable, save it again as binary")
    else:
        raise InvalidInputError(f"{path}: not an FBX file")


def _command() -> list[str]:
    uv = os.environ.get("UV") or shutil.which("uv")
    if not uv:
        raise UnavailableError(
            "FBX input needs uv, which runs Blender beside this script: see https://docs.astral.sh/uv"
        )
    return [uv, "run", "--no-project", "--quiet", "--python", PYTHON, "--with", BLENDER, "python", "-I"]


def _environment() -> dict[str, str]:
    """The caller's environment without what would lead Python or Blender to the caller's own packages and settings."""
    private = ("PYTHON", "BLENDER", "VIRTUAL_ENV", "CONDA", "LD_PRELOAD")
    return {key: value for key, value in os.environ.items() if not key.startswith(private)}


def _install(folder: str) -> None:
    """Let uv put Python and Blender in place, so that the time limit below is Blender's alone."""
    done = _run([*_command(), "-c", "import sys; sys.exit(0)"], folder, _INSTALL_SECONDS)
    if done is None:
        raise TemporaryError(f"installing Blender ({BLENDER}) took over an hour")
    code, _, said = done
    if code:
        line = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), f"exit status {code}")
        kind = TemporaryError if any(word in said.lower() for word in _NETWORK_WORDS) else UnavailableError
        raise kind(f"FBX input needs Blender ({BLENDER} on Python {PYTHON}), which uv could not install: {line[:160]}")


def _convert(path: Path, child: Path, folder: Path, timeout: float) -> dict:
    done = _run([*_command(), str(child), str(path), str(folder)], str(folder), timeout)
    if done is None:
        raise InvalidInputError(f"{path}: Blender was not done after {timeout:g} s (--fbx-timeout allows more)")
    code, _, said = done
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = {}
    if "error" in report:
        raise InvalidInputError(f"{path}: Blender cannot read it: {' '.join(report['error'].split())[:160]}")
    if code or not (folder / "scene.usdc").is_file():
        what = f"signal {-code}" if code < 0 else f"status {code}"
        line = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "nothing said")
        raise InvalidInputError(f"{path}: Blender failed on it ({what}: {line[:120]})")
    return report


def _run(command: list[str], folder: str, timeout: float) -> tuple[int, str, str] | None:
    """(exit status, stdout, stderr), or None after the time limit. The whole process group ends with it."""
    with _process(command, folder) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return None
        return process.returncode, out, err


@contextlib.contextmanager
def _process(command: list[str], folder: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        command, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:  # Also when this process is told to stop.
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()


def _read_result(path: Path, folder: Path, report: dict) -> Scene:
    from meshes.usd_read import read_usd

    try:
        # Blender writes siblings in the order of their addresses in memory: another one in every run.
        scene = read_usd(folder / "scene.usdc", sort=True)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: what Blender made of it cannot be read ({str(error)[-160:]})") from error
    _restore_bone_names(scene, report.get("bones", []))
    for warning in report.get("warnings", []):
        scene.warn(warning)
    return scene


def _restore_bone_names(scene: Scene, names: list[str]) -> None:
    """Blender writes joints under names which USD allows; give back the ones that are unambiguous."""
    from meshes.usd_common import legal_name

    legal: dict[str, list[str]] = {}
    for name in names:
        legal.setdefault(legal_name(name), []).append(name)
    for skeleton in scene.skeletons:
        restored = [legal[joint][0] if len(legal.get(joint, [])) == 1 else joint for joint in skeleton.joints]
        if len(set(restored)) == len(restored):
            skeleton.joints = restored
