"""Golden cases of OmniPart's 3D generation: flows, decoders, surface extraction, Gaussians."""

import numpy as np
import torch
from parity_case import GEOMETRY_ATOL, Case, Check, close, exact, tolerance_of
from scipy.spatial import cKDTree

from networks.omnipart import gaussians as splats
from networks.omnipart.sampler import SamplerSettings, sample_flow
from networks.omnipart.slat_decoder import SLatGaussianDecoder, SLatMeshDecoder, view_sphere
from networks.omnipart.slat_flow import SLatFlowModel, divide_slat
from networks.omnipart.sparse_blocks import SparseResBlock3d, SparseSubdivideBlock3d
from networks.omnipart.sparse_structure import SparseStructureDecoder, SparseStructureFlowModel, occupied_voxels
from networks.omnipart.surface import SurfaceMesh, dual_mesh, extract_surface
from networks.sparse import downsample_coords, neighbour_table, subdivide_coords, subdivide_table, submanifold_conv


def config_of(case: Case) -> dict:
    """The constructor arguments of a case: its config without the switch between half and full precision."""
    return {name: value for name, value in case.config.items() if name not in ("use_fp16", "use_checkpoint")}


def build(network_class: type, case: Case):
    model = network_class(**config_of(case)).eval()
    model.load_state_dict(case.weights)
    return model


def run_sparse_structure_flow(case: Case) -> list[Check]:
    model = build(SparseStructureFlowModel, case)
    t = case.inputs["t"]
    return [
        close(case, "v", model(case.inputs["x"], t, case.inputs["cond"])),
        close(case, "t_emb", model.t_embedder(t)),
    ]


def run_sparse_structure_decoder(case: Case) -> list[Check]:
    logits = build(SparseStructureDecoder, case)(case.inputs["z"])
    return [close(case, "logits", logits), exact(case, "coords", occupied_voxels(logits))]


def run_samplers(case: Case) -> list[Check]:
    """Three samplers on a toy velocity. The case says whether guidance is off, always on, or on inside the interval."""
    config, inputs = case.config, case.inputs

    def settings(strength: float, interval: tuple[float, float]) -> SamplerSettings:
        return SamplerSettings(config["steps"], strength, interval, config["rescale_t"], config["sigma_min"])

    always, limited = (0.0, 1.0), tuple(config["cfg_interval"])
    variants = {
        "plain": (settings(0.0, always), None),
        "cfg": (settings(config["cfg_strength"], always), None),
        "interval": (settings(config["cfg_strength"], limited), None),
        "interval_masks": (settings(config["cfg_strength"], limited), inputs["masks"]),
    }
    checks = []
    for name, (variant, masks) in variants.items():
        times, estimates = [], []

        def velocity(x, t, cond, masks, times=times):
            times.append(t[0].item())
            v = 0.3 * x + 0.1 * cond.mean(1)[:, :, None] + 0.0005 * t[:, None, None]
            return v if masks is None else v + 0.01 * masks.float().mean((1, 2))[:, None, None]

        samples = sample_flow(velocity, inputs["x"], inputs["cond"], variant, masks, on_step=estimates.append)
        checks += [
            close(case, f"{name}.samples", samples),
            close(case, f"{name}.pred_x_0_first", estimates[0]),
            close(case, f"{name}.pred_x_0_last", estimates[-1]),
            close(case, f"{name}.model_t", times, expected=case.extra[f"{name}.model_t"], atol=1e-4),
        ]
    return checks


def run_slat_flow(case: Case) -> list[Check]:
    model = build(SLatFlowModel, case)
    inputs = case.inputs
    layouts = [[slice(*part) for part in layout] for layout in case.extra["part_layouts"]]
    grid = model.grid(inputs["coords"], layouts)
    features = model(inputs["feats"], inputs["t"], inputs["cond"], inputs["masks"], grid)
    return [close(case, "feats", features), exact(case, "coords", inputs["coords"])]


def run_submanifold_conv(case: Case) -> list[Check]:
    weight, bias = case.weights["conv.weight"], case.weights.get("conv.bias")
    table = neighbour_table(case.inputs["coords"], case.config["kernel_size"])
    return [close(case, "feats", submanifold_conv(case.inputs["feats"], weight, bias, table))]


def run_sparse_res_block(case: Case) -> list[Check]:
    model = build(SparseResBlock3d, case)
    coords, parent, children = case.inputs["coords"], None, None
    if case.config.get("downsample"):
        coords, parent, children = downsample_coords(coords)
    table = neighbour_table(coords)
    features = model(case.inputs["feats"], case.inputs["emb"], coords[:, 0].long(), table, parent, children)
    return [close(case, "feats", features), exact(case, "coords", coords)]


def run_sparse_subdivide_block(case: Case) -> list[Check]:
    config, coords = case.config, case.inputs["coords"]
    model = SparseSubdivideBlock3d(config["channels"], config.get("out_channels"), config.get("num_groups", 32))
    model.load_state_dict(case.weights)
    fine = subdivide_coords(coords)
    table = neighbour_table(coords)
    features = model(case.inputs["feats"], coords[:, 0], table, subdivide_table(table))
    return [close(case, "feats", features), exact(case, "coords", fine)]


