"""A Hugging Face Hub on the loopback interface, as far as downloads go, with faults to order.

    with FakeHub({"org/model": folder}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)      # or env=os.environ | hub.environment for a process
        hub.faults.append(Fault("reset", match="model.safetensors", after=1_000_000))
        ...
        assert hub.log == []

It answers what huggingface_hub, transformers and diffusers ask: the repository's info (with sizes and hashes for
`blobs=true`), its tree in pages, and HEAD and GET of files with ranges. Large files (by suffix, as in `.gitattributes`)
have a SHA-256 and are redirected to another host name, the others a Git blob id, as on the real one.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".bin", ".ckpt", ".gguf", ".onnx", ".pt", ".pth", ".safetensors")


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `match`.

    kind, on any answer: `status` (`code`, `headers`), `html` (a login page instead of JSON), `stall` (`after` bytes of
    the body, then silence until the hub stops or `release` is set); on the body of a file: `truncate` and `reset` (after
    `after` bytes), `short` (`after` bytes, honestly announced), `long` (some bytes more), `corrupt` (its length kept),
    `no_range` (200 and everything), `wrong_range` (another range than asked for), `slow` (`after` bytes at a time).
    times: how many requests; None is all. method: `GET`, `HEAD` or None for both.
    """

    kind: str
    match: str = ""
    times: int | None = 1
    method: str | None = "GET"
    after: int = 0
    code: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Request:
    """One request as it came in; `sent` grows to the bytes of the body that went out."""

    method: str
    path: str
    query: str
    host: str
    range: str | None
    token: str | None
    status: int


