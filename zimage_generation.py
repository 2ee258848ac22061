# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "accelerate>=1.10",
#     "bitsandbytes>=0.48; sys_platform != 'darwin'",
#     "cyclopts>=4.0",
#     "diffusers>=0.42",
#     "filelock>=3.16",
#     "huggingface-hub>=1.5",
#     "numpy>=2.0",
#     "opentelemetry-exporter-otlp-proto-http>=1.40",
#     "opentelemetry-sdk>=1.40",
#     "peft>=0.17",
#     "pillow>=11.0",
#     "psutil>=6.0",
#     "safetensors>=0.5",
#     "torch>=2.10",
#     "torchao>=0.14",
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
# ///
"""Makes pictures from words with Z-Image-Turbo (Tongyi-MAI), a 6-billion-parameter model that needs eight steps.

Examples:
  uv run zimage_generation.py "a lighthouse in a storm, oil painting"
  uv run zimage_generation.py "a red fox" "a blue whale" --width 768 --height 1024 --seed 7
  uv run zimage_generation.py "the same street at night" --image street.jpg --strength 0.7 -o night.jpg
  uv run zimage_generation.py --inputs-from prompts.jsonl --resume run1
"""

import dataclasses
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

try:
    from networks.zimage import plan as planning
    from networks.zimage.lora import find_lora, parse_lora, plan_lora
    from shared_utils import __version__, device
    from shared_utils.args import command_line, item_input, option
    from shared_utils.errors import PostConditionError, ScriptError, UnavailableError, UsageError
    from shared_utils.gen_ai import GenAI
    from shared_utils.hugging_face import Weights
    from shared_utils.image_files import FORMATS, read_image, upright_size, write_image
    from shared_utils.libraries import quiet_libraries
    from shared_utils.manifest import Manifest
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
        "Tongyi-MAI/Z-Image-Turbo",
        allow_patterns=(
            "model_index.json",
            "scheduler/*",
            "text_encoder/*.json",
            "text_encoder/*.safetensors",
            "tokenizer/*",
            "transformer/*.json",
            "transformer/*.safetensors",
            "vae/*.json",
            "vae/*.safetensors",
        ),
        licence="Apache-2.0",
        size_gb=32.9,
        memory_gb=23.2,
        note="the transformer is stored in 32 bit; from 4 GB of GPU memory on, see --offload",
    )
}

SIDE = 1024  # pixels, the default width and height
MULTIPLE = 16  # pixels: 8 of the VAE times 2 of the transformer's patches
TEMPLATE_TOKENS = 32  # RoPE positions and padding go in steps of this many tokens


def _batch_size_rule(value: str) -> str | None:
    return (
        None
        if value == "auto" or (value.isascii() and value.isdigit() and 1 <= int(value) <= 64)
        else "must be auto or 1 to 64"
    )


def _strength_rule(value: float) -> str | None:
    return None if 0 < value <= 1 else "must be above 0 and at most 1"


_IMAGE = {"group": "Image"}
_SIDE = {"group": "Image", "minimum": 64, "maximum": 2048, "multiple_of": MULTIPLE}
_SPEED = {"group": "Speed and memory", "per_item": False}


