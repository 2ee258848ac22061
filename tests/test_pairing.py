"""Triangles into quads: which edges stay, what a pair is worth, and what must never change."""

import dataclasses
import json

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from meshes.pairing import PairingSettings, check_conversion, convert_mesh, convert_meshes, find_candidates
from meshes.pairing_quads import QUALITY_SHARE, bend, convex, quality
from meshes.scene import BlendShape, FaceVarying, Mesh, Primvar, Skin
from meshes.topology import find_edges, islands, weld
from meshes.triangulate import newell_normals
from shared_utils.errors import InvalidInputError, PostConditionError

LENGTH = PairingSettings("length")


def mesh_of(points, faces, **rest) -> Mesh:
    points = np.asarray(points, np.float64)
    if points.shape[1] == 2:
        points = np.column_stack([points, np.zeros(len(points))])
    sizes = np.array([len(face) for face in faces], np.int32)
    return Mesh("mesh", points, sizes, np.array([v for face in faces for v in face], np.int32), **rest)


def faces_of(mesh: Mesh) -> list[list[int]]:
    return (
        [face.tolist() for face in np.split(mesh.face_vertices, mesh.face_offsets()[1:-1])]
        if len(mesh.face_sizes)
        else []
    )


def cycles(mesh: Mesh) -> set[tuple[int, ...]]:
    """The faces, each from its smallest point on."""
    return {tuple(face[(face.index(min(face)) + k) % len(face)] for k in range(len(face))) for face in faces_of(mesh)}


def grid(columns: int = 3, rows: int = 2) -> Mesh:
    """Squares of two triangles each, in the plane; square k is triangles 2 k and 2 k + 1."""
    points = [(x, y) for y in range(rows + 1) for x in range(columns + 1)]
    faces = []
    for y in range(rows):
        for x in range(columns):
            a = y * (columns + 1) + x
            b, c, d = a + 1, a + columns + 2, a + columns + 1
            faces += [[a, b, c], [a, c, d]]
    return mesh_of(points, faces)


def surface(points: int, seed: int, height: float = 0.3) -> Mesh:
    """A Delaunay triangulation over random points, lifted to random heights."""
    rng = np.random.default_rng(seed)
    flat = rng.random((points, 2))
    faces = Delaunay(flat).simplices
    a, b, c = (flat[faces[:, k]] for k in range(3))
    clockwise = (b - a)[:, 0] * (c - a)[:, 1] < (b - a)[:, 1] * (c - a)[:, 0]
    faces[clockwise] = faces[clockwise][:, ::-1]
    return mesh_of(np.column_stack([flat, height * rng.random(points)]), faces.tolist())


def split_points(mesh: Mesh, **rest) -> Mesh:
    """The same surface with every corner a point of its own, as in glTF files of flat-shaded models."""
    return Mesh(
        mesh.name,
        mesh.points[mesh.face_vertices],
        mesh.face_sizes,
        np.arange(len(mesh.face_vertices), dtype=np.int32),
        mesh.face_material,
        **rest,
    )


def flat_normals(mesh: Mesh) -> FaceVarying:
    vectors = newell_normals(mesh)
    return FaceVarying(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), mesh.corner_faces().copy())


def triangle_area(mesh: Mesh) -> float:
    return np.linalg.norm(newell_normals(mesh), axis=1).sum() / 2


# Which pairs


def test_two_triangles_make_a_quad_from_the_first_ones_corner():
    mesh = mesh_of([(0, 0), (1, 0), (1, 1), (0, 1)], [[0, 1, 2], [0, 2, 3]])
    result, report = convert_mesh(mesh)
    assert faces_of(result) == [[0, 1, 2, 3]]
    assert (report.triangles_before, report.triangles_after, report.quads_after, report.pairs) == (2, 0, 1, 1)
    assert report.ratio == pytest.approx(1) and report.optimal and report.quad_share == 1
    assert report.objective == pytest.approx(1 + QUALITY_SHARE)  # a square has quality 1


@pytest.mark.parametrize("objective", ["shape", "length"])
def test_a_triangulated_grid_comes_back(objective):
    result, report = convert_mesh(grid(7, 5), PairingSettings(objective))
    assert (result.face_sizes == 4).all() and len(result.face_sizes) == 35
    quads = result.points[result.face_vertices].reshape(-1, 4, 3)
    assert np.allclose(np.ptp(quads, axis=1), [1, 1, 0])
    assert report.left == {"degenerate": 0, "no candidate": 0, "odd one out": 0}


