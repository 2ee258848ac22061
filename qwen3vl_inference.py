# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "accelerate>=1.10",
#     "av>=15.0",
#     "bitsandbytes>=0.48; sys_platform != 'darwin'",
#     "cyclopts>=4.0",
#     "filelock>=3.16",
#     "huggingface-hub>=1.5",
#     "jsonschema>=4.23",
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
"""Ask Qwen3-VL, a vision-language model, about pictures or a video; the answer streams to stdout as it is made.

The default is Qwen/Qwen3-VL-4B-Instruct. An uncensored variant works the same way:
--model huihui-ai/Huihui-Qwen3-VL-4B-Instruct-abliterated

Examples:
  uv run qwen3vl_inference.py photo.jpg "What is this?"
  uv run qwen3vl_inference.py --video clip.mp4 --fps 1 "What happens, second by second?"
  uv run qwen3vl_inference.py holiday/ "A caption, one line." --max-tokens 60 --temperature 0 --json
  echo "Compare them." | uv run qwen3vl_inference.py before.png after.png
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

try:
    from networks.qwen3vl import answers
    from shared_utils import device, video
    from shared_utils.args import item_input, option
    from shared_utils.errors import (
        InvalidInputError,
        PostConditionError,
        ScriptError,
        UnavailableError,
        UsageError,
    )
    from shared_utils.gen_ai import GenAI
    from shared_utils.hugging_face import Weights
    from shared_utils.image_files import read_image
    from shared_utils.items import read_stdin, stdin_is_pipe
    from shared_utils.libraries import quiet_libraries
    from shared_utils.options import ModelOptions
    from shared_utils.output_dir import ItemOutput, atomic
    from shared_utils.run import Interrupted, Result, Run, Script, Smoke, run_script
except ModuleNotFoundError as error:
    if error.name not in ("shared_utils", "networks"):
        raise
    print(
        f"error: {__file__} needs the folder {error.name}/ beside it: copy the whole repository,"
        " or make one file of the script with `uv run bundle.py`",
        file=sys.stderr,
    )
    raise SystemExit(78) from None

WEIGHTS = {
    "model": Weights(
        "Qwen/Qwen3-VL-4B-Instruct",
        allow_patterns=("config.json", "*.json", "*.safetensors", "chat_template.jinja*", "*.txt"),
        licence="Apache-2.0",
        size_gb=8.9,
        memory_gb=10.0,
        note="bf16; with --quantize nf4 about 4 GB of memory",
    )
}

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv")
# Memory beside the weights: 0.147 MB of keys and values per token, and room for activations (bytes).
WORKING_MEMORY = 1.5e9
# Share of the 16-bit weights that is left of them: NF4 and int8 leave the vision tower and the embeddings as they are.
STORED = {"none": 1.0, "int8": 0.6, "nf4": 0.4}
# The processor refuses pictures longer than that (transformers, smart_resize).
LONGEST_SHAPE = 200
# Words of the tokenizer that stand for a picture or video; in a question they would count as one.
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")
SMOKE_PICTURE, SMOKE_QUESTION = "smoke_test_dot.png", "What is this?"


@dataclasses.dataclass(kw_only=True)
class Config(ModelOptions):
    input: tuple[str, ...] | None = item_input(
        "Pictures or a video, then the question; a folder asks it of every picture in it."
    )
    prompt: str | None = option(None, "The question; - reads it from stdin.", group="Input")
    image: tuple[Path, ...] = option((), "A picture; may be repeated.", group="Input")
    images: tuple[Path, ...] = option((), "The same as --image, for batch files.", group="Input", hidden=True)
    video: Path | None = option(None, "A video.", group="Input")
    system: str | None = option(None, "System message.", group="Input")
    fps: float = option(2.0, "Frames a second taken from a video.", group="Input", minimum=0.01, maximum=60)
    max_frames: int = option(64, "At most so many frames of a video.", group="Input", minimum=2, maximum=768)
    min_pixels: int = option(65536, "Smaller pictures are enlarged to this area, pixels.", group="Input", minimum=1024)
    max_pixels: int = option(
        1_310_720, "Larger pictures are shrunk to this area, pixels.", group="Input", minimum=1024, maximum=16_777_216
    )
    max_image_pixels: int = option(
        100_000_000, "Picture files with more pixels are refused.", group="Input", minimum=1, per_item=False
    )
    max_tokens: int = option(4096, "Longest answer, tokens.", group="Answer", minimum=1, maximum=131072)
    temperature: float = option(0.7, "0 takes the likeliest word each time.", group="Answer", minimum=0.0, maximum=5.0)
    top_p: float = option(
        0.9, "Sample from the likeliest words with this share.", group="Answer", minimum=0.0, maximum=1.0
    )
    top_k: int = option(20, "Sample from so many likeliest words; 0 is all.", group="Answer", minimum=0, maximum=1000)
    repetition_penalty: float = option(
        1.0, "Above 1 discourages repetition.", group="Answer", minimum=0.1, maximum=10.0
    )
    schema: Path | None = option(None, "JSON Schema file the answer has to satisfy.", group="Answer")
    boxes: bool = option(
        False, "Ask for boxes: pixel coordinates as JSON, and a picture with them drawn in.", group="Answer"
    )
    retries: int = option(
        2, "Further tries when --schema or --boxes finds the answer unusable.", group="Answer", minimum=0, maximum=20
    )
    batch_size: int = option(
        1,
        "Questions answered together; 1 streams. What is sampled depends on the company.",
        group="Answer",
        minimum=1,
        maximum=64,
        per_item=False,
    )
    quantize: Literal["auto", "none", "nf4", "int8"] = option(
        "auto", "Smaller weights; auto takes nf4 where bf16 does not fit.", group="Model", per_item=False
    )
    attention: Literal["auto", "sdpa", "flash"] = option(
        "auto",
        "Attention; auto takes flash where it is installed and the device has it.",
        group="Model",
        per_item=False,
    )
    use_4bit: bool = option(False, "The same as --quantize nf4.", group="Model", per_item=False)
    full_precision: bool = option(False, "The same as --quantize none.", group="Model", per_item=False)
    use_flash_attention: bool = option(False, "The same as --attention flash.", group="Model", per_item=False)

    def check(self) -> None:
        if self.use_4bit and self.full_precision:
            raise UsageError("--use-4bit and --full-precision exclude each other")
        if self.min_pixels > self.max_pixels:
            raise UsageError(f"--min-pixels {self.min_pixels}: more than --max-pixels {self.max_pixels}")
        if self.boxes and self.schema:
            raise UsageError("--boxes and --schema exclude each other")

    def pictures(self) -> tuple[Path, ...]:
        """All pictures of the job."""
        return (*self.image, *self.images)


def arrange(config: Config) -> Config:
    """Sort the positional values into pictures, video and question."""
    values = list(config.input or ())
    if values and config.smoke_test:
        # The user's own take the place of what is built in.
        own = tuple(path for path in config.image if path.name != SMOKE_PICTURE)
        config = dataclasses.replace(
            config, image=own, prompt=None if config.prompt is SMOKE_QUESTION else config.prompt
        )
    prompt = config.prompt
    # The last value is the question, unless it is a picture.
    if prompt is None and values and not os.path.exists(values[-1]):  # noqa: PTH110 - Path.exists raises for a long question
        prompt = values.pop()
    if prompt == "-" or (prompt is None and stdin_is_pipe()):
        prompt = read_stdin("the question").strip()
    paths = [Path(value) for value in values]
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    if len(videos) + (config.video is not None) > 1:
        raise UsageError("one video at a time")
    images = tuple(path for path in paths if path not in videos)
    video = videos[0] if videos else config.video
    return dataclasses.replace(config, input=(), image=(*images, *config.image), video=video, prompt=prompt)


def expand(config: Config) -> list[Config]:
    """A folder stands for a job per picture in it."""
    folders = [path for path in config.pictures() if os.path.isdir(path)]  # noqa: PTH112 - takes any text
    if not folders:
        return [config]
    if len(config.pictures()) > 1 or config.video:
        raise UsageError(f"{folders[0]}: a folder goes alone")
    found = sorted(p for p in folders[0].iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not found:
        raise InvalidInputError(f"{folders[0]}: no picture in it ({', '.join(IMAGE_SUFFIXES)})")
    return [dataclasses.replace(config, image=(path,), images=()) for path in found]


def question(item: Config) -> str:
    """The text sent with the pictures."""
    prompt = item.prompt if item.prompt is not None else " ".join(item.input or ())
    if item.boxes:
        return prompt + answers.BOXES_REQUEST
    if item.schema:
        return prompt + answers.schema_request(answers.load_schema(item.schema))
    return prompt


def check(item: Config) -> None:
    """Look at an item's input before anything is loaded."""
    if not question(item).strip():
        raise UsageError("no question: give --prompt, or the question as the last argument")
    if item.prompt == "-":
        raise UsageError("--prompt -: not with --inputs-from, whose lines have questions of their own")
    for text in (question(item), item.system or ""):
        if any(word in text for word in PLACEHOLDERS):
            raise UsageError(f"the question holds {' or '.join(PLACEHOLDERS)}, which stand for pictures and videos")
    if not item.pictures() and item.video is None:
        raise UsageError("no picture: give a picture, a folder or --video")
    for path in item.pictures():
        if os.path.isdir(path):  # noqa: PTH112 - takes any text
            raise InvalidInputError(f"{path}: a folder; in a batch every line names its pictures")
        picture = read_image(path, item.max_image_pixels)
        if max(picture.size) > LONGEST_SHAPE * min(picture.size):
            raise InvalidInputError(
                f"{path}: {picture.width} x {picture.height} is more than {LONGEST_SHAPE} times as long as wide"
            )
    if item.video is not None:
        video.check(item.video, item.max_image_pixels)
    if item.boxes and len(item.pictures()) != 1:
        raise UsageError(f"--boxes: needs exactly one picture, not {len(item.pictures())}")
    if item.schema:
        answers.load_schema(item.schema)


