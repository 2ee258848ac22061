"""From any polygon mesh to what the networks were trained on: Z up, triangles, welded, at most 50 000 faces."""

from dataclasses import dataclass

import numpy as np

from shared_utils.errors import InvalidInputError

TARGET_FACES = 50_000


@dataclass
class PreparedMesh:
    """A welded triangle mesh in UniRig's frame (Z up, the character looks towards -Y), with unit normals.

    vertices, vertex_normals: float32 (V, 3). faces: int64 (F, 3). face_normals: float32 (F, 3).
    """

    vertices: np.ndarray
    faces: np.ndarray
    vertex_normals: np.ndarray
    face_normals: np.ndarray


def y_up_to_z_up(points: np.ndarray) -> np.ndarray:
    """(…, 3) in a Y-up frame looking towards +Z (glTF) -> the same in UniRig's frame: (x, y, z) -> (x, -z, y)."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], axis=-1)


def z_up_to_y_up(points: np.ndarray) -> np.ndarray:
    """The inverse of `y_up_to_z_up`."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


def triangulate(points: np.ndarray, face_sizes: np.ndarray, face_vertices: np.ndarray) -> np.ndarray:
    """Polygons -> int64 (T, 3) triangles: a fan from each polygon's smallest vertex index, wound like the polygon.

    points: float (V, 3). face_sizes: int (F,), corners per face. face_vertices: int, the corners, face after face.
    A triangle of a concave polygon which would face the other way than the polygon's (Newell) normal is turned over.
    """
    sizes = np.asarray(face_sizes, dtype=np.int64)
    corners = np.asarray(face_vertices, dtype=np.int64)
    start = np.concatenate([[0], np.cumsum(sizes)])
    triangles = []
    owners = []
    for size in np.unique(sizes[sizes >= 3]):
        faces = np.flatnonzero(sizes == size)
        loops = corners[start[faces][:, None] + np.arange(size)]
        first = loops.argmin(axis=1)
        loops = np.take_along_axis(loops, (first[:, None] + np.arange(size)) % size, axis=1)
        fan = np.stack([np.repeat(loops[:, :1], size - 2, axis=1), loops[:, 1:-1], loops[:, 2:]], axis=-1)
        if size > 3:
            edges = points[loops]
            normal = np.cross(edges, np.roll(edges, -1, axis=1)).sum(axis=1)
            a, b, c = (points[fan[..., k]] for k in range(3))
            turned = (np.cross(b - a, c - a) * normal[:, None]).sum(axis=-1) < 0
            fan[turned] = fan[turned][:, [0, 2, 1]]
        triangles.append(fan.reshape(-1, 3))
        owners.append(np.repeat(faces, size - 2))
    if not triangles:
        return np.zeros((0, 3), dtype=np.int64)
    return np.concatenate(triangles)[np.argsort(np.concatenate(owners), kind="stable")]


def prepare_mesh(vertices: np.ndarray, faces: np.ndarray, target_faces: int = TARGET_FACES) -> PreparedMesh:
    """Weld equal positions, simplify to `target_faces` when there are more, weld again, and compute normals.

    vertices: float (V, 3), already in UniRig's frame. faces: int (F, 3). Points that are not finite are dropped with
    their faces. Raises InvalidInputError when no surface is left.
    """
    import trimesh

    mesh = trimesh.Trimesh(vertices=vertices, faces=faces, process=True)
    if len(mesh.faces) > target_faces:
        import fast_simplification

        simple = fast_simplification.simplify(
            np.asarray(mesh.vertices), np.asarray(mesh.faces), target_count=target_faces
        )
        mesh = trimesh.Trimesh(vertices=simple[0], faces=simple[1], process=True)
    if len(mesh.faces) == 0 or not mesh.area > 0:
        raise InvalidInputError("the mesh has no surface: no faces, or all of them have zero area")
    return PreparedMesh(
        vertices=np.asarray(mesh.vertices, dtype=np.float32),
        faces=np.asarray(mesh.faces, dtype=np.int64),
        vertex_normals=np.asarray(mesh.vertex_normals, dtype=np.float32),
        face_normals=np.asarray(mesh.face_normals, dtype=np.float32),
    )
