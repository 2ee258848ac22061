"""From the squared picture to its part map, and from a part map to one with parts merged."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from torch import nn

from networks.omnipart.images import over_white
from networks.omnipart.masks import clean_segment_edges, group_masks, regroup, renumber
from networks.omnipart.segment_anything import generate_masks


def find_parts(
    segmenter: nn.Module,
    image: Image.Image,
    size_threshold: int,
    groups: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **mask_options,
) -> np.ndarray:
    """Part map int16 [H, W] (-1 = background) of an RGBA picture; every part is one connected region.

    `size_threshold`: smallest part in pixels. `groups`: ids to join, as a call without it numbers them; what is joined
    and does not touch is split again. `mask_options` go to `generate_masks`. All -1 when nothing was found.
    """
    candidates = generate_masks(segmenter, over_white(image), progress=progress, **mask_options)
    masks, areas = [c.mask for c in candidates], [c.area for c in candidates]
    ids = group_masks(masks, areas, np.asarray(image)[..., 3], size_threshold, groups)
    return renumber(clean_segment_edges(ids))


def merge_parts(ids: np.ndarray, alpha: np.ndarray, size_threshold: int, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Part map with the listed ids joined. Joined parts stay one even where they do not touch.

    `alpha` uint8 [H, W]: foreground that no part covers becomes a part of its own when larger than `size_threshold`.
    """
    return renumber(clean_segment_edges(regroup(ids, alpha, size_threshold, groups)))
