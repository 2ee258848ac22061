"""qwen3vl_inference.py end to end on a tiny random checkpoint, against direct calls of transformers."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fake_hub import FakeHub
from PIL import Image
from processes import ROOT, environment, everything_in, json_lines, run, run_record
from safetensors.numpy import load_file, save_file
from warm import Warm

from shared_utils.errors import PostConditionError, UnavailableError

SCRIPT = "qwen3vl_inference.py"
REPO = "Qwen/Qwen3-VL-4B-Instruct"
SHORT = ("--max-tokens", 12, "--dtype", "fp32", "--seed", 3)


@pytest.fixture(scope="module")
def warm():
    imports = ("torch", "from transformers import AutoProcessor, Qwen3VLForConditionalGeneration", "av", "jsonschema")
    with Warm(*imports) as server:
        yield server


@pytest.fixture(scope="module")
def checkpoint(warm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3vl")
    made = warm.run("tests/qwen3vl_reference.py", "make", folder / "tiny", cwd=folder)
    assert made.returncode == 0, made.stderr
    return folder / "tiny"


def picture(path: Path, size=(200, 120), mode="RGB", **kwargs) -> Path:
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1).astype(np.uint8)
    Image.fromarray(rgb).convert(mode).save(path, **kwargs)
    return path


@pytest.fixture
def ask(warm, checkpoint, tmp_path):
    def call(*args, stdin=None, **env):
        return warm.run(SCRIPT, *args, "--model", checkpoint, *SHORT, cwd=tmp_path, stdin=stdin, **env)

    return call


@pytest.fixture
def direct(warm, checkpoint, tmp_path):
    """The bare transformers call."""

    def call(**wanted) -> str:
        done = warm.run("tests/qwen3vl_reference.py", "ask", checkpoint, json.dumps(wanted), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def test_answers_equal_a_direct_call_greedy_and_sampled_streamed_or_not(ask, direct, tmp_path):
    wanted = {"image": str(picture(tmp_path / "a.png", (400, 320))), "prompt": "what is this?"}
    question = (wanted["image"], wanted["prompt"])
    greedy = ask(*question, "--temperature", 0)
    assert greedy.returncode == 0, greedy.stderr
    assert greedy.stdout == direct(**wanted) + "\n"
    (sampled,) = json_lines(ask(*question, "--json").stdout)
    assert sampled["answer"] == direct(**wanted, seed=3)
    assert sampled["finish_reason"] in ("stop", "length") and sampled["output_tokens"] <= 12
    assert sampled["input_tokens"] > 100 and sampled["seconds_to_first_token"] > 0 and sampled["tokens_per_second"] > 0
    (saved,) = (Path(o["path"]) for o in sampled["outputs"])
    assert saved.name.startswith("qwen3vl_response_") and saved.read_text() == sampled["answer"] + "\n"
    assert ask(*question).stdout == sampled["answer"] + "\n"
    assert ask(*question, "--top-k", 0).stdout == direct(**wanted, seed=3, top_k=0) + "\n"


def test_batch_answers_equal_single_ones(ask, tmp_path):
    jobs = [
        {"image": "a.png", "prompt": "hi"},
        {"images": ["a.png", "b.png"], "prompt": "describe both in detail, please"},
        {"image": "b.png", "prompt": "what?"},
    ]
    picture(tmp_path / "a.png", (300, 260))
    picture(tmp_path / "b.png", (500, 280))
    (tmp_path / "jobs.jsonl").write_text("\n".join(json.dumps(j) for j in jobs))
    together = ask("--inputs-from", "jobs.jsonl", "--batch-size", 3, "--temperature", 0, "--json")
    assert together.returncode == 0, together.stderr
    alone = ask("--inputs-from", "jobs.jsonl", "--temperature", 0, "--json")
    answers = [[line["answer"] for line in json_lines(done.stdout)] for done in (together, alone)]
    assert answers[0] == answers[1] and len(answers[0]) == 3


def test_folder_and_questions_from_stdin(ask, tmp_path):
    (tmp_path / "pics").mkdir()
    for name in ("x.png", "y.jpg", "notes.txt"):
        target = tmp_path / "pics" / name
        target.write_text("no picture") if name.endswith("txt") else picture(target)
    done = ask("pics", "what?", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json_lines(done.stdout)) == 2
    piped = ask("pics/x.png", "--json", stdin="what?\n")
    assert piped.returncode == 0, piped.stderr
    assert json_lines(piped.stdout)[0]["answer"] == json_lines(done.stdout)[0]["answer"]


def test_a_bad_question_of_a_batch_fails_alone(ask, tmp_path):
    picture(tmp_path / "a.png")
    Image.new("RGB", (900, 4)).save(tmp_path / "line.png")
    jobs = [
        {"image": "a.png", "prompt": "what?"},
        {"image": "a.png", "prompt": "too much " * 2000},
        {"image": "a.png", "prompt": "<|image_pad|>"},
        {"image": "a\0.png", "prompt": "what?"},
        {"image": "line.png", "prompt": "what?"},
        {"image": "a.png", "prompt": "-"},
        {"image": "a.png", "prompt": "what?"},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    done = ask("--inputs-from", "jobs.jsonl", "--batch-size", 8, "--temperature", 0, "--json")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    lines = sorted(json_lines(done.stdout), key=lambda line: line["index"])
    assert [line.get("exit_code", 0) for line in lines] == [0, 2, 2, 65, 65, 2, 0]
    assert lines[0]["answer"] == lines[-1]["answer"]


def test_a_question_as_long_as_it_likes(ask, tmp_path):
    done = ask(picture(tmp_path / "a.png"), "what is this? " * 40)
    assert done.returncode == 0, done.stderr


def test_the_model_is_asked_what_there_is_a_picture_for(ask, tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    done = ask("a.png", "b.png")
    assert done.returncode == 2 and "no question" in done.stderr


def test_replay_gives_the_same_answer(ask, tmp_path):
    first = ask(picture(tmp_path / "a.png"), "what?", "--temperature", 1.2)
    (record,) = (tmp_path / "output").glob("*/run.json")
    again = ask("--config", record)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout


def test_every_kind_of_picture(ask, tmp_path):
    upright = picture(tmp_path / "up.png", (200, 120))
    Image.open(upright).transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "turned.jpg", exif=_orientation(6), quality=100, subsampling=0
    )
    sixteen = np.asarray(Image.open(upright).convert("L")).astype(np.uint16) * 257
    Image.fromarray(sixteen).save(tmp_path / "sixteen.png")
    Image.open(upright).convert("P").save(tmp_path / "palette.gif")
    picture(tmp_path / "cmyk.jpg", mode="CMYK")
    alpha = Image.open(upright).convert("RGBA")
    alpha.putalpha(0)
    alpha.save(tmp_path / "alpha.png")
    frames = [Image.new("RGB", (64, 64), c) for c in ("red", "green")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    names = ["turned.jpg", "sixteen.png", "palette.gif", "cmyk.jpg", "alpha.png", "moving.webp"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    done = ask("--inputs-from", "list.txt", "--prompt", "what?", "--json")
    assert done.returncode == 0, done.stderr
    assert [line["status"] for line in json_lines(done.stdout)] == ["ok"] * len(names)
    from shared_utils.image_files import read_image

    assert read_image(tmp_path / "turned.jpg").size == (200, 120)
    grey = np.asarray(read_image(tmp_path / "sixteen.png"))[..., 0]
    assert np.abs(grey.astype(int) - (sixteen // 257)).max() == 0
    assert (np.asarray(read_image(tmp_path / "alpha.png")) == 255).all()


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_bad_input_has_its_code_and_leaves_nothing(ask, tmp_path):
    whole = picture(tmp_path / "whole.png", (300, 300)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "audio.mp4").write_bytes(b"\0" * 100)
    (tmp_path / "bad.json").write_text('{"type": 7}')
    cases = [
        (["cut.png", "what?"], 65),
        (["text.png", "what?"], 65),
        (["whole.png", "what?", "--max-image-pixels", 1000], 65),
        (["--video", "audio.mp4", "what?"], 65),
        (["none.png", "what?"], 66),
        (["whole.png", "what?", "--schema", "none.json"], 66),
        (["whole.png", "what?", "--schema", "bad.json"], 78),
        (["what?"], 2),
        (["whole.png"], 2),
        (["whole.png", "what?", "--attention", "flash"], 69),
        (["whole.png", "what?", "--min-pixels", 4000, "--max-pixels", 2000], 2),
        (["whole.png", "what?", "--boxes", "--schema", "bad.json"], 2),
    ]
    before = everything_in(tmp_path)
    for args, code in cases:
        done = ask(*args)
        assert done.returncode == code, (args, done.stderr)
        assert done.stdout == "" and done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert everything_in(tmp_path) == before


def test_context_overflow_is_known_before_generation(warm, checkpoint, tmp_path):
    done = warm.run(
        SCRIPT,
        picture(tmp_path / "a.png"),
        "what?",
        "--model",
        checkpoint,
        "--max-tokens",
        4096,
        "--dtype",
        "fp32",
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "--max-tokens 4096" in done.stderr and "4096" in done.stderr


def clip(path: Path, times: list[float], size=(96, 64)) -> Path:
    """A video whose frame k is a grey of 20 k, shown at the given seconds."""
    import av

    clock = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "0", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = clock
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 20 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_video_frames_are_those_on_screen_at_the_sampling_times(tmp_path):
    from shared_utils import video

    path = clip(tmp_path / "v.mp4", [0, 0.1, 0.2, 1.0, 2.5, 2.6])
    frames, times = video.sample(path, 1, 10, 10**6)
    assert times == pytest.approx([0, 1.0], abs=0.01)
    assert [round(f.mean() / 20) for f in frames] == [0, 3]
    frames, times = video.sample(path, 10, 3, 10**6)
    assert len(frames) == 3 and times[0] == 0 and times[-1] == pytest.approx(2.6, abs=0.01)


def test_video_is_turned_upright(tmp_path):
    from imageio_ffmpeg import get_ffmpeg_exe

    from shared_utils import video

    path = clip(tmp_path / "v.mp4", [0, 0.1])
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90", "-i", path, "-c", "copy"]
    subprocess.run([*command, tmp_path / "turned.mp4"], check=True, timeout=60)
    frames, _ = video.sample(tmp_path / "turned.mp4", 10, 2, 10**6)
    assert [frame.shape for frame in frames] == [(96, 64, 3)] * 2


def test_asks_about_videos(ask, tmp_path):
    clip(tmp_path / "v.mp4", [k / 10 for k in range(12)])
    clip(tmp_path / "one.mp4", [0])
    whole = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    jobs = [{"video": f"{name}.mp4", "prompt": "what happens?"} for name in ("v", "one", "cut")]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    done = ask("--inputs-from", "jobs.jsonl", "--fps", 5, "--json")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    lines = sorted(json_lines(done.stdout), key=lambda line: line["index"])
    assert [line.get("exit_code", 0) for line in lines] == [0, 0, 65]
    assert lines[0]["input_tokens"] > lines[1]["input_tokens"] > 20


def test_schemas_that_are_none(tmp_path):
    from networks.qwen3vl.answers import check_schema, load_schema
    from shared_utils.errors import ConfigError

    path = tmp_path / "s.json"
    for text in (
        "[]",
        "3",
        '{"$schema": 3}',
        '{"pattern": "("}',
        '{"$ref": "#"}',
        "[" * 5000,
        '{"$ref": "http://x.example/"}',
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match="--schema"):
            load_schema(path)
    path.write_text('{"properties": {"a": {"$ref": "http://127.0.0.1:1/"}}}')
    with pytest.raises(ConfigError, match="leads out of it"):
        check_schema('{"a": 1}', load_schema(path))


def test_schema_and_boxes_that_the_answer_misses(ask, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "s.json").write_text('{"type": "object"}')
    for flags in (["--schema", "s.json"], ["--boxes"]):
        done = ask("a.png", "what?", *flags, "--retries", 1)
        assert done.returncode == 70 and "2 tries" in done.stderr, done.stderr
        assert done.stdout == ""
    names = [Path(p).name for p in everything_in(tmp_path / "output")]
    assert sum(n.endswith(".invalid.txt") for n in names) == 2 and not any(
        n.startswith("qwen3vl") and "invalid" not in n for n in names
    )


def test_answers_are_made_safe_and_read():
    from networks.qwen3vl.answers import Unusable, check_schema, harmless, read_boxes

    assert harmless("a\x1b[2Jb\nc\td\x07\u202e") == "a␛[2Jb\nc\td␇\ufffd"
    text = '```json\n[{"bbox_2d": [100, 200, 500, 1000], "label": "fox"}]\n```'
    assert read_boxes(text, (200, 50)) == [{"label": "fox", "box": [20.0, 10.0, 100.0, 50.0]}]
    for bad in ("no json", '{"a": 1}', '[{"bbox_2d": [1, 2, 3]}]', '[{"bbox_2d": [1, 2, 3, 4000]}]'):
        assert isinstance(read_boxes(bad, (10, 10)), Unusable)
    schema = {"type": "object", "required": ["n"]}
    assert check_schema('{"n": 1}', schema) == {"n": 1}
    for bad in ("{}", "x", "[" * 5000, '{"n": NaN}'):
        assert isinstance(check_schema(bad, schema), Unusable)


def test_a_model_that_obeys_the_schema(tmp_path, checkpoint, monkeypatch):
    """The way from a usable answer to files, with the network's words put in."""
    import qwen3vl_inference as script
    from networks.qwen3vl.model import Reply
    from shared_utils.output_dir import ItemOutput

    answer = '[{"bbox_2d": [0, 0, 500, 500], "label": "corner"}]'
    replies = iter(["nonsense", answer])
    seeds = []

    def answers_of(model, prepared, item, seed=None, on_text=None):
        seeds.append(seed)
        return [Reply(next(replies), 5, 5, "stop", 1.0, 0.1)]

    monkeypatch.setattr(script, "answers_of", answers_of)
    monkeypatch.setattr(script, "preprocess", lambda model, item: {})
    monkeypatch.setattr(script, "describe", lambda model, item, replies: None)
    item = script.Config(image=(picture(tmp_path / "a.png"),), prompt="where?", boxes=True, seed=7)
    out = ItemOutput(tmp_path / "out", index=0, label="", stamp="now", primary=None, overwrite=False)

    class Run:
        config = item
        stdout = io.StringIO()

        def phase(self, name):
            return contextlib.nullcontext()

        def info(self, text):
            assert "try 1 of 3" in text

    done = script.answer_one(script.Model(Run(), None, None, 1, {}), item, out)
    out.commit()
    assert seeds == [7, 8]
    boxes = json.loads((tmp_path / "out" / "a_boxes.json").read_text())["boxes"]
    assert boxes == [{"label": "corner", "box": [0.0, 0.0, 100.0, 60.0]}] == done.report["boxes"]
    assert Image.open(tmp_path / "out" / "a_boxes.png").size == (200, 120)