def test_a_triangulated_box_comes_back():
    corners = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = [half for a, b, c, d in sides for half in ([a, b, c], [a, c, d])]
    box = mesh_of(corners, faces)
    for mesh in (box, split_points(box, normals=flat_normals(box))):
        for objective in ("shape", "length"):
            result, report = convert_mesh(mesh, PairingSettings(objective))
            welded = weld(result.points)[result.face_vertices].reshape(-1, 4)
            assert {frozenset(face) for face in welded.tolist()} == {frozenset(side) for side in sides}
            assert report.islands == 1


def test_length_weights_are_relative_to_the_longest_candidate():
    # A strip of three triangles: its inner edges are 2 and sqrt(5) long; the outer ones, though longer, do not count.
    mesh = mesh_of([(0, 0), (4, 0), (0.5, 2), (4, 2.5)], [[0, 1, 2], [1, 3, 2]])
    candidates = find_candidates(mesh, LENGTH)
    assert candidates.weights.tolist() == [1.1]
    mesh = grid(2, 1)
    candidates = find_candidates(mesh, LENGTH)
    assert sorted(candidates.weights) == pytest.approx([1 + 0.1 / np.sqrt(2), 1.1, 1.1])


def test_pairs_come_first_and_shape_decides_among_them():
    # A row of squares, of which "length" would keep the diagonals too; squeezed, so that the diagonals' quads are no squares any more.
    mesh = grid(6, 1)
    mesh.points[:, 0] *= 0.2
    result, report = convert_mesh(mesh)
    assert report.pairs == 6
    assert np.allclose(np.ptp(result.points[result.face_vertices].reshape(-1, 4, 3), axis=1), [0.2, 1, 0])


@pytest.mark.parametrize(
    "corner, is_convex", [((0.9, 0.9), True), ((0.5, 0.5), False), ((0.4, 0.4), False), ((0.5000001, 0.5), False)]
)
def test_only_strictly_convex_quads(corner, is_convex):
    mesh = mesh_of([(0, 0), (1, 0), corner, (0, 1)], [[0, 1, 2], [0, 2, 3]])
    for objective in ("length", "shape"):
        _, report = convert_mesh(mesh, PairingSettings(objective))
        assert report.pairs == is_convex
        assert report.kept_edges["convexity"] == (not is_convex)


@pytest.mark.parametrize("degrees", [10, 39, 41, 89, 150])
def test_angle_between_the_normals(degrees):
    tilt = np.radians(degrees)
    points = [(0, -1, 0), (0, 1, 0), (-1, 0, 0), (np.cos(tilt), 0, np.sin(tilt))]
    mesh = mesh_of(points, [[0, 1, 2], [1, 0, 3]])
    quad = mesh.points[[0, 3, 1, 2]][None]
    assert np.degrees(bend(quad)) == pytest.approx(degrees)
    assert convert_mesh(mesh, LENGTH)[1].pairs == 1, "length has no limit of its own"
    assert convert_mesh(mesh)[1].pairs == (degrees <= 40)
    for objective in ("shape", "length"):
        for limit, pairs in ((degrees, 1), (degrees - 0.01, 0), (180, 1)):
            assert convert_mesh(mesh, PairingSettings(objective, max_angle=limit))[1].pairs == pairs


def test_quality_prefers_squares():
    square = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
    long = [(0, 0, 0), (4, 0, 0), (4, 1, 0), (0, 1, 0)]
    slanted = [(0, 0, 0), (1, 0, 0), (1.7, 0.7, 0), (0.7, 0.7, 0)]
    bent = [(0, 0, 0), (1, 0, 0), (1, 1, 0.5), (0, 1, 0)]
    values = quality(np.array([square, long, slanted, bent], float))
    assert values[0] == pytest.approx(1)
    assert values[1] == pytest.approx(0.5)
    assert values[2] == pytest.approx(0.5 * np.sqrt(0.99), abs=0.02)
    assert (values[1:] < 0.9).all() and (values > 0).all()
    assert convex(np.array([square, long, slanted], float)).all()


# Edges that must stay


