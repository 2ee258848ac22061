"""Comparing scenes: what must be equal after a file was written and read again."""

import numpy as np

from meshes.scene import FaceVarying, Mesh, Scene


def face_corner_points(mesh: Mesh) -> np.ndarray:
    """Position of every face corner, [L, 3]: the same however points are split."""
    return mesh.points[mesh.face_vertices]


def assert_same_varying(a: FaceVarying | None, b: FaceVarying | None, tolerance: float, what: str) -> None:
    """Equal values at every face corner."""
    assert (a is None) == (b is None), what
    if a is not None:
        np.testing.assert_allclose(a.corners(), b.corners(), atol=tolerance, err_msg=what)


def assert_same_mesh(a: Mesh, b: Mesh, *, tolerance: float = 1e-6) -> None:
    """Equal faces, positions, texture coordinates, normals, colours, materials and skin rows."""
    np.testing.assert_array_equal(a.face_sizes, b.face_sizes)
    np.testing.assert_array_equal(a.face_vertices, b.face_vertices)
    np.testing.assert_allclose(a.points, b.points, atol=tolerance)
    np.testing.assert_array_equal(a.face_material, b.face_material)
    assert list(a.uv_sets) == list(b.uv_sets)
    for name in a.uv_sets:
        assert_same_varying(a.uv_sets[name], b.uv_sets[name], tolerance, name)
    assert_same_varying(a.normals, b.normals, 1e-5, "normals")
    assert list(a.colors) == list(b.colors)
    for name in a.colors:
        assert_same_varying(a.colors[name], b.colors[name], tolerance, name)
    assert (a.skin is None) == (b.skin is None)
    if a.skin is not None:
        np.testing.assert_array_equal(a.skin.offsets, b.skin.offsets)
        dense = [_dense(mesh) for mesh in (a, b)]
        np.testing.assert_allclose(dense[0], dense[1], atol=1e-6)
    assert [shape.name for shape in a.blend_shapes] == [shape.name for shape in b.blend_shapes]
    for one, other in zip(a.blend_shapes, b.blend_shapes, strict=True):
        np.testing.assert_allclose(_shape(one, a), _shape(other, b), atol=tolerance)
        assert abs(one.weight - other.weight) < 1e-6


def _dense(mesh: Mesh) -> np.ndarray:
    table = np.zeros((len(mesh.points), int(mesh.skin.joints.max(initial=0)) + 1))
    rows = np.repeat(np.arange(len(mesh.points)), np.diff(mesh.skin.offsets))
    np.add.at(table, (rows, mesh.skin.joints), mesh.skin.weights)
    return table


def _shape(shape, mesh: Mesh) -> np.ndarray:
    full = np.zeros((len(mesh.points), 3))
    full[slice(None) if shape.indices is None else shape.indices] = shape.offsets
    return full


def assert_same_scene(a: Scene, b: Scene, *, tolerance: float = 1e-6) -> None:
    """Equal in everything that glTF and USD can both say: by node name, as the order of siblings may differ."""
    worlds = [dict(zip([n.name for n in s.nodes], s.world_matrices(), strict=True)) for s in (a, b)]
    assert worlds[0].keys() == worlds[1].keys()
    for name in worlds[0]:
        np.testing.assert_allclose(worlds[0][name], worlds[1][name], atol=1e-6, err_msg=name)
    shown = [{n.name: s.meshes[n.mesh] for n in s.nodes if n.mesh is not None} for s in (a, b)]
    assert shown[0].keys() == shown[1].keys()
    for name in shown[0]:
        own = shown[0][name], shown[1][name]
        assert own[0].name == own[1].name
        assert_same_mesh(*own, tolerance=tolerance)
    sharing = [[n.name for n in s.nodes if n.mesh is not None and _users(s)[n.mesh] > 1] for s in (a, b)]
    assert sorted(sharing[0]) == sorted(sharing[1])
    assert [m.name for m in a.materials] == [m.name for m in b.materials]
    for one, other in zip(a.materials, b.materials, strict=True):
        for field in ("base_color", "metallic", "roughness", "emissive", "alpha_cutoff", "normal_scale", "ior"):
            np.testing.assert_allclose(
                getattr(one, field), getattr(other, field), atol=1e-6, err_msg=f"{one.name} {field}"
            )
        assert (one.alpha_mode, one.double_sided, one.unlit) == (other.alpha_mode, other.double_sided, other.unlit)
        assert one.textures().keys() == other.textures().keys()
        for key, texture in one.textures().items():
            twin = other.textures()[key]
            assert a.images[texture.image].data == b.images[twin.image].data
            assert (texture.uv_set, texture.wrap_s, texture.wrap_t) == (twin.uv_set, twin.wrap_s, twin.wrap_t)
            for field in ("uv_offset", "uv_rotation", "uv_scale"):
                np.testing.assert_allclose(getattr(texture, field), getattr(twin, field), atol=1e-6)
    assert [s.joints for s in a.skeletons] == [s.joints for s in b.skeletons]
    for one, other in zip(a.skeletons, b.skeletons, strict=True):
        np.testing.assert_array_equal(one.parents, other.parents)
        np.testing.assert_allclose(one.rest, other.rest, atol=1e-6)
    assert [clip.name for clip in a.animations] == [clip.name for clip in b.animations]


def _users(scene: Scene) -> dict[int, int]:
    return {mesh: sum(node.mesh == mesh for node in scene.nodes) for mesh in range(len(scene.meshes))}
