# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "cyclopts>=4.0",
#     "filelock>=3.16",
#     "matplotlib>=3.9",
#     "numpy>=2.0",
#     "opentelemetry-exporter-otlp-proto-http>=1.40",
#     "opentelemetry-sdk>=1.40",
#     "pillow>=11.0",
#     "psutil>=6.0",
#     "tqdm>=4.67",
#     "usd-core>=25.5",
# ]
# ///
"""Bake corrective smoothing into skin weights, for engines that have linear-blend skinning and nothing else.

The rigged model is posed at random, skinned and smoothed as Blender's Corrective Smooth modifier does it; then the weights are found
that bring plain skinning as close to that as it can get.

Examples:
  uv run corrective_smooth_baker.py character.glb
  uv run corrective_smooth_baker.py character.fbx --influence-bones 4 --iterations 10 -o character.usdz
  uv run corrective_smooth_baker.py --inputs-from rigs.txt --bake-range deviation --deviation-threshold 0.05 --json
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

try:
    from shared_utils.args import item_input, option
    from shared_utils.errors import InvalidInputError, MissingInputError, PostConditionError, UsageError
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

FORMATS = ("usdc", "usda", "usdz", "glb")
QUALITIES = (0.5, 0.75, 1.0, 2.0, 3.0)
Solver = Literal["nnls", "std", "cholesky", "qr", "inv", "pinv", "lstsq", "svd"]


@dataclasses.dataclass(kw_only=True)
class Config(MeshOptions, CommonOptions):
    input: Path | None = item_input("A rigged model: USD, glTF/GLB or FBX with a skeleton and skinned meshes.")
    format: Literal["usdc", "usda", "usdz", "glb"] | None = option(
        None, "Format of the result; default usdc, or what --output ends in.", group="Result"
    )
    smooth_type: Literal["length-weighted", "simple"] = option(
        "length-weighted", "How neighbours are weighted, as in Blender.", group="Smoothing"
    )
    factor: float = option(1.0, "Strength of one smoothing step.", group="Smoothing", minimum=0.0, maximum=1.0)
    iterations: int = option(5, "Smoothing steps.", group="Smoothing", minimum=0, maximum=200)
    pin_boundary: bool = option(False, "Hold open edges where they are.", group="Smoothing")
    smooth_group: str | None = option(
        None,
        "Scale the smoothing per point: a primvar of the mesh, a joint (its weight), or a text file with one number from 0 to 1 a line.",
        group="Smoothing",
        aliases=("--mask",),
    )
    only_smooth: bool = option(False, "Smooth without restoring the detail of the rest shape.", group="Smoothing")
    bake_range: Literal["all", "selected", "deviation"] = option("all", "Which points get new weights.", group="Baking")
    vertices: str | None = option(
        None,
        "With --bake-range selected: a primvar (non-zero = selected) or a text file with one point index (from 0) a line.",
        group="Baking",
    )
    deviation_threshold: float = option(
        0.01,
        "With --bake-range deviation: centimetres by which smoothing must move a point.",
        group="Baking",
        minimum=0.0,
    )
    bake_quality: float = option(
        1.0,
        "Poses per deforming bone: 0.5, 0.75, 1, 2 or 3.",
        group="Baking",
        check=lambda value: None if value in QUALITIES else "must be 0.5, 0.75, 1, 2 or 3",
    )
    poses: int | None = option(
        None, "Random poses; default max(bones x quality, 80).", group="Baking", minimum=1, maximum=10000
    )
    twist_angle: float = option(45.0, "Largest turn of a bone, degrees.", group="Baking", minimum=0.0, maximum=180.0)
    influence_bones: int = option(
        8, "Bones that may move a point; 0 is no limit.", group="Baking", minimum=0, maximum=1024
    )
    prune_threshold: float = option(0.01, "Weights below it are dropped.", group="Baking", minimum=0.0, maximum=0.5)
    solver: Solver = option(
        "nnls",
        "nnls keeps weights positive while solving; the others solve without and cut afterwards.",
        group="Baking",
    )
    preview: bool = option(True, "Draw preview.png and deviation.png.", group="Result")

    def check(self) -> None:
        if (self.bake_range == "selected") != (self.vertices is not None):
            raise UsageError("--bake-range selected and --vertices go together")
        check_ending(self.output, self.format, FORMATS)


def check(item: Config) -> None:
    from meshes.io import check_readable

    check_readable(item.input)


def generate(run: Run, item: Config, out: ItemOutput) -> Result:
    import numpy as np

    from meshes.corrective_bake import bake_mesh, deform_bones
    from meshes.io import read_scene, write_staged

    with run.phase("read"):
        scene = read_scene(item.input, fbx_timeout=item.fbx_timeout)
    for warning in scene.warnings:
        run.warn(warning)
    skinned = [m for m in scene.meshes if m.skin is not None and len(m.points)]
    if not skinned:
        raise InvalidInputError(
            f"{item.input}: no skinned mesh in it ({len(scene.meshes)} mesh(es), {len(scene.skeletons)} skeleton(s))"
        )
    untouched = [m.name for m in scene.meshes if m.skin is None]
    if untouched:
        run.info(f"without a skin, kept as they are: {', '.join(untouched)}")
    for mesh in skinned:
        check_mesh(mesh, item)

    rng = np.random.default_rng(item.seed)
    results = []
    with run.phase("bake"), run.console.progress(sum(len(m.points) for m in skinned), "baking", "points") as bar:
        for mesh in skinned:
            skeleton = scene.skeletons[mesh.skin.skeleton]
            baked = solve(
                run, scene, mesh, skeleton, deform_bones(mesh.skin.skeleton, scene.meshes), item, rng, bar, bake_mesh
            )
            results.append((mesh, baked))
    for mesh, baked in results:
        mesh.skin = baked.skin
        if baked.report.unweighted:
            run.warn(f"mesh {mesh.name!r}: {baked.report.unweighted} points without weights are kept as they are")

    suffix = item.output.suffix.lower() if item.output else f".{item.format or 'usdc'}"
    primary = out.primary(f"{item.input.stem}_corrected{suffix}")
    with run.phase("write"):
        for warning in write_staged(scene, primary, out, lambda path: check_written(path, scene)):
            run.warn(warning)
    if item.preview:
        with run.phase("preview"):
            draw(results, out)
    return Result(report=report(run, results, untouched))


def check_mesh(mesh: Any, item: Config) -> None:
    import numpy as np

    if not np.isfinite(mesh.points).all():
        raise InvalidInputError(f"{item.input}: mesh {mesh.name!r} has positions that are not finite numbers")
    if not np.isfinite(mesh.skin.weights).all() or (mesh.skin.weights < 0).any():
        raise InvalidInputError(f"{item.input}: mesh {mesh.name!r} has weights that are negative or not finite")


def solve(
    run: Run, scene: Any, mesh: Any, skeleton: Any, moving: Any, item: Config, rng: Any, bar: Any, bake_mesh: Any
) -> Any:
    """Bake one mesh with the settings of the command line."""
    from numpy.linalg import LinAlgError

    from meshes.corrective_bake import BakeSettings
    from meshes.smoothing import SmoothSettings

    settings = BakeSettings(
        smooth=SmoothSettings(item.smooth_type, item.factor, item.iterations, item.pin_boundary, item.only_smooth),
        quality=item.bake_quality,
        poses=item.poses,
        twist_angle=item.twist_angle,
        influences=item.influence_bones,
        solver=item.solver,
        prune=item.prune_threshold,
        bake_range=item.bake_range,
        deviation_threshold=item.deviation_threshold,
    )
    try:
        return bake_mesh(
            mesh,
            skeleton,
            moving,
            settings,
            rng,
            centimetres_per_unit=centimetres_per_unit(scene, mesh),
            selection=selected_points(mesh, item) if item.vertices else None,
            mask=smoothing_mask(mesh, skeleton, item) if item.smooth_group else None,
            progress=bar.advance,
        )
    except LinAlgError:
        raise PostConditionError(
            f"mesh {mesh.name!r}: its equations are singular for --solver {item.solver} (nnls, pinv, lstsq and svd can solve them)"
        ) from None


def centimetres_per_unit(scene: Any, mesh: Any) -> float:
    """How long one unit of the mesh's own space is in the scene, by the cube root of its volume scale."""
    import numpy as np

    node = scene.world_matrices()[scene.skeleton_node(mesh.skin.skeleton)]
    volume = abs(np.linalg.det((node @ mesh.skin.bind_transform)[:3, :3]))
    return float(volume ** (1 / 3) * scene.metres_per_unit * 100)