@dataclasses.dataclass(kw_only=True)
class Config(ModelOptions):
    prompt: str | None = item_input("What to show; every prompt makes an image of its own.")
    negative_prompt: str | None = option(None, "What to avoid; works only with a guidance scale above 0.", **_IMAGE)
    width: int | None = option(None, "Width in pixels; default 1024, with --image as that image.", **_SIDE)
    height: int | None = option(None, "Height in pixels; default 1024, with --image as that image.", **_SIDE)
    steps: int = option(8, "Denoising steps; the model is made for 8.", minimum=1, maximum=100, **_IMAGE)
    guidance_scale: float = option(
        0.0, "The model is made for 0. Any value above 0 doubles the work.", minimum=0.0, maximum=30.0, **_IMAGE
    )
    num_images: int = option(1, "Images for each prompt; image k uses seed + k.", minimum=1, maximum=100, **_IMAGE)
    image: Path | None = option(None, "Image to start from.", **_IMAGE)
    strength: float = option(0.6, "How much of --image to replace, above 0 up to 1.", check=_strength_rule, **_IMAGE)
    max_sequence_length: int = option(
        512, "Tokens of a prompt that are read; the rest is cut, with a warning.", minimum=32, maximum=1024, **_IMAGE
    )
    lora: tuple[str, ...] = option(
        (),
        "LoRA to apply, a safetensors file or a repository, as NAME or NAME:SCALE (default 1); may be repeated.",
        group="Model",
        per_item=False,
    )
    format: Literal["png", "jpg", "webp"] | None = option(
        None, "File format; default png, or what the suffix of --output says.", group="Output"
    )
    quality: int | None = option(None, "Quality of jpg and webp; default 95.", group="Output", minimum=1, maximum=100)
    metadata: bool = option(True, "Write prompt, seed and settings into the image file.", group="Output")
    batch_size: str = option(
        "auto",
        "Images of the same size made at a time, or auto: 1 on a CPU, on a GPU what fits.",
        check=_batch_size_rule,
        **_SPEED,
    )
    offload: Literal["auto", "none", "model", "sequential", "group"] = option(
        "auto",
        "Where the weights are: all on the device (none), text encoder and transformer in turn (model), or layer by layer"
        " (group, sequential); auto takes the fastest that fits.",
        **_SPEED,
    )
    quantize: Literal["auto", "none", "fp8", "int8", "nf4"] = option(
        "auto", "How the weights are stored; auto changes it only where memory is short.", **_SPEED
    )
    vae_tiling: Literal["auto", "on", "off"] = option(
        "auto", "Decode in tiles of 1024 pixels; auto does so where memory is short.", **_SPEED
    )
    compile: bool = option(
        False, "Compile the transformer's blocks: a slow first image, faster ones after it.", **_SPEED
    )
    attention: Literal["auto", "native", "flash", "sage"] = option(
        "auto", "Attention kernel; auto is PyTorch's own, flash and sage need their packages.", **_SPEED
    )

    def check(self) -> None:
        planning.check_combination(self.offload, self.quantize)
        for value in self.lora:
            parse_lora(value)
        if self.compile and self.offload in ("group", "sequential"):
            raise UsageError(f"--compile: not with --offload {self.offload}, which moves the compiled layers")
        if self.output is not None:
            suffix = self.output.suffix.lower().lstrip(".")
            suffix = "jpg" if suffix == "jpeg" else suffix
            if suffix not in FORMATS:
                raise UsageError(f"--output {self.output}: must end in .png, .jpg or .webp")
            if self.format not in (None, suffix):
                raise UsageError(f"--output {self.output}: is not --format {self.format}")
            if self.num_images > 1:
                raise UsageError(f"--output {self.output}: takes one image, not --num-images {self.num_images}")
        if self.quality is not None and file_format(self) == "png":
            raise UsageError(f"--quality {self.quality}: PNG is lossless (use --format jpg or webp)")


def file_format(item: Config) -> str:
    """`png`, `jpg` or `webp`."""
    if item.format is not None or item.output is None:
        return item.format or "png"
    suffix = item.output.suffix.lower().lstrip(".")
    return "jpg" if suffix == "jpeg" else suffix


def check(item: Config) -> None:
    """Look at an item's input before anything is loaded."""
    if not item.prompt or not item.prompt.strip():
        raise UsageError("--prompt: is empty")
    if item.image is not None:
        read_image(item.image)


