"""unirig_generation.py end to end on tiny random checkpoints, and what stands between a scene and the networks."""

import json
from pathlib import Path

import mesh_samples
import numpy as np
import pytest
from fake_hub import FakeHub
from hypothesis import given
from hypothesis import strategies as st
from mesh_compare import assert_same_mesh
from processes import ROOT, everything_in, json_lines, run, run_record
from warm import Warm

from meshes.io import read_scene, write_scene
from meshes.samples import limb
from meshes.scene import Mesh, Node, Scene
from meshes.skinning import world_points
from networks.unirig import rigging
from networks.unirig.bone_limit import TOKENS_A_BONE, cut_bones
from networks.unirig.bone_names import PART_BONES
from networks.unirig.humanoid import VRM_PARENTS, VRM_REQUIRED, rename
from networks.unirig.task_file import read_task
from networks.unirig.tokenizer import Tokenizer, bone_tails
from shared_utils.errors import ConfigError, InvalidInputError, MissingInputError, PostConditionError

SCRIPT = "unirig_generation.py"
REPO = "VAST-AI/UniRig"
SMALL = ("--skeleton-samples", 1024, "--skin-samples", 256, "--voxel-grid", 24, "--num-beams", 2)
CPU = ("--dtype", "fp32", "--device", "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tiny_checkpoints import unirig

    return unirig.build(tmp_path_factory.mktemp("unirig"))


@pytest.fixture(scope="module")
def warm():
    imports = ("torch", "from transformers import OPTForCausalLM", "trimesh", "scipy.spatial")
    with Warm(*imports) as server:
        yield server


@pytest.fixture
def rig(warm, checkpoint, tmp_path):
    def call(*args, **env):
        return warm.run(SCRIPT, *args, "--model", checkpoint, *SMALL, *CPU, cwd=tmp_path, **env)

    return call


def plain_limb(bones: int = 2, rings: int = 16, segments: int = 10) -> Scene:
    """The built-in limb without its rig."""
    scene = limb(bones=bones, rings=rings, segments=segments)
    scene.meshes[0].skin, scene.skeletons, scene.nodes = None, [], [Node("limb", mesh=0)]
    return scene


def saved(scene: Scene, path: Path) -> Path:
    write_scene(scene, path)
    return path


def shown_points(scene: Scene) -> np.ndarray:
    """Points of all meshes in the world, Y up, in metres."""
    points = np.concatenate([world_points(scene, node) for node, _ in scene.mesh_nodes()]) * scene.metres_per_unit
    return np.stack([points[:, 0], points[:, 2], -points[:, 1]], 1) if scene.up_axis == "Z" else points


def joint_points(scene: Scene) -> np.ndarray:
    """World positions of the joints of the only skeleton."""
    (skeleton,) = scene.skeletons
    return (scene.world_matrices()[scene.skeleton_node(0)] @ skeleton.bind)[:, :3, 3]


def assert_rigged(scene: Scene, influences: int = 4) -> None:
    (skeleton,) = scene.skeletons
    assert (skeleton.parents < 0).sum() == 1 and np.isfinite(skeleton.bind).all()
    for mesh in scene.meshes:
        counts = np.diff(mesh.skin.offsets)
        sums = np.bincount(np.repeat(np.arange(len(counts)), counts), mesh.skin.weights, len(mesh.points))
        assert (mesh.skin.weights >= 0).all() and counts.min() >= 1 and counts.max() <= influences
        np.testing.assert_allclose(sums, 1, atol=1e-5)


def only_run(tmp_path: Path) -> Path:
    return max((tmp_path / "output").iterdir(), key=lambda path: path.stat().st_mtime)


# The script


def test_keeps_everything_of_the_input_in_every_format(rig, tmp_path):
    original = read_scene(mesh_samples.textured_glb(tmp_path / "in.glb"))
    done = rig("in.glb", "--format", "usdc,usda", "-f", "usdz", "-f", "glb", "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    folder = only_run(tmp_path)
    names = [Path(output["path"]).name for output in result["outputs"]]
    for suffix in ("usdc", "usda", "usdz", "glb"):
        assert f"rigged.{suffix}" in names
        scene = read_scene(folder / f"rigged.{suffix}")
        assert_rigged(scene)
        assert scene.skeletons[0].joints == result["joint_names"] and len(scene.images) == len(original.images)
        assert {m.name for m in scene.materials} >= {m.name for m in original.materials}
        for image, other in zip(scene.images, original.images, strict=True):
            assert image.data == other.data
        if suffix != "glb":  # glTF has triangles and splits points at seams
            assert len(scene.meshes) == 2  # the one mesh is shown twice, and each needs its own weights
            for mesh in scene.meshes:
                mesh.skin = None
                assert_same_mesh(original.meshes[0], mesh, tolerance=1e-5)
        scene = read_scene(folder / f"rigged.{suffix}")
        low = [shown_points(s).min(0) for s in (scene, original)]
        np.testing.assert_allclose(low[0], low[1], atol=1e-4)
    assert {"skeleton.usdc", "preview.png"} <= set(names)
    assert read_scene(folder / "skeleton.usdc").meshes == []
    assert run_record(folder)["config"]["seed"] == 42


def test_quads_n_gons_and_several_meshes(rig, tmp_path):
    mesh_samples.ngon_obj(tmp_path / "in.obj")
    done = rig("in.obj", "-o", "out/rig.usda", "--influence-bones", 8)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "out/rig.usda"
    before, after = read_scene(tmp_path / "in.obj"), read_scene(tmp_path / "out/rig.usda")
    assert_rigged(after, 8)
    np.testing.assert_allclose(shown_points(after), shown_points(before), atol=1e-5)
    assert [image.data for image in after.images] == [image.data for image in before.images]
    assert everything_in(tmp_path / "out") == ["rig.usda", f"rig_textures/{after.images[0].name}"]
    for one, other in zip(before.meshes, after.meshes, strict=True):
        np.testing.assert_array_equal(one.face_sizes, other.face_sizes)


def test_same_seed_same_files_and_another_seed_another_skeleton(rig, tmp_path):
    saved(plain_limb(), tmp_path / "limb.glb")
    outputs = []
    for seed in (1, 1, 2):
        done = rig("limb.glb", "--seed", seed, "--json", "--no-preview")
        assert done.returncode == 0, done.stderr
        outputs.append({Path(o["path"]).name: o["sha256"] for o in json_lines(done.stdout)[0]["outputs"]})
    assert outputs[0] == outputs[1] and outputs[0]["skeleton.usdc"] != outputs[2]["skeleton.usdc"]


def test_scale_place_and_axis_do_not_matter(rig, tmp_path):
    joints = []
    for name, scale, up in (("a", 1.0, "Y"), ("b", 1e-5, "Y"), ("c", 4e5, "Z")):
        scene = plain_limb()
        points = scene.meshes[0].points
        if up == "Z":
            points = np.stack([points[:, 0], -points[:, 2], points[:, 1]], 1)
        shift = scale * np.array([3.0, -2.0, 1.0])
        scene.meshes[0].points, scene.up_axis = points * scale + shift, up
        saved(scene, tmp_path / f"{name}.usdc")
        done = rig(f"{name}.usdc", "--skeleton-only", "-o", f"{name}_out.usdc", "--no-preview")
        assert done.returncode == 0, done.stderr
        result = read_scene(tmp_path / f"{name}_out.usdc")
        assert result.up_axis == up and not result.meshes
        places = (joint_points(result) - shift) / scale
        joints.append(np.stack([places[:, 0], places[:, 2], -places[:, 1]], 1) if up == "Z" else places)
    np.testing.assert_allclose(joints[1], joints[0], atol=1e-4)
    np.testing.assert_allclose(joints[2], joints[0], atol=1e-4)


def test_up_axis_of_a_file_that_does_not_know(rig, tmp_path):
    scene = plain_limb()
    saved(scene, tmp_path / "y.obj")
    points = scene.meshes[0].points
    scene.meshes[0].points = np.stack([points[:, 0], -points[:, 2], points[:, 1]], 1)
    saved(scene, tmp_path / "z.obj")
    for name, flags in (("y", ()), ("z", ("--up-axis", "z"))):
        done = rig(f"{name}.obj", *flags, "-o", f"{name}.glb", "--no-preview")
        assert done.returncode == 0, done.stderr
    one, other = (read_scene(tmp_path / f"{name}.glb") for name in "yz")
    np.testing.assert_allclose(joint_points(one), joint_points(other), atol=1e-4)


def test_an_existing_rig_is_replaced_or_reskinned(rig, tmp_path):
    scene = limb(bones=4, rings=16, segments=10)
    saved(scene, tmp_path / "rigged.usdc")
    done = rig("rigged.usdc", "-o", "new.usdc", "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    assert any("limb_skeleton" in warning for warning in result["warnings"])
    new = read_scene(tmp_path / "new.usdc")
    assert_rigged(new)
    assert len(new.skeletons[0].joints) == result["joints"] != 4
    done = rig("rigged.usdc", "--skin-only", "-o", "own.glb", "--influence-bones", 0)
    assert done.returncode == 0, done.stderr
    own = read_scene(tmp_path / "own.glb")
    assert_rigged(own, 99)
    assert own.skeletons[0].joints == scene.skeletons[0].joints
    np.testing.assert_allclose(joint_points(own), joint_points(scene), atol=1e-6)


def test_skin_for_a_skeleton_from_another_file(rig, tmp_path):
    saved(plain_limb(), tmp_path / "limb.glb")
    rigged = limb(bones=4, rings=16, segments=10)
    rigged.meshes, rigged.nodes = [], rigged.nodes[:1]
    # In centimetres and Z up: the same places in another file's words.
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    scene = Scene(nodes=[Node("armature", skeleton=0)], skeletons=rigged.skeletons, up_axis="Z", metres_per_unit=0.01)
    scene.nodes[0].matrix = np.eye(4)
    scene.nodes[0].matrix[:3, :3] = 100 * turn
    saved(scene, tmp_path / "bones.usda")
    done = rig("limb.glb", "--skin-only", "--skeleton", "bones.usda", "-o", "out.usdc", "--json")
    assert done.returncode == 0, done.stderr
    result = read_scene(tmp_path / "out.usdc")
    assert_rigged(result)
    np.testing.assert_allclose(joint_points(result), joint_points(rigged), atol=1e-5)
    np.testing.assert_allclose(shown_points(result), shown_points(read_scene(tmp_path / "limb.glb")), atol=1e-5)
    # Edited by hand: a joint moved and renamed in the text file.
    text = (tmp_path / "bones.usda").read_text()
    (tmp_path / "edited.usda").write_text(text.replace("bone_03", "tip"))
    done = rig("limb.glb", "--skin-only", "--skeleton", "edited.usda", "-o", "edited.glb", "--json")
    assert done.returncode == 0, done.stderr
    assert json_lines(done.stdout)[0]["joint_names"][-1] == "tip"
    # The joints of something far larger.
    (tmp_path / "far.usda").write_text(text.replace("metersPerUnit = 0.01", "metersPerUnit = 1"))
    done = rig("limb.glb", "--skin-only", "--skeleton", "far.usda")
    assert done.returncode == 65 and "far from the mesh" in done.stderr


def test_skeletons_are_their_own_input(rig, tmp_path):
    """What --skeleton-only writes, --skin-only takes."""
    saved(plain_limb(), tmp_path / "limb.usdc")
    whole = rig("limb.usdc", "-o", "whole.usdc")
    assert whole.returncode == 0, whole.stderr
    for name in ("bones.usdz", "bones.glb"):
        done = rig("limb.usdc", "--skeleton-only", "-o", name)
        assert done.returncode == 0, done.stderr
        done = rig("limb.usdc", "--skin-only", "--skeleton", name, "-o", f"{name}.usdc")
        assert done.returncode == 0, done.stderr
        one, other = read_scene(tmp_path / "whole.usdc"), read_scene(tmp_path / f"{name}.usdc")
        np.testing.assert_allclose(joint_points(one), joint_points(other), atol=1e-5)
        assert_same_mesh(one.meshes[0], other.meshes[0], tolerance=1e-4) if name.endswith("usdz") else None


def test_bad_input_has_its_code_and_leaves_nothing(rig, tmp_path):
    saved(plain_limb(), tmp_path / "limb.usdc")
    (tmp_path / "lfs.glb").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    (tmp_path / "cloud.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    (tmp_path / "point.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    (tmp_path / "nan.obj").write_text("v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "text.glb").write_text("no mesh")
    (tmp_path / "notes.txt").write_text("no mesh")
    (tmp_path / "bad.yaml").write_text("generate_kwargs: {num_beams: many}\n")
    cases = [
        (["lfs.glb"], 65, "LFS"),
        (["cloud.obj"], 65, "faces"),
        (["point.obj"], 65, "same place"),
        (["nan.obj"], 65, "finite"),
        (["text.glb"], 65, "text.glb"),
        (["notes.txt"], 65, ".txt"),
        (["none.glb"], 66, "none.glb"),
        (["limb.usdc", "--skin-only"], 65, "no skeleton"),
        (["limb.usdc", "--skin-only", "--skeleton", "none.usda"], 66, "none.usda"),
        (["limb.usdc", "--skeleton", "limb.usdc"], 2, "--skin-only"),
        (["limb.usdc", "--skin-only", "--skeleton-only"], 2, "exclude"),
        (["limb.usdc", "--influence-bones", 5], 2, "4, 8 or 0"),
        (["limb.usdc", "--format", "fbx"], 2, "fbx"),
        (["limb.usdc", "--format", "glb", "-o", "x.usdc"], 2, "--format"),
        (["limb.usdc", "--bone-names", "vrm", "--class", "articulationxl"], 2, "humanoid"),
        (["limb.usdc", "--bone-names", "vrm"], 70, "not humanoid, it lacks hips"),
        (["limb.usdc", "--task", "none.yaml"], 66, "none.yaml"),
        (["limb.usdc", "--skeleton-task", "bad.yaml"], 78, "num_beams"),
    ]
    before = everything_in(tmp_path)
    for args, code, word in cases:
        done = rig(*args)
        assert done.returncode == code, (args, done.stderr)
        line = done.stderr.strip().splitlines()[-1]
        assert done.stdout == "" and line.startswith("error: ") and word in line, (args, line)
        left = [n for n in everything_in(tmp_path) if not n.endswith((".json", ".jsonl"))]
        assert left == [n for n in before if not n.endswith((".json", ".jsonl"))], args


def test_odd_surfaces(rig, tmp_path):
    """Three triangles at one edge, a lone triangle far away, a loose point, a face without an area."""
    scene = plain_limb()
    mesh = scene.meshes[0]
    extra = np.array([[0, 3.0, 0], [0.2, 3, 0], [0, 3.2, 0.1], [5, 5, 5], [1, 1, 0.3]])
    start = len(mesh.points)
    faces = [[start, start + 1, start + 2], [0, 1, start + 4], [0, 1, 0]]
    scene.meshes[0] = Mesh(
        "odd",
        np.concatenate([mesh.points, extra]),
        np.concatenate([mesh.face_sizes, [3, 3, 3]]).astype(np.int32),
        np.concatenate([mesh.face_vertices, np.ravel(faces)]).astype(np.int32),
    )
    # Mirrored, and shown twice.
    scene.nodes = [Node("one", mesh=0), Node("two", mesh=0, matrix=np.diag([-1.0, 1, 1, 1]))]
    scene.nodes[1].matrix[0, 3] = 2.0
    saved(scene, tmp_path / "odd.usda")
    done = rig("odd.usda", "-o", "rig.usdc", "--json")
    assert done.returncode == 0, done.stderr
    result = read_scene(tmp_path / "rig.usdc")
    assert_rigged(result)
    assert len(result.meshes) == 2 and json_lines(done.stdout)[0]["points"] == 2 * (start + 5)
    np.testing.assert_allclose(shown_points(result), shown_points(read_scene(tmp_path / "odd.usda")), atol=1e-5)


def test_batch_max_bones_and_task_files(rig, tmp_path):
    saved(plain_limb(), tmp_path / "a.usdc")
    saved(plain_limb(rings=9), tmp_path / "b.usdc")
    (tmp_path / "t.yaml").write_text("generate_kwargs: {temperature: 1.1, num_beams: 4, top_k: 9, assign_cls: vroid}\n")
    done = rig("a.usdc", "b.usdc", "--max-bones", 3, "--skin-task", "t.yaml", "--top-k", 7, "--json")
    assert done.returncode == 0, done.stderr
    results = json_lines(done.stdout)
    assert [r["joints"] for r in results] == [3, 3]
    for result in results:
        used = result["generation"]
        # num_beams and top_k come from flags, which are stronger than the task.
        assert (used["temperature"], used["num_beams"], used["top_k"]) == (1.1, 2, 7)
        assert result["skeleton_class"] == "vroid"
    folders = {Path(output["path"]).parent for result in results for output in result["outputs"]}
    assert len(folders) == 2
    replay = rig("--config", only_run(tmp_path) / "run.json", "--json")
    assert replay.returncode == 0, replay.stderr
    assert [[o["sha256"] for o in r["outputs"]] for r in json_lines(replay.stdout)] == [
        [o["sha256"] for o in r["outputs"]] for r in results
    ]


def test_fetches_only_what_a_run_needs(warm, checkpoint, tmp_path):
    saved(plain_limb(), tmp_path / "limb.usdc")
    with FakeHub({REPO: checkpoint}) as hub:
        env = {**hub.environment, "PRETRAINED_WEIGHTS_DIR": str(tmp_path / "weights")}

        def call(*args):
            return warm.run(SCRIPT, "limb.usdc", *args, *SMALL, *CPU, "--json", cwd=tmp_path, **env)

        first = call("--skeleton-only")
        assert first.returncode == 0, first.stderr
        assert [p.parent.parent.name for p in (tmp_path / "weights").rglob("model.ckpt")] == ["skeleton"]
        second = call()
        assert second.returncode == 0, second.stderr
        hub.log.clear()
        third, plan = call(), call("--dry-run")
        assert third.returncode == 0 and plan.returncode == 0 and not hub.log
    (row,) = json_lines(plan.stdout)
    assert len(row["weights"]) == 2 and set(row["stages"]) == {"skeleton", "skin"}
    assert row["stages"]["skin"]["seconds"] > 0


def test_chain_of_scripts(rig, warm, tmp_path):
    """What one script writes, the next one reads."""
    saved(plain_limb(rings=10), tmp_path / "limb.glb")
    done = rig("limb.glb", "-o", "1.usdc", "--no-preview")
    assert done.returncode == 0, done.stderr
    points = shown_points(read_scene(tmp_path / "limb.glb"))
    done = warm.run("corrective_smooth_baker.py", "1.usdc", "--poses", 10, "--no-preview", "-o", "2.usdc", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = "2.usdc"
    if (ROOT / "tris_to_quads_converter.py").exists():
        done = warm.run("tris_to_quads_converter.py", "2.usdc", "-o", "3.usdc", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        last = "3.usdc"
    result = read_scene(tmp_path / last)
    assert_rigged(result, 8)
    assert result.skeletons[0].joints == read_scene(tmp_path / "1.usdc").skeletons[0].joints
    np.testing.assert_allclose(shown_points(result).min(0), points.min(0), atol=1e-4)
    np.testing.assert_allclose(shown_points(result).max(0), points.max(0), atol=1e-4)


def test_smoke_test_as_a_real_process(tmp_path):
    done = run(SCRIPT, "--smoke-test", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = json_lines(done.stdout)
    assert result["model"] == "smoke-test" and result["joints"] > 1
    folder = only_run(tmp_path)
    assert_rigged(read_scene(folder / "rigged.usdc"))
    assert str(tmp_path) not in json.dumps(run_record(folder)["model"])


# Between a scene and the networks


def test_the_body_is_upright_and_fits():
    scene = plain_limb()
    scene.nodes[0].matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    body = rigging.gather(scene, "limb")
    assert np.abs(body.points).max() == pytest.approx(1)
    np.testing.assert_allclose(np.ptp(body.points, axis=0).argmax(), 2)  # along Z
    np.testing.assert_allclose(body.world(body.points), 2 * scene.meshes[0].points, atol=1e-12)
    np.testing.assert_allclose(body.model(body.world(body.points)), body.points, atol=1e-12)
    # The side that looks towards +Z in a Y-up file looks towards -Y here.
    front = scene.meshes[0].points[:, 2].argmax()
    assert body.points[front, 1] == body.points[:, 1].min()


def test_mirrored_meshes_are_not_inside_out():
    def volume(matrix):
        scene = plain_limb()
        scene.nodes[0].matrix = matrix
        body = rigging.gather(scene, "limb")
        a, b, c = (body.points[body.triangles[:, i]] for i in range(3))
        return np.einsum("ij,ij->", a, np.cross(b, c))

    assert volume(np.eye(4)) > 0 and volume(np.diag([1.0, 1, -1, 1])) > 0


directions = st.tuples(*[st.floats(-3, 3)] * 3)


@given(st.lists(directions, min_size=1, max_size=5))
def test_bones_point_along_y(vectors):
    vectors = np.array([*vectors, (0, -1, 0), (0, 0, 0)])
    turned = rigging.bone_rotations(vectors)
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.tile(np.eye(3), (len(vectors), 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(turned), 1, atol=1e-6)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = length[:, 0] > 1e-6
    np.testing.assert_allclose(turned[usable, :, 1], (vectors / np.maximum(length, 1e-30))[usable], atol=1e-4)


@pytest.mark.parametrize("up_axis", ["Y", "Z"])
def test_a_skeleton_arrives_where_it_was_predicted(up_axis):
    scene = plain_limb()
    scene.up_axis = up_axis
    body = rigging.gather(scene, "limb")
    joints = np.array([[0.0, 0, -0.5], [0, 0.1, 0], [0.1, 0.1, 0.5], [-0.2, 0, 0.2]])
    parents = np.array([-1, 0, 1, 1])
    tails = bone_tails(joints, parents)
    armature = rigging.add_skeleton(scene, body, joints, tails, parents, list("abcd"))
    (skeleton,) = scene.skeletons
    np.testing.assert_allclose(skeleton.pose(), skeleton.bind, atol=1e-12)
    np.testing.assert_allclose(joint_points(scene), body.world(joints), atol=1e-12)
    along = body.world(tails) - body.world(joints)
    np.testing.assert_allclose(skeleton.bind[:, :3, 1], along / np.linalg.norm(along, axis=1)[:, None], atol=1e-9)
    assert rigging.bind(scene, body, armature, np.eye(4)[np.arange(len(body.points)) % 3]) == [3]
    np.testing.assert_allclose(world_points(scene, 0), body.world(body.points), atol=1e-9)


def test_joints_that_are_no_skeleton():
    body = rigging.gather(plain_limb(), "limb")
    joints, parents = np.zeros((3, 3)), np.array([-1, 0, 1])
    assert len(rigging.check_joints(joints, parents, body)) == 0
    assert rigging.check_joints(np.diag([0.0, 0.9, 0.0])[:, [1, 0, 2]], parents, body).tolist() == [1]
    for bad_joints, bad_parents in (
        (joints[:0], parents[:0]),
        (joints * np.nan, parents),
        (joints + 2, parents),
        (joints, np.array([-1, -1, 0])),
        (joints, np.array([-1, 2, 0])),
    ):
        with pytest.raises(PostConditionError):
            rigging.check_joints(bad_joints, bad_parents, body)


def test_weights_that_are_not_numbers_are_refused():
    body = rigging.gather(plain_limb(), "limb")
    weights = np.full((len(body.points), 2), np.nan)
    with pytest.raises(PostConditionError):
        rigging.spread_weights(body, body.points, body.triangles, weights, 4)


def test_two_skeletons_are_one_too_many():
    scene = limb(bones=3, rings=5, segments=6)
    other = limb(bones=4, rings=5, segments=6).skeletons[0]
    scene.skeletons.append(other)
    scene.nodes.append(Node("other", skeleton=1))
    body = rigging.gather(scene, "limb")
    with pytest.raises(InvalidInputError, match="2 skeletons"):
        rigging.own_skeleton(scene, body, "limb")


# Tokens, names, task files


@given(
    st.lists(st.tuples(st.integers(0, 255), st.booleans(), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 14),
    st.integers(0, 6),
)
def test_cutting_keeps_the_first_bones(bones, limit, lost):
    tokenizer = Tokenizer()
    ids = [tokenizer.bos, tokenizer.class_ids["articulationxl"]]
    for index, (bin_, branch, part) in enumerate(bones):
        ids += [tokenizer.part_ids["spring"]] * (part and index > 0)
        ids += [tokenizer.branch, 7, 7, 7] * (branch and index > 0) + [bin_, index, 9]
    whole = tokenizer.detokenize(np.array([*ids, tokenizer.eos]))
    assert len(ids) - 2 <= TOKENS_A_BONE * len(bones)
    cut = tokenizer.detokenize(cut_bones(np.array([*ids, tokenizer.eos]), tokenizer, limit))
    kept = min(limit, len(bones))
    np.testing.assert_array_equal(cut.joints, whole.joints[:kept])
    np.testing.assert_array_equal(cut.parents, whole.parents[:kept])
    # Broken off somewhere in the last bones.
    broken = np.array(ids[: max(5, len(ids) - lost)])
    some = tokenizer.detokenize(cut_bones(broken, tokenizer, limit))
    np.testing.assert_array_equal(some.joints, whole.joints[: len(some.joints)])
    assert 1 <= len(some.joints) <= kept


# Written from the VRM 1.0 humanoid specification.
VRM_TEXT = """hips spine chest upperChest neck head
leftUpperLeg leftLowerLeg leftFoot leftToes rightUpperLeg rightLowerLeg rightFoot rightToes
leftShoulder leftUpperArm leftLowerArm leftHand rightShoulder rightUpperArm rightLowerArm rightHand
leftThumbMetacarpal leftThumbProximal leftThumbDistal leftIndexProximal leftIndexIntermediate leftIndexDistal
leftMiddleProximal leftMiddleIntermediate leftMiddleDistal leftRingProximal leftRingIntermediate leftRingDistal
leftLittleProximal leftLittleIntermediate leftLittleDistal
rightThumbMetacarpal rightThumbProximal rightThumbDistal rightIndexProximal rightIndexIntermediate rightIndexDistal
rightMiddleProximal rightMiddleIntermediate rightMiddleDistal rightRingProximal rightRingIntermediate rightRingDistal
rightLittleProximal rightLittleIntermediate rightLittleDistal"""
VRM_BONES = VRM_TEXT.split()


def humanoid(names: list[str], vrm_of: dict[str, str]) -> list[int]:
    """Parents of joints, as VRM says."""
    index = {vrm_of[name]: i for i, name in enumerate(names)}
    return [-1 if VRM_PARENTS[vrm_of[n]] is None else index[VRM_PARENTS[vrm_of[n]]] for n in names]


def test_humanoid_names():
    assert set(VRM_PARENTS) == set(VRM_BONES) and len(VRM_BONES) == 52 and len(VRM_REQUIRED) == 15
    tables = {kind: [*PART_BONES[kind]["body"], *PART_BONES[kind]["hand"]] for kind in ("vroid", "mixamo")}
    # VRoid's names say themselves which bone they are.
    said = {
        "Hips": "hips",
        "L_Thumb1": "leftThumbMetacarpal",
        "R_Index2": "rightIndexIntermediate",
        "L_ToeBase": "leftToes",
    }
    parents = humanoid(VRM_BONES, {name: name for name in VRM_BONES})
    to_mixamo = dict(zip(VRM_BONES, rename(VRM_BONES, parents, "mixamo"), strict=True))
    assert set(to_mixamo.values()) == set(tables["mixamo"])
    assert rename(list(to_mixamo.values()), parents, "vrm") == VRM_BONES
    vroid = tables["vroid"]
    to_vrm = dict(
        zip(tables["vroid"], [{v: k for k, v in to_mixamo.items()}[m] for m in tables["mixamo"]], strict=True)
    )
    assert rename(vroid, humanoid(vroid, to_vrm), "vrm") == [to_vrm[name] for name in vroid]
    for ending, bone in said.items():
        assert [to_vrm[name] for name in vroid if name.endswith(ending)] == [bone]
    assert to_mixamo["leftLittleDistal"] == "mixamorig:LeftHandPinky3"
    assert to_mixamo["rightThumbMetacarpal"] == "mixamorig:RightHandThumb1"


def test_humanoid_names_are_refused_with_a_reason():
    names = list(VRM_BONES)
    parents = humanoid(names, {name: name for name in names})
    with pytest.raises(PostConditionError, match="lacks head"):
        rename(["x" if name == "head" else name for name in names], parents, "vrm")
    wrong = list(parents)
    wrong[names.index("leftHand")] = names.index("hips")
    with pytest.raises(PostConditionError, match="leftHand hangs on hips and not on leftLowerArm"):
        rename(names, wrong, "mixamo")
    assert rename(["a", "b"], [-1, 0], "keep") == ["a", "b"]
    # Optional bones may be missing, and others may stand in between.
    short = ["hair" if name in ("chest", "upperChest", "neck") else name for name in names]
    assert rename(short, parents, "vrm") == short


def test_task_files(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "ar.yaml").write_text(
        "generate_kwargs: {max_new_tokens: 2048, num_return_sequences: 1, num_beams: 15, do_sample: true, top_k: 5,"
        " top_p: 0.95, repetition_penalty: 3.0, temperature: 1.5, no_cls: false, assign_cls: articulationxl}\n"
    )
    path = tmp_path / "task" / "quick.yaml"
    path.write_text("mode: predict\ncomponents: {system: ar}\ngenerate_kwargs: {num_beams: 3, beam_groups: 2}\n")
    task = read_task(path)
    assert task.generation["num_beams"] == 3 and task.generation["temperature"] == 1.5
    assert task.skeleton_class == "articulationxl" and task.ignored == ["beam_groups"]
    path.write_text("components: {system: ../../etc/passwd}\n")
    assert read_task(path).generation == {}
    for text in ("[1, 2]", "a: [", "generate_kwargs: 3", "generate_kwargs: {top_p: 2}", "generate_kwargs: {do_sample: 1}",
                 "generate_kwargs: {assign_cls: dog}", "!!python/object/apply:os.system [ls]"):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ConfigError):
            read_task(path)
    with pytest.raises(MissingInputError):
        read_task(tmp_path / "none.yaml")