@dataclasses.dataclass
class Model:
    """What the items are answered with; `total` counts them, `asked` those that had their turn. `recorded` goes onto spans."""

    run: Run
    processor: Any
    network: Any
    total: int
    recorded: dict[str, Any]
    asked: int = 0


def quantization(config: Config, run: Run, stored: int) -> str:
    """`none`, `nf4` or `int8`: what was asked for, or what fits the free memory. `stored` are bytes of 16-bit weights.

    Raises `UnavailableError` when the weights cannot fit, or bitsandbytes is not there for them.
    """
    wanted = "nf4" if config.use_4bit else "none" if config.full_precision else config.quantize
    whole = stored * run.dtype().itemsize / 2
    needed = {name: whole * share + WORKING_MEMORY for name, share in STORED.items()}
    free = device.free_memory(run.device)
    able = find_spec("bitsandbytes") is not None and not run.device.startswith("mps")
    chosen = wanted
    if wanted == "auto":
        chosen = "nf4" if needed["none"] > free and able and whole > WORKING_MEMORY else "none"
        run.info(
            f"--quantize {chosen}: {device.gigabytes(free)} free, {device.gigabytes(needed['none'])} needed without"
        )
    if chosen != "none" and not able:
        raise UnavailableError(f"--quantize {chosen}: needs bitsandbytes, which is not there for {run.device} here")
    if whole * STORED[chosen] > free:
        less = [f"--quantize {name}" for name in STORED if able and needed[name] < free]
        raise UnavailableError(
            f"not enough memory on {run.device}: {device.gigabytes(free)} free, about"
            f" {device.gigabytes(needed[chosen])} needed with --quantize {chosen} ({' or '.join(less) or 'free some'})"
        )
    return chosen


