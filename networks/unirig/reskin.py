"""From the weights of sampled points to the weights of the mesh they were sampled on, and to a few joints a vertex."""

import numpy as np
from scipy.spatial import cKDTree

SAMPLE_METHODS = ("median", "mean")


def from_nearest_samples(
    vertices: np.ndarray,
    sampled_vertices: np.ndarray,
    sampled_skin: np.ndarray,
    *,
    nearest_samples: int = 7,
    sample_method: str = "median",
    alpha: float = 2.0,
) -> np.ndarray:
    """Weights of each vertex from its nearest samples: float (V, J); median rows do not sum to 1 yet.

    "median": per joint the median of the samples. "mean": their mean weighted with exp(-alpha * distance).
    """
    if sample_method not in SAMPLE_METHODS:
        raise ValueError(f"sample_method {sample_method!r} is none of {', '.join(SAMPLE_METHODS)}")
    k = min(nearest_samples, len(sampled_vertices))
    distance, index = cKDTree(sampled_vertices).query(vertices, k=k)
    distance, index = distance.reshape(-1, k), index.reshape(-1, k)
    if sample_method == "median":
        # Joint by joint: (V, k, J) at once would be gigabytes for a dense mesh with many joints.
        return np.stack([np.median(column[index], axis=1) for column in sampled_skin.T], axis=1)
    weight = np.exp(-alpha * (distance - distance[:, :1]))
    weight = (weight / weight.sum(axis=1, keepdims=True)).astype(sampled_skin.dtype)
    return sum(weight[:, i, None] * sampled_skin[index[:, i]] for i in range(k))


def diffuse(skin: np.ndarray, vertices: np.ndarray, faces: np.ndarray, parents: np.ndarray, alpha: float) -> np.ndarray:
    """One step of spreading weights along mesh edges towards vertices that have less: (V, J).

    Works on sums over each joint's subtree, so that weight may move between a joint and its descendants freely. Of all
    edges that end in a vertex only the last in the list counts, as in the original (repeated indices in an assignment).
    """
    sums = skin.copy()
    for joint in range(len(parents) - 1, -1, -1):
        if parents[joint] >= 0:
            sums[:, parents[joint]] += sums[:, joint]
    forward = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([forward, forward[:, ::-1]])
    ends, from_last = np.unique(edges[::-1, 1], return_index=True)
    starts = edges[::-1, 0][from_last]
    closeness = np.exp(-alpha * np.linalg.norm(vertices[starts] - vertices[ends], axis=1)).astype(skin.dtype)[:, None]
    weight = np.where(sums[ends] < sums[starts], closeness, 0)
    sums[ends] = (sums[ends] + weight * sums[starts]) / (1 + weight)
    for joint, parent in enumerate(parents):
        if parent >= 0:
            sums[:, parent] -= sums[:, joint]
    return sums


def normalize_rows(skin: np.ndarray) -> np.ndarray:
    """Divide rows by their sums; a row that sums to zero stays."""
    total = skin.sum(axis=1, keepdims=True)
    return np.divide(skin, total, out=skin.copy(), where=total != 0)


def reskin(
    sampled_vertices: np.ndarray,
    sampled_skin: np.ndarray,
    vertices: np.ndarray,
    faces: np.ndarray,
    parents: np.ndarray,
    *,
    nearest_samples: int = 7,
    iter_steps: int = 1,
    alpha: float = 2.0,
    threshold: float = 0.03,
    sample_method: str = "median",
) -> np.ndarray:
    """Weights of the mesh vertices, float32 (V, J), rows sum to 1.

    sampled_vertices (N, 3) and vertices (V, 3) in the coordinates of the skin stage; sampled_skin (N, J); faces (F, 3)
    int; parents (J,) int, below 0 for a root. Weights below `threshold` go, unless a row has nothing else. A vertex
    that would end up without weights takes those of its nearest sample.
    """
    options = {"nearest_samples": nearest_samples, "sample_method": sample_method, "alpha": alpha}
    skin = from_nearest_samples(vertices, sampled_vertices, sampled_skin.astype(np.float32), **options)
    for _ in range(iter_steps):
        skin = diffuse(skin, vertices, faces, parents, alpha)
    empty = ~(skin.sum(axis=1) > 0)
    if empty.any():
        skin[empty] = sampled_skin[cKDTree(sampled_vertices).query(vertices[empty])[1]]
    skin = normalize_rows(skin)
    small = skin < threshold
    skin[small & ~small.all(axis=1, keepdims=True)] = 0
    return normalize_rows(skin).astype(np.float32)


def top_k(skin: np.ndarray, k: int = 4) -> np.ndarray:
    """Keep the k largest weights of each row, divided by their sum: (V, J), other entries 0."""
    if skin.shape[1] > k:
        kept = np.argsort(-skin, axis=1, kind="stable")[:, :k]
        result = np.zeros_like(skin)
        np.put_along_axis(result, kept, np.take_along_axis(skin, kept, axis=1), axis=1)
    else:
        result = skin
    return normalize_rows(result)