def image_size(item: Config) -> tuple[int, int]:
    """Width and height in pixels. With --image they follow its shape, at most 1024 x 1024 pixels in all, unless given."""
    if item.image is None or (item.width and item.height):
        return item.width or SIDE, item.height or SIDE
    width, height = upright_size(item.image)
    if item.width:
        scale = item.width / width
    elif item.height:
        scale = item.height / height
    else:
        scale = min(1.0, SIDE / (width * height) ** 0.5)
    sides = (min(2048, max(64, round(side * scale / MULTIPLE) * MULTIPLE)) for side in (width, height))
    fitted_width, fitted_height = sides
    return item.width or fitted_width, item.height or fitted_height


@dataclasses.dataclass
class Model:
    """What `generate_batch` works with.

    `free` is the device's memory before anything was loaded; `embeddings` are in main memory, by prompt and token limit.
    """

    run: Run
    pipeline: Any
    plan: planning.Plan
    sizes: planning.Sizes
    free: int
    embeddings: dict[tuple[str, int], Any]
    recorded: dict[str, str]
    total: int
    done: int = 0

    def memory_advice(self, items: list[Config]) -> Any:
        return planning.memory_advice(self.run.device, self.plan, self.sizes, work(self.run, items))


def load(config: Config, run: Run) -> Model:
    """Encode all prompts, then bring up what turns them into images, as the plan says."""
    snapshot = run.weights()
    loras = []
    for value in config.lora:
        with run.phase("download_weights"):
            loras.append(find_lora(value, run.downloader()))
    if config.compile:
        check_compiler(run.device)
    with run.phase("import"):
        from networks.zimage import pipeline as zimage

        quiet_libraries("transformers", "diffusers", verbose=config.verbose)
    dtype, free = run.dtype(), device.free_memory(run.device)
    with run.loading():
        sizes = zimage.count_parameters(snapshot.path) or planning.Sizes()
    plan = choose(run, run.items, sizes, free)
    name = "smoke-test" if run.smoke else snapshot.repo
    run.info(f"model {name} at {snapshot.commit or 'local'}, {str(dtype).removeprefix('torch.')}, {plan}")
    if any(item.guidance_scale > 0 for item in run.items):
        run.info("guidance above 0: every step computes the transformer twice")
    with planning.memory_advice(run.device, plan, sizes, work(run, run.items)):
        # Beside each other where there is room; otherwise the text encoder goes before the transformer comes.
        together = plan.offload == "none"
        with run.phase("load"), run.loading():
            text = zimage.load_text(snapshot.path, plan, run.device, dtype)
            pipeline = zimage.load_images(snapshot.path, plan, run.device, dtype, loras) if together else None
        with run.phase("encode"):
            embeddings = encode_prompts(run, text, run.items)
            run.spans.set_attributes({"prompts": len(embeddings), "peak_memory_bytes": device.peak_memory(run.device)})
        del text
        if not together:
            device.release()
            with run.phase("load"), run.loading():
                pipeline = zimage.load_images(snapshot.path, plan, run.device, dtype, loras)
        zimage.set_attention(pipeline, config.attention, run.device)
        if config.compile:
            pipeline.transformer.compile_repeated_blocks()
    # Recorded as they turned out, so that a replay does not depend on the memory that is free then.
    tiling = "on" if plan.tiling else "off"
    run.config = dataclasses.replace(run.config, offload=plan.offload, quantize=plan.quantize, vae_tiling=tiling)
    recorded = {
        # Of a local folder only the name: pictures travel, and paths tell about their maker.
        "model": name if run.smoke or snapshot.commit else Path(name).resolve().name,
        "revision": snapshot.commit or "local",
    }
    if loras:
        recorded["lora"] = ", ".join(f"{lora.name}:{lora.scale:g}" for lora in loras)
    total = sum(item.num_images for item in run.items)
    return Model(run, pipeline, plan, sizes, free, embeddings, recorded, total)


