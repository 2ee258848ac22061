"""kvoicewalk_generation.py on a tiny Kokoro; the speaker encoder against the package it comes from."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from processes import everything_in, json_lines, run_record
from warm import Warm

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
        "torch", "transformers", "kokoro", "misaki.en", "soundfile", "scipy.ndimage", "matplotlib.figure"
    ) as server:
        yield server


@pytest.fixture
def walk(warm, checkpoint, tmp_path):
    soundfile.write(tmp_path / "me.wav", buzz(2), RATE)

    def call(*args, **env):
        return warm.run(SCRIPT, *args, "--model", checkpoint, "--seed", 5, cwd=tmp_path, **env)

    return call


SHORT = ("me.wav", "--target-text", "This is a test.", "--starting-voice", "af_heart")


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


def test_silence_is_refused():
    from networks.resemblyzer import preprocess
    from shared_utils.errors import InvalidInputError

    with pytest.raises(InvalidInputError, match="silent"):
        preprocess(np.zeros(48000, np.float32), RATE)


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


@pytest.mark.parametrize("method", ["gradient", "walk"])
def test_makes_a_voice_that_the_speaker_reads(walk, warm, checkpoint, tmp_path, method):
    done = walk(*SHORT, "--method", method, "--step-limit", 7, "--json", "-o", "mine.pt")
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    assert result["similarity_held_out"] >= result["similarity_held_out_start"] and result["steps"] == 7
    from networks.kokoro.voices import read_voice

    voice, start = read_voice(tmp_path / "mine.pt"), read_voice(checkpoint / "voices" / "af_heart.pt")
    moved = voice - start
    np.testing.assert_allclose(
        moved, np.broadcast_to(moved[:1], moved.shape), atol=1e-5, err_msg="one offset for all rows"
    )
    roles = {Path(o["path"]).name for o in result["outputs"]}
    assert {"mine.pt", "voice.safetensors", "report.json", "progress.png", "sample_unseen_text.wav"} <= roles
    spoken = warm.run(
        "kokoro_tts_generation.py",
        "Hello.",
        "--voice-file",
        "mine.pt",
        "--lang-code",
        "a",
        "--model",
        checkpoint,
        "-o",
        "o.wav",
        cwd=tmp_path,
    )
    assert spoken.returncode == 0, spoken.stderr


@pytest.mark.slow
def test_resumed_search_is_the_same_search(walk, warm, checkpoint, tmp_path):
    whole = walk(*SHORT, "--step-limit", 9, "--resume", "whole")
    assert whole.returncode == 0, whole.stderr
    args = (*SHORT, "--step-limit", 9, "--resume", "parts", "--model", checkpoint, "--seed", 5)
    child = warm.start(SCRIPT, *args, cwd=tmp_path)
    state = tmp_path / "parts" / "search.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists():
        assert time.monotonic() < deadline, child.stderr()
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGINT)
    stopped = child.wait()
    assert stopped.returncode in (130, 0), stopped.stderr
    if stopped.returncode == 130:
        assert (tmp_path / "parts" / "voice.pt").is_file(), "the best voice so far is kept"
    again = warm.run(SCRIPT, *args, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "parts" / "voice.pt").read_bytes() == (tmp_path / "whole" / "voice.pt").read_bytes()


@pytest.mark.slow
def test_folder_of_clips_and_time_limit(walk, tmp_path):
    clips = tmp_path / "clips" / "deep"
    clips.mkdir(parents=True)
    for name, pitch in (("a", 120), ("b", 140)):
        soundfile.write(clips / f"{name}.flac", np.stack([buzz(2, 44100, pitch)] * 2, 1), 44100)
        (clips / f"{name}.txt").write_text("This is a test. It has two sentences.")
    done = walk("--target-folder", "clips", "--max-minutes", 0.01, "--starting-voice", "af_bella", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ended_by"] in ("time limit", "step limit")
    (clips / "b.txt").unlink()
    assert walk("--target-folder", "clips").returncode == 66


@pytest.mark.slow
def test_chooses_the_closest_voice_and_mixes(walk, tmp_path):
    done = walk(
        "me.wav",
        "--target-text",
        "This is a test.",
        "--interpolate-start",
        "--population-limit",
        2,
        "--step-limit",
        1,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["starting_voice"].startswith("af_")
    assert run_record(tmp_path / "output")["model"]


@pytest.mark.slow
def test_what_it_refuses(walk, tmp_path):
    soundfile.write(tmp_path / "short.wav", buzz(0.3), RATE)
    (tmp_path / "text.wav").write_text("no sound")
    before = everything_in(tmp_path)
    cases = [
        ((), 2),
        (("me.wav",), 2),
        (("none.wav", "--target-text", "x"), 66),
        (("me.wav", "--target-text", "none.txt"), 66),
        (("short.wav", "--target-text", "x"), 65),
        (("text.wav", "--target-text", "x"), 65),
        (("me.wav", "--target-text", "x", "--per-row"), 2),
        (("me.wav", "--target-text", "x", "--starting-voice", "nobody"), 2),
        (("me.wav", "--target-text", "x", "--inputs-from", "list"), 2),
        (("me.wav", "--target-text", "x", "-o", "voice.wav"), 2),
    ]
    for args, code in cases:
        done = walk(*args)
        assert done.returncode == code, (args, done.stderr)
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert everything_in(tmp_path) == before
