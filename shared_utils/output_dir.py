"""OutputDir: the folder of one run, `output/YYYYMMDD_HH_MM_SS/`, and files that are complete or do not exist."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from shared_utils.errors import InvalidInputError, OutputExistsError, OutputWriteError, ScriptError

TIMESTAMP = "%Y%m%d_%H_%M_%S"
_FOLDER = re.compile(r"\d{8}_\d\d_\d\d_\d\d(_\d+)?")


def partial_name(path: Path) -> Path:
    """The name a file or folder has while it is being made: hidden, beside the target, with the same suffix."""
    return path.with_name(f".{path.name}.partial{path.suffix}")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a partial path beside `path`; on success it takes the final name, on any failure it is removed.

    An `OSError` that says the disk is full, read-only or not ours becomes an `OutputWriteError`.
    """
    partial = partial_name(path)
    with write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
        finally:
            remove(partial)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into an `OutputWriteError`."""
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise OutputWriteError(f"{path}: no space left to write it ({error.strerror})") from error
        if error.errno in {
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.ENAMETOOLONG,
            errno.EIO,
            errno.EISDIR,
        }:
            raise OutputWriteError(f"{path}: cannot be written ({error.strerror})") from error
        raise


def is_full_disk(error: OSError) -> bool:
    """Whether the operating system refused a write for lack of space, quota or a file size limit."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file; of a folder, that of its files' names and hashes in sorted order."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def slug(text: str, length: int = 48) -> str:
    """A name that is safe as a file name anywhere: letters and digits of any script, `-` between words, never empty."""
    words = re.sub(r"[^\w]+", "-", text, flags=re.UNICODE).strip("-_").lower()
    return words.encode()[:length].decode(errors="ignore").strip("-_") or "item"


def inside(folder: Path, name: str) -> Path:
    """`folder/name`, refused with a `ScriptError` of exit 65 when it would lie outside the folder."""
    path = folder / name
    if (
        not path.resolve().is_relative_to(folder.resolve())
        or Path(name).is_absolute()
        or path.resolve() == folder.resolve()
    ):
        raise InvalidInputError(f"{name!r}: an output name must stay inside the run folder")
    return path


class OutputDir:
    """The run folder. It comes into being with `create`, so that a run refused for its usage leaves nothing behind."""

    def __init__(self, base: Path, resume: Path | None = None):
        self.base = base
        self.resume = resume
        self.path: Path | None = None
        self.created = self.created_base = False
        self.timestamp = time.strftime(TIMESTAMP)

    def create(self) -> Path:
        """Make the folder (local time; `_2`, `_3` … when another process took the second), or take the resumed one.

        Raises `OutputWriteError` when it cannot be made.
        """
        if self.path is not None:
            return self.path
        wanted = self.resume or self.base
        try:
            new = not wanted.exists()
            self.created, self.created_base = self.resume is not None and new, self.resume is None and new
            wanted.mkdir(parents=True, exist_ok=True)
            if self.resume is not None:
                self.path = self.resume
                return self.path
            for attempt in range(1, 10000):
                name = self.timestamp if attempt == 1 else f"{self.timestamp}_{attempt}"
                try:
                    # parents: another process may just have removed the empty base folder it had made.
                    (self.base / name).mkdir(parents=True)
                except FileExistsError:
                    continue
                self.path, self.created, self.timestamp = self.base / name, True, name
                return self.path
        except OSError as error:
            raise OutputWriteError(f"{wanted}: the folder cannot be made ({error.strerror})") from error
        raise OutputWriteError(f"{self.base}: no free folder name for {self.timestamp}")

    def discard_if_empty(self) -> None:
        """Remove the folder if this run made it and no result lies in it, and the base folder by the same rule."""
        if self.path is not None and self.created and not any(self.path.iterdir()):
            self.path.rmdir()
            if self.created_base:
                # Not empty when another process works in it.
                with contextlib.suppress(OSError):
                    self.base.rmdir()

    def keep_last(self, count: int, tool: str) -> list[Path]:
        """Remove older finished folders of `tool` beside this one, keeping `count` including this one; return the removed.

        Only real folders with a time-stamp name that carry a `run.json` of this tool are candidates.
        """
        from shared_utils.config_file import ConfigFile

        mine = []
        for folder in sorted(self.base.iterdir()):
            if folder.is_symlink() or not _FOLDER.fullmatch(folder.name) or not (folder / "run.json").is_file():
                continue
            try:
                record = ConfigFile(folder / "run.json").load()
            except ScriptError:
                continue
            if record.get("tool") == tool and str(record.get("schema", "")).startswith("generation-scripts/run/"):
                mine.append((record.get("started", ""), folder.name, folder))
        current = self.path.resolve() if self.path else None
        older = [folder for _, _, folder in sorted(mine) if folder.resolve() != current]
        doomed = older[: max(0, len(older) - (count - 1))]
        for folder in doomed:
            shutil.rmtree(folder)
        return doomed


