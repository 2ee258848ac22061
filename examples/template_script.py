# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "cyclopts>=4.0",
#     "filelock>=3.16",
#     "numpy>=2.0",
#     "opentelemetry-exporter-otlp-proto-http>=1.40",
#     "opentelemetry-sdk>=1.40",
#     "pillow>=11.0",
#     "psutil>=6.0",
#     "tqdm>=4.67",
# ]
# ///
"""Make a small copy of a picture: the template for a tenth script.

The copy is upright, in RGB, fits into a square and has no metadata.

Examples:
  uv run template_script.py photo.jpg --size 256
  uv run template_script.py photo.jpg --format webp -o thumb.webp
  uv run template_script.py --inputs-from photos.txt --json
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

# A script in the repository's root needs no such line: the packages lie beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from shared_utils.args import item_input, option
    from shared_utils.errors import UsageError
    from shared_utils.image_files import read_image, upright_size, write_image
    from shared_utils.options import CommonOptions
    from shared_utils.output_dir import ItemOutput
    from shared_utils.run import Result, Run, Script, Smoke, run_script
except ModuleNotFoundError as error:
    folder = (error.name or "").partition(".")[0]
    if folder not in ("shared_utils", "networks", "meshes"):
        raise
    print(
        f"error: {__file__} needs the folder {folder}/ beside it: copy the whole repository,"
        " or make one file of the script with `uv run bundle.py`",
        file=sys.stderr,
    )
    raise SystemExit(78) from None

SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}


@dataclasses.dataclass(kw_only=True)
class Config(CommonOptions):
    input: Path | None = item_input("A picture: PNG, JPEG, WebP or what else Pillow reads.")
    size: int = option(256, "Longest side of the copy, pixels.", group="Result", minimum=1, maximum=8192)
    format: Literal["png", "jpg", "webp"] | None = option(
        None, "Format of the copy; default png, or what --output ends in.", group="Result"
    )
    enlarge: bool = option(False, "Make a picture that is smaller than --size larger.", group="Result")

    def check(self) -> None:
        """Rules between flags. Raises `UsageError`."""
        if self.output is None:
            return
        ending = SUFFIXES.get(self.output.suffix.lower())
        if ending is None:
            raise UsageError(f"--output {self.output}: must end in {', '.join(SUFFIXES)}")
        if self.format not in (None, ending):
            raise UsageError(f"--output {self.output}: does not end in .{self.format}, as --format asks")


def format_of(config: Config) -> str:
    return config.format or (SUFFIXES[config.output.suffix.lower()] if config.output else "png")


def fitted(width: int, height: int, side: int, enlarge: bool) -> tuple[int, int]:
    """Size in pixels of a picture of width x height that fits into side x side with its proportions, at least one pixel."""
    scale = side / max(width, height)
    if scale >= 1 and not enlarge:
        return width, height
    return max(1, round(width * scale)), max(1, round(height * scale))


def check(item: Config) -> None:
    """Whether the input is a picture, before anything is made. Raises `InvalidInputError`."""
    upright_size(item.input)


def load(config: Config, run: Run) -> Run:
    """Called once. A script with a model reads it here, from `run.weights("model").path`, and returns it."""
    return run


def generate(run: Run, item: Config, out: ItemOutput) -> Result:
    """Make one copy; an exception leaves no file behind."""
    from PIL import Image

    with run.phase("read"):
        picture = read_image(item.input)
    size = fitted(*picture.size, item.size, item.enlarge)
    with run.phase("resize"):
        small = picture.resize(size, Image.Resampling.LANCZOS)
    kind = format_of(item)
    path = out.primary(f"{out.label or item.input.stem}_small.{kind}")
    write_image(small, path, kind, quality=None, parameters={})  # reads the file back: the post-condition
    return Result(report={"width": size[0], "height": size[1], "from": list(picture.size)})


def smoke_test(folder: Path) -> Smoke:
    """A built-in input; with a model also a tiny checkpoint, `Smoke(..., models={"model": folder})`."""
    from PIL import Image

    path = folder / "gradient.png"
    Image.linear_gradient("L").resize((640, 400)).save(path)
    return Smoke(inputs=(path,), settings={"size": 64})


SCRIPT = Script(
    name="template",
    file=__file__,
    docstring=__doc__,
    config=Config,
    check=check,
    load=load,
    generate=generate,
    smoke_test=smoke_test,
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