def pairs_across(mesh: Mesh, settings: PairingSettings = LENGTH) -> set[frozenset[int]]:
    """The candidate pairs of triangles, as sets of face numbers."""
    triangles = find_candidates(mesh, settings).triangles
    return {frozenset(pair) for pair in triangles.faces[triangles.pairs].tolist()}


def two_squares(**rest) -> Mesh:
    """Triangles 0, 1 | 2, 3, all in one plane; the edge between the squares is 1-4 (triangles 0 and 3)."""
    points = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    return mesh_of(points, [[0, 1, 4], [0, 4, 3], [1, 2, 5], [1, 5, 4]], **rest)


BORDER, DIAGONALS = frozenset({0, 3}), {frozenset({0, 1}), frozenset({2, 3})}


def test_without_marks_every_inner_edge_is_a_candidate():
    assert pairs_across(two_squares()) == {BORDER, *DIAGONALS}


def corner_values(of_square: list, size: int) -> FaceVarying:
    """A value a square, at all its corners, with an entry of its own for each corner."""
    values = np.repeat(np.array(of_square, float).reshape(2, size), 6, axis=0)
    return FaceVarying(values, np.arange(12, dtype=np.int32))


def skin_of(rows: list[list[tuple[int, float]]]) -> Skin:
    offsets = np.cumsum([0] + [len(row) for row in rows]).astype(np.int32)
    joints, weights = np.array([entry for row in rows for entry in row]).T
    return Skin(0, offsets, joints.astype(np.int32), weights)


SIDES = np.array([0] * 6 + [1] * 6)
MARKS = {
    "material": {"face_material": np.array([0, 0, 1, 1], np.int32)},
    "face group": {"face_groups": {"left": np.array([0, 1], np.int32)}},
    "face data": {"primvars": {"id": Primvar(np.array([5, 5, 6, 6]), None, "uniform", "int")}},
    "face names": {"primvars": {"id": Primvar(np.array(["a", "b"]), np.array([0, 0, 1, 1]), "uniform", "token")}},
    "sharp": {"sharp_edges": np.array([[4, 1]], np.int32)},
    "crease": {"crease_edges": np.array([[1, 4]], np.int32), "crease_sharpness": np.array([0.5])},
    "uv": {"uv_sets": {"st": corner_values([0.1, 0.2, 0.3, 0.2], 2)}},
    "second uv": {"uv_sets": {"st": corner_values([0, 0, 0, 0], 2), "st1": corner_values([0.1, 0.2, 0.1, 0.20001], 2)}},
    "colour": {"colors": {"c": corner_values([1, 0, 0, 0.99, 0, 0], 3)}},
    "normals": {"normals": corner_values([0, 0, 1, 0, 0.3, 1], 3)},
    "corner data": {"primvars": {"x": Primvar(SIDES.astype(float), None, "faceVarying", "float")}},
}
LOOSENED_BY_MATERIALS = {"material", "face group", "face data", "face names"}
ALWAYS = {"sharp", "crease"}


@pytest.mark.parametrize("mark", MARKS)
def test_marked_edges_stay(mark):
    mesh = two_squares(**MARKS[mark])
    assert pairs_across(mesh) == DIAGONALS
    materials = pairs_across(mesh, PairingSettings("length", ignore_materials=True))
    seams = pairs_across(mesh, PairingSettings("length", ignore_seams=True))
    assert (BORDER in materials) == (mark in LOOSENED_BY_MATERIALS)
    assert (BORDER in seams) == (mark not in LOOSENED_BY_MATERIALS | ALWAYS)
    result, report = convert_mesh(mesh, LENGTH)
    assert cycles(result) == {(0, 1, 4, 3), (1, 2, 5, 4)}
    assert sum(report.kept_edges.values()) == 7  # six open edges, and the marked one


@pytest.mark.parametrize("mark", MARKS)
def test_equal_values_on_both_sides_are_no_mark(mark):
    def levelled(value):
        if isinstance(value, FaceVarying):
            return FaceVarying(value.values[:1].repeat(12, 0), value.indices)
        if isinstance(value, Primvar):
            return Primvar(value.values[:1].repeat(len(value.values), 0), value.indices, value.interpolation, "x")
        if isinstance(value, dict):
            return {name: levelled(entry) for name, entry in value.items()}
        return value[:0]

    rest = {name: levelled(value) for name, value in MARKS[mark].items() if name != "face_material"}
    assert pairs_across(two_squares(**rest)) == {BORDER, *DIAGONALS}


