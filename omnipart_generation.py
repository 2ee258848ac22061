# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "cyclopts>=4.0",
#     "fast-simplification>=0.1.9",
#     "filelock>=3.16",
#     "huggingface-hub>=1.5",
#     "numpy>=2.0",
#     "openexr>=3.3",
#     "opentelemetry-exporter-otlp-proto-http>=1.40",
#     "opentelemetry-sdk>=1.40",
#     "pillow>=11.0",
#     "psutil>=6.0",
#     "safetensors>=0.5",
#     "scipy>=1.14",
#     "torch>=2.10",
#     "tqdm>=4.67",
#     "transformers>=5.3",
#     "usd-core>=25.5",
#     "xatlas>=0.0.9",
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
"""Turn a picture of an object into a 3D model made of its parts, with OmniPart (VAST-AI).

The parts are found in the picture first. To choose them yourself: --segment-only writes a numbered picture, --apply-merge joins
numbers, and --state then generates from the result. Meshes carry predicted colours; 3D Gaussians come as PLY files.

Examples:
  uv run omnipart_generation.py robot.png
  uv run omnipart_generation.py robot.png --segment-only --output-dir parts
  uv run omnipart_generation.py --state parts/20261122_19_00_00 --apply-merge --merge-groups "0,1;3,4"
  uv run omnipart_generation.py --state parts/20261122_19_00_00 --textured
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

try:
    from shared_utils import device
    from shared_utils.args import item_input, option
    from shared_utils.errors import InvalidInputError, MissingInputError, PostConditionError, UsageError
    from shared_utils.hugging_face import Weights
    from shared_utils.image_files import read_upright, upright_size
    from shared_utils.libraries import quiet_libraries
    from shared_utils.options import ModelOptions, check_ending
    from shared_utils.output_dir import ItemOutput, atomic
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

WEIGHTS = {
    "model": Weights(
        "omnipart/OmniPart",
        allow_patterns=("pipeline.json", "*.json", "*.safetensors"),
        licence="see the model's page",
        size_gb=2.8,
        memory_gb=5.0,
        note="flows, decoders; loaded one after another",
    ),
    "modules": Weights(
        "omnipart/OmniPart_modules",
        allow_patterns=("bbox_gen.ckpt", "partfield_encoder.ckpt"),
        licence="PartField: NVIDIA, non-commercial",
        memory_gb=4.0,
        note="box planner and PartField; not needed with --boxes",
    ),
    "segmenter": Weights(
        "facebook/sam-vit-huge",
        allow_patterns=("config.json", "model.safetensors"),
        licence="Apache-2.0",
        size_gb=2.6,
        memory_gb=4.0,
        note="not needed with --mask or --state",
    ),
    "image_encoder": Weights(
        "facebook/dinov2-with-registers-large",
        allow_patterns=("config.json", "model.safetensors"),
        licence="Apache-2.0",
        size_gb=1.2,
        memory_gb=2.0,
    ),
}

LICENCE_NOTICE = (
    "the boxes are planned with PartField, whose published weights NVIDIA licenses for non-commercial research and education"
    " only; --boxes FILE does without them"
)
SIZE_THRESHOLD = 1000  # pixels of the 518 x 518 picture


def _ratio_rule(value: float) -> str | None:
    return None if 0 < value <= 1 else "must be above 0 and at most 1"


def _groups_rule(value: str) -> str | None:
    from networks.omnipart.mask_files import parse_merge_groups

    try:
        _ = value == "none" or parse_merge_groups(value)
    except UsageError as error:
        return str(error)
    return None


_PARTS, _SHAPE, _MESH = {"group": "Parts"}, {"group": "Generation"}, {"group": "Mesh"}


@dataclasses.dataclass(kw_only=True)
class Config(ModelOptions):
    image: Path | None = item_input("Picture of one object; every picture makes an object of its own.")
    background: Literal["auto", "keep", "remove"] = option(
        "auto", "auto uses the picture's transparency, else removes the background; keep leaves all of it.", **_PARTS
    )
    segment_only: bool = option(False, "Stop when the parts are found: numbered picture, mask and state.", **_PARTS)
    state: Path | None = option(
        None, "Go on from the folder of an earlier run: its picture and its parts, in place of a picture.", **_PARTS
    )
    apply_merge: bool = option(
        False, "With --state and --merge-groups: join parts there and stop; may be repeated.", **_PARTS
    )
    merge_groups: str | None = option(
        None,
        'Parts to join, such as "0,1;3,4", by the numbers in mask_segments.png; every merge starts from those. none undoes.',
        check=_groups_rule,
        **_PARTS,
    )
    mask: Path | None = option(
        None, "Parts of your own (.exr, .png, .npy; 0 is background), as large as the picture.", **_PARTS
    )
    size_threshold: int | None = option(
        None, "Smallest part, pixels of the 518 x 518 picture; default 1000.", minimum=1, maximum=268_324, **_PARTS
    )
    max_parts: int = option(
        50, "At most so many parts; the smallest are joined to their neighbours.", minimum=2, maximum=50, **_PARTS
    )
    points_per_side: int = option(
        32, "The segmenter is asked at a grid of so many points a side.", minimum=1, maximum=128, **_PARTS
    )
    boxes: Path | None = option(
        None,
        "Boxes of the parts, .npy [K, 2, 3] or the same as .json, from -0.5 to 0.5; skips the planner.",
        **_SHAPE,
    )
    num_inference_steps: int = option(25, "Steps of each of the two flows.", minimum=1, maximum=1000, **_SHAPE)
    guidance_scale: float = option(7.5, "How closely the picture is followed.", minimum=0.0, maximum=100.0, **_SHAPE)
    simplify_ratio: float = option(
        0.15, "Share of the decoded faces that is kept; 1 keeps all.", check=_ratio_rule, **_MESH
    )
    textured: bool = option(False, "Also write mesh_textured: UVs and a base-colour texture.", **_MESH)
    texture_size: int = option(2048, "Side of the texture, pixels.", minimum=64, maximum=8192, **_MESH)
    format: Literal["glb", "usdc", "usda", "usdz"] | None = option(
        None, "Format of the mesh files; default glb, or what the suffix of --output says.", group="Output"
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "auto",
        "Number type of the flows and decoders; auto is fp16, as published, on a GPU and fp32 on a CPU.",
        group="Model",
        per_item=False,
    )

    def check(self) -> None:
        if self.segment_only and self.apply_merge:
            raise UsageError("--segment-only and --apply-merge exclude each other")
        if self.state and self.mask:
            raise UsageError("--state and --mask exclude each other")
        if self.state and self.segment_only:
            raise UsageError("--segment-only: --state is segmented already (--apply-merge joins its parts)")
        if self.parts_only:
            check_ending(self.output, None, ("exr", "png", "npy"))
        else:
            check_ending(self.output, self.format, ("glb", "usdc", "usda", "usdz"))

    @property
    def parts_only(self) -> bool:
        """Whether this stops before anything is generated."""
        return self.segment_only or self.apply_merge

    @property
    def suffix(self) -> str:
        """Of the mesh files, with its dot."""
        return f".{self.format or 'glb'}" if self.output is None else self.output.suffix.lower()


def arrange(config: Config) -> Config:
    """A state stands for the picture it holds."""
    if config.state is None:
        return config
    from networks.omnipart.segmentation import PICTURE, STATE

    folder = config.state.parent if config.state.name == STATE else config.state
    picture = folder / PICTURE
    given = [path for path in config.image or () if path.absolute() != picture.absolute()]
    if given and not config.smoke_test:
        raise UsageError(f"--state: holds its own picture, {given[0]} is one too many")
    if not picture.is_file():
        raise MissingInputError(f"--state {folder}: no {PICTURE} in it (--segment-only makes such a folder)")
    return dataclasses.replace(config, image=(picture,))


def check(item: Config) -> None:
    """Look at an item's inputs before anything is loaded."""
    if item.apply_merge and (item.state is None or item.merge_groups is None):
        raise UsageError("--apply-merge: needs --state DIR (made by --segment-only) and --merge-groups")
    if item.state is not None:
        from networks.omnipart.mask_files import check_merge_groups
        from networks.omnipart.segmentation import read_state

        state = read_state(item.state)
        check_merge_groups(groups_of(item, state.groups), state.original)
    elif item.image is None:
        raise UsageError("no picture: give --image or --state")
    else:
        upright_size(item.image)
    if item.mask is not None:
        from networks.omnipart.mask_files import read_mask

        read_mask(item.mask)
    if item.boxes is not None and not item.parts_only:
        from networks.omnipart.box_files import read_boxes

        read_boxes(item.boxes)