def run_divide_slat(case: Case) -> list[Check]:
    normalization = case.config["slat_normalization"]
    mean, std = (torch.tensor(normalization[name]) for name in ("mean", "std"))
    layout = [slice(*part) for part in case.extra["part_layouts"]]
    coords, features, sizes = divide_slat(
        case.inputs["coords"], case.inputs["feats"], layout, mean, std, case.config["threshold"]
    )
    return [
        exact(case, "coords", coords),
        close(case, "feats", features),
        exact(case, "part_sizes", sizes),
    ]


def compare_meshes(case: Case, prefix: str, mesh: SurfaceMesh, attributes: str | None) -> list[Check]:
    """Vertices by nearest neighbour (one to one), attributes there, faces as sets of triangles up to rotation."""
    expected = {name: case.outputs[f"{prefix}{name}"].numpy() for name in ("vertices", "faces")}
    vertices = mesh.vertices.numpy()
    if vertices.shape != expected["vertices"].shape:
        return [Check(f"{prefix}vertices (shape {list(vertices.shape)})", float("inf"), 0.0)]
    if not len(vertices):
        return [exact(case, f"{prefix}faces", mesh.faces)]
    _, nearest = cKDTree(expected["vertices"]).query(vertices)
    order = np.argsort(nearest)  # where this is a bijection, order[i] is our vertex for the expected vertex i
    checks = [close(case, f"{prefix}vertices", vertices[order], atol=GEOMETRY_ATOL)]
    ours, theirs = cyclic_triangles(nearest[mesh.faces.numpy()]), cyclic_triangles(expected["faces"])
    checks.append(Check(f"{prefix}faces", float(len(ours ^ theirs)), 0.0))
    if len(mesh.faces) != len(expected["faces"]):
        checks.append(Check(f"{prefix}faces (count {len(mesh.faces)})", float("inf"), 0.0))
    if attributes is not None:
        checks.append(
            close(case, f"{prefix}{attributes}", mesh.attributes[torch.from_numpy(order)], atol=GEOMETRY_ATOL)
        )
    if f"{prefix}face_normal" in case.outputs:
        checks.append(compare_face_normals(case, prefix, nearest, mesh))
    return checks


def cyclic_triangles(faces: np.ndarray) -> set[tuple[int, int, int]]:
    """Triangles with the smallest index first, orientation kept."""
    turn = faces.argmin(1)[:, None]
    return set(map(tuple, np.take_along_axis(faces, (turn + np.arange(3)) % 3, axis=1).tolist()))


def compare_face_normals(case: Case, prefix: str, nearest: np.ndarray, mesh: SurfaceMesh) -> Check:
    """Normals of the same triangles. A sliver's normal is ill-conditioned, so the error counts times the area's root."""
    faces = case.outputs[f"{prefix}faces"].numpy()
    row = {}
    for index, face in enumerate(faces.tolist()):
        turn = face.index(min(face))
        row[tuple(face[turn:] + face[:turn])] = index
    expected = case.outputs[f"{prefix}face_normal"].numpy()
    worst = 0.0
    ours = mesh.face_normals.numpy()
    size = mesh.vertices[mesh.faces.long()]
    edge = (size - size.roll(1, 1)).norm(dim=-1)
    height = torch.linalg.cross(size[:, 1] - size[:, 0], size[:, 2] - size[:, 0]).norm(dim=-1) / edge.amax(1)
    for index, face in enumerate(nearest[mesh.faces.numpy()].tolist()):
        turn = face.index(min(face))
        other = row.get(tuple(face[turn:] + face[:turn]))
        if other is not None and height[index] > 0:
            worst = max(worst, float(np.abs(ours[index] - expected[other]).max()) * min(1.0, float(height[index])))
    return Check(f"{prefix}face_normal", worst, tolerance_of(case, "face_normal", GEOMETRY_ATOL, 0.0)[0])


def run_mesh_extract(case: Case) -> list[Check]:
    config = case.config
    mesh = extract_surface(
        case.inputs["coords"], case.inputs["feats"], config["res"], config["use_color"], config.get("sdf_bias")
    )
    return compare_meshes(case, "", mesh, "attrs" if config["use_color"] else None)


def run_dual_grid_random(case: Case) -> list[Check]:
    """Every cell of a dense grid, vertices undeformed."""
    resolution, inputs = case.config["res"], case.inputs
    side = torch.arange(resolution + 1)
    low = torch.arange(resolution)
    stride = torch.tensor([(resolution + 1) ** 2, resolution + 1, 1])
    cells = (torch.cartesian_prod(low, low, low) * stride).sum(1)
    corner = torch.tensor([[k & 1, k >> 1 & 1, k >> 2 & 1] for k in range(8)])
    mesh = dual_mesh(
        cells,
        cells[:, None] + (corner * stride).sum(1),
        torch.cartesian_prod(side, side, side).float() / resolution - 0.5,
        inputs["scalar"],
        torch.sigmoid(inputs["colors"]),
        torch.cat((inputs["beta"], inputs["alpha"], inputs["gamma"][:, None]), dim=1),
        resolution,
    )
    return compare_meshes(case, "", mesh, "colors")