def split_between_squares(**rest) -> Mesh:
    """two_squares with the points 1 and 4 of the right square split off as 6 and 7."""
    points = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (1, 0), (1, 1)]
    return mesh_of(points, [[0, 1, 4], [0, 4, 3], [6, 2, 5], [6, 5, 7]], **rest)


def test_split_points_are_welded_for_the_topology():
    mesh = split_between_squares()
    assert pairs_across(mesh) == {BORDER, *DIAGONALS}
    assert convert_mesh(mesh)[1].islands == 1


@pytest.mark.parametrize("kind", ["skin", "blend shape", "point data"])
def test_split_points_with_different_data_are_a_seam(kind):
    def rest(right: float) -> dict:
        if kind == "skin":
            rows = [[(0, 1.0)]] * 6 + [[(1, right), (0, 1 - right)]] * 2
            return {"skin": skin_of(rows)}
        if kind == "blend shape":
            return {"blend_shapes": [BlendShape("up", np.array([[0, 0, right]] * 2), np.array([6, 7], np.int32))]}
        return {"primvars": {"heat": Primvar(np.array([0.0] * 6 + [right] * 2), None, "vertex", "float")}}

    assert pairs_across(split_between_squares(**rest(0.25))) == DIAGONALS
    assert BORDER in pairs_across(split_between_squares(**rest(0.25)), PairingSettings("length", ignore_seams=True))
    assert BORDER in pairs_across(split_between_squares(**rest(0.0)))


def test_sharp_edges_follow_the_points_that_faces_use():
    # The lower edge of the left square is sharp, named by points of triangles that are joined with others.
    mesh = split_points(two_squares())
    mesh.sharp_edges = np.array([[6, 7], [9, 11]], np.int32)  # 1-2 below; 1-4 between the squares
    mesh.crease_edges, mesh.crease_sharpness = mesh.sharp_edges.copy(), np.array([1.0, 2.0])
    mesh.corner_points, mesh.corner_sharpness = np.array([9], np.int32), np.array([1.0])
    result, report = convert_mesh(mesh, LENGTH)
    assert report.pairs == 2
    used = set(result.face_vertices.tolist())
    assert used.issuperset(result.sharp_edges.ravel()) and used.issuperset(result.corner_points)
    where = {tuple(sorted(map(tuple, ends))) for ends in result.points[result.sharp_edges][:, :, :2].tolist()}
    assert where == {((1, 0), (2, 0)), ((1, 0), (1, 1))}
    assert np.array_equal(result.crease_edges, result.sharp_edges)
    assert np.array_equal(mesh.sharp_edges, [[6, 7], [9, 11]]), "the mesh given is not changed"


def test_facets_of_a_flat_shaded_surface_may_be_joined():
    mesh = surface(60, 3, height=0.05)
    facets = split_points(mesh, normals=flat_normals(mesh))
    assert pairs_across(facets) == pairs_across(mesh, PairingSettings("length", max_angle=60))
    result, report = convert_mesh(facets)
    assert report.pairs == convert_mesh(mesh)[1].pairs > 30
    vectors = newell_normals(result)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(result.normals.corners(), vectors[result.corner_faces()])


def test_a_ridge_between_flat_sides_is_hard():
    # Two planes of two triangles each, flat-shaded, meeting at 30 degrees: neighbours share normals, so the break is meant.
    mesh = two_squares()
    mesh.points[:, 2] = np.tan(np.radians(30)) * np.maximum(mesh.points[:, 0] - 1, 0)
    assert BORDER in pairs_across(mesh)
    assert pairs_across(split_points(mesh, normals=flat_normals(mesh))) == DIAGONALS
    mesh.normals = flat_normals(mesh)
    assert pairs_across(mesh) == DIAGONALS


def test_facets_that_meet_steeply_stay():
    points = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], float)
    faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    octahedron = mesh_of(points, faces)
    assert convert_mesh(octahedron, LENGTH)[1].pairs == 4
    _, report = convert_mesh(split_points(octahedron, normals=flat_normals(octahedron)), LENGTH)
    assert report.pairs == 0 and report.kept_edges["normals"] == 12


