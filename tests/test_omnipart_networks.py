"""OmniPart's 3D generation networks: golden cases, manifests, sparse operations and surfaces against plain references,
loading, half precision, and the whole chain of stages with tiny networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import run_case
from parity_omnipart import CASES
from safetensors.torch import save_file

from networks.omnipart import gaussians as splats
from networks.omnipart.generation import decode_parts, decode_structure, sample_latents, sample_structure
from networks.omnipart.loading import NETWORKS, load_model, load_role, read_pipeline
from networks.omnipart.sampler import SamplerSettings, sample_flow, time_steps
from networks.omnipart.slat_decoder import SLatGaussianDecoder, SLatMeshDecoder, _offset_perturbation
from networks.omnipart.slat_flow import SLatFlowModel, divide_slat
from networks.omnipart.sparse_blocks import SparseGroupNorm32, SparseSubdivideBlock3d, WindowAttention, plan_windows
from networks.omnipart.sparse_structure import SparseStructureDecoder, SparseStructureFlowModel
from networks.omnipart.surface import _case_tables, extract_surface
from networks.sparse import (
    downsample_coords,
    neighbour_table,
    subdivide_coords,
    subdivide_table,
    subdivided_conv,
    submanifold_conv,
)
from shared_utils.errors import InvalidInputError, MissingInputError, PostConditionError

GOLDEN = Path(__file__).parent / "golden" / "omnipart"


@pytest.mark.parametrize("family", sorted(CASES))
def test_golden_case(family):
    worst, remarks = run_case(GOLDEN / f"case_{family}_1.json", CASES)
    assert worst.ok, (worst, remarks)
    assert not remarks


@pytest.mark.parametrize(
    ("manifest", "network"),
    [
        ("sparse_structure_flow", SparseStructureFlowModel),
        ("sparse_structure_decoder", SparseStructureDecoder),
        ("slat_flow_omnipart", SLatFlowModel),
        ("slat_decoder_mesh", SLatMeshDecoder),
        ("slat_decoder_gs", SLatGaussianDecoder),
    ],
)
def test_full_size_state_dict_equals_the_manifest(manifest, network):
    expected = json.loads((GOLDEN / f"{manifest}.json").read_text())
    config = {key: value for key, value in expected["config"].items() if key != "use_fp16"}
    with torch.device("meta"):
        model = network(**config)
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == expected["shapes"]
    model.set_torso_dtype(torch.float16)
    assert sum(t.numel() * t.element_size() for t in model.state_dict().values()) == expected["fp16_torso_bytes"]


# --- sparse voxels ---------------------------------------------------------------------------------------------------


def random_voxels(seed: int, count: int, side: int, batches: int = 2) -> torch.Tensor:
    """Distinct voxels in random order, some coordinates negative."""
    generator = torch.Generator().manual_seed(seed)
    every = torch.cartesian_prod(torch.arange(batches), *[torch.arange(-2, side - 2)] * 3)
    return every[torch.randperm(len(every), generator=generator)[:count]].int()


def naive_table(coords: torch.Tensor, kernel_size: int) -> torch.Tensor:
    first = {}
    for row, voxel in enumerate(coords.tolist()):
        first.setdefault(tuple(voxel), row)
    reach = range(-(kernel_size // 2), kernel_size // 2 + 1)
    table = []
    for row, (b, x, y, z) in enumerate(coords.tolist()):
        near = [first.get((b, x + i, y + j, z + k), len(coords)) for i in reach for j in reach for k in reach]
        near[len(near) // 2] = row
        table.append(near)
    return torch.tensor(table, dtype=torch.int64).reshape(-1, kernel_size**3)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(0, 120), st.sampled_from([1, 3, 5]), st.booleans())
def test_neighbour_table(seed, count, kernel_size, duplicates):
    coords = random_voxels(seed, count, 5)
    if duplicates:
        coords = torch.cat((coords, coords[: count // 3], coords[: count // 5]))
    assert torch.equal(neighbour_table(coords, kernel_size), naive_table(coords, kernel_size))


def test_neighbour_table_refuses_what_is_no_voxel_list():
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        neighbour_table(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="odd"):
        neighbour_table(torch.zeros(3, 4, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="too large"):
        neighbour_table(torch.tensor([[0, 0, 0, 0], [0, 2**31, 2**31, 2**31]]))


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_submanifold_conv_equals_the_dense_one(kernel_size):
    coords = random_voxels(1, 150, 7)
    torch.manual_seed(0)
    features, weight, bias = torch.randn(150, 4), torch.randn(6, *[kernel_size] * 3, 4), torch.randn(6)
    sparse = submanifold_conv(features, weight, bias, neighbour_table(coords, kernel_size))
    batch, x, y, z = (coords.long() + torch.tensor([0, 2, 2, 2])).unbind(1)
    dense = torch.zeros(2, 4, 7, 7, 7)
    dense[batch, :, x, y, z] = features
    dense = F.conv3d(dense, weight.permute(0, 4, 1, 2, 3), bias, padding=kernel_size // 2)
    torch.testing.assert_close(sparse, dense[batch, :, x, y, z], atol=2e-5, rtol=1e-4)


def test_submanifold_conv_refuses_a_table_of_other_voxels():
    with pytest.raises(ValueError, match="do not fit"):
        submanifold_conv(torch.zeros(5, 4), torch.zeros(6, 3, 3, 3, 4), None, torch.zeros(4, 27, dtype=torch.int64))


def test_downsampling_sorts_and_remembers():
    coords = random_voxels(2, 200, 9)
    coarse, parent, children = downsample_coords(coords)
    halved = torch.cat((coords[:, :1], coords[:, 1:].div(2, rounding_mode="floor")), dim=1)
    assert torch.equal(coarse, torch.unique(halved, dim=0))
    assert torch.equal(coarse[parent], halved)
    assert torch.equal(children, torch.bincount(parent))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_subdivided_table_and_convolution(seed, count):
    coords = random_voxels(seed, count, 4)
    fine, table = subdivide_coords(coords), neighbour_table(coords)
    assert torch.equal(torch.unique(fine // 2, dim=0), torch.unique(coords, dim=0)) or (coords < 0).any()
    fine_table = neighbour_table(fine)
    assert torch.equal(subdivide_table(table), fine_table)
    generator = torch.Generator().manual_seed(seed)
    features, weight = torch.randn(count, 3, generator=generator), torch.randn(5, 3, 3, 3, 3, generator=generator)
    expected = submanifold_conv(features.repeat_interleave(8, dim=0), weight, None, fine_table)
    torch.testing.assert_close(subdivided_conv(features, weight, None, table), expected, atol=2e-5, rtol=1e-4)


def test_half_precision_convolution_accumulates_in_float32():
    """2000 ones through 27 taps of 1: beyond what half precision can count one by one."""
    coords = torch.cartesian_prod(torch.arange(1), *[torch.arange(3)] * 3)
    features = torch.full((27, 96), 1.0, dtype=torch.float16)
    weight = torch.ones(1, 3, 3, 3, 96, dtype=torch.float16)
    out = submanifold_conv(features, weight, torch.full((1,), 0.5, dtype=torch.float16), neighbour_table(coords))
    assert out.dtype == torch.float16
    assert out[13].item() == 27 * 96  # 2592.5 rounds to the nearest half


def test_sparse_group_norm_is_per_part_in_any_row_order():
    torch.manual_seed(0)
    norm = SparseGroupNorm32(2, 6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    features, batch = torch.randn(40, 6) * 3 + 5, torch.randint(0, 3, (40,))
    result = norm(features, batch)
    for item in range(3):
        rows = batch == item
        expected = F.group_norm(features[rows].T[None], 2, norm.weight, norm.bias)[0].T
        torch.testing.assert_close(result[rows], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shift", [0, 2])
def test_window_attention_equals_a_mask_over_all_voxels(shift):
    torch.manual_seed(0)
    coords = random_voxels(3, 300, 12) + torch.tensor([0, 2, 2, 2], dtype=torch.int32)
    attention = WindowAttention(12, 3).eval()
    x = torch.randn(300, 12)
    window = torch.cat((coords[:, :1], (coords[:, 1:] + shift) // 4), dim=1)
    together = (window[:, None] == window[None]).all(-1)
    q, k, v = (each.transpose(0, 1) for each in attention.project(x))
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=together).transpose(0, 1).flatten(1)
    torch.testing.assert_close(attention(x, plan_windows(coords, 4, shift)), attention.to_out(dense))


# --- flows -----------------------------------------------------------------------------------------------------------


TINY_SLAT = {
    "resolution": 16,
    "in_channels": 9,
    "out_channels": 9,
    "model_channels": 24,
    "cond_channels": 30,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 2,
    "num_io_res_blocks": 2,
    "io_block_channels": [8],
    "qk_rms_norm": True,
    "mask_group_emb_dim": 8,
}


def some_object(seed: int = 0) -> tuple[torch.Tensor, list[slice]]:
    """A whole object and two overlapping parts: coords [N, 4], slices."""
    whole = random_voxels(seed, 150, 10, batches=1) + torch.tensor([0, 2, 2, 2], dtype=torch.int32)
    parts = [whole, whole[whole[:, 1] < 6], whole[whole[:, 1] > 3]]
    stops = np.cumsum([len(part) for part in parts]).tolist()
    return torch.cat(parts), [slice(a, b) for a, b in zip([0, *stops], stops, strict=False)]


def slat_inputs(model: SLatFlowModel, coords: torch.Tensor) -> tuple:
    torch.manual_seed(1)
    return (
        torch.randn(len(coords), model.in_channels),
        torch.tensor([400.0]),
        torch.randn(1, 15, 30),
        torch.randint(0, 4, (1, 3, 3)),
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch_size": 4, "io_block_channels": [8, 12]},
        {"patch_size": 1, "io_block_channels": []},
        {"num_io_res_blocks": 3, "qk_rms_norm_cross": True},
        {"num_heads": None, "num_head_channels": 6},
    ],
)
def test_slat_flow_ignores_the_order_of_a_parts_rows(changes):
    """Attention and convolution see sets of voxels: shuffling a part's rows shuffles its output."""
    torch.manual_seed(0)
    model = SLatFlowModel(**TINY_SLAT | changes).eval()
    coords, slices = some_object()
    features, t, cond, masks = slat_inputs(model, coords)
    order = torch.cat([torch.randperm(s.stop - s.start) + s.start for s in slices])
    straight = model(features, t, cond, masks, model.grid(coords, [slices]))
    shuffled = model(features[order], t, cond, masks, model.grid(coords[order], [slices]))
    torch.testing.assert_close(shuffled, straight[order], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_slat_flow_objects_do_not_see_each_other():
    torch.manual_seed(0)
    model = SLatFlowModel(**TINY_SLAT).eval()
    items = [(some_object(seed), slat_inputs(model, some_object(seed)[0])) for seed in (0, 1)]
    alone = [model(*inputs, model.grid(coords, [slices])) for (coords, slices), inputs in items]
    second = items[1][0][0].clone()
    second[:, 0] = 1
    coords = torch.cat((items[0][0][0], second))
    both = model(
        *(torch.cat((items[0][1][i], items[1][1][i])) for i in range(4)),
        model.grid(coords, [items[0][0][1], items[1][0][1]]),
    )
    torch.testing.assert_close(both, torch.cat(alone), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_slat_flow_parts_see_each_other_and_their_index():
    torch.manual_seed(0)
    model = SLatFlowModel(**TINY_SLAT).eval()
    coords, slices = some_object()
    inputs = slat_inputs(model, coords)
    grid = model.grid(coords, [slices])
    before = model(*inputs, grid)
    inputs[0][slices[2]] += 1.0
    assert (model(*inputs, grid)[slices[0]] - before[slices[0]]).abs().max() > 1e-3
    inputs[0][slices[2]] -= 1.0
    model.part_pe.weight[1] += 1.0
    assert (model(*inputs, grid)[slices[1]] - before[slices[1]]).abs().max() > 1e-3


def test_slat_flow_refuses_impossible_inputs():
    model = SLatFlowModel(**TINY_SLAT, part_max_size=3)
    coords, slices = some_object()
    with pytest.raises(ValueError, match="cover"):
        model.grid(coords, [slices[:2]])
    with pytest.raises(ValueError, match="at most 3"):
        model.grid(coords, [[slice(i, i + 1 if i < 4 else len(coords)) for i in range(5)]])
    with pytest.raises(ValueError, match="mask id 4"):
        features, t, cond, masks = slat_inputs(model, coords)
        model(features, t, cond, torch.full_like(masks, 4), model.grid(coords, [slices]))
    with pytest.raises(ValueError, match="tokens"):
        model(features, t, cond, torch.zeros(1, 4, 4, dtype=torch.long), model.grid(coords, [slices]))
    with pytest.raises(ValueError, match="rope"):
        SLatFlowModel(**TINY_SLAT | {"pe_mode": "rope"})
    with pytest.raises(ValueError, match="patch_size"):
        SLatFlowModel(**TINY_SLAT | {"patch_size": 4})


@torch.no_grad()
def test_dense_flow_with_patches_keeps_every_cell_in_place():
    """With an identity in place of the transformer, patching and unpatching must return the input."""
    config = {"resolution": 6, "in_channels": 2, "model_channels": 16, "cond_channels": 5, "out_channels": 2}
    model = SparseStructureFlowModel(**config, num_blocks=0, num_heads=2, patch_size=2)
    model.pos_emb.zero_()
    for layer in (model.input_layer, model.out_layer):
        layer.weight.copy_(torch.eye(16))
        layer.bias.zero_()
    x = torch.randn(1, 2, 6, 6, 6)
    out = model(x, torch.tensor([500.0]), torch.zeros(1, 3, 5))

    def tokens(y):
        blocks = y.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2)  # [1, 2, 3, 3, 3, 2, 2, 2]
        return blocks.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)

    torch.testing.assert_close(tokens(out), F.layer_norm(tokens(x), (16,)))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_torso(dtype):
    """Close to float32 on average; only the torso's linear layers and convolutions are half."""
    torch.manual_seed(0)
    model = SLatFlowModel(**TINY_SLAT).eval()
    coords, slices = some_object()
    inputs = slat_inputs(model, coords)
    grid = model.grid(coords, [slices])
    exact = model(*inputs, grid)
    model.set_torso_dtype(dtype)
    half = model(*inputs, grid)
    assert half.dtype == torch.float32
    assert (half - exact).abs().mean() < 0.02 * exact.abs().mean()
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["blocks.0.mlp.mlp.0.weight"] == dtypes["input_blocks.0.conv1.conv.weight"] == dtype
    assert all(
        dtypes[name] == torch.float32
        for name in dtypes
        if "norm" in name or name.startswith(("input_layer", "out_layer", "t_embedder", "part_pe", "mask_group"))
    )


