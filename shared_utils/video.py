"""Video files frame by frame with PyAV: no ffmpeg program, no torchcodec."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from shared_utils.errors import InvalidInputError, MissingInputError

# FFmpeg's names of formats whose header says how long they last; for others FFmpeg looks at the end of what is there.
_LENGTH_IN_HEADER = ("matroska", "flv", "mp4")


@dataclass(frozen=True)
class Clip:
    """What is known of a video's stream after every frame of it has been decoded once.

    pts: when each frame is shown, in units of `time_base` (seconds), strictly ascending. width, height: pixels, upright.
    turns: quarter turns counter-clockwise that bring a decoded frame upright. rate: frames a second on average. colour:
    FFmpeg's numbers for range, matrix, primaries and transfer. aspect: width to height of an upright pixel. last: duration of the last frame, in
    units of `time_base`. audio_start: seconds, None without audio.
    """

    pts: list[int]
    time_base: Fraction
    last: int
    rate: Fraction
    width: int
    height: int
    turns: int
    format: str
    alpha: bool
    colour: tuple[int, int, int, int]
    aspect: Fraction | None
    audio_start: float | None

    def seconds(self, index: int) -> float:
        """When a frame is shown, counted from the first one."""
        return float((self.pts[index] - self.pts[0]) * self.time_base)

    @property
    def is_variable(self) -> bool:
        """Whether the frames last differently long, by more than the rounding of their times."""
        steps = [after - before for before, after in itertools.pairwise(self.pts)]
        return bool(steps) and max(steps) - min(steps) > 2

    def duration(self, index: int) -> int:
        """How long a frame is shown, in units of `time_base`."""
        return self.pts[index + 1] - self.pts[index] if index + 1 < len(self.pts) else self.last


def first_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Width and height of a video, upright, from its first frame. Raises as `scan` does."""
    with _open(path) as (container, stream):
        _check_size(path, stream.codec_context, max_pixels)
        frame = next(_decoded(path, container, stream))
    _check_size(path, frame, max_pixels)
    return (frame.height, frame.width) if _turns(frame) % 2 else (frame.width, frame.height)


def scan(path: Path, max_pixels: int) -> Clip:
    """Decode a video once without keeping any picture.

    Raises as `frames` does, and `InvalidInputError` for a file that ends too early, for frames above `max_pixels` and for a size that changes.
    """
    stamps, durations, first = [], [], None
    with _open(path) as (container, stream):
        _check_size(path, stream.codec_context, max_pixels)
        for frame in _decoded(path, container, stream):
            if first is None:
                _check_size(path, frame, max_pixels)
                first = frame
            if (frame.width, frame.height) != (first.width, first.height):
                raise InvalidInputError(
                    f"{path}: frame {len(stamps)} is {frame.width} x {frame.height}, the first {first.width} x {first.height}"
                )
            stamps.append(frame.pts)
            durations.append(frame.duration or 0)
        base, rate = stream.time_base, stream.average_rate or stream.guessed_rate or Fraction(25)
        announced, length, aspect = stream.frames, stream.duration, stream.sample_aspect_ratio
        starts, lasts, kind = container.start_time or 0, container.duration, container.format.name
        sound = container.streams.audio[0] if container.streams.audio else None
        audio_start = None if sound is None else float((sound.start_time or 0) * (sound.time_base or 0))
    step = max(1, round(1 / rate / base))
    pts = _ascending(stamps, step)
    last = durations[-1] or (pts[-1] - pts[-2] if len(pts) > 1 else step)
    if announced > len(pts) and length and length - (pts[-1] + last - pts[0]) > 3 * step:
        raise InvalidInputError(f"{path}: ends after {len(pts)} of {announced} frames; the file is cut off")
    if not announced and lasts and any(part in _LENGTH_IN_HEADER for part in kind.split(",")):
        # These do not count their frames. Sound may go on for longer than the picture.
        announced_end = Fraction(starts + lasts, 1_000_000)  # FFmpeg's AV_TIME_BASE
        enough = announced_end - 3 * step * base - Fraction(1, 10)
        if (pts[-1] + last) * base < enough and (ends := _last_packet(path)) < enough:
            raise InvalidInputError(
                f"{path}: ends at {float(ends):.2f} of {float(announced_end):.2f} seconds; the file is cut off"
            )
    turns = _turns(first)
    width, height = (first.height, first.width) if turns % 2 else (first.width, first.height)
    colour = tuple(int(v) for v in (first.color_range, first.colorspace, first.color_primaries, first.color_trc))
    if first.format.name.startswith("yuvj"):
        colour = (2, *colour[1:])
    if aspect and turns % 2:
        aspect = 1 / aspect
    alpha = any(component.is_alpha for component in first.format.components) or first.format.name == "pal8"
    return Clip(
        pts, base, last, rate, width, height, turns, first.format.name, alpha, colour, aspect or None, audio_start
    )


