"""qwen3vl_inference.py end to end on a tiny random checkpoint, against direct calls of transformers."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fake_hub import FakeHub
from PIL import Image
from processes import everything_in, json_lines, run, run_record
from warm import Warm

SCRIPT = "qwen3vl_inference.py"
REPO = "Qwen/Qwen3-VL-4B-Instruct"
SHORT = ("--max-tokens", 12, "--dtype", "fp32", "--seed", 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tiny_checkpoints import qwen3vl

    return qwen3vl.build(tmp_path_factory.mktemp("qwen3vl"))


@pytest.fixture(scope="module")
def warm():
    imports = ("torch", "from transformers import AutoProcessor, Qwen3VLForConditionalGeneration", "av", "jsonschema")
    with Warm(*imports) as server:
        yield server


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


def direct(checkpoint, path, prompt, seed=None, tokens=12) -> str:
    """The bare transformers call."""
    import torch
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, set_seed

    processor = AutoProcessor.from_pretrained(checkpoint)
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    message = {"role": "user", "content": [{"type": "image", "image": str(path)}, {"type": "text", "text": prompt}]}
    inputs = processor.apply_chat_template(
        [message], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    options = (
        {"do_sample": False} if seed is None else {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    )
    if seed is not None:
        set_seed(seed)
    output = model.generate(**inputs, **options, max_new_tokens=tokens)
    return processor.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_answers_equal_a_direct_call_greedy_and_sampled_streamed_or_not(ask, checkpoint, tmp_path):
    path = picture(tmp_path / "a.png", (400, 320))
    greedy = ask(path, "what is this?", "--temperature", 0)
    assert greedy.returncode == 0, greedy.stderr
    assert greedy.stdout == direct(checkpoint, path, "what is this?") + "\n"
    (sampled,) = json_lines(ask(path, "what is this?", "--json").stdout)
    assert sampled["answer"] == direct(checkpoint, path, "what is this?", seed=3)
    assert sampled["finish_reason"] in ("stop", "length") and sampled["output_tokens"] <= 12
    assert sampled["input_tokens"] > 100 and sampled["seconds_to_first_token"] > 0 and sampled["tokens_per_second"] > 0
    (saved,) = (Path(o["path"]) for o in sampled["outputs"])
    assert saved.name.startswith("qwen3vl_response_") and saved.read_text() == sampled["answer"] + "\n"
    assert ask(path, "what is this?").stdout == sampled["answer"] + "\n"


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
    for name in ("turned.jpg", "sixteen.png", "palette.gif", "cmyk.jpg", "alpha.png", "moving.webp"):
        done = ask(name, "what?")
        assert done.returncode == 0, (name, done.stderr)
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
    frames, times = video.sample(path, fps=1, max_frames=10)
    assert times == pytest.approx([0, 1.0], abs=0.01) or times == pytest.approx([0, 1.0, 1.0], abs=0.01)
    assert [round(f.mean() / 20) for f in frames] == [0, 3]
    frames, times = video.sample(path, fps=10, max_frames=3)
    assert len(frames) == 3 and times[0] == 0 and times[-1] == pytest.approx(2.6, abs=0.01)


@pytest.mark.slow
def test_asks_about_a_video(ask, tmp_path):
    clip(tmp_path / "v.mp4", [k / 10 for k in range(12)])
    done = ask("v.mp4", "what happens?", "--fps", 5, "--json")
    assert done.returncode == 0, done.stderr
    assert json_lines(done.stdout)[0]["input_tokens"] > 20


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
    assert isinstance(check_schema("{}", schema), Unusable) and isinstance(check_schema("x", schema), Unusable)


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
    monkeypatch.setattr(script, "result", lambda model, item, reply: script.Result())
    item = script.Config(image=(picture(tmp_path / "a.png"),), prompt="where?", boxes=True, seed=7)
    out = ItemOutput(tmp_path / "out", index=0, label="", stamp="now", primary=None, overwrite=False)

    class Run:
        config = item

        def phase(self, name):
            import contextlib

            return contextlib.nullcontext()

        def info(self, text):
            assert "try 1 of 3" in text

    script.answer_one(script.Model(Run(), None, None, 1), item, out)
    out.commit()
    assert seeds == [7, 8]
    boxes = json.loads((tmp_path / "out" / "a_boxes.json").read_text())["boxes"]
    assert boxes == [{"label": "corner", "box": [0.0, 0.0, 100.0, 60.0]}]
    assert Image.open(tmp_path / "out" / "a_boxes.png").size == (200, 120)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantised_on_a_cpu(ask, tmp_path, quantize):
    flag = ["--use-4bit"] if quantize == "nf4" else ["--quantize", quantize]
    done = ask(picture(tmp_path / "a.png"), "what?", *flag)
    assert done.returncode == 0, done.stderr
    assert run_record(tmp_path / "output")["config"]["quantize"] == quantize


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


def test_interrupt_keeps_what_was_said(warm, checkpoint, tmp_path):
    import os
    import signal
    import time

    picture(tmp_path / "a.png")
    child = warm.start(
        SCRIPT,
        "a.png",
        "what?",
        "--model",
        checkpoint,
        "--max-tokens",
        3800,
        "--dtype",
        "fp32",
        "--seed",
        1,
        "--repetition-penalty",
        3,
        "--temperature",
        5,
        "--top-k",
        0,
        "--top-p",
        1,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 120
    while not ((child.folder / "out").exists() and (child.folder / "out").stat().st_size > 20):
        assert time.monotonic() < deadline, child.stderr()
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    done = child.wait()
    assert done.returncode == 130, done.stderr
    (kept,) = (tmp_path / "output").glob("*/*.incomplete.txt")
    assert kept.read_text() and done.stdout.startswith(kept.read_text()[:20])


@pytest.mark.slow
def test_smoke_test_as_a_real_process(tmp_path):
    done = run(SCRIPT, "--smoke-test", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    assert result["model"] == "smoke-test" and result["answer"] is not None
    assert str(tmp_path) not in json.dumps(run_record(tmp_path / "output")["model"])
