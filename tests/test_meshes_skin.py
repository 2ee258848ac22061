"""Rigged meshes survive: posed points after round trips, evaluated by our own skinning and by USD's."""

import json

import mesh_samples
import numpy as np
import pytest

from meshes.clips import sample_channel
from meshes.io import read_scene, write_scene
from meshes.scene import Channel, Parts, Scene
from meshes.skinning import clip_pose, shaped_points, skinned_points, world_points
from meshes.transforms import compose, decompose, has_shear, quaternions, rotation_matrices


def random_poses(skeleton, count: int, seed: int = 0) -> np.ndarray:
    """Joint-to-parent matrices [count, J, 4, 4]: the rest pose with every joint turned by up to 60 degrees."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(count, len(skeleton.joints), 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    half = rng.uniform(0, np.pi / 6, (count, len(skeleton.joints), 1))
    turns = np.zeros((count, len(skeleton.joints), 4, 4))
    turns[..., :3, :3] = rotation_matrices(np.concatenate([axes * np.sin(half), np.cos(half)], -1))
    turns[..., 3, 3] = 1
    return skeleton.rest @ turns


def posed(scene: Scene, poses: np.ndarray) -> np.ndarray:
    """World positions of every skinned mesh, [poses, points, 3]."""
    nodes = [index for index, number in scene.mesh_nodes() if scene.meshes[number].skin is not None]
    return np.stack([np.concatenate([world_points(scene, node, {0: pose}) for node in nodes]) for pose in poses])


def by_name(scene: Scene, other: Scene, poses: np.ndarray) -> np.ndarray:
    """Poses of one scene's first skeleton in the joint order of another's."""
    order = [scene.skeletons[0].joints.index(name) for name in other.skeletons[0].joints]
    return poses[:, order]


@pytest.mark.parametrize(
    ("sample", "trip"),
    [
        ("skinned_glb", [".usdc", ".glb"]),
        ("skinned_glb", [".glb"]),
        ("skinned_glb", [".usdz", ".usda"]),
        ("rigged_usd", [".usdc"]),
        ("rigged_usd", [".glb", ".usdc"]),
    ],
)
def test_twenty_poses_are_equal_after_round_trips(tmp_path, sample, trip):
    start = tmp_path / ("in.glb" if sample == "skinned_glb" else "in.usda")
    scene = read_scene(getattr(mesh_samples, sample)(start))
    poses = random_poses(scene.skeletons[0], 20)
    expected = posed(scene, poses)
    size = np.ptp(expected.reshape(-1, 3), axis=0).max()
    other = scene
    for number, suffix in enumerate(trip):
        path = tmp_path / f"step{number}{suffix}"
        write_scene(other, path)
        other = read_scene(path)
    if sample == "rigged_usd" and ".glb" in trip:  # Through glTF the world is in metres with Y up.
        convert = other.nodes[0].matrix
        expected = expected @ convert[:3, :3].T + convert[:3, 3]
        size *= 0.01
        # glTF splits points at seams: compare the sets of positions at the corners of the same triangles.
        found = posed(other, by_name(scene, other, poses))
        corners = other.meshes[0].points
        match = [int(np.argmin(np.abs(scene.meshes[0].points - corner).sum(1))) for corner in corners]
        expected = expected[:, match]
    else:
        found = posed(other, by_name(scene, other, poses))
    assert np.abs(found - expected).max() < 1e-5 * size


@pytest.mark.parametrize("sample", ["skinned_glb", "rigged_usd"])
def test_usd_itself_skins_what_we_write_as_we_do(tmp_path, sample):
    """The independent reader: UsdSkel's own skinning of our file, in 20 frames of a clip that we wrote into it."""
    from pxr import Gf, Usd, UsdGeom, UsdSkel, Vt

    start = tmp_path / ("in.glb" if sample == "skinned_glb" else "in.usda")
    scene = read_scene(getattr(mesh_samples, sample)(start))
    for mesh in scene.meshes:
        mesh.blend_shapes = []
    scene.animations = []
    write_scene(scene, tmp_path / "a.usdc")
    stage = Usd.Stage.Open(str(tmp_path / "a.usdc"))
    prims = {prim.GetTypeName(): prim for prim in stage.Traverse() if prim.GetName() not in ("Hat",)}
    skeleton_prim, mesh_prim = UsdSkel.Skeleton(prims["Skeleton"]), prims["Mesh"]
    poses = random_poses(scene.skeletons[0], 20, seed=3)
    clip = UsdSkel.Animation.Define(stage, skeleton_prim.GetPath().GetParentPath().AppendChild("Test"))
    clip.CreateJointsAttr(skeleton_prim.GetJointsAttr().Get())
    clip.CreateScalesAttr([Gf.Vec3h(1, 1, 1)] * len(poses[0]))
    for frame, pose in enumerate(poses):
        parts = decompose(pose)
        clip.CreateTranslationsAttr().Set(Vt.Vec3fArray.FromNumpy(parts.translation.astype(np.float32)), frame)
        clip.CreateRotationsAttr().Set(Vt.QuatfArray.FromNumpy(parts.rotation.astype(np.float32)), frame)
    UsdSkel.BindingAPI.Apply(skeleton_prim.GetPrim()).CreateAnimationSourceRel().SetTargets([clip.GetPath()])
    root = UsdSkel.Root(stage.GetDefaultPrim())
    assert UsdSkel.BakeSkinning(root, Gf.Interval(0, 19))
    node = next(i for i, number in scene.mesh_nodes() if scene.meshes[number].skin is not None)
    for frame, pose in enumerate(poses):
        baked = np.array(UsdGeom.Mesh(mesh_prim).GetPointsAttr().Get(frame), np.float64)
        place = np.array(UsdGeom.Xformable(mesh_prim).ComputeLocalToWorldTransform(frame)).T
        world = baked @ place[:3, :3].T + place[:3, 3]
        ours = world_points(scene, node, {0: pose})
        assert np.abs(world - ours).max() < 1e-5 * np.ptp(ours, axis=0).max()


