"""kvoicewalk_generation.py on a tiny Kokoro; the speaker encoder against the package it comes from."""

import importlib.util
import json
import os
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from kokoro_real import errors, words
from processes import ROOT, everything_in, json_lines, run_record
from warm import Warm

import kvoicewalk_generation as script
from networks.kokoro import recordings
from shared_utils.errors import InvalidInputError, MissingInputError, ScriptError, UnavailableError, UsageError

SCRIPT = "kvoicewalk_generation.py"
RATE = 24000


def buzz(seconds: float, rate: int = RATE, pitch: float = 130.0) -> np.ndarray:
    """A buzz with the rhythm of syllables, which a voice detector takes for speech."""
    t = np.arange(int(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 25))
    return (0.1 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tiny_checkpoints.kokoro import make_kokoro

    return make_kokoro(tmp_path_factory.mktemp("kokoro"))


@pytest.fixture(scope="module")
def warm():
    with Warm(
        "torch", "transformers", "kokoro", "misaki.en", "spacy", "soundfile", "scipy.ndimage", "matplotlib.figure"
    ) as server:
        yield server


@pytest.fixture
def walk(warm, checkpoint, tmp_path):
    soundfile.write(tmp_path / "me.wav", buzz(2), RATE)

    def call(*args, **env):
        return warm.run(SCRIPT, *args, "--model", checkpoint, "--seed", 5, cwd=tmp_path, **env)

    return call


TEXT = ("--target-text", "This is a test.", "--other-text", "Yes.")
SHORT = ("me.wav", *TEXT, "--starting-voice", "af_heart")


@pytest.fixture(scope="module")
def tiny_search(checkpoint):
    """A search on the tiny model with two sentences, and the voice it begins with."""
    from networks.kokoro.config import VOCAB
    from networks.kokoro.model import TorchKokoro
    from networks.kokoro.voice_search import VoiceSearch
    from networks.kokoro.voices import VoiceShelf
    from networks.resemblyzer import SpeakerEncoder, preprocess

    shelf = VoiceShelf(checkpoint / "voices")
    encoder = SpeakerEncoder.load()
    target = recordings.mean_embedding(encoder, [preprocess(buzz(2), RATE)])
    spread = np.stack([shelf.read(name)[:, 0].mean(0) for name in shelf.names()]).std(0)
    search = VoiceSearch(TorchKokoro.load(checkpoint), encoder, target, shelf.read("af_heart"), spread)
    assert set("hɛlˈO") <= set(VOCAB)
    return search, [search.sentence("hɛlˈO"), search.sentence("ðɛɹ")]


@pytest.mark.parametrize("seconds", [0.8, 1.7, 4.0])
def test_encoder_is_the_packages(seconds):
    import torch
    from resemblyzer import VoiceEncoder, preprocess_wav

    from networks.resemblyzer import SpeakerEncoder, preprocess

    audio = buzz(seconds)
    theirs = preprocess_wav(audio, source_sr=RATE)
    ours = preprocess(audio, RATE)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    expected = VoiceEncoder("cpu", verbose=False).embed_utterance(theirs)
    found = SpeakerEncoder.load().embed(torch.from_numpy(ours)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "settings"),
    [
        ("a.wav", 8000, 1, {"subtype": "PCM_U8"}),
        ("a.wav", 48000, 2, {"subtype": "FLOAT"}),
        ("a.flac", 44100, 2, {}),
        ("a.mp3", 22050, 1, {}),
        ("a.ogg", 24000, 2, {}),
        ("a.aiff", 96000, 6, {}),
        ("a.m4a", 44100, 2, None),
        ("a.webm", 48000, 1, None),
    ],
)
def test_reads_any_sound(tmp_path, name, rate, channels, settings):
    from networks.resemblyzer import RATE as ENCODER_RATE

    sound = np.stack([buzz(2, rate)] * channels, 1)
    if settings is None:
        write_with_av(tmp_path / name, sound, rate)
    else:
        soundfile.write(tmp_path / name, sound, rate, **settings)
    audio, found = recordings.read_audio(tmp_path / name)
    assert found == rate and audio.ndim == 1 and len(audio) / rate == pytest.approx(2, abs=0.15)
    assert np.sqrt(np.mean(audio**2)) == pytest.approx(np.sqrt(np.mean(sound**2)), rel=0.2)
    assert len(recordings.speech(tmp_path / name)) > ENCODER_RATE