def choose(run: Run, items: list[Config], sizes: planning.Sizes, free: int) -> planning.Plan:
    """The plan for the largest of the images. Raises `UnavailableError` when nothing fits."""
    flags = run.config.offload, run.config.quantize, run.config.vae_tiling
    plan, fits = planning.choose_plan(free, planning.device_kind(run.device), *flags, sizes, work(run, items))
    if not fits:
        run.warn(f"{device.gigabytes(free)} free on {run.device} may be too little for {plan}")
    return plan


def work(run: Run, items: list[Config]) -> planning.Work:
    """The largest thing to be made in one go."""
    largest = max((image_size(item) for item in items), key=lambda size: size[0] * size[1], default=(SIDE, SIDE))
    return planning.Work(
        pixels=largest[0] * largest[1],
        images=1 if run.config.batch_size == "auto" else int(run.config.batch_size),
        tokens=max((item.max_sequence_length for item in items), default=512),
        guided=any(item.guidance_scale > 0 for item in items),
        number_bytes=run.dtype().itemsize,
    )


def check_compiler(device_name: str) -> None:
    """--compile turns graphs into C++ on a CPU. Raises `UnavailableError` when there is no compiler for it."""
    wanted = os.environ.get("CXX") or "g++"
    if device_name == "cpu" and not any(shutil.which(name) for name in (wanted, "clang++", "cl")):
        raise UnavailableError(f"--compile: needs a C++ compiler on a CPU, and {wanted} is not installed")


def encode_prompts(run: Run, text: Any, items: list[Config]) -> dict[tuple[str, int], Any]:
    """The embeddings of every different prompt, and a warning for each that is cut."""
    from networks.zimage import pipeline as zimage

    wanted = {}
    for item in items:
        wanted[item.prompt, item.max_sequence_length] = None
        if item.guidance_scale > 0:
            wanted[item.negative_prompt or "", item.max_sequence_length] = None
        elif item.negative_prompt:
            run.warn(f"--negative-prompt {item.negative_prompt!r}: has no effect with --guidance-scale 0")
    with run.console.progress(len(wanted), "encoding prompts", "prompt") as progress:
        for prompt, limit in wanted:
            tokens = zimage.prompt_tokens(text, prompt)
            if len(tokens) > limit:
                kept = text.tokenizer.decode(tokens[:limit], skip_special_tokens=True)[-40:].strip()
                run.warn(f"a prompt of {len(tokens)} tokens is cut to {limit} (--max-sequence-length) after {kept!r}")
            wanted[prompt, limit] = zimage.encode(text, prompt, limit)
            progress.advance()
    return wanted


def group(items: list[Config], model: Model) -> list[list[int]]:
    """Which items go through the transformer together: same size and steps, as many as fit; one with --image alone."""
    groups: list[list[int]] = []
    filling: dict[tuple, list[int]] = {}
    for index, item in enumerate(items):
        key = (*image_size(item), item.steps, item.guidance_scale)
        room = at_a_time(item, model) - sum(items[i].num_images for i in filling.get(key, []))
        if item.image is not None:
            groups.append([index])
        elif key in filling and item.num_images <= room:
            filling[key].append(index)
        else:
            filling[key] = [index]
            groups.append(filling[key])
    return groups


def at_a_time(item: Config, model: Model) -> int:
    """How many images of this item's size are made at a time."""
    run = model.run
    if item.image is not None:
        return 1
    if run.config.batch_size != "auto":
        return int(run.config.batch_size)
    kind = planning.device_kind(run.device)
    return planning.batch_size(model.free, kind, model.plan, model.sizes, work(run, [item]))


def generate_batch(model: Model, items: list[Config], outs: list[ItemOutput]) -> Iterator[Result | ScriptError]:
    """Make the images of the items, and write each as it comes."""
    requests = [request for item in items for request in requests_for(model, item)]
    with model.memory_advice(items):
        made = pictures(model, requests, at_a_time(items[0], model))
        for item, out in zip(items, outs, strict=True):
            yield save(model, item, out, islice(made, item.num_images))


