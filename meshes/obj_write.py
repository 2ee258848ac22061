"""Scene -> OBJ with MTL and pictures: polygons, texture coordinates, normals and materials at their places in the
world.

The text is Y up and in metres. Everything that OBJ has no words for is named in the warnings.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np

from meshes.paths import image_suffix
from meshes.pictures import encode_for
from meshes.scene import Material, Mesh, Scene, Texture
from shared_utils.output_dir import atomic

_Y_UP_FROM_Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])


def write_obj(scene: Scene, path: Path, companions: Path, stem: str) -> tuple[list[str], list[Path]]:
    """Write `path`, and into the folder `companions` the material library `<stem>.mtl` and `<stem>_textures/` with the pictures.

    Returns (warnings, files written, the OBJ last).
    """
    warnings: list[str] = _losses(scene)
    files: list[Path] = []
    library, pictures = _library(scene, f"{stem}_textures", warnings)
    for name, data in sorted(pictures.items()):
        files.append(companions / f"{stem}_textures" / name)
        with atomic(files[-1]) as partial:
            partial.write_bytes(data)
    if library:
        files.append(companions / f"{stem}.mtl")
        with atomic(files[-1]) as partial:
            partial.write_text(library, encoding="utf-8")
    with atomic(path) as partial, partial.open("w", encoding="utf-8") as out:
        out.write("# Y is up, lengths are in metres\n")
        if library:
            out.write(f"mtllib {stem}.mtl\n")
        _write_objects(scene, out)
    return warnings, [*files, path]


def _losses(scene: Scene) -> list[str]:
    lost = {
        "skeletons": scene.skeletons,
        "animations": scene.animations,
        "cameras": [node for node in scene.nodes if node.camera is not None],
        "lights": [node for node in scene.nodes if node.light is not None],
        "blend shapes": [mesh for mesh in scene.meshes if mesh.blend_shapes],
        "further UV sets": [mesh for mesh in scene.meshes if len(mesh.uv_sets) > 1],
        "further colour sets, or opacity": [mesh for mesh in scene.meshes if len(mesh.colors) > 1],
        "creases and subdivision": [m for m in scene.meshes if m.subdivision != "none" or m.crease_edges is not None],
        "primvars": [mesh for mesh in scene.meshes if set(mesh.primvars) - {"smoothingGroup"}],
        "the hierarchy of nodes": [node for node in scene.nodes if node.parent >= 0],
    }
    return [f"OBJ has no place for {what}" for what, things in lost.items() if things]


def _write_objects(scene: Scene, out) -> None:
    convert = _Y_UP_FROM_Z_UP if scene.up_axis == "Z" else np.eye(4)
    convert = convert @ np.diag([scene.metres_per_unit] * 3 + [1.0])
    worlds, starts, names = scene.world_matrices(), np.ones(3, np.int64), set()
    for index, number in scene.mesh_nodes():
        name, copies = _word(scene.nodes[index].name or scene.meshes[number].name or "mesh"), 0
        base = name
        while name in names:
            copies += 1
            name = f"{base}_{copies}"
        names.add(name)
        mesh, matrix = scene.meshes[number], convert @ worlds[index]
        if mesh.skin is not None:
            place = worlds[scene.skeleton_node(mesh.skin.skeleton)]
            matrix = convert @ place @ mesh.skin.bind_transform
        out.write(f"o {name}\n")
        starts += _write_mesh(scene, mesh, matrix, starts, out)


def _write_mesh(scene: Scene, mesh: Mesh, matrix: np.ndarray, starts: np.ndarray, out) -> np.ndarray:
    """One object; how many v, vt and vn lines it took."""
    plain = (matrix == np.eye(4)).all()
    points = mesh.points if plain else mesh.points @ matrix[:3, :3].T + matrix[:3, 3]
    color = next(iter(mesh.colors.values()), None)
    by_point = (
        color is not None and len(color.values) == len(points) and np.array_equal(color.indices, mesh.face_vertices)
    )
    _write_rows(out, "v", np.concatenate([points, color.values[:, :3]], 1) if by_point else points)
    uv, normals = next(iter(mesh.uv_sets.values()), None), mesh.normals
    if uv is not None:
        _write_rows(out, "vt", uv.values)
    if normals is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            turned = normals.values if plain else normals.values @ np.linalg.pinv(matrix[:3, :3])
            lengths = np.linalg.norm(turned, axis=1, keepdims=True)
            unit = turned if plain else np.where(lengths > 0, turned / lengths, turned)
        _write_rows(out, "vn", unit)
    columns = [mesh.face_vertices + starts[0]]
    columns.append(uv.indices + starts[1] if uv is not None else None)
    columns.append(normals.indices + starts[2] if normals is not None else None)
    corners = [_corner(row) for row in zip(*[c.tolist() for c in columns if c is not None], strict=True)]
    if uv is None and normals is not None:
        corners = [corner.replace("/", "//") for corner in corners]
    if np.linalg.det(matrix[:3, :3]) < 0:  # A mirroring turns the faces inside out.
        corners = _reversed_faces(mesh, corners)
    _write_faces(scene, mesh, corners, out)
    return np.array(
        [len(points), len(uv.values) if uv is not None else 0, len(normals.values) if normals is not None else 0]
    )


def _write_faces(scene: Scene, mesh: Mesh, corners: list[str], out) -> None:
    offsets = mesh.face_offsets()
    groups: list[list[str]] = [[] for _ in mesh.face_sizes]
    for name, faces in mesh.face_groups.items():
        for face in faces:
            groups[face].append(_word(name))
    smoothing = mesh.primvars.get("smoothingGroup")
    smooth = smoothing.values if smoothing is not None and smoothing.interpolation == "uniform" else None
    if smooth is not None and smoothing.indices is not None:
        smooth = smooth[smoothing.indices]
    names = _material_words(scene)
    state = (None, None, None)
    for face, material in enumerate(mesh.face_material.tolist()):
        now = (material, groups[face], None if smooth is None else int(smooth[face]))
        if now != state:
            if now[1] != (state[1] or []):
                out.write(f"g {' '.join(now[1]) or 'default'}\n")
            if now[2] is not None and now[2] != state[2]:
                out.write(f"s {now[2] or 'off'}\n")
            if material != state[0] and (material >= 0 or state[0] is not None or scene.materials):
                out.write(f"usemtl {names[material]}\n" if material >= 0 else "usemtl\n")
            state = now
        out.write(f"f {' '.join(corners[offsets[face] : offsets[face + 1]])}\n")


def _corner(row: tuple) -> str:
    return "/".join(map(str, row))


def _reversed_faces(mesh: Mesh, corners: list[str]) -> list[str]:
    offsets = mesh.face_offsets()
    return [c for a, b in pairwise(offsets) for c in reversed(corners[a:b])]


def _write_rows(out, key: str, rows: np.ndarray) -> None:
    """Numbers with as many digits as give them back exactly (9 if 32-bit floats hold them, else 17)."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.array_equal(rows.astype(np.float32).astype(np.float64), rows, equal_nan=True)
    line = key + (" %.9g" if single else " %.17g") * rows.shape[1] + "\n"
    out.writelines(line % tuple(row) for row in rows.tolist())


