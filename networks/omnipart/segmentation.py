"""The segmented picture: foreground, numbered parts, merge groups, and the folder in which they wait for the next run.

Merge groups always name the numbers of the first segmentation, which is kept: merging again starts from it, so every merge
can be changed or taken back.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import nn

from networks.omnipart.images import IMAGE_SIZE, resize_and_pad, resize_and_pad_ids
from networks.omnipart.mask_files import MAX_PARTS, check_merge_groups, draw_parts, write_mask
from networks.omnipart.masks import BACKGROUND, dilate, part_count, renumber
from networks.omnipart.parts import merge_parts
from networks.omnipart.segment_anything import prepare_pixels, upscale
from shared_utils.errors import InvalidInputError, MissingInputError, PostConditionError

SCHEMA = "generation-scripts/omnipart-state/1"
STATE, PICTURE, ORIGINAL = "segmentation_state.json", "image_processed.png", "mask_original.npy"
MASK, NUMBERED, MERGED = "mask.exr", "mask_segments.png", "mask_merged.png"
PLAIN_TOLERANCE = 20  # of 255, in each channel: what still counts as the background's colour (JPEG noise)
PLAIN_SHARE = 0.9  # of the picture's border that must have that colour
WORKING_SIDE = 2048  # pixels; larger pictures are shrunk before their background is looked for


@dataclass
class Segmentation:
    """`picture`: RGBA 518 x 518; `original`: part map int16 [518, 518] (-1 = background) before any merge; `groups`: ids of
    `original` to join; `size_threshold`: smallest part, pixels; `limit`: at most so many parts."""

    picture: Image.Image
    original: np.ndarray
    size_threshold: int
    groups: list[list[int]] = field(default_factory=list)
    limit: int = MAX_PARTS

    @property
    def alpha(self) -> np.ndarray:
        return np.asarray(self.picture)[..., 3]

    def ids(self) -> np.ndarray:
        """The part map to work with, groups joined: int16 [518, 518]."""
        ids = self.original
        if self.groups:
            ids = merge_parts(ids, self.alpha, self.size_threshold, self.groups)
        return limit_parts(ids, self.limit)

    def numbered(self, ids: np.ndarray) -> np.ndarray:
        """A merged part map with each part under its original number (that of a group's first), for people to read."""
        first = {number: group[0] for group in self.groups for number in group}
        result, free = np.full_like(ids, BACKGROUND), int(self.original.max()) + 1
        for part in np.unique(ids[ids != BACKGROUND]):
            below = self.original[ids == part]
            known = np.bincount(below[below != BACKGROUND])
            if known.size:
                number = first.get(int(known.argmax()), int(known.argmax()))
            else:
                number, free = free, free + 1
            result[ids == part] = number
        return result


# --- foreground


def with_foreground(
    image: Image.Image, background: str, segment_foreground: Callable[[Image.Image], np.ndarray]
) -> tuple[Image.Image, str]:
    """The picture as RGBA whose alpha is the object, and how it was found: "alpha", "kept", "plain colour" or "segmenter".

    `background`: "auto" takes the picture's own transparency, and else removes the background; "keep" takes the picture as
    it is; "remove" looks for the background in any case. `segment_foreground` (RGB picture -> bool [H, W]) is asked only
    where the background is not of one colour. Raises PostConditionError when nothing is left.
    """
    transparent = image.mode == "RGBA" and image.getchannel("A").getextrema()[0] < 255
    if background == "keep" or (transparent and background == "auto"):
        return image.convert("RGBA"), "alpha" if transparent else "kept"
    if transparent:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    foreground, how = plain_foreground(np.asarray(image)), "plain colour"
    if foreground is None:
        foreground, how = segment_foreground(image), "segmenter"
    if not foreground.any():
        raise PostConditionError("the background's removal left nothing of the picture (--background keep leaves it)")
    result = image.convert("RGBA")
    result.putalpha(Image.fromarray(foreground.astype(np.uint8) * 255))
    return result, how


def plain_foreground(rgb: np.ndarray) -> np.ndarray | None:
    """bool [H, W]: all but the region of the border's colour that touches the border; None where the border has no one
    colour. uint8 [H, W, 3]."""
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    alike = (np.abs(rgb.astype(np.int16) - np.median(border, axis=0)) <= PLAIN_TOLERANCE).all(axis=2)
    edge = np.concatenate([alike[0], alike[-1], alike[:, 0], alike[:, -1]])
    if edge.mean() < PLAIN_SHARE:
        return None
    labels, _ = ndimage.label(alike)
    outer = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return ~np.isin(labels, outer[outer > 0])


@torch.inference_mode()
def segment_foreground(model: nn.Module, image: Image.Image) -> np.ndarray:
    """The main object as SAM sees it, asked with a box around the picture and a point in its middle: bool [H, W]."""
    long_side = model.config.vision_config.image_size
    parameter = next(model.parameters())
    pixels, inner = prepare_pixels(image, long_side)
    width, height = inner
    boxes = torch.tensor([[[0.02 * width, 0.02 * height, 0.98 * width, 0.98 * height]]]).to(parameter)
    points = torch.tensor([[[[width / 2, height / 2]]]]).to(parameter)
    output = model(pixel_values=pixels.to(parameter), input_points=points, input_boxes=boxes, multimask_output=True)
    best = int(output.iou_scores[0, 0].argmax())
    logits = upscale(output.pred_masks[0, 0, best][None], long_side, inner, image.size)
    return (logits[0] > 0).cpu().numpy()


# --- a mask from elsewhere, and fewer parts


def from_mask(image: Image.Image, ids: np.ndarray, background: str) -> tuple[Image.Image, np.ndarray]:
    """Squared picture and part map of a picture and a part map of its size, or of the squared picture's.

    A picture without transparency takes the mask's parts as its foreground, unless `background` is "keep". Raises
    InvalidInputError for a map of another size.
    """
    transparent = image.mode == "RGBA" and image.getchannel("A").getextrema()[0] < 255
    by_mask = background != "keep" and not transparent
    image = image.convert("RGBA")
    if ids.shape == (image.height, image.width):
        if by_mask:
            image.putalpha(Image.fromarray((ids != BACKGROUND).astype(np.uint8) * 255))
        return resize_and_pad(image), resize_and_pad_ids(ids)
    if ids.shape != (IMAGE_SIZE, IMAGE_SIZE):
        raise InvalidInputError(
            f"the mask has {ids.shape[1]} x {ids.shape[0]} pixels; it must be as large as the picture"
            f" ({image.width} x {image.height}), or {IMAGE_SIZE} x {IMAGE_SIZE} as written by --segment-only"
        )
    picture = resize_and_pad(image)
    if by_mask:
        picture.putalpha(Image.fromarray((ids != BACKGROUND).astype(np.uint8) * 255))
    return picture, ids


def limit_parts(ids: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` parts: the smallest goes to the neighbour it has the longest border with (or, alone, to the part
    nearest to it), again and again."""
    ids = ids.copy()
    while part_count(ids) > limit:
        sizes = np.bincount(ids[ids != BACKGROUND])
        smallest = int(np.where(sizes > 0, sizes, sizes.sum() + 1).argmin())
        region = ids == smallest
        others = (ids != BACKGROUND) & ~region
        around = ids[dilate(region, 3) & others]
        if around.size == 0:
            distance = np.where(others, ndimage.distance_transform_edt(~region), np.inf)
            around = ids.ravel()[[int(distance.argmin())]]
        ids[region] = np.bincount(around).argmax()
    return renumber(ids)


# --- the folder between runs


def write_state(segmentation: Segmentation, place: Callable[[str], Path]) -> None:
    """Write everything a later run needs, each file at `place(name)`: the picture, the parts as first found, the mask as it
    is now (EXR, PNG, NPY), and the numbered pictures."""
    ids = segmentation.ids()
    segmentation.picture.save(place(PICTURE), format="PNG")
    with place(ORIGINAL).open("wb") as file:
        np.save(file, segmentation.original.astype(np.int32) + 1)
    for name in (MASK, "mask.png", "mask.npy"):
        write_mask(place(name), ids)
    draw_parts(segmentation.picture, segmentation.original).save(place(NUMBERED), format="PNG")
    draw_parts(segmentation.picture, segmentation.numbered(ids)).save(place(MERGED), format="PNG")
    state = {
        "schema": SCHEMA,
        "size_threshold": segmentation.size_threshold,
        "original_parts": part_count(segmentation.original),
        "merge_groups": segmentation.groups,
        "parts": part_count(ids),
    }
    place(STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def read_state(folder: Path) -> Segmentation:
    """What `write_state` left in a folder (or beside the state file itself).

    Raises MissingInputError where nothing was left, InvalidInputError for files that are damaged or contradict each other.
    """
    folder = folder.parent if folder.name == STATE else folder
    for name in (STATE, PICTURE, ORIGINAL):
        if not (folder / name).is_file():
            raise MissingInputError(f"{folder}: no {name} in it (--segment-only makes such a folder)")
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["schema"] != SCHEMA:
            raise ValueError(f"schema {state['schema']!r}, known is {SCHEMA!r}")
        threshold = int(state["size_threshold"])
        groups = [[int(number) for number in group] for group in state["merge_groups"]]
        with Image.open(folder / PICTURE, formats=["PNG"]) as image:
            picture = image.convert("RGBA")
        values = np.load(folder / ORIGINAL, allow_pickle=False)
        if picture.size != (IMAGE_SIZE, IMAGE_SIZE) or values.shape != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"picture and mask must be {IMAGE_SIZE} x {IMAGE_SIZE}")
        if values.dtype.kind not in "iu" or values.min() < 0 or not values.any():
            raise ValueError(f"{ORIGINAL} holds no part numbers")
    except (OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError) as error:
        raise InvalidInputError(f"{folder}: its state cannot be read: {error}") from error
    segmentation = Segmentation(picture, (values - 1).astype(np.int16), threshold, groups)
    check_merge_groups(groups, segmentation.original)
    return segmentation
