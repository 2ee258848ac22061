"""How the original tool finds a model back in its mesh: fit the bounds, then try every axis permutation and mirroring.

Our own pipeline inverts the matrices it normalised with, which is exact; this is for models whose transform is unknown.
The fit is off when joints stood out of the mesh bounds, and mirrored matches are accepted for symmetric characters.
"""

from itertools import permutations, product

import numpy as np
from scipy.spatial import cKDTree


def fit_to_bounds(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Points of [-1, 1]^3 into the bounds of target: times half the longest side, plus the centre; float64 (N, 3)."""
    low, high = target.min(axis=0), target.max(axis=0)
    return points.astype(np.float64) * ((high - low).max() / 2) + (low + high) / 2


def find_orientation(source: np.ndarray, target: np.ndarray, num: int = 16384, seed: int = 0) -> np.ndarray:
    """The signed axis permutation R, (3, 3) float64, for which `source @ R.T` is nearest to target.

    Nearest: the smallest mean distance from target points to the transformed source points, of 48 candidates (mirrors
    included); the first of equals. Clouds larger than `num` are thinned at random.
    """
    random = np.random.default_rng(seed)
    source, target = (
        cloud if len(cloud) <= num else cloud[random.choice(len(cloud), num, replace=False)]
        for cloud in (source, target)
    )
    tree = cKDTree(source)  # turning the target back is cheaper than 48 trees
    best, smallest = np.eye(3), np.inf
    for axes in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            rotation = np.zeros((3, 3))
            rotation[range(3), axes] = signs
            distance = tree.query(target @ rotation)[0].mean()
            if distance < smallest:
                best, smallest = rotation, distance
    return best


def apply_to_bones(bones: np.ndarray, function) -> np.ndarray:
    """Apply a function of (N, 3) points to both ends of bones (J, 6) = heads and tails."""
    return np.concatenate([function(bones[:, :3]), function(bones[:, 3:])], axis=1)
