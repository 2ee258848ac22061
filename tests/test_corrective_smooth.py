"""corrective_smooth_baker.py: the maths against references and properties, the script as a process."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from processes import everything_in, json_lines, run

from meshes.corrective_bake import BakeSettings, bake_mesh, deform_bones, weld
from meshes.samples import limb
from meshes.scene import Mesh, Skin
from meshes.skin_bake import (
    SOLVERS,
    pose_transforms,
    random_rotations,
    skin_points,
    solve_weights,
)
from meshes.smoothing import CorrectiveSmooth, SmoothSettings
from meshes.weight_rows import compressed_rows, dense_rows, limit

SCRIPT = "corrective_smooth_baker.py"


def small_limb():
    return limb(bones=5, rings=20, segments=12)


def reference_smooth(points, sizes, vertices, iterations, factor, length_weighted):
    """Length-weighted and simple smoothing written out with dictionaries."""
    neighbours = {v: set() for v in range(len(points))}
    start = 0
    for size in sizes:
        loop = vertices[start : start + size]
        for a, b in zip(loop, np.roll(loop, -1), strict=True):
            neighbours[a].add(b)
            neighbours[b].add(a)
        start += size
    co = points.copy()
    for _ in range(iterations):
        new = co.copy()
        for v, others in neighbours.items():
            steps = np.array([co[o] - co[v] for o in sorted(others)])
            if length_weighted:
                lengths = np.linalg.norm(steps, axis=1)
                new[v] += 2 * factor * (steps * lengths[:, None]).sum(0) / (lengths.sum() * len(others))
            else:
                new[v] += factor * steps.mean(0)
        co = new
    return co


@pytest.mark.parametrize("kind", ["length-weighted", "simple"])
def test_smoothing_is_its_definition(kind):
    mesh = small_limb().meshes[0]
    settings = SmoothSettings(kind, factor=0.7, iterations=3, only_smooth=True)
    smooth = CorrectiveSmooth(mesh.points, mesh.face_sizes, mesh.face_vertices, settings)
    bent = mesh.points * [1, 1, 2] + np.sin(mesh.points[:, [1, 2, 0]])
    expected = reference_smooth(bent, mesh.face_sizes, mesh.face_vertices, 3, 0.7, kind == "length-weighted")
    np.testing.assert_allclose(smooth.apply(bent), expected, atol=1e-12)


def test_corrective_smoothing_keeps_the_rest_shape_and_moves_with_the_body():
    mesh = small_limb().meshes[0]
    smooth = CorrectiveSmooth(mesh.points, mesh.face_sizes, mesh.face_vertices, SmoothSettings())
    np.testing.assert_allclose(smooth.apply(mesh.points), mesh.points, atol=1e-12)
    (turn,) = random_rotations(np.random.default_rng(0), 1, 1, math.pi)[0]
    moved = mesh.points @ turn.T * 3 + [1, 2, 3]
    assert np.abs(smooth.apply(moved) - moved).max() < 0.4 * np.ptp(mesh.points), (
        "scaled detail stays as large as at rest"
    )
    rigid = mesh.points @ turn.T + [1, 2, 3]
    np.testing.assert_allclose(smooth.apply(rigid), rigid, atol=1e-12)


def test_pinned_boundary_and_mask_hold_points():
    mesh = small_limb().meshes[0]
    bent = mesh.points + 0.1 * np.sin(9 * mesh.points[:, [1, 2, 0]])
    settings = SmoothSettings(only_smooth=True, pin_boundary=True)
    pinned = CorrectiveSmooth(mesh.points, mesh.face_sizes, mesh.face_vertices, settings).apply(bent)
    rim = (mesh.points[:, 1] == 0) | (mesh.points[:, 1] == 2.0)
    np.testing.assert_array_equal(pinned[rim], bent[rim])
    assert (np.abs(pinned[~rim] - bent[~rim]).max(axis=1) > 0).all()
    none = np.zeros(len(bent))
    masked = CorrectiveSmooth(mesh.points, mesh.face_sizes, mesh.face_vertices, SmoothSettings(only_smooth=True), none)
    np.testing.assert_array_equal(masked.apply(bent), bent)


def poses_of(scene, count, seed=0):
    skeleton = scene.skeletons[0]
    rng = np.random.default_rng(seed)
    return pose_transforms(skeleton.bind, skeleton.parents, random_rotations(rng, count, len(skeleton.joints), 0.7))


def test_solver_finds_weights_that_made_the_targets():
    scene = small_limb()
    mesh, skin = scene.meshes[0], scene.meshes[0].skin
    transforms = poses_of(scene, 30)
    targets = skin_points(mesh.points, skin.offsets, skin.joints, skin.weights, transforms)
    wanted = dense_rows(skin.offsets, skin.joints, skin.weights, 5)
    blank = np.zeros_like(wanted)
    for solver in SOLVERS:
        found = solve_weights(mesh.points, targets, transforms, blank, influences=4, solver=solver)
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=solver)


def test_solver_is_the_constrained_optimum():
    """Against scipy's NNLS with the sum as a heavy row, on targets no weights can reach."""
    from scipy.optimize import nnls

    scene = small_limb()
    points = scene.meshes[0].points[::7]
    transforms = poses_of(scene, 20)
    rng = np.random.default_rng(1)
    targets = (
        np.einsum("pkl,vl->pvk", transforms[:, 2, :, :3], points)
        + transforms[:, 2, None, :, 3]
        + rng.normal(0, 0.1, (20, len(points), 3))
    )
    found = solve_weights(points, targets, transforms, np.zeros((len(points), 5)), influences=0)
    homogeneous = np.c_[points, np.ones(len(points))]
    for v in range(len(points)):
        rows = np.einsum("pbkl,l->pkb", transforms, homogeneous[v]).reshape(-1, 5)
        right = targets[:, v].ravel()
        reference = nnls(np.vstack([rows, np.full(5, 1e4)]), np.append(right, 1e4))[0]
        ours, theirs = (np.linalg.norm(rows @ w - right) for w in (found[v], reference / reference.sum()))
        assert ours <= theirs * (1 + 1e-6)
    assert (found >= 0).all() and np.allclose(found.sum(1), 1)


