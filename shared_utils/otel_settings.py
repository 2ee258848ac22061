"""OtelSettings: reads the standard OTEL_* variables and AppSignal's, and decides where telemetry goes. Imports no SDK.

Variable names and meanings: OpenTelemetry specification, "General SDK Configuration" and "OTLP Exporter Configuration";
`DO_NOT_TRACK`: consoledonottrack.com. Time-outs are seconds, as the Python SDK reads them.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from shared_utils.errors import ConfigError

SIGNALS = ("traces", "metrics", "logs")
APPLICATION = "generation-scripts"  # AppSignal's application name unless APPSIGNAL_APP_NAME gives another


@dataclass(frozen=True)
class Route:
    """How one signal travels: `url` takes POST requests of OTLP/HTTP protobuf; `timeout` in seconds bounds one export with its retries."""

    signal: str
    url: str
    headers: Mapping[str, str]
    compression: str
    timeout: float


@dataclass(frozen=True)
class Destination:
    """One collector: its routes, at most one a signal, and the resource attributes that only this collector gets to see."""

    routes: tuple[Route, ...]
    resource: Mapping[str, str]

    @property
    def summary(self) -> str:
        """Signals and hosts, as `traces and logs to http://127.0.0.1:4318`."""
        hosts: dict[str, list[str]] = {}
        for route in self.routes:
            parts = urlsplit(route.url)
            hosts.setdefault(f"{parts.scheme}://{parts.netloc}", []).append(route.signal)
        return "; ".join(f"{_listed(signals)} to {host}" for host, signals in hosts.items())


class OtelSettings:
    """What is recorded and where it goes, decided once at the start of a run.

    - `enabled=False` (`--disable-telemetry`): nothing is recorded, nothing is sent, no variable is looked at.
    - `DO_NOT_TRACK=1` and `OTEL_SDK_DISABLED=true`: nothing leaves the machine; the local trace file is still written.
    - `OTEL_EXPORTER_OTLP_ENDPOINT` or its per-signal forms name a collector: traces, metrics and logs go there.
    - `APPSIGNAL_PUSH_API_KEY` with `APPSIGNAL_COLLECTOR_ENDPOINT`: they go to AppSignal, too. The key travels to no other
      collector, and the headers of the standard variables do not travel to AppSignal.
    - Otherwise nothing is sent.

    `send_content` (`--telemetry-content`) lets prompts, names and paths into what is sent and into the local trace file.

    Raises `ConfigError` when a variable that matters for sending has a value which cannot be honoured.
    """

    def __init__(
        self,
        service_name: str,
        version: str,
        *,
        enabled: bool,
        send_content: bool = False,
        environ: Mapping[str, str] = os.environ,
    ):
        self.version = version
        self.recording = enabled
        self.send_content = send_content
        self.environ = environ
        self.service_name = environ.get("OTEL_SERVICE_NAME") or service_name
        self.resource: dict[str, str] = {"service.name": self.service_name, "service.version": version}
        self.destinations: tuple[Destination, ...] = ()
        if enabled and not _refused(environ):
            self.destinations = tuple(filter(None, (self._standard(), self._appsignal())))

    @property
    def exporting(self) -> bool:
        """Whether anything is sent to a collector."""
        return bool(self.destinations)

    @property
    def notice(self) -> str | None:
        """One line that says what is sent where; None when nothing is sent."""
        if not self.exporting:
            return None
        content = (
            "with prompts, names and paths" if self.send_content else "without prompts, names, paths or file contents"
        )
        where = "; ".join(destination.summary for destination in self.destinations)
        return f"telemetry: sending {where} ({content}; --disable-telemetry or DO_NOT_TRACK=1 turns it off)"

    def local_resource(self) -> dict[str, str]:
        """Resource attributes for the local trace file: those of the standard variables, without anything named like a secret."""
        secret = re.compile(r"key|token|secret|password|passwd|credential|auth", re.IGNORECASE)
        return {name: value for name, value in self.resource.items() if not secret.search(name)}

    def _standard(self) -> Destination | None:
        urls = {signal: _endpoint(self.environ, signal) for signal in SIGNALS if _wanted(self.environ, signal)}
        routes = tuple(self._route(signal, url, _headers(self.environ, signal)) for signal, url in urls.items() if url)
        if not routes:
            return None
        self._read_resource()
        return Destination(routes, dict(self.resource))

    def _appsignal(self) -> Destination | None:
        """AppSignal's collector: `appsignal-api-key` header and `appsignal.config.*` attributes.

        The collector requires the push key as a resource attribute and recommends the others (docs.appsignal.com,
        "OpenTelemetry resource attributes"); `appsignal.config.app_path` is left out because it is a local path.
        """
        key = self.environ.get("APPSIGNAL_PUSH_API_KEY")
        if not key:
            return None
        base = self.environ.get("APPSIGNAL_COLLECTOR_ENDPOINT")
        if not base:
            raise ConfigError(
                "APPSIGNAL_PUSH_API_KEY is set without APPSIGNAL_COLLECTOR_ENDPOINT: set it to the collector's URL, or DO_NOT_TRACK=1"
            )
        _check_url("APPSIGNAL_COLLECTOR_ENDPOINT", base)
        _check_header("APPSIGNAL_PUSH_API_KEY", key)
        headers = {"appsignal-api-key": key}
        wanted = [signal for signal in SIGNALS if _wanted(self.environ, signal)]
        routes = tuple(self._route(signal, f"{base.rstrip('/')}/v1/{signal}", headers) for signal in wanted)
        if not routes:
            return None
        self._read_resource()
        return Destination(
            routes,
            self.resource
            | {
                "host.name": socket.gethostname(),
                "appsignal.config.name": self.environ.get("APPSIGNAL_APP_NAME") or APPLICATION,
                "appsignal.config.environment": self.environ.get("APPSIGNAL_APP_ENV") or "production",
                "appsignal.config.push_api_key": key,
                "appsignal.config.revision": self.environ.get("APP_REVISION") or self.version,
                "appsignal.config.language_integration": "python",
            },
        )

    def _route(self, signal: str, url: str, headers: Mapping[str, str]) -> Route:
        name, protocol = _variable(self.environ, signal, "PROTOCOL")
        if protocol and protocol != "http/protobuf":
            raise ConfigError(f"{name}={protocol}: only http/protobuf is supported")
        name, compression = _variable(self.environ, signal, "COMPRESSION")
        if compression not in ("", "none", "gzip", "deflate"):
            raise ConfigError(f"{name}={compression}: must be gzip, deflate or none")
        name, timeout = _variable(self.environ, signal, "TIMEOUT")
        if timeout and not (re.fullmatch(r"\d+(\.\d*)?|\.\d+", timeout) and float(timeout) > 0):
            raise ConfigError(f"{name}={timeout}: must be a positive number of seconds")
        return Route(signal, url, headers, compression or "none", float(timeout or 10))

    def _read_resource(self) -> None:
        """Merge OTEL_RESOURCE_ATTRIBUTES; OTEL_SERVICE_NAME wins over its `service.name`, which wins over ours."""
        attributes = _pairs("OTEL_RESOURCE_ATTRIBUTES", self.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        self.resource |= attributes
        if self.environ.get("OTEL_SERVICE_NAME"):
            self.resource["service.name"] = self.service_name
        self.service_name = self.resource["service.name"]


def _refused(environ: Mapping[str, str]) -> bool:
    do_not_track = environ.get("DO_NOT_TRACK", "").strip().lower() not in ("", "0", "false")
    return do_not_track or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _wanted(environ: Mapping[str, str], signal: str) -> bool:
    """False for OTEL_<SIGNAL>_EXPORTER=none. Another exporter than otlp matters only where a collector is named, see `_endpoint`."""
    return environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower() != "none"


def _endpoint(environ: Mapping[str, str], signal: str) -> str | None:
    """URL for one signal: the per-signal variable as it stands, else the base with `/v1/<signal>`, else None."""
    own, base = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
    name = own if environ.get(own, "").strip() else base
    url = environ.get(name, "").strip()
    if not url:
        return None
    exporter = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip()
    if exporter.lower() not in ("", "otlp"):
        raise ConfigError(f"OTEL_{signal.upper()}_EXPORTER={exporter}: must be otlp or none")
    _check_url(name, url)
    return url if name == own else f"{url.rstrip('/')}/v1/{signal}"


def _check_url(name: str, url: str) -> None:
    """Refuse what is no http(s) URL, and user names or passwords in it (URLs are shown; headers are not)."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if "@" in url:
        raise ConfigError(
            f"{name}: no user name or password in the URL; put credentials into OTEL_EXPORTER_OTLP_HEADERS"
        )
    if not valid:
        raise ConfigError(f"{name}={url}: must be a URL such as http://localhost:4318")


