"""Objects somebody points at: boxes and points as they are written on the command line, and as the tracker takes them."""

import dataclasses
import re
from typing import Any

from shared_utils.errors import UsageError

# Labels of the two corners of a box among SAM's point labels (0 and 1 are background and foreground).
_BOX_LABELS = (2, 3)


@dataclasses.dataclass(frozen=True)
class Seed:
    """An object somebody points at: in tracked frame `frame`, points (x, y) in pixels with labels 1 (it) and 0 (not it),
    or the corners of a box with labels 2 and 3. `name` stands where others have their text prompt."""

    name: str
    frame: int
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]

    @classmethod
    def box(cls, name: str, frame: int, corners: tuple[float, float, float, float]) -> "Seed":
        """A seed from x0, y0, x1, y1."""
        return cls(name, frame, (corners[:2], corners[2:]), _BOX_LABELS)


def box_rule(value: str) -> str | None:
    """What is wrong with a box, None when nothing is."""
    try:
        _, (x0, y0, x1, y1) = _box(value)
    except ValueError:
        return "must be FRAME:x0,y0,x1,y1"
    return None if x0 < x1 and y0 < y1 else "must have x0 < x1 and y0 < y1"


def point_rule(value: str) -> str | None:
    """What is wrong with a point, None when nothing is."""
    try:
        _point(value)
    except ValueError:
        return "must be FRAME:x,y or FRAME:x,y,+ or FRAME:x,y,-"
    return None


def check_points(points: tuple[str, ...]) -> None:
    """Raises `UsageError` for a frame in which all points lie beside the object."""
    on_object = {frame for frame, _, label in map(_point, points) if label}
    for value in points:
        if _point(value)[0] not in on_object:
            raise UsageError(f"--point {value}: needs a point on the object in the same frame")


def check_inside(boxes: tuple[str, ...], points: tuple[str, ...], width: int, height: int) -> None:
    """Raises `UsageError` for a box or point that reaches out of frames of `width` x `height` pixels."""
    places = [(f"--box {value}", _box(value)[1]) for value in boxes]
    places += [(f"--point {value}", _point(value)[1]) for value in points]
    for name, coordinates in places:
        for x, y in zip(coordinates[::2], coordinates[1::2], strict=True):
            if not (0 <= x <= width and 0 <= y <= height):
                raise UsageError(f"{name}: {x:g},{y:g} lies outside the frame of {width} x {height}")


def seeds_of(boxes: tuple[str, ...], points: tuple[str, ...], source: Any) -> tuple[Seed, ...]:
    """One object a box, and one for all points of a frame. Raises `UsageError` for a frame that is not looked at."""
    seeds = []
    for number, value in enumerate(boxes, 1):
        frame, corners = _box(value)
        seeds.append(Seed.box(f"box {number}", _tracked_index(source, frame, f"--box {value}"), corners))
    by_frame: dict[int, list[tuple[tuple[float, ...], int]]] = {}
    for value in points:
        frame, place, label = _point(value)
        by_frame.setdefault(_tracked_index(source, frame, f"--point {value}"), []).append((place, label))
    for number, (frame, marks) in enumerate(by_frame.items(), 1):
        places, labels = zip(*marks, strict=True)
        seeds.append(Seed(f"point {number}", frame, places, labels))
    return tuple(seeds)


def _box(value: str) -> tuple[int, tuple[float, ...]]:
    return _located(value, 4)


def _point(value: str) -> tuple[int, tuple[float, ...], int]:
    """Frame, place, and 1 for a point on the object, 0 for one beside it."""
    return *_located(re.sub(r",[+-]$", "", value), 2), 0 if value.endswith(",-") else 1


def _located(value: str, numbers: int) -> tuple[int, tuple[float, ...]]:
    """A frame number and coordinates in pixels. Raises `ValueError`."""
    frame, colon, rest = value.partition(":")
    coordinates = tuple(float(part) for part in rest.split(","))
    if not colon or not frame.isdecimal() or len(coordinates) != numbers or not all(abs(c) < 1e6 for c in coordinates):
        raise ValueError(value)
    return int(frame), coordinates


def _tracked_index(source: Any, frame: int, flag: str) -> int:
    if frame not in source.tracked:
        last = f"frames {source.tracked[0]} to {source.tracked[-1]}"
        step = f" in steps of {source.every}" if source.every > 1 else ""
        raise UsageError(f"{flag}: frame {frame} is not among those looked at, {last}{step}")
    return source.tracked.index(frame)
