"""USD: what the reader gives, what the writer writes (checked by USD's own validators), and files that lie."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mesh_samples
import numpy as np
import pytest
from mesh_compare import assert_same_mesh, assert_same_scene

from meshes.io import read_scene, write_scene
from meshes.scene import FaceVarying, Material, Mesh, Node, Primvar, Scene
from shared_utils.errors import InvalidInputError, MissingInputError, ScriptError

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = [".usdc", ".usda", ".usdz"]


def assert_valid_usd(path: Path) -> None:
    """All validators that come with USD (the successors of usdchecker) find nothing."""
    from pxr import Usd, UsdValidation

    stage = Usd.Stage.Open(str(path))
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 20
    found = UsdValidation.ValidationContext(validators).Validate(stage)
    assert [(error.GetName(), error.GetMessage()) for error in found] == []


def quad(name: str = "m") -> Mesh:
    """One square."""
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float64)
    return Mesh(name, points, np.array([4], np.int32), np.arange(4, dtype=np.int32))


def test_rigged_sample_is_read_completely(tmp_path):
    scene = read_scene(mesh_samples.rigged_usd(tmp_path / "a.usda"))
    assert (scene.up_axis, scene.metres_per_unit) == ("Z", 0.01)
    assert [node.name for node in scene.nodes] == ["Model", "Body", "Eye", "Sun"]
    assert scene.nodes[0].skeleton == 0 and scene.nodes[1].mesh == 0
    mesh, skeleton = scene.meshes[0], scene.skeletons[0]
    assert mesh.face_sizes.tolist() == [4] * 13 + [5]
    assert [scene.materials[i].name for i in mesh.face_material] == ["Wood"] * 7 + ["Stone"] * 7
    assert list(mesh.uv_sets) == ["st", "lightmap"]
    assert mesh.subdivision == "catmullClark"
    assert mesh.crease_edges.tolist() == [[0, 1], [1, 2], [4, 5]] and mesh.crease_sharpness.tolist() == [2, 2, 10]
    assert mesh.corner_points.tolist() == [16]
    assert mesh.primvars["temperature"].values.tolist() == list(range(17))
    assert mesh.primvars["part"].interpolation == "uniform" and mesh.primvars["label"].values.tolist() == ["column"]
    assert skeleton.joints == ["hip", "spine", "head"] and skeleton.parents.tolist() == [-1, 0, 1]
    np.testing.assert_allclose(skeleton.bind[:, 2, 3], [5, 6, 7])
    # The mesh lists head, hip, spine: weights of its joints 0, 1, 2 belong to 2, 0, 1 of the skeleton.
    first = dict(zip(mesh.skin.joints[:3].tolist(), mesh.skin.weights[:3].tolist(), strict=True))
    np.testing.assert_allclose([first[2], first[0], first[1]], [0.25, 0.25, 0.5], atol=1e-6)
    shape = mesh.blend_shapes[0]
    assert (shape.name, shape.indices.tolist(), shape.inbetweens[0].weight) == ("Lean", [12, 13, 14, 15], 0.5)
    clip = scene.animations[0]
    paths = {(channel.path, channel.joint) for channel in clip.channels}
    assert (clip.name, paths) == ("Nod", {("rotation", 1), ("weights", -1)})
    np.testing.assert_allclose(clip.channels[0].times, [0, 0.5])
    wood = scene.materials[0].base_color_texture
    assert scene.images[wood.image].data == mesh_samples.png((90, 60, 20)) and wood.wrap_t == "mirror"
    assert scene.cameras[0].kind == "perspective" and (scene.lights[0].kind, scene.lights[0].intensity) == ("sun", 3)
    assert scene.warnings == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("sample", ["rigged_usd", "textured_glb", "skinned_glb", "ngon_obj", "cube_ply"])
def test_written_again_nothing_is_lost_and_usd_finds_no_fault(tmp_path, suffix, sample):
    endings = {
        "rigged_usd": ".usda",
        "textured_glb": ".glb",
        "skinned_glb": ".glb",
        "ngon_obj": ".obj",
        "cube_ply": ".ply",
    }
    scene = read_scene(getattr(mesh_samples, sample)(tmp_path / f"in{endings[sample]}"))
    folder = tmp_path / "out put"
    folder.mkdir()
    written = write_scene(scene, folder / f"a{suffix}")
    assert_valid_usd(folder / f"a{suffix}")
    again = read_scene(folder / f"a{suffix}")
    assert_same_scene(scene, again)
    for one, other in zip(scene.meshes, again.meshes, strict=True):
        assert one.primvars.keys() == other.primvars.keys() and one.subdivision == other.subdivision
        for name, primvar in one.primvars.items():
            np.testing.assert_array_equal(primvar.values, other.primvars[name].values)
        for name in ("crease_edges", "crease_sharpness", "corner_points", "sharp_edges"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert {n: g.tolist() for n, g in one.face_groups.items()} == {
            n: g.tolist() for n, g in other.face_groups.items()
        }
        assert one.extras == other.extras
    assert (scene.up_axis, scene.metres_per_unit) == (again.up_axis, again.metres_per_unit)
    assert sorted(path.relative_to(folder) for path in written.files) == sorted(
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file()
    )
    if suffix == ".usdz":
        assert len(written.files) == 1


def test_two_nodes_still_show_one_mesh(tmp_path):
    scene = read_scene(mesh_samples.textured_glb(tmp_path / "a.glb"))
    for suffix in SUFFIXES:
        write_scene(scene, tmp_path / f"b{suffix}")
        again = read_scene(tmp_path / f"b{suffix}")
        assert len(again.meshes) == 1 and [node.mesh for node in again.nodes] == [None, 0, 0]


def test_a_mesh_on_a_joint_follows_it_in_usd_and_comes_back(tmp_path):
    from pxr import Usd, UsdSkel

    scene = read_scene(mesh_samples.skinned_glb(tmp_path / "a.glb"))
    assert scene.nodes[2].name == "Hat" and scene.nodes[2].parent_joint == 11
    write_scene(scene, tmp_path / "b.usdc")
    stage = Usd.Stage.Open(str(tmp_path / "b.usdc"))
    hat = next(prim for prim in stage.Traverse() if prim.GetName() == "Hat" and prim.GetTypeName() == "Mesh")
    assert UsdSkel.BindingAPI(hat).GetJointIndicesAttr().Get() == [11]
    again = read_scene(tmp_path / "b.usdc")
    assert again.nodes[2].parent_joint == 11 and again.meshes[again.nodes[2].mesh].skin is None


_WRITE = """
import sys
sys.path.insert(0, {root!r})
from meshes.io import read_scene, write_scene
write_scene(read_scene(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".glb", ".obj"])
def test_other_processes_write_the_same_bytes(tmp_path, suffix):
    source = mesh_samples.rigged_usd(tmp_path / "in.usda")
    contents = []
    for number, seed in enumerate(("0", "1")):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, "-c", _WRITE.format(root=str(ROOT)), str(source), str(folder / f"a{suffix}")]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed}, timeout=120)
        contents.append({p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert contents[0] == contents[1]


def test_a_package_holds_its_pictures_and_starts_files_at_multiples_of_64(tmp_path):
    import zipfile

    scene = read_scene(mesh_samples.textured_glb(tmp_path / "a.glb"))
    write_scene(scene, tmp_path / "a.usdz")
    with zipfile.ZipFile(tmp_path / "a.usdz") as package:
        assert [entry.filename for entry in package.infolist()] == ["scene.usdc", "textures/paint.png"]
        assert package.read("textures/paint.png") == mesh_samples.png()
        for entry in package.infolist():
            with (tmp_path / "a.usdz").open("rb") as file:
                file.seek(entry.header_offset + 26)
                name, extra = np.frombuffer(file.read(4), "<u2")
            assert (entry.header_offset + 30 + int(name) + int(extra)) % 64 == 0


def test_pictures_lie_beside_a_layer_and_move_with_it(tmp_path):
    scene = read_scene(mesh_samples.textured_glb(tmp_path / "in.glb"))
    (tmp_path / "one").mkdir()
    written = write_scene(scene, tmp_path / "one" / "a.usdc")
    assert [path.name for path in written.files] == ["paint.png", "a.usdc"]
    (tmp_path / "one").rename(tmp_path / "two")
    again = read_scene(tmp_path / "two" / "a.usdc")
    assert again.images[0].data == mesh_samples.png()


def test_staged_writing_names_the_final_place(tmp_path):
    scene = read_scene(mesh_samples.textured_glb(tmp_path / "in.glb"))
    write_scene(scene, tmp_path / ".model.usdc.partial.usdc", final=tmp_path / "model.usdc")
    (tmp_path / ".model.usdc.partial.usdc").rename(tmp_path / "model.usdc")
    assert (tmp_path / "model_textures" / "paint.png").is_file()
    assert len(read_scene(tmp_path / "model.usdc").images) == 1


def test_names_that_usd_does_not_allow_survive(tmp_path):
    names = ["a b", "1st", "é", "mixamorig:Hips", "a_b", "日本", "è"]
    nodes = [Node("root")] + [Node(name, parent=0, mesh=i) for i, name in enumerate(names)]
    scene = Scene(nodes, [quad(f"mesh {name}") for name in names], materials=[Material(name) for name in names])
    scene.meshes[0].uv_sets["UV Map"] = FaceVarying(np.zeros((1, 2)), np.zeros(4, np.int32))
    write_scene(scene, tmp_path / "a.usdc")
    assert_valid_usd(tmp_path / "a.usdc")
    again = read_scene(tmp_path / "a.usdc")
    assert [node.name for node in again.nodes] == ["root", *names]
    assert [mesh.name for mesh in again.meshes] == [f"mesh {name}" for name in names]
    assert [material.name for material in again.materials] == names
    assert list(again.meshes[0].uv_sets) == ["UV Map"]


def test_left_handed_faces_are_turned_round_with_their_values(tmp_path):
    from pxr import Usd, UsdGeom

    stage = Usd.Stage.CreateNew(str(tmp_path / "a.usda"))
    mesh = UsdGeom.Mesh.Define(stage, "/m")
    mesh.CreatePointsAttr([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)])
    mesh.CreateFaceVertexCountsAttr([4, 2])
    mesh.CreateFaceVertexIndicesAttr([0, 3, 2, 1, 0, 1])
    mesh.CreateOrientationAttr("leftHanded")
    mesh.CreateNormalsAttr([(float(i), 0, 0) for i in range(6)])
    mesh.SetNormalsInterpolation("faceVarying")
    stage.Save()
    scene = read_scene(tmp_path / "a.usda")
    assert scene.meshes[0].face_vertices.tolist() == [0, 1, 2, 3]
    assert scene.meshes[0].normals.corners()[:, 0].tolist() == [0, 3, 2, 1]
    assert any("fewer than 3" in warning for warning in scene.warnings)


def test_instances_and_references_in_the_folder_are_read_once(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "thing.usda").write_text(
        '#usda 1.0\n(defaultPrim = "T")\ndef Xform "T" {\ndef Mesh "m" {\nint[] faceVertexCounts = [3]\n'
        "int[] faceVertexIndices = [0, 1, 2]\npoint3f[] points = [(0,0,0), (1,0,0), (0,1,0)]\n}\n}\n"
    )
    (tmp_path / "a.usda").write_text(
        '#usda 1.0\ndef Xform "W" {\n'
        + "".join(
            f'def Xform "i{i}" (instanceable = true\nprepend references = @./parts/thing.usda@) '
            f'{{\ndouble3 xformOp:translate = ({i}, 0, 0)\nuniform token[] xformOpOrder = ["xformOp:translate"]\n}}\n'
            for i in range(3)
        )
        + "}\n"
    )
    scene = read_scene(tmp_path / "a.usda")
    assert len(scene.meshes) == 1 and [node.mesh for node in scene.nodes] == [None, 0, 0, 0]
    assert scene.world_matrices()[3, 0, 3] == 2


@pytest.mark.parametrize(
    ("arc", "error"),
    [
        ("prepend references = @../outside.usda@", InvalidInputError),
        ("prepend references = @/etc/passwd@", InvalidInputError),
        ("prepend payload = @https://example.com/a.usda@", InvalidInputError),
        ("prepend references = @./gone.usda@", MissingInputError),
        ("prepend references = @./sub/deep.usda@", InvalidInputError),
        ("prepend references = @`${WHERE}`@", InvalidInputError),
        ("clips = { dictionary default = { asset[] assetPaths = [@../x.usda@] } }", InvalidInputError),
    ],
)
def test_what_lies_outside_the_folder_is_refused(tmp_path, arc, error):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.usda").write_text('#usda 1.0\ndef Mesh "m" {}\n')
    (folder / "sub" / "deep.usda").write_text(
        '#usda 1.0\ndef Mesh "m" (prepend references = @../../outside.usda@) {}\n'
    )
    (folder / "a.usda").write_text(f'#usda 1.0\ndef Xform "W" ({arc}) {{}}\n')
    with pytest.raises(error) as caught:
        read_scene(folder / "a.usda")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("picture", "error"),
    [("../paint.png", InvalidInputError), ("./gone.png", MissingInputError), ("/etc/passwd", InvalidInputError)],
)
def test_pictures_elsewhere_are_refused(tmp_path, picture, error):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "paint.png").write_bytes(mesh_samples.png())
    path = mesh_samples.rigged_usd(folder / "a.usda")
    path.write_text(path.read_text().replace("./pictures/wood.png", picture))
    with pytest.raises(error):
        read_scene(path)


