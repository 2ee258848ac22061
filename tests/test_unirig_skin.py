"""UniRig's skin half: golden cases, and the properties of each stage against slow references written out here."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import parity
import parity_unirig_skin
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_case import family_of, load_case
from safetensors.torch import save_file
from scipy.spatial import cKDTree

from networks.unirig import skin as skin_module
from networks.unirig.closest_point import closest_on_triangle, closest_points
from networks.unirig.mesh_prep import prepare_mesh
from networks.unirig.orient import find_orientation
from networks.unirig.ptv3 import PatchAttention, PTv3Object, patch_indices, patch_serialization
from networks.unirig.reskin import diffuse, normalize_rows, reskin, top_k
from networks.unirig.robust_transfer import (
    cotangent_laplacian,
    inpaint,
    robust_transfer,
    smooth,
    transfer_weights,
    vertex_neighbours,
)
from networks.unirig.serialization import MAX_DEPTH, ORDERS, curve_code, curve_depth, grid_coordinates
from networks.unirig.skin import SkinModel, accumulate_children, mask_weights
from networks.unirig.skinning import SkinSettings, predict_skin
from networks.unirig.subm_conv import RULES, neighbourhood, subm_conv
from networks.unirig.voxel_skin import (
    fill_unit_box,
    joint_distances,
    skin_from_distances,
    voxel_centres,
    voxel_skin,
    voxelize,
)
from networks.unirig.zbuffer import FAR, SAMPLE_COLUMN, SAMPLE_ROW, VIEWS, depth_image
from shared_utils.errors import InvalidInputError

GOLDEN = Path(__file__).parent / "golden" / "unirig"
FAMILIES = set(parity_unirig_skin.CASES)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def skin_case():
    return load_case(GOLDEN / "case_skin_1.json")


@pytest.fixture(scope="module")
def tiny_model(skin_case) -> SkinModel:
    model = SkinModel.from_config(skin_case.config)
    model.load_state_dict(skin_case.weights)
    return model


def icosphere(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    return np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)


def box(extents) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    mesh = trimesh.creation.box(extents)
    return np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)


# Golden cases ---------------------------------------------------------------------------------------------------------


def golden_cases() -> list[Path]:
    return [path for path in sorted(GOLDEN.glob("case_*.json")) if family_of(path.stem) in FAMILIES]


@pytest.mark.parametrize("path", golden_cases(), ids=lambda path: path.stem)
def test_golden_case(path):
    worst, remarks = parity.run_case(path, parity_unirig_skin.CASES)
    assert worst.ok, remarks


def test_every_family_has_a_golden_case():
    assert {load_case(path).family for path in golden_cases()} == FAMILIES


def test_the_layout_of_the_keys_and_values_matters(skin_case):
    """The recorded result of reading Wkv head by head is far away: the golden case would notice."""
    wrong = (skin_case.outputs["fork_layout_skin"] - skin_case.outputs["skin"]).abs().max()
    assert wrong > 0.05


def test_state_dict_equals_the_published_one():
    manifest = json.loads((GOLDEN / "skin_model.json").read_text())["state_dict"]
    expected = {name.removeprefix("model."): tuple(shape) for name, (shape, _) in manifest.items()}
    with torch.device("meta"):
        model = SkinModel()
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected


# Curves ---------------------------------------------------------------------------------------------------------------


def cube(depth: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(2**depth), repeat=3)), dtype=torch.int32)


@pytest.mark.parametrize("order", ORDERS)
def test_curves_visit_every_cell_once(order):
    codes = curve_code(cube(3), order, 3)
    assert sorted(codes.tolist()) == list(range(8**3))


@pytest.mark.parametrize("order", ["hilbert", "hilbert-trans"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_hilbert_steps_to_a_neighbour(order, depth):
    cells = cube(depth)
    along = cells[curve_code(cells, order, depth).argsort()]
    assert (along.diff(dim=0).abs().sum(dim=1) == 1).all()


@given(st.lists(st.tuples(*[st.integers(0, 2**12 - 1)] * 3), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_z_curve_interleaves_bits(cells):
    codes = curve_code(torch.tensor(cells), "z", 12)
    for (x, y, z), code in zip(cells, codes.tolist(), strict=True):
        bits = "".join(f"{x >> b & 1}{y >> b & 1}{z >> b & 1}" for b in range(11, -1, -1))
        assert code == int(bits, 2)


def test_trans_swaps_x_and_y_and_the_batch_leads():
    cells, batch = cube(2), torch.arange(64) % 3
    for curve in ("z", "hilbert"):
        swapped = curve_code(cells[:, [1, 0, 2]], curve, 2)
        assert torch.equal(curve_code(cells, f"{curve}-trans", 2, batch), (batch << 6) + swapped)


def test_grid_coordinates_and_depth():
    points = torch.tensor([[-1.0, 0.0, 2.0], [1.0, 0.26, 2.0]])
    grid = grid_coordinates(points, 0.25)
    assert grid.dtype == torch.int32 and grid.tolist() == [[0, 0, 0], [8, 1, 0]]
    assert curve_depth(grid) == 4
    assert curve_depth(torch.zeros(3, 3, dtype=torch.int32)) == 0
    with pytest.raises(ValueError, match="too fine"):
        curve_depth(torch.tensor([[2**MAX_DEPTH, 0, 0]]))
    with pytest.raises(ValueError, match="none of"):
        curve_code(grid, "spiral", 4)


# Submanifold convolution ----------------------------------------------------------------------------------------------


def random_voxels(seed: int, count: int, side: int, unique: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if unique:
        return cube(3)[torch.randperm(512, generator=generator)[:count]] - 3
    return torch.randint(-side, side, (count, 3), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kernel", [3, 5])
def test_convolution_equals_a_dense_one_on_distinct_voxels(rule, kernel):
    torch.manual_seed(1)
    grid = random_voxels(0, 90, 0, unique=True)
    features, weight, bias = torch.randn(90, 4), torch.randn(6, kernel, kernel, kernel, 4), torch.randn(6)
    dense = torch.zeros(1, 4, 8, 8, 8)
    at = (grid + 3).long().T
    dense[0, :, at[0], at[1], at[2]] = features.T
    expected = F.conv3d(dense, weight.permute(0, 4, 1, 2, 3), bias, padding=kernel // 2)[0, :, at[0], at[1], at[2]].T
    actual = subm_conv(features, weight, bias, neighbourhood(grid, kernel, rule))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def slow_convolution(features, weight, grid, rule):
    """Pair by pair, as the library's hash tables and loops work."""
    kernel = weight.shape[1]
    cells = [tuple(cell) for cell in grid.tolist()]
    voxels = {}
    for i, cell in enumerate(cells):
        voxels.setdefault(cell, []).append(i)
    speaker = {cell: rows[-1] if rule == "implicit_gemm" else rows[0] for cell, rows in voxels.items()}
    taps = weight.flatten(1, 3)
    centre = kernel**3 // 2
    out = features @ taps[:, centre].T
    for tap, offset in enumerate(itertools.product(range(-(kernel // 2), kernel // 2 + 1), repeat=3)):
        for j, cell in enumerate(cells):
            there = tuple(c + o for c, o in zip(cell, offset, strict=True))
            back = tuple(c - o for c, o in zip(cell, offset, strict=True))
            if rule == "native" and tap < centre and back in speaker:
                r = speaker[back]
                out[r] += taps[:, tap] @ features[j]
                out[j] += taps[:, kernel**3 - 1 - tap] @ features[r]
            reads = rule == "representative" or (rule == "implicit_gemm" and (tap < centre or j == speaker[cell]))
            if reads and tap != centre and there in speaker:
                out[j] += taps[:, tap] @ features[speaker[there]]
    return out


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("side", [1, 2])
def test_points_that_share_a_voxel(rule, kernel, side):
    torch.manual_seed(2)
    grid = random_voxels(side, 40, side, unique=False)
    assert len(grid.unique(dim=0)) < 40
    features, weight = torch.randn(40, 3), torch.randn(5, kernel, kernel, kernel, 3)
    actual = subm_conv(features, weight, None, neighbourhood(grid, kernel, rule))
    torch.testing.assert_close(actual, slow_convolution(features, weight, grid, rule), atol=2e-5, rtol=1e-5)


def test_unknown_rule_and_wrong_kernel():
    grid = random_voxels(0, 5, 2, unique=False)
    with pytest.raises(ValueError, match="none of"):
        neighbourhood(grid, 3, "racy")
    with pytest.raises(ValueError, match="does not fit"):
        subm_conv(torch.zeros(5, 2), torch.zeros(2, 3, 3, 3, 2), None, neighbourhood(grid, 5))


# PTv3 -----------------------------------------------------------------------------------------------------------------


def tiny_ptv3(**config) -> PTv3Object:
    torch.manual_seed(3)
    sizes = {"enc_depths": (1, 2), "enc_channels": (8, 16), "enc_num_head": (2, 2), "grid_size": 0.05}
    return PTv3Object(**(sizes | config)).eval()


@pytest.mark.parametrize(("count", "size"), [(5, 8), (8, 8), (9, 8), (21, 8), (24, 8)])
def test_patches_are_completed_from_the_one_before(count, size):
    pad, unpad, length = patch_indices(count, size)
    assert length == min(count, size) and len(pad) % length == 0
    assert pad[unpad].tolist() == list(range(count))
    for extra in range(count, len(pad)):
        assert pad[extra] == extra - length


def test_patch_attention_against_every_patch_by_itself():
    torch.manual_seed(4)
    attention = PatchAttention(12, 3, qk_norm=True, qkv_bias=True)
    x, order = torch.randn(21, 12), torch.randperm(21)
    actual = attention(x, patch_serialization(order, 8))
    expected = torch.empty_like(x)
    for members, results in (
        (order[:8], slice(0, 8)),
        (order[8:16], slice(8, 16)),
        (torch.cat([order[16:], order[13:16]]), slice(16, 21)),
    ):
        q, k, v = attention.qkv(x[members]).view(8, 3, 3, 4).permute(1, 2, 0, 3)
        q, k = (
            (t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() for t in (q, k)
        )
        patch = attention.proj(((q @ k.transpose(1, 2) / 2).softmax(-1) @ v).transpose(0, 1).reshape(8, 12))
        expected[order[results]] = patch[: len(order[results])]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_ptv3_follows_its_points():
    """Shuffled points give shuffled features, with several patches too, as long as no two share a voxel."""
    model = tiny_ptv3(enc_patch_size=16, grid_size=0.001)
    torch.manual_seed(5)
    points, feat, shuffle = torch.rand(50, 3), torch.randn(50, 9), torch.randperm(50)
    order = torch.arange(4)
    torch.testing.assert_close(
        model(points[shuffle], feat[shuffle], order), model(points, feat, order)[shuffle], atol=1e-5, rtol=1e-4
    )


def test_order_matters_only_with_several_patches():
    points, feat = torch.rand(50, 3), torch.randn(50, 9)
    one, many = tiny_ptv3(), tiny_ptv3(enc_patch_size=16)
    first, second = torch.arange(4), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(one(points, feat, first), one(points, feat, second), atol=1e-5, rtol=1e-4)
    assert (many(points, feat, first) - many(points, feat, second)).abs().max() > 1e-3


def test_orders_are_drawn_unless_given_or_switched_off():
    points, model = torch.rand(40, 3), tiny_ptv3()
    torch.manual_seed(1)
    drawn = model.serialize(points, None)[1]
    torch.manual_seed(1)
    assert torch.equal(drawn, model.serialize(points, torch.randperm(4))[1])
    fixed = tiny_ptv3(shuffle_orders=False)
    assert torch.equal(fixed.serialize(points, None)[1], fixed.serialize(points, torch.arange(4))[1])


@pytest.mark.parametrize("rule", RULES)
def test_ptv3_takes_points_that_share_voxels(rule):
    points = torch.rand(60, 3)
    points[30:] = points[:30]
    out = tiny_ptv3(duplicate_rule=rule, enc_patch_size=16)(points, torch.randn(60, 9))
    assert out.shape == (60, 16) and out.isfinite().all()


def test_ptv3_of_one_point():
    assert tiny_ptv3()(torch.zeros(1, 3), torch.zeros(1, 9)).isfinite().all()


def test_settings_we_do_not_know_are_refused():
    with pytest.raises(ValueError, match="cls_mode"):
        PTv3Object.from_config({"cls_mode": True})
    with pytest.raises(TypeError):
        PTv3Object.from_config({"pooling": 2})
    with pytest.raises(ValueError, match="entries"):
        PTv3Object(enc_depths=(1, 1), enc_channels=(8,), enc_num_head=(1, 1))


# Skin model -----------------------------------------------------------------------------------------------------------


def run_tiny(model, case, **changes) -> torch.Tensor:
    names = ("vertices", "normals", "joints", "parents", "voxel_skin", "order_perm")
    return model(*({name: case.inputs[name] for name in names} | changes).values())


def test_chunks_change_nothing(tiny_model, skin_case, monkeypatch):
    whole = run_tiny(tiny_model, skin_case)
    monkeypatch.setattr(skin_module, "CHUNK_POINTS", 7)
    monkeypatch.setattr(skin_module, "CHUNK_PAIRS", 15)
    torch.testing.assert_close(run_tiny(tiny_model, skin_case), whole, atol=1e-6, rtol=1e-5)


def test_rows_sum_to_one_and_progress_counts_points(tiny_model, skin_case, monkeypatch):
    monkeypatch.setattr(skin_module, "CHUNK_POINTS", 32)
    seen = []
    names = ("vertices", "normals", "joints", "parents", "voxel_skin", "order_perm")
    weights = tiny_model(*(skin_case.inputs[n] for n in names), progress=lambda done, total: seen.append((done, total)))
    torch.testing.assert_close(weights.sum(1), torch.ones(80))
    assert seen == [(32, 80), (64, 80), (80, 80)]


def test_rows_the_mask_empties_stay_usable(tiny_model, skin_case):
    voxel = skin_case.inputs["voxel_skin"].clone()
    voxel[:10] = 0
    weights = run_tiny(tiny_model, skin_case, voxel_skin=voxel)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(1), torch.ones(80))


def test_one_joint_gets_everything(tiny_model, skin_case):
    case = skin_case.inputs
    weights = run_tiny(
        tiny_model, skin_case, joints=case["joints"][:1], parents=torch.tensor([-1]), voxel_skin=torch.ones(80, 1)
    )
    assert torch.equal(weights, torch.ones(80, 1))


def test_lower_precision_keeps_ptv3_in_float32(skin_case):
    model = SkinModel.from_config(skin_case.config)
    model.load_state_dict(skin_case.weights)
    model.set_dtype(torch.bfloat16)
    assert model.mesh_encoder.embedding.res_linear.weight.dtype == torch.float32
    weights = run_tiny(model, skin_case)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(1), torch.ones(80))
    assert (weights - skin_case.outputs["skin"]).abs().mean() < 0.02


def test_children_reach_one_generation_up():
    weights = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    assert accumulate_children(weights, [-1, 0, 1, 1]).tolist() == [[3.0, 14.0, 4.0, 8.0]]
    masked = mask_weights(torch.full((1, 4), 0.25), torch.tensor([[0.0, 0.0, 0.0, 0.5]]), [-1, 0, 1, 1], 3.0)
    torch.testing.assert_close(masked, torch.tensor([[0.0, 0.5, 0.0, 0.5]]))


def test_checkpoint_with_its_config(tmp_path, skin_case, tiny_model):
    save_file({f"model.{name}": t for name, t in skin_case.weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(skin_case.config))
    model = SkinModel.from_checkpoint(tmp_path / "model.safetensors")
    torch.testing.assert_close(run_tiny(model, skin_case), run_tiny(tiny_model, skin_case), atol=1e-6, rtol=1e-4)
    some = {f"model.{name}": t for name, t in skin_case.weights.items() if not name.startswith("qmesh")}
    save_file(some, tmp_path / "model.safetensors")
    with pytest.raises(InvalidInputError, match=r"lacks 2 tensors.*qmesh"):
        SkinModel.from_checkpoint(tmp_path / "model.safetensors")


# Depth images and voxels ----------------------------------------------------------------------------------------------


def slow_depth_image(vertices, faces, view, size):
    """One ray a pixel against every triangle."""
    image = np.full((size, size), FAR)
    for r, c in np.ndindex(size, size):
        origin, direction = np.zeros(3), np.zeros(3)
        for (axis, sign), at in ((view.column, c + SAMPLE_COLUMN), (view.row, r + SAMPLE_ROW)):
            origin[axis] = sign * (2 * at / size - 1)
        origin[view.eye[0]] = 2 * view.eye[1]
        direction[view.eye[0]] = -view.eye[1]
        for a, b, d in vertices[faces]:
            matrix = np.stack([a - d, b - d, -direction], axis=1)
            if abs(np.linalg.det(matrix)) > 1e-12:
                u, v, t = np.linalg.solve(matrix, origin - d)
                if min(u, v, 1 - u - v) >= 0:
                    image[r, c] = min(image[r, c], t)
    return image


@pytest.mark.parametrize("name", VIEWS)
def test_depth_image_against_rays(name):
    random = np.random.default_rng(list(VIEWS).index(name))
    vertices = random.uniform(-1, 1, (18, 3))
    faces = np.concatenate([random.integers(0, 18, (14, 3)), [[0, 0, 1]]])
    actual = depth_image(vertices, faces, VIEWS[name], 16)
    np.testing.assert_allclose(actual, slow_depth_image(vertices, faces, VIEWS[name], 16), atol=1e-5)


def test_depth_image_in_parts(monkeypatch):
    vertices, faces = icosphere(2)
    whole = depth_image(vertices, faces, VIEWS["+x"], 32)
    monkeypatch.setattr("networks.unirig.zbuffer._PIXELS_AT_ONCE", 500)
    np.testing.assert_array_equal(depth_image(vertices, faces, VIEWS["+x"], 32), whole)


def test_voxels_fill_a_sphere():
    vertices, faces = icosphere(3)
    cells = voxelize(vertices.astype(np.float32), faces, 32)
    radius = np.linalg.norm(voxel_centres(32)[cells], axis=1)
    assert abs(len(cells) * (2 / 32) ** 3 / (4 / 3 * np.pi) - 1) < 0.05
    assert radius.max() < 1.06
    ordered = cells * [1, 1, -1]
    assert (np.lexsort(ordered.T[::-1]) == np.arange(len(cells))).all()


def test_the_z_test_is_mirrored():
    """Two boxes at different heights: only the z axis reads them upside down, so little is left where x or y fail."""
    (low, faces), (high, _) = box([0.6, 2, 0.4]), box([0.6, 2, 0.4])
    vertices = np.concatenate([low + np.array([-0.7, 0, -0.8]), high + np.array([0.7, 0, 0.8])]).astype(np.float32)
    cells = voxelize(vertices, np.concatenate([faces, faces + 8]), 16)
    centres = voxel_centres(16)[cells]
    # x and y agree inside both boxes (y sees the box itself, x sees from the first box to the second).
    assert len(cells) > 0
    inside = ((abs(centres[:, 0]) > 0.4) & (np.sign(centres[:, 0]) == np.sign(centres[:, 2]))).mean()
    assert inside > 0.9


def test_straight_line_through_the_inside():
    """In a solid block the way between two joints costs three times its length, and one cell more at most."""
    vertices, faces = fill_unit_box(*box([2, 2, 2]))[0], box([2, 2, 2])[1]
    grid = 16
    cells = voxelize(vertices, faces, grid)
    joints = np.array([[0.0, 0.0, 0.9375], [0.0625, 0.0625, 0.0625]])
    distances = joint_distances(vertices, faces, joints, cells, grid=grid)
    assert np.isfinite(distances).all() and (distances >= 0).all()
    corner = np.abs(voxel_centres(grid)[-1] - 0.0625) * 3  # 7 cells along each axis to the corner voxel
    expected = 3 * corner + np.sqrt(3) * (1 - voxel_centres(grid)[-1])
    assert distances[:, 1].min() == pytest.approx(expected, rel=1e-5)


def test_edges_listed_twice_in_one_direction_count_twice():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=np.float32)
    none = np.zeros((0, 3), dtype=np.int64)
    joint = vertices[:1].astype(np.float64)
    both_ways = joint_distances(vertices, np.array([[0, 1, 2], [1, 0, 3]]), joint, none, grid=4)
    one_way = joint_distances(vertices, np.array([[0, 1, 2], [0, 1, 3]]), joint, none, grid=4)
    assert both_ways[1, 0] == pytest.approx(1)
    assert one_way[1, 0] == pytest.approx(2)


def test_parts_that_nearly_touch_are_linked_and_others_are_not():
    a = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float32)
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    none = np.zeros((0, 3), dtype=np.int64)
    for shift, linked in ((5e-6, True), (0.0, False), (1e-3, False)):
        vertices = np.concatenate([a, a + np.array([0, 0, shift], np.float32)])
        distances = joint_distances(vertices, faces, a[:1].astype(np.float64), none, grid=4)
        assert np.isfinite(distances[3:]).all() == linked


@pytest.mark.parametrize("joint_count", [1, 2, 5])
def test_vertices_without_a_way_use_the_straight_distance(joint_count):
    vertices, faces = box([1, 1, 1])
    vertices = np.concatenate([vertices, vertices + 5]).astype(np.float32)
    faces = np.concatenate([faces, faces + 8])
    joints = np.random.default_rng(0).uniform(-0.3, 0.3, (joint_count, 3))
    skin = voxel_skin(vertices, faces, joints, grid=12)
    assert skin.shape == (16, joint_count) and np.isfinite(skin).all()
    np.testing.assert_allclose(skin.sum(1), 1, atol=1e-6)


def test_weights_fall_with_distance_in_both_modes():
    distances = np.array([[0.1, 0.2, np.inf], [0.3, 0.3, 0.6]])
    for mode in ("square", "exp"):
        skin = skin_from_distances(distances, np.zeros((2, 3)), np.zeros((3, 3)), mode=mode)
        np.testing.assert_allclose(skin.sum(1), 1, atol=1e-6)
        assert skin[0, 0] > skin[0, 1] > skin[0, 2] and skin[1, 0] == skin[1, 1] > skin[1, 2]
    square = 1 / (0.5 * distances[1] + 0.5 * distances[1] ** 2) ** 2
    np.testing.assert_allclose(
        skin_from_distances(distances, np.zeros((2, 3)), np.zeros((3, 3)))[1], square / square.sum(), rtol=1e-6
    )
    with pytest.raises(ValueError, match="none of"):
        skin_from_distances(distances, np.zeros((2, 3)), np.zeros((3, 3)), mode="linear")


def test_voxel_skin_ignores_position_and_size_and_needs_an_extent():
    vertices, faces = icosphere(2)
    joints = np.array([[0, 0, 0.5], [0.1, 0, -0.5]])
    here = voxel_skin(vertices.astype(np.float32), faces, joints, grid=16)
    there = voxel_skin((vertices * 4 + 8).astype(np.float32), faces, joints * 4 + 8, grid=16)
    np.testing.assert_allclose(there, here, atol=1e-5)
    with pytest.raises(InvalidInputError, match="no extent"):
        voxel_skin(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]]), joints, grid=16)


