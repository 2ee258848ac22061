"""OBJ, PLY and STL: what the readers give, what the OBJ writer writes, and files that lie."""

import struct

import mesh_samples
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mesh_compare import assert_same_mesh

from meshes.io import READABLE, WRITABLE, read_scene, write_scene
from shared_utils.errors import InvalidInputError, MissingInputError, ScriptError, UsageError


def read_text(tmp_path, text: str | bytes, suffix: str = ".obj"):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_scene(path)


def test_obj_sample_is_read_completely(tmp_path):
    scene = read_scene(mesh_samples.ngon_obj(tmp_path / "house.obj"))
    mesh = scene.meshes[0]
    assert (mesh.name, scene.nodes[0].name) == ("House", "House")
    assert mesh.face_sizes.tolist() == [5, 5, 4, 4, 4, 3, 3, 4]
    assert mesh.face_vertices[:10].tolist() == [4, 3, 2, 1, 0, 5, 6, 7, 8, 9]
    assert [scene.materials[i].name for i in mesh.face_material] == ["Bricks"] * 5 + ["Roof"] * 3
    assert mesh.uv_sets["st"].corners()[:2].tolist() == [[0, 0.5], [0.5, 1]]
    assert mesh.uv_sets["st"].corners()[22].tolist() == [0, 0]  # A corner without texture coordinates.
    assert {name: faces.tolist() for name, faces in mesh.face_groups.items()} == {
        "front": [0], "back": [1], "walls": [2, 3, 4], "roof": [5, 6, 7],
    }  # fmt: skip
    assert [0, 4] in mesh.sharp_edges.tolist()  # Between the smoothing groups of front and wall.
    assert [3, 8] not in mesh.sharp_edges.tolist()  # Inside the roof.
    bricks, roof = scene.materials
    assert (bricks.roughness, roof.alpha_mode, roof.base_color) == (0.9, "BLEND", (0.1, 0.1, 0.1, 0.5))
    assert scene.images[bricks.base_color_texture.image].data == mesh_samples.png((150, 40, 30))
    assert scene.warnings == []


def test_obj_written_again_is_the_same(tmp_path):
    scene = read_scene(mesh_samples.ngon_obj(tmp_path / "house.obj"))
    (tmp_path / "out").mkdir()
    written = write_scene(scene, tmp_path / "out" / "b c.obj")
    assert written.warnings == [] and [path.name for path in written.files] == [
        "house_bricks.png",
        "b c.mtl",
        "b c.obj",
    ]
    again = read_scene(tmp_path / "out" / "b c.obj")
    assert_same_mesh(scene.meshes[0], again.meshes[0], tolerance=0)
    assert again.images[0].data == scene.images[0].data
    assert {k: v.tolist() for k, v in again.meshes[0].face_groups.items()} == {
        k: v.tolist() for k, v in scene.meshes[0].face_groups.items()
    }
    assert again.meshes[0].sharp_edges.tolist() == scene.meshes[0].sharp_edges.tolist()


def test_obj_of_a_hierarchy_is_placed_in_the_world_in_metres_with_y_up(tmp_path):
    scene = read_scene(mesh_samples.rigged_usd(tmp_path / "a.usda"))
    written = write_scene(scene, tmp_path / "b.obj")
    again = read_scene(tmp_path / "b.obj").meshes[0]
    # Centimetres with Z up, bound 5 above the ground.
    expected = (scene.meshes[0].points + np.array([0, 0, 5]))[:, [0, 2, 1]] * [0.01, 0.01, -0.01]
    np.testing.assert_allclose(again.points, expected, atol=1e-9)
    assert again.face_sizes.tolist() == scene.meshes[0].face_sizes.tolist()
    assert any("skeletons" in warning for warning in written.warnings)


def test_trimesh_reads_the_obj(tmp_path):
    import trimesh

    scene = read_scene(mesh_samples.textured_glb(tmp_path / "a.glb"))
    write_scene(scene, tmp_path / "b.obj")
    loaded = trimesh.load(tmp_path / "b.obj")
    reference = trimesh.load(tmp_path / "a.glb")
    np.testing.assert_allclose(loaded.bounds, reference.bounds, atol=1e-6)
    assert len(loaded.triangles) == 24


