"""What the tests of downloads share: a Hub that serves one repository, and helpers to look at the outcome."""

import contextlib
import os
import random
from pathlib import Path

import pytest
from fake_hub import FakeHub

from shared_utils.console import Console
from shared_utils.hugging_face import HuggingFaceDownloader, Weights
from shared_utils.verify import PARTIAL_DIR, RECORD_NAME

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
    """Bytes of the unfinished download of the large file.

    The small files come and go beside it: one may be gone between being listed and being asked.
    """
    sizes = [0]
    for path in (place / "model" / PARTIAL_DIR).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)
