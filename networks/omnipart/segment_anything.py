"""Every mask in a picture: a grid of point prompts through SAM (Kirillov et al., "Segment Anything", 2023).

The thresholds are the paper's automatic-mask defaults, without crops. SAM itself is transformers' `SamModel`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from networks.omnipart.image_tokens import load_pretrained

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
POINTS_PER_SIDE = 32
POINTS_PER_BATCH = 64
MASKS_PER_UPSCALE = 16  # bounds the memory of the full-size logits
MIN_PREDICTED_IOU = 0.88
MIN_STABILITY = 0.95
STABILITY_OFFSET = 1.0  # logits
MAX_BOX_IOU = 0.7


@dataclass
class CandidateMask:
    """One mask: bool [H, W], its pixels, and the two scores it was kept for."""

    mask: np.ndarray
    area: int
    predicted_iou: float
    stability: float


def load_segmenter(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """SamModel from a local folder in transformers' layout (such as facebook/sam-vit-huge)."""
    from transformers import SamModel

    return load_pretrained(SamModel, folder, device, dtype)


def point_grid(per_side: int) -> np.ndarray:
    """Centres of per_side x per_side cells of the unit square: float64 [n, 2] as (x, y), rows from the top."""
    ticks = (np.arange(per_side) + 0.5) / per_side
    return np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)


def scaled_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Width and height with the longer one brought to `long_side`."""
    scale = long_side / max(width, height)
    return int(width * scale + 0.5), int(height * scale + 0.5)


def prepare_pixels(image: Image.Image, long_side: int) -> tuple[Tensor, tuple[int, int]]:
    """RGB to SAM's input: float32 [1, 3, S, S], normalised, zero padded at right and bottom; and the size inside it."""
    width, height = scaled_size(*image.size, long_side)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    pixels = (pixels - np.array(PIXEL_MEAN, dtype=np.float32)) / np.array(PIXEL_STD, dtype=np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    return F.pad(tensor, (0, long_side - width, 0, long_side - height)), (width, height)


def upscale(logits: Tensor, long_side: int, inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Low-resolution mask logits [n, h, w] to the picture's `size` (width, height): float32 [n, H, W]."""
    full = F.interpolate(logits[None].float(), (long_side, long_side), mode="bilinear", align_corners=False)
    full = full[..., : inner[1], : inner[0]]
    return F.interpolate(full, (size[1], size[0]), mode="bilinear", align_corners=False)[0]


def stability_score(logits: Tensor, offset: float = STABILITY_OFFSET) -> Tensor:
    """Share of the area above -offset that also lies above +offset: [n, H, W] -> float32 [n], NaN where none does."""
    return (logits > offset).sum(dim=(1, 2)) / (logits > -offset).sum(dim=(1, 2))


def mask_boxes(masks: Tensor) -> Tensor:
    """Bounding boxes of bool [n, H, W] as float32 [n, 4] (x0, y0, x1, y1), inclusive; zeros for an empty mask."""
    rows, columns = masks.any(dim=2).int(), masks.any(dim=1).int()
    height, width = rows.shape[1], columns.shape[1]
    x0, y0 = columns.argmax(dim=1), rows.argmax(dim=1)
    x1, y1 = width - 1 - columns.flip(1).argmax(dim=1), height - 1 - rows.flip(1).argmax(dim=1)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * masks.any(dim=2).any(dim=1)[:, None]


def suppress_overlaps(boxes: Tensor, scores: Tensor, max_iou: float) -> Tensor:
    """Greedy non-maximum suppression: indices of the boxes kept, best score first; boxes [n, 4], scores [n]."""
    order = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low, high = torch.maximum(boxes[best, :2], boxes[rest, :2]), torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        # 0 / 0 of two degenerate boxes compares false: both stay.
        order = rest[~((shared / (area[best] + area[rest] - shared)).double() > max_iou)]
    return torch.tensor(kept, dtype=torch.int64)


@torch.inference_mode()
def generate_masks(
    model: nn.Module,
    image: Image.Image,
    points_per_side: int = POINTS_PER_SIDE,
    points_per_batch: int = POINTS_PER_BATCH,
    min_predicted_iou: float = MIN_PREDICTED_IOU,
    min_stability: float = MIN_STABILITY,
    max_box_iou: float = MAX_BOX_IOU,
    progress: Callable[[int, int], None] | None = None,
) -> list[CandidateMask]:
    """All masks of an RGB picture, best predicted IoU first. `progress(points done, points)` after every batch."""
    long_side = model.config.vision_config.image_size
    parameter = next(model.parameters())
    pixels, inner = prepare_pixels(image, long_side)
    embeddings = model.get_image_embeddings(pixels.to(parameter))
    points = torch.from_numpy(point_grid(points_per_side) * inner).float()

    packed, boxes, ious, stabilities = [], [], [], []
    for start in range(0, len(points), points_per_batch):
        batch = points[start : start + points_per_batch].to(parameter)[None, :, None]
        output = model(image_embeddings=embeddings, input_points=batch, multimask_output=True)
        iou = output.iou_scores[0].flatten().float()
        promising = iou > min_predicted_iou
        low, iou = output.pred_masks[0].flatten(0, 1)[promising], iou[promising]
        for first in range(0, len(iou), MASKS_PER_UPSCALE):
            chosen = slice(first, first + MASKS_PER_UPSCALE)
            logits = upscale(low[chosen], long_side, inner, image.size)
            stability = stability_score(logits)
            stable = stability >= min_stability
            masks = logits[stable] > 0
            boxes.append(mask_boxes(masks).cpu())
            ious.append(iou[chosen][stable].cpu())
            stabilities.append(stability[stable].cpu())
            packed.extend(np.packbits(mask) for mask in masks.cpu().numpy())
        if progress:
            progress(min(start + points_per_batch, len(points)), len(points))
    if not packed:
        return []
    scores, stability = torch.cat(ious), torch.cat(stabilities)
    width, height = image.size
    result = []
    for index in suppress_overlaps(torch.cat(boxes), scores, max_box_iou).tolist():
        mask = np.unpackbits(packed[index], count=width * height).reshape(height, width).astype(bool)
        result.append(CandidateMask(mask, int(mask.sum()), float(scores[index]), float(stability[index])))
    return result
