"""Weights are fetched once, checked, and used without any request; from where, and to where."""
# ruff: noqa: F401, F811 - a fixture is imported to be named as an argument

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from downloads import BIG, BIG_BYTES, REPO, ROW, fetch, holds, hub, kept, place, served
from fake_hub import FakeHub, Fault
from processes import ROOT

from shared_utils.console import Console
from shared_utils.errors import (
    AccessError,
    MissingInputError,
    OutputWriteError,
    TemporaryError,
    UnavailableError,
    UsageError,
)
from shared_utils.hugging_face import HuggingFaceDownloader, Weights
from shared_utils.verify import PARTIAL_DIR, RECORD_NAME, RemoteFile, content_digest, select
from shared_utils.weights_folder import weights_places

# --- the plain case --------------------------------------------------------------------------------------------------


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


def test_other_patterns_leave_an_unfinished_download_alone(hub, served, place):
    hub.faults += [Fault("reset", BIG, after=2_000_000), Fault("status", BIG, code=503, times=None)]
    with pytest.raises(TemporaryError):
        fetch(place)
    fetch(place, Weights(REPO, allow_patterns=("config.json",)))
    assert kept(place) == 2_000_000
    hub.faults.clear()
    fetch(place)
    assert "bytes=2000000-" in [r.range for r in hub.log]
    assert holds(place / "model", served) and not (place / "model" / PARTIAL_DIR).exists()


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
