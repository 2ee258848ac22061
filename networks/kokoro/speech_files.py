"""Everything a text becomes, written as it comes: sound, stream, segments, subtitles, preview."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from networks.kokoro.config import SAMPLE_RATE
from shared_utils.audio_files import AudioWriter, PcmStream
from shared_utils.audio_preview import AudioPreview
from shared_utils.errors import PostConditionError
from shared_utils.output_dir import ItemOutput
from shared_utils.subtitles import SubtitleWriter, TimedText, cues

SILENCE = 1e-4  # peak below which sound is no speech; full scale is 1


class SpeechFiles:
    """A context manager; on the way out the files are finished and checked, after a failure they are only closed.

    `file_format` is a key of `audio_files.FORMATS`, `sample_rate` that of the files in Hz, `subtitles` kinds of
    `SubtitleWriter`; `stream`, if given, gets the sound as well and stays open.
    """

    def __init__(
        self,
        out: ItemOutput,
        file_format: str,
        sample_rate: int,
        *,
        bitrate: int | None = None,
        quality: float | None = None,
        normalize: bool = False,
        segments: bool = False,
        subtitles: tuple[str, ...] = (),
        subtitle_words: bool = False,
        preview: bool = False,
        stream: PcmStream | None = None,
    ):
        self.rate = sample_rate
        self.samples = 0  # at the model's rate
        self.chunks = 0
        self.loudest = 0.0
        self._stack = ExitStack()
        self._stream = stream
        self._single = subtitle_words
        settings = {"bitrate": bitrate, "quality": quality}
        path = out.primary(out.stamped("kokoro", f".{file_format}"))
        self.writer = self._stack.enter_context(
            AudioWriter(path, file_format, SAMPLE_RATE, sample_rate, normalize=normalize, **settings)
        )
        self._segments: Callable[[int], AudioWriter] | None = None
        if segments:
            folder = out.directory("segments" if not out.label else f"{out.label}_segments", role="segments")
            self._segments = lambda number: AudioWriter(
                folder / f"{number:05d}.{file_format}", file_format, SAMPLE_RATE, sample_rate, **settings
            )
        self._subtitles = [
            self._stack.enter_context(SubtitleWriter(out.beside_primary(f".{kind}", "subtitles"), kind))
            for kind in dict.fromkeys(subtitles)
        ]
        self._preview: AudioPreview | None = None
        self._preview_path: Path | None = None
        if preview:
            self._preview = AudioPreview(SAMPLE_RATE)
            self._preview_path = out.file(
                "preview.png" if not out.label else f"{out.label}_preview.png", role="preview"
            )

    def __enter__(self) -> "SpeechFiles":
        return self

    def __exit__(self, kind: Any, *exc: object) -> None:
        if kind is None:
            if self._stream is not None:
                self._stream.flush()
            if self._preview is not None:
                self._preview.save(self._preview_path)
        self._stack.__exit__(kind, *exc)

    @property
    def seconds(self) -> float:
        """Length so far."""
        return self.samples / SAMPLE_RATE

    def pause(self, seconds: float) -> None:
        self._write(np.zeros(round(seconds * SAMPLE_RATE), np.float32))

    def add(self, audio: np.ndarray, sentences: list[list[TimedText]]) -> None:
        """A chunk's sound, float32 [samples] at 24 kHz, and its words with their times in the whole."""
        self.chunks += 1
        if len(audio):
            self.loudest = max(self.loudest, float(np.abs(audio).max()))
        self._write(audio)
        if self._segments is not None and len(audio):
            with self._segments(self.chunks) as segment:
                segment.write(audio)
        for parts in sentences:
            if self._preview is not None:
                for part in parts:
                    self._preview.word(part.start, part.text)
            for cue in cues(parts, single=self._single):
                for subtitles in self._subtitles:
                    subtitles.write(cue)

    def _write(self, audio: np.ndarray) -> None:
        self.writer.write(audio)
        self.samples += len(audio)
        if self._stream is not None:
            self._stream.write(audio)
        if self._preview is not None:
            self._preview.add(audio)

    def check(self) -> None:
        """Speech is longer than nothing and louder than silence. Raises PostConditionError."""
        if not self.samples or self.loudest < SILENCE:
            raise PostConditionError(f"{self.seconds:.2f} s of sound with a peak of {self.loudest:.1e}: is no speech")

    def report(self) -> dict[str, Any]:
        """What `--json` and `run.json` say about the sound, once it is written."""
        writer = self.writer
        return {
            "audio_seconds": round(self.seconds, 3),
            "sample_rate": self.rate,
            "samples": writer.samples,
            "peak": round(writer.peak, 4),
            "clipped_samples": writer.clipped,
            "chunks": self.chunks,
        }
