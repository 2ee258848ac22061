"""Scenes of parts: coloured as predicted, by part, with a texture, or as boxes."""

import numpy as np

from meshes.scene import FaceVarying, Image, Material, Mesh, Node, Scene, Texture
from networks.omnipart.mask_files import part_colour
from networks.omnipart.part_meshes import SCENE_AXES, PartMesh

ROUGHNESS = 1.0  # as the published exporter has it
BOX_OPACITY = 0.35
# Corner k of a box lies at (k & 1, k >> 1 & 1, k >> 2 & 1); its six sides, counter-clockwise from outside.
_BOX_SIDES = ((0, 4, 6, 2), (1, 3, 7, 5), (0, 1, 5, 4), (2, 6, 7, 3), (0, 2, 3, 1), (4, 5, 7, 6))


def linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB values in 0..1 as linear light (IEC 61966-2-1)."""
    srgb = np.asarray(srgb, np.float64)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def palette(number: int) -> tuple[float, float, float]:
    """Colour of part `number` (1, 2, ...) in sRGB, 0..1."""
    red, green, blue = part_colour(number - 1)
    return red / 255, green / 255, blue / 255


def vertex_coloured(parts: dict[int, PartMesh]) -> Scene:
    """One node a part, `part_01` ..., with the predicted colours at its points."""
    scene = Scene(materials=[Material("vertex colours", roughness=ROUGHNESS)])
    for number, part in parts.items():
        mesh = _mesh(number, part, material=0)
        mesh.colors["displayColor"] = FaceVarying(linear(part.colours), mesh.face_vertices)
        _add(scene, mesh)
    return scene


def part_coloured(parts: dict[int, PartMesh]) -> Scene:
    """One node a part, each in the colour that its region has in the pictures of the mask."""
    scene = Scene()
    for number, part in parts.items():
        colour = (*map(float, linear(palette(number))), 1.0)
        scene.materials.append(Material(f"part_{number:02d}", base_color=colour, roughness=ROUGHNESS))
        _add(scene, _mesh(number, part, material=len(scene.materials) - 1))
    return scene


def textured(parts: dict[int, PartMesh], uvs: dict[int, np.ndarray], picture: bytes) -> Scene:
    """One node a part, all with one texture. `uvs`: per part [V, 2], origin at the bottom left; `picture`: a PNG file."""
    texture = Texture(0, wrap_s="clamp", wrap_t="clamp", color_space="sRGB")
    scene = Scene(
        materials=[Material("baked", base_color_texture=texture, roughness=ROUGHNESS)],
        images=[Image("base_color.png", "image/png", picture)],
    )
    for number, part in parts.items():
        mesh = _mesh(number, part, material=0)
        mesh.uv_sets["st"] = FaceVarying(uvs[number], mesh.face_vertices)
        _add(scene, mesh)
    return scene


def box_scene(boxes: np.ndarray, numbers: list[int]) -> Scene:
    """Translucent boxes (float [K, 2, 3] in the model's frame), in the colours of the parts `numbers` [K]."""
    scene = Scene()
    for box, number in zip(boxes, numbers, strict=True):
        corners = np.array([[box[k >> axis & 1, axis] for axis in range(3)] for k in range(8)]) @ SCENE_AXES.T
        colour = (*map(float, linear(palette(number))), BOX_OPACITY)
        scene.materials.append(
            Material(f"box_{number:02d}", base_color=colour, alpha_mode="BLEND", roughness=ROUGHNESS)
        )
        _add(
            scene,
            Mesh(
                f"box_{number:02d}",
                corners,
                np.full(6, 4, np.int32),
                np.array(_BOX_SIDES, np.int32).ravel(),
                np.full(6, len(scene.materials) - 1, np.int32),
                double_sided=True,
            ),
        )
    return scene


def _mesh(number: int, part: PartMesh, material: int) -> Mesh:
    corners = part.faces.astype(np.int32).ravel()
    count = len(part.faces)
    return Mesh(
        f"part_{number:02d}",
        part.points,
        np.full(count, 3, np.int32),
        corners,
        np.full(count, material, np.int32),
        normals=FaceVarying(part.normals(), corners),
    )


def _add(scene: Scene, mesh: Mesh) -> None:
    scene.nodes.append(Node(mesh.name, mesh=len(scene.meshes)))
    scene.meshes.append(mesh)
