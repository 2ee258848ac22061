"""FBX through Blender: headers and failures with a stand-in for uv (fast), real files with real Blender (slow)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import run

from meshes.io import read_scene, write_scene
from shared_utils.errors import InvalidInputError, MissingInputError, TemporaryError, UnavailableError

ROOT = Path(__file__).resolve().parent.parent
MODELS = Path("/usr/share/assimp/models/FBX")
HEADER = b"Kaydara FBX Binary  \x00\x1a\x00" + (7400).to_bytes(4, "little") + bytes(200)


@pytest.fixture
def fake_uv(tmp_path, monkeypatch):
    """A `uv` that does what the test says: one shell script for the installation, one for Blender."""

    def make(install: str = "exit 0", blender: str = "exit 0") -> Path:
        path = tmp_path / "bin" / "uv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'#!/bin/sh\ncase "$*" in\n*" -c "*) {install};;\n*) for folder; do :; done; {blender};;\nesac\n'
        )
        path.chmod(0o755)
        monkeypatch.setenv("UV", str(path))
        return path

    return make


def fbx(tmp_path) -> Path:
    path = tmp_path / "a b.fbx"
    path.write_bytes(HEADER)
    return path


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"; FBX 7.3.0 project file\n", "ASCII"),
        (b"hello", "not an FBX"),
        (HEADER[:24], "cut off"),
        (HEADER[:23] + (6100).to_bytes(4, "little") + bytes(200), "version 6100"),
    ],
)
def test_what_blender_cannot_read_is_refused_without_it(tmp_path, monkeypatch, data, says):
    monkeypatch.setenv("UV", "/nonexistent/uv")
    path = tmp_path / "a.fbx"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=says):
        read_scene(path)
    with pytest.raises(MissingInputError):
        read_scene(tmp_path / "gone.fbx")


def test_without_uv_it_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="needs uv"):
        read_scene(fbx(tmp_path))


def test_an_installation_that_fails(tmp_path, fake_uv):
    fake_uv(install="echo 'No interpreter found for Python 3.11' >&2; exit 2")
    with pytest.raises(UnavailableError, match="No interpreter found"):
        read_scene(fbx(tmp_path))
    fake_uv(install="echo 'error: Failed to fetch: bpy' >&2; exit 1")
    with pytest.raises(TemporaryError, match="Failed to fetch"):
        read_scene(fbx(tmp_path))


def test_blender_that_fails_crashes_or_refuses(tmp_path, fake_uv):
    fake_uv(blender="echo oh no >&2; exit 3")
    with pytest.raises(InvalidInputError, match=r"status 3: oh no"):
        read_scene(fbx(tmp_path))
    fake_uv(blender="kill -SEGV $$")
    with pytest.raises(InvalidInputError, match="signal 11"):
        read_scene(fbx(tmp_path))
    fake_uv(blender="""printf '{"error": "it has\\\\nno scene"}' > "$folder/report.json"; exit 0""")
    with pytest.raises(InvalidInputError, match="Blender cannot read it: it has no scene"):
        read_scene(fbx(tmp_path))
    fake_uv(blender="echo nonsense > $folder/scene.usdc; exit 0")
    with pytest.raises(InvalidInputError, match="what Blender made of it"):
        read_scene(fbx(tmp_path))


def test_blender_that_hangs_is_ended_with_all_its_children(tmp_path, fake_uv):
    mark = tmp_path / "pid"
    fake_uv(blender=f"sleep 600 & echo $! > '{mark}'; wait")
    with pytest.raises(InvalidInputError, match=r"not done after 0\.5 s"):
        read_scene(fbx(tmp_path), fbx_timeout=0.5)
    assert _ended(int(mark.read_text()))


@pytest.mark.parametrize("name", ["tris_to_quads_converter.py", "corrective_smooth_baker.py"])
def test_scripts_bound_the_time_of_blender_and_know_a_pointer(tmp_path, fake_uv, name):
    fake_uv(blender="sleep 600")
    done = run(name, fbx(tmp_path), "--fbx-timeout", 1, cwd=tmp_path)
    assert done.returncode == 65 and "not done after 1 s" in done.stderr
    pointer = tmp_path / "a.fbx"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    done = run(name, pointer, cwd=tmp_path)
    assert done.returncode == 65 and done.stderr.count("\n") == 1 and "git lfs pull" in done.stderr
    assert not (tmp_path / "output").exists()


def _ended(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_the_child_is_given(tmp_path, fake_uv, monkeypatch):
    seen = tmp_path / "seen"
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    fake_uv(blender=f"""(env; echo "$@"; pwd) > '{seen}'; exit 1""")
    with pytest.raises(InvalidInputError):
        read_scene(fbx(tmp_path))
    text = seen.read_text()
    assert "PYTHONPATH" not in text and "VIRTUAL_ENV" not in text and str(tmp_path / "a b.fbx") in text
    assert "--no-project" in text and "bpy==4.5" in text


def test_a_stopped_script_takes_blender_with_it(tmp_path, fake_uv):
    mark = tmp_path / "pid"
    fake_uv(blender=f"echo $$ > '{mark}'; sleep 600")
    code = (
        f"import sys, signal; sys.path.insert(0, {str(ROOT)!r})\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "from meshes.io import read_scene\nread_scene(sys.argv[1])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(fbx(tmp_path))], env=dict(os.environ))
    for _ in range(400):
        if mark.exists() and mark.read_text().strip():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert _ended(int(mark.read_text()))


@pytest.mark.slow
def test_a_character_that_blender_wrote_is_read_completely(tmp_path):
    from blender import blender

    path = tmp_path / "my rig.fbx"
    blender("rig", path)
    (tmp_path / "paint.png").unlink()  # The picture is in the FBX.
    scene = read_scene(path)
    mesh, skeleton = scene.meshes[0], scene.skeletons[0]
    assert sorted(mesh.face_sizes.tolist()) == [4] * 40 + [5]
    assert [name for name in skeleton.joints if name.startswith("bone.")] == ["bone.000", "bone.001", "bone.002"]
    assert np.diff(mesh.skin.offsets).max() == 3 and [shape.name for shape in mesh.blend_shapes] == ["Wide"]
    assert sorted(material.name for material in scene.materials) == ["Cap", "Skin"]
    skin = next(material for material in scene.materials if material.name == "Skin")
    assert scene.images[skin.base_color_texture.image].data[:4] == b"\x89PNG"
    assert scene.animations and scene.up_axis == "Z"
    contents = []
    for number in range(2):
        write_scene(read_scene(path), tmp_path / f"{number}.usdz")
        contents.append((tmp_path / f"{number}.usdz").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["animation_with_skeleton.fbx", "huesitos.fbx"])
def test_posed_frames_are_where_blender_has_them(tmp_path, name):
    from blender import blender

    from meshes.skinning import clip_pose, world_points

    if not (MODELS / name).is_file():
        pytest.skip("Debian's assimp-testmodels is not installed")
    expected = blender("frames", MODELS / name, tmp_path / "frames.json")
    scene = read_scene(MODELS / name)
    for trip in ("", ".usdc", ".glb"):
        if trip:
            write_scene(scene, tmp_path / f"a{trip}")
            scene = read_scene(tmp_path / f"a{trip}")
        fps = expected["fps"]
        for thing, frames in expected.items():
            if thing == "fps":
                continue
            node = next(i for i, n in enumerate(scene.nodes) if n.name == thing and n.mesh is not None)
            for frame, points in frames.items():
                pose = clip_pose(scene, scene.animations[0], 0, float(frame) / fps)
                ours = world_points(scene, node, {0: pose})
                points = np.array(points)
                if trip == ".glb":  # Y up, and points split at seams: compare as sets.
                    points = points[:, [0, 2, 1]] * [1, 1, -1]
                    gaps = np.linalg.norm(ours[:, None] - points[None], axis=2)
                    gap = max(gaps.min(0).max(), gaps.min(1).max())
                else:
                    gap = np.abs(ours - points).max()
                assert gap < 1e-4 * np.ptp(points, axis=0).max(), (trip, frame)
