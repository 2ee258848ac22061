"""SAM 3's video model: loading, sessions that do not grow with the video, boxes and points beside text."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Sam3VideoModel, Sam3VideoProcessor
from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession, mask_iou

from networks.sam3.cleanup import install
from networks.sam3.seeds import Seed

# What a frame leaves behind for the tracker and later frames never look at (float, 1008 x 1008 and 288 x 288 per object).
_SPENT = ("pred_masks", "high_res_masks")
_MEMORY = ("maskmem_features", "maskmem_pos_enc")
# Frame number from which on a seeded object is known: before any video, so that it never counts as newly detected.
_EVER = -(10**9)


@dataclasses.dataclass
class Tracked:
    """The objects of one frame: ids, prompts, scores (0 to 1), boxes [N, 4] (x0, y0, x1, y1 in pixels, inclusive), masks
    [N, H, W] bool, numpy on the CPU."""

    ids: list[int]
    prompts: list[str]
    scores: list[float]
    boxes: list[list[float]]
    masks: Any


class Sam3Video(Sam3VideoModel):
    """SAM 3 that can also track without a text prompt. The session keeps the latest frame's detections (`detections`)."""

    def run_detection(self, inference_session: Any, vision_embeds: Any) -> dict:
        """Detections by prompt; names of seeded objects are not looked for."""
        every = inference_session.prompts
        texts = {number: text for number, text in every.items() if number in inference_session.prompt_input_ids}
        inference_session.detections = {}
        if texts:
            inference_session.prompts = texts
            try:
                inference_session.detections = super().run_detection(inference_session, vision_embeds)
            finally:
                inference_session.prompts = every
        return inference_session.detections


class LazyFrames:
    """The model's view of a video that is decoded as it goes: frames in ascending order, only the latest one in memory."""

    def __init__(self, pictures: Iterator[Any], count: int, preprocess: Callable[[Any], torch.Tensor]):
        self.pictures, self.count, self.preprocess = pictures, count, preprocess
        self.index, self.latest = -1, None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        if index < self.index:
            raise IndexError(f"frame {index} has gone by; the latest is {self.index}")
        if index > self.index:
            while self.index < index:
                picture = next(self.pictures)
                self.index += 1
            self.latest = self.preprocess(picture)
        return self.latest


def load_network(folder: Path, dtype: torch.dtype, device: str, cleanup: bool = True) -> tuple[Any, Any]:
    """Processor and model from one verified folder; `cleanup` is what `cleanup.install` takes."""
    install(cleanup)
    processor = Sam3VideoProcessor.from_pretrained(folder, local_files_only=True)
    network = Sam3Video.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device)
    return processor, network.eval()


def track(
    network: Sam3Video,
    processor: Any,
    pictures: Iterator[Any],
    count: int,
    size: tuple[int, int],
    prompts: tuple[str, ...],
    seeds: tuple[Seed, ...] = (),
    *,
    chunk: int | None = None,
    max_objects: int | None = None,
    state_device: str | None = None,
    on_frame: Callable[[int], None] = lambda index: None,
) -> Iterator[tuple[Any, Any]]:
    """Yield (session, model output) for every frame, in order, some frames late: the model first wants to see whether a new
    object lasts (`hotstart_delay`).

    pictures: `count` RGB uint8 arrays [H, W, 3] of `size` (height, width), taken one by one. Every `chunk` frames tracking
    begins anew (see `renewed`). `max_objects` are followed at once, seeds included. `on_frame` is told the number of frames
    computed. `state_device` holds the tracker's memory (default: the model's device).
    """
    device, dtype = network.device, network.dtype
    own_limit = network.config.max_num_objects
    limit = max(len(seeds), min(max_objects or own_limit, own_limit))

    def preprocess(picture: Any) -> torch.Tensor:
        values = processor.video_processor(videos=[picture[None]], return_tensors="pt", device=device)
        return values.pixel_values_videos[0][0].to(dtype)

    session = Sam3VideoInferenceSession(
        video_height=size[0],
        video_width=size[1],
        inference_device=device,
        inference_state_device=state_device or device,
        video_storage_device=device,
        dtype=dtype,
    )
    session.processed_frames = LazyFrames(pictures, count, preprocess)
    if prompts:
        processor.add_text_prompt(session, list(prompts))
    waiting: deque[Any] = deque()
    with torch.inference_mode():
        for index in range(count):
            # Detections leave the places free that seeds will take: the model fails when it is above its limit.
            network.max_num_objects = limit - sum(seed.frame >= index for seed in seeds)
            output = network(inference_session=session, frame_idx=index)
            for seed in seeds:
                if seed.frame == index:
                    add_seed(network, session, output, seed)
            session.hotstart_removed_obj_ids.update(output.removed_obj_ids)
            forget(network, session, index)
            on_frame(index + 1)
            waiting.append(output)
            ends = chunk is not None and (index + 1) % chunk == 0
            while waiting and (ends or index + 1 == count or len(waiting) >= max(1, network.hotstart_delay)):
                yield session, waiting.popleft()
            if ends and index + 1 < count:
                session = renewed(network, session, output)


