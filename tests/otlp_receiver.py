"""A real OTLP/HTTP collector on loopback for the tests: takes POSTed protobufs, decodes them and keeps them."""

import gzip
import threading
import time
import zlib
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

MESSAGES = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}


@dataclass
class Request:
    """One POST: header names in lower case; `body` is decompressed; `message` is None where the path is no OTLP path."""

    path: str
    headers: dict[str, str]
    body: bytes
    message: Any


class OtlpReceiver:
    """Use as a context manager. `statuses` are answered in turn, the last one for ever; `delay` seconds pass before each answer.

    With `location`, answers carry it as the redirect target. `paths` maps further paths to a signal's path.
    """

    def __init__(
        self, *statuses: int, delay: float = 0.0, location: str | None = None, paths: dict[str, str] | None = None
    ):
        self.requests: list[Request] = []
        self._statuses = list(statuses or (200,))
        self._lock = threading.Lock()
        self._closing = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver._take(self.path, dict(self.headers.items()), body, paths or {})
                receiver._closing.wait(delay)
                self.send_response(status)
                if location:
                    self.send_header("Location", location + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except (ConnectionError, BrokenPipeError):
                    return  # the client gave up waiting, which is what some tests are about

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "OtlpReceiver":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _take(self, path: str, headers: dict[str, str], body: bytes, paths: dict[str, str]) -> int:
        lower = {name.lower(): value for name, value in headers.items()}
        match lower.get("content-encoding"):
            case "gzip":
                body = gzip.decompress(body)
            case "deflate":
                body = zlib.decompress(body)
        kind = MESSAGES.get(paths.get(path, path))
        message = kind.FromString(body) if kind else None
        with self._lock:
            self.requests.append(Request(path, lower, body, message))
            return self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]

    def wait_for(self, count: int, seconds: float = 20.0) -> None:
        """Block until `count` requests have arrived; for senders that do not wait for the answer."""
        deadline = time.monotonic() + seconds
        while len(self.requests) < count:
            assert time.monotonic() < deadline, f"{len(self.requests)} of {count} requests arrived"
            time.sleep(0.02)

    def _messages(self, kind: Any) -> list[Any]:
        return [request.message for request in self.requests if isinstance(request.message, kind)]

    def spans(self) -> list[Any]:
        """All spans received, as protobuf messages in the order they ended."""
        messages = self._messages(ExportTraceServiceRequest)
        return [s for m in messages for r in m.resource_spans for scope in r.scope_spans for s in scope.spans]

    def span(self, name: str) -> Any:
        """The one span of that name."""
        (span,) = [span for span in self.spans() if span.name == name]
        return span

    def metrics(self) -> dict[str, Any]:
        """Metrics by name, as protobuf messages."""
        messages = self._messages(ExportMetricsServiceRequest)
        return {
            metric.name: metric
            for m in messages
            for r in m.resource_metrics
            for scope in r.scope_metrics
            for metric in scope.metrics
        }

    def logs(self) -> list[Any]:
        """All log records received, as protobuf messages in order."""
        messages = self._messages(ExportLogsServiceRequest)
        return [x for m in messages for r in m.resource_logs for scope in r.scope_logs for x in scope.log_records]

    def resources(self) -> list[dict[str, Any]]:
        """Resource attributes of every request that carried any."""
        fields = ("resource_spans", "resource_metrics", "resource_logs")
        groups = [
            getattr(request.message, name)
            for request in self.requests
            for name in fields
            if hasattr(request.message, name)
        ]
        return [attributes(resource.resource) for group in groups for resource in group]


def attributes(message: Any) -> dict[str, Any]:
    """The attributes of a span, event, log record, data point or resource as a plain dict."""
    return {pair.key: plain(pair.value) for pair in message.attributes}


def plain(value: Any) -> Any:
    """An OTLP AnyValue as a Python value."""
    kind = value.WhichOneof("value")
    return [plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)
