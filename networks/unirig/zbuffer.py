"""First-hit depth images of a mesh inside [-1, 1]^3 from the six axis directions, in double precision.

Pixels are sampled where Mesa's four-sample buffer has its sample 0, which is what the training data of UniRig's voxel
feature was made with: 0.375 pixel widths from the left and 0.875 from the top, not at the centre.
"""

from dataclasses import dataclass

import numpy as np

EYE_DISTANCE = 2.0
NEAR, FAR = 0.05, 4.0  # FAR is also the depth of a pixel that hits nothing
SAMPLE_COLUMN, SAMPLE_ROW = 0.375, 0.875
_PIXELS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class View:
    """An orthographic image: which way columns and rows grow, and on which side the eye is. Axes are (index, sign)."""

    column: tuple[int, int]
    row: tuple[int, int]
    eye: tuple[int, int]


# Cameras see unmirrored: with columns to the right and rows downwards, the eye is where right x up points.
VIEWS = {
    "+x": View(column=(2, +1), row=(1, -1), eye=(0, -1)),
    "-x": View(column=(2, -1), row=(1, -1), eye=(0, +1)),
    "+y": View(column=(0, +1), row=(2, -1), eye=(1, -1)),
    "-y": View(column=(0, +1), row=(2, +1), eye=(1, +1)),
    "+z": View(column=(0, +1), row=(1, -1), eye=(2, +1)),
    "-z": View(column=(0, -1), row=(1, -1), eye=(2, -1)),
}


def depth_image(vertices: np.ndarray, faces: np.ndarray, view: View, size: int) -> np.ndarray:
    """Distance from the eye plane to the nearest triangle, both sides counting: float32 (size, size), row 0 at the top.

    vertices: (V, 3); faces: (F, 3) int. FAR where a pixel hits nothing. Triangles seen edge-on hit nothing.
    """

    def pixels(axis: tuple[int, int], sample: float) -> np.ndarray:
        index, sign = axis
        return (1 + sign * vertices[:, index].astype(np.float64)) * (size / 2) - sample

    eye_axis, eye_side = view.eye
    distance = EYE_DISTANCE - eye_side * vertices[:, eye_axis].astype(np.float64)
    corners = np.stack([pixels(view.column, SAMPLE_COLUMN), pixels(view.row, SAMPLE_ROW), distance], axis=1)[faces]
    image = np.full(size * size, FAR)
    for part in _parts(corners, size):
        pixel, depth = _covered_pixels(part, size)
        np.minimum.at(image, pixel, depth)
    return image.reshape(size, size).astype(np.float32)


def _parts(corners: np.ndarray, size: int):
    """Split the triangles so that the bounding boxes of one part hold a bounded number of pixels."""
    span = np.clip(corners[..., :2].max(1), 0, size - 1) - np.clip(corners[..., :2].min(1), 0, size - 1) + 1
    filled = np.cumsum(span.prod(axis=1)) // _PIXELS_AT_ONCE
    return np.split(corners, np.flatnonzero(np.diff(filled)) + 1)


def _covered_pixels(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels whose sample lies in a triangle (edges included) with the depth there: scan lines, then runs of columns.

    corners: (T, 3, 3) as (column, row, depth), samples being at the integers.
    """
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]
    corners, edge1, edge2, area = (a[area != 0] for a in (corners, edge1, edge2, area))
    column_slope = (edge1[:, 2] * edge2[:, 1] - edge2[:, 2] * edge1[:, 1]) / area
    row_slope = (edge2[:, 2] * edge1[:, 0] - edge1[:, 2] * edge2[:, 0]) / area

    top = np.maximum(np.ceil(corners[..., 1].min(1)), 0).astype(np.int64)
    bottom = np.minimum(np.floor(corners[..., 1].max(1)), size - 1).astype(np.int64)
    triangle, row = _runs(top, bottom)
    left, right = np.full(len(row), np.inf), np.full(len(row), -np.inf)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        start, end = corners[triangle, a], corners[triangle, b]
        rise = end[:, 1] - start[:, 1]
        crosses = (
            (rise != 0) & (np.minimum(start[:, 1], end[:, 1]) <= row) & (row <= np.maximum(start[:, 1], end[:, 1]))
        )
        fraction = (row - start[:, 1]) / np.where(rise == 0, 1, rise)
        column = start[:, 0] + fraction * (end[:, 0] - start[:, 0])
        left = np.where(crosses, np.minimum(left, column), left)
        right = np.where(crosses, np.maximum(right, column), right)
    hit = left <= right
    triangle, row, left, right = triangle[hit], row[hit], left[hit], right[hit]
    first = np.maximum(np.ceil(left), 0).astype(np.int64)
    last = np.minimum(np.floor(right), size - 1).astype(np.int64)
    line, column = _runs(first, last)
    triangle, row = triangle[line], row[line]
    origin = corners[triangle, 0]
    depth = origin[:, 2] + column_slope[triangle] * (column - origin[:, 0]) + row_slope[triangle] * (row - origin[:, 1])
    # Slivers have steep planes: rounding must not carry a depth out of its triangle.
    depth = np.clip(depth, corners[..., 2].min(1)[triangle], corners[..., 2].max(1)[triangle])
    seen = (depth >= NEAR) & (depth <= FAR)
    return (row * size + column)[seen], depth[seen]


def _runs(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expand closed integer ranges: (owner, value) of every integer in them; ranges with last < first are empty."""
    length = np.maximum(last - first + 1, 0)
    owner = np.repeat(np.arange(len(first)), length)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length)
    return owner, first[owner] + offset
