"""Corrective smoothing as Blender's modifier of that name defines it, on numpy arrays.

The deformed points are smoothed along the edges; then the detail which smoothing took from the rest shape, remembered per face
corner in a tangent frame, is added back in the frame of the smoothed deformed shape. V points, E edges, L corners, P poses.

Source: the behaviour of Blender 4.5's modifier (manual, "Corrective Smooth"), which the tests compare with numerically.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np

_EPSILON = np.finfo(np.float32).eps


@dataclass
class SmoothSettings:
    """`smooth_type` "length-weighted" or "simple", `factor` 0..1, `iterations` >= 0; `pin_boundary` holds open edges;
    `only_smooth` leaves the detail out.
    """

    smooth_type: str = "length-weighted"
    factor: float = 1.0
    iterations: int = 5
    pin_boundary: bool = False
    only_smooth: bool = False


class CorrectiveSmooth:
    """The modifier bound to a rest shape.

    rest [V, 3] float64; face_sizes [F], face_vertices [L] polygon loops; `mask` [V] 0..1 scales the smoothing per point.
    """

    def __init__(
        self,
        rest: np.ndarray,
        face_sizes: np.ndarray,
        face_vertices: np.ndarray,
        settings: SmoothSettings,
        mask: np.ndarray | None = None,
    ):
        self.settings = settings
        count = len(rest)
        self.current = np.ascontiguousarray(face_vertices, np.int64)
        self.previous, self.next = _corner_neighbours(np.asarray(face_sizes, np.int64), self.current)
        self.edges, uses = _edges(self.current, self.next)
        self.valence = np.bincount(self.edges.ravel(), minlength=count).astype(np.float64)
        self.strength = np.ones(count) if mask is None else np.array(mask, np.float64)
        if settings.pin_boundary:
            self.strength[np.unique(self.edges[uses == 1])] = 0.0
        rest = np.ascontiguousarray(rest, np.float64)
        smoothed = self._smooth(rest)
        self.delta = _remember(rest, smoothed, self.current, self.previous, self.next)

    def _smooth(self, points: np.ndarray) -> np.ndarray:
        s = self.settings
        return _smooth(
            points, self.edges, self.valence, self.strength, s.iterations, s.factor, s.smooth_type == "length-weighted"
        )

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Smoothed shape of deformed points [V, 3], in the same space as the rest shape."""
        smoothed = self._smooth(np.ascontiguousarray(points, np.float64))
        if not self.settings.only_smooth:
            _restore(smoothed, self.delta, self.current, self.previous, self.next)
        return smoothed

    def apply_all(self, poses: np.ndarray) -> np.ndarray:
        """The same for [P, V, 3], poses in parallel."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack(list(pool.map(self.apply, poses)))


def _corner_neighbours(sizes: np.ndarray, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points before and after every corner in its face, [L] each."""
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    size = np.repeat(sizes, sizes)
    place = np.arange(len(vertices)) - start
    return vertices[start + (place - 1) % size], vertices[start + (place + 1) % size]


def _edges(current: np.ndarray, following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique point pairs [E, 2] and how many faces use each, [E]."""
    pairs = np.sort(np.stack([current, following], 1), axis=1)
    edges, uses = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0, return_counts=True)
    return np.ascontiguousarray(edges), uses


@numba.njit(nogil=True)
def _smooth(points, edges, valence, strength, iterations, factor, length_weighted):
    co = points.copy()
    count = len(co)
    delta = np.empty_like(co)
    length_sum = np.empty(count)
    for _ in range(iterations):
        delta[:] = 0.0
        length_sum[:] = 0.0
        for e in range(len(edges)):
            a, b = edges[e, 0], edges[e, 1]
            x, y, z = co[b, 0] - co[a, 0], co[b, 1] - co[a, 1], co[b, 2] - co[a, 2]
            w = np.sqrt(x * x + y * y + z * z) if length_weighted else 1.0
            delta[a, 0] += x * w
            delta[a, 1] += y * w
            delta[a, 2] += z * w
            delta[b, 0] -= x * w
            delta[b, 1] -= y * w
            delta[b, 2] -= z * w
            length_sum[a] += w
            length_sum[b] += w
        for v in range(count):
            # Twice the factor over (sum of lengths x valence) is what Blender's length weighting amounts to; the simple
            # type goes to the mean of the edges' middles, half way to the mean of the neighbours.
            divisor = length_sum[v] * valence[v] if length_weighted else valence[v]
            if divisor > _EPSILON:
                step = factor * strength[v] / divisor * (2.0 if length_weighted else 0.5)
                for k in range(3):
                    co[v, k] += delta[v, k] * step
    return co


@numba.njit(nogil=True, inline="always")
def _unit(x, y, z):
    length = np.sqrt(x * x + y * y + z * z)
    if length > 1e-35:
        return x / length, y / length, z / length
    return 0.0, 0.0, 0.0


@numba.njit(nogil=True)
def _frame(co, before, at, after):
    """Tangent, bitangent and normal of a corner, and the angle it opens (radians): 10 numbers."""
    px, py, pz = _unit(co[before, 0] - co[at, 0], co[before, 1] - co[at, 1], co[before, 2] - co[at, 2])
    nx, ny, nz = _unit(co[at, 0] - co[after, 0], co[at, 1] - co[after, 1], co[at, 2] - co[after, 2])
    cx, cy, cz = _unit(py * nz - pz * ny, pz * nx - px * nz, px * ny - py * nx)
    tx, ty, tz = _unit(px + nx, py + ny, pz + nz)
    bx, by, bz = _unit(cy * tz - cz * ty, cz * tx - cx * tz, cx * ty - cy * tx)
    cosine = min(1.0, max(-1.0, px * nx + py * ny + pz * nz))
    return tx, ty, tz, bx, by, bz, cx, cy, cz, np.arccos(cosine)


@numba.njit(nogil=True)
def _remember(rest, smoothed, current, previous, following):
    """What smoothing took from the rest shape, per corner in the frame of the smoothed rest shape, [L, 3]."""
    delta = np.empty((len(current), 3))
    for c in range(len(current)):
        v = current[c]
        tx, ty, tz, bx, by, bz, nx, ny, nz, _ = _frame(smoothed, previous[c], v, following[c])
        x, y, z = rest[v, 0] - smoothed[v, 0], rest[v, 1] - smoothed[v, 1], rest[v, 2] - smoothed[v, 2]
        delta[c, 0] = tx * x + ty * y + tz * z
        delta[c, 1] = bx * x + by * y + bz * z
        delta[c, 2] = nx * x + ny * y + nz * z
    return delta


@numba.njit(nogil=True)
def _restore(smoothed, delta, current, previous, following):
    """Add the remembered detail to the smoothed shape, corners weighted by their angle."""
    total = np.zeros(len(smoothed))
    added = np.zeros_like(smoothed)
    for c in range(len(current)):
        v = current[c]
        tx, ty, tz, bx, by, bz, nx, ny, nz, angle = _frame(smoothed, previous[c], v, following[c])
        x, y, z = delta[c, 0], delta[c, 1], delta[c, 2]
        total[v] += angle
        added[v, 0] += angle * (tx * x + bx * y + nx * z)
        added[v, 1] += angle * (ty * x + by * y + ny * z)
        added[v, 2] += angle * (tz * x + bz * y + nz * z)
    for v in range(len(smoothed)):
        if total[v] > 0.0:
            for k in range(3):
                smoothed[v, k] += added[v, k] / total[v]