def plan(config: Config, items: list[Config], run: Run) -> dict[str, Any]:
    """For --dry-run: how the weights would be held with the memory that is free."""
    files = run.download_plans["model"].files
    try:
        return {"quantize": quantization(config, run, sum(f.size for f in files if f.path.endswith(".safetensors")))}
    except UnavailableError as error:
        return {"quantize": str(error)}


def attention(config: Config, run: Run) -> str:
    """The attention transformers is asked for. Raises `UnavailableError` when flash was asked for and is not there."""
    wanted = "flash" if config.use_flash_attention else config.attention
    usable = run.device.startswith("cuda") and find_spec("flash_attn") is not None
    if wanted == "flash" and not usable:
        raise UnavailableError(
            f"--attention flash: needs a CUDA GPU and the package flash-attn (device {run.device}; use --attention sdpa)"
        )
    return "flash_attention_2" if wanted != "sdpa" and usable else "sdpa"


def load(config: Config, run: Run) -> Model:
    implementation = attention(config, run)
    snapshot = run.weights()
    stored = sum((snapshot.path / file).stat().st_size for file in snapshot.files if file.endswith(".safetensors"))
    quantize = quantization(config, run, stored)
    run.config = dataclasses.replace(run.config, quantize=quantize, use_4bit=False, full_precision=False)
    with run.phase("load"):
        quiet_libraries("transformers", verbose=config.verbose)
        from networks.qwen3vl.model import load_network

        dtype = run.dtype()
        name = "smoke-test" if run.smoke else snapshot.repo
        run.info(
            f"model {name} at {snapshot.commit or 'local'}, {str(dtype).removeprefix('torch.')}, quantize {quantize}"
        )
        with run.loading():
            processor, network = load_network(snapshot.path, dtype, run.device, quantize, implementation)
    # Of a local folder nothing: paths tell about their maker.
    recorded = {GenAI.REQUEST_MODEL: snapshot.repo} if snapshot.commit else {}
    return Model(run, processor, network, len(run.items), recorded)


