"""Video files frame by frame with PyAV: no ffmpeg program, no torchcodec."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared_utils.errors import InvalidInputError, MissingInputError


def decode(path: Path) -> Iterator[tuple[float, Any]]:
    """Yield (seconds from the first frame, RGB uint8 array [H, W, 3] turned upright) for every frame, in order of display.

    Raises `MissingInputError`, and `InvalidInputError` for a file without a video stream or with a damaged one.
    """
    import av
    import numpy as np

    try:
        container = av.open(str(path))
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InvalidInputError(f"{path}: not a video that can be read ({_words(error)})") from None
    with container:
        if not container.streams.video:
            raise InvalidInputError(f"{path}: no video stream in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        first = None
        try:
            for frame in container.decode(stream):
                time = frame.time if frame.time is not None else 0.0
                first = time if first is None else first
                picture = frame.to_ndarray(format="rgb24")
                # The display matrix says counter-clockwise degrees to turn by (FFmpeg, av_display_rotation_get).
                turns = round(frame.rotation / 90) % 4
                yield time - first, np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture
        except (av.FFmpegError, ValueError) as error:
            raise InvalidInputError(f"{path}: the video is damaged ({_words(error)})") from None
        if first is None:
            raise InvalidInputError(f"{path}: no frame in it")


def sample(path: Path, fps: float, max_frames: int) -> tuple[list[Any], list[float]]:
    """Frames spread over a video, `fps` a second but at most `max_frames`, with the seconds at which they are shown.

    The frame on screen at each sampling time is taken, so that a variable frame rate is respected; none is taken twice.
    Raises as `decode` does.
    """
    import numpy as np

    shown = np.array([time for time, _ in decode(path)])
    count = min(max_frames, int(shown[-1] * fps + 1e-6) + 1)
    wanted = np.arange(count) / fps if count < max_frames else np.linspace(0, shown[-1], count)
    chosen = set(np.searchsorted(shown, wanted + 1e-6, side="right") - 1)
    kept = [(time, picture) for index, (time, picture) in enumerate(decode(path)) if index in chosen]
    return [picture for _, picture in kept], [time for time, _ in kept]


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
