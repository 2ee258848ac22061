"""Polygons into triangles, for formats and pictures that know nothing else."""

import numpy as np

from meshes.scene import Mesh


def newell_normals(mesh: Mesh) -> np.ndarray:
    """Area vector of every face [F, 3] (twice the area long), by Newell's formula: right for any planar polygon."""
    points = mesh.points[mesh.face_vertices]
    following = points[next_corners(mesh)]
    normals = np.zeros((len(mesh.face_sizes), 3))
    with np.errstate(invalid="ignore", over="ignore"):
        for axis, (u, v) in enumerate(((1, 2), (2, 0), (0, 1))):
            # Relative to the face's first corner, so that far-away models lose no digits.
            first = np.repeat(points[mesh.face_offsets()[:-1]], mesh.face_sizes, axis=0) if len(points) else points
            a, b = points - first, following - first
            terms = a[:, u] * b[:, v] - a[:, v] * b[:, u]
            normals[:, axis] = np.bincount(mesh.corner_faces(), terms, len(normals)) if len(terms) else 0
    return normals


def next_corners(mesh: Mesh) -> np.ndarray:
    """For every corner the one after it around its face, [L] int64."""
    offsets = mesh.face_offsets()
    following = np.arange(1, len(mesh.face_vertices) + 1, dtype=np.int64)
    following[offsets[1:] - 1] = offsets[:-1]
    return following


def triangulate(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Triangles as corner indices [T, 3] int64 into the mesh's corners, and the face each is from [T] int32, faces in order.

    Quads are cut along the diagonal that keeps both halves the right way round, else the shorter one; larger faces are a fan
    where that is right, else their ears are cut off one by one.
    """
    offsets, sizes = mesh.face_offsets()[:-1], mesh.face_sizes
    normals = newell_normals(mesh)
    per_face = np.asarray(sizes, np.int64) - 2
    starts = np.concatenate([[0], np.cumsum(per_face)])
    triangles = np.empty((int(starts[-1]), 3), np.int64)

    three = np.flatnonzero(sizes == 3)
    triangles[starts[three]] = offsets[three][:, None] + np.arange(3)

    four = np.flatnonzero(sizes == 4)
    if len(four):
        corners = offsets[four][:, None] + np.arange(4)
        cut = _cut_13(mesh.points[mesh.face_vertices[corners]], normals[four])
        first = np.where(cut[:, None], [0, 1, 3], [0, 1, 2])
        second = np.where(cut[:, None], [1, 2, 3], [0, 2, 3])
        triangles[starts[four]] = np.take_along_axis(corners, first, 1)
        triangles[starts[four] + 1] = np.take_along_axis(corners, second, 1)

    for face in np.flatnonzero(sizes > 4):
        corners = offsets[face] + np.arange(sizes[face])
        local = _cut_polygon(mesh.points[mesh.face_vertices[corners]], normals[face])
        triangles[starts[face] : starts[face + 1]] = corners[local]
    return triangles, np.repeat(np.arange(len(sizes), dtype=np.int32), per_face)


def _cut_13(quads: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Whether quads [Q, 4, 3] are to be cut from corner 1 to corner 3 rather than from 0 to 2."""

    def worst(a: int, b: int, c: int, d: int, e: int, f: int) -> np.ndarray:
        def area(i: int, j: int, k: int) -> np.ndarray:
            cross = np.cross(quads[:, j] - quads[:, i], quads[:, k] - quads[:, i])
            return np.einsum("ij,ij->i", cross, normals)

        return np.minimum(area(a, b, c), area(d, e, f))

    with np.errstate(invalid="ignore", over="ignore"):
        turned_02, turned_13 = worst(0, 1, 2, 0, 2, 3) <= 0, worst(0, 1, 3, 1, 2, 3) <= 0
        shorter_13 = np.linalg.norm(quads[:, 3] - quads[:, 1], axis=1) < np.linalg.norm(
            quads[:, 2] - quads[:, 0], axis=1
        )
    return np.where(turned_02 == turned_13, shorter_13, turned_02)


def _cut_polygon(points: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Triangles [N - 2, 3] of one polygon [N, 3]."""
    count = len(points)
    fan = np.stack([np.zeros(count - 2, np.int64), np.arange(1, count - 1), np.arange(2, count)], 1)
    axis = int(np.argmax(np.abs(normal)))
    if not np.isfinite(points).all() or normal[axis] == 0:
        return fan
    keep = [(1, 2), (2, 0), (0, 1)][axis]
    flat = points[:, keep if normal[axis] > 0 else keep[::-1]]
    if (_area(flat[fan[:, 0]], flat[fan[:, 1]], flat[fan[:, 2]]) > 0).all():
        return fan
    return _cut_ears(flat)


def _area(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Twice the signed area of triangles in the plane."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def _cut_ears(flat: np.ndarray) -> np.ndarray:
    """Ear clipping (Meisters 1975) of a counter-clockwise polygon [N, 2]; a polygon that crosses itself gets some triangles."""
    remaining, triangles, at, failures = list(range(len(flat))), [], 0, 0
    while len(remaining) > 3:
        count = len(remaining)
        i, j, k = remaining[at - 1], remaining[at % count], remaining[(at + 1) % count]
        a, b, c = flat[i], flat[j], flat[k]
        is_ear = _area(a, b, c) > 0
        if is_ear:
            others = flat[[p for p in remaining if p not in (i, j, k)]]
            inside = (_area(a, b, others) >= 0) & (_area(b, c, others) >= 0) & (_area(c, a, others) >= 0)
            # A point that lies exactly on a corner (a bridge to a hole) does not block the ear.
            on_corner = (others == a).all(1) | (others == b).all(1) | (others == c).all(1)
            is_ear = not (inside & ~on_corner).any()
        if is_ear or failures > count:
            triangles.append((i, j, k))
            remaining.pop(at % count)
            at, failures = at % count, 0
            at = at % len(remaining)
        else:
            at, failures = (at + 1) % count, failures + 1
    triangles.append(tuple(remaining))
    return np.array(triangles, np.int64)