# Reskin and top k -----------------------------------------------------------------------------------------------------


def slow_diffuse(skin, vertices, faces, parents, alpha):
    sums = skin.copy()
    for j in range(len(parents) - 1, -1, -1):
        if parents[j] >= 0:
            sums[:, parents[j]] += sums[:, j]
    edges = [(f[i], f[(i + 1) % 3]) for i in range(3) for f in faces]
    edges += [(b, a) for a, b in edges]
    gained, weight = np.zeros_like(sums), np.zeros_like(sums)
    for a, b in edges:
        closeness = np.exp(-alpha * np.linalg.norm(vertices[a] - vertices[b]))
        lower = sums[b] < sums[a]
        gained[b], weight[b] = np.where(lower, sums[a] * closeness, 0), np.where(lower, closeness, 0)
    sums = (sums + gained) / (1 + weight)
    for j in range(len(parents)):
        if parents[j] >= 0:
            sums[:, parents[j]] -= sums[:, j]
    return sums


@pytest.mark.parametrize("seed", range(3))
def test_diffusion_against_a_loop_over_edges(seed):
    random = np.random.default_rng(seed)
    vertices, faces = icosphere(1)
    parents = np.array([-1, 0, 0, 1, 3])
    skin = random.dirichlet(np.ones(5), len(vertices))
    actual = diffuse(skin, vertices, faces, parents, 2.0)
    np.testing.assert_allclose(actual, slow_diffuse(skin, vertices, faces, parents, 2.0), atol=1e-12)


