"""Skin weights as a matrix [V points, B bones] and as compressed rows (offsets, joints, weights), as `meshes.scene.Skin` has them."""

import numpy as np


def dense_rows(offsets: np.ndarray, joints: np.ndarray, weights: np.ndarray, bones: int) -> np.ndarray:
    """Compressed rows as a matrix [V, B]."""
    dense = np.zeros((len(offsets) - 1, bones))
    np.add.at(dense, (np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), joints), weights)
    return dense


def compressed_rows(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix [V, B] as compressed rows (offsets, joints, weights), the largest weight of a row first."""
    order = np.argsort(-dense, axis=1, kind="stable")
    counts = (dense > 0).sum(1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    keep = np.arange(dense.shape[1]) < counts[:, None]
    joints = order[keep].astype(np.int32)
    return offsets, joints, np.take_along_axis(dense, order, 1)[keep]


def limit(dense: np.ndarray, influences: int, prune: float = 0.0) -> np.ndarray:
    """The largest `influences` weights of each row (0: all) that are at least `prune`, made to sum to 1; ties go to the first.

    A row of zeros stays one. The largest weight is never pruned.
    """
    kept = np.where(dense > 0, dense, 0.0)
    if influences and influences < dense.shape[1]:
        drop = np.argsort(-kept, axis=1, kind="stable")[:, influences:]
        np.put_along_axis(kept, drop, 0.0, 1)
    largest = kept.max(axis=1, keepdims=True)
    kept[(kept < prune) & (kept < largest)] = 0.0
    total = kept.sum(axis=1, keepdims=True)
    return np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)
