"""From candidate masks to part ids: grouping, splitting, missed foreground, merging and cleaning of edges.

A part map is an int16 array [H, W] of ids 0, 1, 2, ... with `BACKGROUND` (-1) elsewhere. Functions return new arrays.
The morphology follows OpenCV's conventions (anchor of an even kernel, border rules, numbering of components), because
the published part masks were made with it; scipy computes it.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

BACKGROUND = -1
OPAQUE_ABOVE = 10  # alpha (0..255) above which a pixel counts as foreground when a candidate mask is judged
MAX_TRANSPARENT_SHARE = 0.10  # of a candidate mask
SMALL_PIECE_DIVISOR = 5  # a piece may be this much smaller than a whole part
DILATION_SIZE = 4  # pixels, square kernel
UNION_MIN_OVERLAP = 40  # pixels
UNION_MIN_SHARE = 0.03  # of either region
EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


def dilate(mask: np.ndarray, size: int, iterations: int = 1) -> np.ndarray:
    """Dilate a bool [H, W] by a size x size square; outside the image nothing is set.

    OpenCV anchors a kernel at size // 2, so an even one reaches one pixel further to the top left; scipy's filter with
    origin 0 covers the same window [i - size // 2, i + (size - 1) // 2].
    """
    for _ in range(iterations):
        mask = ndimage.maximum_filter(mask, size=size, mode="constant", cval=False, origin=0)
    return mask


def erode(mask: np.ndarray, size: int) -> np.ndarray:
    """Erode a bool [H, W] by a size x size square; outside the image everything counts as set (OpenCV's border)."""
    return ndimage.minimum_filter(mask, size=size, mode="constant", cval=True, origin=0)


def label_components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """8-connected components of a bool [H, W]: labels 1..n (0 elsewhere) and n.

    The numbers follow the scan of 2x2 pixel blocks, rows of blocks first, as OpenCV's labelling does (Grana, Borghesani
    and Cucchiara, "Optimized block-based connected components labeling", 2010).
    """
    labels, count = ndimage.label(mask, structure=EIGHT_CONNECTED)
    if count < 2:
        return labels, count
    height, width = mask.shape
    block = (np.arange(height) // 2)[:, None] * ((width + 1) // 2) + (np.arange(width) // 2)[None, :]
    first_block = ndimage.minimum(block, labels, np.arange(1, count + 1))
    number = np.zeros(count + 1, dtype=labels.dtype)
    number[1 + np.argsort(first_block, kind="stable")] = np.arange(1, count + 1)
    return number[labels], count


def part_count(ids: np.ndarray) -> int:
    """Number of distinct parts, background not counted."""
    found = np.unique(ids)
    return int((found != BACKGROUND).sum())


def split_disconnected(ids: np.ndarray, size_threshold: int) -> np.ndarray:
    """Give every 8-connected component its own id, in the order (old id, component).

    A part in several pieces loses those smaller than size_threshold / 5 to the background; a part in one piece is kept
    whatever its size.
    """
    result = np.full_like(ids, BACKGROUND)
    next_id = 0
    for part in np.unique(ids[ids != BACKGROUND]):
        labels, count = label_components(ids == part)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        for label in range(1, count + 1):
            if count == 1 or sizes[label] >= size_threshold / SMALL_PIECE_DIVISOR:
                result[labels == label] = next_id
                next_id += 1
    return result


def paint_masks(
    masks: Sequence[np.ndarray], areas: Sequence[int], alpha: np.ndarray, size_threshold: int
) -> np.ndarray:
    """Paint candidate masks (bool [H, W] each), largest first, so that smaller parts lie on top of larger ones.

    Skipped: masks smaller than `size_threshold` pixels, and those of which more than 10 % is transparent in `alpha`
    (uint8 [H, W]).
    """
    ids = np.full(alpha.shape, BACKGROUND, dtype=np.int16)
    transparent = alpha <= OPAQUE_ABOVE
    next_id = 0
    for index in sorted(range(len(masks)), key=lambda i: -areas[i]):
        mask = np.asarray(masks[index], dtype=bool)
        if areas[index] < size_threshold:
            continue
        if np.count_nonzero(mask & transparent) > MAX_TRANSPARENT_SHARE * np.count_nonzero(mask):
            continue
        ids[mask] = next_id
        next_id += 1
    return ids


def add_missed_foreground(ids: np.ndarray, alpha: np.ndarray, size_threshold: int) -> np.ndarray:
    """Give foreground (alpha > 0) that no part covers ids of its own.

    Neighbouring regions whose dilations overlap are united first, which saves small pieces from the size test.
    """
    ids = ids.copy()
    covered = ids != BACKGROUND
    missed = (alpha > 0) & ~dilate(covered, DILATION_SIZE)
    if np.count_nonzero(missed) <= size_threshold:
        return ids
    labels, count = label_components(missed)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    regions = [label for label in range(1, count + 1) if sizes[label] >= size_threshold / SMALL_PIECE_DIVISOR]
    root = {label: label for label in regions}

    def find(label: int) -> int:
        while root[label] != label:
            label = root[label]
        return label

    grown = {label: dilate(labels == label, DILATION_SIZE, iterations=2) for label in regions}
    for position, first in enumerate(regions):
        for second in regions[position + 1 :]:
            overlap = grown[first] & grown[second]
            pixels = np.count_nonzero(overlap)
            share = pixels / min(sizes[first], sizes[second])
            if pixels > UNION_MIN_OVERLAP and share > UNION_MIN_SHARE and not (overlap & covered).any():
                low, high = sorted((find(first), find(second)))
                root[high] = low
    next_id = int(ids.max()) + 1
    for label in regions:
        members = [other for other in regions if find(other) == label]
        if sum(int(sizes[member]) for member in members) > size_threshold:
            ids[np.isin(labels, members)] = next_id
            next_id += 1
    return ids


def merge_groups(ids: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Join the parts of each group under the group's first id, then renumber all ids 0, 1, ... in ascending order."""
    target = ids.copy()
    for group in groups:
        target[np.isin(ids, list(group))] = group[0]
    return renumber(target)


def renumber(ids: np.ndarray) -> np.ndarray:
    """Map the ids present to 0, 1, ... in ascending order; the background stays."""
    result = np.full_like(ids, BACKGROUND)
    foreground = ids != BACKGROUND
    result[foreground] = np.unique(ids[foreground], return_inverse=True)[1]
    return result


def group_masks(
    masks: Sequence[np.ndarray],
    areas: Sequence[int],
    alpha: np.ndarray,
    size_threshold: int,
    groups: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """Part map of an image from candidate masks (bool [H, W] each, with their areas in pixels) and its alpha channel.

    `groups` lists ids to join, as numbered by a call without it.
    """
    ids = split_disconnected(paint_masks(masks, areas, alpha, size_threshold), size_threshold)
    ids = add_missed_foreground(ids, alpha, size_threshold)
    if groups:
        ids = merge_groups(ids, groups)
    return split_disconnected(ids, size_threshold)


def regroup(ids: np.ndarray, alpha: np.ndarray, size_threshold: int, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Apply merge groups to a part map made earlier: no splitting, but foreground missed so far is still added."""
    return merge_groups(add_missed_foreground(ids, alpha, size_threshold), groups)


def clean_segment_edges(ids: np.ndarray) -> np.ndarray:
    """Smooth the outline of every part: 3x3 closing, then 3x3 opening, painted in ascending order of ids."""
    result = np.full_like(ids, BACKGROUND)
    for part in np.unique(ids[ids != BACKGROUND]):
        closed = erode(dilate(ids == part, 3), 3)
        result[dilate(erode(closed, 3), 3)] = part
    return result