@pytest.mark.parametrize("method", ["median", "mean"])
def test_reskin_gives_weights(method):
    random = np.random.default_rng(0)
    vertices, faces = icosphere(2)
    samples = random.normal(size=(300, 3))
    samples /= np.linalg.norm(samples, axis=1, keepdims=True)
    sampled = random.dirichlet(np.full(6, 0.2), 300).astype(np.float32)
    parents = np.array([-1, 0, 1, 1, 0, 4])
    skin = reskin(samples, sampled, vertices, faces, parents, sample_method=method)
    np.testing.assert_allclose(skin.sum(1), 1, atol=1e-5)
    # Dropping negative leftovers of the diffusion can make the rest of a row add up to a little more than 1.
    assert (skin >= 0).all() and not ((skin > 0) & (skin < 0.025)).any()


def test_reskin_of_samples_that_agree_on_nothing():
    """Seven samples with seven different joints have a median of zero everywhere: the nearest sample decides."""
    vertices, faces = box([1, 1, 1])
    samples = np.linspace([0, 0, 0], [0.1, 0, 0], 7)
    skin = reskin(samples, np.eye(7), vertices, faces, np.full(7, -1))
    np.testing.assert_allclose(skin.sum(1), 1, atol=1e-6)
    nearest = cKDTree(samples).query(vertices)[1]
    np.testing.assert_array_equal(skin.argmax(1), nearest)


