"""OtelSetup, SpanCollector and OtelLogger: spans, metrics and logs of one run, written to `opentelemetry_trace.json` and, where a
collector is configured (see `OtelSettings`), sent there as well.

    setup = OtelSetup("zimage_generation", "0.1.0", enabled=True)
    with setup.spans.track_span("zimage.generate", {GenAI.REQUEST_MODEL: model}, content={"prompt": prompt}) as span:
        setup.spans.record_metric(GenAI.OPERATION_DURATION, 1.25, "s")
    setup.logger.info("read {path}", content={"path": path}, faces=12)
    setup.write_trace(folder / "opentelemetry_trace.json")
    setup.shutdown()

Prompts, names and paths are *content*: they go into the `content` argument beside the attributes and are dropped at the door unless
`send_content`. The local file follows the same rule, so that it can be attached to a bug report as it is.
Spans are kept by a recorder of our own; the OpenTelemetry SDK is loaded only when something is sent.
"""

import contextlib
import contextvars
import functools
import inspect
import json
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, Literal

from shared_utils.errors import UnavailableError
from shared_utils.gen_ai import GenAI
from shared_utils.otel_settings import OtelSettings
from shared_utils.trace_record import Attributes, LogRecord, Span, finite, iso, plain, span_json

__all__ = ["GenAI", "OtelLogger", "OtelSetup", "Span", "SpanCollector"]

SCHEMA = "generation-scripts/trace/1"
MetricKind = Literal["histogram", "counter", "gauge"]

# W3C Trace Context, section 3.2: version, trace id, parent id, flags. Later versions may append fields.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# OpenTelemetry metrics API, "Instrument name syntax".
_METRIC_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,254}")
_CURRENT: contextvars.ContextVar["Span | None"] = contextvars.ContextVar("current_span", default=None)