def requests_for(model: Model, item: Config) -> list[Any]:
    """What to denoise for an item: image k takes seed + k."""
    from PIL import Image, ImageOps

    from networks.zimage.pipeline import Request

    width, height = image_size(item)
    start = None
    if item.image is not None:
        # The middle of it, where its shape is another one.
        start = ImageOps.fit(read_image(item.image), (width, height), Image.Resampling.LANCZOS)
    negative = model.embeddings.get((item.negative_prompt or "", item.max_sequence_length))
    request = Request(
        prompt=model.embeddings[item.prompt, item.max_sequence_length],
        negative=negative if item.guidance_scale > 0 else None,
        seed=item.seed,
        width=width,
        height=height,
        steps=item.steps,
        guidance_scale=item.guidance_scale,
        image=start,
        strength=item.strength,
    )
    return [dataclasses.replace(request, seed=(item.seed + k) % 2**32) for k in range(item.num_images)]


def pictures(model: Model, requests: list[Any], at_once: int) -> Iterator[tuple[Any, Any]]:
    """Yield (request, PIL image) in order; in place of an image that is no picture, the `PostConditionError`."""
    from networks.zimage import pipeline as zimage

    for start in range(0, len(requests), at_once):
        chunk = requests[start : start + at_once]
        with model.run.phase("denoise"):
            latents = denoise(model, chunk)
        for index, request in enumerate(chunk):
            with model.run.phase("decode"):
                try:
                    image = zimage.decode(model.pipeline, latents[index : index + 1])
                except PostConditionError as error:
                    image = error
                describe(model.run, request)
            yield request, image


def denoise(model: Model, chunk: list[Any]) -> Any:
    """Denoise a few images at once, showing each step, the seconds it takes and when the whole run will be done."""
    from networks.zimage import pipeline as zimage

    first, last = model.done + 1, model.done + len(chunk)
    which = f"image {first}" if first == last else f"images {first}-{last}"
    steps = chunk[0].steps
    if chunk[0].image is not None:
        # As many as diffusers leaves of them (get_timesteps).
        steps -= int(max(steps - steps * chunk[0].strength, 0))
    started = time.monotonic()
    with model.run.console.progress(steps, f"{which} of {model.total}", "step") as progress:

        def on_step() -> None:
            done = progress.done + 1
            each = (time.monotonic() - started) / done
            left = each * (steps - done + steps * (model.total - last) / len(chunk))
            progress.advance(1, f"{each:.2f} s a step, all in {left:.0f} s")

        latents = zimage.denoise(model.pipeline, chunk, on_step)
    model.done = last
    describe(model.run, chunk[0], len(chunk))
    model.run.spans.record_metric("zimage.images", len(chunk), "{image}", kind="counter")
    return latents


def describe(run: Run, request: Any, images: int = 1) -> None:
    """Put what is being made onto the current span."""
    snapshot = run.weights()
    # Of a local folder nothing: paths tell about their maker.
    model = {GenAI.REQUEST_MODEL: snapshot.repo} if snapshot.commit else {}
    run.spans.set_attributes(
        {
            GenAI.OPERATION_NAME: "generate_content",
            **model,
            GenAI.OUTPUT_TYPE: "image",
            GenAI.REQUEST_SEED: request.seed,
            "images": images,
            "width": request.width,
            "height": request.height,
            "steps": request.steps,
            "seed": request.seed,
            "peak_memory_bytes": device.peak_memory(run.device),
        }
    )


