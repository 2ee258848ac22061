"""The skin stages of `benchmarks/unirig.py`: one function a measurement, each run in a process of its own."""

import time

import numpy as np

SEED = 0


def rigged_creature(sizes):
    """A prepared mesh in [-1, 1]^3 and a chain of joints inside it: PreparedMesh, float32 (J, 3), parents (J,)."""
    from unirig import bumpy_sphere

    from networks.unirig.mesh_prep import prepare_mesh
    from networks.unirig.normalize import fit_matrix, transform

    mesh = prepare_mesh(*bumpy_sphere(sizes.skin_faces))
    mesh.vertices = transform(fit_matrix(mesh.vertices), mesh.vertices)
    random = np.random.default_rng(SEED)
    joints = random.uniform(-0.5, 0.5, (sizes.joints, 3)).astype(np.float32)
    return mesh, joints, np.arange(sizes.joints) - 1


def samples_of(mesh, count: int, groups=None):
    from networks.unirig.sampler import draw, sample_mesh

    draws = draw(np.random.RandomState(SEED), len(mesh.vertices), count, 8192)
    return sample_mesh(mesh, count, 8192, draws, groups)


def skin_model(sizes):
    from unirig import random_model

    from networks.unirig.skin import SkinModel

    return random_model(lambda: SkinModel.from_config(dict(sizes.skin)))


def voxel_skin(sizes) -> dict:
    from networks.unirig.voxel_skin import voxel_skin

    mesh, joints, _ = rigged_creature(sizes)
    start = time.perf_counter()
    feature = voxel_skin(mesh.vertices, mesh.faces, joints, grid=sizes.voxel_grid)
    return {"seconds": time.perf_counter() - start, "checksum": float(feature.max(axis=1).mean())}


def voxel_skin_plain(sizes) -> dict:
    """The z-buffer one triangle after the other, and neighbouring voxels by a search for the nearest points."""
    from scipy.spatial import cKDTree

    from networks.unirig import voxel_skin as module
    from networks.unirig import zbuffer

    vectorised = zbuffer._covered_pixels

    def one_by_one(corners, size):
        parts = [vectorised(triangle[None], size) for triangle in corners]
        return tuple(np.concatenate(values) for values in zip(*parts, strict=True))

    def nearest_voxels(cells, grid):
        points = 2 * (cells + 0.5) / grid - 1
        distance, other = cKDTree(points).query(points, k=7)
        start, rank = np.nonzero((distance > 0) & (distance < 1.001 * 2 / grid))
        return start, other[start, rank]

    zbuffer._covered_pixels = one_by_one
    module.lattice_edges = nearest_voxels
    return voxel_skin(sizes)


def ptv3(sizes) -> dict:
    import torch

    model = skin_model(sizes).mesh_encoder
    mesh, _, _ = rigged_creature(sizes)
    samples = samples_of(mesh, sizes.skin_points)
    points, normals = torch.from_numpy(samples.points), torch.from_numpy(samples.normals)
    feat = torch.cat([points, normals, torch.zeros_like(points)], dim=1)
    start = time.perf_counter()
    out = model(points, feat, torch.arange(len(model.order)))
    return {"seconds": time.perf_counter() - start, "checksum": float(out.double().abs().mean())}


def ptv3_plain(sizes) -> dict:
    """The neighbours of every voxel looked up again in every convolution."""
    from networks.unirig import ptv3 as module
    from networks.unirig.subm_conv import SubMConv3d, neighbourhood, subm_conv

    def arguments(*given):
        return given

    def forward(self, features, given):
        return subm_conv(features, self.weight, self.bias, neighbourhood(*given))

    module.neighbourhood = arguments
    SubMConv3d.forward = forward
    return ptv3(sizes)


def skin_heads(sizes) -> dict:
    """The skin model without PTv3: shape, joints, attention and scores of some of the points."""
    import torch

    model = skin_model(sizes)
    mesh, joints, parents = rigged_creature(sizes)
    voxel = np.random.default_rng(SEED).dirichlet(np.ones(len(joints)), len(mesh.vertices)).astype(np.float32)
    samples = samples_of(mesh, sizes.head_points, voxel)
    width = model.mesh_encoder.out_channels
    torch.manual_seed(SEED)
    model.mesh_encoder.forward = lambda coord, *_: torch.randn(len(coord), width)
    arrays = (samples.points, samples.normals, joints, parents, samples.groups)
    start = time.perf_counter()
    weights = model(*(torch.from_numpy(a) for a in arrays))
    return {"seconds": time.perf_counter() - start, "checksum": float(weights.amax(dim=1).double().mean())}


def skin_heads_plain(sizes) -> dict:
    """All points and all pairs of point and joint at once."""
    from networks.unirig import skin as module

    module.CHUNK_POINTS = module.CHUNK_PAIRS = 1 << 40
    return skin_heads(sizes)


def reskin(sizes) -> dict:
    from networks.unirig.reskin import reskin

    mesh, joints, parents = rigged_creature(sizes)
    samples = samples_of(mesh, sizes.skin_points)
    skin = np.random.default_rng(SEED).dirichlet(np.ones(len(joints)), sizes.skin_points).astype(np.float32)
    start = time.perf_counter()
    reskin(samples.points, skin, mesh.vertices, mesh.faces, parents)
    return {"seconds": time.perf_counter() - start}


def transfer(sizes) -> dict:
    """From the prepared mesh to a denser one of the same shape."""
    from unirig import bumpy_sphere

    from networks.unirig.normalize import fit_matrix, transform
    from networks.unirig.robust_transfer import transfer_weights

    mesh, joints, _ = rigged_creature(sizes)
    vertices, faces = bumpy_sphere(sizes.faces)
    vertices = transform(fit_matrix(vertices), vertices)
    weights = np.random.default_rng(SEED).dirichlet(np.ones(len(joints)), len(mesh.vertices))
    start = time.perf_counter()
    transfer_weights(mesh.vertices, mesh.faces, weights, vertices, faces)
    return {"seconds": time.perf_counter() - start, "vertices": len(vertices)}


SKIN_STAGES = {
    "voxel_skin": (voxel_skin, voxel_skin_plain),
    "ptv3": (ptv3, ptv3_plain),
    "skin_heads": (skin_heads, skin_heads_plain),
    "reskin": (reskin, None),
    "transfer": (transfer, None),
}