@pytest.mark.parametrize("suffix", [".usdc", ".glb"])
def test_clips_move_the_same_way_after_writing(tmp_path, suffix):
    scene = read_scene(mesh_samples.skinned_glb(tmp_path / "in.glb"))
    write_scene(scene, tmp_path / f"a{suffix}")
    again = read_scene(tmp_path / f"a{suffix}")
    assert [clip.name for clip in again.animations] == ["Wave"]
    for time in np.linspace(0, 1, 13):
        one = clip_pose(scene, scene.animations[0], 0, time)
        other = clip_pose(again, again.animations[0], 0, time)
        # A curve becomes 30 linear keys a second in USD: it may stray between them.
        assert np.abs(one - other).max() < (2e-3 if suffix == ".usdc" else 1e-6)
    moved = {channel.path for channel in again.animations[0].channels if channel.node >= 0}
    assert moved == {"weights", "translation"}


def test_the_first_clip_is_bound_and_the_others_are_beside_it(tmp_path):
    from pxr import Usd, UsdSkel

    scene = read_scene(mesh_samples.rigged_usd(tmp_path / "in.usda"))
    second = Channel("rotation", np.array([0.0, 1.0]), np.array([[0, 0, 0, 1], [0.6, 0, 0, 0.8]]), skeleton=0, joint=0)
    scene.animations.append(type(scene.animations[0])("Bow down", [second]))
    write_scene(scene, tmp_path / "a.usdc")
    stage = Usd.Stage.Open(str(tmp_path / "a.usdc"))
    skeleton = next(prim for prim in stage.Traverse() if prim.IsA(UsdSkel.Skeleton))
    assert UsdSkel.BindingAPI(skeleton).GetAnimationSource().GetName() == "Nod"
    assert [clip.name for clip in read_scene(tmp_path / "a.usdc").animations] == ["Nod", "Bow down"]