def numbers_of(path: Path, kind: type) -> list:
    try:
        return [kind(line) for line in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path}: must hold one number a line ({error})") from None


def point_values(mesh: Any, name: str) -> Any:
    """A primvar as one number per point, or None when the mesh has none of that name or not per point."""
    import numpy as np

    primvar = mesh.primvars.get(name)
    if primvar is None or primvar.interpolation not in ("vertex", "constant"):
        return None
    values = np.asarray(primvar.values, np.float64)
    values = values if primvar.indices is None else values[primvar.indices]
    if primvar.interpolation == "constant":
        values = np.broadcast_to(values, (len(mesh.points), *values.shape[1:]))
    return values.reshape(len(mesh.points), -1)[:, 0]


def selected_points(mesh: Any, item: Config) -> Any:
    """The points `--vertices` names, as a mask [V]."""
    import numpy as np

    values = point_values(mesh, item.vertices)
    if values is not None:
        return values != 0
    if not Path(item.vertices).exists():
        raise MissingInputError(f"--vertices {item.vertices}: neither a primvar of mesh {mesh.name!r} nor a file")
    indices = np.array(numbers_of(Path(item.vertices), int), np.int64)
    if indices.size and (indices.min() < 0 or indices.max() >= len(mesh.points)):
        raise InvalidInputError(
            f"--vertices {item.vertices}: a point outside 0..{len(mesh.points) - 1} of mesh {mesh.name!r}"
        )
    mask = np.zeros(len(mesh.points), bool)
    mask[indices] = True
    return mask