class ItemOutput:
    """Where one item's files go. Files are made under partial names and take their final ones together, in `commit`."""

    def __init__(self, folder: Path, *, index: int, label: str, stamp: str, primary: Path | None, overwrite: bool):
        self.folder = folder
        self.index = index
        self.label = label
        self.stamp = stamp
        self._primary = primary
        self._overwrite = overwrite
        self._pending: list[tuple[Path, Path, str]] = []
        self.files: list[tuple[Path, str]] = []

    def stamped(self, prefix: str, suffix: str) -> str:
        """A default file name such as `kokoro_20261122_19_00_00.wav`, with the item's label in a batch."""
        return f"{prefix}_{self.stamp}{'_' + self.label if self.label else ''}{suffix}"

    def primary(self, name: str) -> Path:
        """Partial path of the main result: `-o FILE` where given, else `name` in the run folder.

        Raises `OutputExistsError` when the file is there and may not be overwritten.
        """
        target = self._primary or inside(self.folder, name)
        if self._primary is not None and target.exists() and not self._overwrite:
            raise OutputExistsError(f"{target}: exists already (--overwrite replaces it)")
        return self._stage(target, "primary")

    def file(self, name: str, role: str = "file") -> Path:
        """Partial path of a further file of the run folder; `role` says what it is (`preview`, `report`, …)."""
        return self._stage(inside(self.folder, name), role)

    def beside_primary(self, suffix: str, role: str = "file") -> Path:
        """Partial path of a file that must lie beside the main result and share its stem, such as subtitles."""
        target = next(target for _, target, r in self._pending if r == "primary")
        return self._stage(target.with_suffix(suffix), role)

    def beside(self, partial: Path, name: str, role: str = "file") -> Path:
        """Partial path of a file or folder `name` that must lie beside one handed out before, such as a model's textures."""
        return self._stage(self.final(partial).with_name(name), role)

    def directory(self, name: str, role: str = "file") -> Path:
        """Partial folder (created, empty) which takes its final name as a whole."""
        partial = self.file(name, role)
        remove(partial)
        with write_errors(partial):
            partial.mkdir(parents=True)
        return partial

    def final(self, partial: Path) -> Path:
        """The final name of a path this object handed out."""
        return next(target for p, target, _ in self._pending if p == partial)

    def _stage(self, target: Path, role: str) -> Path:
        with write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_name(target)
        if all(p != partial for p, _, _ in self._pending):
            self._pending.append((partial, target, role))
        return partial

    def commit(self) -> None:
        """Give every staged file that was written its final name."""
        for partial, target, role in self._pending:
            if not partial.exists():
                continue
            with write_errors(target):
                if partial.is_dir() and target.exists():
                    remove(target)
                os.replace(partial, target)
            self.files.append((target, role))
        self._pending.clear()

    def discard(self) -> None:
        """Remove everything staged and not committed."""
        for partial, _, _ in self._pending:
            remove(partial)
        self._pending.clear()

    def record(self, root: Path) -> list[dict]:
        """Path (relative to `root` where it lies inside), role, bytes and sha256 of every committed file."""
        rows = []
        for path, role in self.files:
            shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.resolve())
            rows.append({"path": shown, "role": role, "bytes": size(path), "sha256": sha256(path)})
        return rows


def append_line(path: Path, record: dict) -> None:
    """Append one JSON line in a single write, so that lines of several processes never mix."""
    with write_errors(path):
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