def test_skins_of_one_armature_share_its_skeleton(tmp_path):
    path = mesh_samples.skinned_glb(tmp_path / "in.gltf")
    document = json.loads(path.read_text())
    # A second mesh bound to some of the joints, exported with its own place: every matrix times one transform.
    builder = mesh_samples.GlbBuilder()
    builder.document, builder.binary = document, (tmp_path / "in.bin").read_bytes()
    del document["buffers"]
    joints = document["skins"][0]["joints"][:4]
    accessor = document["accessors"][document["skins"][0]["inverseBindMatrices"]]
    start = document["bufferViews"][accessor["bufferView"]]["byteOffset"]
    own = np.frombuffer(builder.binary, "<f4", 64, start).reshape(4, 4, 4).transpose(0, 2, 1)
    moved = own @ np.array([[2, 0, 0, 1], [0, 2, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
    matrices = builder.array(moved.transpose(0, 2, 1).reshape(4, 16), "MAT4")
    document["skins"].append({"joints": joints, "inverseBindMatrices": matrices})
    document["nodes"].append({"name": "Second", "mesh": 2, "skin": 1})
    primitive = {
        "attributes": {
            "POSITION": builder.array(np.eye(3), "VEC3", bounds=True),
            "JOINTS_0": builder.array([[0, 0, 0, 0], [1, 0, 0, 0], [3, 0, 0, 0]], "VEC4", "u1"),
            "WEIGHTS_0": builder.array([[1, 0, 0, 0]] * 3, "VEC4"),
        }
    }
    document["meshes"].append({"name": "Second", "primitives": [primitive]})
    document["scenes"][0]["nodes"].append(len(document["nodes"]) - 1)
    scene = read_scene(builder.save(tmp_path / "b.glb"))
    assert len(scene.skeletons) == 1
    mesh = scene.meshes[2]
    pose = random_poses(scene.skeletons[0], 1)[0]
    pose = scene.skeletons[0].pose(pose)
    names = [document["nodes"][joint]["name"] for joint in joints]
    order = [scene.skeletons[0].joints.index(name) for name in names]
    matrix = pose[order] @ moved
    expected = np.stack([(matrix[j] @ [*np.eye(3)[i], 1])[:3] for i, j in enumerate((0, 1, 3))])
    np.testing.assert_allclose(skinned_points(mesh, scene.skeletons[0], pose), expected, atol=1e-5)
    write_scene(scene, tmp_path / "c.usdc")
    assert len(read_scene(tmp_path / "c.usdc").skeletons) == 1
    # With other bind poses they cannot share one.
    turned = own.copy()
    turned[1] = turned[1] @ np.diag([1, 2, 1, 1])
    document["skins"][1]["inverseBindMatrices"] = builder.array(turned.transpose(0, 2, 1).reshape(4, 16), "MAT4")
    builder.document.pop("buffers", None)
    two = read_scene(builder.save(tmp_path / "d.glb"))
    assert len(two.skeletons) == 2 and two.meshes[2].skin.skeleton == 1


def test_weights_that_do_not_add_up_are_made_to_and_empty_points_named(tmp_path):
    from gltf_validator import assert_valid_glb

    scene = read_scene(mesh_samples.skinned_glb(tmp_path / "in.glb"))
    skin = scene.meshes[0].skin
    skin.weights = skin.weights * 0.5
    skin.weights[: skin.offsets[1]] = 0
    written = write_scene(scene, tmp_path / "a.glb")
    assert any("1 points follow no joint" in warning for warning in written.warnings)
    again = read_scene(tmp_path / "a.glb").meshes[0].skin
    np.testing.assert_allclose(np.add.reduceat(again.weights, again.offsets[:-1]), 1, atol=1e-6)
    assert_valid_glb(tmp_path / "a.glb")


def test_shapes_and_poses_by_hand():
    rng = np.random.default_rng(1)
    rotations = rotation_matrices(rng.normal(size=(200, 4)))
    np.testing.assert_allclose(rotation_matrices(quaternions(rotations)), rotations, atol=1e-12)
    scales = rng.uniform(0.2, 3, (200, 3)) * rng.choice([-1, 1], (200, 3))
    matrices = compose(Parts(rng.normal(size=(200, 3)), rng.normal(size=(200, 4)), scales))
    np.testing.assert_allclose(compose(decompose(matrices)), matrices, atol=1e-12)
    assert not has_shear(matrices[0])
    assert has_shear(np.diag([1.0, 2, 1, 1]) @ matrices[1])
    np.testing.assert_allclose(compose(decompose(np.zeros((4, 4)) + np.diag([0, 0, 0, 1.0]))), np.diag([0, 0, 0, 1.0]))


def test_keys_between_and_outside(tmp_path):
    times = np.array([0.0, 1.0, 3.0])
    linear = Channel("translation", times, np.array([[0.0], [2.0], [4.0]]))
    np.testing.assert_allclose(sample_channel(linear, np.array([-1, 0.5, 2, 9]))[:, 0], [0, 1, 3, 4])
    step = Channel("translation", times, np.array([[0.0], [2.0], [4.0]]), interpolation="STEP")
    np.testing.assert_allclose(sample_channel(step, np.array([0.99, 1, 2.9, 3]))[:, 0], [0, 2, 2, 4])
    # A cubic through its keys with their own slopes gives back x^3.
    values = np.array([[[3 * t * t], [t**3], [3 * t * t]] for t in times])
    curve = Channel("translation", times, values, interpolation="CUBICSPLINE")
    at = np.linspace(0, 3, 17)
    np.testing.assert_allclose(sample_channel(curve, at)[:, 0], at**3, atol=1e-12)
    turn = Channel("rotation", np.array([0.0, 1.0]), np.array([[0, 0, 0, 1], [0, 0, -1.0, 0]]))
    np.testing.assert_allclose(np.abs(sample_channel(turn, np.array([0.5]))[0]), [0, 0, np.sqrt(0.5), np.sqrt(0.5)])


def test_blend_shapes_move_their_points_only(tmp_path):
    mesh = read_scene(mesh_samples.rigged_usd(tmp_path / "a.usda")).meshes[0]
    moved = shaped_points(mesh, np.array([2.0])) - mesh.points
    assert np.flatnonzero(moved.any(1)).tolist() == [12, 13, 14, 15] and moved[12].tolist() == [1, 0, 0]