def run_slat_decoder_mesh(case: Case) -> list[Check]:
    model = build(SLatMeshDecoder, case)
    coords, features = case.inputs["coords"], case.inputs["feats"]
    fine, fields = model(coords, features)
    checks = [
        close(case, "torso", model.torso(coords, features), atol=2e-5),
        exact(case, "coords", fine),
        close(case, "feats", fields),
    ]
    for part in torch.unique(coords[:, 0]).tolist():
        rows = coords[:, 0] == part
        mesh = model.decode(coords[rows], features[rows])  # one part by itself: parts do not mix
        checks += compare_meshes(case, f"mesh{part}.", mesh, "attrs" if model.use_color else None)
    return checks


def gaussians_of(tensors: dict, prefix: str, settings: splats.GaussianSettings) -> splats.Gaussians:
    names = ("_xyz", "_features_dc", "_scaling", "_rotation", "_opacity")
    return splats.Gaussians(*(tensors[prefix + name] for name in names), settings=settings)


def compare_ply(case: Case, name: str, gaussians: splats.Gaussians) -> list[Check]:
    """Columns in the file's order. A quaternion and its negative are the same rotation.

    The reference got each quaternion component as the root of a float32 difference, which leaves an error of about one
    part in 2^22 in its **square**: a small component deviates by that over twice its size.
    """
    if case.extra.get("ply_columns", splats.PLY_COLUMNS) != splats.PLY_COLUMNS:
        return [Check("ply_columns", float("inf"), 0.0)]
    expected, columns = case.outputs[name].numpy(), splats.ply_columns(gaussians)
    if columns.shape != expected.shape:
        return [Check(f"{name} (shape {list(columns.shape)})", float("inf"), 0.0)]
    rotation, reference = columns[:, 13:], expected[:, 13:]
    rotation = rotation * np.where((rotation * reference).sum(1, keepdims=True) < 0, -1.0, 1.0)
    error = np.abs(rotation - reference)
    atol, rtol = tolerance_of(case, name, 1e-5, 1e-4)
    root_error = 2.0**-22 / (2 * np.maximum(np.abs(reference), 2.0**-11))
    allowed = atol + rtol * np.abs(reference) + root_error
    worst = np.unravel_index(np.argmax(error / allowed), error.shape)
    return [
        close(case, name, columns[:, :13], expected=expected[:, :13], atol=1e-5),
        Check(f"{name} rotation", float(error[worst]), float(allowed[worst])),
    ]


def run_slat_decoder_gs(case: Case) -> list[Check]:
    model = build(SLatGaussianDecoder, case)
    coords, features = case.inputs["coords"], case.inputs["feats"]
    checks = []
    for part in torch.unique(coords[:, 0]).tolist():
        rows = coords[:, 0] == part
        splat = model.decode(coords[rows], features[rows])
        actual = {
            "_xyz": splat.xyz,
            "_features_dc": splat.features_dc,
            "_scaling": splat.scaling,
            "_rotation": splat.rotation,
            "_opacity": splat.opacity,
            "xyz": splat.positions,
            "scaling": splat.scales,
            "rotation": splat.quaternions,
            "opacity": splat.opacities,
        }
        checks += [
            close(case, f"g{part}.{name}", value) for name, value in actual.items() if f"g{part}.{name}" in case.outputs
        ]
        if f"g{part}.ply_fields" in case.outputs:
            checks += compare_ply(case, f"g{part}.ply_fields", splat)
    return checks


def run_gaussian_merge(case: Case) -> list[Check]:
    parts = [gaussians_of(case.inputs, f"g{i}.", splats.GaussianSettings()) for i in range(case.config["parts"])]
    exploded = splats.merge(splats.explode(parts, case.config["explosion_scale"]))
    return [
        close(case, "merged_xyz", splats.merge(parts).positions),
        close(case, "exploded_xyz", exploded.positions),
        *compare_ply(case, "ply_fields", exploded),
    ]


def run_view_sphere(case: Case) -> list[Check]:
    return [close(case, "yaw_pitch", view_sphere(case.config["nviews"]))]


CASES = {
    "divide_slat": run_divide_slat,
    "dual_grid_random": run_dual_grid_random,
    "gaussian_merge": run_gaussian_merge,
    "mesh_extract": run_mesh_extract,
    "samplers": run_samplers,
    "slat_decoder_gs": run_slat_decoder_gs,
    "slat_decoder_mesh": run_slat_decoder_mesh,
    "slat_flow": run_slat_flow,
    "sparse_res_block": run_sparse_res_block,
    "sparse_structure_decoder": run_sparse_structure_decoder,
    "sparse_structure_flow": run_sparse_structure_flow,
    "sparse_subdivide_block": run_sparse_subdivide_block,
    "submanifold_conv": run_submanifold_conv,
    "view_sphere": run_view_sphere,
}
