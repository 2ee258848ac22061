# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "av>=15.0",
#     "cyclopts>=4.0",
#     "filelock>=3.16",
#     "huggingface-hub>=1.5",
#     "numpy>=2.0",
#     "opentelemetry-exporter-otlp-proto-http>=1.40",
#     "opentelemetry-sdk>=1.40",
#     "pillow>=11.0",
#     "psutil>=6.0",
#     "safetensors>=0.5",
#     "torch>=2.10",
#     "torchvision>=0.25",
#     "tqdm>=4.67",
#     "transformers>=5.3",
# ]
#
# [[tool.uv.index]]
# name = "pytorch-cu130"
# url = "https://download.pytorch.org/whl/cu130"
# explicit = true
#
# [tool.uv.sources]
# # PyPI's torch for Windows computes on the CPU only.
# torch = { index = "pytorch-cu130", marker = "sys_platform == 'win32'" }
# torchvision = { index = "pytorch-cu130", marker = "sys_platform == 'win32'" }
# ///
"""Find and follow things in videos with SAM 3: say what to look for, or point at it, and get masks for every frame.

Works on videos, on folders of pictures and on single pictures. The weights, facebook/sam3, are gated: accept their licence
at https://huggingface.co/facebook/sam3 and set HF_TOKEN.

Examples:
  uv run sam3_video_segmentation.py clip.mp4 --prompt person
  uv run sam3_video_segmentation.py clip.mp4 --prompt "red car" --prompt dog --masks both --return-zip
  uv run sam3_video_segmentation.py clip.mp4 --box 0:120,80,340,400 --mask-only --background "#00ff00"
  uv run sam3_video_segmentation.py photo.jpg --prompt cat --mask-video
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

try:
    from networks.sam3.seeds import box_rule, check_inside, check_points, point_rule, seeds_of
    from shared_utils.args import item_input, option
    from shared_utils.errors import PostConditionError, UsageError
    from shared_utils.hugging_face import Weights
    from shared_utils.libraries import quiet_libraries
    from shared_utils.options import ModelOptions
    from shared_utils.output_dir import ItemOutput
    from shared_utils.run import Result, Run, Script, Smoke, run_script
except ModuleNotFoundError as error:
    folder = (error.name or "").partition(".")[0]
    if folder not in ("shared_utils", "networks", "meshes"):
        raise
    print(
        f"error: {__file__} needs the folder {folder}/ beside it: copy the whole repository,"
        " or make one file of the script with `uv run bundle.py`",
        file=sys.stderr,
    )
    raise SystemExit(78) from None

WEIGHTS = {
    "model": Weights(
        "facebook/sam3",
        # Not the checkpoint in the original layout (sam3.pt) that lies beside.
        allow_patterns=("*.json", "model*.safetensors", "*.txt"),
        licence="SAM License",
        size_gb=3.4,
        memory_gb=4.0,
        gated=True,
    )
}

PROMPT_TOKENS = 32  # what the text encoder takes, start and end included (model card of facebook/sam3)
STATE_BYTES = 0.7e6  # memory of the tracker per object and frame it remembers, in bfloat16
REMEMBERED = 20  # frames per object


def _colour_rule(value: str) -> str | None:
    from PIL import ImageColor

    if value in ("auto", "transparent"):
        return None
    try:
        ImageColor.getrgb(value)
    except ValueError:
        return "must be a colour name or #rrggbb"
    return None


_FIND = {"group": "What to find"}
_OUTPUT = {"group": "Results"}
_RANGE = {"group": "Range"}


@dataclasses.dataclass(kw_only=True)
class Config(ModelOptions):
    input: Path | None = item_input("A video, a picture, or a folder of pictures that are the frames of a video.")
    prompt: tuple[str, ...] = option((), "What to find, in a few words; may be repeated.", **_FIND)
    box: tuple[str, ...] = option(
        (),
        "An object to follow, as FRAME:x0,y0,x1,y1 (frames from 0, pixels from the upper left); may be repeated.",
        check=box_rule,
        **_FIND,
    )
    point: tuple[str, ...] = option(
        (),
        "A point on an object to follow, as FRAME:x,y, or FRAME:x,y,- beside it; points of one frame are one object.",
        check=point_rule,
        **_FIND,
    )
    max_objects: int | None = option(
        None, "Follow at most so many objects at a time.", minimum=1, maximum=10000, **_FIND
    )
    chunk: int | None = option(
        None,
        "Begin tracking anew after every N frames looked at, from what is detected there: against drift in long videos."
        " Objects keep their numbers; one that is out of sight then gets a new one.",
        minimum=1,
        **_FIND,
    )
    cleanup: bool = option(True, "Remove duplicate detections, small holes and specks.", **_FIND, per_item=False)
    start: float = option(0.0, "Begin here, seconds.", minimum=0.0, **_RANGE)
    end: float | None = option(None, "End before this time, seconds.", minimum=0.0, **_RANGE)
    every: int = option(1, "Track on every N-th frame only.", minimum=1, maximum=1000, **_RANGE)
    between: Literal["hold", "interpolate"] = option(
        "hold", "With --every, masks of the frames in between: those before, or blended.", **_RANGE
    )
    fps: float = option(24.0, "Frames a second of a folder of pictures.", minimum=0.01, maximum=1000, **_RANGE)
    max_pixels: int = option(36_000_000, "Frames with more pixels are refused.", minimum=1, per_item=False, **_RANGE)
    mask_color: tuple[str, ...] = option(
        (),
        "Colour of the objects: a name, #rrggbb or auto; may be repeated: one per prompt, box and point, or with a single"
        " one of them, one per object.",
        check=_colour_rule,
        **_OUTPUT,
    )
    mask_opacity: float = option(0.5, "How much of the colour covers an object.", minimum=0.0, maximum=1.0, **_OUTPUT)
    outline: bool = option(True, "Outline the objects.", **_OUTPUT)
    mask_only: bool = option(False, "Show the objects alone, on --background.", **_OUTPUT)
    background: str = option("white", "With --mask-only: a colour, or transparent.", check=_colour_rule, **_OUTPUT)
    alpha: Literal["webm", "prores", "png"] = option(
        "webm", "With --background transparent: WebM (VP9), MOV (ProRes 4444) or a folder of PNG files.", **_OUTPUT
    )
    mask_video: bool = option(False, "Also a video of all masks, white on black.", **_OUTPUT)
    masks: Literal["png", "rle", "both"] = option(
        "both", "Masks as masks/ID/FRAME.png, as COCO run lengths in tracks.json, or both.", **_OUTPUT
    )
    return_zip: bool = option(False, "Also one archive of the results.", **_OUTPUT)
    crf: int = option(18, "Quality of H.264, 0 (lossless) to 51.", minimum=0, maximum=51, **_OUTPUT)
    fail_if_empty: bool = option(False, "End with code 70 when no object is found.", **_OUTPUT)

    def check(self) -> None:
        if self.end is not None and self.end <= self.start:
            raise UsageError(f"--end {self.end:g}: must be after --start {self.start:g}")
        if self.background != "white" and not self.mask_only:
            raise UsageError(f"--background {self.background}: only with --mask-only")
        if self.background == "auto":
            raise UsageError("--background auto: must be a colour or transparent")
        if self.alpha != "webm" and self.background != "transparent":
            raise UsageError(f"--alpha {self.alpha}: only with --background transparent")
        if "transparent" in self.mask_color:
            raise UsageError("--mask-color transparent: must be a colour (--mask-opacity 0 shows the outline only)")
        for prompt in self.prompt:
            if not prompt.strip():
                raise UsageError("--prompt: is empty")
            # Every word is at least one token; two more mark start and end.
            if len(prompt.split()) > PROMPT_TOKENS - 2:
                raise UsageError(
                    f"--prompt: {len(prompt.split())} words are more than the {PROMPT_TOKENS} tokens that the text encoder takes"
                )
        check_points(self.point)
        pointed = len(self.box) + len({point.partition(":")[0] for point in self.point})
        if self.max_objects is not None and self.max_objects < pointed:
            raise UsageError(f"--max-objects {self.max_objects}: {pointed} objects are given by --box and --point")


def check(item: Config) -> None:
    """Look at an item's input before anything is loaded."""
    from networks.sam3.source import first_size, images_in

    if not item.prompt and not item.box and not item.point:
        raise UsageError("nothing to find: give --prompt, --box or --point")
    images = images_in(item.input)
    if item.output is not None:
        fitting = main_name(item, still=images == (item.input,))
        allowed = (Path(fitting).suffix,) if Path(fitting).suffix != ".mp4" else (".mp4", ".mkv", ".mov")
        if item.output.suffix.lower() not in allowed:
            raise UsageError(f"--output {item.output}: must end in {' or '.join(s or 'no suffix' for s in allowed)}")
    check_inside(item.box, item.point, *first_size(item.input, item.max_pixels))


