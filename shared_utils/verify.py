"""What a weights folder should hold, what of it has been checked, and where a file of a repository may be written.

A repository lists each file with the hash of its content: the SHA-256 for large files (Git LFS, Xet), and for the rest
the Git blob id, which is SHA-1 over `b"blob <size>\\0"` and the content
(https://git-scm.com/book/en/v2/Git-Internals-Git-Objects). Hashing 20 GB at each start would cost more than loading
them, so a verdict is remembered with the size and the modification time the file had.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath

from shared_utils.errors import InvalidInputError, MissingInputError

RECORD_NAME = ".weights.json"
PARTIAL_DIR = ".incomplete"
RECORD_SCHEMA = 1
HASH_BLOCK = 1 << 22  # bytes


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository: its path there, its size in bytes and the hash of its content in lower-case hex.

    `digest` has 64 digits for a SHA-256 and 40 for a Git blob id.
    """

    path: str
    size: int
    digest: str

    @property
    def partial_name(self) -> str:
        """Name of its unfinished download. A name made of both, since two paths may hold the same bytes."""
        return hashlib.sha1(f"{self.path}\0{self.digest}".encode()).hexdigest()


class Interrupted(Exception):
    """The work was given up because another part of the program asked for it. Never shown to the user."""


def content_digest(path: Path, digits: int, stopped: Callable[[], bool] = lambda: False) -> str:
    """Hash of the file at `path`: the SHA-256 for 64 `digits`, the Git blob id for 40.

    Raises OSError if it cannot be read and Interrupted once `stopped()` is true.
    """
    with path.open("rb") as file:
        header = b"blob %d\0" % os.fstat(file.fileno()).st_size
        digest = hashlib.sha256() if digits == 64 else hashlib.sha1(header)
        while block := file.read(HASH_BLOCK):
            if stopped():
                raise Interrupted
            digest.update(block)
    return digest.hexdigest()


def matches(path: Path, file: RemoteFile, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Whether `path` is a file with the size and the content of `file`."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return content_digest(path, len(file.digest), stopped) == file.digest


def check_name(path: str, repo: str) -> None:
    """Refuse a path of a repository's listing that could leave its folder, under POSIX and Windows rules alike.

    Raises InvalidInputError.
    """
    parts = path.split("/")
    problem = None
    if not path or any(part in {"", ".", ".."} for part in parts):
        problem = "is empty, absolute or has an empty, '.' or '..' part"
    elif "\\" in path or any(ord(character) < 32 for character in path):
        problem = "has a backslash or a control character"
    elif PurePosixPath(path).is_absolute() or any(PureWindowsPath(part).drive for part in parts):
        problem = "is absolute or names a drive"
    elif parts[0] in {RECORD_NAME, PARTIAL_DIR}:
        problem = "is a name kept for the download's own records"
    if problem:
        raise InvalidInputError(f"{repo}: refusing the repository, its file path {path!r} {problem}")


def target_path(folder: Path, file: RemoteFile, repo: str) -> Path:
    """Where `file` is written below `folder`. Raises InvalidInputError if its name or a link leads outside of it."""
    check_name(file.path, repo)
    target = folder / file.path
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise InvalidInputError(
            f"{repo}: refusing to write {file.path}: {target.parent} is a link out of {folder}; remove the link"
        )
    return target


def select(files: dict[str, RemoteFile], patterns: tuple[str, ...], repo: str) -> list[RemoteFile]:
    """The files that match one of `patterns`, or all without patterns, sorted by path.

    A pattern is a shell glob over the whole path in which `*` also crosses `/` (the rule of `snapshot_download`); one
    that ends in `/` means everything below. Raises MissingInputError if nothing matches, or if a plain name is absent.
    """
    globs = [pattern + "*" if pattern.endswith("/") else pattern for pattern in patterns]
    for name in globs:
        if not any(character in name for character in "*?[") and name not in files:
            raise MissingInputError(f"{repo} has no file {name}; is this the right repository and revision?")
    chosen = [file for _, file in sorted(files.items()) if not globs or any(fnmatchcase(file.path, g) for g in globs)]
    if not chosen:
        wanted = f"nothing that matches {', '.join(patterns)}" if patterns else "no files"
        raise MissingInputError(f"{repo} holds {wanted}; is this the right repository and revision?")
    return chosen


@dataclass
class FolderRecord:
    """The record kept in a weights folder: which commit of which repository, its whole listing, and what was checked.

    `revision` is what was asked for (`main`, a tag or a commit), `commit` the 40-digit commit it stood for then.
    `verified` maps a path to (size in bytes, modification time in ns, digest) at the moment its content was right.
    """

    repo: str
    revision: str
    commit: str
    files: dict[str, RemoteFile]
    verified: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "FolderRecord | None":
        """The record of `folder`; None if there is none or it is not readable as one (then everything is re-checked)."""
        try:
            data = json.loads((folder / RECORD_NAME).read_text("utf-8"))
            if data["schema"] != RECORD_SCHEMA:
                return None
            return cls(
                repo=str(data["repo"]),
                revision=str(data["revision"]),
                commit=str(data["commit"]),
                files={
                    path: RemoteFile(path, int(size), str(digest)) for path, (size, digest) in data["files"].items()
                },
                verified={
                    path: (int(size), int(mtime), str(digest))
                    for path, (size, mtime, digest) in data["verified"].items()
                },
            )
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, folder: Path) -> None:
        """Write the record atomically. Raises OSError."""
        data = {
            "schema": RECORD_SCHEMA,
            "repo": self.repo,
            "revision": self.revision,
            "commit": self.commit,
            "files": {file.path: [file.size, file.digest] for file in self.files.values()},
            "verified": self.verified,
        }
        partial = folder / f"{RECORD_NAME}.{os.getpid()}.partial"
        try:
            partial.write_text(json.dumps(data, indent=1), "utf-8")
            partial.replace(folder / RECORD_NAME)
        finally:
            partial.unlink(missing_ok=True)

    def stands_for(self, repo: str, revision: str) -> bool:
        """Whether this folder was made for `revision` of `repo`, by the same name or by its commit."""
        return self.repo == repo and revision in (self.revision, self.commit)

    def mark(self, path: Path, file: RemoteFile) -> None:
        """Remember that `path` holds the content of `file`."""
        status = path.stat()
        self.verified[file.path] = (status.st_size, status.st_mtime_ns, file.digest)

    def is_verified(self, path: Path, file: RemoteFile) -> bool:
        """Whether `path` was found right before and has not been touched since (no byte of it is read)."""
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return self.verified.get(file.path) == (status.st_size, status.st_mtime_ns, file.digest)