def _last_packet(path: Path) -> Fraction:
    """When the last packet of any stream ends, seconds."""
    with _open(path) as (container, _):
        return max((p.pts + (p.duration or 0)) * p.time_base for p in container.demux() if p.pts is not None)


def _check_size(path: Path, picture: Any, max_pixels: int) -> None:
    if picture.width * picture.height > max_pixels:
        raise InvalidInputError(
            f"{path}: frames of {picture.width} x {picture.height} pixels are more than {max_pixels / 1e6:g} megapixels"
        )


def _turns(frame: Any) -> int:
    """Quarter turns: the display matrix says counter-clockwise degrees to turn by (FFmpeg, av_display_rotation_get)."""
    return round(frame.rotation / 90) % 4


def _ascending(stamps: list[int | None], step: int) -> list[int]:
    """Time stamps without gaps and repetitions: what is missing or does not ascend comes a step after the frame before."""
    pts: list[int] = []
    for stamp in stamps:
        if stamp is None or (pts and stamp <= pts[-1]):
            stamp = pts[-1] + (step if stamp is None else 1) if pts else 0
        pts.append(stamp)
    return pts


def frames(path: Path) -> Iterator[Any]:
    """Yield the frames of a video as PyAV gives them, in order of display.

    Raises `MissingInputError`, and `InvalidInputError` for a file without a video stream or with a damaged one.
    """
    with _open(path) as (container, stream):
        yield from _decoded(path, container, stream)


def upright(picture: Any, turns: int) -> Any:
    """An array [H, W, ...] turned counter-clockwise by quarter turns, contiguous."""
    import numpy as np

    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container of a file and its first video stream."""
    import av

    try:
        # Absolute, for FFmpeg takes what comes before a colon as a protocol.
        container = av.open(os.path.abspath(path))
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InvalidInputError(f"{path}: not a video that can be read ({_words(error)})") from None
    with container:
        # A cover picture in a file of music is no video.
        pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not pictures:
            raise InvalidInputError(f"{path}: no video stream in it")
        pictures[0].thread_type = "AUTO"
        yield container, pictures[0]


def _decoded(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    import av

    empty = True
    try:
        for frame in container.decode(stream):
            empty = False
            yield frame
    except (av.FFmpegError, ValueError) as error:
        raise InvalidInputError(f"{path}: the video is damaged ({_words(error)})") from None
    if empty:
        raise InvalidInputError(f"{path}: no frame in it")


def check(path: Path, max_pixels: int) -> None:
    """Decode the first frame. Raises as `frames` does, and `InvalidInputError` for frames above `max_pixels`."""
    with contextlib.closing(frames(path)) as decoded:
        first = next(decoded)
    if first.width * first.height > max_pixels:
        raise InvalidInputError(
            f"{path}: frames of {first.width} x {first.height} pixels are more than {max_pixels / 1e6:g} megapixels"
        )


def sample(path: Path, fps: float, max_frames: int, max_pixels: int) -> tuple[list[Any], list[float]]:
    """Frames spread over a video, `fps` a second but at most `max_frames`, with the seconds at which they are shown.

    The frame on screen at each sampling time is taken, so that a variable frame rate is respected; none is taken twice.
    RGB uint8 arrays [H, W, 3], upright. Raises as `scan` does.
    """
    import numpy as np

    clip = scan(path, max_pixels)
    shown = np.array([clip.seconds(index) for index in range(len(clip.pts))])
    count = min(max_frames, int(shown[-1] * fps + 1e-6) + 1)
    wanted = np.arange(count) / fps if count < max_frames else np.linspace(0, shown[-1], count)
    chosen = sorted(set(np.searchsorted(shown, wanted + 1e-6, side="right") - 1))
    kept = []
    for index, frame in enumerate(frames(path)):
        if index == chosen[len(kept)]:
            kept.append(upright(frame.to_ndarray(format="rgb24"), clip.turns))
            if len(kept) == len(chosen):
                break
    return kept, [float(shown[index]) for index in chosen]


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
