"""How the faces of a mesh hang together, with points at the same position taken as one.

glTF and GPU formats split a vertex wherever a texture coordinate or a normal jumps. The surface is still connected there: welding here
is a matter of numbering, and changes no point.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components

from meshes.scene import Mesh
from meshes.triangulate import next_corners


def weld(points: np.ndarray) -> np.ndarray:
    """Number the distinct positions of `points` [V, 3]: the same number for exactly equal ones (0 and -0 are equal), [V] int64."""
    order = np.lexsort(points.T[::-1])
    ordered = points[order]
    new = np.ones(len(points), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    ids = np.empty(len(points), np.int64)
    ids[order] = np.cumsum(new) - 1
    return ids


@dataclass
class Edges:
    """The undirected edges of a welded mesh.

    `ends` [E, 2] int64 welded point numbers, the smaller first; `of_corner` [L] int64: the edge from each corner to the next one of its face;
    `sides` [E] int64: how many face sides lie at the edge (1: open, 3 and more: non-manifold).
    """

    ends: np.ndarray
    of_corner: np.ndarray
    sides: np.ndarray

    def two_sided(self) -> tuple[np.ndarray, np.ndarray]:
        """The edges with exactly two face sides, [K] int64, and the corners these sides start from, [K, 2] int64, in the order of the faces."""
        edges = np.flatnonzero(self.sides == 2)
        order = np.argsort(self.of_corner, kind="stable")
        first = np.searchsorted(self.of_corner[order], edges)
        return edges, np.stack([order[first], order[first + 1]], 1) if len(edges) else np.zeros((0, 2), np.int64)


def find_edges(mesh: Mesh, welded: np.ndarray) -> Edges:
    """The edges of `mesh` after welding (`welded` [V] from `weld`)."""
    start = welded[mesh.face_vertices]
    end = start[next_corners(mesh)]
    count = int(welded.max(initial=0)) + 1
    keys, of_corner = np.unique(np.minimum(start, end) * count + np.maximum(start, end), return_inverse=True)
    of_corner = of_corner.reshape(-1)
    return Edges(np.stack([keys // count, keys % count], 1), of_corner, np.bincount(of_corner, minlength=len(keys)))


def marked_edges(edges: Edges, pairs: np.ndarray | None, welded: np.ndarray) -> np.ndarray:
    """Which edges are among `pairs` [P, 2] of (not welded) points: [E] bool. Pairs that are no edge are passed over."""
    if pairs is None or len(pairs) == 0 or len(edges.ends) == 0:
        return np.zeros(len(edges.ends), bool)
    count = int(edges.ends.max()) + 1
    ends = np.sort(welded[np.asarray(pairs, np.int64)], axis=1)
    ends = ends[ends[:, 1] < count]
    return np.isin(edges.ends @ (count, 1), ends @ (count, 1))


def islands(mesh: Mesh, edges: Edges) -> np.ndarray:
    """Number the pieces of the surface that hang together by edges: [F] int64, counted in the order of the faces."""
    faces = np.asarray(mesh.corner_faces(), np.int64)
    shape = (len(mesh.face_sizes), len(edges.ends))
    sides = sparse.coo_matrix((np.ones(len(faces), np.int8), (faces, edges.of_corner)), shape=shape)
    graph = sparse.bmat([[None, sides], [sides.T, None]], format="csr")
    return connected_components(graph, directed=False)[1][: shape[0]].astype(np.int64)