def test_an_answer_that_fits_is_given_without_its_fence(tmp_path, monkeypatch):
    """Nothing but JSON reaches stdout and the file, so that programs can read them."""
    import qwen3vl_inference as script
    from networks.qwen3vl.model import Reply
    from shared_utils.output_dir import ItemOutput

    asked = []

    def answers_of(model, prepared, item, seed=None, on_text=None):
        asked.append(seed)
        return [Reply(replies.pop(0), 5, 5, "stop", 1.0, 0.1)]

    monkeypatch.setattr(script, "answers_of", answers_of)
    monkeypatch.setattr(script, "preprocess", lambda model, item: {})
    monkeypatch.setattr(script, "describe", lambda model, item, replies: None)
    (tmp_path / "s.json").write_text('{"required": ["n"]}')
    item = script.Config(image=(tmp_path / "a.png",), prompt="?", schema=tmp_path / "s.json", seed=7, temperature=0.0)

    class Run:
        config = item
        stdout = io.StringIO()

        def phase(self, name):
            return contextlib.nullcontext()

        def info(self, text):
            """What is said on the way is not looked at."""

    out = ItemOutput(tmp_path / "out", index=0, label="", stamp="now", primary=None, overwrite=False)
    replies = ['Here it is:\n```json\n{"n": 1}\n```\n']
    done = script.answer_one(script.Model(Run(), None, None, 1, {}), item, out)
    out.commit()
    assert done.stdout == '{"n": 1}\n' == (tmp_path / "out" / "qwen3vl_response_now.txt").read_text()
    replies, asked[:] = ["{}", "{}"], []
    with pytest.raises(PostConditionError, match="after 1 try the answer does not fit the schema"):
        script.answer_one(script.Model(Run(), None, None, 1, {}), item, out)
    assert asked == [7], "at temperature 0 another try would say the same"


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantised_on_a_cpu(ask, tmp_path, quantize):
    flag = ["--use-4bit"] if quantize == "nf4" else ["--quantize", quantize]
    done = ask(picture(tmp_path / "a.png"), "what?", *flag)
    assert done.returncode == 0, done.stderr
    assert run_record(tmp_path / "output")["config"]["quantize"] == quantize


