"""Sound written block by block: resampled, encoded and counted on the way, so that memory does not grow with its length."""

import contextlib
import dataclasses
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shared_utils.errors import OutputWriteError, PostConditionError, UsageError

BLOCK = 1 << 16  # samples handled at a time
PEAK_TARGET = 10 ** (-1 / 20)  # -1 dBFS: room for what lossy decoders overshoot
WAV_BYTES = (1 << 32) - (1 << 16)  # the sizes in a RIFF header are 32-bit numbers


@dataclasses.dataclass(frozen=True)
class AudioFormat:
    """How soundfile calls a format, the sample rates it takes (None: any) and by what it may be tuned."""

    container: str
    coding: str
    rates: tuple[int, ...] | None = None
    bitrate: bool = False
    quality: bool = False


FORMATS = {
    "wav": AudioFormat("WAV", "PCM_16"),
    "flac": AudioFormat("FLAC", "PCM_16"),
    "mp3": AudioFormat(
        "MP3", "MPEG_LAYER_III", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000), True, True
    ),
    "ogg": AudioFormat("OGG", "VORBIS", None, quality=True),
    "opus": AudioFormat("OGG", "OPUS", (8000, 12000, 16000, 24000, 48000), True),
}
OPUS_KBPS = (6, 256)  # libsndfile's range for one channel (ogg_opus.c)


def mp3_kbps(sample_rate: int) -> tuple[int, int]:
    """Lowest and highest constant bit rate of MP3: MPEG 1 from 32 kHz on, MPEG 2 from 16 kHz, MPEG 2.5 below."""
    return (32, 320) if sample_rate >= 32000 else (8, 160) if sample_rate >= 16000 else (8, 64)


def check_settings(name: str, sample_rate: int, bitrate: int | None, quality: float | None) -> None:
    """Whether a format takes these settings. Raises UsageError. `bitrate` in kbit/s, `quality` 0 to 1."""
    audio = FORMATS[name]
    if audio.rates is not None and sample_rate not in audio.rates:
        raise UsageError(f"--sample-rate {sample_rate}: {name} takes {', '.join(map(str, audio.rates))}")
    if bitrate is not None and quality is not None:
        raise UsageError("--bitrate and --quality exclude each other")
    if bitrate is not None:
        if not audio.bitrate:
            raise UsageError(f"--bitrate {bitrate}: {name} has none (mp3 and opus have)")
        low, high = OPUS_KBPS if name == "opus" else mp3_kbps(sample_rate)
        if not low <= bitrate <= high:
            raise UsageError(f"--bitrate {bitrate}: must be from {low} to {high} kbit/s for {name} at {sample_rate} Hz")
    if quality is not None and not audio.quality:
        raise UsageError(f"--quality {quality:g}: {name} has none (mp3 and ogg have)")


def encoder_settings(name: str, sample_rate: int, bitrate: int | None, quality: float | None) -> dict[str, Any]:
    """What soundfile wants to hear: a compression level 0 to 1, which libsndfile maps onto rates or qualities."""
    if bitrate is not None:
        low, high = OPUS_KBPS if name == "opus" else mp3_kbps(sample_rate)
        # LAME refuses the very lowest rate under the level that stands for it.
        level = min(0.99, (high - bitrate) / (high - low))
        return {"compression_level": level} | ({"bitrate_mode": "CONSTANT"} if name == "mp3" else {})
    if quality is not None:
        return {"compression_level": min(0.99, 1 - quality)} | ({"bitrate_mode": "VARIABLE"} if name == "mp3" else {})
    return {}