def test_objects_become_meshes_and_unused_vertices_are_named(tmp_path):
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 9 9 9\no a\nf 1 2 3\no b\nv 0 0 1\nf 1 2 5\nl 1 2\n"
    scene = read_text(tmp_path, text)
    assert [mesh.name for mesh in scene.meshes] == ["a", "b"] and [len(mesh.points) for mesh in scene.meshes] == [3, 3]
    assert sorted(scene.warnings) == ["1 lines are not kept", "1 vertices which no face uses are not kept"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 0\n", "line 4: face corner '0': indices start at 1"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 -4\n", "line 4: index -4, there are 3 vertices so far"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "names vertex 4, there are 3"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1/1 2/1 3/1\n", "texture coordinate 1, there are 0"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1//7 2//7 3//7\n", "normal 7, there are 0"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf a b c\n", "line 4: 'a' is no face corner"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1/1/1/1 2 3\n", "'1/1/1/1' is no face corner"),
        ("v 0 0 zero\nf 1 1 1\n", "does not hold 3 numbers"),
        ("v 0 0\n", "does not hold 3 numbers"),
        ("", "empty file"),
        ("once upon a time\n", "no OBJ statement"),
        (b"v 0 0 0\x00\x00\x00", "no OBJ text"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 99999999999999999999 1 2\n", "is no face corner"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf " + "9" * 5000 + " 1 2\n", "is no face corner"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 4000000000 1 2\n", "is no face corner"),
    ],
)
def test_obj_faults_are_named(tmp_path, text, says):
    with pytest.raises(InvalidInputError) as caught:
        read_text(tmp_path, text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_obj_odds_and_ends(tmp_path):
    scene = read_text(
        tmp_path, "v nan 0 0\nv 1 0 0 \\\n\nv 0 1 0 0.5 0.25 1\nf 1 2 3\nf 1 2\np 1\nxyz 3\r\n".replace("\\\n\n", "\n")
    )
    assert np.isnan(scene.meshes[0].points[0, 0]) and len(scene.meshes[0].face_sizes) == 1
    assert sorted(scene.warnings) == [
        "1 faces with fewer than 3 corners are not kept",
        "1 points are not kept",
        "1 unknown statements are not kept",
    ]
    colored = read_text(tmp_path, "v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 0 1 0 0 0 1\nf 1 2 3\n").meshes[0]
    assert colored.colors["displayColor"].corners().tolist() == np.eye(3).tolist()
    continued = read_text(tmp_path, "v 0 0 0\nv 1 \\\n0 0\nv 0 1 0\nf 1 \\\r\n2 3\n")
    assert continued.meshes[0].points[1].tolist() == [1, 0, 0]
    utf16 = read_text(tmp_path, "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n".encode("utf-16"))
    assert len(utf16.meshes[0].face_sizes) == 1


def test_obj_without_its_library_keeps_the_names_and_says_so(tmp_path):
    scene = read_text(tmp_path, "mtllib gone.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl Red\nf 1 2 3\n")
    assert [material.name for material in scene.materials] == ["Red"] and "gone.mtl" in scene.warnings[0]


def test_obj_pictures_missing_absolute_and_outside(tmp_path):
    face = "mtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl A\nf 1 2 3\n"
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "paint.png").write_bytes(mesh_samples.png())

    def read(picture: str):
        (folder / "m.mtl").write_text(f"newmtl A\nmap_Kd -s 2 2 1 -clamp on {picture}\n")
        return read_text(folder, face)

    with pytest.raises(MissingInputError):
        read("gone.png")
    with pytest.raises(InvalidInputError):
        read("../paint.png")
    with pytest.raises(MissingInputError):
        read("C:\\textures\\paint.png")
    (folder / "paint.png").write_bytes(mesh_samples.png((1, 2, 3)))
    scene = read("C:\\textures\\paint.png")
    assert scene.images[0].data == mesh_samples.png((1, 2, 3))
    texture = scene.materials[0].base_color_texture
    assert (texture.uv_scale, texture.wrap_s) == ((2, 2), "clamp")


@pytest.mark.parametrize("kind", [{}, {"binary": True}, {"binary": True, "big_endian": True}])
def test_ply_sample(tmp_path, kind):
    mesh = read_scene(mesh_samples.cube_ply(tmp_path / "a.ply", **kind)).meshes[0]
    assert mesh.face_sizes.tolist() == [4] * 5 + [3, 3] and mesh.points.shape == (8, 3)
    np.testing.assert_allclose(mesh.colors["displayColor"].values[:, 1], np.arange(8) / 255)


def test_ply_equal_lists_are_the_same_as_unequal_ones(tmp_path):
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty double x\nproperty double y\nproperty double z\n"
    header += "element face 2\nproperty list uchar uint vertex_index\nproperty uchar flag\nend_header\n"
    body = np.eye(3).tobytes() + b"".join(struct.pack("<B3IB", 3, *face, 9) for face in ([0, 1, 2], [2, 1, 0]))
    scene = read_text(tmp_path, header.encode() + body, ".ply")
    assert scene.meshes[0].face_vertices.tolist() == [0, 1, 2, 2, 1, 0]
    assert scene.meshes[0].primvars["flag"].values.tolist() == [9, 9]


