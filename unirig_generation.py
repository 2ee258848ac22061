# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "cyclopts>=4.0",
#     "fast-simplification>=0.1.9",
#     "filelock>=3.16",
#     "huggingface-hub>=1.5",
#     "numpy>=2.0",
#     "opentelemetry-exporter-otlp-proto-http>=1.40",
#     "opentelemetry-sdk>=1.40",
#     "pillow>=11.0",
#     "psutil>=6.0",
#     "pyyaml>=6.0.2",
#     "safetensors>=0.5",
#     "scipy>=1.14",
#     "torch>=2.10",
#     "tqdm>=4.67",
#     "transformers>=5.3",
#     "trimesh>=4.5",
#     "usd-core>=25.5",
# ]
#
# [[tool.uv.index]]
# name = "pytorch-cu130"
# url = "https://download.pytorch.org/whl/cu130"
# explicit = true
#
# [tool.uv.sources]
# # PyPI's torch for Windows computes on the CPU only.
# torch = { index = "pytorch-cu130", marker = "sys_platform == 'win32'" }
# ///
"""Rig a mesh with UniRig (VAST-AI): predicts a skeleton and skin weights, and keeps faces, UVs, materials and textures as they are.

Runs on any device, with no package that needs CUDA. Makes rigged.usdc, skeleton.usdc and preview.png.

Examples:
  uv run unirig_generation.py character.glb
  uv run unirig_generation.py character.obj --format usdz,glb --num-beams 5 --seed 7
  uv run unirig_generation.py character.glb --skeleton-only -o skeleton.usda
  uv run unirig_generation.py character.glb --skin-only --skeleton skeleton.usda -o rigged.usdz
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

try:
    from networks.unirig.plan import Cost, skeleton_cost, skin_cost
    from shared_utils import device
    from shared_utils.args import item_input, option
    from shared_utils.errors import InvalidInputError, MissingInputError, PostConditionError, UsageError
    from shared_utils.hugging_face import Weights
    from shared_utils.libraries import quiet_libraries
    from shared_utils.options import MeshOptions, ModelOptions, check_ending
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

SKELETON = "skeleton/articulation-xl_quantization_256"
SKIN = "skin/articulation-xl"
WEIGHTS = {
    role: Weights(
        "VAST-AI/UniRig",
        allow_patterns=(f"{folder}/model.ckpt", f"{folder}/*.json"),
        licence="MIT",
        size_gb=1.5,
        memory_gb=memory,
    )
    for role, folder, memory in (("skeleton", SKELETON, 3.0), ("skin", SKIN, 3.0))
}
FORMATS = ("usdc", "usda", "usdz", "glb")
INFLUENCES = (0, 4, 8)
TOKENS_A_LINE = 100  # between two lines about the progress
NAMES_SHOWN = 5

_SKELETON = {"group": "Skeleton"}
_GENERATION = {"group": "Generation"}


def _formats_rule(value: str) -> str | None:
    wrong = [name for name in value.split(",") if name not in FORMATS]
    return f"must be {', '.join(FORMATS)}, several with commas" if wrong else None


@dataclasses.dataclass(kw_only=True)
class Config(MeshOptions, ModelOptions):
    input: Path | None = item_input("A mesh: GLB, glTF, USD, FBX, OBJ, PLY or STL. An existing rig is replaced.")
    format: tuple[str, ...] = option(
        (),
        "usdc, usda, usdz or glb; several with commas. Default usdc, or what --output ends in.",
        group="Result",
        aliases=("--output-format", "-f"),
        check=_formats_rule,
    )
    preview: bool = option(True, "Draw preview.png.", group="Result")
    up_axis: Literal["auto", "y", "z"] = option(
        "auto", "Which way is up in the input; auto is what its format says.", group="Input"
    )
    target_faces: int = option(
        50_000,
        "Faces the networks see at most; the result keeps all of its own.",
        group="Input",
        minimum=100,
        maximum=1_000_000,
    )
    skeleton_only: bool = option(False, "Predict the skeleton and no weights.", **_SKELETON)
    skin_only: bool = option(False, "Predict weights for a skeleton: --skeleton, or the input's own.", **_SKELETON)
    skeleton: Path | None = option(None, "With --skin-only: any file with a skeleton in it.", **_SKELETON)
    skeleton_class: Literal["auto", "articulationxl", "vroid", "mixamo"] = option(
        "auto",
        "Kind of skeleton; auto is articulationxl (anything), or vroid where --bone-names needs a humanoid."
        " The published weights were not trained for mixamo.",
        aliases=("--class",),
        **_SKELETON,
    )
    bone_names: Literal["keep", "vrm", "mixamo"] = option(
        "keep", "Name humanoid bones as in VRM 1.0 or Mixamo.", **_SKELETON
    )
    max_bones: int | None = option(None, "Stop after this many bones.", minimum=1, maximum=512, **_SKELETON)
    influence_bones: int = option(
        4,
        "Bones that may move a point: 4, 8, or 0 for any number.",
        group="Skin",
        check=lambda value: None if value in INFLUENCES else "must be 4, 8 or 0",
    )
    num_beams: int | None = option(
        None, "Skeletons followed at a time; default 15. Fewer are faster.", minimum=1, maximum=64, **_GENERATION
    )
    temperature: float | None = option(
        None, "Randomness; default 1.5, 0 takes the likeliest.", minimum=0.0, maximum=100.0, **_GENERATION
    )
    top_k: int | None = option(
        None, "Choose from this many tokens; default 5, 0 is all.", minimum=0, maximum=267, **_GENERATION
    )
    top_p: float | None = option(
        None,
        "Choose from the tokens that make up this probability; default 0.95.",
        check=lambda value: None if 0 < value <= 1 else "must be above 0 and at most 1",
        **_GENERATION,
    )
    repetition_penalty: float | None = option(
        None,
        "How much repeated coordinates are held back; default 3, 1 is not at all.",
        check=lambda value: None if 0 < value <= 100 else "must be above 0 and at most 100",
        **_GENERATION,
    )
    task: tuple[Path, ...] = option(
        (),
        "A task file of UniRig (YAML), for its generation parameters; flags given here win.",
        aliases=("--skeleton-task", "--skin-task"),
        **_GENERATION,
    )
    skeleton_samples: int = option(
        65_536, "Points of the surface the skeleton model reads.", group="Quality", minimum=1024, maximum=1_000_000
    )
    skin_samples: int = option(
        32_768, "Points the skin model computes; time grows with them.", group="Quality", minimum=256, maximum=1_000_000
    )
    voxel_grid: int = option(
        196, "Voxels along a side, for distances inside.", group="Quality", minimum=16, maximum=512
    )

    def __post_init__(self) -> None:
        # Both checkpoints are in one repository, so a bare name stands for both.
        for name in ("model", "revision"):
            values = getattr(self, name)
            if len(values) == 1 and values[0].partition("=")[0] not in WEIGHTS:
                setattr(self, name, tuple(f"{role}={values[0]}" for role in WEIGHTS))

    def check(self) -> None:
        if self.skeleton_only and self.skin_only:
            raise UsageError("--skeleton-only and --skin-only exclude each other")
        if self.skeleton is not None and not self.skin_only:
            raise UsageError(f"--skeleton {self.skeleton}: only with --skin-only")
        if self.bone_names != "keep" and self.skeleton_class == "articulationxl" and not self.skin_only:
            raise UsageError(f"--bone-names {self.bone_names}: class articulationxl has no humanoid bones (use vroid)")
        check_ending(self.output, ",".join(formats(self)) if self.format else None, FORMATS)

    def predicted_class(self) -> str:
        """The class asked of the skeleton model."""
        if self.skeleton_class != "auto":
            return self.skeleton_class
        return "articulationxl" if self.bone_names == "keep" else "vroid"


def formats(item: Config) -> list[str]:
    """The formats to write, each once."""
    if item.format:
        return list(dict.fromkeys(name for value in item.format for name in value.split(",")))
    return [item.output.suffix.lower().lstrip(".") if item.output else "usdc"]


def roles(config: Config) -> list[str]:
    return ["skin"] if config.skin_only else ["skeleton"] if config.skeleton_only else ["skeleton", "skin"]


def check(item: Config) -> None:
    """Look at an item's files before anything is loaded."""
    from meshes.io import check_readable

    check_readable(item.input)
    if item.skeleton is not None:
        if not item.skeleton.is_file():
            raise MissingInputError(f"--skeleton {item.skeleton}: no such file")
        check_readable(item.skeleton)
    generation_settings(item)


