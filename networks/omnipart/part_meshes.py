"""Decoded surfaces as numpy meshes: what cannot be seen removed, simplified, coloured, and judged."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from networks.omnipart.surface import SurfaceMesh

# (x, y, z) -> (x, z, -y): from the model's frame (z up) to that of GLB and USD files (y up). PLY files use another map.
SCENE_AXES = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
AGGRESSIVENESS = (7, 5, 3, 1)  # of fast-simplification: 7 is its default, smaller is slower and better
EXPLODE_DISTANCE = 0.3  # units of the unit cube, as for the Gaussians


@dataclass
class PartMesh:
    """points float64 [V, 3] (y up), faces int64 [F, 3], colours float64 [V, 3] sRGB in 0..1."""

    points: np.ndarray
    faces: np.ndarray
    colours: np.ndarray

    @property
    def centre(self) -> np.ndarray:
        """Mean of the points, [3]."""
        return self.points.mean(axis=0)

    def normals(self) -> np.ndarray:
        """Unit normals of the points, weighted by area: [V, 3]; (0, 1, 0) where there is none."""
        a, b, c = (self.points[self.faces[:, i]] for i in range(3))
        cross = np.cross(b - a, c - a)
        total = np.zeros_like(self.points)
        for corner in range(3):
            np.add.at(total, self.faces[:, corner], cross)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        return np.where(length > 0, total / np.where(length > 0, length, 1), [0.0, 1.0, 0.0])

    def is_watertight(self) -> bool:
        """Whether every edge belongs to two faces that run along it in opposite directions."""
        edges = self.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
        forward = edges[:, 0] * len(self.points) + edges[:, 1]
        backward = edges[:, 1] * len(self.points) + edges[:, 0]
        return len(np.unique(forward)) == len(forward) and np.array_equal(np.sort(forward), np.sort(backward))

    def select(self, keep: np.ndarray) -> "PartMesh":
        """Only the faces bool [F], and the points they use."""
        used, faces = np.unique(self.faces[keep], return_inverse=True)
        return PartMesh(self.points[used], faces.reshape(-1, 3), self.colours[used])


def from_surface(surface: SurfaceMesh) -> PartMesh:
    """A decoded surface in the scene's frame; without predicted colours it is light grey."""
    points = surface.vertices.numpy().astype(np.float64) @ SCENE_AXES.T
    colours = np.full((len(points), 3), 0.8)
    if surface.attributes is not None:
        colours = surface.attributes[:, :3].numpy().astype(np.float64)
    mesh = PartMesh(points, surface.faces.numpy().astype(np.int64), colours)
    a, b, c = (mesh.points[mesh.faces[:, i]] for i in range(3))
    proper = np.linalg.norm(np.cross(b - a, c - a), axis=1) > 0
    return mesh.select(proper)


def remove_cavities(mesh: PartMesh) -> tuple[PartMesh, int]:
    """The mesh without closed components that are turned inside out, and how many those were.

    The surface bounds a solid, so such a component is the wall of a hollow inside it: nobody sees it from outside.
    """
    if len(mesh.faces) == 0:
        return mesh, 0
    component = _components(mesh)
    a, b, c = (mesh.points[mesh.faces[:, i]] - mesh.centre for i in range(3))
    volumes = np.bincount(component, weights=np.einsum("ij,ij->i", a, np.cross(b, c)) / 6)
    hidden = [number for number in np.flatnonzero(volumes < 0) if mesh.select(component == number).is_watertight()]
    keep = ~np.isin(component, hidden)
    if not hidden or not keep.any():
        return mesh, 0
    return mesh.select(keep), len(hidden)


def _components(mesh: PartMesh) -> np.ndarray:
    """Number of the connected component of each face [F]."""
    a, b = mesh.faces[:, [0, 1]].T, mesh.faces[:, [1, 2]].T
    rows, columns = np.concatenate([a, b], axis=1)
    size = len(mesh.points)
    _, of_point = connected_components(coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), (size, size)))
    return of_point[mesh.faces[:, 0]]


def simplify(mesh: PartMesh, ratio: float) -> PartMesh:
    """About `ratio` of the faces (above 0, at most 1), by quadric error; colours from the nearest original points.

    Quick decimation may pinch a closed surface where two sheets meet; slower rounds are tried before that is accepted.
    """
    if ratio >= 1 or len(mesh.faces) <= 4:
        return mesh
    closed, first = mesh.is_watertight(), None
    for aggressiveness in AGGRESSIVENESS:
        simple = _decimate(mesh, ratio, aggressiveness)
        if len(simple.faces) >= 4:
            first = first or simple
            if simple.is_watertight() or not closed:
                return simple
    return first or mesh


def _decimate(mesh: PartMesh, ratio: float, aggressiveness: float) -> PartMesh:
    import fast_simplification

    points, faces = fast_simplification.simplify(
        mesh.points.astype(np.float32), mesh.faces.astype(np.int32), target_reduction=1 - ratio, agg=aggressiveness
    )
    nearest = cKDTree(mesh.points).query(points)[1]
    simple = PartMesh(np.asarray(points, np.float64), np.asarray(faces, np.int64), mesh.colours[nearest])
    return simple.select(np.ones(len(faces), bool))


def explode(meshes: list[PartMesh], distance: float = EXPLODE_DISTANCE) -> list[PartMesh]:
    """Each mesh moved by `distance` along the unit vector from the mean of all centres to its own."""
    middle = np.mean([mesh.centre for mesh in meshes], axis=0)
    moved = []
    for mesh in meshes:
        way = mesh.centre - middle
        length = np.linalg.norm(way)
        moved.append(replace(mesh, points=mesh.points + (distance / length if length > 1e-9 else 0) * way))
    return moved
