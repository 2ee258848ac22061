"""The template for a new script runs, where it lies, in the root of a checkout and as a bundle."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from processes import ROOT, json_lines, run
from test_bundle import bundle, python

TEMPLATE = ROOT / "examples" / "template_script.py"


def size_of(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_smoke_test(tmp_path):
    done = run(TEMPLATE, "--smoke-test", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = json_lines(done.stdout)
    assert (record["status"], record["width"], record["height"]) == ("ok", 64, 40)
    assert size_of(record["outputs"][0]["path"]) == (64, 40)


def test_batch_with_a_damaged_picture(tmp_path):
    Image.new("RGB", (30, 600), "red").save(tmp_path / "tall.jpg")
    Image.new("RGBA", (10, 8), (0, 0, 0, 0)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text("tall.jpg\nbroken.png\ntiny.png\n")
    done = run(TEMPLATE, "--inputs-from", "list.txt", "--size", 100, "--json", cwd=tmp_path)
    assert done.returncode == 3
    tall, broken, tiny = sorted(json_lines(done.stdout), key=lambda record: record["index"])
    assert (tall["width"], tall["height"], broken["status"], tiny["width"]) == (5, 100, "error", 10)
    with Image.open(tiny["outputs"][0]["path"]) as image:
        assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("flags", "code"), [(["-o", "x.gif"], 2), (["-o", "x.png", "--format", "webp"], 2), (["-o", "x.webp"], 0)]
)
def test_format_follows_the_output(flags, code, tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    done = run(TEMPLATE, "a.png", *flags, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    if code == 0:
        with Image.open(tmp_path / "x.webp") as image:
            assert image.format == "WEBP" and image.size == (40, 20)


def test_steps_of_the_worked_example(tmp_path):
    """As AGENTS.md says: copied to the root of a checkout under a new name, then bundled and carried away."""
    done = bundle(TEMPLATE, "-o", tmp_path / "box" / "thumbnails.py")
    assert done.returncode == 0, done.stderr
    assert python(tmp_path / "box" / "thumbnails.py", "--smoke-test", cwd=tmp_path).returncode == 0
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "shared_utils", checkout / "shared_utils", ignore=shutil.ignore_patterns("__pycache__"))
    line = "sys.path.insert(0, str(Path(__file__).resolve().parent.parent))\n"
    text = TEMPLATE.read_text()
    assert text.count(line) == 1
    (checkout / "thumbnails.py").write_text(text.replace(line, ""))
    assert python(checkout / "thumbnails.py", "--smoke-test", cwd=tmp_path).returncode == 0
    (tmp_path / "lonely").mkdir()
    shutil.copy(checkout / "thumbnails.py", tmp_path / "lonely")
    assert python(tmp_path / "lonely" / "thumbnails.py", "--help", cwd=tmp_path).returncode == 78
