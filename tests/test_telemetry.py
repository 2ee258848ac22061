"""Telemetry: the local trace file, OTLP export to a real receiver, W3C context, content that stays at home, collectors that misbehave."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from otlp_receiver import OtlpReceiver, attributes, plain

from shared_utils.errors import ConfigError, OutputWriteError
from shared_utils.telemetry import GenAI, OtelLogger, OtelSetup

ROOT = Path(__file__).parent.parent
SECRET = "a heron in the reeds"
INCOMING = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def make(environ=None, **options):
    return OtelSetup("zimage_generation", "1.2.3", environ=environ or {}, **{"enabled": True, **options})


def trace_of(setup):
    """The local trace, after a round trip through JSON."""
    return json.loads(json.dumps(setup.spans.trace()))


def names(spans):
    """A span tree as nested (name, children) pairs."""
    return [(span["name"], names(span["children"])) for span in spans]


# The local record


def test_trace_file_holds_the_tree_metrics_and_logs(tmp_path):
    setup = make()
    spans = setup.spans
    with spans.track_span("zimage.run", {"items": 2}) as run:
        setup.logger.info("started with {items} items", items=2)
        with spans.track_span("zimage.generate", {GenAI.REQUEST_MODEL: "Tongyi-MAI/Z-Image-Turbo", "size": (64, 64)}):
            spans.add_event("denoise", {"step": 1})
            spans.set_attributes({GenAI.REQUEST_SEED: 0})
        with pytest.raises(ValueError), spans.track_span("zimage.save"):
            raise ValueError("no")
        setup.logger.warning("slow")
    spans.record_metric("zimage.duration", 1.5, "s", {"phase": "a"})
    spans.record_metric("zimage.duration", 0.5, "s", {"phase": "a"})
    spans.record_metric("zimage.duration", 9.0, "s", {"phase": "b"})
    spans.record_metric("zimage.images", 2, "{image}", kind="counter")
    spans.record_metric("zimage.images", 3, "{image}", kind="counter")
    spans.record_metric("process.peak", 100, "By", kind="gauge")
    spans.record_metric("process.peak", 90, "By", kind="gauge")
    setup.write_trace(tmp_path / "opentelemetry_trace.json")

    assert [path.name for path in tmp_path.iterdir()] == ["opentelemetry_trace.json"]
    trace = json.loads((tmp_path / "opentelemetry_trace.json").read_text())
    assert names(trace["spans"]) == [("zimage.run", [("zimage.generate", []), ("zimage.save", [])])]
    root = trace["spans"][0]
    generate, save = root["children"]
    assert root["duration_seconds"] == run.seconds >= generate["duration_seconds"] + save["duration_seconds"]
    assert root["status"] == {"code": "OK"} and root["parent_span_id"] is None
    assert generate["parent_span_id"] == root["span_id"]
    assert generate["attributes"] == {
        "gen_ai.request.model": "Tongyi-MAI/Z-Image-Turbo",
        "size": [64, 64],
        "gen_ai.request.seed": 0,
    }
    (event,) = generate["events"]
    assert (event["name"], event["attributes"]) == ("denoise", {"step": 1})
    assert generate["start"] <= event["time"] <= generate["end"]
    assert save["status"] == {"code": "ERROR", "description": "ValueError"}
    assert save["attributes"]["error.type"] == "ValueError"
    assert save["events"][0]["name"] == "exception"
    assert [(log["severity"], log["message"], log["span_id"]) for log in trace["logs"]] == [
        ("INFO", "started with 2 items", root["span_id"]),
        ("WARN", "slow", root["span_id"]),
    ]
    assert trace["metrics"] == [
        {"name": "zimage.duration", "kind": "histogram", "unit": "s", "attributes": {"phase": "a"}, "values": 2, "sum": 2.0, "min": 0.5, "max": 1.5},
        {"name": "zimage.duration", "kind": "histogram", "unit": "s", "attributes": {"phase": "b"}, "values": 1, "sum": 9.0, "min": 9.0, "max": 9.0},
        {"name": "zimage.images", "kind": "counter", "unit": "{image}", "attributes": {}, "values": 2, "value": 5},
        {"name": "process.peak", "kind": "gauge", "unit": "By", "attributes": {}, "values": 2, "value": 90},
    ]  # fmt: skip
    metadata = trace["metadata"]
    assert (metadata["service"], metadata["version"], metadata["sent_to"]) == ("zimage_generation", "1.2.3", [])
    assert metadata["resource"] == {"service.name": "zimage_generation", "service.version": "1.2.3"}


def test_decorator_makes_a_span_each_call_and_keeps_results_and_errors():
    setup = make()

    @setup.spans.track_span("half", {"unit": "px"})
    def half(number):
        if number % 2:
            raise ValueError("odd")
        return half(number // 2) if number > 2 else 1

    assert half(4) == 1
    with pytest.raises(ValueError, match="odd"):
        half(3)
    assert half.__name__ == "half"
    trace = trace_of(setup)
    assert names(trace["spans"]) == [("half", [("half", [])]), ("half", [])]
    assert [span["status"]["code"] for span in trace["spans"]] == ["OK", "ERROR"]


def test_decorating_a_generator_is_refused():
    with pytest.raises(TypeError, match="plain functions"):

        @make().spans.track_span("frames")
        def frames():
            yield 1


@pytest.mark.parametrize(
    ("error", "code"), [(SystemExit(0), "OK"), (SystemExit(2), "ERROR"), (KeyboardInterrupt(), "ERROR")]
)
def test_leaving_the_process_inside_a_span(error, code):
    setup = make()
    with pytest.raises(type(error)), setup.spans.track_span("run"):
        raise error
    assert trace_of(setup)["spans"][0]["status"]["code"] == code


def test_an_open_span_is_written_without_an_end(tmp_path):
    setup = make()
    with setup.spans.track_span("run"):
        (span,) = trace_of(setup)["spans"]
    assert span["end"] is None and span["duration_seconds"] >= 0 and span["status"] == {"code": "UNSET"}


def test_threads_attach_to_the_outermost_span_or_with_bind_to_the_current_one():
    setup = make()
    spans = setup.spans

    @spans.track_span("work")
    def work():
        with spans.track_span("inner"):
            pass

    with spans.track_span("run"), spans.track_span("phase"), ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work), pool.submit(spans.bind(work))]:
            future.result()
    ((name, children),) = names(trace_of(setup)["spans"])
    assert name == "run"
    assert sorted(children) == [("phase", [("work", [("inner", [])])]), ("work", [("inner", [])])]


def test_many_threads_lose_nothing():
    setup = make()
    spans = setup.spans
    start = threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(50):
            with spans.track_span("step") as span:
                span.add_event("tick")
                spans.record_metric("steps", 1, "{step}", kind="counter")
                setup.logger.info("tick")

    with spans.track_span("run"), ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(spans.bind(work)) for _ in range(8)]:
            future.result()
    trace = trace_of(setup)
    steps = trace["spans"][0]["children"]
    assert len(steps) == 400 and len({step["span_id"] for step in steps}) == 400
    assert all(len(step["events"]) == 1 for step in steps)
    assert trace["metrics"][0]["value"] == 400 and len(trace["logs"]) == 400


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.sampled_from(["\ud800", Path("x"), 1j]),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    )
)
def test_any_attribute_value_gives_valid_json(tmp_path_factory, value):
    setup = make()
    with setup.spans.track_span("run", {"value": value}):
        setup.logger.info("{value}", value=value)
    path = tmp_path_factory.mktemp("trace") / "t.json"
    setup.write_trace(path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_numpy_values_become_numbers():
    np = pytest.importorskip("numpy")
    setup = make()
    with setup.spans.track_span("run", {"a": np.float32(0.5), "b": np.int64(3), "c": [np.int64(1), np.int64(2)]}):
        setup.spans.record_metric("m", np.float64(1.5), "s")
    trace = trace_of(setup)
    assert trace["spans"][0]["attributes"] == {"a": 0.5, "b": 3, "c": [1, 2]}
    assert trace["metrics"][0]["sum"] == 1.5


def test_wrong_metrics_are_refused():
    spans = make().spans
    with pytest.raises(ValueError, match="cannot go down"):
        spans.record_metric("frames", -1, kind="counter")
    with pytest.raises(ValueError, match="metric name"):
        spans.record_metric("two words", 1)
    with pytest.raises(ValueError, match="histogram, counter or gauge"):
        spans.record_metric("frames", 1, kind="sum")
    with pytest.raises(ValueError, match="not a number"):
        spans.record_metric("frames", "many")
    spans.record_metric("frames", 1, "{frame}", kind="counter")
    with pytest.raises(ValueError, match="recorded as"):
        spans.record_metric("frames", 1, "s")


def test_disabled_records_and_writes_nothing_but_still_times_and_prints(tmp_path):
    shown = []
    setup = make({"OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense", "TRACEPARENT": INCOMING}, enabled=False)
    logger = OtelLogger(setup.spans, console=lambda severity, text: shown.append((severity, text)))
    with setup.spans.track_span("run") as span:
        logger.info("read {path}", content={"path": "cat.png"})
        setup.spans.record_metric("m", 1)
        assert setup.spans.child_environment() == {"TRACEPARENT": INCOMING}
    setup.write_trace(tmp_path / "trace.json")
    setup.shutdown()
    assert span.seconds > 0 and shown == [("INFO", "read cat.png")]
    assert list(tmp_path.iterdir()) == []
    trace = trace_of(setup)
    assert trace["spans"] == trace["logs"] == trace["metrics"] == []


def test_an_unwritable_folder_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputWriteError):
        make().write_trace(tmp_path / "file" / "trace.json")


# Content


def test_content_is_dropped_at_the_door_and_kept_on_demand(tmp_path):
    def run(setup):
        with (
            pytest.raises(RuntimeError),
            setup.spans.track_span("run", {"n": 1, "file": tmp_path}, content={"prompt": SECRET}) as span,
        ):
            span.add_event("read", content={"path": f"/home/{SECRET}.png"})
            span.set_attributes({"m": 2}, content={"text": SECRET})
            setup.logger.error("{what}: {n} of {unknown} {{", n=3, content={"what": SECRET})
            raise RuntimeError(f"cannot draw {SECRET}")
        return json.dumps(setup.spans.trace(), default=str)

    closed = run(make())
    assert SECRET not in closed and str(tmp_path) not in closed
    assert '"{what}: 3 of {unknown} {{"' in closed and '"exception.type": "RuntimeError"' in closed
    opened = run(make(send_content=True))
    assert opened.count(SECRET) >= 6 and str(tmp_path) in opened
    assert "exception.stacktrace" in opened and f"cannot draw {SECRET}" in opened


def test_secrets_of_the_environment_are_not_in_the_local_file():
    with OtlpReceiver() as receiver:
        setup = make(
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
                "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20s3cret",
                "OTEL_RESOURCE_ATTRIBUTES": "team=art,api_key=s3cret",
                "APPSIGNAL_PUSH_API_KEY": "s3cret",
                "APPSIGNAL_COLLECTOR_ENDPOINT": receiver.url,
            }
        )
        with setup.spans.track_span("run"):
            pass
        text = json.dumps(setup.spans.trace())
        setup.shutdown()
    assert "s3cret" not in text and "s3cret" not in setup.settings.notice
    assert json.loads(text)["metadata"]["resource"]["team"] == "art"


# Export


def exported(receiver, environ=None, **options):
    """Run a small trace against the receiver; return the setup after its shutdown, and the lines it said."""
    said = []
    setup = make({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, **(environ or {})}, say=said.append, **options)
    spans = setup.spans
    with spans.track_span("run", {"items": 2}, content={"prompt": SECRET}):
        with spans.track_span("generate", {GenAI.REQUEST_MODEL: "m", GenAI.RESPONSE_FINISH_REASONS: ["stop"]}):
            spans.add_event("denoise", {"step": 1})
            setup.logger.info("first {prompt}", n=1, content={"prompt": SECRET})
            setup.logger.error("second")
        with pytest.raises(OSError), spans.track_span("save"):
            raise OSError(f"/home/{SECRET}.png")
    spans.record_metric(GenAI.OPERATION_DURATION, 1.25, "s", {GenAI.OPERATION_NAME: "generate_content"})
    spans.record_metric(GenAI.OPERATION_DURATION, 0.75, "s", {GenAI.OPERATION_NAME: "generate_content"})
    spans.record_metric("images", 2, "{image}", kind="counter")
    spans.record_metric("images", 3, "{image}", kind="counter")
    spans.record_metric("peak", 7, "By", kind="gauge")
    setup.shutdown(20)
    return setup, said


def test_all_three_signals_arrive_and_agree_with_the_local_file():
    with OtlpReceiver() as receiver:
        setup, said = exported(
            receiver, {"OTEL_RESOURCE_ATTRIBUTES": "team=art%20one,service.name=ignored", "OTEL_SERVICE_NAME": "studio"}
        )
    assert {request.path for request in receiver.requests} == {"/v1/traces", "/v1/metrics", "/v1/logs"}
    assert all(request.headers["content-type"] == "application/x-protobuf" for request in receiver.requests)
    for resource in receiver.resources():
        assert (
            resource["service.name"] == "studio"
            and resource["service.version"] == "1.2.3"
            and resource["team"] == "art one"
        )
        assert not {"host.name", "process.command_line", "process.command_args"} & set(resource)

    local = trace_of(setup)
    run, generate, save = (receiver.span(name) for name in ("run", "generate", "save"))
    assert {s.trace_id.hex() for s in receiver.spans()} == {local["metadata"]["trace_id"]}
    assert run.span_id.hex() == local["spans"][0]["span_id"] and run.parent_span_id == b""
    assert generate.parent_span_id == save.parent_span_id == run.span_id
    assert (run.end_time_unix_nano - run.start_time_unix_nano) / 1e9 == local["spans"][0]["duration_seconds"]
    assert attributes(generate) == {"gen_ai.request.model": "m", "gen_ai.response.finish_reasons": ["stop"]}
    assert [(event.name, attributes(event)) for event in generate.events] == [("denoise", {"step": 1})]
    assert (run.status.code, save.status.code, save.status.message) == (1, 2, "OSError")
    assert attributes(save.events[0]) == {"exception.type": "OSError"}

    metrics = receiver.metrics()
    (point,) = metrics["gen_ai.client.operation.duration"].histogram.data_points
    assert (point.count, point.sum, attributes(point)) == (2, 2.0, {"gen_ai.operation.name": "generate_content"})
    assert metrics["gen_ai.client.operation.duration"].unit == "s"
    assert list(point.explicit_bounds)[:3] == [0.01, 0.02, 0.04] and point.explicit_bounds[-1] == 81.92
    assert metrics["images"].sum.data_points[0].as_int == 5 and metrics["images"].sum.is_monotonic
    assert metrics["peak"].gauge.data_points[0].as_int == 7

    first, second = receiver.logs()
    assert (plain(first.body), first.severity_text, attributes(first)) == ("first {prompt}", "INFO", {"n": 1})
    assert (plain(second.body), second.severity_text, second.severity_number) == ("second", "ERROR", 17)
    assert first.span_id == generate.span_id and first.trace_id == generate.trace_id
    (notice,) = said
    assert receiver.url in notice and "traces, metrics and logs" in notice and "without prompts" in notice


def test_prompts_names_and_paths_stay_at_home_unless_asked_for():
    with OtlpReceiver() as receiver:
        exported(receiver)
    assert len(receiver.requests) >= 3
    assert not any(SECRET.encode() in request.body for request in receiver.requests)
    with OtlpReceiver() as receiver:
        _, said = exported(receiver, send_content=True)
    assert "with prompts" in said[0]
    assert attributes(receiver.span("run"))["prompt"] == SECRET
    assert attributes(receiver.span("save").events[0])["exception.message"] == f"/home/{SECRET}.png"
    assert plain(receiver.logs()[0].body) == f"first {SECRET}"


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"])
def test_compression(name):
    with OtlpReceiver() as receiver:
        exported(receiver, {name: "gzip"})
    encodings = {request.path: request.headers.get("content-encoding") for request in receiver.requests}
    other = None if "TRACES" in name else "gzip"
    assert encodings == {"/v1/traces": "gzip", "/v1/metrics": other, "/v1/logs": other}
    assert len(receiver.spans()) == 3


def test_headers_for_all_signals_and_for_one():
    environ = {
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b, x-team=art",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "api-key=logs",
    }
    with OtlpReceiver() as receiver:
        exported(receiver, environ)
    sent = {
        request.path: (request.headers.get("api-key"), request.headers.get("x-team")) for request in receiver.requests
    }
    assert sent == {"/v1/traces": ("a b", "art"), "/v1/metrics": ("a b", "art"), "/v1/logs": ("logs", None)}


def test_endpoints_for_one_signal_and_signals_switched_off():
    with OtlpReceiver(paths={"/in/t": "/v1/traces"}) as receiver, OtlpReceiver() as base:
        environ = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{receiver.url}/in/t",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"{base.url}/",
        }
        _, said = exported(base, environ | {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "otlp"})
    assert {request.path for request in receiver.requests} == {"/in/t"} and len(receiver.spans()) == 3
    assert {request.path for request in base.requests} == {"/v1/logs"}
    assert f"traces to {receiver.url}; logs to {base.url}" in said[0]


def test_one_per_signal_endpoint_alone_sends_that_signal_alone():
    with OtlpReceiver() as receiver:
        exported(
            receiver, {"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{receiver.url}/v1/logs"}
        )
    assert {request.path for request in receiver.requests} == {"/v1/logs"}


@pytest.mark.parametrize(
    "refusal",
    [{"DO_NOT_TRACK": "1"}, {"OTEL_SDK_DISABLED": "True"}, {"enabled": False}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}],
    ids=str,
)
def test_refusals_win_over_everything(refusal):
    with OtlpReceiver() as receiver:
        enabled = refusal.pop("enabled", True)
        appsignal = (
            {}
            if "OTEL_EXPORTER_OTLP_ENDPOINT" in refusal
            else {"APPSIGNAL_PUSH_API_KEY": "k", "APPSIGNAL_COLLECTOR_ENDPOINT": receiver.url}
        )
        setup, said = exported(receiver, appsignal | refusal, enabled=enabled)
    assert receiver.requests == [] and said == []
    assert names(trace_of(setup)["spans"]) == ([("run", [("generate", []), ("save", [])])] if enabled else [])


def test_appsignal_gets_its_key_and_attributes_and_nobody_else_does():
    with OtlpReceiver() as receiver, OtlpReceiver() as other:
        exported(
            other,
            {
                "APPSIGNAL_PUSH_API_KEY": "push-1",
                "APPSIGNAL_COLLECTOR_ENDPOINT": f"{receiver.url}/",
                "APPSIGNAL_APP_ENV": "staging",
                "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20abc",
            },
        )
    assert {request.path for request in receiver.requests} == {"/v1/traces", "/v1/metrics", "/v1/logs"}
    assert {(r.headers["appsignal-api-key"], r.headers.get("authorization")) for r in receiver.requests} == {
        ("push-1", None)
    }
    for resource in receiver.resources():
        assert {name: value for name, value in resource.items() if name.startswith("appsignal.")} == {
            "appsignal.config.name": "generation-scripts",
            "appsignal.config.environment": "staging",
            "appsignal.config.push_api_key": "push-1",
            "appsignal.config.revision": "1.2.3",
            "appsignal.config.language_integration": "python",
        }
        assert resource["host.name"] == socket.gethostname() and resource["service.name"] == "zimage_generation"
    assert {(r.headers.get("appsignal-api-key"), r.headers["authorization"]) for r in other.requests} == {
        (None, "Basic abc")
    }
    assert not any(b"push-1" in request.body or b"appsignal" in request.body for request in other.requests)
    assert receiver.span("run").span_id == other.span("run").span_id


def test_the_sdks_own_header_variables_do_not_reach_appsignal(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20abc")
    with OtlpReceiver() as receiver:
        environ = {
            **os.environ,
            "APPSIGNAL_PUSH_API_KEY": "k",
            "APPSIGNAL_COLLECTOR_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": "",
        }
        exported(receiver, environ)
    assert receiver.requests and not any("authorization" in request.headers for request in receiver.requests)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"APPSIGNAL_PUSH_API_KEY": "hush"}, "APPSIGNAL_COLLECTOR_ENDPOINT"),
        ({"APPSIGNAL_PUSH_API_KEY": "hush", "APPSIGNAL_COLLECTOR_ENDPOINT": "collector"}, "must be a URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT=localhost:4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://host:99999"}, "must be a URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:hush@host"}, "no user name or password"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: only http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=http/json"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, "gzip, deflate or none"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "positive number"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=1,hush"}, "OTEL_EXPORTER_OTLP_HEADERS: entry 2"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=hush%0d%0aevil: 1"}, "HTTP header"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team"}, "OTEL_RESOURCE_ATTRIBUTES: entry 1"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER=console"),
    ],
)
def test_an_impossible_environment_is_one_line_without_secrets(environ, message):
    with pytest.raises(ConfigError) as raised:
        make({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", **environ})
    text = str(raised.value)
    assert message in text and "\n" not in text and "hush" not in text


# W3C context


def test_incoming_context_is_taken_over_and_handed_on():
    environ = {"TRACEPARENT": INCOMING, "TRACESTATE": "vendor=1", "BAGGAGE": "user=7"}
    with OtlpReceiver() as receiver:
        setup, _ = exported(receiver, environ)
    run = receiver.span("run")
    assert run.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c" and run.parent_span_id.hex() == "b7ad6b7169203331"
    assert run.trace_state == receiver.span("generate").trace_state == "vendor=1"
    local = trace_of(setup)
    assert local["spans"][0]["parent_span_id"] == local["metadata"]["remote_parent_span_id"] == "b7ad6b7169203331"
    with setup.spans.track_span("child") as child:
        handed_on = setup.spans.child_environment()
    assert handed_on == {
        "TRACEPARENT": f"00-0af7651916cd43dd8448eb211c80319c-{child.span_id}-01",
        "TRACESTATE": "vendor=1",
        "BAGGAGE": "user=7",
    }


def test_an_unsampled_parent_is_respected_and_still_recorded_locally():
    with OtlpReceiver() as receiver:
        setup, _ = exported(receiver, {"TRACEPARENT": INCOMING[:-2] + "00"})
    assert receiver.spans() == [] and len(receiver.logs()) == 2
    assert len(trace_of(setup)["spans"]) == 1
    with setup.spans.track_span("child"):
        assert setup.spans.child_environment()["TRACEPARENT"].endswith("-00")


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        INCOMING + "-more",
    ],
)
def test_an_invalid_parent_starts_a_new_trace(parent):
    setup = make({"TRACEPARENT": parent, "TRACESTATE": "vendor=1"})
    assert setup.spans.child_environment() == {}
    with setup.spans.track_span("run") as span:
        environ = setup.spans.child_environment()
    assert span.parent_id is None and environ["TRACESTATE"] == ""
    assert re.fullmatch(rf"00-(?!0af7651916)[0-9a-f]{{32}}-{span.span_id}-01", environ["TRACEPARENT"])


def test_a_later_version_of_the_header_is_understood():
    setup = make({"TRACEPARENT": "cc" + INCOMING[2:] + "-more"})
    assert setup.spans.trace_id == "0af7651916cd43dd8448eb211c80319c"


def test_a_child_process_continues_the_trace():
    with OtlpReceiver() as receiver:
        setup = make({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}, say=lambda line: None)
        with setup.spans.track_span("parent"):
            process = run_child(CHILD, {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, **setup.spans.child_environment()})
        setup.shutdown(20)
    assert process.returncode == 3, process.stderr
    assert receiver.span("child").parent_span_id == receiver.span("parent").span_id
    assert receiver.span("child").trace_id == receiver.span("parent").trace_id


# Processes: collectors that misbehave, and what is imported

CHILD = """
import sys, time
from shared_utils.telemetry import OtelSetup
setup = OtelSetup("child", "1", enabled=True)
with setup.spans.track_span("child"):
    setup.spans.record_metric("m", 1.0, "s")
    setup.logger.info("hello")
