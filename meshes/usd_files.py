"""Opening USD files safely, and writing them: layers, packages, textures.

A layer may pull in others. All of them are looked at, as layers, before anything is composed: each must lie in the
folder of the file (or in its package) and exist.
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pxr import Ar, Sdf, Tf, Usd, UsdUtils

from meshes.paths import path_beside, read_file
from meshes.scene import Scene
from meshes.usd_crate import check_crate
from meshes.usd_write import UsdWriter
from shared_utils.errors import InvalidInputError, MissingInputError
from shared_utils.output_dir import atomic

# What reading may take beyond the process's size: a base, and so much for each byte of the file (integers shrink well).
_MEMORY_BASE = 3 << 30
_MEMORY_PER_BYTE = 60
_USDZ_LAYERS = (".usdc", ".usda", ".usd")


def open_stage(path: Path) -> tuple[Usd.Stage, list[str]]:
    """The composed stage and the notes USD made on the way. Raises InvalidInputError or MissingInputError with one
    line.
    """
    path = Path(path)
    read_file_head(path)
    with quiet() as notes, bounded_memory(path):
        if path.suffix.lower() == ".usdz":
            _check_package(path)
        try:
            _check_layers(path)
            stage = Usd.Stage.Open(str(path.absolute()))
        except (Tf.ErrorException, RuntimeError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{path}: not a readable USD file ({reason(error)})") from error
    if stage.GetCompositionErrors():
        raise InvalidInputError(f"{path}: {reason(stage.GetCompositionErrors()[0])}")
    return stage, notes


class quiet:
    """USD prints to stderr by itself, below Python's sys.stderr; inside this block its notes are collected, the rest is dropped."""

    def __enter__(self) -> list[str]:
        self._delegate = UsdUtils.CoalescingDiagnosticDelegate()
        self._notes: list[str] = []
        sys.stderr.flush()
        self._stderr = os.dup(2)
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        return self._notes

    def __exit__(self, *_) -> None:
        for item in self._delegate.TakeUncoalescedDiagnostics():
            try:
                self._notes.append(" ".join(item.commentary.split()))
            except UnicodeDecodeError:  # A damaged file's own bytes, quoted.
                self._notes.append("a note that is not text")
        del self._delegate
        os.dup2(self._stderr, 2)
        os.close(self._stderr)


@contextlib.contextmanager
def bounded_memory(path: Path) -> Iterator[None]:
    """Let USD take no more memory for a file than any sound one of its size can need: the counts in a damaged one are not
    checked by it before it allocates, and gigabytes for a few kilobytes would end the process.

    Raises InvalidInputError where Python itself meets the bound. Systems without address space limits go without.
    """
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError):
        yield
        return
    bound = taken + _MEMORY_BASE + _MEMORY_PER_BYTE * path.stat().st_size
    allowed = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([bound, *allowed]), hard))
    try:
        yield
    except MemoryError as error:
        raise InvalidInputError(f"{path}: damaged, or too large for the memory a file of its size is given") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def reason(error: object) -> str:
    """The first sentence of USD's own words, without its source locations."""
    try:
        text = " ".join(str(error).split())
    except UnicodeDecodeError:  # The message quotes bytes of a file that is not text.
        return "not UTF-8 text"
    text = re.sub(r"Error in '[^']*' at line \d+ in file [^ ]+ : ", "", text)
    text = re.sub(r"^.*?Tf\.ErrorException:\s*", "", text).strip(" '\"")
    return text[:160]


def read_file_head(path: Path) -> bytes:
    """The first bytes of a file that must exist, be a file and not be empty."""
    if not path.exists():
        raise MissingInputError(f"{path} does not exist")
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise InvalidInputError(f"{path}: empty file")
    return head


def _check_package(path: Path) -> None:
    """A USDZ is a zip of uncompressed files with a layer in front."""
    try:
        with zipfile.ZipFile(path) as package:
            entries = package.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: not a USDZ package ({error})") from error
    size = path.stat().st_size
    if not entries:
        raise InvalidInputError(f"{path}: the package is empty")
    if not entries[0].filename.lower().endswith(_USDZ_LAYERS):
        raise InvalidInputError(f"{path}: the package starts with {entries[0].filename[:60]!r}, not with a USD layer")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise InvalidInputError(
                f"{path}: {entry.filename[:60]!r} is compressed or encrypted, which USDZ does not allow"
            )
        if entry.header_offset + entry.file_size > size:
            raise InvalidInputError(f"{path}: {entry.filename[:60]!r} claims more bytes than the package has")


def _check_layers(path: Path) -> None:
    """Open every layer on its own and check where it points before composing anything."""
    root = str(path.absolute())
    waiting, seen = [root], {root}
    while waiting:
        name = waiting.pop()
        layer = _open_layer(name, path)
        _refuse_clips(layer, path)
        for reference in sorted(filter(None, layer.GetCompositionAssetDependencies())):  # "": the layer itself
            target = resolve_beside(layer, reference, path)
            if target not in seen:
                seen.add(target)
                waiting.append(target)