def renewed(network: Sam3Video, session: Any, output: Any) -> Any:
    """A session without a past which goes on, under the same numbers, with the objects seen in the latest frame.

    Each goes on from the detection that overlaps it most (IoU of at least the model's `assoc_iou_thresh`, same prompt, every
    detection once), so that what the tracker has drifted to is left behind. One that the detector does not see goes on from
    its own mask, as a new object: it is removed again if it is not confirmed in time (`hotstart_unmatch_thresh`). Seeded
    objects go on from their own masks, unconditionally.
    """
    index = output.frame_idx
    fresh = Sam3VideoInferenceSession(
        video_height=session.video_height,
        video_width=session.video_width,
        inference_device=session.inference_device,
        inference_state_device=session.inference_state_device,
        video_storage_device=session.video_storage_device,
        dtype=session.dtype,
    )
    for kept in ("processed_frames", "cache", "max_obj_id", "prompts", "prompt_input_ids", "prompt_attention_masks"):
        setattr(fresh, kept, getattr(session, kept))
    fresh.prompt_embeddings = session.prompt_embeddings
    hidden = session.hotstart_removed_obj_ids | set(output.suppressed_obj_ids)
    masks = {n: m > 0 for n, m in output.obj_id_to_mask.items() if n not in hidden and n in session.obj_ids}
    masks = {number: mask for number, mask in masks.items() if mask.any()}
    seen = redetected(masks, session, network.assoc_iou_thresh)
    for number in masks:
        fresh.obj_id_to_prompt_id[number] = session.obj_id_to_prompt_id[number]
        fresh.obj_id_to_score[number] = session.obj_id_to_score[number]
        fresh.trk_keep_alive[number] = session.trk_keep_alive[number]
        born = session.obj_first_frame_idx[number]
        fresh.obj_first_frame_idx[number] = born if number in seen or born == _EVER else index
    if masks:
        # transformers takes the masks' scores, with what is above 0.5 inside.
        scores = torch.cat([seen.get(number, mask) for number, mask in masks.items()]).float()
        network._tracker_add_new_objects(fresh, index, list(masks), scores)
    return fresh


def redetected(masks: dict[int, torch.Tensor], session: Any, threshold: float) -> dict[int, torch.Tensor]:
    """The latest frame's detections (bool [1, H, W]) that are objects known already, by object; best overlaps first.

    masks: of each object, bool [1, H, W]. `threshold`: the least intersection over union.
    """
    pairs = []
    for number, mask in masks.items():
        found = session.detections.get(session.obj_id_to_prompt_id[number])
        if found is not None and len(found["mask"]):
            ious = mask_iou(mask, found["mask"] > 0)[0].tolist()
            pairs += [(iou, number, place, found["mask"]) for place, iou in enumerate(ious) if iou >= threshold]
    seen: dict[int, torch.Tensor] = {}
    taken = set()
    for _, number, place, found in sorted(pairs, key=lambda pair: (-pair[0], *pair[1:3])):
        detection = session.obj_id_to_prompt_id[number], place
        if number not in seen and detection not in taken:
            seen[number] = found[place : place + 1] > 0
            taken.add(detection)
    return seen


