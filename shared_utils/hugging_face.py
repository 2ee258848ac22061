"""Model weights from the Hugging Face Hub: fetched once, every byte checked, then used without any request.

    weights = Weights("Tongyi-MAI/Z-Image-Turbo", allow_patterns=("*.json", "*.safetensors", "tokenizer/*"))
    snapshot = HuggingFaceDownloader().fetch(weights)
    pipeline = ZImagePipeline.from_pretrained(snapshot.path, local_files_only=True)

The files lie in `pretrained_weights/<name>/`, with `.weights.json` (see `FolderRecord`) saying which commit they are.
"""

import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from shared_utils import weights_folder as local
from shared_utils.console import Console
from shared_utils.device import gigabytes
from shared_utils.errors import MissingInputError, OutputWriteError, TemporaryError, UnavailableError, UsageError
from shared_utils.verify import PARTIAL_DIR, FolderRecord, RemoteFile, matches, select, target_path

if TYPE_CHECKING:
    from shared_utils.hub_client import HubClient

WORKERS = 4  # files in flight; one connection seldom fills a fast line
FETCHES = 2  # of one file, while its content comes out wrong
JOIN_SECONDS = 1.0  # for all threads together, after a failure or a signal
SAVE_BYTES = 1 << 26  # a finished file of this size is worth writing the record for at once

# The Hub's own rule for names (huggingface_hub.utils.validate_repo_id), with an owner.
_NAME = r"[A-Za-z0-9_](?:[\w.-]{0,94}\w)?"
_REPO = re.compile(rf"(?!.*(?:--|\.\.|\.git$)){_NAME}/{_NAME}", re.ASCII)


@dataclass(frozen=True)
class Weights:
    """One row of a script's weight table: which files of which repository, and what a user should know before.

    `allow_patterns` are globs over whole paths (`*` crosses `/`), none meaning all files; a plain name has to exist.
    `size_gb` and `memory_gb` are in units of 10^9 bytes. `url` is the page to read, by default that of the repository.
    """

    repo: str
    revision: str = "main"
    allow_patterns: tuple[str, ...] = ()
    licence: str = ""
    size_gb: float | None = None
    memory_gb: float | None = None
    note: str = ""
    gated: bool = False
    url: str = ""

    def choose(self, model: str | None = None, revision: str | None = None) -> "Weights":
        """This row with `--model` and `--revision` applied.

        Another repository keeps only the patterns: its layout is the same, its licence and its sizes are not known.
        """
        if model is None or model == self.repo:
            return replace(self, revision=revision or self.revision)
        return Weights(model, revision or "main", self.allow_patterns)


@dataclass(frozen=True)
class Snapshot:
    """Weights ready to be loaded from `path`. `files` are paths below it, `bytes` their sizes together.

    `source` is `hub`, or `local` for a folder the user named; that one is not checked, and has no commit.
    """

    path: Path
    repo: str
    revision: str
    commit: str | None
    files: tuple[str, ...]
    bytes: int
    source: str = "hub"


@dataclass(frozen=True)
class PlannedFile:
    """A file to have: its size, and the bytes of it that are here (all of them, or an unfinished download)."""

    path: str
    size: int
    present: int


@dataclass(frozen=True)
class DownloadPlan:
    """What `fetch` would do. Sizes in bytes; `commit` is None for a local folder."""

    repo: str
    revision: str
    commit: str | None
    folder: Path
    files: tuple[PlannedFile, ...]
    free_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def fetch_bytes(self) -> int:
        return sum(file.size - file.present for file in self.files)

    def __str__(self) -> str:
        """The sums, then one line per file."""
        at = f"{self.revision} = {self.commit}" if self.commit else "local"
        lines = [
            f"{self.repo} ({at}) in {self.folder}: {len(self.files)} files, {gigabytes(self.total_bytes)},"
            f" {gigabytes(self.fetch_bytes)} to fetch, {gigabytes(self.free_bytes)} free"
        ]
        for file in self.files:
            state = "present" if file.present == file.size else f"{file.present:,} here" if file.present else "to fetch"
            lines.append(f"  {file.size:>16,} bytes  {state}  {file.path}")
        return "\n".join(lines)