def group(items: list[Config], model: Model) -> list[list[int]]:
    """Questions answered together: in order, `--batch-size` at a time, with the same sampling settings."""
    groups: list[list[int]] = []
    for index, item in enumerate(items):
        last = groups[-1] if groups else []
        fits = last and len(last) < model.run.config.batch_size and _sampling(items[last[0]]) == _sampling(item)
        if fits and not (item.schema or item.boxes):
            last.append(index)
        else:
            groups.append([index])
    return groups


def _sampling(item: Config) -> tuple:
    special = (item.schema, item.boxes)
    return (
        item.max_tokens,
        item.temperature,
        item.top_p,
        item.top_k,
        item.repetition_penalty,
        item.min_pixels,
        item.max_pixels,
        special,
    )


def generate_batch(model: Model, items: list[Config], outs: list[ItemOutput]) -> Iterator[Result | ScriptError]:
    if len(items) == 1:
        announce(model, items)
        yield answer_one(model, items[0], outs[0])
        return
    prepared: list[Any] = []
    for item in items:
        try:
            prepared.append(preprocess(model, item))
        except ScriptError as error:
            prepared.append(error)  # this question's failure, not that of the others
    good = [inputs for inputs in prepared if not isinstance(inputs, ScriptError)]
    announce(model, items)
    with model.run.phase("generate"):
        replies = iter(answers_of(model, good, items[0]) if good else [])
        finished = [inputs if isinstance(inputs, ScriptError) else next(replies) for inputs in prepared]
        describe(model, items[0], [reply for reply in finished if not isinstance(reply, ScriptError)])
    for out, reply in zip(outs, finished, strict=True):
        if isinstance(reply, ScriptError):
            yield reply
            continue
        out.primary(out.stamped("qwen3vl_response", ".txt")).write_text(reply.text + "\n", encoding="utf-8")
        yield result(model, reply)