start = time.monotonic()
setup.shutdown()
print(time.monotonic() - start, time.monotonic())
sys.exit(3)
"""


def run_child(code, environ=None, cwd=ROOT):
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "APPSIGNAL_", "TRACE", "DO_NOT"))
    }
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**clean, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    process.ended = time.monotonic()  # one clock for all processes
    return process


def check_harmless(process, reason):
    """The exit code is the script's; shutdown kept its 2 s and nothing held up the exit (with room for a busy machine); stderr is
    the notice and one warning."""
    assert process.returncode == 3, process.stderr
    took, ended = map(float, process.stdout.split())
    assert took < 4.0 and process.ended - ended < 4.0
    notice, warning = process.stderr.splitlines()
    assert notice.startswith("telemetry: sending") and "not everything was delivered" in warning and reason in warning


def test_a_dead_collector_is_harmless():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        check_harmless(run_child(CHILD, {"OTEL_EXPORTER_OTLP_ENDPOINT": url}), "no connection")


def test_a_silent_collector_is_harmless():
    """It accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        check_harmless(run_child(CHILD, {"OTEL_EXPORTER_OTLP_ENDPOINT": url}), "no answer in time")


def test_a_slow_collector_is_harmless():
    with OtlpReceiver(delay=60) as receiver:
        check_harmless(run_child(CHILD, {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}), "no answer in time")


