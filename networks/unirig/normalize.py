"""Fitting a mesh into [-1, 1]^3, and back again exactly."""

import numpy as np

from shared_utils.errors import InvalidInputError


def fit_matrix(points: np.ndarray, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """float32 (4, 4) on column vectors: the centre of the bounds goes to the middle of [low, high], the longest axis
    fills it.

    points: float (N, 3). For the skeleton these are the mesh vertices, for the skin vertices and joints together.
    Raises InvalidInputError when the points have no extent.
    """
    lower, upper = points.min(axis=0), points.max(axis=0)
    extent = float((upper - lower).max())
    if not extent > 0 or not np.isfinite(extent):
        raise InvalidInputError(f"the points have no usable extent: {extent}")
    to_centre, scale, bias = (np.eye(4, dtype=np.float32) for _ in range(3))
    to_centre[:3, 3] = -(upper + lower) / 2
    scale[:3, :3] *= np.float32((high - low) / extent)
    bias[:3, 3] = (high + low) / 2
    return bias @ scale @ to_centre


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a (4, 4) affine matrix to points (N, 3); the result has the dtype of the points."""
    return (points @ matrix[:3, :3].T + matrix[:3, 3]).astype(points.dtype)


def inverse_transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Undo `transform(matrix, …)`, computed in float64; the result has the dtype of the points."""
    matrix = matrix.astype(np.float64)
    return np.linalg.solve(matrix[:3, :3], (points - matrix[:3, 3]).T).T.astype(points.dtype)


def connect_tails(joints: np.ndarray, tails: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """(J, 3) tails, where each bone with exactly one child ends at the head of that child."""
    connected = tails.copy()
    children = np.bincount(parents[parents >= 0], minlength=len(parents))
    for child, parent in enumerate(parents):
        if parent >= 0 and children[parent] == 1:
            connected[parent] = joints[child]
    return connected
