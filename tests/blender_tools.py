"""Runs inside Blender (`bpy`): small jobs for the slow tests.

python blender_tools.py import FILE OUT.json        what Blender sees in a file
python blender_tools.py frames FILE OUT.json        positions of every skinned mesh in the frames of its clip
python blender_tools.py rig FILE.fbx                a rigged, textured, shaped test character as FBX
python blender_tools.py smooth CASES.json OUT.json  deformed shapes after the Corrective Smooth modifier
"""

import json
import sys
from pathlib import Path


def load(bpy, path: str) -> None:
    """Import by ending into an empty scene."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    suffix = Path(path).suffix.lower()
    if suffix in (".glb", ".gltf"):
        bpy.ops.import_scene.gltf(filepath=path, bone_heuristic="BLENDER", disable_bone_shape=True)
    elif suffix == ".fbx":
        bpy.ops.import_scene.fbx(filepath=path, ignore_leaf_bones=False)
    elif suffix.startswith(".usd"):
        bpy.ops.wm.usd_import(filepath=path)
    elif suffix == ".obj":
        bpy.ops.wm.obj_import(filepath=path, forward_axis="Y", up_axis="Z")
    elif suffix == ".ply":
        bpy.ops.wm.ply_import(filepath=path)
    elif suffix == ".stl":
        bpy.ops.wm.stl_import(filepath=path)


def describe(bpy) -> list[dict]:
    """Faces, materials, groups, bounds in the world of every mesh object."""
    rows = []
    bpy.context.view_layer.update()
    for thing in sorted((o for o in bpy.data.objects if o.type == "MESH" and o.users_collection), key=lambda o: o.name):
        mesh = thing.data
        points = [thing.matrix_world @ vertex.co for vertex in mesh.vertices]
        rows.append(
            {
                "name": thing.name,
                "faces": sorted(len(face.vertices) for face in mesh.polygons),
                "materials": sorted({mesh.materials[f.material_index].name for f in mesh.polygons if mesh.materials}),
                "low": [min(p[i] for p in points) for i in range(3)] if points else None,
                "high": [max(p[i] for p in points) for i in range(3)] if points else None,
                "groups": len(thing.vertex_groups),
                "most": max((len([g for g in v.groups if g.weight > 1e-6]) for v in mesh.vertices), default=0),
                "uv": len(mesh.uv_layers),
                "shapes": len(mesh.shape_keys.key_blocks) - 1 if mesh.shape_keys else 0,
            }
        )
    return rows


def frames(bpy) -> dict:
    """Evaluated world positions of skinned meshes, by object name: {"fps": .., name: {frame: [[x, y, z], ...]}}."""
    scene = bpy.context.scene
    actions = [o.animation_data.action for o in bpy.data.objects if o.animation_data and o.animation_data.action]
    first, last = min(a.frame_range[0] for a in actions), max(a.frame_range[1] for a in actions)
    found: dict = {"fps": scene.render.fps / scene.render.fps_base}
    for step in range(20):
        frame = round(first + (last - first) * step / 19)
        scene.frame_set(frame)
        graph = bpy.context.evaluated_depsgraph_get()
        for thing in bpy.data.objects:
            if thing.type == "MESH" and thing.vertex_groups:
                evaluated = thing.evaluated_get(graph)
                points = [list(evaluated.matrix_world @ v.co) for v in evaluated.data.vertices]
                found.setdefault(thing.name, {})[str(frame)] = points
    return found


def rig(bpy, path: str) -> None:
    """An armature of three bones with dotted names, a tube of quads with a pentagon cap, a picture, a shape key, a clip."""
    import math

    bpy.ops.wm.read_factory_settings(use_empty=True)
    mesh = bpy.data.meshes.new("Tube mesh")
    rings, around = 9, 5
    points = [
        (math.cos(2 * math.pi * a / around), math.sin(2 * math.pi * a / around), r * 0.5)
        for r in range(rings)
        for a in range(around)
    ]
    faces = [
        (r * around + a, r * around + (a + 1) % around, (r + 1) * around + (a + 1) % around, (r + 1) * around + a)
        for r in range(rings - 1)
        for a in range(around)
    ]
    mesh.from_pydata(points, [], [*faces, tuple(range((rings - 1) * around, rings * around))])
    mesh.uv_layers.new(name="UVMap")
    tube = bpy.data.objects.new("Tube", mesh)
    bpy.context.collection.objects.link(tube)
    for name in ("Skin", "Cap"):
        material = bpy.data.materials.new(name)
        material.use_nodes = True
        mesh.materials.append(material)
    mesh.polygons[len(faces)].material_index = 1
    image = bpy.data.images.new("paint", 4, 4)
    image.filepath_raw = str(Path(path).with_name("paint.png"))
    image.file_format = "PNG"
    image.save()
    nodes = mesh.materials[0].node_tree
    picture = nodes.nodes.new("ShaderNodeTexImage")
    picture.image = image
    nodes.links.new(picture.outputs["Color"], nodes.nodes["Principled BSDF"].inputs["Base Color"])
    armature = bpy.data.armatures.new("Rig")
    holder = bpy.data.objects.new("Rig", armature)
    bpy.context.collection.objects.link(holder)
    bpy.context.view_layer.objects.active = holder
    bpy.ops.object.mode_set(mode="EDIT")
    above = None
    for number in range(3):
        bone = armature.edit_bones.new(f"bone.{number:03}")
        bone.head, bone.tail, bone.parent = (0, 0, number * 4 / 3), (0, 0, (number + 1) * 4 / 3), above
        above = bone
    bpy.ops.object.mode_set(mode="OBJECT")
    tube.parent = holder
    tube.modifiers.new("Armature", "ARMATURE").object = holder
    for number in range(3):
        group = tube.vertex_groups.new(name=f"bone.{number:03}")
        for vertex in mesh.vertices:
            group.add([vertex.index], 1 / (0.3 + abs(vertex.co.z - (number + 0.5) * 4 / 3)), "REPLACE")
    bpy.context.view_layer.objects.active = tube
    bpy.ops.object.mode_set(mode="WEIGHT_PAINT")
    bpy.ops.object.vertex_group_normalize_all(lock_active=False)
    bpy.ops.object.mode_set(mode="OBJECT")
    tube.shape_key_add(name="Basis")
    for corner in tube.shape_key_add(name="Wide").data:
        corner.co.x *= 1.5
    pose = holder.pose.bones["bone.001"]
    pose.rotation_mode = "XYZ"
    for frame, angle in ((1, 0.0), (20, 1.0)):
        pose.rotation_euler = (angle, 0, 0)
        pose.keyframe_insert("rotation_euler", frame=frame)
    bpy.context.scene.frame_end = 20
    bpy.ops.export_scene.fbx(filepath=path, path_mode="COPY", embed_textures=True, add_leaf_bones=False)


def smooth(bpy, cases: list[dict]) -> list:
    """Positions per case and pose. A case: points, faces, poses (deformed points), settings of the modifier, mask or null."""
    results = []
    for case in cases:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        mesh = bpy.data.meshes.new("mesh")
        mesh.from_pydata(case["points"], [], case["faces"])
        thing = bpy.data.objects.new("thing", mesh)
        bpy.context.collection.objects.link(thing)
        thing.shape_key_add(name="Basis")
        shape = thing.shape_key_add(name="Deformed")
        shape.value = 1.0
        modifier = thing.modifiers.new("Smooth", "CORRECTIVE_SMOOTH")
        for name, value in case["settings"].items():
            setattr(modifier, name, value)
        if case["mask"]:
            group = thing.vertex_groups.new(name="mask")
            for index, weight in enumerate(case["mask"]):
                group.add([index], weight, "REPLACE")
            modifier.vertex_group = "mask"
        found = []
        for pose in case["poses"]:
            shape.data.foreach_set("co", [number for point in pose for number in point])
            mesh.update()
            graph = bpy.context.evaluated_depsgraph_get()
            found.append([list(vertex.co) for vertex in thing.evaluated_get(graph).data.vertices])
        results.append(found)
    return results


def main(job: str, path: str, out: str | None = None) -> None:
    """One job."""
    import bpy

    if job == "rig":
        rig(bpy, path)
        return
    if job == "smooth":
        Path(out).write_text(json.dumps(smooth(bpy, json.loads(Path(path).read_text()))))
        return
    if job == "batch":
        result = {}
        for each in json.loads(Path(path).read_text()):
            try:
                load(bpy, each)
                result[each] = describe(bpy)
            except Exception as error:  # Whatever Blender's Python says about a broken file.
                result[each] = None
                print(each, error, file=sys.stderr)
        Path(out).write_text(json.dumps(result))
        return
    load(bpy, path)
    result = describe(bpy) if job == "import" else frames(bpy)
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