# --- sampler ---------------------------------------------------------------------------------------------------------


def test_sampler_follows_a_constant_velocity_exactly():
    target, noise = torch.randn(1, 3), torch.randn(1, 3)
    done = []
    out = sample_flow(
        lambda x, t, cond, masks: noise - target,
        noise,
        torch.zeros(1, 2, 2),
        SamplerSettings(steps=7, cfg_strength=0),
        progress=lambda step, steps: done.append((step, steps)),
    )
    torch.testing.assert_close(out, target)
    assert done == [(i, 7) for i in range(1, 8)]


def test_time_steps_are_warped_towards_one():
    assert time_steps(4, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    warped = time_steps(25, 3.0)
    assert warped[0] == 1.0 and warped[-1] == 0.0 and (np.diff(warped) < 0).all() and warped[12] > 0.7


@pytest.mark.parametrize("bad", [{"steps": 0}, {"rescale_t": 0.0}])
def test_sampler_settings_are_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplerSettings(**bad)


# --- surfaces --------------------------------------------------------------------------------------------------------


def fields_of(function, coords: torch.Tensor, resolution: int) -> torch.Tensor:
    """Fields of active cells for a distance function of points in the unit cube, without learned weights."""
    corner = torch.tensor([[k & 1, k >> 1 & 1, k >> 2 & 1] for k in range(8)])
    points = (coords[:, None] + corner) / resolution - 0.5
    fields = torch.zeros(len(coords), 101)
    fields[:, :8] = function(points)
    return fields


def ball(resolution: int, radius: float) -> torch.Tensor:
    """Cells inside a sphere around the origin, and some cells around it. (Left out, the inside would count as outside.)"""
    axis = torch.arange(resolution)
    cells = torch.cartesian_prod(axis, axis, axis)
    return cells[((cells + 0.5) / resolution - 0.5).norm(dim=1) < radius + 2 / resolution]


def sphere(radius: float):
    return lambda points: points.norm(dim=-1) - radius


def test_sphere_is_a_closed_outward_surface_of_the_right_size():
    resolution, radius = 48, 0.35
    coords = ball(resolution, radius)
    order = torch.randperm(len(coords))
    fields = fields_of(sphere(radius), coords, resolution)
    mesh = extract_surface(coords[order], fields[order], resolution, sdf_bias=0.0)
    solid = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    assert solid.is_watertight and solid.is_winding_consistent
    assert solid.euler_number == 2
    assert solid.volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)
    assert np.abs(np.linalg.norm(mesh.vertices.numpy(), axis=1) - radius).max() < 0.1 / resolution
    outward = (mesh.face_normals * mesh.vertices[mesh.faces.long()].mean(1)).sum(1)
    assert (outward > 0).all()
    assert torch.allclose(mesh.attributes, torch.full_like(mesh.attributes, 0.5))