def generation_settings(item: Config) -> tuple[dict[str, Any], str, list[str]]:
    """(arguments of GenerationSettings, skeleton class, keys of the task files without a meaning here): flags win over
    task files, these over the published values."""
    from networks.unirig.bone_limit import TOKENS_A_BONE
    from networks.unirig.task_file import read_task

    values: dict[str, Any] = {}
    chosen, ignored = item.predicted_class(), []
    for path in item.task:
        task = read_task(path)
        values |= task.generation
        ignored += task.ignored
        if task.skeleton_class and item.skeleton_class == "auto" and item.bone_names == "keep":
            chosen = task.skeleton_class
    for name in ("num_beams", "temperature", "top_k", "top_p", "repetition_penalty"):
        if getattr(item, name) is not None:
            values[name] = getattr(item, name)
    if values.get("temperature") == 0:
        values |= {"do_sample": False, "temperature": 1.0}
    if item.max_bones is not None:
        # One more for the end.
        values["max_new_tokens"] = min(values.get("max_new_tokens", 2048), TOKENS_A_BONE * item.max_bones + 1)
    return values, chosen, ignored


class Models:
    """The two networks, each loaded when it is needed. A batch keeps both where memory allows, a single run one."""

    def __init__(self, run: Run):
        self.run = run
        self.loaded: dict[str, Any] = {}
        self.folders: dict[str, Path] = {}

    def fetch(self) -> None:
        """Have the weights on disk before anything long begins."""
        for role in roles(self.run.config):
            self.folders[role] = self.run.weights(role).path

    def get(self, role: str) -> Any:
        """The network on the device."""
        if role in self.loaded:
            return self.loaded[role]
        run = self.run
        dtype = run.dtype()
        needed = 2 * WEIGHTS[role].memory_gb * 1e9
        if len(run.items) == 1 or device.free_memory(run.device) < needed:
            self.loaded.clear()
            device.release()
        with run.phase(f"load_{role}"):
            quiet_libraries("transformers", verbose=run.config.verbose)
            from networks.unirig.ar import SkeletonModel
            from networks.unirig.skin import SkinModel

            folder, kind = {"skeleton": (SKELETON, SkeletonModel), "skin": (SKIN, SkinModel)}[role]
            path = self.folders[role] / folder / "model.ckpt"
            self.loaded[role] = kind.from_checkpoint(path, device=run.device, dtype=dtype)
        run.console.detail(f"{role} model loaded, {str(dtype).removeprefix('torch.')}")
        return self.loaded[role]