def smoothing_mask(mesh: Any, skeleton: Any, item: Config) -> Any:
    """The strength `--smooth-group` gives each point, [V] from 0 to 1."""
    import numpy as np

    values = point_values(mesh, item.smooth_group)
    if values is None and item.smooth_group in skeleton.joints:
        from meshes.weight_rows import dense_rows

        joint = skeleton.joints.index(item.smooth_group)
        values = dense_rows(mesh.skin.offsets, mesh.skin.joints, mesh.skin.weights, len(skeleton.joints))[:, joint]
    if values is None:
        if not Path(item.smooth_group).exists():
            raise MissingInputError(
                f"--smooth-group {item.smooth_group}: neither a primvar nor a joint of mesh {mesh.name!r} nor a file"
            )
        values = np.array(numbers_of(Path(item.smooth_group), float))
    if len(values) != len(mesh.points):
        raise InvalidInputError(
            f"--smooth-group {item.smooth_group}: {len(values)} numbers for the {len(mesh.points)} points of mesh {mesh.name!r}"
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise InvalidInputError(f"--smooth-group {item.smooth_group}: numbers must be from 0 to 1")
    return values


def check_written(path: Path, scene: Any) -> None:
    """Read the file again: same meshes, faces and influences. Raises `PostConditionError`."""
    from meshes.io import read_scene

    again = read_scene(path)
    written = sorted(sum(m.skin is not None for m in s.meshes) for s in (scene, again))
    if written[0] != written[1]:
        raise PostConditionError(f"{path.name}: {written[0]} of {written[1]} skinned meshes arrived in the file")


def report(run: Run, results: list, untouched: list[str]) -> dict[str, Any]:
    meshes = [dataclasses.asdict(baked.report) for _, baked in results]
    for row in meshes:
        run.info(
            f"{row['name']}: {row['baked']} of {row['points']} points baked, distance to the smoothed target "
            f"{row['rms_limited']:.4g} -> {row['rms_after']:.4g} RMS, {row['max_limited']:.4g} -> {row['max_after']:.4g} largest (held-out poses)"
        )
        run.spans.record_metric("corrective_smooth.points", row["points"], "{point}", kind="counter")
    return {"meshes": meshes, "unskinned_meshes": untouched}


def draw(results: list, out: ItemOutput) -> None:
    from meshes.bake_pictures import deviation_histogram, worst_pose

    deviation_histogram([(baked.before, baked.after) for _, baked in results], out.file("deviation.png", role="report"))
    worst_pose(results, out.file("preview.png", role="preview"))


def smoke_test(folder: Path) -> Smoke:
    from meshes.io import write_scene
    from meshes.samples import limb

    path = folder / "limb.usdc"
    write_scene(limb(bones=4, rings=24, segments=16), path)
    return Smoke(inputs=(path,), settings={"poses": 20})


SCRIPT = Script(
    name="corrective_smooth",
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