class HuggingFaceDownloader:
    """Keeps verified weights in one folder per repository.

    weights_dir: where; else PRETRAINED_WEIGHTS_DIR, else beside the script, see `weights_places`.
    offline: make no request, as HF_HUB_OFFLINE=1 does.
    console: takes progress and messages.
    token: sent instead of the user's own (HF_TOKEN, or the stored login).

    HF_ENDPOINT, HF_HOME and HF_HUB_DOWNLOAD_TIMEOUT apply (`timeout` overrides the last, in seconds), and
    DOWNLOAD_RETRY_SECONDS, the pause before the second attempt.
    """

    def __init__(
        self,
        weights_dir: Path | None = None,
        *,
        offline: bool = False,
        console: Console | None = None,
        token: str | None = None,
        timeout: float | None = None,
    ) -> None:
        self.places = local.weights_places(weights_dir)
        self.offline = offline or _offline_by_environment()
        self.console = console or Console()
        self.token = token
        self.timeout = timeout

    def fetch(self, weights: Weights) -> Snapshot:
        """The weights, complete and checked; whatever is missing or damaged is fetched.

        Makes no request if the folder was complete at an earlier run for the same revision (also for `main`: delete the
        folder or name another revision to get newer files). An existing folder as `weights.repo` is used as it is.

        Raises UsageError (neither folder nor OWNER/NAME), AccessError (gated, private, bad token), MissingInputError
        (no such repository, revision or file), InvalidInputError (a listing or a link that leads out of the folder),
        UnavailableError (offline and not complete), OutputWriteError (disk), TemporaryError (network, wrong bytes).
        """
        if (folder := _local_folder(weights)) is not None:
            return _local_snapshot(folder, weights)
        _check_request(weights)
        try:
            # Without the lock, so that complete weights on a read-only disk serve any number of processes.
            for place in self.places:
                if snapshot := self._complete(place, weights, rehash=self.offline):
                    return snapshot
            if self.offline:
                raise UnavailableError(self._offline_message(weights))
            return self._fetch(local.writable_place(self.places), weights)
        except OSError as error:
            where = error.filename2 or error.filename or self.places[0]
            raise OutputWriteError(
                f"{weights.repo}: cannot write {where}: {error.strerror or error}; free some space, or name another"
                " place with --weights-dir"
            ) from error

    def plan(self, weights: Weights) -> DownloadPlan:
        """What `fetch` would fetch, for `--dry-run`: at most one request, nothing written, nothing hashed.

        Raises what `fetch` raises, but for OutputWriteError.
        """
        if (folder := _local_folder(weights)) is not None:
            files = tuple(PlannedFile(path, size, size) for path, size in _sizes(folder).items())
            return DownloadPlan(weights.repo, weights.revision, None, folder, files, local.free_bytes(folder))
        _check_request(weights)
        folders = [local.repository_folder(place, weights.repo) for place in self.places]
        known = [f for f in folders if (r := FolderRecord.load(f)) and r.stands_for(weights.repo, weights.revision)]
        if known:
            folder = known[0]
            record = FolderRecord.load(folder)
        elif self.offline:
            raise UnavailableError(self._offline_message(weights))
        else:
            folder = local.repository_folder(local.writable_place(self.places), weights.repo)
            record = self._resolve(weights)
        files = tuple(
            PlannedFile(file.path, file.size, local.present_bytes(folder, file))
            for file in select(record.files, weights.allow_patterns, weights.repo)
        )
        return DownloadPlan(weights.repo, weights.revision, record.commit, folder, files, local.free_bytes(folder))

    def _client(self, weights: Weights) -> "HubClient":
        from shared_utils.hub_client import HubClient

        return HubClient(weights.repo, page=weights.url, token=self.token, say=self.console.info, timeout=self.timeout)

    def _resolve(self, weights: Weights) -> FolderRecord:
        listing = self._client(weights).listing(weights.revision)
        return FolderRecord(weights.repo, weights.revision, listing.commit, listing.files)

    def _complete(self, place: Path, weights: Weights, rehash: bool) -> Snapshot | None:
        """The snapshot if every file is here and known to be right; `rehash` reads those touched since the last check."""
        folder = local.repository_folder(place, weights.repo)
        record = FolderRecord.load(folder)
        if record is None or not record.stands_for(weights.repo, weights.revision):
            return None
        files = select(record.files, weights.allow_patterns, weights.repo)
        for file in files:
            path = target_path(folder, file, weights.repo)
            if not record.is_verified(path, file) and not (rehash and matches(path, file)):
                return None
        return _snapshot(folder, weights, record.commit, files)

    def _offline_message(self, weights: Weights) -> str:
        folder = local.repository_folder(self.places[0], weights.repo)
        record = FolderRecord.load(folder)
        if record is None:
            state = f"{folder} has no record of a download" if folder.is_dir() else f"there is no {folder}"
        elif not record.stands_for(weights.repo, weights.revision):
            state = f"{folder} holds revision {record.revision} of {record.repo}"
        else:
            files = select(record.files, weights.allow_patterns, weights.repo)
            bad = [file.path for file in files if not record.is_verified(folder / file.path, file)]
            state = f"{folder} is incomplete: {len(bad)} of {len(files)} files are missing or damaged, first {bad[0]}"
        return (
            f"{weights.repo} ({weights.revision}) is needed and no request may be made (--offline or HF_HUB_OFFLINE):"
            f" {state}; run once online, or name a local folder with --model"
        )

    def _fetch(self, place: Path, weights: Weights) -> Snapshot:
        try:
            lock = local.acquire_lock(place, weights.repo, self.console)
        except OSError:
            # A read-only disk: files whose times changed on the way there are read again at each start.
            if snapshot := self._complete(place, weights, rehash=True):
                return snapshot
            raise
        try:
            return self._fetch_locked(place, weights)
        finally:
            lock.release()

    def _fetch_locked(self, place: Path, weights: Weights) -> Snapshot:
        # Another process may have finished the download while this one waited.
        if snapshot := self._complete(place, weights, rehash=False):
            return snapshot
        folder = local.repository_folder(place, weights.repo)
        record = FolderRecord.load(folder)
        if record and record.stands_for(weights.repo, weights.revision):
            try:
                # An interrupted download goes on with its commit, wherever `main` is by now.
                return self._fill(folder, record, weights)
            except MissingInputError:
                if weights.revision == record.commit:
                    raise
                # After a forced push the recorded commit is gone from the Hub.
                self.console.warning(f"{weights.repo}: {record.commit} is gone, asking for {weights.revision} again")
        fresh = self._resolve(weights)
        if record and record.repo == fresh.repo:
            fresh.verified = {path: verdict for path, verdict in record.verified.items() if path in fresh.files}
        return self._fill(folder, fresh, weights, stale=record)

    def _fill(
        self, folder: Path, record: FolderRecord, weights: Weights, stale: FolderRecord | None = None
    ) -> Snapshot:
        """Bring `folder` to what `record` lists. Files of `stale`, its record so far, that are gone since are deleted."""
        files = select(record.files, weights.allow_patterns, weights.repo)
        for file in files:  # refused before anything is written
            target_path(folder, file, weights.repo)
        (folder / PARTIAL_DIR).mkdir(parents=True, exist_ok=True)
        if stale and stale.repo == record.repo:
            local.remove_stale(folder, stale, record)
        record.save(folder)
        try:
            missing = local.missing_files(folder, record, files, self.console)
            local.check_space(folder, missing, weights.repo)
            if missing:
                self._download(folder, record, missing, weights)
        finally:
            record.save(folder)
        local.clear_partials(folder, record)
        return _snapshot(folder, weights, record.commit, files)

    def _download(self, folder: Path, record: FolderRecord, missing: list[RemoteFile], weights: Weights) -> None:
        """Fetch `missing` with a few threads; the first failure ends them all."""
        client = self._client(weights)
        waiting = deque(sorted(missing, key=lambda file: -file.size))
        results: SimpleQueue[tuple[RemoteFile, BaseException | None]] = SimpleQueue()
        total = sum(file.size - local.partial_bytes(folder, file) for file in missing)
        lock = threading.Lock()

        def count(added: int) -> None:
            with lock:
                progress.advance(added)

        def work() -> None:
            while not client.stopped.is_set():
                try:
                    file = waiting.popleft()
                except IndexError:
                    return
                try:
                    _fetch_file(client, folder, record, file, count)
                    results.put((file, None))
                except BaseException as error:  # carried over to the thread that waits
                    results.put((file, error))

        # Daemons: a thread that sits in a stalled read must not keep an interrupted program alive.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(WORKERS, len(missing)))]
        label = f"downloading {record.repo}"
        self.console.info(f"{label} at {record.commit[:12]}: {len(missing)} files, {gigabytes(total)} into {folder}")
        with self.console.progress(total, label, unit="B", scale=True) as progress:
            try:
                for thread in threads:
                    thread.start()
                for _ in missing:
                    file, error = _next(results)
                    if error is not None:
                        raise error
                    record.mark(folder / file.path, file)
                    if file.size >= SAVE_BYTES:
                        record.save(folder)
            finally:
                client.stopped.set()
                deadline = time.monotonic() + JOIN_SECONDS
                for thread in threads:
                    thread.join(max(0.0, deadline - time.monotonic()))