def groups_of(item: Config, recorded: list[list[int]]) -> list[list[int]]:
    """The merge groups in force: those asked for, else those recorded."""
    from networks.omnipart.mask_files import parse_merge_groups

    if item.merge_groups is None:
        return recorded
    return [] if item.merge_groups == "none" else parse_merge_groups(item.merge_groups)


def roles(config: Config, items: list[Config] | None = None) -> list[str]:
    """The weights that are needed."""
    items = items or [config]
    needed = set()
    for item in items:
        if item.state is None and (item.mask is None or item.background == "remove"):
            needed.add("segmenter")
        if not item.parts_only:
            needed |= {"model", "image_encoder"} | (set() if item.boxes else {"modules"})
    return [role for role in WEIGHTS if role in needed]


@dataclasses.dataclass
class Model:
    """What the items are made with; networks are loaded stage by stage. `stages`: seconds and peak memory of each."""

    run: Run
    stages: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def folder(self, role: str) -> Path:
        return self.run.weights(role).path

    @property
    def dtype(self) -> Any:
        """Of flows and decoders; None is what suits the device (see `networks.omnipart.loading.load_model`)."""
        return None if self.run.config.dtype == "auto" else self.run.dtype()


def load(config: Config, run: Run) -> Model:
    needed = roles(config, run.items)
    for role in needed:
        run.weights(role)
    if needed:
        with run.phase("import"):
            quiet_libraries("transformers", verbose=config.verbose)
    if "modules" in needed:
        run.warn(LICENCE_NOTICE)
    names = [f"{run.weights(role).repo} at {run.weights(role).commit or 'local'}" for role in needed]
    if names and run.smoke is None:
        run.info("models " + ", ".join(names))
    if "model" in needed:
        run.info("plan: " + plan(run, run.items))
    return Model(run)


