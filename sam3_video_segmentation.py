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
import re
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

try:
    import networks.sam3  # noqa: F401  the folder has to be there before anything is fetched
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


def _box_rule(value: str) -> str | None:
    try:
        _, (x0, y0, x1, y1) = _located(value, 4)
    except ValueError:
        return "must be FRAME:x0,y0,x1,y1"
    return None if x0 < x1 and y0 < y1 else "must have x0 < x1 and y0 < y1"


def _point_rule(value: str) -> str | None:
    try:
        _located(re.sub(r",[+-]$", "", value), 2)
    except ValueError:
        return "must be FRAME:x,y or FRAME:x,y,+ or FRAME:x,y,-"
    return None


def _located(value: str, numbers: int) -> tuple[int, tuple[float, ...]]:
    """A frame number and coordinates in pixels. Raises `ValueError`."""
    frame, colon, rest = value.partition(":")
    coordinates = tuple(float(part) for part in rest.split(","))
    if not colon or not frame.isdecimal() or len(coordinates) != numbers or not all(abs(c) < 1e6 for c in coordinates):
        raise ValueError(value)
    return int(frame), coordinates


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
        check=_box_rule,
        **_FIND,
    )
    point: tuple[str, ...] = option(
        (),
        "A point on an object to follow, as FRAME:x,y, or FRAME:x,y,- beside it; points of one frame are one object.",
        check=_point_rule,
        **_FIND,
    )
    max_objects: int | None = option(None, "Follow at most so many objects.", minimum=1, maximum=10000, **_FIND)
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
        "Colour of the objects: a name, #rrggbb or auto; given several times, one per prompt.",
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
        seen = {int(point.partition(":")[0]) for point in self.point if not point.endswith("-")}
        for point in self.point:
            if int(point.partition(":")[0]) not in seen:
                raise UsageError(f"--point {point}: needs a point on the object in the same frame")


def check(item: Config) -> None:
    """Look at an item's input before anything is loaded."""
    from networks.sam3.source import images_in

    if not item.prompt and not item.box and not item.point:
        raise UsageError("nothing to find: give --prompt, --box or --point")
    images = images_in(item.input)
    if item.output is not None:
        fitting = main_name(item, still=images == (item.input,))
        allowed = (Path(fitting).suffix,) if Path(fitting).suffix != ".mp4" else (".mp4", ".mkv", ".mov")
        if item.output.suffix.lower() not in allowed:
            raise UsageError(f"--output {item.output}: must end in {' or '.join(s or 'no suffix' for s in allowed)}")


def main_name(item: Config, still: bool) -> str:
    """Name of the main result."""
    stem = "mask_only" if item.mask_only else "overlay"
    if item.mask_only and item.background == "transparent":
        return stem + (".png" if still else {"webm": ".webm", "prores": ".mov", "png": ""}[item.alpha])
    return stem + (".png" if still else ".mp4")


@dataclasses.dataclass
class Model:
    """What `generate` works with. `limit` is the model's own highest number of objects."""

    run: Run
    processor: Any
    network: Any
    limit: int


def load(config: Config, run: Run) -> Model:
    snapshot = run.weights()
    with run.phase("import"):
        quiet_libraries("transformers", verbose=config.verbose)
        from networks.sam3.model import load_network
    with run.phase("load"):
        if len(run.items) == 1:
            check_prompts(run.items[0], tokenizer(snapshot.path))
        dtype = run.dtype()
        name = "smoke-test" if run.smoke else snapshot.repo
        run.info(f"model {name} at {snapshot.commit or 'local'}, {str(dtype).removeprefix('torch.')}")
        processor, network = load_network(snapshot.path, dtype, run.device, config.cleanup)
    return Model(run, processor, network, network.max_num_objects)


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def check_prompts(item: Config, tokens: Any) -> None:
    """Raises `UsageError` for a prompt that the text encoder does not take; it would have to be cut."""
    for prompt in item.prompt:
        count = len(tokens(prompt).input_ids)
        if count > PROMPT_TOKENS:
            raise UsageError(f"--prompt {prompt[:60]!r}: {count} tokens, the text encoder takes {PROMPT_TOKENS}")


def generate(model: Model, item: Config, out: ItemOutput) -> Result:
    """Follow the objects through one input, and write every frame as soon as it is settled."""
    from networks.sam3.source import open_source

    run = model.run
    check_prompts(item, model.processor.tokenizer)
    with run.phase("decode"):
        source = open_source(item.input, item.start, item.end, item.every, item.fps, item.max_pixels)
    seeds = seeds_of(item, source)
    clip, frames = source.clip, source.frames
    run.info(
        f"{item.input.name}: {len(frames)} frame(s) of {clip.width} x {clip.height}, {float(clip.rate):.4g} a second"
    )
    started = time.monotonic()
    with contextlib.closing(Outputs(run, item, source, out, [seed.name for seed in seeds])) as outputs:
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