def announce(model: Model, items: list[Config]) -> None:
    """Where there are several questions, say which ones have their turn: stdout carries nothing but answers."""
    first, last = model.asked + 1, model.asked + len(items)
    model.asked = last
    if model.total > 1:
        which = f"question {first}" if first == last else f"questions {first}-{last}"
        names = [path.name for item in items for path in (*item.pictures(), *filter(None, [item.video]))]
        model.run.info(f"{which} of {model.total}: {', '.join(names)}")


def preprocess(model: Model, item: Config) -> Any:
    """Pictures and question as the model's inputs; the context is checked before anything is computed."""
    from networks.qwen3vl.model import Job, prepare

    run = model.run
    with run.phase("preprocess"):
        pictures = [read_image(path, item.max_image_pixels) for path in item.pictures()]
        for path, picture in zip(item.pictures(), pictures, strict=True):
            if picture.width * picture.height > item.max_pixels:
                run.info(
                    f"{path.name}: {picture.width} x {picture.height} is shrunk to about {item.max_pixels / 1e6:.1f} megapixels (--max-pixels)"
                )
        frames = video.sample(item.video, item.fps, item.max_frames, item.max_image_pixels) if item.video else None
        job = Job(question(item), item.system, pictures, frames, item.min_pixels, item.max_pixels)
        inputs = prepare(model.processor, job)
    tokens, limit = inputs["input_ids"].shape[1], model.network.config.text_config.max_position_embeddings
    if tokens + item.max_tokens > limit:
        raise UsageError(
            f"--max-tokens {item.max_tokens}: with the question's {tokens} tokens more than the context of {limit}"
        )
    return inputs


def answers_of(
    model: Model, prepared: list[Any], item: Config, seed: int | None = None, on_text: Any = None
) -> list[Any]:
    from networks.qwen3vl.model import Sampling, generate

    sampling = Sampling(item.max_tokens, item.temperature, item.top_p, item.top_k, item.repetition_penalty)
    return generate(model.processor, model.network, prepared, sampling, item.seed if seed is None else seed, on_text)


def answer_one(model: Model, item: Config, out: ItemOutput) -> Result:
    """Answer one question, streaming where the answer goes to stdout as text."""
    run = model.run
    inputs = preprocess(model, item)
    validated = item.schema is not None or item.boxes
    streams = not run.config.json and not validated
    name = out.stamped("qwen3vl_response", ".txt")
    pieces: list[str] = []

    def on_text(text: str) -> None:
        pieces.append(text)
        if streams:
            run.stdout.write(answers.harmless(text) if run.stdout.isatty() else text)
            run.stdout.flush()

    try:
        with run.phase("generate"):
            reply, usable = ask(model, item, inputs, pieces, on_text)
            describe(model, item, [reply])
    except Interrupted:
        if pieces:
            with atomic(out.folder / name.replace(".txt", ".incomplete.txt")) as partial:
                partial.write_text("".join(pieces), encoding="utf-8")
        raise
    if isinstance(usable, answers.Unusable):
        invalid = out.folder / name.replace(".txt", ".invalid.txt")
        with atomic(invalid) as partial:
            partial.write_text(reply.text, encoding="utf-8")
        times = "1 try" if tries(item) == 1 else f"{tries(item)} tries"
        raise PostConditionError(f"after {times} the answer {usable}; the last one is in {invalid}")
    if item.schema:
        # As programs read it: without the fence that models like to put around JSON.
        reply = dataclasses.replace(reply, text=answers.json_part(reply.text))
    out.primary(name).write_text(reply.text + "\n", encoding="utf-8")
    done = result(model, reply)
    if item.boxes:
        save_boxes(item, out, usable)
        done.report["boxes"] = usable
    if streams:
        run.stdout.write("\n")
        done.stdout = ""
    return done


def tries(item: Config) -> int:
    """How often a question may be asked; without chance every answer is the same."""
    return item.retries + 1 if item.temperature > 0 else 1