def test_surface_next_to_inactive_cells_is_closed_too():
    """A negative vertex makes every cell around it take part, active or not, so a thin shell stays closed."""
    coords = torch.tensor([[3, 3, 3], [3, 3, 4], [6, 3, 3]])
    fields = torch.zeros(3, 101)
    fields[:, :8] = -0.2
    fields[:, 8:] = torch.randn(3, 93, generator=torch.Generator().manual_seed(0))
    mesh = extract_surface(coords, fields, 9)
    solid = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    assert solid.is_watertight and solid.body_count == 2


def test_surface_is_open_only_at_the_border_of_the_grid():
    """No face belongs to a grid edge with fewer than four cells."""
    axis = torch.arange(4)
    coords = torch.cartesian_prod(axis, axis, axis)
    mesh = extract_surface(coords, fields_of(lambda p: p[..., 0], coords, 4), 4, sdf_bias=-1e-3)
    assert len(mesh.faces) == 2 * 3 * 3
    assert torch.allclose(mesh.vertices[:, 0], torch.tensor(1e-3), atol=1e-6)


@pytest.mark.parametrize("use_color", [True, False])
def test_nothing_inside_gives_an_empty_mesh(use_color):
    fields = torch.ones(1, 101 if use_color else 53)
    mesh = extract_surface(torch.tensor([[1, 1, 1]]), fields, 4, use_color)
    assert mesh.vertices.shape == (0, 3) and mesh.faces.shape == (0, 3)
    assert (mesh.attributes is not None) == use_color
    none = extract_surface(torch.zeros(0, 3, dtype=torch.int32), fields[:0], 4, use_color)
    assert len(none.vertices) == len(none.faces) == 0


