"""What is looked at: a video, a folder of pictures or a single one, as frames at their times."""

import dataclasses
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from shared_utils import video
from shared_utils.errors import InvalidInputError, UsageError
from shared_utils.image_files import read_image, upright_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# FFmpeg's numbers for limited range, BT.709 matrix, primaries and transfer: what RGB pictures become.
BT709 = (1, 1, 1, 1)


@dataclasses.dataclass(frozen=True)
class Source:
    """Frames `first` to before `last` of a clip, of which every `every`-th is tracked. `images` are the files, without a video."""

    path: Path
    clip: video.Clip
    first: int
    last: int
    every: int
    images: tuple[Path, ...] = ()

    @property
    def frames(self) -> range:
        return range(self.first, self.last)

    @property
    def tracked(self) -> range:
        return range(self.first, self.last, self.every)

    @property
    def is_still(self) -> bool:
        return self.images == (self.path,)

    @property
    def audio(self) -> Path | None:
        return None if self.images or self.clip.audio_start is None else self.path

    def decoded(self) -> Iterator[Any]:
        """PyAV frames of the range, in order."""
        return islice(self._images() if self.images else video.frames(self.path), self.first, self.last)

    def pictures(self) -> Iterator[Any]:
        """RGB uint8 arrays [H, W, 3], upright, of the tracked frames."""
        from networks.sam3.overlay import over_white

        for frame in islice(self.decoded(), None, None, self.every):
            frame = over_white(frame) if self.clip.alpha else frame
            yield video.upright(frame.to_ndarray(format="rgb24"), self.clip.turns)

    def _images(self) -> Iterator[Any]:
        import av
        import numpy as np

        for path in self.images:
            yield av.VideoFrame.from_ndarray(np.asarray(read_image(path)), format="rgb24")


def images_in(path: Path) -> tuple[Path, ...]:
    """The pictures a path stands for, empty for a video. Raises `InvalidInputError` for a folder without pictures."""
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
        if not found:
            raise InvalidInputError(f"{path}: no picture in it ({', '.join(IMAGE_SUFFIXES)})")
        return tuple(sorted(found, key=_as_counted))
    return (path,) if path.suffix.lower() in IMAGE_SUFFIXES else ()


def first_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Width and height of the frames, from the first one alone. Raises as `open_source` does."""
    images = images_in(path)
    return upright_size(images[0], max_pixels) if images else video.first_size(path, max_pixels)


def open_source(path: Path, start: float, end: float | None, every: int, fps: float, max_pixels: int) -> Source:
    """Look through an input once. start, end: seconds; fps: frames a second of a folder.

    Raises `InvalidInputError` for what cannot be used and `UsageError` for a range without a frame.
    """
    images = images_in(path)
    clip = _clip_of_images(images, fps, max_pixels) if images else video.scan(path, max_pixels)
    matrix_is_rgb = clip.colour[1] == 0
    if clip.format.startswith(("rgb", "bgr", "gbr", "argb", "abgr", "pal8", "0rgb", "x2rgb")) or matrix_is_rgb:
        clip = dataclasses.replace(clip, colour=BT709)
    times = [clip.seconds(i) for i in range(len(clip.pts))]
    inside = [i for i, t in enumerate(times) if t >= start - 1e-6 and (end is None or t < end - 1e-6)]
    if not inside:
        raise UsageError(f"--start {start:g}, --end {end}: {path} has no frame there; its last is at {times[-1]:.3f} s")
    return Source(path, clip, inside[0], inside[-1] + 1, every, images)


def _as_counted(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorting key by which 2 comes before 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts], path.name


def _clip_of_images(images: tuple[Path, ...], fps: float, max_pixels: int) -> video.Clip:
    width, height = upright_size(images[0], max_pixels)
    for path in images:
        if upright_size(path, max_pixels) != (width, height):
            other = upright_size(path, max_pixels)
            raise InvalidInputError(f"{path}: is {other[0]} x {other[1]}, {images[0].name} is {width} x {height}")
    rate = Fraction(fps).limit_denominator(1001)
    pts = list(range(len(images)))
    return video.Clip(pts, 1 / rate, 1, rate, width, height, 0, "rgb24", False, BT709, None, None)