def plan(run: Run, items: list[Config]) -> str:
    """What the objects will take on this machine."""
    from networks.omnipart.loading import read_pipeline
    from networks.omnipart.plan import plan_text

    objects = [(item.num_inference_steps, item.guidance_scale) for item in items if not item.parts_only]
    return plan_text(read_pipeline(run.weights("model").path), objects, run.device)


# --- stages


@contextlib.contextmanager
def stage(model: Model, name: str) -> Iterator[None]:
    """Time a stage, note its peak memory, and give the memory of its networks back."""
    start = time.monotonic()
    with model.run.phase(name), device.MemoryWatch(model.run.device) as watch:
        yield
        model.run.spans.set_attributes({"peak_memory_bytes": watch.peak})
    device.release()
    model.stages[name] = {"seconds": round(time.monotonic() - start, 3), "peak_memory_bytes": watch.peak}
    model.run.console.detail(f"{name}: {model.stages[name]['seconds']:.1f} s, {device.gigabytes(watch.peak)}")


@contextlib.contextmanager
def progress(run: Run, total: int, label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total) that moves a bar."""
    with run.console.progress(total, label, unit) as bar:
        yield lambda done, _total: bar.advance(done - bar.done)


# --- the job


def generate(model: Model, item: Config, out: ItemOutput) -> Result:
    from networks.omnipart.masks import part_count

    model.stages = {}
    segmentation = find_segmentation(model, item)
    ids = segmentation.ids()
    save_segmentation(item, out, segmentation)
    parts = part_count(ids)
    report = {
        "input": (item.state or item.image).name,
        "mask_parts": parts,
        "original_parts": part_count(segmentation.original),
        "merge_groups": segmentation.groups,
    }
    model.run.info(
        f"{parts} part(s) in the picture" + (f", joined from {report['original_parts']}" if segmentation.groups else "")
    )
    if not item.parts_only:
        report |= build_object(model, item, out, segmentation, ids, parts)
    return Result(report=report | {"stages": model.stages})


def find_segmentation(model: Model, item: Config) -> Any:
    """The parts: from a state, from a mask file, or as the segmenter finds them."""
    import numpy as np

    from networks.omnipart import segmentation as seg
    from networks.omnipart.images import resize_and_pad
    from networks.omnipart.mask_files import check_merge_groups, read_mask
    from networks.omnipart.parts import find_parts
    from networks.omnipart.segment_anything import load_segmenter

    threshold = item.size_threshold or SIZE_THRESHOLD
    if item.state is not None:
        result = seg.read_state(item.state)
        return dataclasses.replace(
            result,
            groups=groups_of(item, result.groups),
            size_threshold=item.size_threshold or result.size_threshold,
            limit=item.max_parts,
        )
    segmenter = None
    with stage(model, "segment"):

        def network() -> Any:
            nonlocal segmenter
            segmenter = segmenter or load_segmenter(model.folder("segmenter"), model.run.device)
            return segmenter

        def main_object(rgb: Any) -> Any:
            model.run.warn(
                "the background is not of one colour and was removed by the segmenter: look at image_processed.png,"
                " or give a picture with transparency"
            )
            return seg.segment_foreground(network(), rgb)

        image = read_upright(item.image)
        if item.mask is None or item.background == "remove":
            size = image.size
            image, how = seg.with_foreground(image, item.background, main_object)
            model.run.info(f"foreground: {how}")
            if item.mask is not None and image.size != size:
                image = image.resize(size)
        if item.mask is not None:
            picture, ids = seg.from_mask(image, read_mask(item.mask), item.background)
        else:
            picture = resize_and_pad(image)
            if not (np.asarray(picture)[..., 3] > 0).any():
                raise InvalidInputError(f"{item.image}: transparent everywhere, there is no object in it")
            with progress(model.run, item.points_per_side**2, "looking for parts", "point") as advance:
                ids = find_parts(network(), picture, threshold, progress=advance, points_per_side=item.points_per_side)
        del segmenter
    if not (ids >= 0).any():
        raise PostConditionError(
            f"no part of at least {threshold} pixels was found (--size-threshold sets it, --mask gives parts)"
        )
    groups = groups_of(item, [])
    original = seg.limit_parts(ids, item.max_parts)
    check_merge_groups(groups, original)
    return seg.Segmentation(picture, original, threshold, groups, item.max_parts)


def save_segmentation(item: Config, out: ItemOutput, segmentation: Any) -> None:
    """Into the run folder, and with --apply-merge also into the state it came from."""
    from networks.omnipart.segmentation import MASK, MERGED, NUMBERED, STATE, write_state

    roles = {NUMBERED: "preview", MERGED: "preview", STATE: "state"}

    def place(name: str) -> Path:
        if name == MASK and item.parts_only:
            return out.primary(MASK)
        return out.file(name, role=roles.get(name, "mask"))

    write_state(segmentation, place)
    if item.apply_merge:
        folder = item.state.parent if item.state.name == STATE else item.state
        with contextlib.ExitStack() as stack:
            write_state(segmentation, lambda name: stack.enter_context(atomic(folder / name)))


def build_object(
    model: Model, item: Config, out: ItemOutput, segmentation: Any, ids: Any, mask_parts: int
) -> dict[str, Any]:
    """From parts in a picture to files; returns what is to be reported."""
    import numpy as np

    from networks.omnipart.box_files import read_boxes
    from networks.omnipart.images import crop_object
    from networks.omnipart.loading import read_pipeline
    from networks.omnipart.mask_files import draw_parts
    from networks.omnipart.part_files import save_meshes, save_splats
    from networks.omnipart.part_layout import lay_out_parts

    run = model.run
    pipeline = read_pipeline(model.folder("model"))
    try:
        crop = crop_object(np.asarray(segmentation.picture), ids + 1)
    except ValueError as error:
        raise InvalidInputError(f"{item.state or item.image}: {error}") from error
    if (seen := int(crop.grid.max())) < mask_parts:
        run.warn(
            f"{mask_parts - seen} part(s) are too small to be seen by the generator (join them with --merge-groups)"
        )
    condition, latents = encode_pictures(model, crop, planner=item.boxes is None)
    voxels = make_structure(model, item, pipeline, condition)
    boxes = read_boxes(item.boxes) if item.boxes else plan_parts(model, item, crop, latents, voxels, mask_parts)
    try:
        layout = lay_out_parts(voxels.numpy(), boxes)
    except ValueError as error:
        raise InvalidInputError(f"{item.boxes or 'planned boxes'}: {error}; the object lies elsewhere") from error
    check_part_count(run, item, len(boxes), layout.boxes, mask_parts)
    coords, features, sizes = make_latents(model, item, pipeline, condition, crop.grid, layout)
    originals, hidden = decode_meshes(model, pipeline, coords, features, sizes)
    splats = decode_splats(model, pipeline, coords, features, sizes)
    del features
    with stage(model, "export"):
        np.save(out.file("voxel_coords.npy", role="voxels"), voxels.numpy())
        np.save(out.file("bboxes.npy", role="boxes"), np.asarray(boxes, np.float64))
        save_splats(out, splats)
        masks = draw_parts(segmentation.picture, segmentation.numbered(ids))
        texture_size = item.texture_size if item.textured else None
        parts = save_meshes(out, originals, boxes[layout.boxes], masks, item.suffix, item.simplify_ratio, texture_size)
    if leaky := [part["name"] for part in parts if not part["watertight"]]:
        run.info(f"not watertight: {', '.join(leaky)}")
    report = {
        "parts": parts,
        "watertight": all(part["watertight"] for part in parts),
        "boxes": len(boxes),
        "voxels": len(voxels),
        "gaussians": sum(len(part) for part in splats[1:]),
        "hidden_surfaces_removed": hidden,
    }
    return report | ({} if item.boxes else {"licence_notice": LICENCE_NOTICE})


def check_part_count(run: Run, item: Config, boxes: int, kept: list[int], mask_parts: int) -> None:
    """Each part of the mask has its part in the object, before hours are spent on it; boxes of the user's own are theirs.

    Raises `PostConditionError`.
    """
    empty = ", ".join(str(number + 1) for number in range(boxes) if number not in kept)
    if item.boxes is None and len(kept) != mask_parts:
        raise PostConditionError(
            f"{len(kept)} of {mask_parts} parts have a place in the object, not number {empty}: try another --seed, or join"
            " parts with --merge-groups"
        )
    if empty:
        run.warn(f"--boxes {item.boxes}: nothing of the object lies in box {empty}")
    if boxes != mask_parts:
        run.warn(f"--boxes {item.boxes}: {boxes} boxes, and {mask_parts} part(s) in the mask")


def encode_pictures(model: Model, crop: Any, planner: bool) -> tuple[Any, Any]:
    """Condition of the flows (black background), and what the box planner reads (white background; None without it)."""
    from networks.omnipart.image_tokens import encode_image, load_image_encoder

    with stage(model, "encode"):
        encoder = load_image_encoder(model.folder("image_encoder"), model.run.device)
        condition = encode_image(encoder, crop.black).condition
        latents = encode_image(encoder, crop.white).normalised if planner else None
        del encoder
    return condition, latents


def make_structure(model: Model, item: Config, pipeline: Any, condition: Any) -> Any:
    """Occupied voxels int32 [N, 4] on the CPU."""
    from networks.omnipart.generation import decode_structure, sample_structure
    from networks.omnipart.loading import load_role

    with stage(model, "structure"):
        settings = pipeline.sampler("sparse_structure_flow_model", item.num_inference_steps, item.guidance_scale)
        flow = load_role(pipeline, "sparse_structure_flow_model", model.run.device, model.dtype)
        with progress(model.run, settings.steps, "structure", "step") as advance:
            latent = sample_structure(flow, condition, settings, item.seed, advance)
        del flow
        decoder = load_role(pipeline, "sparse_structure_decoder", model.run.device, model.dtype)
        voxels = decode_structure(decoder, latent)
        del decoder
    model.run.info(f"{len(voxels)} voxels")
    return voxels


def plan_parts(model: Model, item: Config, crop: Any, latents: Any, voxels: Any, parts: int) -> Any:
    """Boxes float64 [parts, 2, 3]."""
    from networks.checkpoints import load_checkpoint
    from networks.omnipart.box_planner import BoxPlanner, partfield_of_planner, plan_boxes
    from networks.omnipart.partfield import PartField, voxel_features

    folder, target = model.folder("modules"), model.run.device
    with stage(model, "boxes"):
        weights = load_checkpoint(folder / "bbox_gen.ckpt")
        published = load_checkpoint(folder / "partfield_encoder.ckpt")
        partfield = PartField.from_weights(partfield_of_planner(weights, published), target)
        del published
        features = voxel_features(partfield, voxels.numpy())
        del partfield
        planner = BoxPlanner.from_weights(weights, target)
        del weights
        known = planner.sizes.max_group_size
        if crop.grid.max() > known:
            raise UsageError(f"{crop.grid.max()} parts: the box planner knows {known} at most (--max-parts {known})")
        with progress(model.run, 6 * parts + 1, "boxes", "token") as advance:
            boxes = plan_boxes(
                planner,
                latents,
                crop.grid,
                voxels.numpy(),
                features,
                item.seed,
                boxes=parts,
                progress=advance,
            )
        del planner, features
    return boxes


def make_latents(
    model: Model, item: Config, pipeline: Any, condition: Any, grid: Any, layout: Any
) -> tuple[Any, Any, list[int]]:
    """Coordinates, features and row counts of the whole object and its parts, on the CPU."""
    import torch

    from networks.omnipart.generation import sample_latents
    from networks.omnipart.loading import load_role
    from networks.omnipart.slat_flow import divide_slat

    with stage(model, "latents"):
        settings = pipeline.sampler("slat_flow_model", item.num_inference_steps, item.guidance_scale)
        flow = load_role(pipeline, "slat_flow_model", model.run.device, model.dtype)
        coords, masks = torch.from_numpy(layout.coords), torch.from_numpy(grid)[None]
        with progress(model.run, settings.steps, "parts", "step") as advance:
            latent = sample_latents(flow, coords, layout.slices, condition, masks, settings, item.seed, advance)
        channels = flow.in_channels
        del flow
        mean, std = pipeline.slat_normalization(channels)
        divided = divide_slat(coords, latent.cpu(), layout.slices, mean, std)
    return divided


def decode_meshes(model: Model, pipeline: Any, coords: Any, features: Any, sizes: list[int]) -> tuple[dict, int]:
    """The parts by number from 1, and how many hidden surfaces were removed from them. Raises `PostConditionError`."""
    from networks.omnipart.generation import decode_parts
    from networks.omnipart.loading import load_role
    from networks.omnipart.part_meshes import from_surface, remove_cavities

    meshes, hidden = {}, 0
    whole, parts = sizes[0], sizes[1:]
    with stage(model, "decode_meshes"):
        decoder = load_role(pipeline, "slat_decoder_mesh", model.run.device, model.dtype)
        with progress(model.run, len(parts), "meshes", "part") as advance:
            surfaces = decode_parts(decoder, coords[whole:], features[whole:], parts, advance)
            for number, surface in enumerate(surfaces, 1):
                mesh, removed = remove_cavities(from_surface(surface))
                hidden += removed
                meshes[number] = mesh
        del decoder
    if empty := [str(number) for number, mesh in meshes.items() if not len(mesh.faces)]:
        raise PostConditionError(
            f"part {', '.join(empty)} of {len(meshes)} came out without a surface: try another --seed, or join it to"
            " another with --merge-groups"
        )
    return meshes, hidden


def decode_splats(model: Model, pipeline: Any, coords: Any, features: Any, sizes: list[int]) -> list[Any]:
    """Gaussians of the whole object and of each part."""
    from networks.omnipart.generation import decode_parts
    from networks.omnipart.loading import load_role

    with stage(model, "decode_gaussians"):
        decoder = load_role(pipeline, "slat_decoder_gs", model.run.device, model.dtype)
        with progress(model.run, len(sizes), "Gaussians", "part") as advance:
            splats = list(decode_parts(decoder, coords, features, sizes, advance))
        del decoder
    return splats


def facts(config: Config, items: list[Config], run: Run) -> dict[str, Any]:
    """For --dry-run: how long it would take, once the weights are here."""
    items = [item for item in items if not item.parts_only]
    weights = run.download_plans.get("model")
    if not items or weights is None or weights.fetch_bytes:
        return {}
    return {"plan": plan(run, items)}


def smoke_test(folder: Path) -> Smoke:
    quiet_libraries("transformers")
    from tiny_checkpoints import omnipart as tiny

    paths = tiny.build(folder)
    picture = folder / "totem.png"
    tiny.example_image().save(picture)
    return Smoke(
        inputs=(picture,),
        settings={"num_inference_steps": 3, "points_per_side": tiny.POINTS_PER_SIDE, "texture_size": 256},
        models={
            "model": paths.omnipart,
            "modules": paths.modules,
            "segmenter": paths.segmenter,
            "image_encoder": paths.image_encoder,
        },
    )


SCRIPT = Script(
    name="omnipart",
    file=__file__,
    docstring=__doc__,
    config=Config,
    load=load,
    generate=generate,
    check=check,
    arrange=arrange,
    plan=facts,
    roles=roles,
    smoke_test=smoke_test,
    weights=WEIGHTS,
    item_folders=True,
    seed=42,
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
