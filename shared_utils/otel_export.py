"""Sends spans, metrics and logs to one collector with the OpenTelemetry SDK (OTLP over HTTP, protobuf).

Imported only when a collector is configured: this is the one module that loads the SDK.
"""

import logging
from typing import TYPE_CHECKING, Any

import requests
from opentelemetry._logs import LogRecord as OtelLogRecord
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.trace.span import TraceState

from shared_utils.errors import ConfigError
from shared_utils.otel_settings import Destination, Route

if TYPE_CHECKING:
    from shared_utils.trace_record import LogRecord, Span

_EXPORTERS = {"traces": OTLPSpanExporter, "metrics": OTLPMetricExporter, "logs": OTLPLogExporter}
_COMPRESSIONS = {"none": Compression.NoCompression, "gzip": Compression.Gzip, "deflate": Compression.Deflate}

# Bucket bounds the GenAI semantic conventions ask for: gen_ai.client.operation.duration (s), gen_ai.client.token.usage ({token}).
_BUCKETS = {"s": [0.01 * 2**i for i in range(14)], "{token}": [4**i for i in range(14)]}


class _Session(requests.Session):
    """Connection to one collector for one signal. Sends that route's headers and no others, and follows no redirect:
    a redirect would carry the API key to a host nobody configured. Remembers the requests that were not delivered."""

    def __init__(self, headers: dict[str, str]):
        super().__init__()
        self._own_headers = headers
        self._undelivered: dict[int, str] = {}

    @property
    def failure(self) -> str | None:
        """Why the latest undelivered request failed; None when every request was delivered, if need be by a retry."""
        return next(reversed(self._undelivered.values()), None)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        # The exporter adds the headers of the environment and requests those of ~/.netrc, whatever the destination.
        transport = (
            "Content-Type",
            "Content-Encoding",
            "Content-Length",
            "User-Agent",
            "Accept",
            "Accept-Encoding",
            "Connection",
        )
        kept = {name: request.headers[name] for name in transport if name in request.headers}
        request.headers.clear()
        request.headers.update(kept | self._own_headers)
        batch = hash(request.body)
        try:
            response = super().send(request, **options | {"allow_redirects": False})
        except requests.RequestException as error:
            self._undelivered[batch] = _connection_failure(error)
            raise
        if response.ok and not response.is_redirect:
            self._undelivered.pop(batch, None)
            return response
        self._undelivered[batch] = f"it answered {response.status_code}"
        if response.ok:
            # The exporter takes 3xx for success.
            raise requests.RequestException(f"redirect ({response.status_code}) is not followed", response=response)
        return response


