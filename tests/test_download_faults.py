"""Downloads that go wrong end with the right bytes, or the right failure and nothing that looks complete."""
# ruff: noqa: F401, F811 - a fixture is imported to be named as an argument

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from downloads import BIG, BIG_BYTES, REPO, fetch, holds, hub, kept, place, served
from fake_hub import FakeHub, Fault
from processes import ROOT, environment, run, start

from shared_utils import hub_client, weights_folder
from shared_utils.errors import (
    AccessError,
    ConfigError,
    InvalidInputError,
    MissingInputError,
    OutputWriteError,
    TemporaryError,
    UnavailableError,
)
from shared_utils.hugging_face import HuggingFaceDownloader, Weights
from shared_utils.verify import PARTIAL_DIR, RECORD_NAME, RemoteFile

# --- faults of the network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault("truncate", BIG, after=1_500_000),
        Fault("truncate", BIG, after=0, times=3),
        Fault("reset", BIG, after=1_500_000),
        Fault("reset", BIG, after=0),
        Fault("reset", "/api/", after=10),
        Fault("short", BIG, after=1_500_000),
        Fault("short", "config.json", after=3),
        Fault("long", BIG),
        Fault("corrupt", BIG),
        Fault("corrupt", "config.json"),
        Fault("no_range", BIG, times=None),
        Fault("status", "/api/", code=500),
        Fault("status", "/api/", code=502, times=4),
        Fault("status", "/api/", code=503),
        Fault("status", BIG, code=500),
        Fault("status", BIG, code=502, times=4),
        Fault("status", "/cdn/", code=503, times=3),
        Fault("status", BIG, method="HEAD", code=503, times=None),
        Fault("status", "/api/", code=429, headers={"Retry-After": "0"}),
        Fault("status", BIG, code=429, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, times=2),
    ],
    ids=lambda f: f"{f.kind}-{f.code}-{f.match}-{f.after}-{f.times}",
)
def test_passing_faults_end_with_the_right_bytes(hub, served, place, fault):
    hub.faults.append(fault)
    fetch(place)
    assert holds(place / "model", served)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("truncate", BIG, after=0),
        Fault("truncate", "config.json", after=0),
        Fault("reset", BIG, after=0),
        Fault("reset", "/api/", after=10),
        Fault("short", BIG, after=0),
        Fault("long", BIG),
        Fault("corrupt", BIG),
        Fault("corrupt", "config.json"),
        Fault("html", "/api/"),
        Fault("html", "config.json"),
        Fault("status", "/api/", code=500),
        Fault("status", "/api/", code=502),
        Fault("status", "/api/", code=503),
        Fault("status", "/api/", code=429),
        Fault("status", BIG, code=500),
        Fault("status", BIG, code=502),
        Fault("status", BIG, code=503),
        Fault("status", BIG, code=429),
    ],
    ids=lambda f: f"{f.kind}-{f.code}-{f.match}-{f.after}",
)
def test_lasting_faults_are_temporary_and_leave_nothing_that_looks_complete(hub, served, place, fault):
    fault.times = None
    hub.faults.append(fault)
    with pytest.raises(TemporaryError) as failure:
        fetch(place)
    assert REPO in str(failure.value) and "\n" not in str(failure.value)
    if fault.match != "/api/":
        assert fault.match in str(failure.value)
        assert not (place / "model" / fault.match).exists()
    with pytest.raises(UnavailableError):
        fetch(place, offline=True)
    hub.faults.clear()
    fetch(place)
    assert holds(place / "model", served)


def test_wrong_bytes_are_fetched_again_once(hub, place):
    hub.faults.append(Fault("corrupt", BIG, times=None))
    with pytest.raises(TemporaryError, match=r"model\.safetensors came 2 times with a hash"):
        fetch(place)
    assert len(hub.requests(f"/cdn/{REPO}")) >= 2
    assert len([r for r in hub.requests("/cdn/") if r.path.endswith(BIG)]) == 2
    assert kept(place) < BIG_BYTES