def _word(name: str) -> str:
    """A name without line ends and spaces, which OBJ takes as separators."""
    return "_".join(name.split()) or "_"


def _material_words(scene: Scene) -> list[str]:
    from meshes.gltf_skins import unique_names

    return unique_names([_word(material.name) for material in scene.materials])


def _library(scene: Scene, folder: str, warnings: list[str]) -> tuple[str, dict[str, bytes]]:
    pictures: dict[str, bytes] = {}
    paths: dict[int, str | None] = {}

    def picture(texture: Texture) -> str | None:
        if texture.image not in paths:
            image = scene.images[texture.image]
            try:
                data, mime = encode_for(
                    image, ("image/png", "image/jpeg", "image/bmp", "image/x-tga", "image/tiff", "image/x-exr")
                )
            except ValueError as error:
                warnings.append(f"image {error} cannot go beside an OBJ and is left out")
                paths[texture.image] = None
                return None
            stem, number = _word(Path(image.name.replace("\\", "/")).stem)[:80], 0
            name = stem + image_suffix(mime)
            while pictures.get(name, data) != data:
                number += 1
                name = f"{stem}_{number}{image_suffix(mime)}"
            pictures[name], paths[texture.image] = data, f"{folder}/{name}"
        return paths[texture.image]

    blocks = [
        _mtl_block(name, material, picture, warnings)
        for name, material in zip(_material_words(scene), scene.materials, strict=True)
    ]
    return "\n".join(blocks), pictures


def _mtl_block(name: str, material: Material, picture, warnings: list[str]) -> str:
    lines = [f"newmtl {name}", _numbers("Kd", material.base_color[:3])]
    if any(material.emissive):
        lines.append(_numbers("Ke", material.emissive))
    if material.alpha_mode != "OPAQUE":
        lines.append(_numbers("d", material.base_color[3:]))
    lines += [_numbers("Pr", [material.roughness]), _numbers("Pm", [material.metallic]), _numbers("Ni", [material.ior])]
    maps = [
        ("map_Kd", material.base_color_texture),
        ("map_Ke", material.emissive_texture),
        ("map_d", material.opacity_texture),
        ("map_Pr", material.roughness_texture),
        ("map_Pm", material.metallic_texture),
        ("norm", material.normal_texture),
    ]
    if material.occlusion_texture is not None:
        warnings.append(f"material {material.name!r}: OBJ has no place for its occlusion map")
    for key, texture in maps:
        if texture is None or (path := picture(texture)) is None:
            continue
        options = ""
        if texture.uv_offset != (0, 0):
            options += " " + _numbers("-o", texture.uv_offset)
        if texture.uv_scale != (1, 1):
            options += " " + _numbers("-s", texture.uv_scale)
        if "clamp" in (texture.wrap_s, texture.wrap_t):
            options += " -clamp on"
        if key == "norm" and material.normal_scale != 1:
            options += " " + _numbers("-bm", [material.normal_scale])
        if texture.uv_rotation:
            warnings.append(f"material {material.name!r}: OBJ has no place for turned texture coordinates")
        if len(texture.channel) == 1 and texture.channel != "r":
            warnings.append(
                f"material {material.name!r}: {key} uses channel {texture.channel} of its picture; OBJ cannot say so"
            )
        # A name that starts with a dash would be taken for an option.
        lines.append(f"{key}{options} {'./' if path.startswith('-') else ''}{path}")
    return "\n".join(lines) + "\n"


def _numbers(key: str, values) -> str:
    return key + "".join(f" {float(value):.9g}" for value in values)