def _connection_failure(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "TLS failed"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    return "no connection"


class _GivenIds(IdGenerator):
    """Hands the tracer the ids the local record already has, so that both tell the same trace."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id

    def is_trace_id_random(self) -> bool:
        return True


class OtlpExport:
    """One collector. Every method may be called while the caller holds its own lock; none waits for the network but `shutdown`.

    Raises `ConfigError` when an OTEL_* variable that the SDK itself reads has an impossible value.
    """

    def __init__(
        self,
        destination: Destination,
        scope: str,
        version: str,
        traceparent: tuple[str, str, int] | None,
        tracestate: str | None,
    ):
        _silence()
        self.destination = destination
        self._remote_parent = traceparent
        self._tracestate = TraceState.from_header([tracestate]) if tracestate else None
        self._sessions: dict[str, _Session] = {}
        self._ids = _GivenIds()
        self._tracers = self._meters = self._loggers = None
        self._instruments: dict[str, Any] = {}
        resource = Resource.create(dict(destination.resource))
        exporters = {route.signal: self._exporter(route) for route in destination.routes}
        try:
            if "traces" in exporters:
                self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=self._ids)
                self._tracers.add_span_processor(BatchSpanProcessor(exporters["traces"]))
                self._tracer = self._tracers.get_tracer(scope, version)
            if "metrics" in exporters:
                reader = PeriodicExportingMetricReader(exporters["metrics"])
                self._meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
                self._meter = self._meters.get_meter(scope, version)
            if "logs" in exporters:
                self._loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
                self._loggers.add_log_record_processor(BatchLogRecordProcessor(exporters["logs"]))
                self._logger = self._loggers.get_logger(scope, version)
        except ValueError as error:
            raise ConfigError(f"OpenTelemetry variables: {error}") from error

    def _exporter(self, route: Route) -> Any:
        session = self._sessions[route.signal] = _Session(dict(route.headers))
        return _EXPORTERS[route.signal](
            endpoint=route.url, timeout=route.timeout, compression=_COMPRESSIONS[route.compression], session=session
        )

    def _context(self, trace_id: str, span_id: str | None, sampled: bool) -> Context:
        """SDK context whose current span has these ids; without a span id, an empty one."""
        if span_id is None:
            return Context()
        remote = self._remote_parent is not None and span_id == self._remote_parent[1]
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        return set_span_in_context(
            NonRecordingSpan(SpanContext(int(trace_id, 16), int(span_id, 16), remote, flags, self._tracestate)),
            Context(),
        )

    def sampled(self, trace_id: str) -> bool | None:
        """Decision of the sampler (OTEL_TRACES_SAMPLER) for the whole trace; None when no traces are sent."""
        if self._tracers is None:
            return None
        parent = self._remote_parent
        context = self._context(parent[0], parent[1], bool(parent[2] & 1)) if parent else Context()
        return self._tracers.sampler.should_sample(context, int(trace_id, 16), "").decision.is_sampled()

    def span(self, span: "Span", trace_id: str, sampled: bool) -> None:
        """Queue a span that has ended. The caller must not call this from two threads at once."""
        if self._tracers is None or not sampled:
            return
        self._ids.trace_id, self._ids.span_id = int(trace_id, 16), int(span.span_id, 16)
        context = self._context(trace_id, span.parent_id, sampled)
        exported = self._tracer.start_span(
            span.name, context=context, attributes=span.attributes, start_time=span.start_ns
        )
        for event in span.events:
            exported.add_event(event.name, event.attributes, timestamp=event.time_ns)
        # The SDK, too, drops the description of a status that is not an error.
        exported.set_status(Status(StatusCode[span.status], span.status_message if span.status == "ERROR" else None))
        exported.end(end_time=span.end_ns)

    def metric(self, kind: str, name: str, value: float, unit: str, attributes: dict[str, Any]) -> None:
        """Record one measurement; `kind` is `histogram`, `counter` or `gauge`."""
        if self._meters is None:
            return
        if name not in self._instruments:
            advice = {"explicit_bucket_boundaries_advisory": _BUCKETS.get(unit)} if kind == "histogram" else {}
            self._instruments[name] = getattr(self._meter, f"create_{kind}")(name, unit, **advice)
        record = {"histogram": "record", "counter": "add", "gauge": "set"}[kind]
        getattr(self._instruments[name], record)(value, attributes)

    def log(self, record: "LogRecord", trace_id: str, sampled: bool) -> None:
        """Queue one log record, tied to the span it was written in."""
        if self._loggers is None:
            return
        self._logger.emit(
            OtelLogRecord(
                timestamp=record.time_ns,
                observed_timestamp=record.time_ns,
                context=self._context(trace_id, record.span_id, sampled),
                severity_text=record.severity,
                severity_number=SeverityNumber[record.severity],
                body=record.message,
                attributes=record.attributes,
            )
        )

    def shutdowns(self) -> list[Any]:
        """Blocking functions, one a signal, that send what is left and end the SDK's work. They may run at the same time."""
        return [provider.shutdown for provider in (self._tracers, self._meters, self._loggers) if provider is not None]

    @property
    def failure(self) -> str | None:
        """Why something was not delivered; None when everything was."""
        return next((session.failure for session in self._sessions.values() if session.failure), None)


def _silence() -> None:
    """The SDK reports each failed export with a stack of log lines; we say it in one line at the end of the run."""
    logger = logging.getLogger("opentelemetry")
    logger.handlers = [logging.NullHandler()]
    logger.propagate = False