@pytest.mark.parametrize("binary", [True, False])
def test_stl_sample_has_one_point_at_each_corner(tmp_path, binary):
    mesh = read_scene(mesh_samples.cube_stl(tmp_path / "a.stl", binary=binary)).meshes[0]
    assert mesh.points.shape == (8, 3) and len(mesh.face_sizes) == 12
    corners = mesh.points[mesh.face_vertices].reshape(-1, 3, 3)
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    np.testing.assert_allclose(abs(volume), 8)


@pytest.mark.parametrize("sample", ["cube_ply", "cube_stl"])
@pytest.mark.parametrize("binary", [True, False])
def test_truncated_anywhere_it_is_one_line(tmp_path, sample, binary):
    suffix = ".ply" if sample == "cube_ply" else ".stl"
    data = getattr(mesh_samples, sample)(tmp_path / f"a{suffix}", binary=binary).read_bytes()
    for place in range(0, len(data) - (1 if binary else 12), 11):
        with pytest.raises(InvalidInputError) as caught:
            read_text(tmp_path, data[:place], suffix)
        assert "\n" not in str(caught.value)


_PLY = "ply\nformat {form} 1.0\nelement vertex {vertices}\nproperty float x\nproperty float y\nproperty float z\nelement face {faces}\n"
_PLY += "property list {count} int vertex_indices\nend_header\n"


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian", "binary_middle_endian"])
@pytest.mark.parametrize(
    "lie",
    [{"vertices": 2_000_000_000}, {"faces": 2_000_000_000}, {"vertices": -1}, {"vertices": "many"}, {"count": "word"}],
)
def test_ply_counts_that_lie(tmp_path, form, lie):
    values = {"vertices": 3, "faces": 1, "count": "uchar", "form": form} | lie
    body = np.eye(3, dtype="<f4").tobytes() + struct.pack("<B3i", 3, 0, 1, 2)
    with pytest.raises(InvalidInputError):
        read_text(tmp_path, _PLY.format(**values).encode() + body, ".ply")


def test_ply_list_lengths_that_lie(tmp_path):
    header = _PLY.format(form="binary_little_endian", vertices=3, faces=1, count="uint")
    body = np.eye(3, dtype="<f4").tobytes() + struct.pack("<I3i", 2**32 - 1, 0, 1, 2)
    with pytest.raises(InvalidInputError):
        read_text(tmp_path, header.encode() + body, ".ply")
    body = np.eye(3, dtype="<f4").tobytes() + struct.pack("<I3i", 3, 0, 1, 3)
    with pytest.raises(InvalidInputError, match=r"vertex 0\.\.3 of 3"):
        read_text(tmp_path, header.encode() + body, ".ply")


def test_a_header_without_end_is_not_searched_for_ever(tmp_path):
    with pytest.raises(InvalidInputError, match="header without an end"):
        read_text(tmp_path, b"ply\nformat ascii 1.0\n" + b"comment x\n" * 3_000_000, ".ply")


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".stl"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_a_scene_or_one_line(tmp_path, suffix, data):
    binary = data.draw(st.booleans())
    path = tmp_path / f"s{suffix}"
    if suffix == ".obj":
        mesh_samples.ngon_obj(path)
    elif suffix == ".ply":
        mesh_samples.cube_ply(path, binary=binary)
    else:
        mesh_samples.cube_stl(path, binary=binary)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    try:
        scene = read_scene(path)
    except ScriptError as error:
        assert error.exit_code in (65, 66) and "\n" not in str(error)
        return
    assert all(mesh.problem() is None for mesh in scene.meshes)


def test_endings_are_checked(tmp_path):
    for name in ("a.xyz", "a", "a.blend"):
        (tmp_path / name).write_text("x")
        with pytest.raises(InvalidInputError, match=r"readable: \.glb"):
            read_scene(tmp_path / name)
    with pytest.raises(UsageError, match=r"writable: \.usdc"):
        write_scene(read_text(tmp_path, "v 0 0 0\n"), tmp_path / "a.fbx")
    for suffix in READABLE:
        with pytest.raises(MissingInputError):
            read_scene(tmp_path / f"gone{suffix}")
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(InvalidInputError, match="is not a file"):
            read_scene(tmp_path / f"folder{suffix}")
    assert set(WRITABLE) < set(READABLE)


@pytest.mark.parametrize("name", ["with space", "ünï cödé", "-leading", "a.b.c", "quote'\""])
def test_names_of_files_are_free(tmp_path, name):
    scene = read_scene(mesh_samples.textured_glb(tmp_path / f"{name}.glb"))
    for suffix in WRITABLE:
        write_scene(scene, tmp_path / f"{name} out{suffix}")
        assert len(read_scene(tmp_path / f"{name} out{suffix}").images) == 1