class Resampler:
    """From one sample rate to another in blocks, with soxr's best quality; hands through what needs no change."""

    def __init__(self, source: int, target: int):
        self._stream = None
        if source != target:
            import soxr

            self._stream = soxr.ResampleStream(source, target, 1, dtype="float32", quality="VHQ")

    def __call__(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """`last` ends the signal and brings what was held back; another one may follow."""
        if self._stream is None:
            return samples
        resampled = self._stream.resample_chunk(samples, last=last)
        if last:
            self._stream.clear()
        return resampled


class AudioWriter:
    """Writes one channel of float32 samples at `source_rate` into a file at `sample_rate`; `close` finishes and checks it.

    samples: written so far, at `sample_rate`. clipped: how many of them were beyond full scale. peak: the largest, 1 being
    full scale, before normalising.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        source_rate: int,
        sample_rate: int,
        *,
        bitrate: int | None = None,
        quality: float | None = None,
        normalize: bool = False,
    ):
        import soundfile

        self.path = path
        self.name = name
        self.sample_rate = sample_rate
        self.samples = 0
        self.clipped = 0
        self.peak = 0.0
        self._resample = Resampler(source_rate, sample_rate)
        # The loudest sample is known at the end: until then the sound waits on the disk.
        self._waiting: BinaryIO | None = tempfile.TemporaryFile(dir=path.parent) if normalize else None  # noqa: SIM115
        with _encoder_errors(path):
            self._file = soundfile.SoundFile(
                path,
                "w",
                sample_rate,
                1,
                FORMATS[name].coding,
                format=FORMATS[name].container,
                **encoder_settings(name, sample_rate, bitrate, quality),
            )

    def __enter__(self) -> "AudioWriter":
        return self

    def __exit__(self, kind: Any, *exc: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def write(self, samples: np.ndarray) -> None:
        """Append samples, float32 [n]."""
        self._take(self._resample(np.ascontiguousarray(samples, dtype=np.float32)))

    def silence(self, seconds: float, source_rate: int) -> int:
        """Append silence; returns how many samples that is at `source_rate`."""
        count = round(seconds * source_rate)
        for start in range(0, count, BLOCK):
            self.write(np.zeros(min(BLOCK, count - start), dtype=np.float32))
        return count

    def _take(self, samples: np.ndarray) -> None:
        if not len(samples):
            return
        self.peak = max(self.peak, float(np.abs(samples).max()))
        if self._waiting is not None:
            self._waiting.write(samples.tobytes())
        else:
            self._encode(samples)

    def _encode(self, samples: np.ndarray) -> None:
        self.clipped += int((np.abs(samples) > 1).sum())
        self.samples += len(samples)
        if self.name == "wav" and 2 * self.samples > WAV_BYTES:
            raise OutputWriteError(f"{self.path.name}: a WAV file holds at most 4 GB; use --output-format flac or opus")
        for start in range(0, len(samples), BLOCK):
            with _encoder_errors(self.path):
                self._file.write(np.clip(samples[start : start + BLOCK], -1, 1))

    def close(self) -> None:
        """Finish the file. Raises PostConditionError when it does not hold what was written."""
        self._take(self._resample(np.zeros(0, dtype=np.float32), last=True))
        if self._waiting is not None:
            self._normalized()
        with _encoder_errors(self.path):
            self._file.close()
        self._check()

    def _normalized(self) -> None:
        scale = PEAK_TARGET / self.peak if self.peak else 1.0
        self._waiting.seek(0)
        while block := self._waiting.read(4 * BLOCK):
            self._encode(np.frombuffer(block, dtype=np.float32) * np.float32(scale))
        self._waiting.close()

    def abandon(self) -> None:
        """Close everything; the file is incomplete."""
        if self._waiting is not None:
            self._waiting.close()
        self._file.close()

    def _check(self) -> None:
        import soundfile

        info = soundfile.info(self.path)
        # MP3 pads to whole frames of 1152 samples, at either end.
        slack = 4 * 1152 if self.name == "mp3" else 0
        if info.samplerate != self.sample_rate or abs(info.frames - self.samples) > slack:
            raise PostConditionError(
                f"{self.path.name}: holds {info.frames} samples at {info.samplerate} Hz after {self.samples} at"
                f" {self.sample_rate} Hz were written"
            )


@contextlib.contextmanager
def _encoder_errors(path: Path) -> Iterator[None]:
    """libsndfile reports a full disk and the like in words of its own."""
    import soundfile

    try:
        yield
    except soundfile.LibsndfileError as error:
        raise OutputWriteError(f"{path.name}: cannot be written ({error.error_string})") from error


class PcmStream:
    """16-bit samples to a pipe as they come, as WAV of unknown length or bare.

    A player reads on until the pipe ends; the sizes in the header are the largest there are, as is the custom for streams.
    """

    def __init__(self, stream: BinaryIO, source_rate: int, sample_rate: int, header: bool):
        self._stream = stream
        self._resample = Resampler(source_rate, sample_rate)
        self._sample_rate = sample_rate
        self._header = header

    def write(self, samples: np.ndarray) -> None:
        """Send samples, float32 [n]."""
        self._send(self._resample(np.ascontiguousarray(samples, dtype=np.float32)))

    def flush(self) -> None:
        """Send what the resampler holds back: a recording is over, and another may follow."""
        self._send(self._resample(np.zeros(0, np.float32), last=True))

    def _send(self, sound: np.ndarray) -> None:
        if self._header:
            self._header = False
            rate, largest = self._sample_rate, 0xFFFFFFFF
            self._stream.write(struct.pack("<4sI4s", b"RIFF", largest, b"WAVE"))
            self._stream.write(struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16))
            self._stream.write(struct.pack("<4sI", b"data", largest - 36))
        self._stream.write((np.clip(sound, -1, 1) * 32767).round().astype("<i2").tobytes())
        self._stream.flush()
