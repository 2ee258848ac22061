"""Matrices and their parts: translation, rotation, scale. Column vectors, quaternions (x, y, z, w)."""

import numpy as np

from meshes.scene import Parts


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] (xyzw, normalised here; a zero quaternion is the identity)."""
    quaternions = np.asarray(quaternions, np.float64)
    norm = np.linalg.norm(quaternions, axis=-1, keepdims=True)
    x, y, z, w = np.moveaxis(np.where(norm > 0, quaternions / np.where(norm > 0, norm, 1), [0, 0, 0, 1]), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions [..., 4] (xyzw, w >= 0) of rotation matrices [..., 3, 3].

    Bar-Itzhack's method, vectorised as "largest of the four candidates" (Shepperd 1978).
    """
    m = np.asarray(rotations, np.float64)
    diagonal = np.moveaxis(np.diagonal(m, axis1=-2, axis2=-1), -1, 0)
    xx, yy, zz = diagonal
    # Four times the products of the quaternion's components, each row a multiple of the quaternion.
    products = np.empty((*m.shape[:-2], 4, 4))
    products[..., 0, 0] = 1 + xx - yy - zz
    products[..., 1, 1] = 1 - xx + yy - zz
    products[..., 2, 2] = 1 - xx - yy + zz
    products[..., 3, 3] = 1 + xx + yy + zz
    for i, j, value in (
        (0, 1, m[..., 0, 1] + m[..., 1, 0]),
        (0, 2, m[..., 0, 2] + m[..., 2, 0]),
        (1, 2, m[..., 1, 2] + m[..., 2, 1]),
        (0, 3, m[..., 2, 1] - m[..., 1, 2]),
        (1, 3, m[..., 0, 2] - m[..., 2, 0]),
        (2, 3, m[..., 1, 0] - m[..., 0, 1]),
    ):
        products[..., i, j] = products[..., j, i] = value
    largest = np.argmax(np.diagonal(products, axis1=-2, axis2=-1), axis=-1)
    rows = np.take_along_axis(products, largest[..., None, None], axis=-2)[..., 0, :]
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.where(rows[..., 3:] < 0, -rows, rows)


def compose(parts: Parts) -> np.ndarray:
    """Matrices [..., 4, 4] = T @ R @ S."""
    translation = np.asarray(parts.translation, np.float64)
    matrix = np.zeros((*translation.shape[:-1], 4, 4))
    matrix[..., :3, :3] = rotation_matrices(parts.rotation) * np.asarray(parts.scale, np.float64)[..., None, :]
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def decompose(matrix: np.ndarray) -> Parts:
    """Parts of matrices [..., 4, 4]. A mirroring shows as a negative scale on x; shear is lost (see `has_shear`)."""
    matrix = np.asarray(matrix, np.float64)
    linear = matrix[..., :3, :3]
    scale = np.linalg.norm(linear, axis=-2)
    mirrored = np.linalg.det(linear) < 0
    scale[..., 0] = np.where(mirrored, -scale[..., 0], scale[..., 0])
    safe = np.where(scale == 0, 1, scale)
    # The nearest rotation (polar factor) of the columns' directions; zero columns are filled in by the SVD.
    u, _, vt = np.linalg.svd(linear / safe[..., None, :])
    flip = np.linalg.det(u @ vt) < 0
    u[..., :, 2] = np.where(flip[..., None], -u[..., :, 2], u[..., :, 2])
    return Parts(matrix[..., :3, 3].copy(), quaternions(u @ vt), scale)


def has_shear(matrix: np.ndarray, tolerance: float = 1e-5) -> bool:
    """Whether translation, rotation and scale cannot give back a matrix [4, 4] (relative to its largest entry)."""
    size = max(float(np.abs(matrix).max()), 1e-30)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.abs(compose(decompose(matrix)) - matrix).max()) > tolerance * size