class FakeHub:
    """Serves each repository from a folder, or from one folder per revision (`{"main": ..., "v1.0": ...}`).

    gated: repositories whose files need `token`. private: repositories that do not exist for others. sizes: whether the
    info has sizes and hashes. extra: entries put into the listing of a repository, `{"org/model": [entry, ...]}`.
    """

    def __init__(
        self,
        repos: dict[str, Path | dict[str, Path]],
        *,
        token: str | None = None,
        gated: tuple[str, ...] = (),
        private: tuple[str, ...] = (),
        page: int = 1000,
        sizes: bool = True,
    ) -> None:
        self.repos = {name: dict(r) if isinstance(r, dict) else {"main": Path(r)} for name, r in repos.items()}
        self.token, self.gated, self.private, self.page, self.sizes = token, gated, private, page, sizes
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.extra: dict[str, list[dict]] = {}
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self._entries: dict[tuple[Path, int, int], dict] = {}
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {"HF_ENDPOINT": self.url, "NO_PROXY": "127.0.0.1,localhost"}

    def start(self) -> "FakeHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):  # kept-alive ones would go on answering
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def __enter__(self) -> "FakeHub":
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def requests(self, match: str = "", method: str | None = None) -> list[Request]:
        """The logged requests whose path contains `match`."""
        return [r for r in self.log if match in r.path and method in (None, r.method)]

    def commit(self, repo: str, revision: str = "main") -> str:
        """The 40-digit commit of a revision, made from what its folder holds now."""
        listing = [f"{entry['path']} {entry['oid']}" for entry in self.entries(repo, revision)]
        return hashlib.sha1("\n".join(listing).encode()).hexdigest()

    def entries(self, repo: str, revision: str = "main") -> list[dict]:
        """The tree of a revision as the API gives it."""
        root = self.repos[repo][revision]
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        return [self._entry(root, path) for path in paths]

    def _entry(self, root: Path, path: Path) -> dict:
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        if key not in self._entries:
            data = path.read_bytes()
            entry = {
                "type": "file",
                "path": path.relative_to(root).as_posix(),
                "size": len(data),
                "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            }
            if path.suffix in LFS_SUFFIXES:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            self._entries[key] = entry
        return self._entries[key]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.match in path and fault.method in (None, method) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # the client went away, or a fault closed the connection
            self.close_connection = True

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        try:
            super().finish()
        except (OSError, ValueError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Requests are in `FakeHub.log`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        fault = self.hub.take_fault(self.command, path)
        if fault and fault.kind == "status":
            return self._answer(fault.code, b'{"error":"to order"}', fault.headers)
        if fault and fault.kind == "html":
            return self._answer(
                200, b"<html>Please log in to the hotel's network</html>", {"Content-Type": "text/html"}
            )
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+?))?", path)
        file = re.fullmatch(r"/(?:cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            # Quoted slashes belong to the revision: refs%2Fpr%2F1.
            raw = re.search(r"/(?:revision|tree)/([^/]+)", parts.path)
            return self._api(api[1], api[2], unquote(raw[1]) if raw else "main", parse_qs(parts.query), fault)
        if file:
            return self._file(file[1], file[2], file[3], path.startswith("/cdn/"), fault)
        return self._error(404, "", "Not found")

    def _note(self, status: int) -> None:
        parts = urlsplit(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        host = (self.headers.get("Host") or "").partition(":")[0]
        request = Request(
            self.command, unquote(parts.path), parts.query, host, self.headers.get("Range"), token, status
        )
        self.hub.log.append(request)

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        """Send an answer; `fault` spoils its body."""
        self._note(status)
        kind = fault.kind if fault else None
        if kind == "corrupt":
            body = bytes([body[0] ^ 0xFF]) + body[1:]
        elif kind == "short":
            body = body[: fault.after]
        elif kind == "long":
            body += b"and some more"
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            if name not in (headers or {}):
                self.send_header(name, value)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in ("truncate", "reset", "stall"):
            self.wfile.write(body[: fault.after])
            self.wfile.flush()
            self.close_connection = True
            if kind == "stall":
                while not (fault.release.wait(0.05) or self.hub.stopping.is_set()):
                    continue
                self.wfile.write(body[fault.after :])
            elif kind == "reset":
                # Unsent bytes would be lost with the connection: let the client read what was sent.
                self.hub.stopping.wait(0.1)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        elif kind == "slow":
            for start in range(0, len(body), fault.after):
                self.wfile.write(body[start : start + fault.after])
                if self.hub.stopping.wait(0.02):
                    break
        else:
            self.wfile.write(body)

    def _error(self, status: int, code: str, message: str) -> None:
        self._answer(
            status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message}
        )

    def _refused(self, repo: str, file: bool) -> bool:
        """Answer a request that may not see the repository, or its files. True if it was refused."""
        given = self.headers.get("Authorization")
        allowed = self.hub.token is not None and given == f"Bearer {self.hub.token}"
        if given and not allowed and self.hub.token is not None:
            self._answer(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo not in self.hub.repos or (repo in self.hub.private and not allowed):
            # The anonymous are not told whether it exists.
            self._error(404 if given else 401, "RepoNotFound", "Repository not found")
        elif file and repo in self.hub.gated and not allowed:
            self._error(401, "GatedRepo", f"Access to model {repo} is restricted.")
        else:
            return False
        return True

    def _revision(self, repo: str, name: str) -> str | None:
        """The key of `hub.repos[repo]` that a branch, tag or commit stands for."""
        revisions = self.hub.repos[repo]
        return name if name in revisions else next((r for r in revisions if self.hub.commit(repo, r) == name), None)

    def _api(
        self, repo: str, part: str | None, revision: str, query: dict[str, list[str]], fault: Fault | None
    ) -> None:
        if self._refused(repo, file=False):
            return
        key = self._revision(repo, revision)
        if key is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        entries = self.hub.entries(repo, key) + self.hub.extra.get(repo, [])
        if part == "tree":
            start = int(query.get("cursor", ["0"])[0])
            headers = {}
            if start + self.hub.page < len(entries):
                following = f"{urlsplit(self.path).path}?recursive=true&cursor={start + self.hub.page}"
                headers["Link"] = f'<https://huggingface.co{following}>; rel="next"'
            body = json.dumps(entries[start : start + self.hub.page]).encode()
            return self._answer(200, body, headers, fault)
        siblings = []
        for entry in entries:
            sibling = {"rfilename": entry["path"]}
            if self.hub.sizes and query.get("blobs"):
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if "lfs" in entry:
                    sibling["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134}
            siblings.append(sibling)
        info = {
            "id": repo,
            "modelId": repo,
            "sha": self.hub.commit(repo, key),
            "private": repo in self.hub.private,
            "gated": "manual" if repo in self.hub.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }
        return self._answer(200, json.dumps(info).encode(), None, fault)

    def _file(self, repo: str, revision: str, name: str, on_cdn: bool, fault: Fault | None) -> None:
        if not on_cdn and self._refused(repo, file=True):
            return
        key = self._revision(repo, revision)
        if key is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        entry = next((e for e in self.hub.entries(repo, key) if e["path"] == name), None)
        if entry is None:
            return self._error(404, "EntryNotFound", "Entry not found")
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {
            "X-Repo-Commit": self.hub.commit(repo, key),
            "ETag": f'"{etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if "lfs" in entry and not on_cdn:
            headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-ETag": f'"{etag}"'}
            headers["Location"] = f"http://localhost:{self.hub.port}/cdn{self.path}"
            if fault and fault.times is not None:
                fault.times += 1  # meant for the bytes, which the other host sends
            return self._answer(302, b"", headers)
        body = (self.hub.repos[repo][key] / name).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted or self.command == "HEAD" or (fault and fault.kind == "no_range"):
            return self._answer(200, body, headers, fault)
        first, last = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
        if fault and fault.kind == "wrong_range":
            first = 0
        if first >= len(body):
            return self._answer(416, b"", headers | {"Content-Range": f"bytes */{len(body)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        return self._answer(206, body[first : last + 1], headers, fault)


if __name__ == "__main__":
    import sys

    with FakeHub(dict(argument.split("=", 1) for argument in sys.argv[1:])) as served:
        print(served.url, flush=True)
        threading.Event().wait()