def _offline_by_environment() -> bool:
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in {"1", "ON", "YES", "TRUE"}


def _local_folder(weights: Weights) -> Path | None:
    folder = Path(weights.repo).expanduser()
    return folder if weights.repo and os.path.isdir(folder) else None  # noqa: PTH112 - takes any text


def _sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of each file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _local_snapshot(folder: Path, weights: Weights) -> Snapshot:
    sizes = _sizes(folder)
    return Snapshot(folder, weights.repo, weights.revision, None, tuple(sizes), sum(sizes.values()), source="local")


def _snapshot(folder: Path, weights: Weights, commit: str, files: list[RemoteFile]) -> Snapshot:
    names = tuple(file.path for file in files)
    return Snapshot(folder, weights.repo, weights.revision, commit, names, sum(file.size for file in files))


def _check_request(weights: Weights) -> None:
    if not _REPO.fullmatch(weights.repo):
        a_file = os.path.isfile(weights.repo)  # noqa: PTH113 - takes any text
        what = "is a file, not a folder," if a_file else "is no existing folder"
        raise UsageError(f"model {weights.repo!r} {what} and no repository of the form OWNER/NAME")
    if not re.fullmatch(r"(?!.*\.\.)[!-~]+", weights.revision):
        raise UsageError(f"revision {weights.revision!r} is not the name of a branch, a tag or a commit")


