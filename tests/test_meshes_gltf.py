"""glTF: what the reader gives, what the writer writes, read again by others, and files that lie."""

import copy
import json
import struct

import mesh_samples
import numpy as np
import pytest
from gltf_validator import assert_valid_glb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mesh_compare import assert_same_scene
from mesh_samples import GlbBuilder, pack_glb

from meshes.io import read_scene, write_scene
from meshes.scene import FaceVarying, Material, Mesh, Node, Scene, Texture
from shared_utils.errors import InvalidInputError, MissingInputError, ScriptError


def one_triangle(**more) -> GlbBuilder:
    """A GLB with the least there can be."""
    glb = GlbBuilder()
    position = glb.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "VEC3", bounds=True)
    glb.document |= {
        "meshes": [{"primitives": [{"attributes": {"POSITION": position} | more}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }
    return glb


def test_textured_sample_is_read_completely(tmp_path):
    scene = read_scene(mesh_samples.textured_glb(tmp_path / "a.glb"))
    assert [node.name for node in scene.nodes] == ["Top node", "Left", "Right"]
    assert scene.nodes[1].mesh == scene.nodes[2].mesh == 0 and len(scene.meshes) == 1
    np.testing.assert_allclose(scene.world_matrices()[2][:3, 3], [2 * 0.28, 0, -2 * 0.96], atol=1e-12)
    mesh = scene.meshes[0]
    assert mesh.points.shape == (24, 3) and mesh.face_sizes.tolist() == [3] * 12
    assert mesh.face_material.tolist() == [0] * 8 + [1] * 4
    assert list(mesh.uv_sets) == ["st", "st1"]
    assert mesh.uv_sets["st"].corners()[0].tolist() == [0, 0]  # glTF's (0, 1): the bottom left
    np.testing.assert_allclose(mesh.colors["displayColor"].corners()[0], [1, 128 / 255, 0, 1])
    painted, plain = scene.materials
    assert scene.images[painted.base_color_texture.image].data == mesh_samples.png()
    assert painted.base_color_texture.uv_set == "st1" and painted.base_color_texture.wrap_s == "clamp"
    assert (painted.metallic, painted.roughness, painted.double_sided) == (0.25, 0.75, True)
    assert (plain.name, plain.alpha_mode, plain.alpha_cutoff, plain.emissive) == ("Plain é", "MASK", 0.25, (0, 1, 0))
    assert scene.nodes[2].extras == {"side": "right"} and mesh.extras == {"made by": "hand"}
    assert scene.warnings == []


def test_texture_transform_is_the_same_place_with_the_origin_at_the_bottom(tmp_path):
    scene = read_scene(mesh_samples.textured_glb(tmp_path / "a.glb"))
    texture = scene.materials[0].base_color_texture
    u, v = 0.3, 0.9
    cosine, sine = np.cos(0.5), np.sin(0.5)
    # KHR_texture_transform: offset + rotation(scale * uv), with v downwards.
    expected = [0.25 + cosine * 2 * u + sine * 3 * v, 0.5 - sine * 2 * u + cosine * 3 * v]
    x, y = texture.uv_scale[0] * u, texture.uv_scale[1] * (1 - v)
    turn, (ox, oy) = texture.uv_rotation, texture.uv_offset
    found = [ox + np.cos(turn) * x - np.sin(turn) * y, oy + np.sin(turn) * x + np.cos(turn) * y]
    np.testing.assert_allclose([found[0], 1 - found[1]], expected)


@pytest.mark.parametrize("sample", ["textured_glb", "skinned_glb"])
@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_written_again_nothing_is_lost(tmp_path, sample, suffix):
    scene = read_scene(getattr(mesh_samples, sample)(tmp_path / f"a{suffix}"))
    first = write_scene(scene, tmp_path / "b.glb")
    assert first.warnings == []
    again = read_scene(tmp_path / "b.glb")
    assert_same_scene(scene, again, tolerance=0)
    write_scene(again, tmp_path / "c.glb")
    write_scene(read_scene(tmp_path / "c.glb"), tmp_path / "d.glb")
    assert (tmp_path / "c.glb").read_bytes() == (tmp_path / "d.glb").read_bytes()
    assert_valid_glb(tmp_path / "b.glb", tmp_path / "c.glb")


def test_all_influences_are_kept_in_their_sets(tmp_path):
    from pygltflib import GLTF2

    scene = read_scene(mesh_samples.skinned_glb(tmp_path / "a.glb", influences=11))
    counts = np.diff(scene.meshes[0].skin.offsets)
    assert counts.max() == 11
    write_scene(scene, tmp_path / "b.glb")
    attributes = GLTF2().load(str(tmp_path / "b.glb")).meshes[0].primitives[0].attributes
    assert all(getattr(attributes, f"{kind}_{n}", None) is not None for kind in ("JOINTS", "WEIGHTS") for n in range(3))
    again = read_scene(tmp_path / "b.glb")
    np.testing.assert_array_equal(scene.meshes[0].skin.joints, again.meshes[0].skin.joints)
    np.testing.assert_allclose(scene.meshes[0].skin.weights, again.meshes[0].skin.weights, atol=1e-7)
    assert_valid_glb(tmp_path / "b.glb")


def test_trimesh_sees_the_same_triangles_in_the_same_places(tmp_path):
    import trimesh

    path = mesh_samples.textured_glb(tmp_path / "a.glb")
    write_scene(read_scene(path), tmp_path / "b.glb")
    before, after = (trimesh.load(tmp_path / name) for name in ("a.glb", "b.glb"))
    np.testing.assert_allclose(before.bounds, after.bounds, atol=1e-6)
    assert before.triangles.shape == after.triangles.shape == (24, 3, 3)


def test_polygons_are_cut_without_changing_the_surface(tmp_path):
    scene = read_scene(mesh_samples.ngon_obj(tmp_path / "house.obj"))
    written = write_scene(scene, tmp_path / "house.glb")
    assert any("6 quads and larger faces" in warning for warning in written.warnings)
    again = read_scene(tmp_path / "house.glb")
    assert set(again.meshes[0].face_sizes) == {3}
    assert abs(_area(scene.meshes[0]) - _area(again.meshes[0])) < 1e-6
    assert_valid_glb(tmp_path / "house.glb")


def _area(mesh: Mesh) -> float:
    from meshes.triangulate import newell_normals

    return float(np.linalg.norm(newell_normals(mesh), axis=1).sum() / 2)


def test_another_axis_and_unit_become_a_node_and_change_no_number(tmp_path):
    scene = read_scene(mesh_samples.rigged_usd(tmp_path / "a.usda"))
    write_scene(scene, tmp_path / "b.glb")
    again = read_scene(tmp_path / "b.glb")
    assert again.nodes[0].name == "Y_up_metres"
    np.testing.assert_allclose(again.nodes[0].matrix @ [0, 0, 1, 1], [0, 0.01, 0, 1], atol=1e-12)
    kept = {tuple(point) for point in scene.meshes[0].points}
    assert {tuple(point) for point in again.meshes[0].points} == kept
    assert_valid_glb(tmp_path / "b.glb")


def test_separate_channels_become_one_metallic_roughness_picture(tmp_path):
    import io

    from PIL import Image

    from meshes.scene import Image as Picture

    mesh = Mesh("m", np.eye(3), np.array([3], np.int32), np.array([0, 1, 2], np.int32), np.zeros(1, np.int32))
    mesh.uv_sets["UVMap"] = FaceVarying(np.zeros((1, 2)), np.zeros(3, np.int32))
    images = [
        Picture(f"{name}.png", "image/png", mesh_samples.png(color))
        for name, color in (("r", (10, 0, 0)), ("m", (200, 0, 0)))
    ]
    material = Material(
        "x",
        roughness=1,
        metallic=1,
        roughness_texture=Texture(0, "UVMap", "r"),
        metallic_texture=Texture(1, "UVMap", "r"),
    )
    scene = Scene([Node("n", mesh=0)], [mesh], materials=[material], images=images)
    write_scene(scene, tmp_path / "a.glb")
    assert len(scene.images) == 2
    again = read_scene(tmp_path / "a.glb")
    assert again.materials[0].roughness_texture.image == again.materials[0].metallic_texture.image
    picture = Image.open(io.BytesIO(again.images[again.materials[0].roughness_texture.image].data))
    assert picture.getpixel((2, 2)) == (255, 10, 200)
    assert_valid_glb(tmp_path / "a.glb")


def test_accessors_interleaved_sparse_normalised_and_without_data(tmp_path):
    glb = GlbBuilder()
    rows = np.zeros(4, np.dtype([("p", "<f4", 3), ("uv", "<u2", 2)]))
    rows["p"] = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    rows["uv"] = [[0, 65535], [65535, 65535], [65535, 0], [0, 0]]
    view = glb.view(rows.tobytes(), byteStride=16)
    where, what = glb.view(np.array([2], "<u1").tobytes()), glb.view(np.array([[5, 6, 7]], "<f4").tobytes())
    sparse = {"count": 1, "indices": {"bufferView": where, "componentType": 5121}, "values": {"bufferView": what}}
    glb.document["accessors"] += [
        {"bufferView": view, "componentType": 5126, "count": 4, "type": "VEC3", "sparse": sparse},
        {"bufferView": view, "byteOffset": 12, "componentType": 5123, "count": 4, "type": "VEC2", "normalized": True},
        {"componentType": 5126, "count": 4, "type": "VEC3"},
    ]
    attributes = {"POSITION": 0, "TEXCOORD_0": 1}
    primitive = {"attributes": attributes, "mode": 5, "targets": [{"POSITION": 2}]}
    fan = primitive | {"mode": 6}
    glb.document |= {"meshes": [{"primitives": [primitive, fan]}], "nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}]}
    mesh = read_scene(glb.save(tmp_path / "a.glb")).meshes[0]
    assert mesh.points.tolist() == [[0, 0, 0], [1, 0, 0], [5, 6, 7], [0, 1, 0]]
    assert mesh.face_vertices.reshape(-1, 3).tolist() == [[0, 1, 2], [1, 3, 2], [1, 2, 0], [2, 3, 0]]
    assert mesh.uv_sets["st"].values.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert not mesh.blend_shapes[0].offsets.any()


def test_what_cannot_be_kept_is_named(tmp_path):
    glb = one_triangle()
    glb.document["meshes"][0]["primitives"].append({"attributes": {"POSITION": 0}, "mode": 1})
    glb.document["extensionsUsed"] = ["VRMC_vrm"]
    glb.document["scenes"].append({"nodes": []})
    warnings = read_scene(glb.save(tmp_path / "a.glb")).warnings
    assert any("lines" in text for text in warnings) and any("VRMC_vrm" in text for text in warnings)
    assert any("scenes" in text for text in warnings)


@pytest.mark.parametrize("name", ["KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_something_new"])
def test_required_extensions_are_refused_by_name(tmp_path, name):
    glb = one_triangle()
    glb.document["extensionsRequired"] = glb.document["extensionsUsed"] = [name]
    with pytest.raises(InvalidInputError, match=name):
        read_scene(glb.save(tmp_path / "a.glb"))


def test_positions_that_are_no_numbers_are_read_and_not_written(tmp_path):
    glb = one_triangle()
    glb.binary = glb.binary[:12] + struct.pack("<f", float("nan")) + glb.binary[16:]
    scene = read_scene(glb.save(tmp_path / "a.glb"))
    assert np.isnan(scene.meshes[0].points[1, 0])
    with pytest.raises(InvalidInputError, match="not a finite number"):
        write_scene(scene, tmp_path / "b.glb")
    assert not list(tmp_path.glob("*b.glb*"))


def test_truncated_anywhere_it_is_one_line(tmp_path):
    data = mesh_samples.textured_glb(tmp_path / "a.glb").read_bytes()
    text = struct.unpack_from("<I", data, 12)[0]
    places = {0, 1, 4, 8, 11, 12, 16, 19, 20, 20 + text - 1, 20 + text, 20 + text + 4, 20 + text + 8, len(data) - 1}
    for place in sorted(places | set(range(0, len(data), 97))):
        (tmp_path / "cut.glb").write_bytes(data[:place])
        with pytest.raises(InvalidInputError) as caught:
            read_scene(tmp_path / "cut.glb")
        assert "\n" not in str(caught.value)
    for place in places - {0}:  # The same with a header that agrees.
        patched = data[:8] + struct.pack("<I", place) + data[12:place]
        (tmp_path / "cut.glb").write_bytes(patched)
        with pytest.raises(InvalidInputError):
            read_scene(tmp_path / "cut.glb")


def _lies():
    def change(path, value):
        def apply(document):
            at = document
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value

        return apply

    return {
        "two billion vertices": change(["accessors", 0, "count"], 2_000_000_000),
        "two billion zeros": lambda d: d["accessors"].__setitem__(
            0, {"componentType": 5126, "count": 2_000_000_000, "type": "VEC3"}
        ),
        "two billion sparse": lambda d: d["accessors"][0].__setitem__(
            "sparse",
            {"count": 2_000_000_000, "indices": {"bufferView": 0, "componentType": 5125}, "values": {"bufferView": 0}},
        ),
        "a stride of a terabyte": change(["bufferViews", 0, "byteStride"], 1 << 40),
        "a stride smaller than an element": change(["bufferViews", 0, "byteStride"], 4),
        "a view beyond its buffer": change(["bufferViews", 0, "byteLength"], 1 << 30),
        "a view that starts beyond": change(["bufferViews", 0, "byteOffset"], 1 << 30),
        "a longer buffer": change(["buffers", 0, "byteLength"], 1 << 30),
        "a negative offset": change(["bufferViews", 0, "byteOffset"], -4),
        "an unknown component type": change(["accessors", 0, "componentType"], 5124),
        "an unknown element type": change(["accessors", 0, "type"], "VEC5"),
        "fewer normals": change(["accessors", 1, "count"], 2),
        "no such accessor": change(["meshes", 0, "primitives", 0, "indices"], 99),
        "no such material": change(["meshes", 0, "primitives", 0, "material"], 99),
        "an accessor of a truth": change(["meshes", 0, "primitives", 0, "indices"], True),
        "no such node": change(["scenes", 0, "nodes"], [7]),
        "its own child": change(["nodes", 0, "children"], [0]),
        "a circle": lambda d: (d["nodes"][0].__setitem__("children", [1]), d["nodes"][1].__setitem__("children", [0])),
        "nodes in a string": change(["nodes"], "many"),
        "a matrix of words": change(["nodes", 0, "matrix"], ["a"] * 16),
        "a mode from the future": change(["meshes", 0, "primitives", 0, "mode"], 77),
        "a huge number": change(["nodes", 0, "translation"], [10**400, 0, 0]),
        "a picture without end": change(["bufferViews", -1, "byteLength"], 1 << 40),
        "version 1": change(["asset", "version"], "1.0"),
        "no asset": lambda d: d.pop("asset"),
    }


@pytest.mark.parametrize("lie", _lies())
def test_lies_are_one_line(tmp_path, lie):
    builder = GlbBuilder()
    builder.save = lambda path: path
    path = mesh_samples.textured_glb(tmp_path / "a.glb")
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    document, binary = json.loads(data[20 : 20 + length]), data[20 + length + 8 :]
    _lies()[lie](document)
    path.write_bytes(pack_glb(document, binary))
    with pytest.raises(ScriptError) as caught:
        read_scene(path)
    assert caught.value.exit_code == 65 and "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_an_index_out_of_range_is_named(tmp_path):
    glb = one_triangle()
    glb.document["meshes"][0]["primitives"][0]["indices"] = glb.array([0, 1, 3], "SCALAR", "<u2")
    with pytest.raises(InvalidInputError, match="index 3, there are 3 vertices"):
        read_scene(glb.save(tmp_path / "a.glb"))


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("gone.bin", MissingInputError),
        ("gone%20too.bin", MissingInputError),
        ("../a.bin", InvalidInputError),
        ("x/../../a.bin", InvalidInputError),
        ("..%2Fa.bin", InvalidInputError),
        ("/etc/passwd", InvalidInputError),
        ("file:///etc/passwd", InvalidInputError),
        ("https://example.com/a.bin", InvalidInputError),
        ("C:\\a.bin", InvalidInputError),
        ("data:application/octet-stream;base64,!!!", InvalidInputError),
        ("data:,hello", InvalidInputError),
        ("", InvalidInputError),
    ],
)
def test_buffers_elsewhere_are_refused(tmp_path, uri, error):
    folder = tmp_path / "in here"
    folder.mkdir()
    path = mesh_samples.textured_glb(folder / "a.gltf")
    (tmp_path / "a.bin").write_bytes((folder / "a.bin").read_bytes())
    document = json.loads(path.read_text())
    document["buffers"][0]["uri"] = uri
    path.write_text(json.dumps(document))
    with pytest.raises(error) as caught:
        read_scene(path)
    assert "\n" not in str(caught.value)


def test_a_missing_picture_is_missing_input(tmp_path):
    path = mesh_samples.textured_glb(tmp_path / "a.gltf")
    document = json.loads(path.read_text())
    document["images"][0] = {"uri": "gone.png"}
    path.write_text(json.dumps(document))
    with pytest.raises(MissingInputError, match=r"gone\.png"):
        read_scene(path)


@pytest.mark.parametrize(
    "data", [b"", b" \n", b"\x00" * 64, b"hello", b"{}", b"[]", b"glTF", b"{" * 100_000, b'{"asset": {"version": 2}}']
)
@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_no_gltf_at_all(tmp_path, data, suffix):
    (tmp_path / f"a{suffix}").write_bytes(data)
    with pytest.raises(InvalidInputError):
        read_scene(tmp_path / f"a{suffix}")


_SAMPLE: dict = {}


def _sample_document(folder) -> tuple[dict, bytes]:
    if not _SAMPLE:
        data = mesh_samples.skinned_glb(folder / "s.glb").read_bytes()
        length = struct.unpack_from("<I", data, 12)[0]
        _SAMPLE["parts"] = json.loads(data[20 : 20 + length]), data[20 + length + 8 :]
    return _SAMPLE["parts"]


def _places(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(item, (*path, key))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_value_gives_a_scene_or_one_line(tmp_path, data):
    document, binary = _sample_document(tmp_path)
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(_places(document))[1:]))
        at = document
        for key in path[:-1]:
            at = at[key]
        odd = [None, -1, 0, 1, 3, 255, 5125, 2**31, 1e308, 0.5, "", "VEC4", True, [], {}, [0], [[]]]
        at[path[-1]] = data.draw(st.sampled_from(odd))
    (tmp_path / "odd.glb").write_bytes(pack_glb(document, binary))
    try:
        scene = read_scene(tmp_path / "odd.glb")
    except ScriptError as error:
        assert error.exit_code in (65, 66) and "\n" not in str(error)
        return
    try:
        write_scene(scene, tmp_path / "odd_again.glb")
    except ScriptError as error:
        assert "\n" not in str(error)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(3, 6), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
    materials=st.integers(1, 3),
    varying=st.booleans(),
)
def test_any_polygons_keep_their_corners_through_glb_and_usd(tmp_path, sizes, seed, materials, varying):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(12, 3)).astype(np.float32).astype(np.float64)
    faces = [rng.permutation(12)[:size] for size in sizes]
    vertices = np.concatenate(faces).astype(np.int32)
    mesh = Mesh(
        "m", points, np.array(sizes, np.int32), vertices, rng.integers(-1, materials, len(sizes)).astype(np.int32)
    )
    values = rng.integers(0, 65, (6, 2)) / 64  # exact also as 1 - v
    indices = rng.integers(0, 6, len(vertices)).astype(np.int32) if varying else (vertices % 6).astype(np.int32)
    mesh.uv_sets["st"] = FaceVarying(values, indices)
    scene = Scene([Node("n", mesh=0)], [mesh], materials=[Material(f"m{i}") for i in range(materials)])
    write_scene(scene, tmp_path / "a.usdc")
    read = read_scene(tmp_path / "a.usdc").meshes[0]
    np.testing.assert_array_equal(read.face_sizes, sizes)
    np.testing.assert_array_equal(read.points, points)
    np.testing.assert_array_equal(read.uv_sets["st"].corners(), mesh.uv_sets["st"].corners())
    np.testing.assert_array_equal(read.face_material, mesh.face_material)
    write_scene(scene, tmp_path / "a.glb")
    triangles = read_scene(tmp_path / "a.glb").meshes[0]
    assert len(triangles.face_sizes) == sum(size - 2 for size in sizes)
    corners = {(*points[v], *values[i]) for v, i in zip(vertices, indices, strict=True)}
    found = np.concatenate([triangles.points[triangles.face_vertices], triangles.uv_sets["st"].corners()], 1)
    assert {tuple(np.round(row, 6)) for row in found} == {tuple(np.round(row, 6)) for row in corners}
