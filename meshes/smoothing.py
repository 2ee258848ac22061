"""Corrective smoothing as Blender's modifier of that name defines it, on numpy arrays.

The deformed points are smoothed along the edges; then the detail which smoothing took from the rest shape, remembered per face
corner in a tangent frame, is added back in the frame of the smoothed deformed shape. V points, E edges, L corners, P poses.

Source: the behaviour of Blender 4.5's modifier (manual, "Corrective Smooth"), which the tests compare with numerically.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

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
        self.current = np.asarray(face_vertices, np.int64)
        self.previous, self.next = _corner_neighbours(np.asarray(face_sizes, np.int64), self.current)
        edges, uses = _edges(self.current, self.next)
        each = np.arange(len(edges))
        # Each edge's difference of its two points, [E, V], and sums over a point's edges and corners.
        ends = (np.repeat([1.0, -1.0], len(edges)), (np.tile(each, 2), edges[:, ::-1].ravel("F")))
        self.difference = csr_array(ends, shape=(len(edges), count))
        self.spread = csr_array(self.difference.T)
        self.edge_sum = abs(self.spread)
        self.corner_sum = csr_array(
            (np.ones(len(self.current)), (self.current, np.arange(len(self.current)))), shape=(count, len(self.current))
        )
        self.valence = np.bincount(edges.ravel(), minlength=count).astype(np.float64)[:, None]
        self.strength = np.ones((count, 1)) if mask is None else np.array(mask, np.float64)[:, None]
        if settings.pin_boundary:
            self.strength[np.unique(edges[uses == 1])] = 0.0
        rest = np.asarray(rest, np.float64)
        smoothed = self._smooth(rest)
        lost = (rest - smoothed).take(self.current, axis=0)
        *axes, _ = self._frames(smoothed)
        # What smoothing took from the rest shape, per corner along each axis of its frame in the smoothed rest shape.
        self.detail = [_dot(axis, lost) for axis in axes]

    def _smooth(self, points: np.ndarray) -> np.ndarray:
        """Points [V, 3] smoothed along the edges."""
        s = self.settings
        for _ in range(s.iterations):
            steps = self.difference @ points
            if s.smooth_type == "length-weighted":
                # Twice the factor over (sum of lengths x valence) is what Blender's length weighting amounts to.
                lengths = _length(steps)
                divisor = self.edge_sum @ lengths * self.valence
                steps, gain = steps * lengths, 2.0
            else:
                divisor, gain = self.valence, 1.0  # all the way to the mean of the neighbours
            # `spread` points each edge's step at its first end; moving towards the neighbours is the opposite.
            scale = np.divide(
                -gain * s.factor * self.strength, divisor, out=np.zeros((len(points), 1)), where=divisor > _EPSILON
            )
            points = points + scale * (self.spread @ steps)
        return points

    def _frames(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tangent, bitangent and normal of each corner, [L, 3] each, and the angle it opens (radians), [L, 1]."""
        at = points.take(self.current, axis=0)
        before = _unit(points.take(self.previous, axis=0) - at)
        after = _unit(at - points.take(self.next, axis=0))
        normal, tangent = _unit(_cross(before, after)), _unit(before + after)
        return tangent, _unit(_cross(normal, tangent)), normal, np.arccos(np.clip(_dot(before, after), -1.0, 1.0))

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Smoothed shape of deformed points [V, 3], in the same space as the rest shape."""
        smoothed = self._smooth(np.asarray(points, np.float64))
        if not self.settings.only_smooth:
            *axes, angle = self._frames(smoothed)
            # The detail in each corner's new frame, averaged over a point's corners by their angle.
            total = self.corner_sum @ angle
            detail = sum(axis * amount for axis, amount in zip(axes, self.detail, strict=True))
            added = self.corner_sum @ (angle * detail)
            smoothed = smoothed + np.divide(added, total, out=np.zeros_like(added), where=total > 0)
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


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, 3], [N, 3] -> [N, 1]."""
    return np.einsum("nk,nk->n", a, b)[:, None]


def _length(vectors: np.ndarray) -> np.ndarray:
    """[N, 3] -> [N, 1]."""
    return np.sqrt(_dot(vectors, vectors))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, 3] of length 1; those without a direction become zero."""
    length = _length(vectors)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-35)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`numpy.cross` for [N, 3], at a third of its time."""
    ax, ay, az = a.T
    bx, by, bz = b.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)