def main_name(item: Config, still: bool) -> str:
    """Name of the main result."""
    stem = "mask_only" if item.mask_only else "overlay"
    if item.mask_only and item.background == "transparent":
        return stem + (".png" if still else {"webm": ".webm", "prores": ".mov", "png": ""}[item.alpha])
    return stem + (".png" if still else ".mp4")


@dataclasses.dataclass
class Model:
    """What `generate` works with."""

    run: Run
    processor: Any
    network: Any


def load(config: Config, run: Run) -> Model:
    snapshot = run.weights()
    with run.phase("import"):
        quiet_libraries("transformers", verbose=config.verbose)
        from networks.sam3.model import load_network
    with run.phase("load"):
        check_prompts(run.items, tokenizer(snapshot.path))
        dtype = run.dtype()
        name = "smoke-test" if run.smoke else snapshot.repo
        run.info(f"model {name} at {snapshot.commit or 'local'}, {str(dtype).removeprefix('torch.')}")
        processor, network = load_network(snapshot.path, dtype, run.device, config.cleanup)
    return Model(run, processor, network)


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def check_prompts(items: list[Config], tokens: Any) -> None:
    """Raises `UsageError` when every item has a prompt that the text encoder does not take: it would have to be cut."""
    failures = [failure for item in items if (failure := too_long(item, tokens))]
    if len(failures) == len(items):
        raise UsageError(failures[0])