def test_reskin_with_fewer_samples_than_neighbours():
    vertices, faces = box([1, 1, 1])
    skin = reskin(np.zeros((1, 3)), np.array([[0.25, 0.75]]), vertices, faces, np.array([-1, 0]))
    np.testing.assert_allclose(skin, np.tile([0.25, 0.75], (8, 1)), atol=1e-6)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_top_k_keeps_the_largest(joint_count, k, seed):
    skin = np.random.default_rng(seed).dirichlet(np.ones(joint_count), 5)
    kept = top_k(skin, k)
    np.testing.assert_allclose(kept.sum(1), 1)
    for row, result in zip(skin, kept, strict=True):
        chosen = np.flatnonzero(result)
        assert len(chosen) == min(k, joint_count)
        assert row[chosen].min() >= np.delete(row, chosen).max(initial=0)
        np.testing.assert_allclose(result[chosen], row[chosen] / row[chosen].sum())


def test_rows_of_zeros_stay_zeros():
    assert normalize_rows(np.array([[0.0, 0.0], [1.0, 3.0]])).tolist() == [[0, 0], [0.25, 0.75]]


# Orientation, closest points, transfer --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_orientation_is_found(seed):
    random = np.random.default_rng(seed)
    cloud = random.normal(size=(200, 3)) * [1, 0.5, 0.2] + [0.1, 0.2, 0.3]
    rotation = np.zeros((3, 3))
    rotation[range(3), random.permutation(3)] = random.choice([-1, 1], 3)
    np.testing.assert_array_equal(find_orientation(cloud, cloud @ rotation.T), rotation)


