"""zimage_generation.py on a tiny checkpoint, against diffusers' own pipeline; the planner against a table."""

import hashlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_hub import FakeHub
from PIL import Image
from processes import ROOT, environment, everything_in, json_lines, run, run_record
from warm import Warm

from networks.zimage import plan as planning
from shared_utils.errors import UnavailableError
from shared_utils.image_files import read_parameters

SCRIPT = "zimage_generation.py"
REPO = "Tongyi-MAI/Z-Image-Turbo"
SMALL = ("--width", 64, "--height", 96, "--steps", 3)
GB = 10**9


@pytest.fixture(scope="module")
def warm():
    with Warm("from diffusers import ZImagePipeline, ZImageImg2ImgPipeline", "peft", "cyclopts") as server:
        yield server


@pytest.fixture(scope="module")
def checkpoint(warm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    made = warm.run("tests/zimage_reference.py", "make", folder / "tiny", cwd=folder)
    assert made.returncode == 0, made.stderr
    return folder / "tiny"


@pytest.fixture
def zimage(warm, checkpoint, tmp_path):
    def go(*args, **kwargs):
        return warm.run(SCRIPT, *args, "--model", checkpoint, cwd=tmp_path, **kwargs)

    return go


@pytest.fixture
def reference(warm, checkpoint, tmp_path):
    def draw(seeds=(5,), **wanted):
        folder = tmp_path / "reference"
        folder.mkdir(exist_ok=True)
        wanted["call"] = {"width": 64, "height": 96, "num_inference_steps": 3, "guidance_scale": 0.0} | wanted["call"]
        text = json.dumps({"seeds": seeds, **wanted})
        done = warm.run("tests/zimage_reference.py", "draw", checkpoint, text, cwd=folder)
        assert done.returncode == 0, done.stderr
        return [pixels(folder / f"{n}.png") for n in range(len(seeds))]

    return draw


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("zimage_*") if p.is_file())


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in images_in(folder)]


