"""The two requests a download needs, each retried: the listing of a repository and the bytes of one file.

`huggingface_hub` supplies the session (proxies, certificates), the token and the addresses; the requests are our own.
Its `snapshot_download` gives up on a reset connection and on a 5xx answer to a GET, does not look at the bytes it got,
and begins a file anew in each process, which for a 12 GB shard behind a poor line can mean never. The plain addresses
used here offer byte ranges for every way the Hub stores files (Git, LFS, Xet), up to 50 GB a file.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from shared_utils import __version__
from shared_utils.errors import AccessError, ConfigError, InvalidInputError, MissingInputError, TemporaryError
from shared_utils.verify import Interrupted, RemoteFile, check_name

T = TypeVar("T")

RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}
ATTEMPTS = 5  # in a row without getting on
PROGRESS_BYTES = 1 << 20  # an attempt that brought this much starts the count anew
RETRY_SECONDS = 1.0  # before the second attempt, then twice as long each time; DOWNLOAD_RETRY_SECONDS overrides it
LONGEST_WAIT = 120.0  # seconds; a server that asks for more ends the run instead


class WrongContent(Exception):
    """The server sent bytes that cannot be the file's."""


class _Retryable(Exception):
    """A failure that may be gone at the next attempt; `wait` is the pause the server asked for, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one commit, by path."""

    commit: str
    files: dict[str, RemoteFile]


