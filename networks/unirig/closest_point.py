"""Closest points on a triangle mesh: exact, vectorised, no spatial index beyond scipy's kd-tree.

Triangles are cut into pieces of similar radius, whose centres go into a kd-tree. A query looks at the triangles of its k
nearest pieces and is finished when no piece further away can hold a nearer point; the others ask again with larger k.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

_FIRST_NEIGHBOURS = 8
_PAIRS_AT_ONCE = 1 << 19
_MAX_PIECES_PER_TRIANGLE = 8


@dataclass
class ClosestPoints:
    """face: int64 (N,). barycentric: float64 (N, 3). squared_distance: float64 (N,)."""

    face: np.ndarray
    barycentric: np.ndarray
    squared_distance: np.ndarray


def closest_on_triangle(points: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Barycentric coordinates (N, 3) of, and squared distance (N,) to, the closest point of one triangle a point.

    points: float64 (N, 3); triangles: float64 (N, 3, 3) corners. Degenerate triangles count as their edges.
    """
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    ab, ac, ap = b - a, c - a, points - a
    aa, bb, cc = (ab * ab).sum(1), (ab * ac).sum(1), (ac * ac).sum(1)
    pb, pc = (ap * ab).sum(1), (ap * ac).sum(1)
    determinant = aa * cc - bb * bb
    flat = determinant <= 1e-14 * aa * cc
    safe = np.where(flat, 1, determinant)
    v, w = (cc * pb - bb * pc) / safe, (aa * pc - bb * pb) / safe
    inside = ~flat & (v >= 0) & (w >= 0) & (v + w <= 1)
    best = np.stack([1 - v - w, v, w], axis=1)
    smallest = np.where(inside, _squared_distance(points, triangles, best), np.inf)
    rest = np.flatnonzero(~inside)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        start, edge = triangles[rest, i], triangles[rest, j] - triangles[rest, i]
        length = (edge * edge).sum(1)
        t = np.clip(((points[rest] - start) * edge).sum(1) / np.where(length > 0, length, 1), 0, 1)
        candidate = np.zeros((len(rest), 3))
        candidate[:, i], candidate[:, j] = 1 - t, t
        distance = _squared_distance(points[rest], triangles[rest], candidate)
        nearer = distance < smallest[rest]
        best[rest[nearer]], smallest[rest[nearer]] = candidate[nearer], distance[nearer]
    return best, smallest


def closest_points(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> ClosestPoints:
    """The closest point of a mesh to each of (N, 3) points. vertices (V, 3) float, faces (F, 3) int, F > 0."""
    points = points.astype(np.float64)
    triangles = vertices.astype(np.float64)[faces]
    pieces, owner = _cut(triangles)
    centres = pieces.mean(axis=1)
    radius = _radius(pieces).max()
    tree = cKDTree(centres)
    result = ClosestPoints(
        np.zeros(len(points), np.int64), np.zeros((len(points), 3)), np.full(len(points), np.inf, np.float64)
    )
    waiting = np.arange(len(points))
    k = _FIRST_NEIGHBOURS
    while len(waiting):
        k = min(k, len(pieces))
        unfinished = []
        for start in range(0, len(waiting), max(1, _PAIRS_AT_ONCE // k)):
            part = waiting[start : start + max(1, _PAIRS_AT_ONCE // k)]
            distance, piece = (q.reshape(len(part), k) for q in tree.query(points[part], k=k))
            face = owner[piece]
            barycentric, squared = closest_on_triangle(np.repeat(points[part], k, axis=0), triangles[face.ravel()])
            squared = squared.reshape(len(part), k)
            nearest = squared.argmin(axis=1)
            row = np.arange(len(part))
            result.face[part] = face[row, nearest]
            result.barycentric[part] = barycentric[row * k + nearest]
            result.squared_distance[part] = squared[row, nearest]
            settled = distance[:, -1] >= np.sqrt(squared[row, nearest]) + radius
            unfinished.append(part[~settled])
        waiting = np.concatenate(unfinished) if k < len(pieces) else waiting[:0]
        k *= 4
    return result


def _squared_distance(points: np.ndarray, triangles: np.ndarray, barycentric: np.ndarray) -> np.ndarray:
    return ((np.einsum("nk,nkd->nd", barycentric, triangles) - points) ** 2).sum(1)


def _radius(triangles: np.ndarray) -> np.ndarray:
    """Largest distance of a corner from the centre: a ball around the centre that holds the triangle."""
    return np.linalg.norm(triangles - triangles.mean(axis=1, keepdims=True), axis=2).max(axis=1)


def _cut(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Halve large triangles at their longest edges until all are about as small as the typical one: (pieces, owner)."""
    pieces, owner = triangles, np.arange(len(triangles))
    limit = 2 * np.median(_radius(triangles))
    while True:
        large = _radius(pieces) > limit
        if not large.any() or len(pieces) + large.sum() > _MAX_PIECES_PER_TRIANGLE * len(triangles):
            return pieces, owner
        split = pieces[large]
        edge = np.linalg.norm(np.roll(split, -1, axis=1) - split, axis=2).argmax(axis=1)
        split = np.take_along_axis(split, ((edge[:, None] + np.arange(3)) % 3)[..., None], axis=1)
        a, b, c = split[:, 0], split[:, 1], split[:, 2]
        middle = (a + b) / 2
        pieces = np.concatenate([pieces[~large], np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)])
        owner = np.concatenate([owner[~large], owner[large], owner[large]])