def costs(item: Config, run: Run) -> dict[str, Cost]:
    """Memory and time of the stages of an item, with the published weights."""
    number_bytes = run.dtype().itemsize
    cores = (
        None
        if run.device != "cpu"
        else len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    beams = generation_settings(item)[0].get("num_beams", 15)
    stages = {
        "skeleton": skeleton_cost(number_bytes, beams, cores),
        "skin": skin_cost(number_bytes, item.skin_samples, item.voxel_grid, cores),
    }
    return {role: stages[role] for role in roles(item)}


def announce(run: Run, item: Config) -> None:
    """Say what the item will take."""
    if run.smoke is not None:
        return
    free = device.free_memory(run.device)
    for role, cost in costs(item, run).items():
        took = (
            "" if cost.seconds is None else f", some {max(1, round(cost.seconds / 60))} min with the published weights"
        )
        run.info(f"{role}: about {device.gigabytes(cost.memory_bytes)} of {device.gigabytes(free)} free{took}")
        if cost.memory_bytes > free:
            run.warn(f"the {role} stage may not fit: --num-beams, --skin-samples or --dtype bf16 make it smaller")


def generate(models: Models, item: Config, out: ItemOutput) -> Result:
    """Rig one mesh."""
    from meshes.io import read_scene
    from networks.unirig import rigging
    from networks.unirig.mesh_prep import prepare_mesh

    run = models.run
    with run.phase("read"):
        scene = read_scene(item.input, fbx_timeout=item.fbx_timeout)
        if item.up_axis != "auto":
            scene.up_axis = item.up_axis.upper()
        source = read_scene(item.skeleton, fbx_timeout=item.fbx_timeout) if item.skeleton else None
        for warning in (*scene.warnings, *(source.warnings if source else ())):
            run.warn(warning)
        body = rigging.gather(scene, str(item.input))
        mesh = prepare_mesh(body.points, body.triangles, item.target_faces)
    run.info(
        f"{item.input.name}: {len(body.parts)} mesh(es), {len(body.points)} points; the networks see {len(mesh.faces)} faces"
    )
    if not item.skeleton_only:
        untouched = [m.name for i, m in enumerate(scene.meshes) if i not in {part.mesh for part in body.parts}]
        if untouched:
            run.warn(f"without faces, not rigged: {shown(untouched)}")
        if moving := rigging.moving_nodes(scene, body):
            run.warn(f"clips move {shown(moving)}, which will follow the joints instead")

    if item.skin_only:
        armature = given_skeleton(run, item, scene, body, source)
        models.fetch()
        announce(run, item)
        facts = {}
    else:
        if any(rigging.is_posed(skeleton) for skeleton in scene.skeletons):
            run.warn("the input is rigged and in a pose; the new rig starts from the pose it was bound in")
        if replaced := rigging.remove_rigs(scene):
            run.warn(f"the input's skeleton is replaced: {shown(replaced)}")
        models.fetch()
        announce(run, item)
        armature, facts = predict_skeleton(models, item, scene, body, mesh)
    rig = scene.skeletons[armature.skeleton]
    rename_joints(rig, item)

    weights, unused = None, []
    if not item.skeleton_only:
        weights = predict_weights(models, item, body, mesh, armature)
        unused = [rig.joints[j] for j in rigging.bind(scene, body, armature, weights)]
        if unused:
            run.warn(f"{len(unused)} of {len(rig.joints)} joints move no point: {shown(unused)}")

    alone = rigging.skeleton_scene(scene, armature)
    with run.phase("write"):
        for suffix in formats(item):
            stem, content = ("skeleton", alone) if item.skeleton_only else ("rigged", scene)
            write(run, out, out.primary(f"{stem}.{suffix}"), content)
        if not item.skeleton_only:
            write(run, out, out.file("skeleton.usdc", role="skeleton"), alone)
    if item.preview:
        with run.phase("preview"):
            draw(out, scene, body, armature, weights)
    return report(item, body, rig, unused, facts)


def shown(names: list[str]) -> str:
    """A few names for a message."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(name or "(unnamed)" for name in names[:NAMES_SHOWN]) + more


def given_skeleton(run: Run, item: Config, scene: Any, body: Any, source: Any) -> Any:
    """The skeleton of --skeleton or of the input itself."""
    import numpy as np

    from networks.unirig import rigging

    if source is None:
        armature, name = rigging.own_skeleton(scene, body, str(item.input)), item.input
    else:
        rigging.remove_rigs(scene)
        name = item.skeleton
        armature, posed = rigging.take_skeleton(scene, body, source, f"--skeleton {name}")
        if posed:
            run.warn(f"{name}: its rest pose is not the one it was bound in; the mesh is bound to the rest pose")
    joints = armature.joints
    if not np.isfinite(joints).all():
        raise InvalidInputError(f"{name}: joints whose positions are not finite numbers")
    far = rigging.outside(joints, body)
    if 2 * len(far) > len(joints):
        raise InvalidInputError(
            f"{name}: {len(far)} of {len(joints)} joints lie far from the mesh; it is another's skeleton, or has another unit or vertical axis"
        )
    joint_names = scene.skeletons[armature.skeleton].joints
    if len(far):
        run.warn(f"joints far from the mesh: {shown([joint_names[j] for j in far])}")
    roots = int((armature.parents < 0).sum())
    if roots > 1:
        run.warn(f"{name}: the skeleton has {roots} roots")
    return armature


def predict_skeleton(models: Models, item: Config, scene: Any, body: Any, mesh: Any) -> tuple[Any, dict[str, Any]]:
    """A skeleton for the prepared mesh, put into the scene."""
    from networks.unirig import rigging

    run = models.run
    model = models.get("skeleton")
    from networks.unirig.bone_limit import cut_bones
    from networks.unirig.generation import GenerationSettings
    from networks.unirig.normalize import inverse_transform
    from networks.unirig.pipeline import SkeletonSettings, move_skeleton, predict_ids, sample_skeleton_stage

    values, skeleton_class, ignored = generation_settings(item)
    if ignored:
        run.warn(f"--task: nothing here is like {shown(ignored)}")
    if skeleton_class == "mixamo" and run.smoke is None:
        run.warn("--class mixamo: the published weights were not trained for it")
    generation = GenerationSettings(**values)
    generation = dataclasses.replace(generation, max_new_tokens=min(generation.max_new_tokens, model.max_new_tokens))
    settings = SkeletonSettings(
        seed=item.seed, skeleton_class=skeleton_class, num_samples=item.skeleton_samples, generation=generation
    )
    with run.phase("skeleton", beams=generation.num_beams, skeleton_class=skeleton_class):
        stage = sample_skeleton_stage(mesh, settings)
        ids = predict_ids(model, stage.samples, settings, token_lines(run))
        if item.max_bones is not None:
            ids = cut_bones(ids, model.tokenizer, item.max_bones)
        try:
            skeleton = model.tokenizer.detokenize(ids)
        except ValueError as error:
            raise PostConditionError(
                f"no usable skeleton after {len(ids) - 2} tokens ({error}); try another --seed, or --max-bones"
            ) from error
        skeleton = move_skeleton(skeleton, lambda points: inverse_transform(stage.matrix, points))
        run.spans.set_attributes({"bones": len(skeleton.joints), "tokens": len(ids), "seed": item.seed})
    far = rigging.check_joints(skeleton.joints, skeleton.parents, body)
    if len(far):
        run.warn(f"joints outside the mesh: {shown([skeleton.names[j] for j in far])}")
    run.info(f"skeleton: {len(skeleton.joints)} joints from {len(ids)} tokens")
    run.spans.record_metric("unirig.joints", len(skeleton.joints), "{joint}", kind="counter")
    armature = rigging.add_skeleton(scene, body, skeleton.joints, skeleton.tails, skeleton.parents, skeleton.names)
    facts = {"skeleton_class": skeleton_class, "tokens": len(ids), "generation": dataclasses.asdict(generation)}
    return armature, facts


def token_lines(run: Run) -> Callable[[int], None]:
    """Progress of a text whose length nobody knows: a line every so many tokens."""
    started = time.monotonic()

    def on_token(count: int) -> None:
        if count % TOKENS_A_LINE == 0:
            each = (time.monotonic() - started) / count
            run.info(f"skeleton: {count} tokens, {each:.2f} s each")

    return on_token


def rename_joints(rig: Any, item: Config) -> None:
    from networks.unirig.humanoid import rename

    rig.joints = rename(rig.joints, rig.parents.tolist(), item.bone_names)
    twice = {name for name in rig.joints if rig.joints.count(name) > 1}
    if twice:
        raise PostConditionError(f"--bone-names {item.bone_names}: two joints would be called {min(twice)}")


def predict_weights(models: Models, item: Config, body: Any, mesh: Any, armature: Any) -> Any:
    """float64 (V, J): weights of all points of the body."""
    run = models.run
    model = models.get("skin")
    from networks.unirig.rigging import spread_weights
    from networks.unirig.skinning import SkinSettings, predict_skin

    settings = SkinSettings(seed=item.seed, num_samples=item.skin_samples, voxel_grid=item.voxel_grid)
    with run.phase("skin", joints=len(armature.joints)), run.console.progress(200, "skin", "%") as bar:

        def on_progress(phase: str, done: int, total: int) -> None:
            at = 100 * done / total + (100 if phase == "network" else 0)
            bar.advance(max(0.0, at - bar.done), phase)

        prepared = predict_skin(model, mesh, armature.joints, armature.parents, settings, on_progress)
    with run.phase("transfer"):
        return spread_weights(body, mesh.vertices, mesh.faces, prepared, item.influence_bones)


def write(run: Run, out: ItemOutput, path: Path, scene: Any) -> None:
    """Write a scene to a path of `out`, with its pictures beside it, and read it back."""
    from meshes.io import write_scene
    from networks.unirig.rig_check import check_rig

    final = out.final(path)
    pictures = out.beside(path, f"{final.stem}_textures", role="textures")
    for warning in write_scene(scene, path, final=final, companions=pictures).warnings:
        run.warn(warning)
    inner = pictures / f"{final.stem}_textures"
    if inner.is_dir():
        for picture in inner.iterdir():
            picture.replace(pictures / picture.name)
        inner.rmdir()
    check_rig(path, scene)


def draw(out: ItemOutput, scene: Any, body: Any, armature: Any, weights: Any) -> None:
    from meshes.preview import save_png
    from networks.unirig.rig_preview import draw_rig
    from networks.unirig.tokenizer import bone_tails

    tails = bone_tails(armature.joints, armature.parents)
    save_png(draw_rig(scene, body, armature, tails, weights), out.file("preview.png", role="preview"))


def report(item: Config, body: Any, rig: Any, unused: list[str], facts: dict[str, Any]) -> Result:
    return Result(
        report={
            "input": str(item.input),
            "joints": len(rig.joints),
            "root": rig.joints[rig.parents.tolist().index(-1)],
            "joint_names": rig.joints,
            "unused_joints": unused,
            "meshes": len(body.parts),
            "points": len(body.points),
            **facts,
        }
    )


def facts_of_plan(config: Config, items: list[Config], run: Run) -> dict[str, Any]:
    """For --dry-run: what the first item takes."""
    return {
        "stages": {role: dataclasses.asdict(cost) for role, cost in costs(items[0] if items else config, run).items()}
    }


def smoke_test(folder: Path) -> Smoke:
    from meshes.io import write_scene
    from meshes.samples import limb
    from meshes.scene import Node

    quiet_libraries("transformers")
    from tiny_checkpoints import unirig

    scene = limb(bones=2, rings=24, segments=16)
    scene.meshes[0].skin, scene.skeletons, scene.nodes = None, [], [Node("limb", mesh=0)]
    write_scene(scene, folder / "limb.usdc")
    checkpoint = unirig.build(folder / "checkpoint")
    return Smoke(
        inputs=(folder / "limb.usdc",),
        settings={
            "dtype": "fp32",
            "num_beams": 3,
            "skeleton_samples": 2048,
            "skin_samples": 1024,
            "voxel_grid": 48,
        },
        models=dict.fromkeys(WEIGHTS, checkpoint),
    )


SCRIPT = Script(
    name="unirig",
    file=__file__,
    docstring=__doc__,
    config=Config,
    check=check,
    load=lambda config, run: Models(run),
    generate=generate,
    plan=facts_of_plan,
    roles=roles,
    smoke_test=smoke_test,
    weights=WEIGHTS,
    item_folders=True,
    seed=42,
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
