"""Which edges between two triangles may be dissolved, and which must stay."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse

from meshes.scene import FaceVarying, Mesh
from meshes.topology import Edges, find_edges, islands, marked_edges, weld
from meshes.triangulate import next_corners
from shared_utils.errors import InvalidInputError

FLAT = 1e-10  # a triangle is degenerate when its height is below FLAT times its longest edge
VALUE_TOLERANCE = 1e-6  # texture coordinates, colours, other values: larger differences across an edge are a seam
NORMAL_TOLERANCE = 0.01  # length of the difference of two unit normals: about 0.6 degrees
WEIGHT_TOLERANCE = 1e-5  # of a skin weight
FACET_ANGLE = 60.0  # degrees, see `_hard_normals`

# Why an edge between two faces stays, in the order in which the reasons are looked for; an edge counts under the first that applies.
REASONS = (
    "polygon", "degenerate", "duplicate", "winding", "material", "face data", "sharp", "uv", "normals", "colour", "skin", "data",
    "angle", "convexity",
)  # fmt: skip


@dataclass
class Triangles:
    """The triangles of a mesh and the edges between them that could go.

    `faces` [n] int64: the proper triangles (three different positions, not flat). `pairs` [m, 2] int64 rows of `faces` with a common edge that
    nothing forbids so far, and `corners` [m, 2] int64 the face corners at which the edge starts in the one and in the other. `facets` [m] bool: both
    are flat-shaded facets, whose normals are to be made anew when they are joined. `kept` counts the edges that stay, by reason;
    `degenerate` and `islands` count triangles and connected pieces.
    """

    faces: np.ndarray
    pairs: np.ndarray
    corners: np.ndarray
    facets: np.ndarray
    kept: dict[str, int]
    degenerate: int
    islands: int


def normalised_points(mesh: Mesh) -> np.ndarray:
    """The points moved and scaled to within about -1..1, so that lengths and areas neither overflow nor vanish; [V, 3].

    InvalidInputError: a coordinate is NaN or infinite.
    """
    points = np.asarray(mesh.points, np.float64)
    bad = np.flatnonzero(~np.isfinite(points).all(1))
    if len(bad):
        raise InvalidInputError(f"mesh {mesh.name!r}: point {bad[0]} has a coordinate that is not a finite number")
    if len(points) == 0:
        return points
    half = points / 2
    centre, extent = half.min(0) + half.max(0), float(np.ptp(half, axis=0).max())
    return (half - centre / 2) / extent if extent > 0 else np.zeros_like(points)


def area_vectors(corners: np.ndarray) -> np.ndarray:
    """Twice the area of triangles [n, 3 corners, 3] as vectors along their normals, [n, 3]."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., 3] made one long; zero stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def find_triangles(mesh: Mesh, points: np.ndarray, ignore_seams: bool, ignore_materials: bool) -> Triangles:
    """Gather the triangles of `mesh` and the edges between them that may be dissolved, as far as topology and data say.

    `points` [V, 3] from `normalised_points`. An edge stays when it is open, or has three or more sides; when a face there is no proper triangle, the
    two share more than this edge, or are wound against each other; at borders of materials, face groups and per-face data; when it
    is sharp or creased; and where UVs, normals, colours, skin weights or other data of the two sides differ. `ignore_materials` lets borders of
    materials, groups and per-face data go; `ignore_seams` everything that differs from side to side (sharp edges and creases stay).
    """
    welded = weld(points)
    edges = find_edges(mesh, welded)
    following = next_corners(mesh)
    corner_face = np.asarray(mesh.corner_faces(), np.int64)
    offsets = mesh.face_offsets()[:-1]

    three = np.flatnonzero(mesh.face_sizes == 3)
    corners_of = offsets[three][:, None] + np.arange(3)
    placed = points[mesh.face_vertices[corners_of]]
    vectors = area_vectors(placed)
    sides = np.linalg.norm(placed - np.roll(placed, 1, axis=1), axis=2).max(1, initial=0)
    proper = np.linalg.norm(vectors, axis=1) > FLAT * sides**2
    row = np.full(len(mesh.face_sizes), -1, np.int64)
    row[three[proper]] = np.arange(int(proper.sum()))
    degenerate = np.zeros(len(mesh.face_sizes), bool)
    degenerate[three[~proper]] = True

    number, corner = edges.two_sided()
    face = corner_face[corner]
    # The corners of the second side at the same two positions as the first side's start and end.
    at_start = np.stack([corner[:, 0], following[corner[:, 1]]], 1)
    at_end = np.stack([following[corner[:, 0]], corner[:, 1]], 1)
    tests = {
        "polygon": (mesh.face_sizes[face] != 3).any(1),
        "degenerate": degenerate[face].any(1),
        "duplicate": _shared_twice(face),
        "winding": np.ptp(welded[mesh.face_vertices[at_start]], axis=1) != 0,
        "sharp": (marked_edges(edges, mesh.sharp_edges, welded) | _creased(mesh, edges, welded))[number],
    }
    if not ignore_materials:
        tests["material"] = mesh.face_material[face[:, 0]] != mesh.face_material[face[:, 1]]
        tests["face data"] = _face_data_differs(mesh, face)
    facets = np.zeros(len(number), bool)
    if mesh.normals is not None:
        directions = np.zeros((len(mesh.face_sizes), 3))
        directions[three] = unit(vectors)
        hard, facets = _hard_normals(mesh, directions, face, at_start, at_end)
        if not ignore_seams:
            tests["normals"] = hard
    if not ignore_seams:
        tests["uv"] = _any_differs(mesh.uv_sets.values(), at_start, at_end)
        tests["colour"] = _any_differs(mesh.colors.values(), at_start, at_end)
        tests["skin"] = _skin_differs(mesh, at_start) | _skin_differs(mesh, at_end)
        tests["data"] = _data_differs(mesh, at_start, at_end)

    kept = {"open": int((edges.sides == 1).sum()), "non-manifold": int((edges.sides > 2).sum())}
    free = np.ones(len(number), bool)
    for reason in REASONS:
        if reason in tests:
            kept[reason] = int((tests[reason] & free).sum())
            free &= ~tests[reason]
    return Triangles(
        faces=three[proper],
        pairs=row[face[free]],
        corners=corner[free],
        facets=facets[free],
        kept=kept,
        degenerate=int((~proper).sum()),
        islands=int(islands(mesh, edges).max(initial=-1)) + 1,
    )


