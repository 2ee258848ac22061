# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "cyclopts>=4.0",
#     "filelock>=3.16",
#     "numpy>=2.0",
#     "opentelemetry-exporter-otlp-proto-http>=1.40",
#     "opentelemetry-sdk>=1.40",
#     "pillow>=11.0",
#     "psutil>=6.0",
#     "scipy>=1.14",
#     "tqdm>=4.67",
#     "usd-core>=25.5",
# ]
# ///
"""Turn the triangles of a mesh into quads: pairs of triangles are joined so that as few as possible are left over.

Which pairs is a maximum-weight matching, solved exactly up to some 10 000 triangles per island and to a printed bound beyond. Points,
seams, hard edges, materials, skins and textures stay as they are.

Examples:
  uv run tris_to_quads_converter.py character.glb
  uv run tris_to_quads_converter.py scan.obj --objective length --max-angle 30 -o scan_quads.usdz
  uv run tris_to_quads_converter.py --inputs-from meshes.txt --time-limit 60 --json
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, Literal

try:
    from shared_utils.args import item_input, option
    from shared_utils.errors import InvalidInputError, PostConditionError
    from shared_utils.options import CommonOptions, MeshOptions, check_ending
    from shared_utils.output_dir import ItemOutput
    from shared_utils.run import Result, Run, Script, Smoke, run_script
except ModuleNotFoundError as error:
    if error.name not in ("shared_utils", "meshes"):
        raise
    print(
        f"error: {__file__} needs the folder {error.name}/ beside it: copy the whole repository,"
        " or make one file of the script with `uv run bundle.py`",
        file=sys.stderr,
    )
    raise SystemExit(78) from None

FORMATS = ("usdc", "usda", "usdz", "glb", "obj")
PICTURE = 800  # pixels, the side of each half of the preview
PICTURE_FACES = 2_000_000  # above it no preview is drawn


@dataclasses.dataclass(kw_only=True)
class Config(MeshOptions, CommonOptions):
    input: Path | None = item_input("A mesh: GLB/glTF, USD, OBJ, PLY, STL or FBX.")
    format: Literal["usdc", "usda", "usdz", "glb", "obj"] | None = option(
        None, "Format of the result; default usdc, or what --output ends in.", group="Result"
    )
    mesh: tuple[str, ...] = option(
        (), "Convert only the mesh of this name; may be repeated.", group="Pairing", aliases=("--prim",)
    )
    objective: Literal["shape", "length"] = option(
        "shape",
        "What is best: shape = as many quads as possible, of the best shape; length = 1 + 0.1 x length / longest a dissolved edge.",
        group="Pairing",
    )
    max_angle: float | None = option(
        None,
        "Largest angle between two joined triangles, degrees; default 40 for shape, none for length.",
        group="Pairing",
        minimum=0.0,
        maximum=180.0,
    )
    ignore_seams: bool = option(
        False, "Let quads lie across seams of UVs, normals, colours and skin weights.", group="Pairing"
    )
    ignore_materials: bool = option(False, "Let quads lie across borders of materials.", group="Pairing")
    time_limit: float | None = option(
        None, "Seconds after which the best found so far is taken.", group="Pairing", minimum=0.0
    )
    preview: bool = option(True, "Draw preview.png: before and after.", group="Result")

    def check(self) -> None:
        check_ending(self.output, self.format, FORMATS)


def check(item: Config) -> None:
    from meshes.io import check_readable

    check_readable(item.input)


def generate(run: Run, item: Config, out: ItemOutput) -> Result:
    from meshes.io import read_scene

    earlier = dict(run.report.seconds)
    with run.phase("read"):
        scene = read_scene(item.input, fbx_timeout=item.fbx_timeout)
    for warning in scene.warnings:
        run.warn(warning)
    chosen = choose_meshes(scene, item)
    before = dict(enumerate(scene.meshes))
    with run.phase("pair"):
        reports = pair(run, scene, chosen, item)
    suffix = item.output.suffix.lower() if item.output else f".{item.format or 'usdc'}"
    primary = out.primary(f"{item.input.stem}_quads{suffix}")
    with run.phase("write"):
        write(run, scene, primary, suffix, out)
    faces = sum(len(mesh.face_sizes) for mesh in scene.meshes)
    if item.preview and faces > PICTURE_FACES:
        run.info(f"no preview: more than {PICTURE_FACES} faces")
    elif item.preview:
        with run.phase("preview"):
            draw(scene, before, out)
    seconds = {name: round(value - earlier.get(name, 0.0), 3) for name, value in run.report.seconds.items()}
    return Result(report=summary(run, scene, chosen, reports) | {"phase_seconds": seconds})


def choose_meshes(scene: Any, item: Config) -> list[int]:
    """Indices of the meshes to convert. Raises `InvalidInputError` when there is none, or none of a name asked for."""
    if not scene.meshes:
        raise InvalidInputError(f"{item.input}: no mesh in it")
    if not any(len(mesh.face_sizes) for mesh in scene.meshes):
        raise InvalidInputError(f"{item.input}: no face in it")
    if not item.mesh:
        return list(range(len(scene.meshes)))
    names = [{mesh.name} for mesh in scene.meshes]
    for node in scene.nodes:
        if node.mesh is not None:
            names[node.mesh].add(node.name)
    for name in item.mesh:
        if not any(name in given for given in names):
            known = ", ".join(sorted(set().union(*names)))
            raise InvalidInputError(f"--mesh {name}: no mesh of that name in {item.input} (there are {known})")
    return [index for index, given in enumerate(names) if given & set(item.mesh)]


def pair(run: Run, scene: Any, chosen: list[int], item: Config) -> list[Any]:
    """Replace the chosen meshes by their quad versions; one report each."""
    from meshes.pairing import PairingSettings, convert_meshes

    settings = PairingSettings(item.objective, item.max_angle, item.ignore_seams, item.ignore_materials)
    with run.console.progress(1.0, "pairing", "of the work") as bar:
        done = convert_meshes(
            [scene.meshes[index] for index in chosen],
            settings,
            time_limit=item.time_limit,
            seed=item.seed,
            workers=os.cpu_count() or 1,
            progress=lambda fraction: bar.advance(max(0.0, fraction - bar.done)),
        )
    for index, (mesh, _) in zip(chosen, done, strict=True):
        scene.meshes[index] = mesh
    return [report for _, report in done]


def write(run: Run, scene: Any, path: Path, suffix: str, out: ItemOutput) -> None:
    """Write the scene and read it again: every face must have arrived. Raises `PostConditionError`."""
    from meshes.io import read_scene, write_staged

    def check_faces(written: Path) -> None:
        # As shown: OBJ writes a mesh once for every place it stands at.
        faces = [
            sum(len(s.meshes[mesh].face_sizes) for _, mesh in s.mesh_nodes()) for s in (scene, read_scene(written))
        ]
        if suffix != ".glb" and faces[0] != faces[1]:
            raise PostConditionError(f"{written.name}: {faces[1]} of {faces[0]} faces arrived in the file")

    for warning in write_staged(scene, path, out, check_faces):
        run.warn(warning)


def draw(scene: Any, before: dict[int, Any], out: ItemOutput) -> None:
    """preview.png: before and after, side by side, seen from the same place."""
    from meshes.preview import fit_view, panels, render, save_png

    old = dataclasses.replace(scene, meshes=list(before.values()))
    view = fit_view(scene)
    pictures = [(render(old, PICTURE, view), "before"), (render(scene, PICTURE, view), "after")]
    save_png(panels(pictures), out.file("preview.png", role="preview"))


def summary(run: Run, scene: Any, chosen: list[int], reports: list[Any]) -> dict[str, Any]:
    """Counts over all meshes, then each mesh's own."""
    total = {
        name: sum(getattr(report, name) for report in reports)
        for name in (
            "triangles_before",
            "triangles_after",
            "quads_before",
            "quads_after",
            "ngons",
            "objective",
            "bound",
        )
    }
    faces = total["triangles_after"] + total["quads_after"] + total["ngons"]
    total |= {
        "quad_share": total["quads_after"] / faces if faces else 0.0,
        "ratio": total["objective"] / total["bound"] if total["bound"] > 0 else 1.0,
        "optimal": all(report.optimal for report in reports),
        "complete": all(report.complete for report in reports),
        "meshes": [
            {"name": scene.meshes[i].name, **report.as_dict()} for i, report in zip(chosen, reports, strict=True)
        ],
    }
    run.info(
        f"{total['triangles_before']} triangles -> {total['quads_after'] - total['quads_before']} new quads, "
        f"{total['triangles_after']} triangles left; objective {total['objective']:.3f}, "
        f"bound {total['bound']:.3f}, ratio {total['ratio']:.6f}{' (optimal)' if total['optimal'] else ''}"
    )
    run.spans.record_metric("tris_to_quads.triangles", total["triangles_before"], "{face}", kind="counter")
    return total


def smoke_test(folder: Path) -> Smoke:
    from meshes.io import write_scene
    from meshes.samples import triangle_patch

    write_scene(triangle_patch(), folder / "patch.glb")
    return Smoke(inputs=(folder / "patch.glb",))


SCRIPT = Script(
    name="tris_to_quads",
    file=__file__,
    docstring=__doc__,
    config=Config,
    check=check,
    generate=generate,
    smoke_test=smoke_test,
    item_folders=True,
    seed=0,
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