@pytest.mark.parametrize(
    ("free", "flags", "chosen"),
    [
        (24, {}, "none"),
        (8, {}, "nf4"),
        (8, {"quantize": "int8"}, "int8"),
        (8, {"use_4bit": True}, "nf4"),
        (8, {"full_precision": True}, None),
        (2, {}, None),
    ],
)
def test_weights_are_held_as_the_memory_allows(monkeypatch, free, flags, chosen):
    import torch

    import qwen3vl_inference as script

    class Run:
        device = "cuda:0"

        def dtype(self):
            return torch.bfloat16

        def info(self, text):
            assert "8.9 GB" not in text or free == 24

    monkeypatch.setattr(script.device, "free_memory", lambda device: free * 10**9)
    config = script.Config(prompt="?", **flags)
    if chosen is None:
        with pytest.raises(UnavailableError, match=rf"{free}\.0 GB free, about .* needed with --quantize"):
            script.quantization(config, Run(), 8_900_000_000)
    else:
        assert script.quantization(config, Run(), 8_900_000_000) == chosen


def test_spans_carry_tokens_and_reason_and_no_words(ask, tmp_path):
    done = ask(picture(tmp_path / "a.png"), "zebracorn?", "--json")
    assert done.returncode == 0, done.stderr
    (line,) = json_lines(done.stdout)
    (path,) = (tmp_path / "output").glob("*/opentelemetry_trace.json")
    trace = json.loads(path.read_text())
    spans = {span["name"]: span["attributes"] for span in trace["spans"][0]["children"]}
    assert {f"qwen3vl.{name}" for name in ("download_weights", "load", "preprocess", "generate")} <= set(spans)
    seen = spans["qwen3vl.generate"]
    assert seen["gen_ai.usage.input_tokens"] == line["input_tokens"]
    assert seen["gen_ai.usage.output_tokens"] == line["output_tokens"]
    assert seen["gen_ai.response.finish_reasons"] == [line["finish_reason"]]
    names = {metric["name"] for metric in trace["metrics"]}
    assert {"gen_ai.client.token.usage", "gen_ai.client.operation.duration"} <= names
    assert "zebracorn" not in path.read_text()