def add_seed(network: Sam3Video, session: Any, output: Any, seed: Seed) -> None:
    """Begin an object from points or a box, in the frame that has just been computed."""
    number, height, width = session.max_obj_id + 1, session.video_height, session.video_width
    side = network.config.tracker_config.prompt_encoder_config.image_size
    scale = torch.tensor([side / width, side / height])
    # Not in the model's type: bfloat16 counts in steps of 4 pixels at 1000.
    points = (torch.tensor(seed.points) * scale)[None, None].to(network.device)
    labels = torch.tensor(seed.labels, dtype=torch.int32, device=network.device)[None, None]
    index = session.obj_id_to_idx(number)
    session.point_inputs_per_obj[index][seed.frame] = {"point_coords": points, "point_labels": labels}
    session.obj_with_new_inputs = [number]
    session.obj_id_to_prompt_id[number] = session.add_prompt(seed.name)
    result = network.tracker_model(inference_session=session, frame_idx=seed.frame, reverse=False, run_mem_encoder=True)
    score = result.object_score_logits.flatten()[index].sigmoid().item()
    session.max_obj_id = number
    session.obj_id_to_score[number] = score
    # Seen as older than everything: detections must not remove what the user asked for.
    session.obj_first_frame_idx[number] = _EVER
    session.trk_keep_alive[number] = network.max_trk_keep_alive
    output.obj_id_to_mask[number] = result.pred_masks[index].reshape(1, *result.pred_masks.shape[-2:])
    output.obj_id_to_tracker_score[number] = score
    output.object_ids.append(number)


def forget(network: Sam3Video, session: Any, index: int) -> None:
    """Drop what no frame after `index` looks at, so that the session's size depends on its objects only.

    The tracker reads the memories of the last `num_maskmem` frames, the pointers of the last
    `max_object_pointers_in_encoder`, and of conditioning frames all pointers but only the `max_cond_frame_num` closest
    memories (`Sam3TrackerVideoModel._gather_memory_frame_outputs`, `._get_object_pointers`).
    """
    config = network.config.tracker_config
    window = max(config.num_maskmem, config.max_object_pointers_in_encoder)
    oldest = index + 1 - window
    for number, outputs in session.output_dict_per_obj.items():
        recent, conditioning = outputs["non_cond_frame_outputs"], outputs["cond_frame_outputs"]
        for frame in [frame for frame in recent if frame < oldest]:
            del recent[frame]
        for output in recent.values():
            _drop(output, _SPENT)
        needed = sorted(conditioning)[-config.max_cond_frame_num :] if config.max_cond_frame_num > 0 else conditioning
        for frame, output in conditioning.items():
            _drop(output, _SPENT if frame in needed or frame >= oldest else _SPENT + _MEMORY)
        for inputs in (session.mask_inputs_per_obj, session.point_inputs_per_obj):
            inputs[number].clear()
        tracked = session.frames_tracked_per_obj[number]
        for frame in [frame for frame in tracked if frame < index]:
            del tracked[frame]
    for by_frame in (session.obj_id_to_tracker_score_frame_wise, session.suppressed_obj_ids):
        for frame in [frame for frame in by_frame if frame < index]:
            del by_frame[frame]
    # Only their lengths are compared with these thresholds.
    for lists, length in (
        (session.unmatched_frame_inds, network.hotstart_unmatch_thresh),
        (session.overlap_pair_to_frame_inds, network.hotstart_dup_thresh),
    ):
        for frames in lists.values():
            del frames[: -max(1, length)]


def _drop(output: dict, keys: tuple[str, ...]) -> None:
    for key in keys:
        output.pop(key, None)


def objects(processor: Any, session: Any, output: Any) -> Tracked:
    """The masks of an output at the video's size."""
    found = processor.postprocess_outputs(session, output)
    ids = found["object_ids"].tolist()
    return Tracked(
        ids=ids,
        prompts=[session.prompts[session.obj_id_to_prompt_id[number]] for number in ids],
        scores=[min(1.0, max(0.0, score)) for score in found["scores"].float().tolist()],
        boxes=found["boxes"].float().tolist(),
        masks=found["masks"].cpu().numpy(),
    )


def between(first: Any, second: Any, share: float) -> Any:
    """An output `share` of the way from one tracked frame to the next: mask scores in between where both have the object."""
    masks = {
        number: mask + share * (second.obj_id_to_mask[number] - mask) if number in second.obj_id_to_mask else mask
        for number, mask in first.obj_id_to_mask.items()
    }
    return dataclasses.replace(first, obj_id_to_mask=masks)