def test_extraction_refuses_cells_twice_or_outside():
    with pytest.raises(ValueError, match="twice"):
        extract_surface(torch.tensor([[1, 1, 1], [1, 1, 1]]), torch.zeros(2, 101), 4)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        extract_surface(torch.tensor([[1, 1, 4]]), torch.zeros(1, 101), 4)


def test_the_derived_tables_have_the_published_counts():
    """Nielson's dual marching cubes: at most four dual vertices a cell, 36 cases that may have to be complemented."""
    tables = _case_tables()
    assert tables.loops.max() == 4
    assert int((tables.ambiguous_face >= 0).sum()) == 36
    negatives = [bin(case).count("1") for case in torch.nonzero(tables.ambiguous_face >= 0)[:, 0].tolist()]
    assert set(negatives) == {5, 6}
    assert tables.loops[0] == tables.loops[255] == 0
    assert all(tables.loops[1 << k] == 1 for k in range(8))


# --- decoders --------------------------------------------------------------------------------------------------------


TINY_DECODER = {"resolution": 8, "model_channels": 32, "latent_channels": 8, "num_blocks": 2, "num_heads": 2}
TINY_DECODER |= {"mlp_ratio": 2, "attn_mode": "swin", "window_size": 4}
GAUSSIANS = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True,
    "voxel_size": 1.5,
    "num_gaussians": 4,
    "2d_filter_kernel_size": 0.1,
    "3d_filter_kernel_size": 9e-4,
    "scaling_bias": 4e-3,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}


