"""Between a scene and UniRig: its meshes as one body in the model's frame, and skeleton and weights back into the scene.

The model's frame is Z up with the character looking towards -Y, and the body fills [-1, 1] in it, so that neither the
unit nor the place of a model matters. `Body.to_world` is inverted nowhere by fitting: it is the matrix itself.
"""

from dataclasses import dataclass, replace

import numpy as np

from meshes.scene import Mesh, Node, Scene, Skeleton, Skin
from meshes.weight_rows import compressed_rows, limit
from networks.unirig.mesh_prep import triangulate
from networks.unirig.robust_transfer import transfer_weights
from networks.unirig.tokenizer import ZERO_LENGTH
from shared_utils.errors import InvalidInputError, PostConditionError

# (x, y, z) -> (x, -z, y), see `mesh_prep.y_up_to_z_up`: the frame of a scene into the model's.
_MODEL_FROM_UP = {"Z": np.eye(3), "Y": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])}
REACH = 1.5  # joints may lie this far from the middle of the body, in halves of its longest side
_SAME_POSE = 1e-4  # of the skeleton's size


@dataclass
class Part:
    """A mesh where the scene shows it. matrix: (4, 4), the mesh's points to the world. points: how many it has."""

    mesh: int
    node: int
    matrix: np.ndarray
    points: int


@dataclass
class Body:
    """All surfaces of a scene as one: points float64 (V, 3) in the model's frame, part after part; triangles int64
    (T, 3). to_world: (4, 4), the model's frame to the scene's world."""

    parts: list[Part]
    points: np.ndarray
    triangles: np.ndarray
    to_world: np.ndarray

    def world(self, positions: np.ndarray) -> np.ndarray:
        """Positions (N, 3) of the model's frame in the world."""
        return positions @ self.to_world[:3, :3].T + self.to_world[:3, 3]

    def model(self, positions: np.ndarray) -> np.ndarray:
        """The inverse of `world`."""
        return (positions - self.to_world[:3, 3]) @ np.linalg.inv(self.to_world[:3, :3]).T


@dataclass
class Armature:
    """Joints of a scene's skeleton, as the networks see them: joints float64 (J, 3) in the model's frame, parents int64
    (J,), -1 for a root. skeleton: its index in `Scene.skeletons`."""

    joints: np.ndarray
    parents: np.ndarray
    skeleton: int


def gather(scene: Scene, name: str) -> Body:
    """The body of a scene; a mesh shown at several nodes becomes several meshes, as each needs its own weights.

    Skinned meshes count as they are in their bind pose. Raises InvalidInputError without a surface, and for positions
    that are not finite.
    """
    worlds = scene.world_matrices()
    shown: set[int] = set()
    parts = []
    for node, number in scene.mesh_nodes():
        mesh = scene.meshes[number]
        if len(mesh.face_sizes) == 0:
            continue
        if number in shown:
            scene.meshes.append(replace(mesh, name=f"{mesh.name}_{len(scene.meshes)}"))
            number = scene.nodes[node].mesh = len(scene.meshes) - 1
        shown.add(number)
        matrix = worlds[node]
        if mesh.skin is not None:
            matrix = worlds[scene.skeleton_node(mesh.skin.skeleton)] @ mesh.skin.bind_transform
        parts.append(Part(number, node, matrix, len(mesh.points)))
    if not parts:
        raise InvalidInputError(f"{name}: no faces in it ({len(scene.meshes)} mesh(es))")

    placed, triangles, start = [], [], 0
    with np.errstate(invalid="ignore", over="ignore"):
        for part in parts:
            mesh = scene.meshes[part.mesh]
            points = mesh.points @ part.matrix[:3, :3].T + part.matrix[:3, 3]
            if not np.isfinite(points).all():
                bad = int((~np.isfinite(points).all(axis=1)).sum())
                raise InvalidInputError(f"{name}: {bad} positions of mesh {mesh.name!r} are not finite numbers")
            corners = triangulate(points, mesh.face_sizes, mesh.face_vertices)
            if np.linalg.det(part.matrix[:3, :3]) < 0:  # a mirrored mesh has its faces turned inside out
                corners = corners[:, ::-1]
            placed.append(points)
            triangles.append(corners + start)
            start += len(points)
    world, faces = np.concatenate(placed), np.concatenate(triangles)
    return Body(parts, *_fit(world, faces, scene.up_axis, name))


