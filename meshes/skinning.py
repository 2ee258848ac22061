"""Linear blend skinning of a scene's meshes: where points are when a skeleton takes a pose."""

import numpy as np

from meshes.clips import sample_channel
from meshes.scene import Animation, Mesh, Parts, Scene, Skeleton, Skin
from meshes.transforms import compose, decompose


def skinned_points(mesh: Mesh, skeleton: Skeleton, pose: np.ndarray, points: np.ndarray | None = None) -> np.ndarray:
    """Points [V, 3] in the skeleton's space for joint-to-skeleton matrices `pose` [J, 4, 4]; `points` default to the
    mesh's own.

    The formula is Skin's. Weights are used as they are; a point without influences keeps its bind position.
    """
    skin = mesh.skin
    points = mesh.points if points is None else points
    bound = points @ skin.bind_transform[:3, :3].T + skin.bind_transform[:3, 3]
    matrices = (pose @ np.linalg.inv(skeleton.bind))[:, :3]
    result = np.zeros((len(points), 3))
    counts = np.diff(skin.offsets)
    for place in range(int(counts.max(initial=0))):  # One influence of every point at a time keeps memory small.
        rows = np.flatnonzero(counts > place)
        at = skin.offsets[rows] + place
        chosen = matrices[skin.joints[at]]
        moved = np.einsum("nij,nj->ni", chosen[:, :, :3], bound[rows]) + chosen[:, :, 3]
        result[rows] += skin.weights[at][:, None] * moved
    result[counts == 0] = bound[counts == 0]
    return result


def shaped_points(mesh: Mesh, weights: np.ndarray | None = None) -> np.ndarray:
    """Points [V, 3] with blend shapes at `weights` [shapes] (default: their weights at rest). In-betweens are not
    applied.
    """
    points = np.array(mesh.points, np.float64)
    for number, shape in enumerate(mesh.blend_shapes):
        weight = shape.weight if weights is None else float(weights[number])
        if weight:
            rows = slice(None) if shape.indices is None else shape.indices
            points[rows] += weight * shape.offsets
    return points


def clip_pose(scene: Scene, clip: Animation, skeleton: int, time: float) -> np.ndarray:
    """Joint-to-parent matrices [J, 4, 4] of a skeleton at a time in seconds of a clip; joints it does not move rest."""
    rig = scene.skeletons[skeleton]
    channels = [channel for channel in clip.channels if channel.skeleton == skeleton]
    local = np.array(rig.rest)
    rest = rig.rest_parts if rig.rest_parts is not None else decompose(rig.rest)
    moved = Parts(rest.translation.copy(), rest.rotation.copy(), rest.scale.copy())
    for channel in channels:
        getattr(moved, channel.path)[channel.joint] = sample_channel(channel, np.array([time]))[0]
    joints = sorted({channel.joint for channel in channels})
    local[joints] = compose(Parts(moved.translation[joints], moved.rotation[joints], moved.scale[joints]))
    return local


def world_points(scene: Scene, node: int, poses: dict[int, np.ndarray] | None = None) -> np.ndarray:
    """Points [V, 3] in the world of the mesh at a node. `poses` gives joint-to-parent matrices by skeleton (default:
    at rest).
    """
    mesh, worlds = scene.meshes[scene.nodes[node].mesh], scene.world_matrices()
    if mesh.skin is None:
        points, matrix = shaped_points(mesh), worlds[node]
    else:
        rig = scene.skeletons[mesh.skin.skeleton]
        pose = rig.pose((poses or {}).get(mesh.skin.skeleton))
        points, matrix = (
            skinned_points(mesh, rig, pose, shaped_points(mesh)),
            worlds[scene.skeleton_node(mesh.skin.skeleton)],
        )
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def influences_to_rows(row: np.ndarray, joint: np.ndarray, weight: np.ndarray, points: int) -> tuple:
    """(offsets, joints, weights) of a Skin from (point, joint, weight) triples in any order.

    Triples of one point stay in order of falling weight (ties: by joint); a joint named twice for a point counts once, with
    the sum.
    """
    order = np.lexsort((joint, row))
    row, joint, weight = row[order], joint[order], weight[order]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (joint[1:] != joint[:-1])
    weight = np.add.reduceat(weight, np.flatnonzero(first)) if len(row) else weight
    row, joint = row[first], joint[first]
    order = np.lexsort((joint, -weight, row))
    offsets = np.zeros(points + 1, np.int32)
    np.cumsum(np.bincount(row, minlength=points), out=offsets[1:])
    return offsets, joint[order].astype(np.int32), weight[order]


def influence_table(skin: Skin, points: int, multiple: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The skin as joints [V, N] int32 and weights [V, N] float64, N the largest count rounded up to a multiple (zeros fill)."""
    counts = np.diff(skin.offsets)
    width = max(multiple, -(-int(counts.max(initial=0)) // multiple) * multiple)
    joints, weights = np.zeros((points, width), np.int32), np.zeros((points, width))
    rows = np.repeat(np.arange(points), counts)
    columns = np.arange(len(skin.joints)) - np.repeat(skin.offsets[:-1], counts)
    joints[rows, columns], weights[rows, columns] = skin.joints, skin.weights
    return joints, weights
