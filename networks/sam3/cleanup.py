"""Non-maximum suppression and connected components in plain torch.

transformers takes both from a compiled kernel of the package `kernels`. Where that is missing it leaves out duplicate
removal, hole filling and sprinkle removal without failing; `install` puts these functions in the kernel's place.
"""

import torch
from torch.nn.functional import max_pool2d


def suppress(ious: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression: indices that stay, best score first.

    ious [N, N] and scores [N] are floats. A candidate goes when it overlaps one that stays, and that scores higher (the
    earlier of equals), by more than `threshold`.
    """
    order = scores.argsort(descending=True, stable=True).tolist()
    above = (ious > threshold).cpu()
    kept: list[int] = []
    for index in order:
        if not above[index, kept].any():
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long, device=scores.device)


def components(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8-connected components of masks [N, 1, H, W]: labels (0 is background) and, at each pixel, its component's area.

    Both int32, shape of the input. The labels hook onto their largest neighbour and are then compressed, so that the
    rounds grow with the logarithm of a component's length (Shiloach and Vishkin, 1982).
    """
    count, _, height, width = mask.shape
    inside = mask.reshape(count, -1) > 0
    # Float32, which pooling needs, holds every label of pictures up to 4096 x 4096 exactly.
    numbers = torch.arange(1, height * width + 1, device=mask.device)
    labels = torch.where(inside, numbers, 0)
    while count:
        around = max_pool2d(labels.view(count, 1, height, width).float(), 3, 1, 1).long().view(count, -1)
        around = torch.where(inside, around, 0)
        parent = torch.arange(height * width + 1, device=mask.device).repeat(count, 1)
        parent.scatter_reduce_(1, labels, around, "amax")
        while not torch.equal(further := parent.gather(1, parent), parent):
            parent = further
        merged = parent.gather(1, labels)
        if torch.equal(merged, labels):
            break
        labels = merged
    areas = torch.zeros(count, height * width + 1, dtype=torch.long, device=mask.device)
    areas.scatter_add_(1, labels, inside.long())
    areas = torch.where(inside, areas.gather(1, labels), 0)
    return labels.view_as(mask).int(), areas.view_as(mask).int()


class Kernel:
    """The part of the compiled kernel's interface that transformers calls."""

    @staticmethod
    def generic_nms(ious: torch.Tensor, scores: torch.Tensor, threshold: float, use_iou_matrix: bool) -> torch.Tensor:
        return suppress(ious, scores, threshold)

    @staticmethod
    def cc_2d(mask: torch.Tensor, get_counts: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return components(mask)


def install(wanted: bool = True) -> None:
    """Make transformers' SAM 3 use these functions, or, when not `wanted`, neither these nor a kernel."""
    from transformers.models.sam3_video import modeling_sam3_video

    modeling_sam3_video.cv_utils_kernel = Kernel() if wanted else False
