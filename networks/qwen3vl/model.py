"""Qwen3-VL through transformers: loading, inputs, generation."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Frame times go to the processor in whole steps of this many a second.
CLOCK = 1000.0


@dataclass
class Job:
    """One question: PIL `pictures`, or `frames` (RGB arrays and their seconds); areas in pixels."""

    text: str
    system: str | None
    pictures: list[Any]
    frames: tuple[list[Any], list[float]] | None
    min_pixels: int
    max_pixels: int


@dataclass
class Sampling:
    """How the next word is chosen; `temperature` 0 takes the likeliest, `top_k` 0 is no limit."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float


@dataclass
class Reply:
    """An answer; `finish_reason` is "stop" or "length". Seconds are wall time."""

    text: str
    input_tokens: int
    output_tokens: int
    finish_reason: str
    seconds: float
    first_token_seconds: float | None


def load_network(folder: Path, dtype: torch.dtype, device: str, quantize: str, attention: str) -> tuple[Any, Any]:
    """Processor and model from one verified folder. `quantize`: none, nf4 or int8 (bitsandbytes; the vision tower stays as it is).

    Raises ValueError for a model of another kind and for one that lacks weights, which transformers would make up.
    """
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "qwen3_vl":
        raise ValueError(f"config.json says {kind!r}, not 'qwen3_vl'")
    options: dict[str, Any] = {}
    if quantize != "none":
        from transformers import BitsAndBytesConfig

        keep = ["lm_head", "model.visual"]
        if quantize == "nf4":
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=keep
            )
        else:
            options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    network, found = Qwen3VLForConditionalGeneration.from_pretrained(
        folder,
        dtype=dtype,
        device_map=device,
        attn_implementation=attention,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    if found["missing_keys"]:
        raise ValueError(f"{len(found['missing_keys'])} weights are missing, such as {min(found['missing_keys'])}")
    # Without its file transformers makes up a tokenizer that knows no words.
    tokenizer = processor.tokenizer
    known = tokenizer.convert_tokens_to_ids(processor.image_token) == network.config.image_token_id
    if not known or not tokenizer("a fox").input_ids:
        raise ValueError("its tokenizer does not belong to the model, or is missing")
    return processor, network.eval()


def prepare(processor: Any, job: Job) -> dict[str, Any]:
    """The model's inputs for one question, on the CPU, without padding."""
    content: list[dict] = [{"type": "image"} for _ in job.pictures]
    if job.frames is not None:
        content.append({"type": "video"})
    content.append({"type": "text", "text": job.text})
    messages = [{"role": "user", "content": content}]
    if job.system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": job.system}]})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    area = {"shortest_edge": job.min_pixels, "longest_edge": job.max_pixels}
    processor.image_processor.size = area
    options: dict[str, Any] = {}
    if job.pictures:
        options["images"] = job.pictures
    if job.frames is not None:
        import numpy as np
        from transformers.video_utils import VideoMetadata

        frames, times = job.frames
        if len(frames) == 1:
            # The network sees frames in pairs.
            frames, times = frames * 2, times * 2
        stack = np.stack(frames)
        # Each frame carries the time it is shown at, however uneven the frames are.
        metadata = VideoMetadata(
            total_num_frames=len(frames),
            fps=CLOCK,
            frames_indices=[round(t * CLOCK) for t in times],
            width=stack.shape[2],
            height=stack.shape[1],
            duration=times[-1],
        )
        # The whole video's area, as the processor counts it: frames x height x width.
        processor.video_processor.size = {
            "shortest_edge": 4096,
            "longest_edge": max(4096, job.max_pixels * len(frames)),
        }
        options |= {"videos": [stack], "video_metadata": [metadata], "do_sample_frames": False}
    return dict(processor(text=[text], return_tensors="pt", **options))


def generate(
    processor: Any,
    network: Any,
    prepared: list[dict[str, Any]],
    sampling: Sampling,
    seed: int,
    on_text: Callable[[str], None] | None = None,
) -> list[Reply]:
    """Answer prepared questions together, padded on the left. `on_text` (one question only) gets the text as it is made."""
    inputs = {k: v.to(network.device) for k, v in _collate(processor, prepared).items()}
    stream = _Stream(processor.tokenizer, on_text or (lambda text: None)) if len(prepared) == 1 else None
    choice: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        choice = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    # Sampling draws from torch alone; transformers' set_seed would import its trainer for this, seconds of it.
    torch.manual_seed(seed)
    start = time.monotonic()
    with torch.inference_mode():
        output = network.generate(
            **inputs,
            **choice,
            max_new_tokens=sampling.max_tokens,
            repetition_penalty=sampling.repetition_penalty,
            streamer=stream,
        )
    seconds = time.monotonic() - start
    width = inputs["input_ids"].shape[1]
    ends = network.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    replies = []
    for row, question in zip(output[:, width:].tolist(), prepared, strict=True):
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        tokens = row if stop is None else row[: stop + 1]
        replies.append(
            Reply(
                text=processor.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False),
                input_tokens=question["input_ids"].shape[1],
                output_tokens=len(tokens),
                finish_reason="length" if stop is None else "stop",
                seconds=seconds,
                first_token_seconds=stream.first - start if stream and stream.first else None,
            )
        )
    return replies


def _collate(processor: Any, prepared: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One batch: token rows padded on the left, pixels and grids behind one another."""
    width = max(p["input_ids"].shape[1] for p in prepared)
    padding = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
    batch = {}
    for key in dict.fromkeys(key for p in prepared for key in p):
        rows = [p[key] for p in prepared if key in p]
        if key in padding:
            rows = [torch.nn.functional.pad(r, (width - r.shape[1], 0), value=padding[key]) for r in rows]
        batch[key] = torch.cat(rows)
    return batch


class _Stream:
    """Receives tokens from `generate`, in the thread that called it, and hands text on once its characters are whole."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]):
        self.tokenizer = tokenizer
        self.on_text = on_text
        self.tokens: list[int] = []
        self.shown = 0
        self.first: float | None = None
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.first = self.first or time.monotonic()
        self.tokens += value.reshape(-1).tolist()
        self._show(final=False)

    def end(self) -> None:
        self._show(final=True)

    def _show(self, final: bool) -> None:
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        # A character of several bytes may be half there: its replacement character waits for the rest.
        ready = len(text) if final else len(text.rstrip("\ufffd"))
        if ready > self.shown:
            self.on_text(text[self.shown : ready])
            self.shown = ready
        if ready == len(text):
            # Pieces of bytes decode on their own from here; all tokens anew each time would be quadratic work.
            self.tokens.clear()
            self.shown = 0
