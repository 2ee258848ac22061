"""Built-in meshes: inputs of the smoke tests, and rigs for benchmarks."""

import numpy as np

from meshes.scene import FaceVarying, Material, Mesh, Node, Scene, Skeleton, Skin
from meshes.weight_rows import compressed_rows, limit


def limb(bones: int = 12, rings: int = 64, segments: int = 32, influences: int = 4, height: float = 2.0) -> Scene:
    """A tapered tube (metres, Y up) of `rings` x `segments` quads with a chain of `bones` joints inside.

    The weights fall off with the square of the distance along the tube, `influences` a point.
    """
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    level = np.linspace(0, height, rings)
    radius = 0.15 * height * (1 - 0.5 * level / height)
    x = radius[:, None] * np.cos(angle)
    z = -radius[:, None] * np.sin(angle)
    points = np.stack([x, np.broadcast_to(level[:, None], x.shape), z], -1).reshape(-1, 3)
    row, column = np.meshgrid(np.arange(rings - 1), np.arange(segments), indexing="ij")
    right = (column + 1) % segments
    quads = np.stack(
        [row * segments + column, row * segments + right, (row + 1) * segments + right, (row + 1) * segments + column],
        -1,
    )
    quads = quads.reshape(-1, 4).astype(np.int32)

    step = height / bones
    bind = np.tile(np.eye(4), (bones, 1, 1))
    bind[:, 1, 3] = step * np.arange(bones)
    rest = bind.copy()
    rest[1:, 1, 3] = step
    parents = np.arange(bones, dtype=np.int32) - 1
    middle = step * (np.arange(bones) + 0.5)
    weights = limit(np.exp(-(((points[:, 1:2] - middle) / (0.7 * step)) ** 2)), influences)
    offsets, joints, values = compressed_rows(weights)

    u = np.linspace(0, 1, segments + 1)
    v = level / height
    uv = np.stack(np.broadcast_arrays(u[None, :], v[:, None]), -1).reshape(-1, 2)
    wide = segments + 1
    uv_indices = np.stack(
        [row * wide + column, row * wide + column + 1, (row + 1) * wide + column + 1, (row + 1) * wide + column], -1
    )
    mesh = Mesh(
        "limb",
        points,
        np.full(len(quads), 4, np.int32),
        quads.ravel(),
        np.zeros(len(quads), np.int32),
        uv_sets={"st": FaceVarying(uv, uv_indices.reshape(-1).astype(np.int32))},
        skin=Skin(0, offsets, joints, values),
    )
    skeleton = Skeleton("limb_skeleton", [f"bone_{i:02d}" for i in range(bones)], parents, rest, bind)
    return Scene(
        nodes=[Node("armature", skeleton=0), Node("limb", parent=0, mesh=0)],
        meshes=[mesh],
        skeletons=[skeleton],
        materials=[Material("skin", base_color=(0.8, 0.6, 0.5, 1.0))],
    )


def triangle_patch(count: int = 400, seed: int = 0) -> Scene:
    """A hilly patch of about 2 x `count` irregular triangles: random points, Delaunay-triangulated (metres, Y up)."""
    from scipy.spatial import Delaunay

    rng = np.random.default_rng(seed)
    side = round(np.sqrt(count))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2) / (side - 1)
    inner = (grid > 0) & (grid < 1)
    flat = grid + inner * rng.uniform(-0.35, 0.35, grid.shape) / side
    height = 0.1 * np.sin(7 * flat[:, 0]) * np.cos(5 * flat[:, 1])
    points = np.stack([flat[:, 0], height, -flat[:, 1]], -1)
    triangles = Delaunay(flat).simplices.astype(np.int32)
    # Delaunay's triangles run counter-clockwise in the plane, which looks up here.
    a, b, c = (flat[triangles[:, i]] for i in range(3))
    clockwise = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) < (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    triangles[clockwise] = triangles[clockwise][:, ::-1]
    mesh = Mesh(
        "patch", points, np.full(len(triangles), 3, np.int32), triangles.ravel(), np.zeros(len(triangles), np.int32)
    )
    return Scene(nodes=[Node("patch", mesh=0)], meshes=[mesh], materials=[Material("clay")])