def brute_force(points, vertices, faces):
    distances = np.stack([closest_on_triangle(points, np.tile(vertices[f], (len(points), 1, 1)))[1] for f in faces])
    return distances.min(axis=0)


def odd_mesh() -> tuple[np.ndarray, np.ndarray]:
    """A fine sphere, a huge triangle, a sliver, a triangle without area and one that is a point."""
    vertices, faces = icosphere(3)
    more = np.array([[-9, -9, -3], [9, -9, -3], [0, 9, -3], [2, 0, 0], [3, 0, 0], [4, 1e-9, 0], [5, 5, 5]], float)
    n = len(vertices)
    extra = np.array([[n, n + 1, n + 2], [n + 3, n + 4, n + 5], [n + 3, n + 3, n + 4], [n + 6, n + 6, n + 6]])
    return np.concatenate([vertices, more]), np.concatenate([faces, extra])


def test_closest_points_against_brute_force():
    random = np.random.default_rng(0)
    vertices, faces = odd_mesh()
    far = random.uniform(-6, 6, (60, 3))
    near = vertices[random.integers(0, len(vertices), 60)] + random.normal(0, 0.01, (60, 3))
    points = np.concatenate([far, near, np.zeros((1, 3)), vertices[-7:]])
    found = closest_points(points, vertices, faces)
    np.testing.assert_allclose(found.squared_distance, brute_force(points, vertices, faces), atol=1e-12)
    reached = np.einsum("nk,nkd->nd", found.barycentric, vertices[faces[found.face]])
    np.testing.assert_allclose(((reached - points) ** 2).sum(1), found.squared_distance, atol=1e-12)
    assert (found.barycentric >= 0).all()
    np.testing.assert_allclose(found.barycentric.sum(1), 1)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_closest_point_of_a_triangle_beats_a_dense_sampling(seed):
    random = np.random.default_rng(seed)
    triangle, point = random.normal(size=(1, 3, 3)), random.normal(size=(1, 3)) * 2
    barycentric, squared = closest_on_triangle(point, triangle)
    assert barycentric.min() >= 0
    samples = random.dirichlet(np.ones(3), 500)
    samples[:100, random.integers(3)] = 0
    samples /= samples.sum(1, keepdims=True)
    assert squared[0] <= ((samples @ triangle[0] - point) ** 2).sum(1).min() + 1e-12