def two_parts() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    torch.manual_seed(5)
    coords = random_voxels(4, 120, 8) + torch.tensor([0, 2, 2, 2], dtype=torch.int32)
    coords = coords[torch.argsort(coords[:, 0], stable=True)]
    return coords, torch.randn(len(coords), 8), torch.bincount(coords[:, 0].long()).tolist()


@torch.no_grad()
def test_mesh_decoder_decodes_a_part_alone_as_among_others():
    coords, features, sizes = two_parts()
    model = SLatMeshDecoder(**TINY_DECODER, representation_config={"use_color": True}, num_groups=4).eval()
    together_coords, together = model(coords, features)
    alone = [model(c, f) for c, f in zip(coords.split(sizes), features.split(sizes), strict=True)]
    assert torch.equal(together_coords, torch.cat([c for c, _ in alone]))
    torch.testing.assert_close(together, torch.cat([f for _, f in alone]), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_mesh_decoder_without_colour():
    coords, features, sizes = two_parts()
    model = SLatMeshDecoder(**TINY_DECODER, num_groups=4).eval()
    assert model.out_layer.out_features == 53
    mesh = next(decode_parts(model, coords, features, sizes))
    assert mesh.attributes is None and len(mesh.faces) > 0


@torch.no_grad()
def test_empty_parts_decode_to_nothing():
    features = torch.zeros(0, 8)
    coords = torch.zeros(0, 4, dtype=torch.int32)
    meshes = SLatMeshDecoder(**TINY_DECODER, representation_config={"use_color": True}, num_groups=4)
    splat = SLatGaussianDecoder(**TINY_DECODER, representation_config=GAUSSIANS)
    mesh = next(decode_parts(meshes, coords, features, [0]))
    assert len(mesh.vertices) == 0 and mesh.attributes.shape == (0, 6)
    assert len(next(decode_parts(splat, coords, features, [0]))) == 0


def test_offset_perturbation_is_a_spread_of_the_voxel():
    expected = [[-0.80472, -0.80472, -0.80472], [-0.34657, 0.0, -0.22599], [0.0, -0.34657, 0.22599]]
    torch.testing.assert_close(_offset_perturbation(4, 1.5)[:3], torch.tensor(expected), atol=1e-5, rtol=0)
    assert torch.isfinite(_offset_perturbation(32, 1.5)).all()


def test_divide_keeps_an_empty_entry_for_a_part_that_vanished():
    coords = torch.tensor([[0, i, 0, 0] for i in range(6)], dtype=torch.int32)
    features = torch.zeros(6, 9)
    features[2:4, 8] = -5.0
    divided, kept, sizes = divide_slat(
        coords, features, [slice(0, 2), slice(2, 4), slice(4, 6)], torch.zeros(9), torch.ones(9)
    )
    assert sizes == [2, 0, 2]
    assert divided[:, 0].tolist() == [0, 0, 2, 2] and kept.shape == (4, 8)


# --- Gaussians -------------------------------------------------------------------------------------------------------


def random_gaussians(count: int, seed: int) -> splats.Gaussians:
    g = torch.Generator().manual_seed(seed)
    return splats.Gaussians(
        torch.rand(count, 3, generator=g),
        torch.randn(count, 1, 3, generator=g),
        torch.randn(count, 3, generator=g),
        torch.randn(count, 4, generator=g),
        torch.randn(count, 1, generator=g) * 30,
    )


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(quaternions[:, [1, 2, 3, 0]]).as_matrix()


def test_ply_columns_turn_positions_and_rotations_alike():
    splat = random_gaussians(50, 0)
    columns = splats.ply_columns(splat)
    x, y, z = splat.positions.T.numpy()
    np.testing.assert_allclose(columns[:, :3], np.stack([x, -z, y], axis=1), atol=1e-6)
    before, after = rotation_matrices(splat.quaternions.numpy()), rotation_matrices(columns[:, 13:])
    np.testing.assert_allclose(after, splats.PLY_AXES.numpy() @ before, atol=1e-5)
    assert np.isfinite(columns).all()  # an opacity that rounds to 1 has a finite logit


def test_ply_file_reads_back(tmp_path):
    splat = random_gaussians(7, 1)
    path = tmp_path / "splat.ply"
    path.write_bytes(splats.ply_bytes(splat))
    vertex = trimesh.load(path).metadata["_ply_raw"]["vertex"]["data"]
    assert list(vertex.dtype.names) == splats.PLY_COLUMNS
    np.testing.assert_array_equal(np.stack([vertex[n] for n in splats.PLY_COLUMNS], axis=1), splats.ply_columns(splat))


def test_explode_moves_each_part_by_the_distance():
    parts = [random_gaussians(5, 2), random_gaussians(0, 3), random_gaussians(9, 4)]
    moved = splats.explode(parts, 0.3)
    for before, after in zip(parts, moved, strict=True):
        step = after.xyz - before.xyz
        assert torch.allclose(step.norm(dim=1), torch.tensor(0.3), atol=1e-5)
    assert splats.explode([parts[0]], 0.3)[0].xyz.equal(parts[0].xyz)
    assert len(splats.merge(moved)) == 14
    with pytest.raises(ValueError, match="at least one"):
        splats.merge([])


# --- files -----------------------------------------------------------------------------------------------------------


def save_model(folder: Path, stem: str, model: torch.nn.Module, config: dict, name: str | None = None) -> None:
    """As the published files are: torso in half precision, the class name possibly with a prefix."""
    model.set_torso_dtype(torch.float16)
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps({"name": name or type(model).__name__, "args": config}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"{stem}.safetensors")


TINY_STRUCTURE = {"resolution": 4, "in_channels": 4, "model_channels": 24, "cond_channels": 30, "out_channels": 4}
TINY_STRUCTURE |= {"num_blocks": 2, "num_heads": 2, "mlp_ratio": 4, "patch_size": 1, "qk_rms_norm": True}
TINY_STRUCTURE_DECODER = {"out_channels": 1, "latent_channels": 4, "num_res_blocks": 1, "channels": [16, 8]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random repository in the published layout."""
    torch.manual_seed(11)
    folder = tmp_path_factory.mktemp("omnipart")
    half = {"use_fp16": True}
    slat = TINY_SLAT | {"resolution": 8}
    color = {"use_color": True}
    save_model(folder, "ckpts/flow", SparseStructureFlowModel(**TINY_STRUCTURE), TINY_STRUCTURE | half)
    save_model(folder, "ckpts/dec", SparseStructureDecoder(**TINY_STRUCTURE_DECODER), TINY_STRUCTURE_DECODER | half)
    save_model(folder, "ckpts/slat", SLatFlowModel(**slat), slat | half, "ElasticSLatFlowModel")
    config = TINY_DECODER | {"representation_config": color, "num_groups": 4}
    save_model(folder, "ckpts/mesh", SLatMeshDecoder(**config), config, "ElasticSLatMeshDecoder")
    config = TINY_DECODER | {"representation_config": GAUSSIANS}
    save_model(folder, "ckpts/gs", SLatGaussianDecoder(**config), config | half)
    pipeline = {
        "name": "OmniPartImageTo3DPipeline",
        "args": {
            "models": {
                "sparse_structure_flow_model": "ckpts/flow",
                "sparse_structure_decoder": "ckpts/dec",
                "slat_flow_model": "ckpts/slat",
                "slat_decoder_mesh": "ckpts/mesh",
                "slat_decoder_gs": "ckpts/gs",
                "slat_decoder_rf": "ckpts/not_here",
            },
            "sparse_structure_sampler": {
                "name": "FlowEulerGuidanceIntervalSampler",
                "args": {"sigma_min": 1e-5},
                "params": {"steps": 2, "cfg_strength": 5.0, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0},
            },
            "slat_sampler": {"name": "FlowEulerGuidanceIntervalSampler", "args": {}, "params": {"steps": 3}},
            "slat_normalization": {"mean": [0.1] * 8, "std": [2.0] * 8},
            "image_cond_model": "dinov2_vitl14_reg",
        },
    }
    (folder / "pipeline.json").write_text(json.dumps(pipeline))
    return folder


def test_pipeline_file(checkpoint):
    pipeline = read_pipeline(checkpoint)
    assert pipeline.sparse_structure_sampler == SamplerSettings(2, 5.0, (0.5, 1.0), 3.0, 1e-5)
    assert pipeline.slat_sampler.steps == 3
    mean, std = pipeline.slat_normalization(9)
    assert mean.tolist() == pytest.approx([0.1] * 8 + [0.0]) and std.tolist() == [2.0] * 8 + [1.0]
    with pytest.raises(InvalidInputError, match="7 channels"):
        pipeline.slat_normalization(7)


def test_a_model_loads_with_the_dtypes_asked_for(checkpoint):
    model = load_model(checkpoint, "ckpts/slat")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    half = load_model(checkpoint, "ckpts/slat", dtype=torch.bfloat16)
    assert half.blocks[0].mlp.mlp[0].weight.dtype == torch.bfloat16
    assert half.input_layer.weight.dtype == torch.float32
    assert set(NETWORKS) >= {type(model).__name__}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "ckpts/slat.json").unlink(), MissingInputError, "slat.json"),
        (lambda f: (f / "ckpts/slat.safetensors").unlink(), MissingInputError, "slat.safetensors"),
        (lambda f: (f / "ckpts/slat.json").write_text("{"), InvalidInputError, "slat.json"),
        (lambda f: (f / "ckpts/slat.json").write_text("[]"), InvalidInputError, "not a JSON object"),
        (lambda f: (f / "ckpts/slat.safetensors").write_bytes(b"\0" * 100), InvalidInputError, "slat.safetensors"),
        (lambda f: edit(f, "name", "Transformer"), InvalidInputError, "unknown network 'Transformer'"),
        (lambda f: edit(f, "blocks", 3, inside="args"), InvalidInputError, "takes no 'blocks'"),
        (lambda f: edit(f, "num_blocks", 3, inside="args"), InvalidInputError, "has no tensor 'blocks.2"),
        (lambda f: edit(f, "num_blocks", 1, inside="args"), InvalidInputError, "unknown tensor 'blocks.1"),
        (lambda f: edit(f, "mlp_ratio", 3, inside="args"), InvalidInputError, "shape"),
        (lambda f: edit(f, "pe_mode", "rope", inside="args"), InvalidInputError, "rope"),
        (lambda f: edit(f, "share_mod", True, inside="args"), InvalidInputError, "share_mod"),
        (lambda f: edit(f, "num_heads", 5, inside="args"), InvalidInputError, "5 heads"),
    ],
)
def test_damaged_files_are_named(checkpoint, tmp_path, damage, error, message):
    (tmp_path / "ckpts").mkdir()
    for suffix in ("json", "safetensors"):
        (tmp_path / f"ckpts/slat.{suffix}").write_bytes((checkpoint / f"ckpts/slat.{suffix}").read_bytes())
    damage(tmp_path)
    with pytest.raises(error, match=message) as caught:
        load_model(tmp_path, "ckpts/slat")
    assert "\n" not in str(caught.value)


def edit(folder: Path, key: str, value, inside: str | None = None) -> None:
    path = folder / "ckpts/slat.json"
    config = json.loads(path.read_text())
    (config[inside] if inside else config)[key] = value
    path.write_text(json.dumps(config))


def test_a_stem_cannot_leave_the_folder(checkpoint):
    with pytest.raises(InvalidInputError, match="leads out"):
        load_model(checkpoint / "ckpts", "../pipeline")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "args.models"),
        ({"models": {"slat_flow_model": 3}, "slat_normalization": {"mean": [0.0], "std": [1.0]}}, "slat_flow_model"),
        ({"models": {}, "slat_normalization": {"mean": [0.0], "std": []}}, "slat_normalization"),
        (
            {
                "models": {},
                "slat_normalization": {"mean": [0.0], "std": [1.0]},
                "slat_sampler": {"params": {"steps": 0}},
            },
            "slat_sampler: steps",
        ),
    ],
)
def test_a_wrong_pipeline_file_is_named(tmp_path, args, message):
    (tmp_path / "pipeline.json").write_text(json.dumps({"args": args}))
    with pytest.raises(InvalidInputError, match=message):
        read_pipeline(tmp_path)


# --- the whole chain -------------------------------------------------------------------------------------------------


def generate(folder: Path, seed: int, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, list, list]:
    """Condition to meshes and Gaussians with the tiny networks: two parts, split at half height."""
    pipeline = read_pipeline(folder)
    condition = torch.randn(1, 15, 30, generator=torch.Generator().manual_seed(0))
    masks = torch.tensor([[[0, 1, 1], [0, 2, 2], [0, 0, 2]]])
    flow = load_role(pipeline, "sparse_structure_flow_model", dtype=dtype)
    latent = sample_structure(flow, condition, pipeline.sparse_structure_sampler, seed)
    voxels = decode_structure(load_role(pipeline, "sparse_structure_decoder", dtype=dtype), latent)
    assert voxels.shape[1] == 4 and voxels.max() < 8
    parts = [voxels, voxels[voxels[:, 2] < 4], voxels[voxels[:, 2] >= 4]]
    stops = np.cumsum([len(part) for part in parts]).tolist()
    slices = [slice(a, b) for a, b in zip([0, *stops], stops, strict=False)]
    coords = torch.cat(parts)
    flow = load_role(pipeline, "slat_flow_model", dtype=dtype)
    steps = []
    features = sample_latents(
        flow,
        coords,
        slices,
        condition,
        masks,
        pipeline.slat_sampler,
        seed,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    coords, features, sizes = divide_slat(coords, features, slices, *pipeline.slat_normalization(flow.in_channels))
    assert len(sizes) == 3 and features.shape == (sum(sizes), 8)
    meshes = list(decode_parts(load_role(pipeline, "slat_decoder_mesh", dtype=dtype), coords, features, sizes))
    clouds = list(decode_parts(load_role(pipeline, "slat_decoder_gs", dtype=dtype), coords, features, sizes))
    return voxels, meshes, clouds


def test_the_stages_fit_together_and_repeat_exactly(checkpoint):
    voxels, meshes, clouds = generate(checkpoint, 3)
    assert len(meshes) == len(clouds) == 3
    for mesh, cloud in zip(meshes, clouds, strict=True):
        assert len(mesh.faces) > 0 and torch.isfinite(mesh.vertices).all()
        assert mesh.vertices.abs().max() <= 0.5 + 1 / 64  # a cell's corner moves by half a cell at most
        assert int(mesh.faces.max()) < len(mesh.vertices)
        assert mesh.attributes.min() >= 0 and mesh.attributes.max() <= 1
        assert np.isfinite(splats.ply_columns(cloud)).all()
    again, meshes_again, clouds_again = generate(checkpoint, 3)
    assert torch.equal(voxels, again)
    assert all(torch.equal(a.vertices, b.vertices) for a, b in zip(meshes, meshes_again, strict=True))
    assert all(splats.ply_bytes(a) == splats.ply_bytes(b) for a, b in zip(clouds, clouds_again, strict=True))
    assert not torch.equal(voxels, generate(checkpoint, 4)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_stages_run_in_half_precision(checkpoint, dtype):
    _, meshes, clouds = generate(checkpoint, 3, dtype)
    for mesh, cloud in zip(meshes, clouds, strict=True):
        assert mesh.vertices.dtype == cloud.xyz.dtype == torch.float32
        assert len(mesh.faces) > 0 and torch.isfinite(mesh.vertices).all()
        assert np.isfinite(splats.ply_columns(cloud)).all()


@torch.no_grad()
def test_an_empty_structure_is_an_error(checkpoint):
    decoder = load_model(checkpoint, "ckpts/dec")
    decoder.out_layer[2].bias.fill_(-1e3)
    with pytest.raises(PostConditionError, match="no voxel"):
        decode_structure(decoder, torch.zeros(1, 4, 4, 4, 4))


def test_subdivide_block_keeps_width_without_a_skip_layer():
    block = SparseSubdivideBlock3d(8, 8, 4)
    assert not any(name.startswith("skip") for name in block.state_dict())
    coords = random_voxels(6, 20, 4)
    table = neighbour_table(coords)
    assert block(torch.randn(20, 8), coords[:, 0], table, subdivide_table(table)).shape == (160, 8)