def _shared_twice(face: np.ndarray) -> np.ndarray:
    """Which pairs of faces [K, 2] occur more than once (or are a face with itself)."""
    low, high = face.min(1), face.max(1)
    _, of_pair, count = np.unique(low * (int(high.max(initial=0)) + 1) + high, return_inverse=True, return_counts=True)
    return (count[of_pair.reshape(-1)] > 1) | (low == high)


def _creased(mesh: Mesh, edges: Edges, welded: np.ndarray) -> np.ndarray:
    if mesh.crease_edges is None:
        return np.zeros(len(edges.ends), bool)
    if mesh.crease_sharpness is None:
        return marked_edges(edges, mesh.crease_edges, welded)
    return marked_edges(edges, mesh.crease_edges[np.asarray(mesh.crease_sharpness) > 0], welded)


def _face_data_differs(mesh: Mesh, face: np.ndarray) -> np.ndarray:
    """Where face groups or per-face primvars differ between the faces [K, 2]."""
    differs = np.zeros(len(face), bool)
    for group in mesh.face_groups.values():
        inside = np.zeros(len(mesh.face_sizes), bool)
        inside[group] = True
        differs |= inside[face[:, 0]] != inside[face[:, 1]]
    for primvar in mesh.primvars.values():
        if primvar.interpolation == "uniform":
            differs |= _values_differ(primvar.values, primvar.indices, face)
    return differs