def _fit(world: np.ndarray, faces: np.ndarray, up_axis: str, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points in the model's frame, faces, to_world). Only points of faces decide about size and middle."""
    used = world[np.unique(faces)]
    low, high = used.min(axis=0), used.max(axis=0)
    half = float((high - low).max() / 2)
    if not (half > 0 and np.isfinite(1 / half)):
        raise InvalidInputError(f"{name}: all points are at the same place")
    to_world = np.eye(4)
    to_world[:3, :3] = _MODEL_FROM_UP[up_axis].T * half
    to_world[:3, 3] = (low + high) / 2
    points = (world - to_world[:3, 3]) / half @ _MODEL_FROM_UP[up_axis].T
    return points, faces, to_world


def remove_rigs(scene: Scene) -> list[str]:
    """Take skins, skeletons and their clips out of the scene; what rode on a joint stays where it was. Returns the names
    of the skeletons."""
    names = [skeleton.name for skeleton in scene.skeletons]
    poses = [skeleton.pose() for skeleton in scene.skeletons]
    for node in scene.nodes:
        if node.parent_joint >= 0:
            node.matrix = poses[scene.nodes[node.parent].skeleton][node.parent_joint] @ node.matrix
            node.parts, node.parent_joint = None, -1
    for node in scene.nodes:
        node.skeleton = None
    for mesh in scene.meshes:
        mesh.skin = None
    for clip in scene.animations:
        clip.channels = [channel for channel in clip.channels if channel.skeleton < 0]
    scene.animations = [clip for clip in scene.animations if clip.channels]
    scene.skeletons = []
    return names


def add_skeleton(
    scene: Scene, body: Body, joints: np.ndarray, tails: np.ndarray, parents: np.ndarray, names: list[str]
) -> Armature:
    """Put a predicted skeleton (positions in the model's frame) into the scene, at a node of its own in the world.

    A joint's Y axis points along its bone and its roll is 0, as in Blender.
    """
    turn = body.to_world[:3, :3] / np.linalg.norm(body.to_world[:3, 0])
    bind = np.tile(np.eye(4), (len(joints), 1, 1))
    bind[:, :3, :3] = turn @ bone_rotations(tails - joints)
    bind[:, :3, 3] = body.world(joints)
    rest = bind.copy()
    child = parents >= 0
    rest[child] = np.linalg.inv(bind[parents[child]]) @ bind[child]
    scene.skeletons.append(Skeleton("Skeleton", list(names), parents.astype(np.int32), rest, bind))
    scene.nodes.append(Node("Armature", skeleton=len(scene.skeletons) - 1))
    return Armature(joints, parents, len(scene.skeletons) - 1)


def bone_rotations(directions: np.ndarray) -> np.ndarray:
    """(J, 3) bone vectors -> (J, 3, 3) rotations that take +Y there the shortest way; zero vectors count as +Z."""
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = np.where(length > ZERO_LENGTH, directions / np.where(length > ZERO_LENGTH, length, 1), [0.0, 0.0, 1.0])
    x, y, z = unit.T
    # I + K + K^2 / (1 + y) for the axis Y x unit (Rodrigues); straight down there is no shortest way: half a turn about Z.
    safe = np.where(1 + y > 1e-9, 1 + y, 1.0)
    rotation = np.stack(
        [
            np.stack([1 - x * x / safe, x, -x * z / safe], -1),
            np.stack([-x, y, -z], -1),
            np.stack([-x * z / safe, z, 1 - z * z / safe], -1),
        ],
        -2,
    )
    rotation[1 + y <= 1e-9] = np.diag([-1.0, -1.0, 1.0])
    return rotation


def own_skeleton(scene: Scene, body: Body, name: str) -> Armature:
    """The skeleton the scene has already. Raises InvalidInputError when there is none, or more than one."""
    index = _only_skeleton(scene, name)
    node = scene.world_matrices()[scene.skeleton_node(index)]
    skeleton = scene.skeletons[index]
    places = (node @ skeleton.bind)[:, :3, 3]
    return Armature(body.model(places), skeleton.parents.astype(np.int64), index)


def take_skeleton(scene: Scene, body: Body, source: Scene, name: str) -> tuple[Armature, bool]:
    """The skeleton of another file into the scene, converted to its unit and vertical axis by the node it stands at.

    It is bound in the pose the file shows; the second value says whether that is another one than it was bound in.
    """
    index = _only_skeleton(source, name)
    skeleton = source.skeletons[index]
    unit = np.eye(4)
    scale = source.metres_per_unit / scene.metres_per_unit
    unit[:3, :3] = scale * _MODEL_FROM_UP[scene.up_axis].T @ _MODEL_FROM_UP[source.up_axis]
    pose = skeleton.pose()
    scene.skeletons.append(replace(skeleton, bind=pose))
    matrix = unit @ source.world_matrices()[source.skeleton_node(index)]
    scene.nodes.append(Node("Armature", matrix=matrix, skeleton=len(scene.skeletons) - 1))
    joints = body.model((matrix @ pose)[:, :3, 3])
    return Armature(joints, skeleton.parents.astype(np.int64), len(scene.skeletons) - 1), is_posed(skeleton)


def is_posed(skeleton: Skeleton) -> bool:
    """Whether a skeleton's rest pose has its joints elsewhere than where the skin was bound."""
    shown, bound = skeleton.pose()[:, :3, 3], skeleton.bind[:, :3, 3]
    size = float(np.ptp(bound, axis=0).max(initial=0)) or 1.0
    return bool(np.abs(shown - bound).max(initial=0) > _SAME_POSE * size)


def _only_skeleton(scene: Scene, name: str) -> int:
    found = [index for index, skeleton in enumerate(scene.skeletons) if skeleton.joints]
    if not found:
        raise InvalidInputError(f"{name}: no skeleton in it")
    first = scene.skeletons[found[0]]
    for index in found[1:]:
        # glTF may hold one hierarchy bound in several poses; the first one is as good as the others.
        if scene.skeletons[index].joints != first.joints:
            raise InvalidInputError(f"{name}: {len(found)} skeletons in it, which are not one; keep the one to use")
    return found[0]


def check_joints(joints: np.ndarray, parents: np.ndarray, body: Body) -> np.ndarray:
    """Raise PostConditionError unless the joints (model's frame) are a tree with one root, finite and near the body.

    Returns the indices of joints outside of the body's own bounds times `REACH`, which is odd but no failure.
    """
    if len(joints) == 0:
        raise PostConditionError("the skeleton has no joint")
    if not np.isfinite(joints).all():
        raise PostConditionError("the skeleton has joints whose positions are not finite")
    if int((parents < 0).sum()) != 1 or (parents >= np.arange(len(parents))).any():
        raise PostConditionError(f"the skeleton is no tree: {int((parents < 0).sum())} roots, {len(joints)} joints")
    if np.abs(joints).max() > REACH:
        raise PostConditionError(
            f"the skeleton lies outside the mesh: a joint at {np.abs(joints).max():.3g} of its size"
        )
    return outside(joints, body)


def outside(joints: np.ndarray, body: Body) -> np.ndarray:
    """Indices of the joints outside of the body's bounds times `REACH`."""
    used = body.points[np.unique(body.triangles)]
    middle, half = (used.max(axis=0) + used.min(axis=0)) / 2, np.ptp(used, axis=0) / 2
    # Flat bodies: tokens place joints to 1/128, so that much is always allowed.
    return np.flatnonzero((np.abs(joints - middle) > REACH * half + 1 / 64).any(axis=1))


def spread_weights(body: Body, vertices: np.ndarray, faces: np.ndarray, weights: np.ndarray, influences: int):
    """Weights (P, J) of the prepared mesh onto all points of the body: float64 (V, J), the `influences` largest of each
    (0: all). Raises PostConditionError unless they are finite, not negative and sum to 1."""
    spread = limit(transfer_weights(vertices, faces, weights, body.points, body.triangles), influences)
    sums = spread.sum(axis=1)
    if not (np.isfinite(spread).all() and (spread >= 0).all() and np.abs(sums - 1).max(initial=0) < 1e-6):
        raise PostConditionError(f"the skin weights do not sum to 1 ({sums.min():.3g} to {sums.max():.3g})")
    return spread


def bind(scene: Scene, body: Body, armature: Armature, weights: np.ndarray) -> list[int]:
    """Give every part its rows of the weights (V, J). Returns the joints that move no point."""
    node = scene.world_matrices()[scene.skeleton_node(armature.skeleton)]
    start = 0
    for part in body.parts:
        rows = weights[start : start + part.points]
        start += part.points
        transform = np.linalg.solve(node, part.matrix)
        transform[3] = [0, 0, 0, 1]
        mesh: Mesh = scene.meshes[part.mesh]
        mesh.skin = Skin(armature.skeleton, *compressed_rows(rows), bind_transform=transform)
    return np.flatnonzero(~(weights > 0).any(axis=0)).tolist()


def skeleton_scene(scene: Scene, armature: Armature) -> Scene:
    """A scene of the skeleton alone."""
    matrix = scene.world_matrices()[scene.skeleton_node(armature.skeleton)]
    return Scene(
        nodes=[Node("Armature", matrix=matrix, skeleton=0)],
        skeletons=[scene.skeletons[armature.skeleton]],
        up_axis=scene.up_axis,
        metres_per_unit=scene.metres_per_unit,
    )


def moving_nodes(scene: Scene, body: Body) -> list[str]:
    """Names of the parts' nodes that clips move: once skinned, a mesh follows its joints and not its node."""
    animated = {channel.node for clip in scene.animations for channel in clip.channels if channel.path != "weights"}
    names = []
    for part in body.parts:
        node = part.node
        while node >= 0 and node not in animated:
            node = scene.nodes[node].parent
        if node >= 0:
            names.append(scene.nodes[part.node].name)
    return names
