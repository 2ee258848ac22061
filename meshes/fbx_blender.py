"""Runs inside Blender (`bpy`), never in the scripts' own process: one FBX file in, a USD file and a report out.

    python fbx_blender.py INPUT.fbx FOLDER

writes FOLDER/scene.usdc, FOLDER/textures/ and FOLDER/report.json ({"error": ...} or {"warnings": [...], "version":
...}).
"""

import json
import os
import sys
from pathlib import Path, PurePosixPath


def main(source: str, folder: str) -> None:
    """Import, hand over, report."""
    report: dict = {"warnings": []}
    try:
        import bpy

        report["version"] = bpy.app.version_string
        bpy.ops.wm.read_factory_settings(use_empty=True)
        try:
            bpy.ops.import_scene.fbx(filepath=source, ignore_leaf_bones=False, use_image_search=False)
        except RuntimeError as error:
            # The operator's own words stand behind "Error:", or in the last line of a traceback of its Python code.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            report["error"] = lines[-1].removeprefix("Error:").strip() if lines else "import failed"
        else:
            prepare_images(bpy, source, report["warnings"])
            prepare_clips(bpy, report["warnings"])
            report["bones"] = [bone.name for armature in bpy.data.armatures for bone in armature.bones]
            export(bpy, str(Path(folder) / "scene.usdc"))
    finally:
        (Path(folder) / "report.json").write_text(json.dumps(report), encoding="utf-8")


def prepare_images(bpy, source: str, warnings: list[str]) -> None:
    """Take pictures from the FBX itself or from its folder, and drop the others: many FBX files name those of
    another machine.
    """
    home = Path(source).parent
    for image in list(bpy.data.images):
        name = PurePosixPath(image.filepath.replace("\\", "/")).name
        if image.packed_file is None:
            path = Path(os.path.normpath(bpy.path.abspath(image.filepath)))
            inside = path if path.is_relative_to(home) else home / name
            if not name or not inside.is_file():
                warnings.append(f"the picture {name!r} is not in the FBX or its folder and is not kept")
                drop_image(bpy, image)
                continue
            image.filepath = str(inside)
            image.reload()
            image.pack()
        if not image.size[0]:
            warnings.append(f"the picture {image.name!r} cannot be read and is not kept")
            drop_image(bpy, image)


def drop_image(bpy, image) -> None:
    """Remove a picture and the shader nodes that show it."""
    for material in bpy.data.materials:
        tree = material.node_tree
        for node in [node for node in tree.nodes if getattr(node, "image", None) == image] if tree else []:
            tree.nodes.remove(node)
    bpy.data.images.remove(image)


def prepare_clips(bpy, warnings: list[str]) -> None:
    """Time covers the clips in use; those not in use are named, as USD holds one."""
    used = [
        thing.animation_data.action
        for thing in bpy.data.objects
        if thing.animation_data and thing.animation_data.action
    ]
    for mesh in bpy.data.meshes:
        keys = mesh.shape_keys
        if keys and keys.animation_data and keys.animation_data.action:
            used.append(keys.animation_data.action)
    scene = bpy.context.scene
    if used:
        scene.frame_start = int(min(action.frame_range[0] for action in used))
        scene.frame_end = int(max(action.frame_range[1] for action in used) + 0.999)
        scene.frame_set(scene.frame_start)
    for action in bpy.data.actions:
        if action not in used:
            warnings.append(f"the clip {action.name!r} is not kept (Blender hands over one)")
    scene["has_clips"] = bool(used)


def export(bpy, path: str) -> None:
    """The whole scene as USD: rigs in their own pose, polygons uncut, pictures beside it."""
    bpy.ops.wm.usd_export(
        filepath=path,
        export_animation=bool(bpy.context.scene["has_clips"]),
        export_armatures=True,
        only_deform_bones=False,
        export_shapekeys=True,
        export_uvmaps=True,
        rename_uvmaps=False,
        export_normals=True,
        export_mesh_colors=True,
        export_materials=True,
        generate_preview_surface=True,
        export_subdivision="IGNORE",
        export_textures_mode="NEW",
        relative_paths=True,
        export_custom_properties=True,  # Among them Blender's own names, where USD allows only others.
        convert_world_material=False,
        triangulate_meshes=False,
        use_instancing=True,
        evaluation_mode="RENDER",
        root_prim_path="/root",
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
