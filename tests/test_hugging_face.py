"""Downloads against a Hub on the loopback interface: right bytes, or the right failure and nothing that looks complete."""

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
from fake_hub import FakeHub, Fault
from processes import ROOT, environment

from shared_utils import hub_client, weights_folder
from shared_utils.console import Console
from shared_utils.errors import (
    AccessError,
    ConfigError,
    InvalidInputError,
    MissingInputError,
    OutputWriteError,
    TemporaryError,
    UnavailableError,
    UsageError,
)
from shared_utils.hugging_face import HuggingFaceDownloader, Weights
from shared_utils.verify import PARTIAL_DIR, RECORD_NAME, RemoteFile, content_digest, select
from shared_utils.weights_folder import weights_places

REPO = "org/model"
BIG = "model.safetensors"
BIG_BYTES = 3_000_000
ROW = Weights(REPO)


@pytest.fixture
def served(tmp_path) -> Path:
    """The folder the Hub serves: a large file, small ones, an empty one, names that need quoting."""
    folder = tmp_path / "served"
    for name, data in {
        BIG: random.Random(0).randbytes(BIG_BYTES),
        "config.json": b'{"hidden_size": 8}\n',
        "voices/af heart#1.pt": random.Random(1).randbytes(4000),
        "voices/bm_george.pt": random.Random(2).randbytes(4000),
        "tokenizer/empty.txt": b"",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def hub(served, monkeypatch):
    with FakeHub({REPO: served}) as hub:
        for name in [name for name in os.environ if name.startswith("HF_")]:
            monkeypatch.delenv(name)
        for name, value in hub.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DOWNLOAD_RETRY_SECONDS", "0.01")
        yield hub


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "weights"


def fetch(place: Path, row: Weights = ROW, **options):
    return HuggingFaceDownloader(place, console=Console(quiet=True), **options).fetch(row)


def holds(folder: Path, served: Path) -> bool:
    """Whether `folder` has the served files and nothing else but the record."""

    def content(root: Path) -> dict[str, bytes]:
        files = (path for path in root.rglob("*") if path.is_file() and path.name != RECORD_NAME)
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    return content(folder) == content(served)


def kept(place: Path) -> int:
    """Bytes of the unfinished download of the large file."""
    return max((path.stat().st_size for path in (place / "model" / PARTIAL_DIR).glob("*")), default=0)


# --- the plain case ---------------------------------------------------------------------------------------------------


def test_fetches_once_and_then_makes_no_request(hub, served, place):
    first = fetch(place)
    assert holds(place / "model", served)
    assert first.path == place / "model" and first.source == "hub"
    assert first.commit == hub.commit(REPO)
    assert first.bytes == sum(path.stat().st_size for path in served.rglob("*") if path.is_file())
    assert set(first.files) == {p.relative_to(served).as_posix() for p in served.rglob("*") if p.is_file()}
    assert [r.path for r in hub.requests("/api/")] == [f"/api/models/{REPO}/revision/main"], "one listing is enough"
    hub.log.clear()
    assert fetch(place) == first
    assert fetch(place, Weights(REPO, first.commit)).commit == first.commit
    assert hub.log == []


def test_main_stays_at_the_recorded_commit(hub, served, place):
    first = fetch(place)
    (served / "config.json").write_text("{}")
    assert fetch(place).commit == first.commit
    assert (place / "model" / "config.json").read_text() != "{}"


def test_patterns_choose_files_and_later_more_of_the_same_commit(hub, served, place):
    small = fetch(place, Weights(REPO, allow_patterns=("*.json", "voices/")))
    assert small.files == ("config.json", "voices/af heart#1.pt", "voices/bm_george.pt")
    assert not (place / "model" / BIG).exists()
    hub.log.clear()
    more = fetch(place, Weights(REPO, allow_patterns=("config.json", BIG)))
    assert more.files == ("config.json", BIG)
    assert {r.path.rpartition("/")[2] for r in hub.log} == {BIG}, "neither a listing nor what was here"


def test_a_named_file_has_to_exist(hub, place):
    with pytest.raises(MissingInputError, match=r"org/model has no file vae\.safetensors"):
        fetch(place, Weights(REPO, allow_patterns=("*.json", "vae.safetensors")))
    with pytest.raises(MissingInputError, match=r"\*\.onnx"):
        fetch(place, Weights(REPO, allow_patterns=("*.onnx",)))
    assert not (place / "model").exists()


def test_another_revision_replaces_files_and_removes_stale_ones(hub, served, place, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.json").write_bytes((served / "config.json").read_bytes())
    (new / "model-00001-of-00001.safetensors").write_bytes(b"shard")
    hub.repos[REPO]["v2/beta"] = new
    fetch(place)
    (place / "model" / "mine.txt").write_text("the user's own")
    hub.log.clear()
    assert fetch(place, Weights(REPO, "v2/beta")).commit == hub.commit(REPO, "v2/beta")
    assert not hub.requests("config.json"), "the same bytes are not fetched again"
    assert (place / "model" / "mine.txt").exists() and not (place / "model" / BIG).exists()
    (place / "model" / "mine.txt").unlink()
    assert not any((place / "model" / "voices").iterdir())
    assert (place / "model" / "model-00001-of-00001.safetensors").read_bytes() == b"shard"
    fetch(place)
    assert (place / "model" / BIG).read_bytes() == (served / BIG).read_bytes()


def test_same_name_of_another_owner_gets_its_own_folder(hub, served, place, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("other")
    hub.repos["else/model"] = {"main": other}
    assert fetch(place).path == place / "model"
    theirs = fetch(place, Weights("else/model"))
    assert theirs.path == place / "else--model" and holds(theirs.path, other)
    hub.log.clear()
    assert fetch(place).path == place / "model"
    assert fetch(place, Weights("else/model")).path == place / "else--model"
    assert hub.log == []


def test_files_put_there_by_hand_are_checked_and_taken(hub, served, place):
    (place / "model").mkdir(parents=True)
    (place / "model" / BIG).write_bytes((served / BIG).read_bytes())
    (place / "model" / "config.json").write_text("{}")
    fetch(place)
    assert holds(place / "model", served)
    assert not hub.requests(BIG) and hub.requests("config.json")


def test_files_of_the_hub_cache_are_taken(hub, served, place, tmp_path, monkeypatch):
    from huggingface_hub import constants, snapshot_download

    cache = tmp_path / "hub"
    snapshot_download(REPO, cache_dir=cache, endpoint=hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    hub.log.clear()
    fetch(place)
    assert holds(place / "model", served)
    assert not hub.requests("/resolve/")


def test_a_listing_without_sizes_is_completed_from_the_paged_tree(served, place, monkeypatch, hub):
    with FakeHub({REPO: served}, sizes=False, page=2) as mirror:
        monkeypatch.setenv("HF_ENDPOINT", mirror.url + "/")
        fetch(place)
        assert len(mirror.requests("/tree/")) == 3
    assert holds(place / "model", served)


# --- a local folder, names, places -----------------------------------------------------------------------------------


def test_a_local_folder_is_used_as_it_is(hub, served, place):
    row = ROW.choose(str(served))
    snapshot = fetch(place, row)
    assert (snapshot.path, snapshot.commit, snapshot.source) == (served, None, "local")
    assert BIG in snapshot.files and snapshot.bytes > BIG_BYTES
    plan = HuggingFaceDownloader(place).plan(row)
    assert plan.fetch_bytes == 0 and plan.commit is None
    assert hub.log == [] and not place.exists()


@pytest.mark.parametrize(
    "name",
    [
        *[
            "",
            "model",
            "../outside",
            "a/b/c",
            "org/../x",
            "/etc/nothing",
            "org\\model",
            "org/mo del",
            "org/-x",
            "org/.x",
        ],
        *["org/x--y", "org/model.git", "./missing", "~/missing", "http://x/y", "org/model?x", "org/\x00"],
    ],
)
def test_unsafe_names_are_usage_errors(hub, place, name):
    for work in (fetch, lambda place, row: HuggingFaceDownloader(place).plan(row)):
        with pytest.raises(UsageError, match="OWNER/NAME"):
            work(place, Weights(name))
    assert hub.log == [] and not place.exists()


@pytest.mark.parametrize("revision", ["", "a b", "../main", "é", "a\nb"])
def test_unsafe_revisions_are_usage_errors(hub, place, revision):
    with pytest.raises(UsageError, match="revision"):
        fetch(place, Weights(REPO, revision))
    assert hub.log == []


def test_choose_applies_model_and_revision():
    row = Weights(REPO, "v1", ("*.json",), licence="MIT", size_gb=2.0, gated=True)
    assert row.choose() == row
    assert row.choose(revision="v2").revision == "v2" and row.choose(revision="v2").licence == "MIT"
    other = row.choose("else/model")
    assert other == Weights("else/model", "main", ("*.json",))


def test_places(monkeypatch, tmp_path):
    monkeypatch.delenv("PRETRAINED_WEIGHTS_DIR", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=str(tmp_path / "script.py")))
    if sys.platform == "linux":
        assert weights_places() == (tmp_path / "pretrained_weights", tmp_path / "cache" / "pretrained_weights")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert weights_places() == (tmp_path / "pretrained_weights", tmp_path / "home" / "pretrained_weights")
    monkeypatch.setenv("PRETRAINED_WEIGHTS_DIR", str(tmp_path / "env"))
    assert weights_places() == (tmp_path / "env",)
    assert weights_places(tmp_path / "flag") == (tmp_path / "flag",)


def test_a_script_in_a_read_only_folder_uses_the_cache_folder(hub, served, tmp_path, monkeypatch):
    monkeypatch.delenv("PRETRAINED_WEIGHTS_DIR", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    # /proc takes no folders, not even from root.
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__="/proc/script.py"))
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith("/proc"))
    assert fetch(None).path == tmp_path / "home" / "pretrained_weights" / "model"


def test_imports_nothing_heavy():
    code = "import sys, shared_utils.hugging_face as m; print({'numpy', 'torch', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


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
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/weights")):
        with pytest.raises(OutputWriteError, match=r"org/model: cannot write .*--weights-dir"):
            fetch(place)
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


# --- offline ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flag", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline(hub, served, place, monkeypatch, how):
    def offline(row: Weights = ROW):
        if how != "flag":
            monkeypatch.setenv(how, "1")
        try:
            return fetch(place, row, offline=how == "flag")
        finally:
            monkeypatch.delenv(how, raising=False)

    with pytest.raises(UnavailableError, match=r"org/model \(main\) is needed .*there is no"):
        offline()
    assert not place.exists()
    fetch(place, Weights(REPO, allow_patterns=("*.json",)))
    hub.log.clear()
    with pytest.raises(UnavailableError, match="incomplete: 4 of 5"):
        offline()
    assert offline(Weights(REPO, allow_patterns=("*.json",))).files == ("config.json",)
    with pytest.raises(UnavailableError, match="holds revision main of org/model"):
        offline(Weights(REPO, "v2"))
    assert hub.log == []
    fetch(place)
    hub.log.clear()
    assert offline().commit == hub.commit(REPO)
    (place / "model" / RECORD_NAME).unlink()
    with pytest.raises(UnavailableError, match="no record of a download"):
        offline()
    assert hub.log == []


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


# --- the plan --------------------------------------------------------------------------------------------------------


def test_plan_is_one_request_and_writes_nothing(hub, served, place):
    downloader = HuggingFaceDownloader(place)
    plan = downloader.plan(ROW)
    assert len(hub.log) == 1 and not place.exists()
    assert plan.commit == hub.commit(REPO) and plan.folder == place / "model"
    assert plan.total_bytes == plan.fetch_bytes == sum(e["size"] for e in hub.entries(REPO))
    assert {f.path: f.size for f in plan.files} == {e["path"]: e["size"] for e in hub.entries(REPO)}
    assert plan.free_bytes > 0
    text = str(plan)
    assert BIG in text and "to fetch" in text and "3,000,000 bytes" in text


def test_plan_counts_what_is_here(hub, place):
    hub.faults += [Fault("reset", BIG, after=2_000_000), Fault("status", BIG, code=503, times=None)]
    with pytest.raises(TemporaryError):
        fetch(place)
    hub.log.clear()
    plan = HuggingFaceDownloader(place, offline=True).plan(ROW)
    assert plan.fetch_bytes < 1_100_000
    assert {f.path: f.present for f in plan.files}[BIG] == 2_000_000
    hub.faults.clear()
    fetch(place)
    hub.log.clear()
    plan = HuggingFaceDownloader(place).plan(ROW)
    assert plan.fetch_bytes == 0 and "present" in str(plan)
    assert hub.log == []


def test_plan_offline_without_a_record(hub, place):
    with pytest.raises(UnavailableError, match="no request may be made"):
        HuggingFaceDownloader(place, offline=True).plan(ROW)
    with pytest.raises(MissingInputError, match="no revision v9"):
        HuggingFaceDownloader(place).plan(Weights(REPO, "v9"))


# --- messages --------------------------------------------------------------------------------------------------------


def test_progress_counts_all_files_once(hub, served, place, capsys):
    hub.faults += [Fault("reset", BIG, after=2_000_000), Fault("no_range", BIG), Fault("corrupt", "config.json")]
    HuggingFaceDownloader(place, console=Console()).fetch(ROW)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "downloading org/model: 100 %" in shown.err
    assert "trying again" in shown.err and "config.json came with a hash" in shown.err
    fetch(place)
    (place / "model" / BIG).unlink()
    fetch(place)
    assert capsys.readouterr().err == "", "quiet says nothing"


# --- pieces ----------------------------------------------------------------------------------------------------------


def test_digests_are_those_of_git_and_sha256sum(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"hello\n")
    # git hash-object; sha256sum
    assert content_digest(path, 40) == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert content_digest(path, 64) == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"


def test_select_follows_the_rules_of_snapshot_download():
    from huggingface_hub.utils import filter_repo_objects

    paths = ["a.json", "b/c.json", "b/d.bin", "b/e/f.txt", "g.bin", "b.json/x"]
    files = {path: RemoteFile(path, 1, "0" * 40) for path in paths}
    for patterns in [("*.json",), ("b/*",), ("b/",), ("*.bin", "a.json"), ("b/e/*.txt",), ("[ag].*",), ("?.json",), ()]:
        expected = sorted(filter_repo_objects(paths, allow_patterns=list(patterns) or None))
        assert [file.path for file in select(files, patterns, REPO)] == expected, patterns


def test_every_failure_is_shown_as_one_line():
    assert [
        k.exit_code for k in (MissingInputError, UnavailableError, OutputWriteError, TemporaryError, AccessError)
    ] == [*(66, 69, 74, 75, 77)]