def test_limit_and_rows_round_trip():
    dense = np.array([[0.5, 0.3, 0.15, 0.05], [0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.995, 0.005, 0, 0]])
    np.testing.assert_allclose(limit(dense, 2)[0], [0.625, 0.375, 0, 0])
    np.testing.assert_array_equal(limit(dense, 2)[1], 0)
    np.testing.assert_allclose(limit(dense, 2)[2], [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(limit(dense, 0, prune=0.01)[3], [1, 0, 0, 0])
    np.testing.assert_allclose(dense_rows(*compressed_rows(dense), 4), dense)


def split(mesh: Mesh) -> Mesh:
    """The same mesh with points split as glTF does at seams: each face has its own."""
    owner = mesh.face_vertices
    rows = dense_rows(mesh.skin.offsets, mesh.skin.joints, mesh.skin.weights, 5)[owner]
    skin = Skin(0, *compressed_rows(rows))
    return Mesh(mesh.name, mesh.points[owner], mesh.face_sizes, np.arange(len(owner), dtype=np.int32), skin=skin)


def test_split_points_are_smoothed_together():
    scene = small_limb()
    whole, apart = scene.meshes[0], split(scene.meshes[0])
    assert len(weld(apart)[0]) == len(whole.points)
    skeleton = scene.skeletons[0]
    bake = [
        bake_mesh(
            m,
            skeleton,
            deform_bones(0, [m]),
            BakeSettings(poses=20),
            np.random.default_rng(0),
            centimetres_per_unit=100,
        )
        for m in (whole, apart)
    ]
    assert bake[0].report.rms_after == pytest.approx(bake[1].report.rms_after)
    rows = [dense_rows(b.skin.offsets, b.skin.joints, b.skin.weights, 5) for b in bake]
    np.testing.assert_allclose(rows[0][whole.face_vertices], rows[1], atol=1e-9)


@pytest.mark.parametrize(
    "matrix",
    [np.eye(4), np.diag([2.0, 0.5, -1, 1]), np.array([[1, 0.5, 0, 3], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])],
)
def test_scaled_mirrored_and_sheared_armatures(matrix):
    scene = small_limb()
    mesh = scene.meshes[0]
    mesh.points = mesh.points @ np.linalg.inv(matrix)[:3, :3].T + np.linalg.inv(matrix)[:3, 3]
    mesh.skin.bind_transform = matrix
    baked = bake_mesh(
        mesh,
        scene.skeletons[0],
        deform_bones(0, [mesh]),
        BakeSettings(poses=40),
        np.random.default_rng(0),
        centimetres_per_unit=100,
    )
    assert baked.report.rms_after < baked.report.rms_limited
    mesh.skin.bind_transform = np.diag([1.0, 0, 1, 1])
    with pytest.raises(Exception, match="flattens space"):
        bake_mesh(
            mesh,
            scene.skeletons[0],
            np.arange(5),
            BakeSettings(poses=40),
            np.random.default_rng(0),
            centimetres_per_unit=100,
        )


@pytest.fixture
def rig(tmp_path) -> Path:
    from meshes.io import write_scene

    path = tmp_path / "my limb.usda"
    write_scene(small_limb(), path)
    return path


def test_bakes_a_file(rig, tmp_path):
    done = run(SCRIPT, rig, "--poses", 30, "--json", "-o", tmp_path / "out.usdz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    (mesh,) = result["meshes"]
    assert mesh["rms_after"] < mesh["rms_limited"] and mesh["baked"] + mesh["kept"] == mesh["points"] == 240
    assert {Path(o["path"]).name for o in result["outputs"]} == {"out.usdz", "preview.png", "deviation.png"}
    from meshes.io import read_scene

    before, after = read_scene(rig), read_scene(tmp_path / "out.usdz")
    new, old = after.meshes[0], before.meshes[0]
    np.testing.assert_allclose(new.points, old.points, atol=1e-6)
    np.testing.assert_array_equal(new.face_vertices, old.face_vertices)
    assert after.skeletons[0].joints == before.skeletons[0].joints and list(new.uv_sets) == list(old.uv_sets)
    assert np.diff(new.skin.offsets).max() <= 8
    np.testing.assert_allclose(np.add.reduceat(new.skin.weights, new.skin.offsets[:-1]), 1, atol=1e-6)


def test_same_seed_same_bytes(rig, tmp_path):
    for name in ("a.usdc", "b.usdc"):
        assert run(SCRIPT, rig, "--poses", 20, "--no-preview", "-o", tmp_path / name, cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.usdc").read_bytes() == (tmp_path / "b.usdc").read_bytes()


def test_selected_points_only(rig, tmp_path):
    (tmp_path / "points.txt").write_text("100\n101\n102\n")
    done = run(
        SCRIPT,
        rig,
        "--poses",
        20,
        "--bake-range",
        "selected",
        "--vertices",
        tmp_path / "points.txt",
        "--no-preview",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (mesh,) = json.loads(done.stdout)["meshes"]
    assert mesh["baked"] + mesh["kept"] == 3


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--bake-quality", "0.6"], 2),
        (["--bake-range", "selected"], 2),
        (["--solver", "magic"], 2),
        (["-o", "x.fbx"], 2),
        (["--vertices", "none.txt", "--bake-range", "selected"], 66),
        (["--smooth-group", "none"], 66),
    ],
)
def test_what_it_refuses(rig, tmp_path, args, code):
    done = run(SCRIPT, rig, "--poses", 5, *args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert everything_in(tmp_path) == ["my limb.usda"]


def test_files_without_a_rig(tmp_path):
    (tmp_path / "t.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    done = run(SCRIPT, "t.obj", cwd=tmp_path)
    assert done.returncode == 65 and "no skinned mesh" in done.stderr
    assert run(SCRIPT, "none.usdc", cwd=tmp_path).returncode == 66
    (tmp_path / "t.txt").write_text("x")
    assert run(SCRIPT, "t.txt", cwd=tmp_path).returncode == 65


def three_rigs():
    """An open tube of quads, a patch of irregular triangles with a boundary, and an odd mesh: n-gons, a fin, a loose point."""
    from meshes.samples import triangle_patch

    tube = small_limb()
    patch = triangle_patch(200)
    odd = limb(bones=4, rings=9, segments=5)
    for scene, axis in ((patch, 0), (odd, 1)):
        mesh = scene.meshes[0]
        if scene is odd:
            cap = np.arange(5, dtype=np.int32)
            mesh.points = np.r_[mesh.points, [[0.9, 0.8, 0.1], [3.0, 3.0, 3.0]]]
            mesh.face_sizes = np.r_[mesh.face_sizes, 5, 3].astype(np.int32)
            mesh.face_vertices = np.r_[mesh.face_vertices, cap[::-1], 20, 25, len(mesh.points) - 2].astype(np.int32)
        else:
            scene.skeletons = small_limb().skeletons
        place = mesh.points[:, axis] / np.ptp(mesh.points[:, axis])
        rows = np.exp(-((place[:, None] * 4 - np.arange(4)) ** 2))
        mesh.skin = Skin(0, *compressed_rows(limit(rows, 3)))
    return [tube, patch, odd]


SMOOTHINGS = [
    SmoothSettings(),
    SmoothSettings("simple"),
    SmoothSettings("length-weighted", 0.4, 12),
    SmoothSettings("simple", 0.7, 10),
    SmoothSettings("length-weighted", 1.0, 3, pin_boundary=True),
    SmoothSettings("simple", 1.0, 8, pin_boundary=True),
    SmoothSettings("length-weighted", 0.9, 6, only_smooth=True),
    SmoothSettings("simple", 0.9, 6, pin_boundary=True, only_smooth=True),
]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_smoothing_is_what_blender_does(tmp_path, number):
    from blender import blender

    from meshes.corrective_bake import PosedMesh

    scene = three_rigs()[number]
    mesh = scene.meshes[0]
    moving = deform_bones(0, [mesh])
    rng = np.random.default_rng(number)
    posed = PosedMesh(mesh, scene.skeletons[0], moving, SmoothSettings()).draw(rng, 3, 60.0).skinned
    stray = rng.random(len(mesh.points))
    names = {"length-weighted": "LENGTH_WEIGHTED", "simple": "SIMPLE"}
    jobs = [(settings, mask) for settings in SMOOTHINGS for mask in (None, stray)]
    faces = np.split(mesh.face_vertices, np.cumsum(mesh.face_sizes)[:-1])
    cases = [
        {
            "points": mesh.points.tolist(),
            "faces": [face.tolist() for face in faces],
            "poses": posed.tolist(),
            "mask": None if mask is None else mask.tolist(),
            "settings": {
                "smooth_type": names[settings.smooth_type],
                "factor": settings.factor,
                "iterations": settings.iterations,
                "use_pin_boundary": settings.pin_boundary,
                "use_only_smooth": settings.only_smooth,
                "rest_source": "ORCO",
            },
        }
        for settings, mask in jobs
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    theirs = blender("smooth", tmp_path / "cases.json", tmp_path / "out.json")
    size = np.ptp(mesh.points, axis=0).max()
    for (settings, mask), found in zip(jobs, theirs, strict=True):
        smooth = CorrectiveSmooth(mesh.points, mesh.face_sizes, mesh.face_vertices, settings, mask)
        gap = np.abs(smooth.apply_all(posed) - np.array(found)).max()
        assert gap < 1e-5 * size, (settings, mask is not None, gap / size)
