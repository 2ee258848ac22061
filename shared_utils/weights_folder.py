"""Where weights lie on this machine: the places to look, one folder per repository, its lock, and what it still lacks."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shared_utils.console import Console
from shared_utils.device import gigabytes
from shared_utils.errors import OutputWriteError
from shared_utils.verify import PARTIAL_DIR, FolderRecord, RemoteFile, matches, target_path

if TYPE_CHECKING:
    from filelock import BaseFileLock

SAY_CHECKING = 10**9  # bytes that take noticeable time to hash


def weights_places(weights_dir: Path | None = None) -> tuple[Path, ...]:
    """Folders that may hold weights, the preferred one first.

    `weights_dir`, else PRETRAINED_WEIGHTS_DIR, else both `pretrained_weights/` beside the program that runs and, for one
    in a folder that cannot be written, the user's cache folder (HF_HOME if it is set).
    """
    chosen = weights_dir or os.environ.get("PRETRAINED_WEIGHTS_DIR")
    if chosen:
        return (Path(chosen).expanduser().absolute(),)
    program = getattr(sys.modules["__main__"], "__file__", None)
    beside = Path(program).resolve().parent if program else Path.cwd()
    if home := os.environ.get("HF_HOME"):
        cache = Path(home).expanduser().absolute()
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (beside / "pretrained_weights", cache / "pretrained_weights")


def writable_place(places: tuple[Path, ...]) -> Path:
    """The first place that can be written, or made; else the first, whose error says what is wrong."""
    return next((place for place in places if os.access(_existing(place), os.W_OK)), places[0])


def repository_folder(place: Path, repo: str) -> Path:
    """`<name>` in `place`, or `<owner>--<name>` where `<name>` was taken by another owner's repository."""
    owner, name = repo.split("/")
    full = place / f"{owner}--{name}"
    for folder in (full, place / name):
        record = FolderRecord.load(folder)
        if record and record.repo == repo:
            return folder
    return full if FolderRecord.load(place / name) else place / name


def acquire_lock(place: Path, repo: str, console: Console) -> "BaseFileLock":
    """The lock for all folders of this name. Waits for the process that has it; the system frees it when that one dies.

    Raises OSError if `place` cannot be written.
    """
    from filelock import FileLock, Timeout

    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / f".{repo.split('/')[1]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.info(f"{repo}: another process is downloading into {place}; waiting for it")
        lock.acquire()
    return lock


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that `folder` is, or would be, on."""
    return shutil.disk_usage(_existing(folder)).free


def check_space(folder: Path, missing: list[RemoteFile], repo: str) -> None:
    """Raises OutputWriteError if `missing` does not fit on the disk."""
    needed = sum(file.size - partial_bytes(folder, file) for file in missing)
    free = free_bytes(folder)
    if needed > free:
        raise OutputWriteError(
            f"{repo}: {gigabytes(needed)} ({needed} bytes) have to be fetched into {folder}, and {gigabytes(free)} are"
            " free there; free some space, or name another place with --weights-dir"
        )


def partial_bytes(folder: Path, file: RemoteFile) -> int:
    """Bytes of an unfinished download of `file`."""
    partial = folder / PARTIAL_DIR / file.partial_name
    return partial.stat().st_size if partial.is_file() else 0


def present_bytes(folder: Path, file: RemoteFile) -> int:
    """Bytes of `file` that need not be fetched, judged by sizes alone."""
    path = folder / file.path
    if path.is_file() and path.stat().st_size == file.size:
        return file.size
    return min(partial_bytes(folder, file), file.size)


def missing_files(folder: Path, record: FolderRecord, files: list[RemoteFile], console: Console) -> list[RemoteFile]:
    """Those of `files` that are not in `folder` with the right content; `record` learns of the right ones."""
    unchecked = [file for file in files if not record.is_verified(folder / file.path, file)]
    to_read = sum(file.size for file in unchecked if (folder / file.path).is_file())
    if to_read >= SAY_CHECKING:
        console.info(f"{record.repo}: checking {gigabytes(to_read)} in {folder}")
    missing = []
    for file in unchecked:
        path = folder / file.path
        if matches(path, file):
            record.mark(path, file)
            continue
        if path.exists():
            console.warning(f"{path} is not what {record.repo} holds at {record.commit[:12]}; fetching it again")
        missing.append(file)
    return missing


def clear_partials(folder: Path, record: FolderRecord) -> None:
    """Delete unfinished downloads of other commits. Those of this one may be wanted by a script with other patterns."""
    wanted = {file.partial_name for file in record.files.values()}
    partials = folder / PARTIAL_DIR
    for partial in partials.iterdir():
        if partial.name not in wanted:
            partial.unlink()
    if not any(partials.iterdir()):
        partials.rmdir()


def remove_stale(folder: Path, before: FolderRecord, now: FolderRecord) -> None:
    """Delete what an earlier revision had and this one has not: loaders pick files by name. A user's own files stay."""
    for path in before.verified.keys() - now.files.keys():
        target_path(folder, RemoteFile(path, 0, ""), now.repo).unlink(missing_ok=True)


def _existing(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())