def too_long(item: Config, tokens: Any) -> str | None:
    """What is wrong with an item's prompts, None when nothing is."""
    for prompt in item.prompt:
        count = len(tokens(prompt, verbose=False).input_ids)
        if count > PROMPT_TOKENS:
            return f"--prompt {prompt[:60]!r}: {count} tokens, the text encoder takes {PROMPT_TOKENS}"
    return None


def generate(model: Model, item: Config, out: ItemOutput) -> Result:
    """Follow the objects through one input, and write every frame as soon as it is settled."""
    from networks.sam3.outputs import Outputs
    from networks.sam3.source import open_source

    run = model.run
    check_prompts([item], model.processor.tokenizer)
    with run.phase("decode"):
        source = open_source(item.input, item.start, item.end, item.every, item.fps, item.max_pixels)
    seeds = seeds_of(item.box, item.point, source)
    clip, frames = source.clip, source.frames
    run.info(
        f"{item.input.absolute().name}: {len(frames)} frame(s) of {clip.width} x {clip.height}, {float(clip.rate):.4g} a second"
    )
    started = time.monotonic()
    names = [*item.prompt, *(seed.name for seed in seeds)]
    main = main_name(item, source.is_still)
    with contextlib.closing(Outputs(run, item, source, out, main, names)) as outputs:
        with run.phase("track"), outputs:
            for index, frame, found in zip(frames, source.decoded(), tracked(model, item, source, seeds), strict=True):
                outputs.add(index, frame, found)
        seconds = time.monotonic() - started
        with run.phase("encode"):
            outputs.finish()
    objects = outputs.summary.rows()
    if not objects:
        if item.fail_if_empty:
            raise PostConditionError(f"{item.input}: no object found")
        run.warn(f"{item.input}: no object found")
    run.spans.record_metric("sam3.frames", len(frames), "{frame}")
    run.spans.record_metric("sam3.objects", len(objects), "{object}")
    run.spans.record_metric("sam3.seconds_per_frame", seconds / len(frames), "s")
    return Result(
        report={
            "frames": len(frames),
            "width": clip.width,
            "height": clip.height,
            "frames_per_second": round(float(clip.rate), 6),
            "objects": objects,
            "seconds_per_frame": round(seconds / len(frames), 4),
        }
    )


def tracked(model: Model, item: Config, source: Any, seeds: tuple[Any, ...]) -> Iterator[Any]:
    """The objects of every frame of the range."""
    from networks.sam3.model import between, objects, track

    run, total, left = model.run, len(source.tracked), len(source.frames)
    with run.console.progress(total, item.input.absolute().name, "frame") as progress:
        outputs = track(
            model.network,
            model.processor,
            source.pictures(),
            total,
            (source.clip.height, source.clip.width),
            item.prompt,
            seeds,
            chunk=item.chunk,
            max_objects=item.max_objects,
            state_device=state_device(model),
            on_frame=lambda count: progress.advance(),
        )
        session, output = next(outputs)
        while output is not None:
            later, following = next(outputs, (None, None))
            held = objects(model.processor, session, output)
            for step in range(min(source.every, left)):
                if step and item.between == "interpolate" and following is not None:
                    yield objects(model.processor, session, between(output, following, step / source.every))
                else:
                    yield held
            left -= source.every
            session, output = later, following


def state_device(model: Model) -> str | None:
    """Where the tracker's memory goes: to the CPU when the device could not hold that of many objects."""
    from shared_utils import device

    expected = 100 * REMEMBERED * STATE_BYTES
    return "cpu" if model.run.device != "cpu" and device.free_memory(model.run.device) < 2 * expected else None


def smoke_test(folder: Path) -> Smoke:
    import av
    import numpy as np

    quiet_libraries("transformers")
    from tiny_checkpoints import sam3

    with av.open(str(folder / "dot.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(8):
            picture = np.full((64, 96, 3), 40, np.uint8)
            picture[20:44, 6 + 8 * index : 30 + 8 * index] = (220, 60, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return Smoke(
        inputs=(folder / "dot.mp4",),
        settings={"prompt": ("red square",), "dtype": "fp32"},
        models={"model": sam3.build(folder / "checkpoint")},
    )


SCRIPT = Script(
    name="sam3",
    file=__file__,
    docstring=__doc__,
    config=Config,
    check=check,
    load=load,
    generate=generate,
    smoke_test=smoke_test,
    weights=WEIGHTS,
    line_field="input",
    item_folders=True,
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