def write_with_av(path: Path, sound: np.ndarray, rate: int) -> None:
    """What soundfile does not write: AAC and Opus in their containers."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac" if path.suffix == ".m4a" else "libopus", rate=rate)
        stream.layout = "stereo" if sound.shape[1] == 2 else "mono"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), format="fltp", layout=stream.layout.name)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_refuses_what_is_no_recording(tmp_path):
    def refused(match: str, sound=None, data: bytes = b"", name: str = "bad.wav") -> None:
        if sound is None:
            (tmp_path / name).write_bytes(data)
        else:
            soundfile.write(tmp_path / name, sound, 8000, subtype="FLOAT")
        with pytest.raises(InvalidInputError, match=match) as caught:
            recordings.speech(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)

    silence = np.zeros(16000, np.float32)
    refused("0.90 s of audio; 1 to 600 s", sound=buzz(0.9, 8000))
    refused("more than 600 s", sound=np.zeros(8000 * 601, np.float32))
    refused("silent", sound=silence)
    refused("speech", sound=silence + 1e-4)
    refused("speech", sound=np.concatenate([np.tile(silence, 4), buzz(0.2, 8000)]))
    refused("finite", sound=silence + np.nan)
    refused("not audio", data=b"RIFF, or so it says")
    refused("not audio", data=b"", name="empty.mp3")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(InvalidInputError):
        recordings.read_audio(tmp_path / "folder.wav")


def test_folder_of_recordings_is_sorted_and_complete(tmp_path):
    for name in ("b.wav", "deep/a.FLAC", "deep/.hidden.wav", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "b.txt").write_text("\ufeffEins.\n", encoding="utf-8")
    with pytest.raises(MissingInputError, match=r"a\.txt"):
        recordings.in_folder(tmp_path, need_text=True)
    found = recordings.in_folder(tmp_path, need_text=False)
    assert [(r.path.name, r.text) for r in found] == [("b.wav", "Eins."), ("a.FLAC", None)]
    (tmp_path / "deep" / "a.txt").write_bytes("Zwölf".encode("latin-1"))
    with pytest.raises(InvalidInputError, match="UTF-8"):
        recordings.in_folder(tmp_path, need_text=True)
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidInputError, match="no recording"):
        recordings.in_folder(tmp_path / "none", need_text=False)


def test_clips_count_alike_however_long():
    from networks.resemblyzer import SpeakerEncoder, preprocess

    encoder = SpeakerEncoder.load()
    low, high = (preprocess(buzz(seconds, pitch=pitch), RATE) for seconds, pitch in ((2, 100), (6, 250)))
    ends = [recordings.mean_embedding(encoder, [clip]) for clip in (low, high)]
    both = recordings.mean_embedding(encoder, [low, high])
    assert np.linalg.norm(both) == pytest.approx(1) and both @ ends[0] == pytest.approx(both @ ends[1], abs=1e-5)


def test_differentiable_way_agrees_with_the_judging_one():
    import torch

    from networks.resemblyzer import Resample24To16, SpeakerEncoder, louder, preprocess

    audio = torch.from_numpy(buzz(3)).requires_grad_(True)
    encoder = SpeakerEncoder.load()
    embedding = encoder.embed(louder(Resample24To16()(audio)))
    judged = encoder.embed(torch.from_numpy(preprocess(audio.detach().numpy(), RATE)))
    assert float(embedding @ judged) > 0.95
    (gradient,) = torch.autograd.grad(embedding[0], audio)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_score_is_the_harmonic_mean():
    from networks.kokoro.voice_search import adjacent_jump, feature_similarity, harmonic_mean, speech_features

    assert harmonic_mean({"target": 0.5, "self": 0.5, "feature": 0.5}) == pytest.approx(0.5)
    assert harmonic_mean({"target": 0.8, "self": 0.9, "feature": 0.1}) == pytest.approx(
        1 / (0.48 / 0.8 + 0.5 / 0.9 + 0.02 / 0.1)
    )
    assert harmonic_mean({"target": -0.1, "self": 0.9, "feature": 0.1}) == 0
    own = speech_features(buzz(2), RATE)
    assert np.isfinite(speech_features(np.zeros(100, np.float32), RATE)).all()
    assert feature_similarity(own, own) == 1 > feature_similarity(own, speech_features(buzz(2, pitch=300), RATE)) > 0
    assert adjacent_jump(np.ones((510, 1, 256), np.float32)) == 0


def test_sentences_to_practise_on():
    from networks.kokoro.voice_search import calibration, cut_phonemes

    assert cut_phonemes("abc def", 7) == "abc def" and cut_phonemes("abc def", 6) == "abc"
    assert cut_phonemes("abcdef", 4) == "abcd" and cut_phonemes("abc def", 3) == "abc"
    assert calibration(["aa", "bbbb bb", "", "cccc", "aa"], 5) == ["bbbb", "cccc", "aa"]
    assert calibration([" "], 5) == []


def test_stretch_of_a_sentence():
    import torch

    from networks.kokoro.voice_search import stretch

    frames = torch.tensor([3, 5, 2, 8, 4, 6, 1, 9])
    assert stretch(frames, 38, 0) is frames
    for seed in range(50):
        part = stretch(frames, 12, seed)
        kept = part.nonzero().flatten()
        assert 4 <= int(part.sum()) <= 20 and torch.equal(kept, torch.arange(kept[0], kept[-1] + 1))
        assert torch.equal(part[kept], frames[kept]) and torch.equal(part, stretch(frames, 12, seed))
    assert len({tuple(stretch(frames, 12, seed).tolist()) for seed in range(50)}) > 2


def test_gradient_points_upwards(tiny_search):
    """A long step along the gradient through decoder and encoder comes nearer the target, against it farther away."""
    import torch

    search, sentences = tiny_search
    rises = []
    for seed in range(3):
        offset = torch.zeros(256, requires_grad=True)
        likeness = search.heard(search.row(offset, sentences[0]), sentences[0], seed, 1.75) @ search.target
        (gradient,) = torch.autograd.grad(likeness, offset)
        step = gradient / gradient.norm()
        with torch.no_grad():
            up, down = (
                search.heard(search.row(way * step, sentences[0]), sentences[0], seed, 1.75) @ search.target
                for way in (1, -1)
            )
        rises.append((float((up - likeness).detach()), float(up - down)))
    assert np.mean(rises, axis=0).min() > 0.001, rises


@pytest.mark.parametrize("method", ["gradient", "walk", "per-row"])
def test_a_state_that_was_saved_goes_on_the_same(tiny_search, method):
    """Bit by bit, wherever the search is cut."""
    import itertools

    import torch

    from networks.kokoro.voice_search import GradientState, WalkState, gradient_steps, speech_features, walk_steps

    search, sentences = tiny_search
    features = speech_features(buzz(2, 16000), 16000)

    def new():
        if method == "gradient":
            return GradientState.new()
        return WalkState(0, torch.zeros((510, 256) if method == "per-row" else 256), -1.0, -1.0)

    def go(state, steps: int):
        if method == "gradient":
            moving = gradient_steps(search, sentences, state, 7)
        else:
            moving = walk_steps(search, *sentences, features, state, 7, method == "per-row")
        values = list(itertools.islice(moving, steps))
        return values, state

    whole_values, whole = go(new(), 3)
    first_values, half = go(new(), 2)
    saved = {name: array.copy() for name, array in half.tensors().items()}
    second_values, again = go(type(half).from_tensors(saved), 1)
    assert first_values + second_values == whole_values
    for name, array in whole.tensors().items():
        np.testing.assert_array_equal(array, again.tensors()[name], err_msg=name)


def test_best_is_kept_on_the_held_out_text(tiny_search):
    from networks.kokoro.voice_search import Best

    search, sentences = tiny_search
    other = search.start + 0.3
    best = Best(search, sentences[0], 3)
    values = {}
    for name, voice in (("start", search.start), ("other", other), ("start again", search.start)):
        values[name], _ = best.look(voice)
    assert values["start"] == values["start again"]
    winner = max(("start", "other"), key=values.get)
    np.testing.assert_array_equal(best.voice, {"start": search.start, "other": other}[winner])
    again = Best(search, sentences[0], 3, best.tensors())
    assert (again.value, again.looks) == (best.value, best.looks)
    assert best.look(best.voice)[1] is None, "an equal one is no improvement"


@pytest.mark.parametrize("method", ["gradient", pytest.param("walk", marks=pytest.mark.slow)])
def test_makes_a_voice_that_the_speaker_reads(walk, warm, checkpoint, tmp_path, method):
    done = walk(*SHORT, "--method", method, "--step-limit", 2, "--json", "-o", "my voice.pt")
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    assert result["similarity_held_out"] >= result["similarity_held_out_start"] and result["steps"] == 2
    from safetensors import safe_open

    from networks.kokoro.voices import read_voice

    voice, start = read_voice(tmp_path / "my voice.pt"), read_voice(checkpoint / "voices" / "af_heart.pt")
    assert voice.shape == (510, 1, 256) and voice.dtype == np.float32
    moved = voice - start
    np.testing.assert_allclose(
        moved, np.broadcast_to(moved[:1], moved.shape), atol=1e-5, err_msg="one offset for all rows"
    )
    folder = Path(result["folder"])
    roles = {Path(o["path"]).name for o in result["outputs"]}
    assert {"my voice.pt", "voice.safetensors", "report.json", "progress.png", "sample_unseen_text.wav"} <= roles
    assert (folder / "progress.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(folder / "voice.safetensors", "np") as stream:
        assert stream.get_slice("voice").get_shape() == [510, 1, 256]
        assert json.loads(stream.metadata()["origin"])["generated_by"] == SCRIPT
    report = json.loads((folder / "report.json").read_text())
    assert [row["step"] for row in report["progress"]] == [1, 2]
    # The printed command is the one to type, from anywhere.
    assert report["command"] in done.stderr
    uv, run, speaker, *arguments = shlex.split(report["command"])
    assert (uv, run, Path(speaker)) == ("uv", "run", ROOT / "kokoro_tts_generation.py")
    (tmp_path / "elsewhere").mkdir()
    spoken = warm.run(speaker, *arguments, "--no-preview", "-o", "o.wav", cwd=tmp_path / "elsewhere")
    assert spoken.returncode == 0, spoken.stderr
    assert soundfile.info(tmp_path / "elsewhere" / "o.wav").duration > 1


def test_interrupted_search_keeps_its_best_and_goes_on(walk, warm, checkpoint, tmp_path):
    """Ctrl-C at any time; --resume needs the same flags, but neither the seed that was drawn nor the same limits."""
    common = (*SHORT, "--resume", "run 1", "--model", checkpoint)
    child = warm.start(SCRIPT, *common, cwd=tmp_path)
    state = tmp_path / "run 1" / "search.safetensors"
    deadline = time.monotonic() + 300
    while not state.exists():
        assert time.monotonic() < deadline, child.stderr()
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGINT)
    stopped = child.wait()
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stdout == "" and "--resume" in stopped.stderr
    from networks.kokoro.voices import read_voice

    assert read_voice(tmp_path / "run 1" / "voice.pt").shape == (510, 1, 256)
    assert (tmp_path / "run 1" / "voice.safetensors").is_file()
    assert not [name for name in everything_in(tmp_path) if ".partial" in name]
    seed = int(stopped.stderr.split("seed ")[1].split()[0])
    reached = len(json.loads(metadata(state)["search"])["progress"])
    again = warm.run(SCRIPT, *common, "--step-limit", reached + 2, "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    (result,) = json_lines(again.stdout)
    assert result["seed"] == seed and result["steps"] == reached + 2
    progress = json.loads(metadata(state)["search"])["progress"]
    seconds = [row["cpu_seconds"] for row in progress]
    assert [row["step"] for row in progress] == list(range(1, reached + 3)) and seconds == sorted(seconds)


def test_checkpoint_goes_on_only_as_it_was_begun(tmp_path):
    begun = script.Checkpoint(tmp_path, config(method="walk", other_text="Yes."))
    assert begun.tensors is None
    begun.about["progress"].append({"step": 1})
    begun.save({"offset": np.ones(256, np.float32)})
    again = script.Checkpoint(tmp_path, config(method="walk", other_text="Yes.", step_limit=7, max_minutes=1.0))
    np.testing.assert_array_equal(again.tensors["offset"], np.ones(256, np.float32))
    assert again.about["progress"] == [{"step": 1}]
    for changed in ({"method": "gradient"}, {"lang_code": "b"}, {"per_row": True}, {"starting_voice": "af_bella"}):
        with pytest.raises(UsageError, match="was begun with"):
            script.Checkpoint(tmp_path, config(**{"method": "walk", "other_text": "Yes.", **changed}))
    (tmp_path / "search.safetensors").write_bytes(b"cut short")
    with pytest.raises(InvalidInputError, match="cannot be resumed"):
        script.Checkpoint(tmp_path, config(method="walk", other_text="Yes."))


def metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "np") as stream:
        return stream.metadata()


@pytest.mark.slow
def test_resumed_search_is_the_same_search(walk, warm, checkpoint, tmp_path):
    """A search that is killed again and again ends in the very file of one that was left alone."""
    whole = walk(*SHORT, "--step-limit", 12, "--resume", "whole")
    assert whole.returncode == 0, whole.stderr
    args = (*SHORT, "--step-limit", 12, "--resume", "parts", "--model", checkpoint, "--seed", 5)
    state = tmp_path / "parts" / "search.safetensors"
    for steps in (2, 5):
        child = warm.start(SCRIPT, *args, cwd=tmp_path)
        while not state.exists() or len(json.loads(metadata(state)["search"])["progress"]) < steps:
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait().returncode == -signal.SIGKILL
    again = warm.run(SCRIPT, *args, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for name in ("voice.pt", "voice.safetensors", "sample_unseen_text.wav"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_folder_of_clips_and_time_limit(walk, tmp_path):
    clips = tmp_path / "clips" / "deep"
    clips.mkdir(parents=True)
    for name, pitch in (("a", 120), ("b", 140)):
        soundfile.write(clips / f"{name}.flac", np.stack([buzz(2, 44100, pitch)] * 2, 1), 44100)
        (clips / f"{name}.txt").write_text("This is a test. It has two sentences.")
    done = walk("--target-folder", "clips", "--max-minutes", 0.01, "--other-text", "Yes.", "--json", "-o", "v.pt")
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    assert result["ended_by"] == "time limit" and (tmp_path / "v.pt").is_file()
    assert result["starting_voice"] == "af_bella" and any("--max-minutes" in w for w in result["warnings"])
    (clips / "b.txt").unlink()
    assert walk("--target-folder", "clips").returncode == 66


def test_walks_from_the_best_mixture_each_row_on_its_own(walk, checkpoint, tmp_path):
    from networks.kokoro.voices import read_voice

    start = ("--interpolate-start", "--population-limit", 2)
    settings = ("--method", "walk", "--per-row", "--max-memory", 3, "--step-limit", 6, "--output-name", "rows_1")
    done = walk("me.wav", *TEXT, *start, *settings, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    assert result["starting_voice"].startswith("af_") and run_record(tmp_path / "output")["model"]
    voice = read_voice(Path(result["folder"]) / "rows_1.pt")
    if result["similarity_held_out"] > result["similarity_held_out_start"]:
        assert result["adjacent_row_jump"] > result["adjacent_row_jump_start"]
    else:
        assert result["adjacent_row_jump"] == result["adjacent_row_jump_start"]
    assert np.isfinite(voice).all()


def config(**values) -> "script.Config":
    return script.Config(seed=1, **values)


def test_what_it_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("me.wav", buzz(2), RATE)
    soundfile.write("short.wav", buzz(0.3), RATE)
    Path("text.wav").write_text("no sound")
    Path("empty.txt").write_text("\n")
    me = (Path("me.wav"),)
    cases = [
        ({}, 2),
        ({"target_audio": me}, 2),
        ({"target_audio": (*me, *me), "target_text": "x"}, 2),
        ({"target_audio": me, "target_folder": tmp_path, "transcribe": False}, 2),
        ({"target_audio": me, "target_text": "x", "transcribe": True}, 2),
        ({"target_folder": tmp_path, "target_text": "x"}, 2),
        ({"target_audio": me, "target_text": "none.txt"}, 66),
        ({"target_audio": me, "target_text": "empty.txt"}, 65),
        ({"target_audio": me, "target_text": " … "}, 65),
        ({"target_audio": me, "target_text": "x", "other_text": ""}, 65),
        ({"target_audio": (Path("short.wav"),), "target_text": "x"}, 65),
        ({"target_audio": (Path("text.wav"),), "target_text": "x"}, 65),
        ({"target_folder": Path("none")}, 66),
        ({"target_audio": me, "target_text": "x", "starting_voice": "none.pt"}, 66),
        ({"target_audio": me, "target_text": "x", "voice_folder": Path("none")}, 66),
        ({"target_audio": me, "target_text": "x", "per_row": True}, 2),
        ({"target_audio": me, "target_text": "x", "dtype": "bf16"}, 2),
        ({"target_audio": me, "target_text": "x", "output": Path("voice.wav")}, 2),
        ({"target_audio": me, "target_text": "x", "output_name": "../voice"}, 2),
        ({"target_audio": me, "target_text": "x", "lang_code": "q"}, 2),
        ({"target_audio": me, "target_text": "x", "max_memory": 0.5}, 2),
    ]
    from shared_utils.args import validate

    for values, code in cases:
        with pytest.raises(ScriptError) as caught:
            validate(config(**values))
            script.check(config(**values))
        assert caught.value.exit_code == code and "\n" not in str(caught.value), (values, caught.value)
    script.check(config(target_audio=me, target_text="x"))


def test_what_the_command_line_refuses(walk, tmp_path):
    before = everything_in(tmp_path)
    for args, code in [
        ((), 2),
        (("none.wav", "--target-text", "x"), 66),
        (("me.wav", "--target-text", "x", "--inputs-from", "list"), 2),
        (("me.wav", "--target-text", "x", "--shard", "0/2"), 2),
        (("me.wav", "--target-text", "x", "--starting-voice", "nobody"), 2),
        (("me.wav", "--transcribe", "--offline", "--weights-dir", "none"), 69),
    ]:
        done = walk(*args)
        assert done.returncode == code, (args, done.stderr)
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert everything_in(tmp_path) == before


def test_transcribing_without_its_package_says_what_to_type(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faster_whisper" else find(name))
    monkeypatch.setattr("sys.argv", ["kvoicewalk_generation.py", "my voice.wav", "--transcribe"])
    with pytest.raises(UnavailableError) as caught:
        script.check(config(target_audio=(tmp_path / "me.wav",), transcribe=True))
    wanted = "uv run --with faster-whisper kvoicewalk_generation.py 'my voice.wav' --transcribe"
    assert wanted in str(caught.value)
    assert script.roles(config(transcribe=True)) == ["model", "transcriber"]
    assert script.roles(config()) == ["model"]


@pytest.mark.slow
def test_hears_the_text_itself(walk, tmp_path):
    """Whisper by way of PyPI, espeak-ng to be heard."""
    from kokoro_real import CACHE, whisper

    from benchmarks.kvoicewalk import espeak

    whisper()
    said = "Please bring two apples, three oranges, and a loaf of bread."
    soundfile.write(tmp_path / "said.wav", *espeak(said))
    role = f"transcriber={CACHE / 'whisper-base'}"
    settings = ("--model", role, "--starting-voice", "af_heart", "--step-limit", 1, "--other-text", "Yes.")
    done = walk("said.wav", "--transcribe-start", *settings)
    assert done.returncode == 0, done.stderr
    heard = next(line for line in done.stderr.splitlines() if line.startswith("heard: ")).removeprefix("heard: ")
    assert errors(words(said), words(heard)) <= 2, heard
    (tmp_path / "nothing").mkdir()
    assert walk("said.wav", "--transcribe", "--model", "transcriber=nothing").returncode in (65, 66)