class _Scope(contextlib.ContextDecorator):
    """One use of `track_span`: a `with` block, or a decorated function (a span each call)."""

    def __init__(
        self, collector: "SpanCollector", name: str, attributes: Attributes | None, content: Attributes | None
    ):
        self._make = functools.partial(collector._start, name, attributes, content)
        self._remake = functools.partial(_Scope, collector, name, attributes, content)

    def _recreate_cm(self) -> "_Scope":
        return self._remake()

    def __call__(self, function: Callable) -> Callable:
        if (
            inspect.isgeneratorfunction(function)
            or inspect.iscoroutinefunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            raise TypeError(
                f"{function.__qualname__}: track_span decorates plain functions; use it as a with block inside generators and coroutines"
            )
        return super().__call__(function)

    def __enter__(self) -> Span:
        self._outer = _CURRENT.get()
        self._span = self._make()
        _CURRENT.set(self._span)
        return self._span

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        _CURRENT.set(self._outer)
        self._span.collector._end(self._span, error)


class OtelSetup:
    """Telemetry of one run: decides by the environment (see `OtelSettings`), and owns `spans` and `logger`.

    `say` and `console` are handed to `SpanCollector` and `OtelLogger`. Raises `ConfigError` and `UnavailableError` as they do.
    """

    def __init__(
        self,
        service_name: str,
        version: str,
        *,
        enabled: bool,
        send_content: bool = False,
        environ: Mapping[str, str] = os.environ,
        say: Callable[[str], None] | None = None,
        console: Callable[[str, str], None] | None = None,
    ):
        self.settings = OtelSettings(service_name, version, enabled=enabled, send_content=send_content, environ=environ)
        self.spans = SpanCollector(self.settings, say=say)
        self.logger = OtelLogger(self.spans, console)

    def write_trace(self, path: Path) -> None:
        """See `SpanCollector.write_trace`."""
        self.spans.write_trace(path)

    def shutdown(self, timeout: float = 2.0) -> None:
        """See `SpanCollector.shutdown`."""
        self.spans.shutdown(timeout)


class SpanCollector:
    """The spans, metrics and logs of one run: one trace.

    Thread-safe. The current span lives in a `contextvars.ContextVar`. A new thread starts with an empty context: a span opened
    there becomes a child of the run's outermost open span, unless the function was passed through `bind`, which carries the current
    span over: `pool.submit(spans.bind(work), item)`.

    `TRACEPARENT`, `TRACESTATE` and `BAGGAGE` of the environment (W3C Trace Context and Baggage, in OpenTelemetry's environment
    variable form) are taken over; `child_environment` hands them on. An invalid `TRACEPARENT` is ignored, as W3C requires.

    `say` prints one line for the user: the notice of what is sent, and at most one warning at the end.

    Raises `UnavailableError` when something is to be sent and the OpenTelemetry SDK is not installed.
    """

    def __init__(self, settings: OtelSettings, *, say: Callable[[str], None] | None = None):
        self.settings = settings
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self._lock = threading.RLock()
        self._spans: list[Span] = []
        self._roots: list[Span] = []  # open spans without a local parent
        self._metrics: dict[str, dict[str, Any]] = {}
        self._instruments: dict[str, tuple[str, str]] = {}
        self._logs: list[LogRecord] = []
        self._started = time.time_ns()
        match = _TRACEPARENT.fullmatch(settings.environ.get("TRACEPARENT", "").strip())
        if match and match[1] == "00" and match[5]:
            match = None
        self._remote = (match[2], match[3], int(match[4], 16)) if match else None
        self._tracestate = settings.environ.get("TRACESTATE", "").strip() if match else ""
        self.trace_id = self._remote[0] if self._remote else os.urandom(16).hex()
        self._exports = self._open_exports()
        decisions = [decision for export in self._exports if (decision := export.sampled(self.trace_id)) is not None]
        self._sampled = decisions[0] if decisions else not self._remote or bool(self._remote[2] & 1)
        if settings.notice:
            self._say(settings.notice)

    def _open_exports(self) -> list[Any]:
        if not self.settings.exporting:
            return []
        try:
            from shared_utils.otel_export import OtlpExport
        except ImportError as error:
            raise UnavailableError(
                f"a telemetry collector is configured and {error.name} is not installed: "
                "install opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http, or set DO_NOT_TRACK=1"
            ) from error
        return [
            OtlpExport(destination, "shared_utils.telemetry", self.settings.version, self._remote, self._tracestate)
            for destination in self.settings.destinations
        ]

    # Spans

    def track_span(
        self, name: str, attributes: Attributes | None = None, *, content: Attributes | None = None
    ) -> _Scope:
        """A span around a `with` block or a decorated function; spans inside become its children.

        An exception is recorded (its type; message and stack are content) and raised on; the status becomes ERROR, otherwise OK.
        `with … as span` gives the `Span`, which knows its `seconds` even when telemetry is disabled.
        """
        return _Scope(self, name, attributes, content)

    def set_attributes(self, attributes: Attributes, *, content: Attributes | None = None) -> None:
        """Add attributes to the current span; without one, nothing happens."""
        if span := self.current_span():
            span.set_attributes(attributes, content=content)

    def add_event(self, name: str, attributes: Attributes | None = None, *, content: Attributes | None = None) -> None:
        """Add an event to the current span; without one, nothing happens."""
        if span := self.current_span():
            span.add_event(name, attributes, content=content)

    def current_span(self) -> Span | None:
        """The innermost open span of this context, else the run's outermost open one, else None."""
        span = _CURRENT.get()
        if span is not None and span.collector is self:
            return span
        with self._lock:
            return self._roots[0] if self._roots else None

    def bind(self, function: Callable) -> Callable:
        """`function` for another thread, with the current span of this one as the parent of its spans."""
        span = self.current_span()

        @functools.wraps(function)
        def bound(*args: Any, **kwargs: Any) -> Any:
            outer = _CURRENT.get()
            _CURRENT.set(span)
            try:
                return function(*args, **kwargs)
            finally:
                _CURRENT.set(outer)

        return bound

    def child_environment(self) -> dict[str, str]:
        """Variables to add to a child process's environment: `env={**os.environ, **spans.child_environment()}`.

        The child's spans then belong to the current span. With telemetry disabled the incoming variables are handed on as they are.
        """
        environ = self.settings.environ
        if not self.settings.recording:
            return {name: environ[name] for name in ("TRACEPARENT", "TRACESTATE", "BAGGAGE") if name in environ}
        span = self.current_span()
        parent = span.span_id if span else self._remote[1] if self._remote else None
        variables = {"BAGGAGE": environ["BAGGAGE"]} if "BAGGAGE" in environ else {}
        if parent:
            variables["TRACEPARENT"] = f"00-{self.trace_id}-{parent}-{'01' if self._sampled else '00'}"
            if "TRACESTATE" in environ:
                variables["TRACESTATE"] = self._tracestate  # empty where it belonged to a trace that was not taken over
        return variables

    def _start(self, name: str, attributes: Attributes | None, content: Attributes | None) -> Span:
        parent = self.current_span()
        parent_id = parent.span_id if parent else self._remote[1] if self._remote else None
        span = Span(self, name, os.urandom(8).hex(), parent_id, time.time_ns(), self._allowed(attributes, content))
        with self._lock:
            if parent is None:
                self._roots.append(span)
            if self.settings.recording:
                self._spans.append(span)
        return span

    def _end(self, span: Span, error: BaseException | None) -> None:
        with self._lock:
            if error is None or (isinstance(error, SystemExit) and not error.code) or isinstance(error, GeneratorExit):
                span.status = "OK"
            else:
                self._record_exception(span, error)
            span.end_ns = span.now_ns()
            if span in self._roots:
                self._roots.remove(span)
            for export in self._exports:
                export.span(span, self.trace_id, self._sampled)

    def _record_exception(self, span: Span, error: BaseException) -> None:
        name = (
            type(error).__qualname__
            if type(error).__module__ == "builtins"
            else f"{type(error).__module__}.{type(error).__qualname__}"
        )
        content = {}
        if self.settings.send_content:
            import traceback

            content = {
                "exception.message": str(error),
                "exception.stacktrace": "".join(traceback.format_exception(error)),
            }
        span.add_event("exception", {"exception.type": name}, content=content)
        span.set_attributes({"error.type": name})
        span.status, span.status_message = "ERROR", plain(content.get("exception.message", name))

    def _allowed(self, attributes: Attributes | None, content: Attributes | None) -> dict[str, Any]:
        """Attributes as the OpenTelemetry types. Content is left out unless it may be sent; so is a path among the attributes."""
        send = self.settings.send_content
        kept = {**(attributes or {}), **(content or {} if send else {})}
        return {
            name: plain(value)
            for name, value in kept.items()
            if value is not None and (send or not isinstance(value, PurePath))
        }

    # Metrics

    def record_metric(
        self,
        name: str,
        value: float,
        unit: str = "1",
        attributes: Attributes | None = None,
        *,
        kind: MetricKind = "histogram",
    ) -> None:
        """Record one measurement.

        `histogram`: one of many values, such as a duration (`s`) or the tokens of a request (`{token}`); `counter`: an amount to add up,
        such as frames (`{frame}`); `gauge`: a level of which the last value counts, such as peak memory (`By`). Units are UCUM.

        Raises `ValueError` for a name, kind or negative count that OpenTelemetry does not allow, or a second kind or unit under one name.
        """
        if not _METRIC_NAME.fullmatch(name):
            raise ValueError(f"metric name {name!r}: letters, digits and _ . - / only, starting with a letter")
        if kind not in ("histogram", "counter", "gauge"):
            raise ValueError(f"metric {name}: kind {kind!r} must be histogram, counter or gauge")
        value = plain(value)
        if not isinstance(value, int | float):
            raise ValueError(f"metric {name}: {value!r} is not a number")
        if kind == "counter" and value < 0:
            raise ValueError(f"metric {name}: a counter cannot go down ({value})")
        if not self.settings.recording:
            return
        labels = self._allowed(attributes, None)
        with self._lock:
            if self._instruments.setdefault(name, (kind, unit)) != (kind, unit):
                raise ValueError(f"metric {name}: recorded as {self._instruments[name]} and now as {(kind, unit)}")
            series = self._metrics.setdefault(
                json.dumps([name, labels], sort_keys=True),
                {"name": name, "kind": kind, "unit": unit, "attributes": labels, "values": 0},
            )
            series["values"] += 1
            if kind == "histogram":
                series["sum"] = series.get("sum", 0) + value
                series["min"] = min(series.get("min", value), value)
                series["max"] = max(series.get("max", value), value)
            else:
                series["value"] = value + (series.get("value", 0) if kind == "counter" else 0)
            for export in self._exports:
                export.metric(kind, name, value, unit, labels)

    def _log(self, severity: str, message: str, attributes: dict[str, Any]) -> None:
        span = self.current_span()
        record = LogRecord(severity, plain(message), time.time_ns(), attributes, span.span_id if span else None)
        with self._lock:
            self._logs.append(record)
            for export in self._exports:
                export.log(record, self.trace_id, self._sampled)

    # The local file, and the end

    def trace(self) -> dict[str, Any]:
        """What was recorded so far, as `opentelemetry_trace.json` holds it."""
        with self._lock:
            known = {span.span_id: span_json(span) for span in self._spans}
            roots = []
            for span in self._spans:
                siblings = known[span.parent_id]["children"] if span.parent_id in known else roots
                siblings.append(known[span.span_id])
            return {
                "schema": SCHEMA,
                "metadata": {
                    "service": self.settings.service_name,
                    "version": self.settings.version,
                    "trace_id": self.trace_id,
                    "remote_parent_span_id": self._remote[1] if self._remote else None,
                    "started": iso(self._started),
                    "written": iso(time.time_ns()),
                    "python": platform.python_version(),
                    "platform": platform.platform(),
                    "resource": self.settings.local_resource(),
                    "content": self.settings.send_content,
                    "sent_to": [
                        route.url for destination in self.settings.destinations for route in destination.routes
                    ],
                },
                "spans": roots,
                "metrics": [dict(series) for series in self._metrics.values()],
                "logs": [
                    {
                        "time": iso(r.time_ns),
                        "severity": r.severity,
                        "message": r.message,
                        "attributes": r.attributes,
                        "span_id": r.span_id,
                    }
                    for r in self._logs
                ],
            }

    def write_trace(self, path: Path) -> None:
        """Write the local trace file; a span still open has `end` null. Does nothing when telemetry is disabled.

        Raises `OutputWriteError` when the file cannot be written.
        """
        if not self.settings.recording:
            return
        from shared_utils.output_dir import atomic

        with atomic(Path(path)) as partial:
            partial.write_text(
                json.dumps(finite(self.trace()), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
                encoding="utf-8",
            )

    def shutdown(self, timeout: float = 2.0) -> None:
        """Send what is left. Returns after `timeout` seconds at the latest, whatever the collectors do, and raises nothing.

        Call it once, after the last span; what is recorded later is not sent. One line is printed when something was not delivered.
        """
        exports, self._exports = self._exports, []
        deadline = time.monotonic() + timeout
        crashed: list[Exception] = []
        # Daemon threads: a collector that never answers must hold up neither this function nor the end of the process.
        work = [
            (export, threading.Thread(target=_run, args=(blocking, crashed), name="telemetry-shutdown", daemon=True))
            for export in exports
            for blocking in export.shutdowns()
        ]
        for _, thread in work:
            thread.start()
        for _, thread in work:
            thread.join(max(0.0, deadline - time.monotonic()))
        lost = []
        for export in exports:
            late = any(thread.is_alive() for owner, thread in work if owner is export)
            if reason := export.failure or ("no answer in time" if late else None):
                lost.append(f"{export.destination.summary}: {reason}")
        lost += [f"{type(error).__name__}: {error}" for error in crashed]
        if lost:
            self._say(f"telemetry: not everything was delivered ({'; '.join(lost)}); the results are not affected")


class OtelLogger:
    """Log messages of a run: into the local trace file in order, to the collector's logs with the current span, and to `console`.

    `{name}` in a message stands for a value of `content` or of the attributes. The console shows all values; telemetry keeps the
    placeholder of a content value unless content may be sent: `logger.info("read {path}", content={"path": path}, faces=12)`.
    So a message must be a constant, with what comes from the user in `content`.

    `console(severity, text)` prints; severity is DEBUG, INFO, WARN or ERROR. Nothing is printed without it.
    """

    def __init__(self, spans: SpanCollector, console: Callable[[str, str], None] | None = None):
        self._spans = spans
        self._console = console

    def debug(self, message: str, /, *, content: Attributes | None = None, **attributes: Any) -> None:
        self._write("DEBUG", message, attributes, content)

    def info(self, message: str, /, *, content: Attributes | None = None, **attributes: Any) -> None:
        self._write("INFO", message, attributes, content)

    def warning(self, message: str, /, *, content: Attributes | None = None, **attributes: Any) -> None:
        self._write("WARN", message, attributes, content)

    def error(self, message: str, /, *, content: Attributes | None = None, **attributes: Any) -> None:
        self._write("ERROR", message, attributes, content)

    def _write(self, severity: str, message: str, attributes: Attributes, content: Attributes | None) -> None:
        if self._spans.settings.recording:
            allowed = self._spans._allowed(attributes, content)
            self._spans._log(severity, _filled(message, allowed), allowed)
        if self._console:
            self._console(severity, _filled(message, {**attributes, **(content or {})}))


def _filled(message: str, values: Attributes) -> str:
    """`{name}` replaced where a value of that name is there; anything else in braces stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda match: str(values.get(match[1], match[0])), message)


def _run(blocking: Callable[[], None], crashed: list[Exception]) -> None:
    """Body of a shutdown thread: whatever the SDK raises is told in one line, not as a thread's traceback."""
    try:
        blocking()
    except Exception as error:
        crashed.append(error)