# Input that is not as it should be


def test_non_manifold_edges_stay():
    points = [(0, 0, 0), (0, 1, 0), (1, 0.5, 0), (-1, 0.5, 0), (0, 0.5, 1)]
    _, report = convert_mesh(mesh_of(points, [[0, 2, 1], [0, 1, 3], [0, 1, 4]]), LENGTH)
    assert report.pairs == 0
    assert report.kept_edges["non-manifold"] == 1 and report.left["no candidate"] == 3


def test_triangles_wound_against_each_other_stay():
    _, report = convert_mesh(mesh_of([(0, 0), (1, 0), (1, 1), (0, 1)], [[0, 1, 2], [0, 3, 2]]), LENGTH)
    assert report.pairs == 0 and report.kept_edges["winding"] == 1


@pytest.mark.parametrize("second", [[0, 1, 2], [1, 2, 0], [0, 2, 1]])
def test_duplicate_faces_stay(second):
    result, report = convert_mesh(mesh_of([(0, 0), (1, 0), (1, 1)], [[0, 1, 2], second]), LENGTH)
    assert report.pairs == 0 and report.kept_edges["duplicate"] == 3
    assert len(result.face_sizes) == 2


def test_two_triangles_that_share_two_edges_stay():
    # Points 3 and 2 are at one place: the triangles share the edges 0-1 and 1-2.
    points = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1)]
    mesh = mesh_of([*points, (1, 1, 0)], [[0, 1, 2], [1, 0, 3], [1, 3, 4], [0, 2, 3]])
    before, after = mesh, convert_mesh(mesh, PairingSettings("length", max_angle=180))[0]
    assert np.array_equal(before.points, after.points)
    for face in faces_of(after):
        assert len({tuple(after.points[v]) for v in face}) == len(face)


def test_degenerate_triangles_stay():
    points = [(0, 0), (1, 0), (1, 1), (0, 1), (0.5, 0), (1, 0)]
    faces = [[0, 1, 2], [0, 2, 3], [0, 4, 1], [1, 5, 2], [2, 2, 3]]
    result, report = convert_mesh(mesh_of(points, faces), LENGTH)
    assert report.left["degenerate"] == 3
    assert report.triangles_after == 5 - 2 * report.pairs
    assert len(result.face_sizes) == 5 - report.pairs


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_coordinates_that_are_no_numbers(value):
    mesh = grid()
    mesh.points[3, 1] = value
    with pytest.raises(InvalidInputError, match=r"mesh 'mesh': point 3 .* finite"):
        convert_mesh(mesh)


def test_empty_meshes_and_points_without_faces():
    for points in (np.zeros((0, 3)), np.ones((4, 3))):
        result, report = convert_mesh(mesh_of(points, []))
        assert len(result.face_sizes) == 0 and len(result.points) == len(points)
        assert (report.ratio, report.quad_share, report.islands) == (1, 0, 0)
    mesh = grid()
    mesh.points = np.concatenate([mesh.points, [[9, 9, 9]]])
    assert len(convert_mesh(mesh)[0].points) == len(mesh.points)


def test_quads_and_polygons_are_left_alone():
    points = [(0, 0), (1, 0), (1, 1), (0, 1), (2, 0), (2, 1), (3, 0.5), (3, 1), (0, 2), (1, 2), (-0.5, 1.5)]
    faces = [[0, 1, 2, 3], [1, 4, 5], [1, 5, 2], [4, 6, 5], [3, 2, 9, 8, 10]]
    mesh = mesh_of(
        points,
        faces,
        uv_sets={"st": FaceVarying(np.random.default_rng(0).random((18, 2)), np.arange(18, dtype=np.int32))},
    )
    result, report = convert_mesh(mesh, PairingSettings("length", ignore_seams=True))
    assert faces_of(result) == [[0, 1, 2, 3], [1, 4, 5, 2], [4, 6, 5], [3, 2, 9, 8, 10]]
    assert (report.quads_before, report.quads_after, report.ngons, report.triangles_after) == (1, 2, 1, 1)
    kept = result.uv_sets["st"].corners()
    assert np.array_equal(kept[:4], mesh.uv_sets["st"].values[:4])
    assert np.array_equal(kept[4:8], mesh.uv_sets["st"].values[[4, 5, 6, 9]])
    assert np.array_equal(kept[-5:], mesh.uv_sets["st"].values[-5:])


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e12, 1e150])
def test_size_and_place_do_not_matter(scale):
    mesh = surface(80, 5)
    moved = dataclasses.replace(mesh, points=mesh.points * scale)
    for objective in ("length", "shape"):
        here, there = (convert_mesh(m, PairingSettings(objective))[0] for m in (mesh, moved))
        assert np.array_equal(here.face_vertices, there.face_vertices)


