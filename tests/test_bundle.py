"""Bundles run alone, far from the checkout, and say plainly when they cannot."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_hub import FakeHub
from PIL import Image
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


# A file or two of each published repository, as far as a plan looks at them.
PUBLISHED = {
    "Tongyi-MAI/Z-Image-Turbo": ("model_index.json", "transformer/diffusion_pytorch_model.safetensors"),
    "Qwen/Qwen3-VL-4B-Instruct": ("config.json", "model.safetensors"),
    "facebook/sam3": ("config.json", "model.safetensors"),
    "hexgrad/Kokoro-82M": ("config.json", "kokoro-v1_0.pth", "voices/af_heart.pt"),
    "omnipart/OmniPart": ("pipeline.json", "ckpts/slat_flow.safetensors"),
    "omnipart/OmniPart_modules": ("bbox_gen.ckpt", "partfield_encoder.ckpt"),
    "facebook/sam-vit-huge": ("config.json", "model.safetensors"),
    "facebook/dinov2-with-registers-large": ("config.json", "model.safetensors"),
    "VAST-AI/UniRig": (
        "skeleton/articulation-xl_quantization_256/model.ckpt",
        "skin/articulation-xl/model.ckpt",
    ),
}
# What each script is asked for in a dry run, and the repositories that it must then want.
ASKED = {
    "zimage_generation.py": (["a cat"], ["Tongyi-MAI/Z-Image-Turbo"]),
    "qwen3vl_inference.py": (["a.png", "what?"], ["Qwen/Qwen3-VL-4B-Instruct"]),
    "sam3_video_segmentation.py": (["a.png", "--prompt", "cat"], ["facebook/sam3"]),
    "kokoro_tts_generation.py": (["Hello."], ["hexgrad/Kokoro-82M"]),
    "kvoicewalk_generation.py": (
        ["--target-audio", "a.wav", "--target-text", "Hello there, this is a test."],
        ["hexgrad/Kokoro-82M"],
    ),
    "omnipart_generation.py": (
        ["a.png"],
        [
            "facebook/dinov2-with-registers-large",
            "facebook/sam-vit-huge",
            "omnipart/OmniPart",
            "omnipart/OmniPart_modules",
        ],
    ),
    "unirig_generation.py": (["a.obj"], ["VAST-AI/UniRig"]),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for repo, files in PUBLISHED.items():
        for file in files:
            path = folder / repo / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 1000)
    with FakeHub({repo: folder / repo for repo in PUBLISHED}) as hub:
        yield hub


@pytest.fixture
def box(tmp_path):
    """A folder far from the checkout with a picture, a sound and a mesh."""
    folder = tmp_path / "a box"
    folder.mkdir()
    Image.new("RGB", (64, 48), "white").save(folder / "a.png")
    soundfile.write(folder / "a.wav", np.sin(np.arange(24_000 * 6) / 20) / 2, 24_000)
    (folder / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 1 4 3\n")
    return folder


def plan_of(command: list[str], name: str, box: Path, hub: FakeHub) -> None:
    """A bundle's dry run names every file of its repositories, fetches none and leaves nothing behind."""
    asked, repos = ASKED[name]
    before, requests = everything_in(box), len(hub.log)
    done = subprocess.run(
        [*command, *asked, "--dry-run", "--json"],
        cwd=box,
        capture_output=True,
        text=True,
        env=environment(**hub.environment),
        stdin=subprocess.DEVNULL,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    (plan,) = json_lines(done.stdout)
    assert sorted({row["repo"] for row in plan["weights"]}) == repos
    files = {(row["repo"], file["path"]) for row in plan["weights"] for file in row["files"]}
    assert files == {(repo, file) for repo in repos for file in PUBLISHED[repo]}
    assert everything_in(box) == before
    assert not any("/resolve/" in request.path for request in hub.log[requests:])


@pytest.mark.parametrize("name", ["zimage_generation.py", "unirig_generation.py"])
def test_dry_run_of_a_bundle(name, box, published):
    assert bundle(ROOT / name, "-o", box / name).returncode == 0
    plan_of([sys.executable, name], name, box, published)


@pytest.mark.slow
@needs_uv
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCRIPTS)
def test_bundle_under_uv(name, box, published):
    """In an environment that holds what the header names and nothing else."""
    assert bundle(ROOT / name, "-o", box / name).returncode == 0
    if name in ASKED:
        plan_of(["uv", "run", name], name, box, published)
    for flag in ("--help", "--smoke-test"):
        done = subprocess.run(
            ["uv", "run", name, flag, *(["--json"] if flag == "--smoke-test" else [])],
            cwd=box,
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