def _variable(environ: Mapping[str, str], signal: str, suffix: str) -> tuple[str, str]:
    """Name and value of OTEL_EXPORTER_OTLP_<SIGNAL>_<SUFFIX>, else OTEL_EXPORTER_OTLP_<SUFFIX>; an empty value counts as unset."""
    own, general = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{suffix}", f"OTEL_EXPORTER_OTLP_{suffix}"
    name = own if environ.get(own) else general
    return name, environ.get(name, "").strip().lower() if suffix != "HEADERS" else environ.get(name, "")


def _headers(environ: Mapping[str, str], signal: str) -> dict[str, str]:
    name, text = _variable(environ, signal, "HEADERS")
    headers = {key.lower(): value for key, value in _pairs(name, text).items()}
    for key, value in headers.items():
        _check_header(name, key + value)
    return headers


def _check_header(name: str, text: str) -> None:
    if not all(" " <= character <= "~" for character in text):
        raise ConfigError(f"{name}: holds a character that cannot stand in an HTTP header")


def _pairs(name: str, text: str) -> dict[str, str]:
    """`a=1,b=2` with percent-encoded values. Raises `ConfigError`, which never shows a value: it may be a secret."""
    pairs = {}
    for number, entry in enumerate((entry.strip() for entry in text.split(",")), start=1):
        key, equals, value = entry.partition("=")
        if not entry:
            continue
        if not equals or not key.strip():
            raise ConfigError(f"{name}: entry {number} is not of the form name=value")
        pairs[unquote(key.strip())] = unquote(value.strip())
    return pairs


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