def seeds_of(item: Config, source: Any) -> tuple[Any, ...]:
    """Boxes and points as the tracker takes them. Raises `UsageError` for what lies outside the video."""
    from networks.sam3.model import Seed

    seeds = []
    for number, value in enumerate(item.box, 1):
        frame, corners = _located(value, 4)
        seeds.append(Seed.box(f"box {number}", tracked_index(source, frame, f"--box {value}"), corners))
        check_inside(source, corners, f"--box {value}")
    by_frame: dict[int, list[tuple[tuple[float, ...], int]]] = {}
    for value in item.point:
        frame, place = _located(re.sub(r",[+-]$", "", value), 2)
        check_inside(source, place, f"--point {value}")
        by_frame.setdefault(tracked_index(source, frame, f"--point {value}"), []).append(
            (place, 0 if value.endswith("-") else 1)
        )
    for number, (frame, points) in enumerate(by_frame.items(), 1):
        places, labels = zip(*points, strict=True)
        seeds.append(Seed(f"point {number}", frame, places, labels))
    return tuple(seeds)


def tracked_index(source: Any, frame: int, flag: str) -> int:
    if frame not in source.tracked:
        last = f"frames {source.tracked[0]} to {source.tracked[-1]}"
        step = f" in steps of {source.every}" if source.every > 1 else ""
        raise UsageError(f"{flag}: frame {frame} is not among those looked at, {last}{step}")
    return source.tracked.index(frame)


def check_inside(source: Any, coordinates: tuple[float, ...], flag: str) -> None:
    width, height = source.clip.width, source.clip.height
    for x, y in zip(coordinates[::2], coordinates[1::2], strict=True):
        if not (0 <= x <= width and 0 <= y <= height):
            raise UsageError(f"{flag}: {x:g},{y:g} lies outside the frame of {width} x {height}")


def tracked(model: Model, item: Config, source: Any, seeds: tuple[Any, ...]) -> Iterator[Any]:
    """The objects of every frame of the range."""
    from networks.sam3.model import between, objects, track

    run, network = model.run, model.network
    network.max_num_objects = min(item.max_objects or model.limit, model.limit)
    total = len(source.tracked)
    size = (source.clip.height, source.clip.width)
    left = len(source.frames)
    with run.console.progress(total, item.input.name, "frame") as progress:
        outputs = track(
            network,
            model.processor,
            source.pictures(),
            total,
            size,
            item.prompt,
            seeds,
            state_device(model),
            lambda count: progress.advance(),
        )
        session, output = next(outputs)
        while output is not None:
            following = next(outputs, (session, None))[1]
            held = objects(model.processor, session, output)
            for step in range(min(source.every, left)):
                if step and item.between == "interpolate" and following is not None:
                    yield objects(model.processor, session, between(output, following, step / source.every))
                else:
                    yield held
            left -= source.every
            output = following


def state_device(model: Model) -> str | None:
    """Where the tracker's memory goes: to the CPU when the device could not hold that of many objects."""
    from shared_utils import device

    expected = 100 * REMEMBERED * STATE_BYTES
    return "cpu" if model.run.device != "cpu" and device.free_memory(model.run.device) < 2 * expected else None


