"""A picture of a rig: the mesh with its bones, and the weights of the three joints that move most of it."""

import numpy as np

from meshes.preview import fit_view, panels, render
from meshes.scene import Mesh, Node, Scene
from networks.unirig.rigging import Armature, Body, bone_rotations

_COLOURS = np.array([[0.85, 0.16, 0.20], [0.16, 0.62, 0.30], [0.17, 0.35, 0.85]])
_BONE = (0.10, 0.25, 0.55)
_REST = 0.86  # grey of what the three joints do not move
_WHITE = (1.0, 1.0, 1.0)
_THROUGH = 0.85  # how much of a bone shows through the surface


def draw_rig(
    scene: Scene, body: Body, armature: Armature, tails: np.ndarray, weights: np.ndarray | None, size: int = 640
) -> np.ndarray:
    """uint8 [H, W, 3]. tails: (J, 3) in the model's frame; weights: (V, J) of the body's points, None without a skin."""
    camera = fit_view(scene)
    joints, ends = body.world(armature.joints), body.world(tails)
    picture = render(scene, size, camera, wireframe=False)
    bones = render(
        bone_scene(joints, ends, scene.up_axis), size, camera, wireframe=False, background=_WHITE, color=_BONE
    )
    drawn = (bones < 255).any(axis=2, keepdims=True) * _THROUGH
    picture = np.round(picture * (1 - drawn) + bones * drawn).astype(np.uint8)
    names = scene.skeletons[armature.skeleton].joints
    shown = [(picture, f"{len(names)} joints")]
    if weights is not None:
        strongest = np.argsort(-weights.sum(axis=0), kind="stable")[:3]
        mixed = weights[:, strongest] @ _COLOURS[: len(strongest)]
        mixed = mixed + _REST * (1 - weights[:, strongest].sum(axis=1, keepdims=True))
        colours, start = {}, 0
        for part in body.parts:
            colours[part.mesh] = np.clip(mixed[start : start + part.points], 0, 1)
            start += part.points
        words = ", ".join(f"{names[j][:18]} {c}" for j, c in zip(strongest, ("red", "green", "blue"), strict=False))
        shown.append((render(scene, size, camera, wireframe=False, vertex_colors=colours), words))
    return panels(shown)


def bone_scene(joints: np.ndarray, tails: np.ndarray, up_axis: str) -> Scene:
    """Every bone as an octahedron from its joint (J, 3) to its tail (J, 3), widest at a fifth of its length."""
    along = tails - joints
    length = np.linalg.norm(along, axis=1)
    turned = bone_rotations(along)
    corners = np.array([[0, 0, 0], [0.08, 0.2, 0], [0, 0.2, 0.08], [-0.08, 0.2, 0], [0, 0.2, -0.08], [0, 1, 0]])
    points = joints[:, None] + np.einsum("jab,kb->jka", turned, corners) * length[:, None, None]
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1], [5, 2, 1], [5, 3, 2], [5, 4, 3], [5, 1, 4]])
    faces = (faces[None] + 6 * np.arange(len(joints))[:, None, None]).reshape(-1, 3)
    mesh = Mesh("bones", points.reshape(-1, 3), np.full(len(faces), 3, np.int32), faces.ravel().astype(np.int32))
    return Scene(nodes=[Node("bones", mesh=0)], meshes=[mesh], up_axis=up_axis)