@pytest.mark.parametrize("status", [500, 503, 400, 401])
def test_a_refusing_collector_is_harmless(status):
    with OtlpReceiver(status) as receiver:
        check_harmless(run_child(CHILD, {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}), f"it answered {status}")


def test_a_redirect_is_not_followed():
    with OtlpReceiver() as elsewhere, OtlpReceiver(307, location=elsewhere.url) as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_EXPORTER_OTLP_HEADERS": "api-key=hush"}
        check_harmless(run_child(CHILD, environ), "it answered 307")
    assert elsewhere.requests == []


def test_an_https_endpoint_that_speaks_http_is_harmless():
    with OtlpReceiver() as receiver:
        url = receiver.url.replace("http:", "https:")
        process = run_child(CHILD, {"OTEL_EXPORTER_OTLP_ENDPOINT": url})
    check_harmless(process, "TLS failed")


def test_a_passing_failure_is_retried_and_not_reported():
    with OtlpReceiver(503, 200) as receiver:
        said = []
        setup = make(
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LOGS_EXPORTER": "none",
            },
            say=said.append,
        )
        with setup.spans.track_span("run"):
            pass
        setup.shutdown(20)
    assert len(receiver.requests) == 2 and len(said) == 1


LOCAL = """
import sys
from pathlib import Path
heavy = ("opentelemetry", "google", "requests", "numpy", "torch", "pxr", "transformers", "cyclopts", "asyncio")
import shared_utils
from shared_utils.telemetry import OtelSetup
print([name for name in heavy if name in sys.modules])
setup = OtelSetup("child", "1", enabled=True)
with setup.spans.track_span("child"):
    setup.logger.info("hello")
setup.write_trace(Path("trace.json"))
setup.shutdown()
print([name for name in heavy if name in sys.modules])
"""


def test_nothing_heavy_is_imported_unless_something_is_sent(tmp_path):
    process = run_child(LOCAL, {"PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (0, "[]\n[]\n", "")
    assert json.loads((tmp_path / "trace.json").read_text())["spans"][0]["name"] == "child"


def test_the_genai_names_are_those_of_the_conventions():
    known = {v for module in (gen_ai_attributes, gen_ai_metrics) for v in vars(module).values() if isinstance(v, str)}
    ours = {value for name, value in vars(GenAI).items() if name.isupper()}
    assert len(ours) >= 16 and ours <= known
