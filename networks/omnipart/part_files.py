"""The files of an object: meshes in several colourings, Gaussians, boxes and a picture of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from meshes.io import read_scene, write_scene
from meshes.pictures import png_bytes
from meshes.preview import fit_view, panels, render, save_png
from meshes.scene import Scene
from networks.omnipart import gaussians as splatting
from networks.omnipart import part_scenes as scenes
from networks.omnipart.gaussians import Gaussians
from networks.omnipart.part_meshes import PartMesh, explode, simplify
from networks.omnipart.texture import bake
from shared_utils.errors import PostConditionError
from shared_utils.output_dir import ItemOutput

PREVIEW_SIDE = 480  # pixels of each of its three pictures


def save_splats(out: ItemOutput, splats: list[Gaussians]) -> None:
    """3D Gaussian PLY files of the whole object (the first of `splats`), its parts (the others), and those moved apart.

    Raises PostConditionError.
    """
    files = {
        "part0_gs.ply": splats[0],
        "merged_gs.ply": splatting.merge(splats[1:]),
        "exploded_gs.ply": splatting.merge(splatting.explode(splats[1:])),
    }
    for name, gaussians in files.items():
        if not len(gaussians) or not gaussians.xyz.isfinite().all():
            raise PostConditionError(f"{name}: has no Gaussians, or positions that are no finite numbers")
        out.file(name, role="gaussians").write_bytes(splatting.ply_bytes(gaussians))


def save_meshes(
    out: ItemOutput,
    originals: dict[int, PartMesh],
    boxes: np.ndarray,
    masks: Image.Image,
    suffix: str,
    simplify_ratio: float,
    texture_size: int | None,
) -> list[dict]:
    """Simplify the parts (by number from 1), write all mesh files, look at them again, and draw the preview.

    `boxes` float [K, 2, 3]; `masks`: the picture with its parts; `suffix` of the mesh files; `simplify_ratio`: share of faces
    kept; `texture_size`: pixels of a side, None writes no textured mesh. Returns the report of each part; raises
    PostConditionError.
    """
    parts = {number: simplify(mesh, simplify_ratio) for number, mesh in originals.items()}
    moved = dict(zip(parts, explode(list(parts.values())), strict=True))
    coloured, exploded = scenes.vertex_coloured(parts), scenes.vertex_coloured(moved)

    primary = out.primary(f"mesh_segment{suffix}")
    write_scene(scenes.part_coloured(parts), primary)
    check_meshes(primary, len(parts))
    mesh = out.file(f"mesh{suffix}", role="mesh")
    write_scene(coloured, mesh)
    check_meshes(mesh, len(parts))
    write_scene(exploded, out.file(f"exploded{suffix}", role="mesh"))
    numbers = list(range(1, len(boxes) + 1))
    write_scene(scenes.box_scene(boxes, numbers), out.file(f"bboxes_vis{suffix}", role="boxes"))
    folder = out.directory("parts", role="parts")
    rows = []
    for number, part in parts.items():
        path = folder / f"part_{number:02d}{suffix}"
        write_scene(scenes.vertex_coloured({number: part}), path)
        row = {"name": f"part_{number:02d}", "points": len(part.points), "faces": len(part.faces)}
        rows.append({**row, "watertight": part.is_watertight(), "file": f"parts/{path.name}"})
    if texture_size is not None:
        save_textured(out, parts, originals, suffix, texture_size)
    draw_preview(coloured, exploded, parts, moved, masks, out.file("preview.png", role="preview"))
    return rows


def check_meshes(path: Path, parts: int) -> None:
    """Read a mesh file back. Raises `PostConditionError` unless it holds `parts` meshes of finite points."""
    scene = read_scene(path)
    meshes = [scene.meshes[number] for _, number in scene.mesh_nodes()]
    if len(meshes) != parts:
        raise PostConditionError(f"{path.name}: reads back with {len(meshes)} parts, not {parts}")
    for mesh in meshes:
        if not len(mesh.face_sizes) or not np.isfinite(mesh.points).all():
            raise PostConditionError(f"{path.name}: {mesh.name} has no faces, or points that are no finite numbers")


def save_textured(
    out: ItemOutput, parts: dict[int, PartMesh], originals: dict[int, PartMesh], suffix: str, size: int
) -> None:
    """mesh_textured: UVs, and a base-colour texture looked up in the meshes before they were simplified."""
    baked = bake(parts, originals, size)
    scene = scenes.textured(baked.parts, baked.uvs, png_bytes(Image.fromarray(baked.texture)))
    if suffix in (".glb", ".usdz"):
        path = out.file(f"mesh_textured{suffix}", role="mesh")
    else:
        # The picture lies beside it, so both have a folder of their own.
        path = out.directory("mesh_textured", role="mesh") / f"mesh_textured{suffix}"
    write_scene(scene, path, final=path.with_name(f"mesh_textured{suffix}"))
    check_meshes(path, len(parts))


def draw_preview(
    coloured: Scene,
    exploded: Scene,
    parts: dict[int, PartMesh],
    moved: dict[int, PartMesh],
    masks: Image.Image,
    path: Path,
) -> None:
    """Front, exploded and mask, side by side."""
    side = PREVIEW_SIDE
    images = []
    for scene, shown in ((coloured, parts), (exploded, moved)):
        colours = {index: mesh.colours for index, mesh in enumerate(shown.values())}
        view = fit_view(scene, azimuth=20, elevation=15)
        images.append(render(scene, side, view, wireframe=False, vertex_colors=colours))
    images.append(np.asarray(masks.resize((side, side))))
    save_png(panels(list(zip(images, ("front", "exploded", "mask"), strict=True))), path)