class HubClient:
    """Reads one repository from the Hub at HF_ENDPOINT (https://huggingface.co by default), with retries.

    page: the address to send the user to for access; by default the repository's own page.
    token: what to send instead of the user's own (HF_TOKEN, or the login stored under HF_HOME).
    say: takes one line of text for each attempt that has to be repeated.
    timeout: seconds without a byte before an attempt is given up; default HF_HUB_DOWNLOAD_TIMEOUT, else 10.

    Setting `stopped` from another thread makes every method raise Interrupted soon.
    """

    def __init__(
        self,
        repo: str,
        *,
        page: str = "",
        token: str | None = None,
        say: Callable[[str], None] = lambda text: None,
        timeout: float | None = None,
    ) -> None:
        from huggingface_hub import constants

        # Read now: huggingface_hub keeps the values the environment had when it was first imported.
        self.endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or constants.ENDPOINT
        self.repo = repo
        self.page = page or f"{self.endpoint}/{repo}"
        self.say = say
        self.timeout = timeout or float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self.retry_seconds = first_pause()
        self.stopped = threading.Event()
        self._headers = _headers(token)

    def listing(self, revision: str) -> Listing:
        """Commit and files at `revision`, from one request.

        Raises AccessError, MissingInputError (no such repository or revision), InvalidInputError (a path that tries to
        leave the folder, a file without a hash), TemporaryError.
        """
        info, _ = self._json(f"/revision/{quote(revision, safe='')}?blobs=true", revision)
        try:
            commit = info["sha"]
            entries = [
                (sibling["rfilename"], sibling.get("size"), sibling.get("blobId"), sibling.get("lfs") or {})
                for sibling in info["siblings"]
            ]
            # Some mirrors leave sizes and hashes out of this answer; the tree has them.
            if any(size is None or not (blob or lfs) for _, size, blob, lfs in entries):
                entries = [
                    (entry["path"], entry.get("size"), entry.get("oid"), entry.get("lfs") or {})
                    for entry in self._tree(commit)
                    if entry["type"] == "file"
                ]
            files = {
                path: RemoteFile(path, lfs.get("size", size), lfs.get("sha256") or lfs.get("oid") or blob)
                for path, size, blob, lfs in entries
            }
            if not re.fullmatch(r"[0-9a-f]{7,64}", commit):
                raise ValueError(f"commit {commit!r}")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._not_a_hub() from error
        for file in files.values():
            check_name(file.path, self.repo)
            if not isinstance(file.size, int) or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", str(file.digest)):
                raise InvalidInputError(f"{self.repo}: {self.endpoint} lists {file.path} without a size and a hash")
        return Listing(commit, files)

    def download(self, commit: str, file: RemoteFile, partial: Path, on_bytes: Callable[[int], None]) -> None:
        """Bring the local file `partial` to the size of `file`, from where an earlier attempt or process left it.

        on_bytes: is told the bytes added, or as a negative number those thrown away. The content is not checked here.
        Raises WrongContent (longer than listed), AccessError, MissingInputError, TemporaryError, OSError (local disk).
        """
        if partial.is_symlink():  # writing would follow it
            partial.unlink()
        partial.touch()

        def size() -> int:
            return partial.stat().st_size

        def attempt() -> None:
            if size() != file.size:
                self._stream(commit, file, partial, on_bytes)

        self._retry(f"{self.repo}: {file.path}", attempt, size)

    def _stream(self, commit: str, file: RemoteFile, partial: Path, on_bytes: Callable[[int], None]) -> None:
        """One GET, written behind what `partial` has, as it comes in."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.repo, file.path, revision=commit, endpoint=self.endpoint)
        with partial.open("r+b", buffering=0) as out:

            def restart() -> None:
                on_bytes(-out.seek(0, os.SEEK_END))
                out.truncate(0)

            have = out.seek(0, os.SEEK_END)
            if have > file.size:
                restart()
                have = 0
            # A compressed answer has no byte ranges that mean anything here.
            headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
            with self._get(url, headers, commit, file.path) as response:
                if have and response.status_code == 200:
                    restart()
                    have = 0
                elif have and _range_start(response) != have:
                    restart()
                    raise _Retryable(f"the server cannot go on at byte {have}, starting again")
                out.seek(have)
                for block in response.iter_bytes():
                    if self.stopped.is_set():
                        raise Interrupted
                    have += len(block)
                    if have > file.size:
                        raise WrongContent(f"more than its {file.size} bytes")
                    out.write(block)
                    on_bytes(len(block))
        if have < file.size:
            raise _Retryable(f"the transfer ended after {have} of {file.size} bytes")

    def _tree(self, commit: str) -> Iterator[dict[str, Any]]:
        query = "recursive=true"
        while query:
            entries, following = self._json(f"/tree/{commit}?{query}", commit)
            yield from entries
            # Only the query is taken: a mirror may pass on links to the real Hub, and the token goes where we send it.
            query = urlsplit(following).query

    def _json(self, address: str, revision: str) -> tuple[Any, str]:
        """The decoded body, and the address of the next page or ''."""

        def attempt() -> tuple[Any, str]:
            with self._get(f"{self.endpoint}/api/models/{self.repo}{address}", {}, revision) as response:
                body = response.read()
                try:
                    return response.json(), response.links.get("next", {}).get("url", "")
                except ValueError as error:
                    raise self._not_a_hub(body[:60]) from error

        return self._retry(self.repo, attempt)

    @contextmanager
    def _get(self, url: str, headers: dict[str, str], revision: str, path: str = "") -> Iterator[Any]:
        """An open response with a good status, or 416 for a range; any other is raised as what it means."""
        from huggingface_hub.utils import get_session

        session = get_session()
        http = http_module(session)
        try:
            with session.stream("GET", url, headers=self._headers | headers, timeout=self.timeout) as response:
                if not response.is_success and not (response.status_code == 416 and "Range" in headers):
                    raise self._failure(response, revision, path)
                yield response
        except (http.UnsupportedProtocol, http.InvalidURL, UnicodeEncodeError) as error:
            raise ConfigError(f"cannot ask {self.endpoint} for {self.repo}: {error}; is HF_ENDPOINT right?") from error
        except http.TimeoutException as error:
            raise _Retryable(f"no answer from {_host(url)} for {self.timeout:g} s") from error
        except (http.TransportError, http.TooManyRedirects, http.DecodingError, ConnectionError) as error:
            raise _Retryable(f"the connection to {_host(url)} failed ({str(error) or type(error).__name__})") from error

    def _failure(self, response: Any, revision: str, path: str) -> Exception:
        """The exception for an answer with an error status.

        The Hub names the cause in X-Error-Code, and answers 401 instead of 404 to the anonymous who ask for a
        repository that does not exist.
        """
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        what = f"{self.repo}: {path}" if path else self.repo
        if status in RETRIED_STATUSES:
            return _Retryable(f"{self.endpoint} answers {status}", _asked_wait(status, response.headers))
        if code == "GatedRepo":
            return AccessError(
                f"{what}: access has to be granted first ({status}); ask for it at {self.page}, then set HF_TOKEN to a"
                " token of that account"
            )
        if status == 401 and "Authorization" in self._headers and code != "RepoNotFound":
            return AccessError(f"{what}: the token was refused (401); check HF_TOKEN, and your access at {self.page}")
        if status == 401:
            return AccessError(
                f"{what}: the repository does not exist, or is private or gated (401); look at {self.page}, and set"
                " HF_TOKEN to a token that may read it"
            )
        if status in (403, 451):
            return AccessError(
                f"{what}: access denied ({status}); look at {self.page}, and set HF_TOKEN to a token that may read it"
            )
        if code == "RevisionNotFound":
            return MissingInputError(
                f"{what}: there is no revision {revision}; see {self.endpoint}/{self.repo}/commits"
            )
        if status in (404, 410) and path:
            return MissingInputError(
                f"{what}: no such file at revision {revision}; see {self.endpoint}/{self.repo}/tree"
            )
        if status in (404, 410):
            return MissingInputError(f"{what}: no such repository at {self.endpoint}, or HF_TOKEN may not read it")
        return InvalidInputError(f"{what}: {self.endpoint} refuses the request with status {status}")

    def _not_a_hub(self, start: bytes = b"") -> TemporaryError:
        shown = f" (it begins with {start.decode('ascii', 'replace')!r})" if start else ""
        return TemporaryError(
            f"{self.repo}: the answer of {self.endpoint} is not a listing of the Hub{shown}; is there a login page of the"
            " network in between, or a wrong HF_ENDPOINT?"
        )

    def _retry(self, what: str, attempt: Callable[[], T], done: Callable[[], int] = lambda: 0) -> T:
        """Call `attempt` until it returns; `done()` are the bytes that stay from one attempt to the next."""
        failures = 0
        while True:
            before = done()
            try:
                return attempt()
            except _Retryable as error:
                failures = 1 if done() - before >= PROGRESS_BYTES else failures + 1
                if failures >= ATTEMPTS:
                    kept = f"; the {done()} bytes that came in are kept" if done() else ""
                    raise TemporaryError(
                        f"{what}: {error}; given up after {failures} attempts{kept}, run it again later"
                    ) from error
                wait = self.retry_seconds * 2 ** (failures - 1) if error.wait is None else error.wait
                if wait > LONGEST_WAIT:
                    raise TemporaryError(f"{what}: {error} and asks to wait {wait:.0f} s; run it again then") from error
                self.say(f"{what}: {error}; trying again in {wait:g} s")
                if self.stopped.wait(wait):
                    raise Interrupted from error


def first_pause() -> float:
    """Seconds before the second attempt at a request: DOWNLOAD_RETRY_SECONDS, else RETRY_SECONDS. Raises ConfigError."""
    text = os.environ.get("DOWNLOAD_RETRY_SECONDS", "")
    try:
        seconds = float(text or RETRY_SECONDS)
    except ValueError as error:
        raise ConfigError(f"DOWNLOAD_RETRY_SECONDS={text!r} is not a number of seconds") from error
    if not 0 <= seconds <= LONGEST_WAIT:
        raise ConfigError(f"DOWNLOAD_RETRY_SECONDS={text} is not between 0 and {LONGEST_WAIT:g}")
    return seconds


def _headers(token: str | None) -> dict[str, str]:
    """Who asks. (huggingface_hub's own builder of headers may make a request to find out what to say.)"""
    from huggingface_hub import __version__ as hub_version
    from huggingface_hub import constants, get_token

    headers = {"User-Agent": f"generation-scripts/{__version__}; hf_hub/{hub_version}"}
    token = token or (None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
    if token is None:
        return headers
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError("HF_TOKEN has a space or a character that is not ASCII; copy the token again")
    return headers | {"Authorization": f"Bearer {token}"}


def http_module(session: Any) -> Any:
    """The HTTP library under huggingface_hub: httpx, in later versions its successor httpx2, with the same names."""
    import importlib

    client = next(base for base in type(session).__mro__ if base.__name__ == "Client")
    return importlib.import_module(client.__module__.partition(".")[0])


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _range_start(response: Any) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _asked_wait(status: int, headers: Any) -> float | None:
    """Seconds until the server wants the next request: `Retry-After` (seconds or a date); `t=` of `RateLimit` for 429."""
    after = headers.get("Retry-After", "").strip()
    if after.isdigit():
        return float(after)
    if after:
        try:
            return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
        except ValueError:
            return None
    limit = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
    return float(limit[1]) if limit and status == 429 else None