def test_bad_files_give_one_line_and_nothing_on_stderr(tmp_path, capfd):
    good = mesh_samples.rigged_usd(tmp_path / "good.usdc").read_bytes()
    bad = {
        "empty.usdc": b"",
        "words.usda": b"hello",
        "words.usdc": b"hello",
        "words.usdz": b"hello",
        "no_text.usda": b"#usda 1.0\n\xff\xfe",
        "syntax.usda": b'#usda 1.0\ndef Mesh "m" {\n',
        "header.usdc": good[:88],
        "half.usdc": good[: len(good) // 2],
        "tail.usdc": good[:-40],
        "zeros.usdc": good[:200] + b"\0" * (len(good) - 200),
        "wrong_type.usda": b'#usda 1.0\ndef Mesh "m" {\nstring points = "a"\nint[] faceVertexCounts = [3]\n}\n',
        "out_of_range.usda": b'#usda 1.0\ndef Mesh "m" {\npoint3f[] points = [(0,0,0)]\nint[] faceVertexCounts = [3]\n'
        b"int[] faceVertexIndices = [0, 0, 5]\n}\n",
        "negative.usda": b'#usda 1.0\ndef Mesh "m" {\npoint3f[] points = [(0,0,0)]\nint[] faceVertexCounts = [-3]\n'
        b"int[] faceVertexIndices = []\n}\n",
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidInputError) as caught:
            read_scene(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value), name
    (tmp_path / "folder.usda").mkdir()
    with pytest.raises(InvalidInputError):
        read_scene(tmp_path / "folder.usda")
    with pytest.raises(MissingInputError):
        read_scene(tmp_path / "gone.usda")
    assert capfd.readouterr().err == ""


def test_damaged_bytes_give_a_scene_or_one_line(tmp_path):
    rng = np.random.default_rng(5)
    good = bytearray(mesh_samples.rigged_usd(tmp_path / "good.usdc").read_bytes())
    (tmp_path / "pictures").mkdir(exist_ok=True)
    outcomes = set()
    for number in range(60):
        data = bytearray(good)
        for place in rng.integers(0, len(data), 1 + number % 4):
            data[place] = rng.integers(0, 256)
        (tmp_path / f"{number}.usdc").write_bytes(data)
        try:
            read_scene(tmp_path / f"{number}.usdc")
            outcomes.add(0)
        except ScriptError as error:
            assert error.exit_code in (65, 66) and "\n" not in str(error)
            outcomes.add(65)
    assert outcomes == {0, 65}


def test_what_cannot_be_kept_is_named(tmp_path):
    (tmp_path / "a.usda").write_text(
        '#usda 1.0\ndef Xform "W" (variants = { string look = "red" }\nprepend variantSets = "look") {\n'
        'def Cube "c" {}\ndef PointInstancer "p" {\ndef Mesh "inner" {\n}\n}\ndef RectLight "r" {}\n'
        'def Mesh "m" {\npoint3f[] points.timeSamples = { 0: [(0,0,0)], 1: [(1,0,0)] }\n}\n'
        'variantSet "look" = {\n"red" {\n}\n"blue" {\n}\n}\n}\n'
    )
    scene = read_scene(tmp_path / "a.usda")
    said = "\n".join(scene.warnings)
    assert (
        all(word in said for word in ("look", "Cube", "point instances", "RectLight", "motion"))
        and len(scene.meshes) == 1
    )


def test_empty_scenes_and_meshes_without_faces(tmp_path):
    empty = Mesh("none", np.zeros((0, 3)), np.zeros(0, np.int32), np.zeros(0, np.int32))
    points = Mesh("cloud", np.eye(3), np.zeros(0, np.int32), np.zeros(0, np.int32))
    for suffix in SUFFIXES:
        write_scene(Scene(), tmp_path / f"none{suffix}")
        assert read_scene(tmp_path / f"none{suffix}").nodes == []
        write_scene(Scene([Node("a", mesh=0), Node("b", mesh=1)], [empty, points]), tmp_path / f"two{suffix}")
        again = read_scene(tmp_path / f"two{suffix}")
        assert [len(mesh.points) for mesh in again.meshes] == [0, 3]
        assert_valid_usd(tmp_path / f"two{suffix}")


def test_blend_shapes_without_a_skeleton_and_node_motion_come_back(tmp_path):
    from meshes.scene import Animation, BlendShape, Channel

    mesh = quad()
    mesh.blend_shapes = [
        BlendShape("up", np.full((4, 3), 0.5), weight=0.75),
        BlendShape("no", np.zeros((1, 3)), np.array([2], np.int32)),
    ]
    times = np.array([0.0, 0.3, 1.0])
    turns = np.array([[0, 0, 0, 1], [0, 0, 0.6, 0.8], [0, 0, 0, 1.0]])
    clip = Animation(
        "Both",
        [
            Channel("weights", times, np.array([[0, 1], [1, 0], [0.5, 0.5]]), node=1),
            Channel("rotation", times, turns, node=0),
        ],
    )
    scene = Scene([Node("a"), Node("b", parent=0, mesh=0)], [mesh], animations=[clip])
    for suffix in SUFFIXES:
        write_scene(scene, tmp_path / f"a{suffix}")
        assert_valid_usd(tmp_path / f"a{suffix}")
        again = read_scene(tmp_path / f"a{suffix}")
        assert_same_mesh(mesh, again.meshes[0])
        assert len(again.skeletons) == 0 and [c.path for c in again.animations[0].channels] == ["weights", "rotation"]
        for one, other in zip(clip.channels, again.animations[0].channels, strict=True):
            np.testing.assert_allclose(one.times, other.times, atol=1e-7)
            np.testing.assert_allclose(one.values, other.values, atol=1e-6)
            assert one.node == other.node


def test_extras_and_every_kind_of_primvar_come_back(tmp_path):
    mesh = quad()
    mesh.primvars = {
        "f": Primvar(np.array([0.5]), None, "constant", "float"),
        "i": Primvar(np.array([7]), np.zeros(1, np.int32), "uniform", "int"),
        "v": Primvar(np.arange(12.0).reshape(4, 3), None, "vertex", "vector3f"),
        "words": Primvar(np.array(["a", "é"], object), np.array([0, 1, 1, 0], np.int32), "faceVarying", "string"),
    }
    scene = Scene([Node("n", mesh=0, extras={"a": [1, {"b": None}]})], [mesh], extras={"copyright": "me"})
    write_scene(scene, tmp_path / "a.usdc")
    again = read_scene(tmp_path / "a.usdc")
    assert json.dumps(again.nodes[0].extras) == '{"a": [1, {"b": null}]}' and again.extras == {"copyright": "me"}
    for name, primvar in mesh.primvars.items():
        other = again.meshes[0].primvars[name]
        assert (other.interpolation, other.type_name) == (primvar.interpolation, primvar.type_name)
        assert other.values.tolist() == primvar.values.tolist()
        assert (other.indices is None) == (primvar.indices is None)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, when):
    from shared_utils.errors import OutputWriteError

    (tmp_path / "a.usdc").write_bytes(b"the old one")
    scene = Scene([Node("n", mesh=0)], [quad()])
    if when == "before":
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OutputWriteError):
            write_scene(scene, tmp_path / "file" / "a.usdc")
    else:
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for suffix in (*SUFFIXES, ".glb", ".obj"):
            with pytest.raises(OutputWriteError):
                write_scene(scene, tmp_path / f"a{suffix}")
    assert (tmp_path / "a.usdc").read_bytes() == b"the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["a.usdc", *(["file"] if when == "before" else [])]
    )