def test_laplacian_of_linear_functions_vanishes_inside_a_plane():
    random = np.random.default_rng(1)
    x, y = np.meshgrid(np.arange(6.0), np.arange(6.0), indexing="ij")
    inner = (x > 0) & (x < 5) & (y > 0) & (y < 5)
    vertices = np.stack([x + inner * random.uniform(-0.3, 0.3, x.shape), y, 0 * x], axis=-1).reshape(-1, 3)
    quads = [(6 * i + j, 6 * i + j + 6, 6 * i + j + 7, 6 * i + j + 1) for i in range(5) for j in range(5)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    laplacian, area = cotangent_laplacian(vertices, faces)
    np.testing.assert_allclose((laplacian @ vertices)[inner.ravel()], 0, atol=1e-12)
    np.testing.assert_allclose(np.asarray(laplacian.sum(1)), 0, atol=1e-12)
    assert (area > 0).all() and area.sum() == pytest.approx(25)


def test_smoothing_is_gauss_seidel_in_vertex_order():
    random = np.random.default_rng(2)
    vertices, faces = icosphere(2)
    weights = random.dirichlet(np.ones(4), len(vertices))
    matched = random.random(len(vertices)) > 0.1
    neighbours = vertex_neighbours(len(vertices), faces)
    actual = smooth(vertices, neighbours, weights, matched, 0.35, 4, 0.2)
    expected = weights.copy()
    changed = (actual != weights).any(axis=1)
    assert changed[~matched].all() and 0 < changed.sum() < len(vertices)
    for _ in range(4):
        for i in np.flatnonzero(changed):
            expected[i] = 0.8 * expected[i] + 0.2 * expected[neighbours[i].indices].mean(axis=0)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_a_mesh_gives_itself_its_own_weights():
    vertices, faces = icosphere(2)
    weights = np.random.default_rng(3).dirichlet(np.ones(5), len(vertices))
    result = robust_transfer(vertices, faces, weights, vertices, faces)
    assert result.matched.all()
    np.testing.assert_allclose(result.weights, weights, atol=1e-12)


def test_concave_surfaces_do_not_leak_through_their_hull():
    """Two slabs with a gap: a vertex of the gap's walls takes weights from its own slab, as the hull could not give."""
    (slab, faces) = box([1, 4, 4])
    vertices = np.concatenate([slab - np.array([1, 0, 0]), slab + np.array([1, 0, 0])])
    both = np.concatenate([faces, faces + 8])
    weights = np.repeat(np.eye(2), 8, axis=0)
    result = transfer_weights(vertices, both, weights, vertices, both)
    np.testing.assert_allclose(result, weights, atol=1e-12)


def test_what_does_not_match_is_filled_smoothly():
    vertices, faces = icosphere(4)
    target = vertices.copy()
    bump = vertices[:, 2] > 0.9
    target[bump] *= 1.8
    weights = np.stack([(1 + vertices[:, 0]) / 2, (1 - vertices[:, 0]) / 2], axis=1)
    result = robust_transfer(vertices, faces, weights, target, faces)
    assert not result.matched[vertices[:, 2] > 0.97].any() and result.matched[vertices[:, 2] < 0.5].all()
    assert (result.weights >= 0).all()
    np.testing.assert_allclose(result.weights.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(result.weights[bump], weights[bump], atol=0.12)


def test_inpainting_keeps_constants():
    vertices, faces = icosphere(2)
    weights = np.tile([0.3, 0.7], (len(vertices), 1))
    known = vertices[:, 2] < 0.2
    filled = inpaint(vertices, faces, np.where(known[:, None], weights, 0), known)
    np.testing.assert_allclose(filled, weights, atol=1e-9)


def test_parts_out_of_reach_take_the_closest_weights():
    vertices, faces = icosphere(2)
    target = np.concatenate([vertices, vertices * 0.05 + [0, 0, 3], [[0.0, -4.0, 0.0]]])
    both = np.concatenate([faces, faces + len(vertices)])
    weights = np.stack([vertices[:, 2] > 0, vertices[:, 2] <= 0], axis=1).astype(float)
    result = robust_transfer(vertices, faces, weights, target, both)
    island = result.weights[len(vertices) : -1]
    assert not result.matched[len(vertices) :].any()
    np.testing.assert_allclose(island, np.tile([1.0, 0.0], (len(island), 1)), atol=1e-6)
    np.testing.assert_allclose(result.weights.sum(1), 1, atol=1e-9)


def test_degenerate_triangles_do_no_harm():
    vertices, faces = icosphere(2)
    faces = np.concatenate([faces, [[0, 0, 1], [2, 2, 2]], faces[:1]])
    target = vertices.copy()
    target[vertices[:, 0] > 0.5] *= 1.5
    weights = np.random.default_rng(4).dirichlet(np.ones(3), len(vertices))
    result = robust_transfer(vertices, faces, weights, target, faces)
    assert np.isfinite(result.weights).all()
    np.testing.assert_allclose(result.weights.sum(1), 1, atol=1e-9)


def test_seams_stay_closed():
    vertices, faces = icosphere(2)
    weights = np.random.default_rng(5).dirichlet(np.ones(3), len(vertices))
    split, split_faces = vertices[faces].reshape(-1, 3) * 1.02, np.arange(3 * len(faces)).reshape(-1, 3)
    result = transfer_weights(vertices, faces, weights, split, split_faces)
    together = transfer_weights(vertices, faces, weights, vertices * 1.02, faces)
    np.testing.assert_allclose(result, together[faces.ravel()], atol=1e-12)


def test_a_source_without_faces_is_refused():
    vertices, faces = box([1, 1, 1])
    with pytest.raises(InvalidInputError, match="no faces"):
        robust_transfer(vertices, faces[:0], np.ones((8, 1)), vertices, faces)


# The stage as a whole -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def creature():
    vertices, faces = icosphere(2)
    # Off the planes of symmetry: a joint as near to one voxel as to another starts from either, as rounding has it.
    joints = np.array([[0.03, 0.02, -0.5], [0.03, 0.02, 0.01], [0.03, 0.02, 0.61], [0.23, 0.02, 1.41]])
    return prepare_mesh(vertices * [1, 0.6, 1.5], faces), joints, np.array([-1, 0, 1, 2])


def test_predict_skin(tiny_model, creature):
    mesh, joints, parents = creature
    seen = []
    small = SkinSettings(seed=7, num_samples=200, vertex_samples=60, voxel_grid=16)
    weights = predict_skin(tiny_model, mesh, joints, parents, small, lambda *step: seen.append(step))
    assert weights.shape == (len(mesh.vertices), 4) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert {phase for phase, _, _ in seen} == {"voxels", "network"} and seen[-1] == ("network", 200, 200)
    np.testing.assert_array_equal(predict_skin(tiny_model, mesh, joints, parents, small), weights)
    other = SkinSettings(seed=8, num_samples=200, vertex_samples=60, voxel_grid=16)
    assert (predict_skin(tiny_model, mesh, joints, parents, other) != weights).any()


def test_predict_skin_is_the_same_anywhere(tiny_model, creature):
    mesh, joints, parents = creature
    small = SkinSettings(num_samples=100, vertex_samples=60, voxel_grid=16)
    here = predict_skin(tiny_model, mesh, joints, parents, small)
    moved = replace(mesh, vertices=mesh.vertices * 8 + 16)
    there = predict_skin(tiny_model, moved, joints * 8 + 16, parents, small)
    assert np.abs(here - there).max() < 0.02


def test_no_joints_no_skin(tiny_model, creature):
    with pytest.raises(InvalidInputError, match="without joints"):
        predict_skin(tiny_model, creature[0], np.zeros((0, 3)), np.zeros(0, int), SkinSettings())


@pytest.mark.slow
def test_full_size_model_on_a_processor():
    """The published sizes with random weights: chunks keep the memory of the activations below that of the weights."""
    import resource

    torch.manual_seed(0)
    model = SkinModel()
    points = F.normalize(torch.randn(6000, 3), dim=1)
    voxel = torch.rand(6000, 60)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = model(points, points, points[:60] * 0.5, torch.arange(60) - 1, voxel / voxel.sum(1, keepdim=True))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    torch.testing.assert_close(weights.sum(1), torch.ones(6000))
    assert grown < sum(p.numel() * 4 for p in model.parameters())