def save(model: Model, item: Config, out: ItemOutput, made: Iterable[tuple[Any, Any]]) -> Result | ScriptError:
    """Write the images of one item. The first that is no picture is the item's failure."""
    failure, images = None, []
    suffix = f".{file_format(item)}"
    for number, (request, image) in enumerate(made, 1):
        if isinstance(image, ScriptError):
            failure = failure or image
            continue
        with model.run.phase("save"):
            path = out.primary(out.stamped("zimage", suffix if item.num_images == 1 else f"_{number}{suffix}"))
            parameters = parameters_of(model, item, request) if item.metadata else {}
            write_image(image, path, file_format(item), item.quality, parameters)
            describe(model.run, request)
        images.append({"file": out.final(path).name, "seed": request.seed, "command": command(item, request)})
    if failure is not None:
        return failure
    size = {"width": request.width, "height": request.height, "steps": item.steps}
    return Result(report={"prompt": item.prompt, **size, "images": images})


def parameters_of(model: Model, item: Config, request: Any) -> dict[str, str]:
    """What is written into the image file: enough to make it again, and nothing that changes from run to run."""
    parameters = {
        "prompt": item.prompt,
        "seed": str(request.seed),
        "steps": str(request.steps),
        "guidance_scale": f"{request.guidance_scale:g}",
        "width": str(request.width),
        "height": str(request.height),
        "size": f"{request.width}x{request.height}",
        **model.recorded,
        "tool_version": __version__,
        "Software": f"zimage_generation {__version__}",
    }
    if item.negative_prompt and item.guidance_scale > 0:
        parameters["negative_prompt"] = item.negative_prompt
    if item.image is not None:
        parameters["strength"] = f"{item.strength:g}"
    return parameters


def command(item: Config, request: Any) -> str:
    """The command that makes this one image again."""
    format = None if file_format(item) == "png" else file_format(item)
    alone = dataclasses.replace(item, seed=request.seed, num_images=1, inputs_from=None, output=None, format=format)
    return shlex.join(["uv", "run", Path(__file__).name, *command_line(alone)])


def finish(run: Run, out: ItemOutput) -> None:
    """A batch gets a page that shows it, with what earlier runs made in the same folder."""
    from shared_utils.gallery import Picture, gallery

    pictures = []
    for record in sorted(Manifest(run.output.path).finished().values(), key=lambda record: record["index"]):
        paths = {Path(output["path"]).name: output["path"] for output in record["outputs"]}
        for image in record["images"]:
            facts = f"seed {image['seed']} · {record['width']} × {record['height']} · {record['steps']} steps"
            pictures.append(Picture(paths[image["file"]], record["prompt"], facts, image["command"]))
    if len(pictures) > 1:
        page = gallery(f"Z-Image: {len(pictures)} images", run.output.path, pictures)
        out.file("index.html", role="gallery").write_text(page, encoding="utf-8")


def facts(config: Config, items: list[Config], run: Run) -> dict[str, Any]:
    """For --dry-run: how many images, and how they would be made with the memory that is free."""
    from networks.zimage.pipeline import count_parameters

    weights = run.download_plans["model"]
    loras = [planned for value in config.lora if (planned := plan_lora(value, run.downloader()))]
    sizes = count_parameters(weights.folder) if weights.fetch_bytes == 0 else None
    free = device.free_memory(run.device)
    try:
        plan = str(choose(run, items, sizes or planning.Sizes(), free))
    except UnavailableError as error:
        plan = str(error)
    images = sum(item.num_images for item in items)
    return {"weights": [weights, *loras], "images": images, "plan": plan}


def smoke_test(folder: Path) -> Smoke:
    from tiny_checkpoints.zimage import make_zimage

    quiet_libraries("transformers", "diffusers")
    return Smoke(
        inputs=("a red fox in the snow",),
        settings={"width": 64, "height": 64, "steps": 2},
        models={"model": make_zimage(folder / "zimage")},
    )


SCRIPT = Script(
    name="zimage",
    file=__file__,
    docstring=__doc__,
    config=Config,
    load=load,
    generate_batch=generate_batch,
    group=group,
    check=check,
    plan=facts,
    finish=finish,
    smoke_test=smoke_test,
    weights=WEIGHTS,
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