def _open_layer(name: str, path: Path) -> Sdf.Layer:
    if _split_package(name)[1] is None:
        check_crate(Path(name))
    layer = Sdf.Layer.Find(name)
    if layer is not None:  # Still open from an earlier read, perhaps of another content.
        layer.Reload(force=True)
    else:
        layer = Sdf.Layer.FindOrOpen(name)
    if layer is None:
        what = path if name == str(path.absolute()) else name
        raise InvalidInputError(f"{what}: not a readable USD file")
    return layer


def _refuse_clips(layer: Sdf.Layer, path: Path) -> None:
    found = []

    def visit(spec_path: Sdf.Path) -> None:
        spec = layer.GetPrimAtPath(spec_path) if spec_path.IsPrimPath() else None
        if spec is not None and spec.HasInfo("clips"):
            found.append(spec_path)

    layer.Traverse(Sdf.Path.absoluteRootPath, visit)
    if found:
        raise InvalidInputError(f"{path}: value clips (at {found[0]}) are not supported")


def resolve_beside(layer: Sdf.Layer, reference: str, path: Path) -> str:
    """The identifier of what `layer` names as `reference`, checked to be in the folder or the package and to exist."""
    if reference.startswith("`"):
        raise InvalidInputError(f"{path}: refers to {reference[:80]!r}; variable paths are not supported")
    package, inside = _split_package(layer.realPath)
    path_beside(path, reference)  # Refuses absolute paths and URLs.
    if inside is not None:
        joined = os.path.normpath(os.path.join(os.path.dirname(inside), reference)).replace(os.sep, "/")  # noqa: PTH118, PTH120
        target = f"{package}[{joined}]"
        if joined.startswith("..") or not Ar.GetResolver().Resolve(target):
            raise MissingInputError(f"{reference}, named by {path}, is not in the package")
        return target
    # Relative to the layer that says it, but inside the folder of the file that was asked for.
    joined = Path(os.path.normpath(Path(layer.realPath).parent / reference))
    if not joined.is_relative_to(path.absolute().parent):
        raise InvalidInputError(f"{path}: refers to {reference[:80]!r}, which is outside its folder")
    if not joined.exists():
        raise MissingInputError(f"{joined}, named by {path}, does not exist")
    return str(joined)


def _split_package(real_path: str) -> tuple[str, str | None]:
    """("x.usdz", "a/b.usdc") of "x.usdz[a/b.usdc]"; a package's own path means its first layer's folder."""
    if real_path.endswith("]"):
        package, _, inside = real_path.partition("[")
        return package, inside[:-1]
    if real_path.lower().endswith(".usdz"):
        return real_path, ""
    return real_path, None


def read_asset(identifier: str, path: Path) -> bytes:
    """The bytes of a file beside the layer or in the package, as `resolve_beside` named it."""
    package, inside = _split_package(identifier)
    if inside is None:
        return read_file(Path(identifier), named_by=path)
    with zipfile.ZipFile(package) as archive:
        try:
            return archive.read(inside)
        except (KeyError, zipfile.BadZipFile, RuntimeError) as error:
            raise MissingInputError(f"{inside}, named by {path}, is not in the package") from error


def write_usd(scene: Scene, path: Path, textures: Path, textures_name: str) -> tuple[list[str], list[Path]]:
    """Write .usda, .usdc, .usd (crate) or .usdz. Pictures go into `textures` (in a package: inside), and the layer
    knows that folder as `textures_name` beside itself. Returns (warnings, files written, the layer last).
    """
    package = path.suffix.lower() == ".usdz"
    writer = UsdWriter(scene, "textures" if package else f"./{textures_name}", package=package)
    with quiet():
        layer = writer.write().GetRootLayer()
        written = []
        if package:
            _write_package(layer, writer.textures, path)
        else:
            for name, data in sorted(writer.textures.items()):
                with atomic(textures / name) as partial:
                    partial.write_bytes(data)
                written.append(textures / name)
            with atomic(path) as partial:
                _export(layer, partial)
    return writer.warnings, [*written, path]


def _export(layer: Sdf.Layer, path: Path) -> None:
    try:
        done = layer.Export(str(path))
    except Tf.ErrorException as error:
        raise OSError(f"USD could not write it: {reason(error)}") from error
    if not done:
        raise OSError("USD could not write it")


def _write_package(layer: Sdf.Layer, textures: dict[str, bytes], path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, atomic(path) as partial:
        name = "scene.usdc"
        _export(layer, Path(folder) / name)
        for picture, data in textures.items():
            target = Path(folder) / "textures" / picture
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
        _zip_aligned(
            partial,
            [(name, Path(folder) / name)]
            + [(f"textures/{picture}", Path(folder) / "textures" / picture) for picture in sorted(textures)],
        )


def _zip_aligned(path: Path, files: list[tuple[str, Path]]) -> None:
    """An uncompressed zip whose files start at multiples of 64 bytes (USDZ specification, "Layout"), all of one
    date.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as package:
        for name, source in files:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            header = 30 + len(name.encode())
            padding = -(package.fp.tell() + header + 4) % 64
            entry.extra = b"\x86\x19" + padding.to_bytes(2, "little") + b"\0" * padding
            with source.open("rb") as data, package.open(entry, "w") as target:
                shutil.copyfileobj(data, target)