def _fetch_file(
    client: "HubClient",
    folder: Path,
    record: FolderRecord,
    file: RemoteFile,
    count: Callable[[int], None],
) -> None:
    """Download, check and put in place one file. Raises TemporaryError if its content comes out wrong twice."""
    from shared_utils.hub_client import WrongContent

    partial = folder / PARTIAL_DIR / file.partial_name
    _copy_from_cache(record, file, partial, count)
    for _ in range(FETCHES):
        try:
            client.download(record.commit, file, partial, count)
            wrong = None if matches(partial, file, client.stopped.is_set) else "a hash that is not the listed one"
        except WrongContent as error:
            wrong = str(error)
        if not wrong:
            target = target_path(folder, file, record.repo)
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("rb+") as done:
                os.fsync(done.fileno())
            partial.replace(target)
            return
        count(-partial.stat().st_size)
        partial.unlink()
        client.say(f"{record.repo}: {file.path} came with {wrong}")
    raise TemporaryError(
        f"{record.repo}: {file.path} came {FETCHES} times with {wrong} from {client.endpoint}; nothing of it is kept, run"
        " it again later"
    )


def _copy_from_cache(record: FolderRecord, file: RemoteFile, partial: Path, count: Callable[[int], None]) -> None:
    """Take the file from the user's Hub cache (HF_HUB_CACHE, HF_HOME) if another program put it there."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(record.repo, file.path, revision=record.commit)
    if isinstance(cached, str) and not partial.exists() and Path(cached).stat().st_size == file.size:
        shutil.copyfile(cached, partial)
        count(file.size)


def _next(results: "SimpleQueue") -> tuple[RemoteFile, BaseException | None]:
    """Wait in short steps: between them the main thread gets its signals on every platform."""
    while True:
        try:
            return results.get(timeout=0.2)
        except Empty:
            continue