def ask(model: Model, item: Config, inputs: Any, pieces: list[str], on_text: Any) -> tuple[Any, Any]:
    """The reply and what was made of it; an unusable one is asked for again with another seed."""
    schema = answers.load_schema(item.schema) if item.schema else None
    for attempt in range(tries(item)):
        pieces.clear()
        (reply,) = answers_of(model, [inputs], item, item.seed + attempt, on_text)
        if schema is not None:
            usable = answers.check_schema(reply.text, schema)
        elif item.boxes:
            usable = answers.read_boxes(reply.text, read_image(item.pictures()[0], item.max_image_pixels).size)
        else:
            return reply, None
        if not isinstance(usable, answers.Unusable):
            return reply, usable
        model.run.info(f"try {attempt + 1} of {tries(item)}: the answer {usable}")
    return reply, usable


def save_boxes(item: Config, out: ItemOutput, boxes: list[dict]) -> None:
    path = item.pictures()[0]
    text = json.dumps({"image": path.name, "boxes": boxes}, ensure_ascii=False, indent=2)
    prefix = f"{out.label}_" if out.label else ""
    out.file(f"{prefix}{path.stem}_boxes.json").write_text(text + "\n", encoding="utf-8")
    picture = answers.draw_boxes(read_image(path, item.max_image_pixels), boxes)
    picture.save(out.file(f"{prefix}{path.stem}_boxes.png", role="preview"), format="PNG")


def describe(model: Model, item: Config, replies: list[Any]) -> None:
    """Put what was asked and answered onto the current span, and into the metrics."""
    spans = model.run.spans
    asked = sum(reply.input_tokens for reply in replies)
    answered = sum(reply.output_tokens for reply in replies)
    spans.set_attributes(
        {
            GenAI.OPERATION_NAME: "chat",
            **model.recorded,
            GenAI.REQUEST_TEMPERATURE: item.temperature,
            GenAI.REQUEST_TOP_P: item.top_p,
            GenAI.REQUEST_TOP_K: item.top_k,
            GenAI.REQUEST_MAX_TOKENS: item.max_tokens,
            GenAI.REQUEST_SEED: item.seed,
            GenAI.USAGE_INPUT_TOKENS: asked,
            GenAI.USAGE_OUTPUT_TOKENS: answered,
            GenAI.RESPONSE_FINISH_REASONS: [reply.finish_reason for reply in replies],
        }
    )
    spans.record_metric(GenAI.TOKEN_USAGE, asked, "{token}", {GenAI.TOKEN_TYPE: "input"})
    spans.record_metric(GenAI.TOKEN_USAGE, answered, "{token}", {GenAI.TOKEN_TYPE: "output"})
    if replies:
        spans.record_metric(GenAI.OPERATION_DURATION, replies[0].seconds, "s")


def result(model: Model, reply: Any) -> Result:
    """What `--json` tells about a reply."""
    return Result(
        report={
            "answer": reply.text,
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
            "finish_reason": reply.finish_reason,
            "seconds_to_first_token": reply.first_token_seconds,
            "tokens_per_second": round(reply.output_tokens / reply.seconds, 3) if reply.seconds else None,
        },
        stdout=(answers.harmless(reply.text) if model.run.stdout.isatty() else reply.text) + "\n",
    )


def smoke_test(folder: Path) -> Smoke:
    from PIL import Image, ImageDraw

    quiet_libraries("transformers")
    from tiny_checkpoints import qwen3vl

    picture = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(picture).ellipse((20, 10, 70, 55), fill="red")
    picture.save(folder / SMOKE_PICTURE)
    checkpoint = qwen3vl.build(folder / "checkpoint")
    return Smoke(
        settings={"image": (folder / SMOKE_PICTURE,), "prompt": SMOKE_QUESTION, "max_tokens": 16, "dtype": "fp32"},
        models={"model": checkpoint},
    )


SCRIPT = Script(
    name="qwen3vl",
    file=__file__,
    docstring=__doc__,
    config=Config,
    arrange=arrange,
    expand=expand,
    check=check,
    plan=plan,
    load=load,
    group=group,
    generate_batch=generate_batch,
    smoke_test=smoke_test,
    weights=WEIGHTS,
    line_field="image",
    prints_result=True,
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
