"""tris_to_quads_converter.py as a user runs it: real files, processes, faults."""

import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, everything_in, json_lines, run, run_record, start

from meshes.io import read_scene, write_scene
from meshes.samples import triangle_patch

SCRIPT = "tris_to_quads_converter.py"


@pytest.fixture
def patch(tmp_path) -> Path:
    path = tmp_path / "my pätch.glb"
    write_scene(triangle_patch(), path)
    return path


def convert(*args, cwd, **kwargs):
    return run(SCRIPT, *args, cwd=cwd, **kwargs)


def areas(mesh) -> float:
    """Sum of the faces' areas, each fanned from its first corner."""
    total, start = 0.0, 0
    for size in mesh.face_sizes:
        loop = mesh.points[mesh.face_vertices[start : start + size]]
        vector = sum(np.cross(loop[i] - loop[0], loop[i + 1] - loop[0]) for i in range(1, size - 1))
        total += np.linalg.norm(vector) / 2
        start += size
    return total


def test_the_readme_example(tmp_path):
    done = convert(ROOT / "examples" / "cat_statue.glb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.name == "cat_statue_quads.usdc" and done.stdout.count("\n") == 1
    assert {"preview.png", "run.json", "opentelemetry_trace.json"} <= {p.name for p in path.parent.iterdir()}
    before, after = read_scene(ROOT / "examples" / "cat_statue.glb").meshes[0], read_scene(path).meshes[0]
    np.testing.assert_array_equal(before.points.astype(np.float32), after.points.astype(np.float32))
    assert (after.face_sizes == 4).sum() > 5000 and set(after.face_sizes) <= {3, 4}


def test_report_and_invariants(patch, tmp_path):
    done = convert(patch, "--json", "--objective", "length", "-o", "out.usda", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    before, after = read_scene(patch).meshes[0], read_scene(tmp_path / "out.usda").meshes[0]
    assert result["triangles_before"] == len(before.face_sizes)
    assert (
        result["quads_after"] == (after.face_sizes == 4).sum()
        and result["triangles_after"] == (after.face_sizes == 3).sum()
    )
    assert 2 * result["quads_after"] + result["triangles_after"] == result["triangles_before"]
    assert result["optimal"] and math.isclose(result["objective"], result["bound"], rel_tol=1e-9)
    assert areas(after) == pytest.approx(areas(before), rel=0.05)
    record = run_record(tmp_path / "output")
    assert record["items"][0]["objective"] == result["objective"] and record["seconds"].keys() >= {
        "read",
        "pair",
        "write",
    }


def test_objective_of_length_is_the_formula(patch, tmp_path):
    """Every dissolved edge counts 1 + 0.1 length / longest, where longest is over all candidates."""
    (result,) = json_lines(convert(patch, "--json", "--objective", "length", "-o", "out.usda", cwd=tmp_path).stdout)
    before, after = read_scene(patch).meshes[0], read_scene(tmp_path / "out.usda").meshes[0]

    def edges(mesh):
        found, begin = {}, 0
        for size in mesh.face_sizes:
            loop = [tuple(mesh.points[v].astype(np.float32)) for v in mesh.face_vertices[begin : begin + size]]
            for a, b in zip(loop, loop[1:] + loop[:1], strict=True):
                found[frozenset((a, b))] = math.dist(a, b)
            begin += size
        return found

    gone = edges(before).keys() - edges(after).keys()
    lengths = [edges(before)[e] for e in gone]
    assert len(lengths) == result["quads_after"]
    longest = (0.1 * sum(lengths)) / (result["objective"] - len(lengths))
    assert any(length == pytest.approx(longest, rel=1e-4) for length in edges(before).values())


def test_replay_and_second_run_are_byte_identical(patch, tmp_path):
    for name in ("a.usdc", "b.usdc"):
        assert convert(patch, "--no-preview", "-o", name, cwd=tmp_path).returncode == 0
    record = sorted((tmp_path / "output").glob("*/run.json"))[0]
    assert convert("--config", record, "-o", "c.usdc", cwd=tmp_path / "output").returncode == 0
    first = (tmp_path / "a.usdc").read_bytes()
    assert first == (tmp_path / "b.usdc").read_bytes() == (tmp_path / "output" / "c.usdc").read_bytes()


@pytest.mark.parametrize("suffix", ["usda", "usdz", "glb", "obj"])
def test_formats(patch, tmp_path, suffix):
    done = convert(patch, "--format", suffix, "--no-preview", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.suffix == f".{suffix}"
    faces = read_scene(path).meshes[0].face_sizes
    assert (faces == 4).any() != (suffix == "glb")
    assert ("triangles only" in done.stderr) == (suffix == "glb")


def test_obj_keeps_quads_and_ngons_that_are_there(tmp_path):
    text = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 2 0 0\nv 2 1 0\nv 3 0 0\nv 4 0.5 0\nv 3 1 0\nf 1 2 3 4\nf 2 5 6\nf 2 6 3\nf 5 7 8 9 6\n"
    (tmp_path / "mixed.obj").write_text(text)
    (result,) = json_lines(convert("mixed.obj", "--json", "--no-preview", cwd=tmp_path).stdout)
    assert (result["quads_before"], result["quads_after"], result["ngons"], result["triangles_after"]) == (1, 2, 1, 0)


def test_picks_meshes_by_name(patch, tmp_path):
    scene = triangle_patch()
    scene.meshes.append(triangle_patch(100, seed=1).meshes[0])
    scene.meshes[1].name = "other"
    from meshes.scene import Node

    scene.nodes.append(Node("other", mesh=1))
    write_scene(scene, tmp_path / "two.usda")
    (result,) = json_lines(convert("two.usda", "--mesh", "other", "--json", "--no-preview", cwd=tmp_path).stdout)
    assert [m["name"] for m in result["meshes"]] == ["other"]
    done = convert("two.usda", "--prim", "none", cwd=tmp_path)
    assert done.returncode == 65 and "other" in done.stderr


def test_time_limit_gives_the_best_so_far(tmp_path):
    write_scene(triangle_patch(20000), tmp_path / "big.usdc")
    (result,) = json_lines(convert("big.usdc", "--time-limit", 0, "--json", "--no-preview", cwd=tmp_path).stdout)
    assert result["quads_after"] > 10000 and result["objective"] <= result["bound"]


def corrupt(patch: Path, tmp_path: Path) -> dict[str, tuple[bytes, int]]:
    whole = patch.read_bytes()
    lying = whole.replace(b'"count":', b'"count":9', 1)
    return {
        "cut.glb": (whole[: len(whole) // 2], 65),
        "header.glb": (whole[:12], 65),
        "lying.glb": (lying[:8] + len(lying).to_bytes(4, "little") + lying[12:], 65),
        "empty.glb": (b"", 65),
        "text.stl": (b"no mesh at all", 65),
        "nothing.obj": (b"# no face\nv 0 0 0\n", 65),
        "range.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", 65),
        "zero.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", 65),
        "nan.obj": (b"v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", 65),
        "broken.usda": (b"#usda 1.0\ndef Mesh {", 65),
        "mesh.xyz": (b"0 0 0", 65),
    }


def test_broken_files_are_one_line_and_leave_nothing(patch, tmp_path):
    folder = tmp_path / "bad files"
    folder.mkdir()
    cases = corrupt(patch, tmp_path)
    for name, (data, _) in cases.items():
        (folder / name).write_bytes(data)
    (folder / "list.txt").write_text("\n".join([*cases, "missing.glb"]))
    done = convert("--inputs-from", folder / "list.txt", "--json", "--no-preview", cwd=tmp_path)
    assert done.returncode == 3
    codes = {
        Path(n).name: line["exit_code"]
        for n, line in zip(
            [*cases, "missing.glb"], sorted(json_lines(done.stdout), key=lambda r: r["index"]), strict=True
        )
    }
    assert codes == {name: code for name, (_, code) in cases.items()} | {"missing.glb": 66}
    assert "Traceback" not in done.stderr
    assert not [p for p in everything_in(tmp_path / "output") if "quads" in p or "partial" in p]


def test_single_bad_file_and_odd_names(patch, tmp_path):
    (tmp_path / "cut.glb").write_bytes(patch.read_bytes()[:100])
    done = convert("cut.glb", cwd=tmp_path)
    assert done.returncode == 65 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "output").exists() or everything_in(tmp_path / "output") == []
    shutil.copy(patch, tmp_path / "-dash.glb")
    done = convert("--no-preview", "--", "-dash.glb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == "-dash_quads.usdc"


def test_sigterm_while_working_leaves_no_file(tmp_path):
    write_scene(triangle_patch(60000), tmp_path / "big.usdc")
    process = start(SCRIPT, "big.usdc", "-o", "out.usdc", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "output").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 143
    assert everything_in(tmp_path) == ["big.usdc"]


def test_smoke_test_and_dry_run(tmp_path):
    done = convert("--smoke-test", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "ok" and result["quads_after"] > 100
    done = convert(ROOT / "examples" / "cat_statue.glb", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["items"] == 1