# What must hold whatever comes in

SURFACES = {
    "points": st.integers(4, 80),
    "seed": st.integers(0, 10**6),
    "objective": st.sampled_from(["length", "shape"]),
}


@given(**SURFACES)
@settings(max_examples=60, deadline=None)
def test_the_invariants(points, seed, objective):
    mesh = surface(points, seed)
    rng = np.random.default_rng(seed)
    mesh.face_material = rng.integers(0, 2, len(mesh.face_sizes)).astype(np.int32)
    mesh.uv_sets["st"] = FaceVarying(mesh.points[:, :2].copy(), mesh.face_vertices.copy())
    edges = find_edges(mesh, np.arange(len(mesh.points)))
    mesh.sharp_edges = edges.ends[rng.random(len(edges.ends)) < 0.1].astype(np.int32)
    mesh.face_groups["some"] = np.flatnonzero(rng.random(len(mesh.face_sizes)) < 0.9).astype(np.int32)
    result, report = convert_mesh(mesh, PairingSettings(objective), seed=seed)

    assert np.array_equal(result.points, mesh.points)
    assert result.problem() is None
    assert np.array_equal(result.uv_sets["st"].corners(), mesh.points[result.face_vertices, :2])
    # Each face is one triangle or the union of two, wound the same way: their directed edges are the same but for the dissolved ones.
    before, after = directed(mesh), directed(result)
    gone = before - after
    assert after <= before and len(gone) == 2 * report.pairs and {(b, a) for a, b in gone} == gone
    assert not {tuple(sorted(edge)) for edge in gone} & {tuple(edge) for edge in mesh.sharp_edges.tolist()}
    material = {frozenset(face): m for face, m in zip(faces_of(mesh), mesh.face_material.tolist(), strict=True)}
    grouped = set(mesh.face_groups["some"].tolist())
    groups = {frozenset(face): index in grouped for index, face in enumerate(faces_of(mesh))}
    for index, face in enumerate(faces_of(result)):
        parts = [part for part in material if part <= set(face)]
        if len(face) == 4:
            assert len(parts) >= 2
        sources = [p for p in parts if directed_face(p, mesh) <= directed_face(frozenset(face), result, index) | gone]
        assert {material[p] for p in sources} == {result.face_material[index]}
        assert {groups[p] for p in sources} == {index in result.face_groups["some"].tolist()}
    quads = result.points[result.face_vertices[np.repeat(result.face_sizes == 4, result.face_sizes)]].reshape(-1, 4, 3)
    assert convex(quads).all()
    assert report.triangles_before - 2 * report.pairs == report.triangles_after == sum(report.left.values())
    assert triangle_area(result) <= triangle_area(mesh) * (1 + 1e-12)  # a bent quad's own area is a little less
    assert np.allclose(newell_normals(result).sum(0), newell_normals(mesh).sum(0))
    json.dumps(report.as_dict())


def directed(mesh: Mesh) -> set[tuple[int, int]]:
    return {(face[k - 1], face[k]) for face in faces_of(mesh) for k in range(len(face))}


def directed_face(key: frozenset, mesh: Mesh, index: int | None = None) -> set[tuple[int, int]]:
    face = faces_of(mesh)[index] if index is not None else next(f for f in faces_of(mesh) if frozenset(f) == key)
    return {(face[k - 1], face[k]) for k in range(len(face))}