def photo(path: Path, size=(96, 128)) -> Path:
    """A picture with shapes in it, so that what is cut or turned shows."""
    image = Image.new("RGB", size, "navy")
    image.paste("orange", (size[0] // 4, 0, size[0] // 2, size[1] // 2))
    image.save(path)
    return path


# The same pictures as the pipeline itself


def test_text_to_image_equals_the_pipeline(zimage, reference, tmp_path):
    done = zimage("a red fox", *SMALL, "--seed", 5)
    assert done.returncode == 0, done.stderr
    (path,) = images_in(tmp_path / "output")
    assert done.stdout == f"{path}\n"
    assert pixels(path) == reference(call={"prompt": "a red fox"})[0]


def test_guidance_and_negative_prompt_equal_the_pipeline(zimage, reference, tmp_path):
    done = zimage("a red fox", *SMALL, "--seed", 5, "--guidance-scale", 2.5, "--negative-prompt", "blue", "-o", "a.png")
    assert done.returncode == 0, done.stderr
    assert "twice" in done.stderr
    call = {"prompt": "a red fox", "negative_prompt": "blue", "guidance_scale": 2.5}
    assert pixels(tmp_path / "a.png") == reference(call=call)[0]


def test_several_images_use_following_seeds(zimage, reference, tmp_path):
    done = zimage("a red fox", *SMALL, "--seed", 5, "--num-images", 2, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = json_lines(done.stdout)
    assert [image["seed"] for image in line["images"]] == [5, 6]
    assert [o["role"] for o in line["outputs"]] == ["primary", "primary"]
    for path, seed in zip(images_in(tmp_path / "output"), (5, 6), strict=True):
        assert pixels(path) == reference(seeds=[seed], call={"prompt": "a red fox"})[0]


def test_a_batch_of_two_equals_the_pipeline_called_with_both(zimage, reference, tmp_path):
    prompts = [
        "a red fox",
        "a much longer prompt about a blue whale, that fills another number of tokens than the first",
    ]
    done = zimage(*prompts, *SMALL, "--seed", 5, "--batch-size", 2)
    assert done.returncode == 0, done.stderr
    assert "images 1-2 of 2" in done.stderr
    wanted = reference(seeds=[5, 6], call={"prompt": prompts})
    assert [pixels(path) for path in images_in(tmp_path / "output")] == wanted


def test_image_to_image_equals_the_pipeline(zimage, reference, tmp_path):
    photo(tmp_path / "in.png", (64, 96))
    done = zimage("a red fox", "--steps", 4, "--seed", 5, "--image", "in.png", "--strength", 0.7, "-o", "a.png")
    assert done.returncode == 0, done.stderr
    call = {"prompt": "a red fox", "num_inference_steps": 4, "strength": 0.7}
    assert pixels(tmp_path / "a.png") == reference(call=call, image=str(tmp_path / "in.png"))[0]


def test_lora_equals_the_pipeline_with_it(zimage, reference, checkpoint, tmp_path):
    file = checkpoint.parent / "lora" / "pytorch_lora_weights.safetensors"
    done = zimage("a red fox", *SMALL, "--seed", 5, "--lora", f"{file}:0.5", "--lora", file, "-o", "a.png")
    assert done.returncode == 0, done.stderr
    assert read_parameters(tmp_path / "a.png")["lora"].count("pytorch_lora_weights.safetensors") == 2
    made = pixels(tmp_path / "a.png")
    assert made == reference(call={"prompt": "a red fox"}, lora=[[str(file), 0.5], [str(file), 1.0]])[0]
    assert made != reference(call={"prompt": "a red fox"})[0]


# Plans

CARDS = [  # GiB on the card, side of the image: what runs there
    (80, 1024, "none", "none", False),
    (24, 1024, "none", "none", False),
    (24, 2048, "none", "none", True),
    (16, 1024, "model", "none", False),
    (12, 1024, "model", "fp8", False),
    (12, 2048, "model", "fp8", True),
    (8, 1024, "model", "nf4", False),
    (6, 1024, "group", "none", False),
    (4, 2048, "group", "none", True),
]


@pytest.mark.parametrize(("gib", "side", "offload", "quantize", "tiling"), CARDS)
def test_auto_takes_the_fastest_plan_that_fits_the_card(gib, side, offload, quantize, tiling):
    free = 0.965 * gib * 2**30 - 0.3 * GB  # what driver and context leave
    work = planning.Work(pixels=side * side)
    plan, fits = planning.choose_plan(free, "cuda", "auto", "auto", "auto", planning.Sizes(), work)
    assert fits and plan.peak <= free
    assert (plan.offload, plan.quantize, plan.tiling) == (offload, quantize, tiling)


@pytest.mark.parametrize(
    ("kind", "free", "offload", "quantize"),
    [
        ("cpu", 30, "none", "none"),
        ("cpu", 16, "model", "none"),
        ("cpu", 10, "model", "int8"),
        ("mps", 30, "none", "none"),
        ("mps", 16, "model", "none"),
    ],
)
def test_auto_in_main_memory(kind, free, offload, quantize):
    plan, _ = planning.choose_plan(free * GB, kind, "auto", "auto", "auto", planning.Sizes(), planning.Work())
    assert (plan.offload, plan.quantize) == (offload, quantize)


def test_flags_narrow_the_choice():
    choose = planning.choose_plan
    sizes, work = planning.Sizes(), planning.Work()
    assert choose(80 * GB, "cuda", "model", "auto", "auto", sizes, work)[0].quantize == "none"
    assert choose(10 * GB, "cuda", "model", "auto", "auto", sizes, work)[0].quantize == "fp8"
    assert choose(12 * GB, "cuda", "auto", "int8", "auto", sizes, work)[0].offload == "model"
    assert choose(80 * GB, "cuda", "auto", "auto", "on", sizes, work)[0].tiling
    plan, fits = choose(2 * GB, "cuda", "none", "none", "auto", sizes, work)
    assert not fits and (plan.offload, plan.tiling) == ("none", True), "what the user insists on is tried"


def test_nothing_fits():
    for kind in ("cuda", "cpu", "mps"):
        with pytest.raises(UnavailableError, match=r"1\.0 GB free"):
            planning.choose_plan(GB, kind, "auto", "auto", "auto", planning.Sizes(), planning.Work())


def test_each_next_plan_needs_less_until_none_is_left():
    sizes, work = planning.Sizes(), planning.Work(pixels=2048 * 2048)
    plan, seen = planning.plans("cuda", "none", "none", "off", sizes, work)[0], []
    while plan is not None:
        seen.append(plan)
        plan = planning.next_plan(plan, "cuda", sizes, work)
    assert [p.offload for p in seen][-1] == "group" and len(seen) >= 4
    assert all(a.peak > b.peak for a, b in itertools.pairwise(seen))


def test_a_larger_job_never_needs_less():
    def peak(**work):
        return planning.peak_bytes("model", "none", False, planning.Sizes(), planning.Work(**work))

    assert peak(pixels=64 * 64) < peak(pixels=1024 * 1024) < peak(pixels=2048 * 2048)
    assert peak(images=4) > peak() and peak(guided=True, images=4) > peak(images=4)
    assert peak(number_bytes=4) > peak()


@pytest.mark.slow
def test_estimates_are_a_little_above_what_the_full_size_networks_take(warm, tmp_path):
    """Peaks of the real shapes, traced with tensors that have sizes and no contents."""
    done = warm.run("tests/zimage_reference.py", "trace", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    traced = json.loads(done.stdout)
    assert 1.1 < planning.Work().decode_bytes(tiled=False) / traced["decode"] < 1.6
    assert 1.1 < planning.Work(images=2).denoise_bytes() / traced["denoise"] < 1.6


def test_images_at_a_time():
    sizes, work = planning.Sizes(), planning.Work()
    plan = planning.choose_plan(80 * GB, "cuda", "auto", "auto", "auto", sizes, work)[0]
    assert planning.batch_size(80 * GB, "cuda", plan, sizes, work) == 4
    assert planning.batch_size(80 * GB, "cuda", plan, sizes, planning.Work(pixels=256 * 256)) == 8
    assert planning.batch_size(80 * GB, "cuda", plan, sizes, planning.Work(pixels=2048 * 2048)) == 1
    assert planning.batch_size(plan.peak + 1, "cuda", plan, sizes, planning.Work(guided=True)) == 1
    assert planning.batch_size(80 * GB, "cpu", plan, sizes, work) == 1


@pytest.mark.parametrize("flags", [["--offload", "model"], ["--offload", "group"], ["--vae-tiling", "on"]])
def test_where_the_weights_are_does_not_change_the_picture(zimage, reference, tmp_path, flags):
    done = zimage("a red fox", *SMALL, "--seed", 5, *flags, "-o", "a.png", "--attention", "native")
    assert done.returncode == 0, done.stderr
    assert pixels(tmp_path / "a.png") == reference(call={"prompt": "a red fox"})[0]
    config = run_record(tmp_path / "output")["config"]
    assert (
        config["offload"] in ("none", flags[1])
        and config["quantize"] == "none"
        and config["vae_tiling"] in ("on", "off")
    )


@pytest.mark.parametrize("quantize", ["fp8", "int8"])
def test_quantised_pictures_are_near_the_full_ones(zimage, reference, tmp_path, quantize):
    made = []
    for offload in ("model", "group"):
        done = zimage(
            "a red fox", *SMALL, "--seed", 5, "--quantize", quantize, "--offload", offload, "-o", f"{offload}.png"
        )
        assert done.returncode == 0, done.stderr
        made.append(pixels(tmp_path / f"{offload}.png"))
    full = reference(call={"prompt": "a red fox"})[0]
    assert made[0] == made[1] != full
    difference = sum(abs(a - b) for a, b in zip(made[0], full, strict=True)) / len(full)
    assert difference < 8, f"mean difference of {difference:.1f} of 255"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--offload", "sequential"], ["sequential", "cuda"]),
        (["--quantize", "nf4"], ["nf4", "cuda"]),
        (["--attention", "flash"], ["flash", "native"]),
        (["--attention", "sage"], ["sage", "native"]),
        (["--device", "cuda:7"], ["cuda:7"]),
    ],
)
def test_what_a_cpu_cannot_do_ends_with_69(zimage, tmp_path, flags, words):
    done = zimage("a red fox", *SMALL, *flags)
    assert done.returncode == 69
    assert all(word in done.stderr.splitlines()[-1] for word in words)
    assert images_in(tmp_path) == []


# Running out of memory, and pictures that are none


@pytest.mark.parametrize("fault", ["cuda", "load", "memory"])
def test_out_of_memory_names_the_next_plan(warm, checkpoint, tmp_path, fault):
    size, advice = (64, 64), "--offload model --quantize none"
    if fault == "memory":
        size, advice = (2048, 2048), "--offload none --quantize none --vae-tiling on"
    args = ("a red fox", "--model", checkpoint, "--width", size[0], "--height", size[1], "--steps", 1, "--seed", 1)
    done = warm.run("tests/zimage_faults.py", fault, *args, "--vae-tiling", "off", cwd=tmp_path)
    assert done.returncode == 69, done.stderr
    error = done.stderr.splitlines()[-1]
    assert "out of memory" in error and "GB were free" in error and f"try {advice}" in error
    assert everything_in(tmp_path) == []


def test_a_picture_that_is_none_is_not_left(warm, checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    made = warm.run("tests/zimage_reference.py", "break", broken, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    done = warm.run(SCRIPT, "a red fox", *SMALL, "--model", broken, "-o", "a.png", cwd=tmp_path)
    assert done.returncode == 70, done.stderr
    assert "--dtype fp32" in done.stderr
    assert not (tmp_path / "a.png").exists() and images_in(tmp_path / "output") == []


# Files


def test_png_carries_its_parameters(zimage, tmp_path):
    prompt = "Füchse im Schnee — 雪の中の狐"
    done = zimage(prompt, *SMALL, "--seed", 7, "-o", "a.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png") as image:
        text = dict(image.text)
    assert text["prompt"] == prompt
    expected = {"seed": "7", "steps": "3", "width": "64", "height": "96", "size": "64x96", "guidance_scale": "0"}
    assert expected.items() <= text.items()
    assert text["model"] == "tiny" and text["revision"] == "local"
    assert text["Software"].startswith("zimage_generation ")
    assert str(tmp_path.parent) not in json.dumps(text), "paths stay at home"


@pytest.mark.parametrize(("suffix", "format"), [("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_jpeg_and_webp_carry_them_as_exif(zimage, tmp_path, suffix, format):
    done = zimage("Füchse 狐", *SMALL, "--seed", 7, "-o", f"a.{suffix}", "--quality", 80)
    assert done.returncode == 0, done.stderr
    path = tmp_path / f"a.{suffix}"
    with Image.open(path) as image:
        assert image.format == format and image.size == (64, 96)
    assert read_parameters(path)["prompt"] == "Füchse 狐" and read_parameters(path)["seed"] == "7"


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_no_metadata(zimage, tmp_path, format):
    done = zimage("zebracorn", *SMALL, "--no-metadata", "--format", format)
    assert done.returncode == 0, done.stderr
    (path,) = images_in(tmp_path / "output")
    assert path.suffix == f".{format}" and read_parameters(path) == {}
    assert b"zebracorn" not in path.read_bytes()


def test_replay_makes_the_same_bytes(zimage, warm, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = zimage("a red fox", "a blue whale", *SMALL, "--num-images", 2, "--output-dir", tmp_path / "one")
    assert first.returncode == 0, first.stderr
    (record,) = (tmp_path / "one").glob("*/run.json")
    again = warm.run(SCRIPT, "--config", record, "--output-dir", tmp_path / "two", cwd=tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert len(digests(tmp_path / "one")) == 4
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(set(digests(tmp_path / "one"))) == 4


def test_image_to_image_takes_the_shape_of_the_photo(zimage, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (200, 100), "red").save(tmp_path / "turned.jpg", exif=exif)
    done = zimage("a fox", "--steps", 2, "--image", "turned.jpg", "-o", "a.png")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "a.png").size == (96, 192), "upright, in multiples of 16"
    done = zimage("a fox", "--steps", 2, "--image", "turned.jpg", "--width", 64, "-o", "b.png")
    assert Image.open(tmp_path / "b.png").size == (64, 128)


# Batches


def test_one_bad_item_of_ten_and_resume(zimage, tmp_path):
    lines = [{"prompt": f'fox number {n} <b>&"quoted"</b>'} for n in range(10)]
    lines[4]["image"] = "missing.png"
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    args = ("--inputs-from", "prompts.jsonl", "--width", 64, "--height", 64, "--steps", 1, "--resume", "run")
    done = zimage(*args, "--seed", 100)
    assert done.returncode == 3, done.stderr
    folder = tmp_path / "run"
    assert len(images_in(folder)) == 9 and len(done.stdout.splitlines()) == 9
    assert "missing.png" in done.stderr
    page = Page(folder / "index.html")
    assert len(page.images) == 9 and page.prompts[0] == lines[0]["prompt"]
    assert all((folder / link).is_file() for link in page.links)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in images_in(folder)}

    photo(tmp_path / "missing.png", (64, 64))
    done = zimage(*args, "--json")
    assert done.returncode == 0, done.stderr
    statuses = [line["status"] for line in json_lines(done.stdout)]
    assert statuses.count("skipped") == 9 and statuses.count("ok") == 1
    assert all((p.stat().st_mtime_ns, p.read_bytes()) == was for p, was in before.items())
    assert len(images_in(folder)) == 10
    assert len(Page(folder / "index.html").images) == 10
    (made,) = [line for line in json_lines(done.stdout) if line["status"] == "ok"]
    assert made["index"] == 4 and made["seed"] == 104

    alone = zimage(lines[7]["prompt"], "--width", 64, "--height", 64, "--steps", 1, "--seed", 107, "-o", "alone.png")
    assert alone.returncode == 0
    assert (tmp_path / "alone.png").read_bytes() in {content for _, content in before.values()}


def test_sigterm_keeps_what_is_finished(zimage, warm, checkpoint, tmp_path):
    # Two that are soon there, and three that take their time.
    rows = [{"prompt": f"fox {n}", "steps": 1 if n < 2 else 100} for n in range(5)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    args = ("--inputs-from", "p.jsonl", "--model", checkpoint, "--seed", 1, "--width", 64, "--height", 64)
    args = (*args, "--resume", "run")
    child = warm.start(SCRIPT, *args, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while len(images_in(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.terminate()
    done = child.wait()
    assert done.returncode == 143, done.stderr
    kept = images_in(tmp_path / "run")
    assert 2 <= len(kept) < 5 and all(Image.open(p).size == (64, 64) for p in kept)
    assert not [p for p in everything_in(tmp_path) if "partial" in p]
    assert run_record(tmp_path / "run")["status"] == "interrupted"
    done = warm.run(SCRIPT, *args, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line["status"] for line in json_lines(done.stdout)].count("skipped") == len(kept)
    assert len(images_in(tmp_path / "run")) == 5


def test_items_of_one_size_go_together(zimage, tmp_path):
    rows = [
        {"prompt": "a", "width": 64},
        {"prompt": "b", "width": 80},
        {"prompt": "c", "width": 64},
        {"prompt": "d", "steps": 1},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = zimage("--inputs-from", "p.jsonl", *SMALL, "--batch-size", 8, "--seed", 0, "--json")
    assert done.returncode == 0, done.stderr
    lines = json_lines(done.stdout)
    assert [line["index"] for line in lines] == [0, 2, 1, 3]
    assert [(line["width"], line["steps"]) for line in lines] == [(64, 3), (64, 3), (80, 3), (64, 1)]


# The page


class Page(HTMLParser):
    """What a reader sees of index.html."""

    def __init__(self, path: Path):
        super().__init__()
        self.images, self.links, self.commands, self.prompts = [], [], [], []
        self._prompt = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self._prompt = values.get("class") == "prompt"
        if tag == "img":
            self.images.append(values["src"])
        elif tag == "a":
            self.links.append(values["href"])
        elif "data-command" in values:
            self.commands.append(values["data-command"])

    def handle_data(self, data):
        if self._prompt:
            self.prompts.append(data)
            self._prompt = False


def test_gallery_shows_each_picture_and_the_command_that_makes_it(zimage, warm, tmp_path):
    prompts = ["it's a <script>alert(1)</script> fox", "--a whale"]
    done = zimage(
        "--prompt",
        prompts[0],
        f"--prompt={prompts[1]}",
        *SMALL,
        "--seed",
        3,
        "--guidance-scale",
        1.5,
        "--negative-prompt",
        "x",
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "output").glob("*/index.html")
    page = Page(path)
    assert page.prompts == prompts and all(src.startswith("data:image/jpeg;base64,") for src in page.images)
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", path.read_text()), "self-contained"
    assert run_record(tmp_path / "output")["outputs"][-1]["role"] == "gallery"
    for command, original in zip(page.commands, images_in(tmp_path / "output"), strict=True):
        words = shlex.split(command)
        assert words[:3] == ["uv", "run", SCRIPT]
        again = warm.run(SCRIPT, *words[3:], "-o", "again.png", "--overwrite", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert (tmp_path / "again.png").read_bytes() == original.read_bytes()


def test_gallery_in_a_browser(zimage, tmp_path):
    browser = next((b for b in ("chromium-headless-shell", "chromium", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium-headless-shell)")
    done = zimage("a red fox", "a blue whale", *SMALL, "--seed", 3)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "output").glob("*/index.html")
    probe = """<script>
      for (const button of document.querySelectorAll("button")) button.click();
      addEventListener("load", () => setTimeout(() => {
        const seen = [...document.images].filter(i => i.naturalWidth > 0 && i.getBoundingClientRect().width > 0).length;
        const words = [...document.querySelectorAll("button")].map(b => b.textContent);
        document.body.dataset.seen = seen; document.body.dataset.words = words.join("|");
      }, 300));
    </script>"""
    (tmp_path / "probe.html").write_text(path.read_text(encoding="utf-8").replace("</body>", probe + "</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*command, "--virtual-time-budget=1200", "--dump-dom", f"file://{tmp_path / 'probe.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert 'data-seen="2"' in shown.stdout, shown.stdout[-500:] + shown.stderr[-2000:]
    assert re.search(r'data-words="(Copied|Copying is blocked)\|', shown.stdout)


# What the user is told


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["x", "--width", 1000], 2, ["--width 1000", "multiple of 16"]),
        (["x", "--height", 2064], 2, ["--height 2064", "64 to 2048"]),
        (["x", "--width", 48], 2, ["--width 48", "64 to 2048"]),
        (["x", "--steps", 0], 2, ["--steps 0"]),
        (["x", "--guidance-scale", "nan"], 2, ["--guidance-scale nan"]),
        (["x", "--strength", 0], 2, ["--strength 0", "above 0"]),
        (["x", "--batch-size", "many"], 2, ["--batch-size many", "auto or 1 to 64"]),
        (["x", "--num-images", 2, "-o", "a.png"], 2, ["--num-images 2", "a.png"]),
        (["x", "-o", "a.gif"], 2, ["a.gif", ".png, .jpg or .webp"]),
        (["x", "-o", "a.png", "--format", "jpg"], 2, ["a.png", "jpg"]),
        (["x", "--quality", 80], 2, ["--quality 80", "PNG"]),
        (["x", "--lora", "a/b:x"], 2, ["a/b:x", "not a number"]),
        (["x", "--lora", "notes.bin"], 2, ["notes.bin", ".safetensors"]),
        (["x", "--lora", "missing.safetensors"], 66, ["missing.safetensors"]),
        (["x", "--image", "missing.png"], 66, ["missing.png"]),
        (["x", "--image", "notes.bin"], 65, ["notes.bin", "not an image"]),
        (["x", "--offload", "sequential", "--quantize", "nf4"], 2, ["sequential", "nf4"]),
        (["x", "--offload", "group", "--compile"], 2, ["--compile", "group"]),
        ([" "], 2, ["--prompt", "empty"]),
    ],
)
def test_refused_before_anything_is_loaded(zimage, tmp_path, args, code, words):
    (tmp_path / "notes.bin").write_text("not a picture")
    done = zimage(*args, "--seed", 1)
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert everything_in(tmp_path) == ["notes.bin"]


def test_a_lora_that_does_not_fit_is_refused(zimage, warm, checkpoint, tmp_path):
    shutil.copy(checkpoint / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "other.safetensors")
    done = zimage("x", *SMALL, "--lora", "other.safetensors")
    assert done.returncode == 65, done.stderr
    assert "other.safetensors" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("damage", ["config", "shard", "missing", "other", "tokenizer"])
def test_a_folder_that_is_no_model_is_said_to_be_none(warm, checkpoint, tmp_path, damage):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    shard = min((folder / "transformer").glob("*.safetensors"))
    if damage == "config":
        (folder / "transformer" / "config.json").write_text("{")
    elif damage == "shard":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif damage == "missing":
        shard.unlink()
    elif damage == "other":
        (folder / "model_index.json").unlink()
    else:
        (folder / "tokenizer" / "tokenizer.json").unlink()
    done = warm.run(SCRIPT, "x", *SMALL, "--model", "model", cwd=tmp_path)
    assert done.returncode == 65, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --model model: cannot be loaded (")
    assert images_in(tmp_path) == []


def test_a_cut_prompt_is_reported(zimage, tmp_path):
    done = zimage("one two three four five " * 30, *SMALL, "--max-sequence-length", 32, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = json_lines(done.stdout)
    (warning,) = line["warnings"]
    assert re.search(r"\d+ tokens is cut to 32 \(--max-sequence-length\) after '.*(one|two|three|four|five)", warning)


def test_a_negative_prompt_without_guidance_is_reported(zimage):
    done = zimage("a", *SMALL, "--negative-prompt", "b", "--json")
    assert done.returncode == 0
    assert "--guidance-scale 0" in json_lines(done.stdout)[0]["warnings"][0]


def test_prompt_from_stdin(zimage, tmp_path):
    done = zimage("-", *SMALL, "-o", "a.png", stdin="a fox\nin two lines\n")
    assert done.returncode == 0, done.stderr
    assert read_parameters(tmp_path / "a.png")["prompt"] == "a fox\nin two lines"


def test_dry_run_says_how_it_would_be_done_and_loads_nothing(zimage, tmp_path):
    done = zimage("a", "b", "--num-images", 2, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    (plan,) = json_lines(done.stdout)
    assert plan["images"] == 4 and plan["device"] == "cpu" and plan["plan"].startswith("--offload none")
    assert plan["weights"][0]["fetch_bytes"] == 0
    assert everything_in(tmp_path) == []


def test_dry_run_lists_the_lora_of_a_repository_too(zimage, checkpoint, tmp_path):
    lora = checkpoint.parent / "lora"
    with FakeHub({"someone/style": lora}) as hub:
        done = zimage(
            "a", "--lora", "someone/style:0.5", "--dry-run", "--json", "--weights-dir", "w", **hub.environment
        )
        assert done.returncode == 0, done.stderr
        assert len(hub.log) == 1, "one request"
    (plan,) = json_lines(done.stdout)
    assert plan["weights"][1]["repo"] == "someone/style"
    assert plan["weights"][1]["fetch_bytes"] == (lora / "pytorch_lora_weights.safetensors").stat().st_size
    assert everything_in(tmp_path) == []


def test_after_the_largest_seed_comes_zero(zimage, tmp_path):
    done = zimage("a", "b", *SMALL, "--num-images", 2, "--seed", 2**32 - 1, "--json")
    assert done.returncode == 0, done.stderr
    seeds = [[image["seed"] for image in line["images"]] for line in json_lines(done.stdout)]
    assert seeds == [[2**32 - 1, 0], [0, 1]]


def test_half_a_character_is_that_prompts_failure(zimage, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a \\ud83e fox"}\n{"prompt": "a fox"}\n')
    done = zimage("--inputs-from", "p.jsonl", *SMALL)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert "not valid text" in done.stderr and len(images_in(tmp_path)) == 1


def test_spans_and_metrics(zimage, tmp_path):
    done = zimage("zebracorn", *SMALL, "--seed", 5)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "output").glob("*/opentelemetry_trace.json")
    trace = json.loads(path.read_text())
    (root,) = trace["spans"]
    assert root["name"] == "zimage.run"
    spans = {span["name"]: span for span in root["children"]}
    named = ("download_weights", "load", "encode", "denoise", "decode", "save")
    assert {f"zimage.{name}" for name in named} <= set(spans)
    seen = spans["zimage.denoise"]["attributes"]
    assert {"width": 64, "height": 96, "steps": 3, "seed": 5}.items() <= seen.items() and seen["peak_memory_bytes"] > 0
    assert {"zimage.images", "zimage.denoise.duration"} <= {metric["name"] for metric in trace["metrics"]}
    assert "zebracorn" not in path.read_text()
    seconds = run_record(tmp_path / "output")["seconds"]
    assert {"load", "encode", "denoise", "decode", "save"} <= set(seconds)


# As real processes


def test_from_the_hub_once_and_then_without_any_request(checkpoint, tmp_path):
    (tmp_path / "weights").mkdir()
    repos = {REPO: checkpoint, "someone/style": checkpoint.parent / "lora"}
    args = ("a red fox", *SMALL, "--seed", 5, "--weights-dir", tmp_path / "weights", "--lora", "someone/style:0.5")
    with FakeHub(repos) as hub:
        first = run(SCRIPT, *args, "-o", "first.png", cwd=tmp_path, **hub.environment)
        assert first.returncode == 0, first.stderr
        assert hub.requests("model-00002-of-00002.safetensors", "GET"), "the text encoder comes in shards"
        commit = hub.commit(REPO)
        hub.log.clear()
        second = run(SCRIPT, *args, "-o", "second.png", cwd=tmp_path, **hub.environment)
        assert second.returncode == 0, second.stderr
        assert hub.log == []
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    parameters = read_parameters(tmp_path / "first.png")
    assert parameters["model"] == REPO and parameters["revision"] == commit
    assert parameters["lora"].startswith("someone/style@") and parameters["lora"].endswith(":0.5")
    records = [json.loads(p.read_text()) for p in (tmp_path / "output").glob("*/run.json")]
    assert all(r["models"]["model"]["commit"] == commit for r in records)
    talk = [
        line
        for line in first.stderr.splitlines()
        if not re.match(r"device|model|encoding|image|downloading|checking", line)
    ]
    assert talk == [], "nothing but our own lines"


def test_smoke_test(warm, tmp_path):
    done = warm.run(SCRIPT, "--smoke-test", "-o", "a.png", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = json_lines(done.stdout)
    assert line["model"] == "smoke-test" and line["status"] == "ok"
    assert read_parameters(tmp_path / "a.png")["model"] == "smoke-test"
    record = (next((tmp_path / "output").glob("*/run.json"))).read_text()
    assert "smoke-test-" not in record, "no temporary path"


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, runpy\nsys.argv = [sys.argv[1], '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'transformers', 'diffusers', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(PYTHONPATH=str(ROOT)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines()[:-8])


def test_alone_it_says_what_it_needs(tmp_path):
    shutil.copy(ROOT / SCRIPT, tmp_path)
    done = subprocess.run(
        [sys.executable, SCRIPT, "x"], capture_output=True, text=True, cwd=tmp_path, env=environment()
    )
    assert done.returncode == 78 and len(done.stderr.splitlines()) == 1
    assert "/ beside it" in done.stderr and "bundle.py" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_compiled_blocks_make_nearly_the_same_picture(zimage, reference, tmp_path):
    done = zimage("a red fox", *SMALL, "--seed", 5, "--compile", "-o", "a.png")
    assert done.returncode == 0, done.stderr
    made, plain = pixels(tmp_path / "a.png"), reference(call={"prompt": "a red fox"})[0]
    assert sum(abs(a - b) for a, b in zip(made, plain, strict=True)) / len(plain) < 4


def test_compile_needs_a_compiler(zimage, tmp_path):
    done = zimage("a red fox", *SMALL, "--compile", PATH=str(tmp_path), CXX="")
    assert done.returncode == 69 and "C++ compiler" in done.stderr