def _values_differ(values: np.ndarray, indices: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Where two items [K, 2] of an optionally indexed value list differ. NaN is equal to NaN."""
    values = np.asarray(values)
    places = rows if indices is None else indices[rows]
    differs = places[:, 0] != places[:, 1]
    if values.dtype.kind not in "fiub":
        first, second = values[places[differs, 0]], values[places[differs, 1]]
        differs[differs] = np.array([np.any(a != b) for a, b in zip(first, second, strict=True)], bool)
        return differs
    values = values.reshape(len(values), -1)
    first = values[places[differs, 0]].astype(np.float64)
    second = values[places[differs, 1]].astype(np.float64)
    with np.errstate(invalid="ignore"):
        differs[differs] = (np.abs(first - second) > VALUE_TOLERANCE * np.maximum(1, np.abs(first))).any(1)
    return differs


def _any_differs(values, at_start: np.ndarray, at_end: np.ndarray) -> np.ndarray:
    """Where one of several FaceVarying values differs between the two sides of an edge, at its start or its end."""
    differs = np.zeros(len(at_start), bool)
    value: FaceVarying
    for value in values:
        for corners in (at_start, at_end):
            differs |= _values_differ(value.values, value.indices, corners)
    return differs


def _skin_differs(mesh: Mesh, corners: np.ndarray) -> np.ndarray:
    """Where the two corners [K, 2] belong to different points with different skin rows."""
    points = mesh.face_vertices[corners]
    differs = points[:, 0] != points[:, 1]
    skin = mesh.skin
    if skin is None or not differs.any():
        return np.zeros(len(corners), bool)
    shape = (len(mesh.points), int(skin.joints.max(initial=0)) + 1)
    rows = sparse.csr_matrix((np.asarray(skin.weights, np.float64), skin.joints, skin.offsets), shape=shape)
    gap = abs(rows[points[differs, 0]] - rows[points[differs, 1]])
    differs[differs] = gap.max(axis=1).toarray().reshape(-1) > WEIGHT_TOLERANCE
    return differs


def _data_differs(mesh: Mesh, at_start: np.ndarray, at_end: np.ndarray) -> np.ndarray:
    """Where blend shapes, or primvars of points or face corners, differ between the two sides."""
    differs = np.zeros(len(at_start), bool)
    for corners in (at_start, at_end):
        points = mesh.face_vertices[corners]
        for primvar in mesh.primvars.values():
            if primvar.interpolation == "vertex":
                differs |= _values_differ(primvar.values, primvar.indices, points)
            elif primvar.interpolation == "faceVarying":
                differs |= _values_differ(primvar.values, primvar.indices, corners)
        split = np.flatnonzero(points[:, 0] != points[:, 1])
        for shape in mesh.blend_shapes if len(split) else ():
            moved = np.zeros((len(mesh.points), 3))
            moved[slice(None) if shape.indices is None else shape.indices] = shape.offsets
            size = float(np.abs(moved).max(initial=0))
            gap = np.abs(moved[points[split, 0]] - moved[points[split, 1]]).max(1)
            differs[split] |= gap > VALUE_TOLERANCE * size
    return differs


def _hard_normals(
    mesh: Mesh, directions: np.ndarray, face: np.ndarray, at_start: np.ndarray, at_end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(where the shading breaks at an edge, where both sides are flat-shaded facets with different normals), [K] bool each.

    `directions` [F, 3]: unit normals of the triangles themselves.

    In a flat-shaded mesh every triangle carries its own normal at all corners, and every edge between two that are not coplanar looks hard,
    though nobody said so. Such a normal says nothing where a facet is alone: flat, and no neighbour shares its normals. An edge between two
    facets that are alone is not hard, unless they meet at more than FACET_ANGLE. Wherever neighbours do share normals (the two halves of a
    box's side) the breaks around them are meant.
    """
    normals = unit(mesh.normals.corners())

    def differ(corners: np.ndarray) -> np.ndarray:
        return np.linalg.norm(normals[corners[:, 0]] - normals[corners[:, 1]], axis=1) > NORMAL_TOLERANCE

    breaks = differ(at_start) | differ(at_end)
    off = np.linalg.norm(normals - directions[mesh.corner_faces()], axis=1) > NORMAL_TOLERANCE
    flat = np.bincount(mesh.corner_faces()[off], minlength=len(mesh.face_sizes)) == 0
    alone = flat.copy()
    alone[face[~breaks]] = False
    gentle = (directions[face[:, 0]] * directions[face[:, 1]]).sum(1) >= np.cos(np.radians(FACET_ANGLE))
    return breaks & ~(alone[face].all(1) & gentle), breaks & flat[face].all(1)