@pytest.mark.parametrize("kind", ["truncate", "reset", "short"])
def test_goes_on_where_the_connection_broke(hub, served, place, kind):
    hub.faults.append(Fault(kind, BIG, after=2_000_000))
    fetch(place)
    assert holds(place / "model", served)
    assert [r.range for r in hub.requests(f"/cdn/{REPO}") if r.path.endswith(BIG)] == [None, "bytes=2000000-"]


def test_getting_on_is_not_a_failure(hub, served, place):
    """More breaks than attempts, each after more than a megabyte."""
    folder = served / "large"
    folder.mkdir()
    (folder / "part.bin").write_bytes(random.Random(3).randbytes(9_000_000))
    hub.faults.append(Fault("truncate", "part.bin", after=1_200_000, times=7))
    fetch(place)
    assert holds(place / "model", served)
    assert len([r for r in hub.requests("/cdn/") if r.path.endswith("part.bin")]) == 8


@pytest.mark.parametrize("kind", ["no_range", "wrong_range"])
def test_a_server_without_ranges_starts_again(hub, served, place, kind):
    hub.faults += [Fault("reset", BIG, after=2_000_000), Fault(kind, BIG)]
    fetch(place)
    assert holds(place / "model", served)


def test_a_stalled_transfer_is_given_up_and_continued(hub, served, place):
    hub.faults.append(Fault("stall", BIG, after=2_000_000))
    fetch(place, timeout=0.5)
    assert holds(place / "model", served)
    assert "bytes=2000000-" in [r.range for r in hub.log]


def test_a_server_that_stays_silent(hub, place, monkeypatch):
    monkeypatch.setattr(hub_client, "ATTEMPTS", 2)
    hub.faults.append(Fault("stall", "/api/", times=None))
    with pytest.raises(TemporaryError, match=r"org/model: no answer from 127\.0\.0\.1:\d+ for 0\.3 s"):
        fetch(place, timeout=0.3)


def test_waits_as_long_as_the_server_asks(hub, place, monkeypatch):
    waited = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: waited.append(seconds))
    client = hub_client.HubClient(REPO)
    answers = [
        hub_client._Retryable("busy", hub_client._asked_wait(429, {"Retry-After": "7"})),
        hub_client._Retryable("busy", hub_client._asked_wait(429, {"RateLimit": '"api";r=0;t=55'})),
        hub_client._Retryable("busy", hub_client._asked_wait(503, {"RateLimit": '"api";r=9;t=55'})),
        hub_client._Retryable("busy", hub_client._asked_wait(429, {"Retry-After": "soon"})),
    ]

    def attempt() -> str:
        if answers:
            raise answers.pop(0)
        return "done"

    assert client._retry("x", attempt) == "done"
    assert waited == [7.0, 55.0, 0.04, 0.08]


def test_does_not_wait_for_hours(hub, place):
    hub.faults.append(Fault("status", "/api/", code=429, headers={"Retry-After": "3600"}))
    with pytest.raises(TemporaryError, match="asks to wait 3600 s"):
        fetch(place)