@given(**SURFACES)
@settings(max_examples=40, deadline=None)
def test_the_optimum_of_an_independent_formulation(points, seed, objective):
    """Candidates, weights and pairs once more, in plain loops, with networkx as the solver."""
    mesh = surface(points, seed)
    faces, place = faces_of(mesh), mesh.points
    lengths, pairs = {}, {}
    for one, first in enumerate(faces):
        for k in range(3):
            u, v = first[k], first[(k + 1) % 3]
            for other, second in enumerate(faces):
                if other > one and any((second[j], second[(j + 1) % 3]) == (v, u) for j in range(3)):
                    c, d = first[(k + 2) % 3], next(p for p in second if p not in (u, v))
                    quad = [u, d, v, c]
                    n1, n2 = (np.cross(place[t[1]] - place[t[0]], place[t[2]] - place[t[0]]) for t in (first, second))
                    angle = np.degrees(np.arccos(np.clip(n1 @ n2 / np.linalg.norm(n1) / np.linalg.norm(n2), -1, 1)))
                    turns = [
                        np.cross(place[quad[j]] - place[quad[j - 1]], place[quad[(j + 1) % 4]] - place[quad[j]])
                        @ (n1 + n2)
                        for j in range(4)
                    ]
                    if min(turns) > 0 and (objective == "length" or angle <= 40):
                        pairs[one, other] = quad
                        lengths[one, other] = np.linalg.norm(place[u] - place[v])
    graph = networkx.Graph()
    for pair, quad in pairs.items():
        weight = 1 + 0.1 * lengths[pair] / max(lengths.values())
        graph.add_edge(*pair, weight=weight if objective == "length" else 1 + 0.001 * quality(place[[quad]])[0])
    optimum = sum(graph.edges[pair]["weight"] for pair in networkx.max_weight_matching(graph))
    _, report = convert_mesh(mesh, PairingSettings(objective))
    assert report.candidates == len(pairs)
    assert report.objective == pytest.approx(optimum, rel=1e-9)
    assert report.bound == pytest.approx(optimum, rel=1e-9)


def test_several_meshes_are_independent_and_share_the_work():
    meshes = [grid(), surface(60, 1), mesh_of(np.zeros((0, 3)), []), surface(90, 2)]
    alone = [convert_mesh(mesh) for mesh in meshes]
    together = convert_meshes(meshes)
    for (mesh, report), (other, other_report) in zip(alone, together, strict=True):
        assert report.objective == pytest.approx(other_report.objective)
        assert report.bound == pytest.approx(other_report.bound)
        assert report.pairs == other_report.pairs
        assert np.array_equal(mesh.points, other.points)
    assert convert_meshes([]) == []


def test_the_same_seed_gives_the_same_faces():
    mesh = surface(400, 9)
    first, second = (convert_mesh(mesh, seed=4)[0] for _ in range(2))
    assert np.array_equal(first.face_vertices, second.face_vertices)


def test_no_time_still_gives_a_valid_mesh():
    mesh = surface(3000, 2, height=0.01)
    result, report = convert_mesh(mesh, LENGTH, time_limit=-1.0)
    full = convert_mesh(mesh, LENGTH)[1]
    assert not report.complete and not report.optimal
    assert 0.8 * full.pairs < report.pairs
    assert report.objective <= full.objective <= report.bound * (1 + 1e-12)
    assert result.problem() is None


def test_islands_are_counted():
    mesh = grid(2, 1)
    far = dataclasses.replace(mesh, points=mesh.points + 10)
    both = mesh_of(
        np.concatenate([mesh.points, far.points]),
        faces_of(mesh) + [[v + len(mesh.points) for v in f] for f in faces_of(far)],
    )
    assert convert_mesh(both)[1].islands == 2
    assert islands(both, find_edges(both, weld(both.points))).tolist() == [0] * 4 + [1] * 4


def test_unknown_objective():
    with pytest.raises(ValueError, match="objective 'area'"):
        convert_mesh(grid(), PairingSettings("area"))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda m: m.points.__setitem__((0, 0), 5.0), "a point moved"),
        (lambda m: m.face_vertices.__setitem__(slice(0, 2), m.face_vertices[1::-1].copy()), "area of a face"),
        (lambda m: m.face_vertices.__setitem__(0, 99), "outside"),
    ],
)
def test_a_wrong_result_is_noticed(spoil, message):
    mesh = grid()
    result, report = convert_mesh(mesh)
    triangles = np.arange(12).reshape(6, 2)
    check_conversion(mesh, result, triangles, report)
    bad = dataclasses.replace(result, points=result.points.copy(), face_vertices=result.face_vertices.copy())
    spoil(bad)
    with pytest.raises(PostConditionError, match=message):
        check_conversion(mesh, bad, triangles, report)
