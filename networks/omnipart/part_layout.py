"""Which voxels belong to which part: boxes over an occupied grid become one long list of coordinates with slices."""

from dataclasses import dataclass

import numpy as np

from networks.omnipart.bbox_tokens import squeeze

BOX_PADDING = 2  # voxels added on every side of a box


@dataclass
class PartLayout:
    """`coords`: int32 [M, 4] rows (batch = 0, x, y, z); `slices`: rows of the whole object, then of each part.

    `boxes`: for each part the index of its box. A voxel may belong to several parts.
    """

    coords: np.ndarray
    slices: list[slice]
    boxes: list[int]


def voxel_points(voxels: np.ndarray, resolution: int = 64) -> np.ndarray:
    """Centres of voxels (int [N, 3]) of a grid over [-0.5, 0.5]^3, float32 [N, 3]."""
    return (voxels.astype(np.float32) + 0.5) / resolution - 0.5


def point_voxels(points: np.ndarray, resolution: int = 64) -> np.ndarray:
    """Voxel of each point, int64 [N, 3]: the inverse of `voxel_points`."""
    index = np.floor((np.asarray(points, dtype=np.float32) + 0.5) * resolution).astype(np.int64)
    return np.clip(index, 0, resolution - 1)


def box_voxels(boxes: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel (int64 [K, 3] each, inclusive, not padded) of float boxes [K, 2, 3] in -0.5..0.5."""
    corners = squeeze(np.asarray(boxes, dtype=np.float64) + 0.5, bins) * bins
    return np.floor(corners[:, 0]).astype(np.int64), np.ceil(corners[:, 1]).astype(np.int64)


def lay_out_parts(
    voxels: np.ndarray,
    boxes: np.ndarray,
    bins: int = 64,
    padding: int = BOX_PADDING,
    published_leftovers: bool = False,
) -> PartLayout:
    """Hand out the voxels (int32 [N, 4], batch column first) of an object to its boxes (float [K, 2, 3]).

    Each box takes the voxels inside it after padding; a box without any is left out. A voxel in no box goes to the box
    one of whose faces' planes is nearest (unpadded; the first wins). ValueError when no box holds a voxel.

    `published_leftovers` repeats a slip of the published code for comparison with it: behind a box without voxels,
    left-over voxels of box i go to the i-th box that was kept.
    """
    positions = voxels[:, 1:].astype(np.int64)
    low, high = box_voxels(boxes, bins)
    first = np.clip(low - padding, 0, bins - 1)
    last = np.clip(high + padding, 0, bins - 1)
    inside = ((positions[None] >= first[:, None]) & (positions[None] <= last[:, None])).all(axis=2)
    kept = np.flatnonzero(inside.any(axis=1))
    if kept.size == 0:
        raise ValueError("no box contains an occupied voxel")
    left_over = np.flatnonzero(~inside.any(axis=0))
    candidates = np.arange(len(low)) if published_leftovers else kept
    nearest = candidates[plane_distance(positions[left_over], low[candidates], high[candidates]).argmin(axis=1)]

    rows = [voxels]
    for number, box in enumerate(kept):
        owner = number if published_leftovers else box
        rows.append(np.concatenate([voxels[inside[box]], voxels[left_over[nearest == owner]]]))
    ends = np.cumsum([len(part) for part in rows])
    starts = np.concatenate([[0], ends[:-1]])
    coords = np.concatenate(rows).astype(np.int32)
    coords[:, 0] = 0
    slices = [slice(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]
    return PartLayout(coords=coords, slices=slices, boxes=[int(box) for box in kept])


def plane_distance(positions: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Smallest |p - face plane| over the six faces of each box: int [N, 3], [K, 3], [K, 3] -> [N, K]."""
    to_low = np.abs(positions[:, None] - low[None]).min(axis=2)
    to_high = np.abs(positions[:, None] - high[None]).min(axis=2)
    return np.minimum(to_low, to_high)
