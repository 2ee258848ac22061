"""What a quad made of two triangles is worth, and making it."""

from dataclasses import replace

import numpy as np

from meshes.pairing_edges import area_vectors, unit
from meshes.scene import FaceVarying, Mesh, Primvar
from meshes.triangulate import next_corners

CONVEX_SINE = 1e-6  # sine of the exterior angle below which a corner counts as straight
LENGTH_SHARE = 0.1  # of the longest edge, against 1 for the pair itself
QUALITY_SHARE = 0.001  # of the best quality, against 1 for the pair itself


def quad_corners(mesh: Mesh, corners: np.ndarray) -> np.ndarray:
    """The four corners, in order, of the quads which the triangles on both sides of edges make.

    `corners` [k, 2]: where the edge starts in the one triangle and in the other. Column 0 and 2 of the result [k, 4] are the ends of the edge, columns 0, 2
    and 3 are the first triangle.
    """
    following = next_corners(mesh)
    first, second = corners[:, 0], corners[:, 1]
    return np.stack(
        [first, following[following[second]], following[first], following[following[first]]], axis=1
    )  # fmt: skip


def convex(quads: np.ndarray) -> np.ndarray:
    """Which quads [k, 4, 3] are strictly convex in the plane of their mean normal (Newell's: half the cross product of the diagonals)."""
    along = unit(np.roll(quads, -1, axis=1) - quads)
    normal = unit(np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1]))
    turn = np.einsum("kcx,kx->kc", np.cross(np.roll(along, 1, axis=1), along), normal)
    return (turn > CONVEX_SINE).all(1)


def bend(quads: np.ndarray) -> np.ndarray:
    """The angle in radians between the normals of the two triangles of quads [k, 4, 3] cut from corner 0 to corner 2."""
    one, other = area_vectors(quads[:, [0, 2, 3]]), area_vectors(quads[:, [0, 1, 2]])
    return np.arctan2(np.linalg.norm(np.cross(one, other), axis=1), (one * other).sum(1))


def quality(quads: np.ndarray) -> np.ndarray:
    """Shape of quads [k, 4, 3] as `eta * max(0, cos(bend)) * sqrt(aspect)`: 1 for a square, 0 for the worst; [k].

    `eta = max(0, 1 - 2/pi max_k |pi/2 - alpha_k|)` with the corner angles alpha (Remacle et al. 2012, "Blossom-Quad: a non-uniform quadrilateral
    mesh generator using a minimum-cost perfect-matching algorithm", eq. 2) falls with angles away from 90 degrees and is 0 where a corner
    folds or opens to 180. `bend` is the angle between the two triangles' normals. `aspect` is the shorter over the longer of the two
    lines that join the midpoints of opposite sides.
    """
    before, after = np.roll(quads, 1, axis=1) - quads, np.roll(quads, -1, axis=1) - quads
    angles = np.arctan2(np.linalg.norm(np.cross(before, after), axis=2), (before * after).sum(2))
    eta = np.maximum(0, 1 - 2 / np.pi * np.abs(np.pi / 2 - angles).max(1, initial=0))
    middles = (quads + np.roll(quads, -1, axis=1)) / 2
    across = np.linalg.norm(middles[:, :2] - middles[:, 2:], axis=2)
    longer = across.max(1, initial=0)
    aspect = np.divide(across.min(1, initial=np.inf), longer, out=np.zeros(len(quads)), where=longer > 0)
    return eta * np.maximum(0, np.cos(bend(quads))) * np.sqrt(aspect)


def weights(quads: np.ndarray, objective: str) -> np.ndarray:
    """What dissolving an edge is worth, [k] float64, for the candidates of one mesh.

    "length": `1 + 0.1 length / longest`, the longest of these edges. "shape": `1 + 0.001 quality`, so that pairs come first and shape decides among
    equally many.
    """
    if objective == "shape":
        return 1 + QUALITY_SHARE * quality(quads)
    length = np.linalg.norm(quads[:, 2] - quads[:, 0], axis=1)
    return 1 + LENGTH_SHARE * length / length.max(initial=np.finfo(float).tiny)


