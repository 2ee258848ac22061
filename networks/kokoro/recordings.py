"""Recordings of a voice and what is said in them: read, checked, made ready for the speaker encoder."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from shared_utils.errors import InvalidInputError, MissingInputError

MIN_SECONDS, MAX_SECONDS = 1.0, 600.0  # of a recording
MIN_SPEECH = 0.5  # seconds of it that have to be speech
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aac", ".aiff", ".webm")


@dataclasses.dataclass
class Recording:
    """An audio file, and what is said in it: None where that is to be heard."""

    path: Path
    text: str | None


def in_folder(folder: Path, need_text: bool) -> list[Recording]:
    """The audio files below a folder, sorted, each with the `.txt` of its name.

    Raises MissingInputError for a text that is not there although `need_text`, InvalidInputError for no audio at all.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        raise InvalidInputError(f"{folder}: no recording in it ({', '.join(SUFFIXES)})")
    found = []
    for path in files:
        text = path.with_suffix(".txt")
        if not text.is_file() and need_text:
            raise MissingInputError(f"{text}: every recording needs its text beside it (or --transcribe)")
        found.append(Recording(path, read_text(text) if text.is_file() else None))
    return found


def read_text(path: Path) -> str:
    """A text file. Raises MissingInputError, and InvalidInputError where it is empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if not text:
        raise InvalidInputError(f"{path}: is empty")
    return text


def read_audio(path: Path) -> tuple[np.ndarray, int]:
    """Mono float32 [n] and its rate in Hz, through soundfile or, for what it does not know, PyAV.

    Raises InvalidInputError for what is no sound, silent, or outside `MIN_SECONDS` to `MAX_SECONDS`.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            audio = file.read(int(MAX_SECONDS * rate) + 1, dtype="float32", always_2d=True).mean(1)
    except soundfile.SoundFileError:
        audio, rate = _read_with_av(path)
    seconds = len(audio) / rate
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        length = f"{seconds:.2f} s" if seconds < MIN_SECONDS else f"more than {MAX_SECONDS:g} s"
        raise InvalidInputError(
            f"{path}: {length} of audio; {MIN_SECONDS:g} to {MAX_SECONDS:g} s are useful (shorter says too little of a voice,"
            " longer adds nothing; several recordings go into a --target-folder)"
        )
    if not np.isfinite(audio).all():
        raise InvalidInputError(f"{path}: holds samples that are not finite numbers")
    if not audio.any():
        raise InvalidInputError(f"{path}: the audio is silent")
    return audio, rate


def _read_with_av(path: Path) -> tuple[np.ndarray, int]:
    import av

    parts, samples = [], 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise InvalidInputError(f"{path}: no sound in it")
            rate = container.streams.audio[0].rate
            # Only the number type changes: FFmpeg's own way from stereo to mono makes it louder.
            resampler = av.AudioResampler(format="fltp", rate=rate)
            for frame in itertools.chain(container.decode(audio=0), [None]):
                for part in resampler.resample(frame):
                    parts.append(part.to_ndarray().mean(0))
                    samples += len(parts[-1])
                if samples > MAX_SECONDS * rate:
                    break
    except (av.FFmpegError, ValueError) as error:
        raise InvalidInputError(f"{path}: not audio that can be read ({error})") from None
    if not parts:
        raise InvalidInputError(f"{path}: no sound in it")
    return np.concatenate(parts), rate


def speech(path: Path) -> np.ndarray:
    """What the speaker encoder hears of a recording: 16 kHz, loud enough, silences cut; float32 [n].

    Raises as `read_audio`, and InvalidInputError where too little of it is speech.
    """
    from networks.resemblyzer import RATE, preprocess

    audio, rate = read_audio(path)
    try:
        heard = preprocess(audio, rate)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from None
    if len(heard) < MIN_SPEECH * RATE:
        raise InvalidInputError(
            f"{path}: only {len(heard) / RATE:.2f} s of it are speech; at least {MIN_SPEECH:g} s are needed"
        )
    return heard


def mean_embedding(encoder: Any, clips: list[np.ndarray]) -> np.ndarray:
    """Mean of the clips' embeddings, [256] of length 1; every clip counts alike, however long."""
    import torch

    with torch.inference_mode():
        embeddings = [encoder.embed(torch.from_numpy(clip).to(encoder.mel.device)).cpu().numpy() for clip in clips]
    mean = np.mean(embeddings, axis=0)
    return mean / np.linalg.norm(mean)
