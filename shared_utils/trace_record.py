"""Spans, events and log records as the local recorder keeps them, and their form in JSON."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared_utils.telemetry import SpanCollector

Attributes = Mapping[str, Any]


@dataclass
class Event:
    """Something that happened at one moment of a span; `time_ns` is Unix time."""

    name: str
    time_ns: int
    attributes: dict[str, Any]


@dataclass
class LogRecord:
    """One log message; `severity` is DEBUG, INFO, WARN or ERROR; `span_id` (hex) is the span it was written in."""

    severity: str
    message: str
    time_ns: int
    attributes: dict[str, Any]
    span_id: str | None


@dataclass(eq=False)
class Span:
    """A timed operation. Made by `SpanCollector.track_span`; times are Unix nanoseconds, ids are lower-case hex."""

    collector: "SpanCollector"
    name: str
    span_id: str
    parent_id: str | None
    start_ns: int
    attributes: dict[str, Any]
    end_ns: int | None = None
    events: list[Event] = field(default_factory=list)
    status: str = "UNSET"
    status_message: str | None = None
    _clock: int = field(default_factory=time.perf_counter_ns)

    def now_ns(self) -> int:
        """Unix time by the span's own monotonic clock: never before its start, whatever happens to the system clock."""
        return self.start_ns + time.perf_counter_ns() - self._clock

    @property
    def seconds(self) -> float:
        """Duration; up to now while the span is open."""
        return ((self.end_ns or self.now_ns()) - self.start_ns) / 1e9

    def set_attributes(self, attributes: Attributes, *, content: Attributes | None = None) -> None:
        """Add or replace attributes."""
        with self.collector._lock:
            self.attributes |= self.collector._allowed(attributes, content)

    def add_event(self, name: str, attributes: Attributes | None = None, *, content: Attributes | None = None) -> None:
        """Note that `name` happened now."""
        with self.collector._lock:
            self.events.append(Event(name, self.now_ns(), self.collector._allowed(attributes, content)))


def plain(value: Any) -> Any:
    """A value of a type OpenTelemetry attributes can have: bool, int, float, str, or a list of one of them."""
    if isinstance(value, str) and not isinstance(value, Enum):
        return value.encode("utf-8", "backslashreplace").decode()  # file names may hold lone surrogates
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    if isinstance(value, bool | int | float) and not isinstance(value, Enum):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        items = [plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
        return items if len({type(item) for item in items}) <= 1 else [str(item) for item in items]
    if callable(getattr(value, "item", None)) and getattr(value, "size", None) == 1:
        return plain(value.item())  # a numpy scalar
    return str(value)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; they become the strings "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value


def span_json(span: Span) -> dict[str, Any]:
    return {
        "name": span.name,
        "span_id": span.span_id,
        "parent_span_id": span.parent_id,
        "start": iso(span.start_ns),
        "end": iso(span.end_ns) if span.end_ns else None,
        "duration_seconds": span.seconds,
        "status": {"code": span.status} | ({"description": span.status_message} if span.status_message else {}),
        "attributes": dict(span.attributes),
        "events": [
            {"name": event.name, "time": iso(event.time_ns), "attributes": event.attributes} for event in span.events
        ],
        "children": [],
    }


def iso(unix_ns: int) -> str:
    """UTC with microseconds, as 2026-01-31T12:00:00.123456Z."""
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