def test_no_server_at_all(hub, place, served):
    fetch(place)
    hub.stop()
    assert fetch(place).files
    (place / "model" / BIG).unlink()
    with pytest.raises(TemporaryError, match=r"org/model: model\.safetensors: the connection to 127"):
        fetch(place)


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://x.example", "http://[::1"])
def test_a_wrong_endpoint_is_a_config_error(hub, place, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        fetch(place)


# --- access ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(served, monkeypatch, hub):
    names = ("org/gated", "org/private")
    with FakeHub(dict.fromkeys(names, served), token="hf_right", gated=names[:1], private=names[1:]) as locked:
        monkeypatch.setenv("HF_ENDPOINT", locked.url)
        yield locked


@pytest.mark.parametrize("repo", ["org/gated", "org/private"])
@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_without_access_the_error_says_where_to_get_it(locked, place, monkeypatch, repo, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessError) as failure:
        fetch(place, Weights(repo))
    assert f"{locked.url}/{repo}" in str(failure.value) and "HF_TOKEN" in str(failure.value)
    assert "hf_wrong" not in str(failure.value)


def test_the_page_of_the_table_is_named(locked, place):
    with pytest.raises(AccessError, match=r"ask for it at https://example\.org/licence"):
        fetch(place, Weights("org/gated", gated=True, url="https://example.org/licence"))


@pytest.mark.parametrize("repo", ["org/gated", "org/private"])
def test_the_token_opens_and_stays_with_the_hub(locked, served, place, monkeypatch, repo):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    snapshot = fetch(place, Weights(repo))
    assert holds(snapshot.path, served)
    assert {r.token for r in locked.log if r.host == "127.0.0.1"} == {"hf_right"}
    assert {r.token for r in locked.log if r.host == "localhost"} == {None}, "the host of the large files gets no token"
    assert "hf_right" not in (snapshot.path / RECORD_NAME).read_text()


def test_a_token_given_to_the_downloader_wins(locked, place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert fetch(place, Weights("org/private"), token="hf_right").files


def test_a_token_that_cannot_be_one(hub, place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ü")
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        fetch(place)


@pytest.mark.parametrize("status", [401, 403, 451])
@pytest.mark.parametrize("match", ["/api/", BIG])
def test_refused(hub, place, status, match):
    hub.faults.append(Fault("status", match, code=status, times=None))
    with pytest.raises(AccessError, match=f"org/model.*{status}.*HF_TOKEN"):
        fetch(place)


def test_not_found(hub, served, place, monkeypatch):
    with pytest.raises(AccessError, match="org/nothing: the repository does not exist, or is private"):
        fetch(place, Weights("org/nothing"))  # as the Hub answers the anonymous
    with pytest.raises(MissingInputError, match="org/model: there is no revision v9"):
        fetch(place, Weights(REPO, "v9"))
    hub.faults.append(Fault("status", "config.json", code=404))
    with pytest.raises(MissingInputError, match=r"org/model: config\.json: no such file at revision"):
        fetch(place, Weights(REPO, hub.commit(REPO)))
    hub.faults.append(Fault("status", "/api/", code=404))
    with pytest.raises(MissingInputError, match="org/gone: no such repository"):
        fetch(place, Weights("org/gone"))
    hub.faults.append(Fault("status", "/api/", code=400))
    with pytest.raises(InvalidInputError, match="status 400"):
        fetch(place, Weights("org/bad"))


# --- interruptions ---------------------------------------------------------------------------------------------------

PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from shared_utils.errors import ScriptError
from shared_utils.hugging_face import HuggingFaceDownloader, Weights
try:
    print(HuggingFaceDownloader(Path(sys.argv[1])).fetch(Weights({REPO!r})).commit)
except ScriptError as error:
    sys.exit(print(error, file=sys.stderr) or error.exit_code)
"""


def start_program(hub: FakeHub, place: Path, **options) -> subprocess.Popen:
    env = environment(**hub.environment, DOWNLOAD_RETRY_SECONDS="0.01")
    command = [sys.executable, "-c", PROGRAM, str(place)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, **options
    )


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_next_run_goes_on_after_a_signal(hub, served, place, number):
    hub.faults.append(Fault("stall", BIG, after=2_000_000))
    process = start_program(hub, place)
    wait_until(lambda: kept(place) == 2_000_000)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == -number
    assert not (place / "model" / BIG).exists()
    with pytest.raises(UnavailableError, match=r"incomplete: \d of 5 files are missing"):
        fetch(place, offline=True)
    (served / "config.json").write_bytes((served / "config.json").read_bytes())
    hub.log.clear()
    fetch(place)
    assert holds(place / "model", served)
    assert [r.range for r in hub.requests("/cdn/") if r.path.endswith(BIG)] == ["bytes=2000000-"]
    assert not hub.requests("/api/"), "the commit of the first run is kept"


def test_the_next_run_goes_on_after_lasting_resets(hub, served, place):
    hub.faults += [Fault("reset", BIG, after=2_000_000), Fault("status", BIG, code=503, times=None)]
    with pytest.raises(TemporaryError, match="the 2000000 bytes that came in are kept, run it again later"):
        fetch(place)
    hub.faults.clear()
    hub.log.clear()
    fetch(place)
    assert holds(place / "model", served)
    assert "bytes=2000000-" in [r.range for r in hub.log]


def test_an_exception_in_the_main_thread_ends_the_download_soon(hub, place, monkeypatch):
    """As the frame's signal handler raises one, while a worker sits in a stalled read."""
    hub.faults.append(Fault("stall", BIG, after=1000))

    class Stop(BaseException):
        pass

    monkeypatch.setattr(signal, "SIGALRM", signal.SIGALRM)
    previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(Stop))
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(Stop):
            fetch(place, timeout=60)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert kept(place) == 1000 and not (place / "model" / BIG).exists()


def test_a_spoiled_rest_of_an_earlier_run_is_noticed(hub, served, place):
    hub.faults += [Fault("reset", BIG, after=2_000_000), Fault("status", BIG, code=503, times=None)]
    with pytest.raises(TemporaryError):
        fetch(place)
    (partial,) = (place / "model" / PARTIAL_DIR).glob("*")
    partial.write_bytes(bytes(2_500_000))
    hub.faults.clear()
    fetch(place)
    assert holds(place / "model", served)
    for spoiled in (bytes(BIG_BYTES), bytes(BIG_BYTES + 1)):
        (place / "model" / BIG).unlink()
        partial.parent.mkdir()
        partial.write_bytes(spoiled)
        fetch(place)
        assert holds(place / "model", served)


def test_a_recorded_commit_that_is_gone_is_asked_for_again(hub, served, place):
    hub.faults.append(Fault("status", BIG, code=503, times=None))
    with pytest.raises(TemporaryError):
        fetch(place)
    hub.faults.clear()
    (served / "config.json").write_text("{}")  # the fake Hub forgets the old commit
    assert fetch(place).commit == hub.commit(REPO)
    assert holds(place / "model", served)


def test_two_processes_at_once(hub, served, place):
    fault = Fault("stall", BIG, after=1_000_000)
    hub.faults.append(fault)
    first = start_program(hub, place)
    wait_until(lambda: kept(place) == 1_000_000)
    second = start_program(hub, place)
    assert "another process is downloading" in second.stderr.readline()
    fault.release.set()
    outputs = [process.communicate(timeout=30)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert outputs == [f"{hub.commit(REPO)}\n"] * 2
    assert holds(place / "model", served)
    assert len(hub.requests("/api/")) == 1 and len(hub.requests("config.json")) == 1


def test_a_process_takes_over_from_one_that_was_killed(hub, served, place):
    hub.faults.append(Fault("stall", BIG, after=1_000_000))
    first = start_program(hub, place)
    wait_until(lambda: kept(place) == 1_000_000)
    second = start_program(hub, place)
    assert "another process" in second.stderr.readline()
    first.kill()
    first.communicate()
    assert second.communicate(timeout=30)[0] == f"{hub.commit(REPO)}\n"
    assert holds(place / "model", served)
    assert "bytes=1000000-" in [r.range for r in hub.log]


# --- the disk --------------------------------------------------------------------------------------------------------


def test_disk_full_in_the_middle(hub, served, place):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    process = start_program(hub, place, preexec_fn=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 74, errors
    assert errors.splitlines()[-1].startswith("org/model: cannot write")
    assert "Traceback" not in errors and "--weights-dir" in errors
    assert not (place / "model" / BIG).exists()
    fetch(place)
    assert holds(place / "model", served)


def test_not_enough_space_is_known_before(hub, place, monkeypatch):
    monkeypatch.setattr(weights_folder.shutil, "disk_usage", lambda path: SimpleNamespace(free=BIG_BYTES))
    with pytest.raises(OutputWriteError, match=r"3\d{6} bytes\) have to be fetched"):
        fetch(place)
    assert not hub.requests("/resolve/")
    monkeypatch.undo()


def test_places_that_cannot_be_written(hub, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for impossible in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/weights")):
        with pytest.raises(OutputWriteError, match=r"org/model: cannot write .*--weights-dir"):
            fetch(impossible)
    (tmp_path / "weights" / "model" / "config.json").mkdir(parents=True)
    with pytest.raises(OutputWriteError, match=r"config\.json"):
        fetch(tmp_path / "weights")


def test_complete_weights_on_a_read_only_disk_are_used(hub, place, monkeypatch):
    fetch(place)
    hub.log.clear()

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(weights_folder, "acquire_lock", refuse)
    fetch(place)
    os.utime(place / "model" / BIG)
    assert fetch(place).files, "the content decides where times were lost"
    assert hub.log == []
    (place / "model" / BIG).write_bytes(b"damaged")
    with pytest.raises(OutputWriteError, match="Read-only"):
        fetch(place)


@pytest.mark.parametrize("damage", ["flip", "shorten", "delete", "empty"])
def test_damage_on_disk_is_noticed_and_repaired(hub, served, place, damage):
    fetch(place)
    path = place / "model" / BIG
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes({"flip": b"\0" + data[1:], "shorten": data[:-1], "empty": b""}[damage])
    with pytest.raises(UnavailableError, match=rf"incomplete: 1 of 5 files are missing or damaged, first {BIG}"):
        fetch(place, offline=True)
    hub.log.clear()
    fetch(place)
    assert holds(place / "model", served)
    assert {r.path.rpartition("/")[2] for r in hub.log} == {BIG}


def test_a_touched_file_is_read_again_and_not_fetched(hub, place):
    fetch(place)
    os.utime(place / "model" / BIG)
    hub.log.clear()
    fetch(place, offline=True)
    fetch(place)
    assert hub.log == []
    record = json.loads((place / "model" / RECORD_NAME).read_text())
    assert record["verified"][BIG][1] == (place / "model" / BIG).stat().st_mtime_ns


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', '{"schema": 1, "repo": "org/model"}', "\xff"])
def test_a_damaged_record_means_checking_everything(hub, served, place, text):
    fetch(place)
    (place / "model" / RECORD_NAME).write_bytes(text.encode("latin-1"))
    hub.log.clear()
    fetch(place)
    assert holds(place / "model", served)
    assert not hub.requests("/resolve/")


# --- listings that lie -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *[
            "../evil",
            "a/../../evil",
            "/tmp/evil",
            "a//b",
            "a/./b",
            "..",
            "",
            "a\\b",
            "..\\evil",
            "C:evil",
            "C:/evil",
            "x\0y",
        ],
        *["//host/share", RECORD_NAME, f"{PARTIAL_DIR}/x"],
    ],
)
@pytest.mark.parametrize("sizes", [True, False])
def test_escaping_paths_are_refused(served, place, monkeypatch, hub, path, sizes):
    with FakeHub({REPO: served}, sizes=sizes) as evil:
        monkeypatch.setenv("HF_ENDPOINT", evil.url)
        evil.extra[REPO] = [{"type": "file", "path": path, "size": 4, "oid": hashlib.sha1(b"blob 4\0evil").hexdigest()}]
        for work in (fetch, lambda place, row: HuggingFaceDownloader(place).plan(row)):
            with pytest.raises(InvalidInputError, match="org/model: refusing the repository"):
                work(place, Weights(REPO, allow_patterns=("config.json",)))
        assert not evil.requests("/resolve/")
    assert not (place / "model").exists()


def test_links_out_of_the_folder_are_refused(hub, place, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (place / "model").mkdir(parents=True)
    (place / "model" / "voices").symlink_to(outside, target_is_directory=True)
    with pytest.raises(InvalidInputError, match=r"voices is a link out of .*remove the link"):
        fetch(place)
    assert not any(outside.iterdir()) and not hub.requests("/resolve/")


def test_linked_files_are_replaced_and_never_written_through(hub, served, place, tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes((served / BIG).read_bytes())
    bad.write_bytes(b"not the config")
    (place / "model").mkdir(parents=True)
    (place / "model" / BIG).symlink_to(good)
    (place / "model" / "config.json").symlink_to(bad)
    fetch(place)
    assert (place / "model" / BIG).is_symlink(), "right bytes may lie elsewhere"
    assert not (place / "model" / "config.json").is_symlink()
    assert bad.read_bytes() == b"not the config"
    assert holds(place / "model", served)


def test_a_link_in_place_of_the_unfinished_file_is_not_followed(hub, served, place, tmp_path):
    entry = next(e for e in hub.entries(REPO) if e["path"] == BIG)
    name = RemoteFile(BIG, entry["size"], entry["lfs"]["oid"]).partial_name
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (place / "model" / PARTIAL_DIR).mkdir(parents=True)
    (place / "model" / PARTIAL_DIR / name).symlink_to(victim)
    fetch(place)
    assert victim.read_bytes() == b"precious" and holds(place / "model", served)


@pytest.mark.parametrize(
    "entry", [{"size": 4}, {"oid": "zz", "size": 4}, {"oid": "0" * 40}, {"oid": "0" * 40, "size": "4"}]
)
def test_files_that_could_not_be_checked_are_refused(hub, place, entry):
    hub.extra[REPO] = [{"type": "file", "path": "x", "size": None, "oid": None} | entry]
    with pytest.raises(InvalidInputError, match="lists x without a size and a hash"):
        fetch(place)


# --- as a user runs it -----------------------------------------------------------------------------------------------


def script(tmp_path: Path, hub: FakeHub, *args: str, **env: str) -> subprocess.CompletedProcess:
    settings = {"PRETRAINED_WEIGHTS_DIR": str(tmp_path / "weights"), "DOWNLOAD_RETRY_SECONDS": "0.01"}
    env = {**settings, **hub.environment, **env}
    return run("tests/weights_script.py", "hello", "--device", "cpu", *args, cwd=tmp_path, **env)


def test_a_script_plans_fetches_and_then_asks_nothing(hub, served, place, tmp_path):
    plan = script(tmp_path, hub, "--dry-run", "--json")
    assert plan.returncode == 0, plan.stderr
    (weights,) = json.loads(plan.stdout)["weights"]
    assert weights["fetch_bytes"] == weights["total_bytes"] > BIG_BYTES and weights["free_bytes"] > 0
    assert {file["path"] for file in weights["files"]} == {entry["path"] for entry in hub.entries(REPO)}
    assert len(hub.log) == 1 and not place.exists()
    first = script(tmp_path, hub)
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith(".txt\n") and first.stdout.count("\n") == 1, "progress belongs on stderr"
    assert "downloading org/model" in first.stderr
    hub.log.clear()
    second = script(tmp_path, hub, "--quiet", "--offline")
    assert (second.returncode, second.stderr) == (0, "")
    assert hub.log == []


@pytest.mark.parametrize(
    ("args", "env", "fault", "code"),
    [
        (["--model", "../escape"], {}, None, 2),
        (["--revision", "v9"], {}, None, 66),
        (["--offline"], {}, None, 69),
        ([], {"HF_HUB_OFFLINE": "1"}, None, 69),
        (["--weights-dir", "/proc/weights"], {}, None, 74),
        ([], {}, Fault("status", "/resolve/", code=503, times=None), 75),
        (["--model", "org/gated"], {}, None, 77),
        (["--model", "org/gated"], {"HF_TOKEN": "hf_wrong"}, None, 77),
    ],
)
def test_exit_codes_of_a_script(hub, served, tmp_path, args, env, fault, code):
    hub.repos["org/gated"] = {"main": served}
    hub.gated = ("org/gated",)
    hub.faults += [fault] if fault else []
    done = script(tmp_path, hub, *args, **env)
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_a_script_goes_on_after_sigterm(hub, served, place, tmp_path):
    hub.faults.append(Fault("stall", BIG, after=2_000_000))
    common = ("hello", "--device", "cpu", "--weights-dir", place)
    process = start("tests/weights_script.py", *common, cwd=tmp_path, **hub.environment)
    wait_until(lambda: kept(place) == 2_000_000)
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143 and "Traceback" not in errors
    assert script(tmp_path, hub).returncode == 0
    assert holds(place / "model", served)
    assert "bytes=2000000-" in [r.range for r in hub.log]