def test_the_stream_is_the_text(tmp_path):
    """Characters of several bytes come whole, also where their bytes are spread over tokens."""
    import torch

    from networks.qwen3vl.model import _Stream

    class Bytes:
        def decode(self, tokens, **options):
            return bytes(tokens).decode("utf-8", errors="replace")

    text = "aé🦊\ufffd\nz".encode() + b"\xff\x80b\xf0\x9f"
    pieces: list[str] = []
    stream = _Stream(Bytes(), pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))  # the question
    for byte in text:
        stream.put(torch.tensor([byte]))
        assert len(stream.tokens) <= 6, "what was shown is not decoded again"
    stream.end()
    assert "".join(pieces) == text.decode("utf-8", errors="replace")
    assert {"a", "é", "🦊"} <= set(pieces)


def test_a_terminal_gets_no_control_characters_and_the_file_keeps_them(checkpoint, tmp_path):
    """A hot random model says anything, escape sequences too."""
    picture(tmp_path / "a.png")
    ours, theirs = pty.openpty()
    wild = ("--temperature", 5, "--top-k", 0, "--top-p", 1, "--max-tokens", 200, "--seed", 4, "--dtype", "fp32")
    command = [sys.executable, ROOT / SCRIPT, "a.png", "what?", "--model", checkpoint, *wild, "-o", "answer.txt"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment()
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(ours, 4096):
            shown += piece
    _, errors = process.communicate(timeout=300)
    os.close(ours)
    assert process.returncode == 0, errors.decode()
    said = (tmp_path / "answer.txt").read_text(encoding="utf-8")
    control = {c for c in said if (ord(c) < 32 and c not in "\n\t\r") or 0x7F <= ord(c) < 0xA0}
    assert control, "nothing to be made harmless"
    screen = shown.decode("utf-8").replace("\r\n", "\n")
    assert not [c for c in screen if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]


@pytest.mark.parametrize("damage", ["kind", "shard", "weight", "processor"])
def test_a_folder_that_is_no_model_is_said_to_be_none(warm, checkpoint, tmp_path, damage):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    index = folder / "model.safetensors.index.json"
    if damage == "kind":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen2_vl"}))
    elif damage == "shard":
        min(folder.glob("*.safetensors")).unlink()
    elif damage == "weight":
        listing = json.loads(index.read_text())
        name = next(iter(listing["weight_map"]))
        shard = folder / listing["weight_map"].pop(name)
        index.write_text(json.dumps(listing))
        tensors = load_file(shard)
        del tensors[name]
        save_file(tensors, shard, metadata={"format": "pt"})
    else:
        (folder / "tokenizer.json").unlink()
    done = warm.run(SCRIPT, picture(tmp_path / "a.png"), "what?", *SHORT, "--model", "model", cwd=tmp_path)
    assert done.returncode == 65, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --model model: cannot be loaded (")
    assert done.stdout == ""


def test_a_repository_of_another_kind_is_not_fetched(warm, tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "model.safetensors").write_bytes(b"large")
    picture(tmp_path / "a.png")
    with FakeHub({"someone/else": tmp_path / "served"}) as hub:
        args = ("a.png", "what?", *SHORT, "--model", "someone/else", "--weights-dir", "w")
        done = warm.run(SCRIPT, *args, cwd=tmp_path, **hub.environment)
        assert done.returncode == 66 and "config.json" in done.stderr, done.stderr
        assert not hub.requests("/resolve/")


def test_downloads_once_and_then_makes_no_request(warm, checkpoint, tmp_path):
    picture(tmp_path / "a.png")
    with FakeHub({REPO: checkpoint}) as hub:
        env = {**hub.environment, "PRETRAINED_WEIGHTS_DIR": str(tmp_path / "weights")}
        first = warm.run(SCRIPT, "a.png", "what?", *SHORT, "--json", cwd=tmp_path, **env)
        assert first.returncode == 0, first.stderr
        assert hub.log
        hub.log.clear()
        second = warm.run(SCRIPT, "a.png", "what?", *SHORT, "--json", cwd=tmp_path, **env)
        assert second.returncode == 0 and not hub.log
        plan = warm.run(SCRIPT, "a.png", "what?", "--dry-run", "--json", cwd=tmp_path, **env)
        assert plan.returncode == 0 and json_lines(plan.stdout)[0]["weights"][0]["fetch_bytes"] == 0
    (one,), (two,) = json_lines(first.stdout), json_lines(second.stdout)
    assert one["answer"] == two["answer"] and one["model"] == REPO
    (record, _) = sorted((tmp_path / "output").glob("*/run.json"))
    assert len(json.loads(record.read_text())["models"]["model"]["commit"]) == 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_was_said(warm, checkpoint, tmp_path, number):
    picture(tmp_path / "a.png")
    # It never comes to an end by itself.
    endless = shutil.copytree(checkpoint, tmp_path / "endless")
    settings = json.loads((endless / "generation_config.json").read_text())
    (endless / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 10**6}))
    wild = ("--temperature", 5, "--top-k", 0, "--top-p", 1, "--max-tokens", 3800, "--dtype", "fp32", "--seed", 1)
    child = warm.start(SCRIPT, "a.png", "what?", "--model", "endless", *wild, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not ((child.folder / "out").exists() and (child.folder / "out").stat().st_size > 20):
        assert time.monotonic() < deadline, child.stderr()
        time.sleep(0.05)
    os.kill(child.pid, number)
    done = child.wait()
    assert done.returncode == 128 + number, done.stderr
    (kept,) = (tmp_path / "output").glob("*/*.incomplete.txt")
    assert kept.read_bytes().startswith((child.folder / "out").read_bytes())
    assert not list((tmp_path / "output").glob("*/qwen3vl_response_*[0-9].txt"))


def test_smoke_test_as_a_real_process(tmp_path):
    done = run(SCRIPT, "--smoke-test", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    assert result["model"] == "smoke-test" and result["answer"] is not None
    assert "smoke-test-" not in json.dumps(run_record(tmp_path / "output")), "no temporary path"
    ours = r"seed \d|device|model|--quantize"
    assert [line for line in done.stderr.splitlines() if not re.match(ours, line)] == [], "nothing but our own lines"


def test_smoke_test_on_what_the_user_brings(warm, tmp_path):
    picture(tmp_path / "a.png", (400, 320))
    given = (["a.png", "what?"], ["--image", "a.png"], ["--prompt", "what?"])
    tokens = []
    for args in given:
        done = warm.run(SCRIPT, "--smoke-test", "--json", *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        tokens.append(json_lines(done.stdout)[0]["input_tokens"])
    assert tokens[0] > tokens[2] < tokens[1], "the larger picture is theirs, and goes alone"
