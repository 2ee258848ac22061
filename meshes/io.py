"""Reading and writing scenes by file name ending."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from meshes.scene import Scene
from shared_utils.errors import InvalidInputError, MissingInputError, UsageError
from shared_utils.output_dir import ItemOutput

READABLE = (".glb", ".gltf", ".usd", ".usda", ".usdc", ".usdz", ".obj", ".ply", ".stl", ".fbx")
LFS_POINTER = b"version https://git-lfs"
WRITABLE = (".usdc", ".usda", ".usdz", ".glb", ".obj")


@dataclass
class Written:
    """What `write_scene` did: `warnings` name what the format could not keep, `files` everything written, the scene
    last.
    """

    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def check_readable(path: Path) -> None:
    """Look at a mesh file without reading it. Raises InvalidInputError: an ending no reader knows, or a Git LFS pointer."""
    if path.suffix.lower() not in READABLE:
        ending = path.suffix or "nothing"
        raise InvalidInputError(f"{path}: cannot read files ending in {ending}; readable: {' '.join(READABLE)}")
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise InvalidInputError(f"{path}: a Git LFS pointer and not the file itself (run `git lfs pull` there)")


def read_scene(path: Path | str, *, fbx_timeout: float | None = None) -> Scene:
    """Read a scene; `Scene.warnings` names what could not be kept. `fbx_timeout`: seconds that Blender may take for
    an FBX.

    Raises MissingInputError (it, or a file it names, is not there) or InvalidInputError (damaged, unsupported, not a
    file, points outside its folder), each with one line; for FBX also UnavailableError or TemporaryError (see
    `meshes.fbx`).
    """
    path = Path(path)
    if not path.exists():
        raise MissingInputError(f"{path} does not exist")
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a file")
    check_readable(path)
    suffix = path.suffix.lower()
    if suffix in (".glb", ".gltf"):
        from meshes.gltf_read import read_gltf

        return read_gltf(path)
    if suffix in (".usd", ".usda", ".usdc", ".usdz"):
        from meshes.usd_read import read_usd

        return read_usd(path)
    if suffix in (".obj", ".ply", ".stl"):
        from meshes.polygons import read_polygons

        return read_polygons(path)
    from meshes.fbx import read_fbx

    return read_fbx(path, timeout=fbx_timeout)


def write_scene(
    scene: Scene, path: Path | str, *, final: Path | None = None, companions: Path | None = None
) -> Written:
    """Write a scene in the format that `path` ends in. Each file appears complete, through a partial name in its own
    folder.

    A GLB or USDZ is one file. Beside a USDC, USDA or OBJ lies a folder `<stem>_textures` with its pictures (and the
    OBJ's `<stem>.mtl`). A caller which stages `path` under another name says with `final` what it will be called,
    and may choose with `companions` the folder in which the further files are put meanwhile.

    Raises InvalidInputError for a scene the format cannot hold, UsageError for an ending that is not written,
    OutputWriteError.
    """
    path = Path(path)
    final = Path(final) if final is not None else path
    companions = Path(companions) if companions is not None else final.parent
    suffix, textures_name = path.suffix.lower(), f"{final.stem}_textures"
    if suffix == ".glb":
        from meshes.gltf_write import gltf_bytes
        from shared_utils.output_dir import atomic

        data, warnings = gltf_bytes(scene)
        with atomic(path) as partial:
            partial.write_bytes(data)
        return Written(warnings, [path])
    if suffix in (".usdc", ".usda", ".usdz"):
        from meshes.usd_files import write_usd

        return Written(*write_usd(scene, path, companions / textures_name, textures_name))
    if suffix == ".obj":
        from meshes.obj_write import write_obj

        return Written(*write_obj(scene, path, companions, final.stem))
    raise UsageError(f"{path}: cannot write files ending in {suffix or 'nothing'}; writable: {' '.join(WRITABLE)}")


def write_staged(
    scene: Scene, partial: Path, out: ItemOutput, check: Callable[[Path], None] = lambda path: None
) -> list[str]:
    """Write a scene as a result of a script; return what its format could not hold, one line each.

    It is made under its final name in a hidden folder beside, with its pictures, where `check` can read it back; then it
    takes the partial path that `out` handed out, and what lies beside it is staged along. Raises as `write_scene`.
    """
    with tempfile.TemporaryDirectory(dir=partial.parent, prefix=".partial-") as folder:
        trial = Path(folder) / out.final(partial).name
        written = write_scene(scene, trial)
        check(trial)
        trial.replace(partial)
        for companion in sorted(Path(folder).iterdir()):
            companion.replace(out.beside(partial, companion.name, role="companion"))
    return written.warnings