def merge(mesh: Mesh, corners: np.ndarray, facets: np.ndarray) -> Mesh:
    """Join the two triangles at each of `corners` [k, 2] (as in `quad_corners`; no triangle twice) to a quad.

    The quad takes the place and the data of the triangle that comes first among the faces, and one corner of the other. Points stay all as they are. Of
    quads marked in `facets` [k] the normals become the quad's own, as both triangles were flat-shaded.
    """
    corner_face = np.asarray(mesh.corner_faces(), np.int64)
    corners = np.sort(corners, axis=1)  # the first triangle is the one with the smaller corners
    quads = quad_corners(mesh, corners)
    kept, dropped = corner_face[corners].T
    sizes = np.asarray(mesh.face_sizes, np.int64).copy()
    sizes[kept] += 1
    sizes[dropped] = 0
    faces = np.flatnonzero(sizes > 0)

    # Every remaining corner moves on by what its face's start moves, and by one behind an inserted corner.
    starts = np.cumsum(sizes) - sizes
    place = starts[corner_face] + np.arange(len(corner_face)) - mesh.face_offsets()[:-1][corner_face]
    insert_behind = np.full(len(sizes), np.iinfo(np.int64).max)
    insert_behind[kept] = corners[:, 0]
    place += np.arange(len(corner_face)) > insert_behind[corner_face]
    source = np.empty(int(sizes.sum()), np.int64)
    stay = sizes[corner_face] > 0
    source[place[stay]] = np.flatnonzero(stay)
    source[place[corners[:, 0]] + 1] = quads[:, 1]

    renumber = np.cumsum(sizes > 0) - 1
    merged = replace(
        mesh,
        face_sizes=sizes[faces].astype(np.int32),
        face_vertices=mesh.face_vertices[source],
        face_material=mesh.face_material[faces],
        uv_sets={name: _gather(value, source) for name, value in mesh.uv_sets.items()},
        colors={name: _gather(value, source) for name, value in mesh.colors.items()},
        normals=None if mesh.normals is None else _gather(mesh.normals, source),
        face_groups={
            name: renumber[group[sizes[group] > 0]].astype(np.int32) for name, group in mesh.face_groups.items()
        },
        primvars={name: _gather_primvar(value, faces, source) for name, value in mesh.primvars.items()},
    )
    if merged.normals is not None and facets.any():
        _flatten(merged, mesh.points[mesh.face_vertices[quads[facets]]], renumber[kept[facets]])
    _follow_points(mesh, merged, quads, corners)
    return merged


def _gather(value: FaceVarying, source: np.ndarray) -> FaceVarying:
    return FaceVarying(value.values, value.indices[source])


def _gather_primvar(value: Primvar, faces: np.ndarray, corners: np.ndarray) -> Primvar:
    rows = {"uniform": faces, "faceVarying": corners}.get(value.interpolation)
    if rows is None:
        return value
    if value.indices is None:
        return replace(value, values=value.values[rows])
    return replace(value, indices=value.indices[rows])


def _flatten(mesh: Mesh, quads: np.ndarray, faces: np.ndarray) -> None:
    """Give the quads `faces` [k] of `mesh`, at `quads` [k, 4, 3], their own normals."""
    scale = np.abs(quads).max()
    normals = unit(np.cross((quads[:, 2] - quads[:, 0]) / scale, (quads[:, 3] - quads[:, 1]) / scale))
    indices = mesh.normals.indices.copy()
    at = mesh.face_offsets()[faces][:, None] + np.arange(4)
    indices[at] = (len(mesh.normals.values) + np.arange(len(faces), dtype=np.int32))[:, None]
    mesh.normals = FaceVarying(np.concatenate([mesh.normals.values, normals]), indices)


def _follow_points(before: Mesh, after: Mesh, quads: np.ndarray, corners: np.ndarray) -> None:
    """Let sharp and creased edges and corners name points that faces still use.

    Where a point was split, a quad uses the first triangle's copy; the second's may be left without a face.
    """
    used = np.zeros(len(before.points), bool)
    used[after.face_vertices] = True
    instead = np.arange(len(before.points), dtype=np.int32)
    following = next_corners(before)
    for gone, stays in ((following[corners[:, 1]], quads[:, 0]), (corners[:, 1], quads[:, 2])):
        instead[before.face_vertices[gone]] = before.face_vertices[stays]
    instead[used] = np.flatnonzero(used)
    for name in ("sharp_edges", "crease_edges", "corner_points"):
        points = getattr(before, name)
        if points is not None:
            setattr(after, name, instead[points])
