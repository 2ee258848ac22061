"""Bundles run alone, far from the checkout, and say plainly when they cannot."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ECHO, ROOT, environment, everything_in, json_lines

SCRIPTS = sorted(p.name for p in ROOT.glob("*.py") if p.name != "bundle.py")


def bundle(*args: object, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "bundle.py"), *map(str, args)],
        capture_output=True,
        env=environment(),
        timeout=120,
        **kwargs,
    )


def python(script: Path, *args: object, cwd: Path, executable: str = sys.executable) -> subprocess.CompletedProcess:
    return subprocess.run(
        [executable, str(script), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment(),
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


@pytest.fixture
def alone(tmp_path):
    """A bundle of the smallest script, without the line that finds the checkout."""
    done = bundle(ECHO, "-o", "-")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode().replace("sys.path.insert(0, str(Path(__file__).resolve().parent.parent))\n", "")
    folder = tmp_path / "a box"
    folder.mkdir()
    (folder / "echo.py").write_text(text)
    return folder / "echo.py"


def test_runs_alone_from_a_read_only_folder_with_a_space(alone, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    alone.parent.chmod(0o555)
    done = python(alone, "hi", "--seed", 1, cwd=elsewhere)
    alone.parent.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_text() == "HI 1"
    assert not any("pycache" in p for p in everything_in(alone.parent))


def test_traceback_of_a_bundle_shows_source_lines(alone, tmp_path):
    done = python(alone, "broken", cwd=tmp_path)
    assert done.returncode == 1
    assert "!/shared_utils/run.py" in done.stderr and "self.script.generate(model" in done.stderr


def test_header_is_unchanged_and_bytes_are_reproducible(tmp_path):
    first, second = bundle(ECHO, "-o", "-").stdout, bundle(ECHO, "-o", "-", cwd=tmp_path).stdout
    assert first == second
    header = ECHO.read_bytes().partition(b'"""')[0]
    assert first.startswith(header)


def test_check_sees_a_stale_bundle(tmp_path):
    target = tmp_path / "echo.py"
    assert bundle(ECHO, "-o", target).returncode == 0
    assert bundle(ECHO, "-o", target, "--check").returncode == 0
    target.write_text(target.read_text() + "\n")
    assert bundle(ECHO, "-o", target, "--check").returncode == 1
    assert bundle(tmp_path / "none.py").returncode == 66


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_bundles_and_helps_alone(name, tmp_path):
    assert bundle(ROOT / name, "-o", tmp_path / name).returncode == 0
    done = python(tmp_path / name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_copied_without_its_packages_says_what_to_do(name, tmp_path):
    shutil.copy(ROOT / name, tmp_path)
    done = python(tmp_path / name, "--help", cwd=tmp_path)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1 and "bundle.py" in done.stderr


needs_uv = pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")


@pytest.mark.slow
@needs_uv
@pytest.mark.parametrize("name", SCRIPTS)
def test_bundle_smoke_test_under_uv(name, tmp_path):
    assert bundle(ROOT / name, "-o", tmp_path / name).returncode == 0
    done = subprocess.run(
        ["uv", "run", name, "--smoke-test", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert json_lines(done.stdout)[-1]["status"] == "ok"


@pytest.mark.slow
@needs_uv
@pytest.mark.parametrize("version", ["3.11", "3.12"])
@pytest.mark.parametrize("flag", ["--help", "--dry-run", "--smoke-test"])
def test_mesh_script_matrix(version, flag, tmp_path):
    found = subprocess.run(["uv", "python", "find", "--no-python-downloads", version], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"Python {version} is not installed")
    box = tmp_path / "a box"
    name = "tris_to_quads_converter.py"
    assert bundle(ROOT / name, "-o", box / name).returncode == 0
    box.chmod(0o555)
    args = [flag, "--smoke-test"] if flag == "--dry-run" else [flag]
    done = subprocess.run(
        ["uv", "run", "--python", version, str(box / name), *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=1800,
    )
    box.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert everything_in(box) == [name]


def test_environment_of_the_tests_is_not_the_bundles(alone, tmp_path):
    """A bundle takes its own modules, not those of a checkout that happens to be importable."""
    (tmp_path / "shared_utils").mkdir()
    (tmp_path / "shared_utils" / "__init__.py").write_text("raise SystemExit('wrong module')")
    done = subprocess.run(
        [sys.executable, str(alone), "hi", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**environment(), "PYTHONPATH": os.fspath(tmp_path)},
    )
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "ok"