class Outputs:
    """The files of one item while they are being written."""

    def __init__(self, run: Run, item: Config, source: Any, out: ItemOutput, seeds: list[str]):
        from networks.sam3.sheet import ContactSheet
        from networks.sam3.tracks import MaskFiles, Summary, TracksFile

        self.run, self.item, self.source, self.out = run, item, source, out
        self.names = [*dict.fromkeys((*item.prompt, *seeds))]
        self.colours: dict[int, str] = {}
        self.summary, self.sheet = Summary(), ContactSheet(source.frames)
        self.paths: list[Path] = []
        clip = source.clip
        self.main = self.path(main_name(item, source.is_still), "primary")
        self.mask_video = self.path("mask.png" if source.is_still else "mask.mp4") if item.mask_video else None
        head = {
            "schema": "generation-scripts/tracks/1",
            "source": item.input.name,
            "width": clip.width,
            "height": clip.height,
            "frames_per_second": round(float(clip.rate), 6),
            "prompts": self.names,
        }
        self.tracks = TracksFile(self.path("tracks.json"), head, with_masks=item.masks != "png")
        self.mask_files = None
        if item.masks != "rle":
            self.mask_files = MaskFiles(self.directory("masks"), (clip.height, clip.width))
        self.stack = contextlib.ExitStack()
        self.writers: dict[Path, Any] = {}

    def path(self, name: str, role: str = "file") -> Path:
        """The partial path of a result, which also goes into the archive."""
        if role == "primary":
            path = self.out.directory(name, role) if not Path(name).suffix else self.out.primary(name)
        else:
            path = self.out.file(name, role)
        self.paths.append(path)
        return path

    def directory(self, name: str) -> Path:
        path = self.out.directory(name)
        self.paths.append(path)
        return path

    def __enter__(self) -> "Outputs":
        from networks.sam3.encode import VideoWriter
        from networks.sam3.overlay import pixel_format

        if self.source.is_still:
            return self
        source, clip = self.source, self.source.clip
        plain = pixel_format(clip.width, clip.height)
        if plain != "yuv420p":
            self.run.info(f"{clip.width} x {clip.height} is odd: the video has full colour resolution ({plain})")
        h264 = ("libx264", plain, {"crf": str(self.item.crf), "preset": "medium"})
        codec = h264
        if self.transparent:
            codec = {
                "webm": ("libvpx-vp9", "yuva420p", {"crf": "24", "b": "0", "auto-alt-ref": "0"}),
                "prores": ("prores_ks", "yuva444p10le", {"profile": "4444"}),
                "png": None,
            }[self.item.alpha]
        if codec:
            self.open(VideoWriter, self.main, codec, source.audio)
        if self.mask_video:
            self.open(VideoWriter, self.mask_video, h264, None)
        return self

    def open(self, writer: Any, path: Path, codec: tuple, audio: Path | None) -> None:
        source = self.source
        self.writers[path] = self.stack.enter_context(
            writer(path, source.clip, source.first, source.last, *codec, audio)
        )

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def close(self) -> None:
        self.tracks.close()

    @property
    def transparent(self) -> bool:
        return self.item.mask_only and self.item.background == "transparent"

    def colour(self, number: int, name: str) -> str:
        """Colour of an object: of its prompt where there are several, otherwise its own."""
        from networks.sam3.overlay import PALETTE

        place = self.names.index(name)
        given = self.item.mask_color[min(place, len(self.item.mask_color) - 1)] if self.item.mask_color else "auto"
        if given == "auto":
            given = PALETTE[(place if len(self.names) > 1 else number) % len(PALETTE)]
        return self.colours.setdefault(number, given)

    def add(self, index: int, frame: Any, found: Any) -> None:
        """Write frame `index` in all its forms."""
        from PIL import ImageColor

        from networks.sam3 import overlay

        clip, item = self.source.clip, self.item
        seconds = clip.seconds(index)
        self.summary.add(index, found)
        self.tracks.add(index, seconds, found)
        if self.mask_files:
            self.mask_files.add(index, found)
        together = found.masks.any(0)
        picture = overlay.planes(frame, clip.turns, clip.alpha, clip.colour)
        colours = [
            overlay.yuv(ImageColor.getrgb(self.colour(number, name))[:3], clip.colour)
            for number, name in zip(found.ids, found.prompts, strict=True)
        ]
        if item.mask_only and not self.transparent:
            background = overlay.yuv(ImageColor.getrgb(item.background)[:3], clip.colour)
            picture = overlay.cut_out(picture, together, background)
        elif not item.mask_only:
            for mask, colour in zip(found.masks, colours, strict=True):
                overlay.tint(picture, mask, colour, item.mask_opacity, item.outline)
        self.write_main(index, picture, together)
        if self.mask_video:
            self.write(self.mask_video, index, overlay.black_and_white(together, clip.colour))
        if self.sheet.wants(index):
            self.sheet.add(index, seconds, overlay.image(picture, clip.colour), found)

    def write_main(self, index: int, picture: Any, mask: Any) -> None:
        from networks.sam3 import overlay

        if not self.transparent:
            self.write(self.main, index, picture)
            return
        cut = overlay.image(picture, self.source.clip.colour)
        cut.putalpha(overlay.alpha_of(mask))
        if self.source.is_still:
            cut.save(self.main, format="PNG")
        elif self.item.alpha == "png":
            cut.save(self.main / f"{index:06d}.png", format="PNG")
        else:
            self.writers[self.main].add(index, overlay.frame_with_alpha(picture, mask, self.item.alpha == "prores"))

    def write(self, path: Path, index: int, picture: Any) -> None:
        from networks.sam3 import overlay

        if self.source.is_still:
            overlay.image(picture, self.source.clip.colour).save(path, format="PNG")
        else:
            self.writers[path].add(index, picture)

    def finish(self) -> None:
        """What can be written only at the end, and the post-conditions."""
        from networks.sam3.encode import check_video
        from networks.sam3.sheet import plot_areas

        source = self.source
        for path in self.writers:
            check_video(path, self.out.final(path).name, source.clip, source.first, source.last)
        self.tracks.finish(self.summary.rows())
        if self.mask_files:
            self.mask_files.finish(source.frames)
        sheet = self.path("contact_sheet.png", "preview")
        self.sheet.save(sheet)
        plot_areas(self.path("summary.png", "preview"), self.summary, source.frames, self.colours)
        if self.item.return_zip:
            self.archive(self.out.file("results.zip"))

    def archive(self, target: Path) -> None:
        """All results of this item, under their final names; the same results give the same bytes."""
        with zipfile.ZipFile(target, "w") as archive:
            for path in self.paths:
                files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
                for file in files:
                    name = Path(self.out.final(path).name) / file.relative_to(path) if path.is_dir() else None
                    info = zipfile.ZipInfo((name or Path(self.out.final(path).name)).as_posix(), (1980, 1, 1, 0, 0, 0))
                    info.compress_type = zipfile.ZIP_DEFLATED if file.suffix == ".json" else zipfile.ZIP_STORED
                    with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as stream:
                        while block := source.read(1 << 20):
                            stream.write(block)


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
