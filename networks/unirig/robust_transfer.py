"""Skin weights from one mesh to another that covers about the same surface.

R. Abdrashitov et al., "Robust Skin Weights Transfer via Weight Inpainting" (SIGGRAPH Asia 2023 Technical
Communications): copy weights where the surfaces agree in place and direction, fill the rest so that a Laplacian and
bilaplacian energy is smallest, then smooth around what was filled. Everything is computed in float64.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix, diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu, spsolve_triangular

from networks.unirig.closest_point import closest_points
from networks.unirig.reskin import normalize_rows
from shared_utils.errors import InvalidInputError

RADIUS_FRACTION = 0.05  # of the diagonal of the target's bounds
NORMAL_THRESHOLD = 30.0  # degrees
SMOOTH_ITERS = 10
SMOOTH_ALPHA = 0.2
_MAX_COTANGENT = 1e6  # of an angle of 1e-6 rad: keeps degenerate triangles from filling the system with infinities
_MIN_AREA = 1e-12  # of the mean vertex area, for the same reason


@dataclass
class RobustTransfer:
    """The stages of a transfer to N target vertices with J weights, float64.

    matched: bool (N,), weights copied from the source surface. interpolated: (N, J) weights at the closest source point,
    matched or not. inpainted: (N, J). smoothed: (N, J), may be slightly negative. weights: (N, J), the result: no
    negative entries, rows sum to 1.
    """

    matched: np.ndarray
    interpolated: np.ndarray
    inpainted: np.ndarray
    smoothed: np.ndarray
    weights: np.ndarray


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals, float64 (V, 3); zero where a vertex has no face with an area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    cross = np.cross(b - a, c - a)
    normals = np.zeros((len(vertices), 3))
    for corner in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(faces[:, corner], weights=cross[:, axis], minlength=len(vertices))
    return _unit(normals)


def match(
    source_vertices: np.ndarray,
    source_faces: np.ndarray,
    source_weights: np.ndarray,
    target_vertices: np.ndarray,
    target_normals: np.ndarray,
    radius: float,
    normal_threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(matched (N,), interpolated (N, J)): the weights at the closest source point, and whether they may be used.

    They may when the point is within `radius` and the normals differ by at most `normal_threshold` degrees.
    """
    closest = closest_points(target_vertices, source_vertices, source_faces)
    corners = source_faces[closest.face]
    source_normals = vertex_normals(source_vertices, source_faces)
    interpolated = sum(closest.barycentric[:, i, None] * source_weights[corners[:, i]] for i in range(3))
    normal = _unit(sum(closest.barycentric[:, i, None] * source_normals[corners[:, i]] for i in range(3)))
    angle = np.degrees(np.arccos(np.clip((normal * target_normals).sum(axis=1), -1, 1)))
    return (closest.squared_distance <= radius**2) & (angle <= normal_threshold), interpolated


def cotangent_laplacian(vertices: np.ndarray, faces: np.ndarray) -> tuple[csr_matrix, np.ndarray]:
    """(L, area): L (V, V) with entries cot a + cot b off the diagonal, rows summing to 0; mixed Voronoi areas (V,).

    M. Meyer et al., "Discrete Differential-Geometry Operators for Triangulated 2-Manifolds" (2003). Twice the matrix
    that libigl calls cotmatrix.
    """
    count = len(vertices)
    corners = vertices[faces]
    edges = np.roll(corners, 1, axis=1) - np.roll(corners, -1, axis=1)  # edge i lies opposite corner i
    squared = (edges**2).sum(axis=2)
    double_area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    dot = -np.stack([(edges[:, (i + 1) % 3] * edges[:, (i + 2) % 3]).sum(axis=1) for i in range(3)], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cotangent = np.nan_to_num(dot / double_area[:, None], nan=0, posinf=np.inf, neginf=-np.inf)
    cotangent = np.clip(cotangent, -_MAX_COTANGENT, _MAX_COTANGENT)

    i, j = np.roll(faces, -1, axis=1).ravel(), np.roll(faces, 1, axis=1).ravel()
    off_diagonal = csr_matrix((cotangent.ravel(), (i, j)), shape=(count, count))
    off_diagonal = off_diagonal + off_diagonal.T
    laplacian = off_diagonal - diags(np.asarray(off_diagonal.sum(axis=1)).ravel())

    voronoi = (np.roll(squared * cotangent, 1, axis=1) + np.roll(squared * cotangent, -1, axis=1)) / 8
    obtuse = dot < 0
    area = double_area[:, None] / 2
    split = np.where(obtuse, area / 2, area / 4)
    share = np.where(obtuse.any(axis=1, keepdims=True), split, voronoi)
    return laplacian.tocsr(), np.bincount(faces.ravel(), weights=share.ravel(), minlength=count)


def inpaint(vertices: np.ndarray, faces: np.ndarray, weights: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill in the rows of weights (N, J) that are not `known` (N,), minimising w' (-L + L M^-1 L) w.

    Every connected part of the mesh with unknown vertices must have a known one.
    """
    unknown = ~known
    if not unknown.any():
        return weights.copy()
    laplacian, area = cotangent_laplacian(vertices, faces)
    area = np.maximum(area, _MIN_AREA * area.mean())
    # Only rows within two rings of an unknown vertex enter its equations: the product stays small.
    rows = laplacian[unknown]
    energy = -rows + rows @ diags(1 / area) @ laplacian
    system = csc_matrix(energy[:, unknown])
    filled = weights.copy()
    filled[unknown] = splu(system).solve(-(energy[:, known] @ weights[known]))
    return filled


def smooth(
    vertices: np.ndarray,
    neighbours: csr_matrix,
    weights: np.ndarray,
    matched: np.ndarray,
    radius: float,
    iterations: int,
    alpha: float,
) -> np.ndarray:
    """Gauss-Seidel passes in vertex order, w = (1 - alpha) w + alpha * mean of the neighbours, around what was filled.

    neighbours: (N, N) symmetric, 1 where two vertices share an edge.
    """
    chosen = near_unmatched(vertices, neighbours, matched, radius)
    degree = np.diff(neighbours.indptr)
    rows = np.flatnonzero(chosen & (degree > 0))
    if len(rows) == 0 or iterations == 0:
        return weights.copy()
    # One pass solves (I - alpha D^-1 lower) new = (1 - alpha) old + alpha D^-1 (the neighbours not updated before).
    mean = diags(alpha / degree[rows]) @ neighbours[rows]
    inner = mean[:, rows].tocsr()
    later_in_order = (inner - _lower(inner)).tocsr()
    outside = mean @ np.where(np.isin(np.arange(len(weights)), rows)[:, None], 0, weights)
    triangular = (diags(np.ones(len(rows))) - _lower(inner)).tocsr()
    smoothed = weights.copy()
    current = weights[rows]
    for _ in range(iterations):
        right = (1 - alpha) * current + later_in_order @ current + outside
        current = spsolve_triangular(triangular, right, lower=True, unit_diagonal=True)
    smoothed[rows] = current
    return smoothed


def near_unmatched(vertices: np.ndarray, neighbours: csr_matrix, matched: np.ndarray, radius: float) -> np.ndarray:
    """bool (N,): the unmatched vertices and those found near them.

    From each unmatched vertex in order the search spreads along edges over vertices nearer to it than `radius`, and
    only over those not found before.
    """
    found = (~matched).tolist()
    places = vertices.tolist()
    start, index = neighbours.indptr.tolist(), neighbours.indices.tolist()
    for seed in np.flatnonzero(~matched).tolist():
        x, y, z = places[seed]
        queue = deque([seed])
        while queue:
            vertex = queue.popleft()
            for other in index[start[vertex] : start[vertex + 1]]:
                if found[other]:
                    continue
                px, py, pz = places[other]
                if (px - x) ** 2 + (py - y) ** 2 + (pz - z) ** 2 < radius**2:
                    found[other] = True
                    queue.append(other)
    return np.array(found)


def robust_transfer(
    source_vertices: np.ndarray,
    source_faces: np.ndarray,
    source_weights: np.ndarray,
    target_vertices: np.ndarray,
    target_faces: np.ndarray,
    *,
    radius: float | None = None,
    normal_threshold: float = NORMAL_THRESHOLD,
    smooth_iters: int = SMOOTH_ITERS,
    smooth_alpha: float = SMOOTH_ALPHA,
) -> RobustTransfer:
    """Weights for the target mesh, with every stage of the way; see `transfer_weights` for meshes with seams.

    source_vertices (V, 3), source_faces (F, 3) int, source_weights (V, J); target_vertices (N, 3), target_faces (T, 3)
    int; both in the same coordinates. radius: default 5 % of the diagonal of the target's bounds. Where a connected part
    of the target has no match at all, nothing could be inpainted: its vertices take the weights of their closest source
    points. Raises InvalidInputError when the source has no faces.
    """
    if len(source_faces) == 0:
        raise InvalidInputError("the mesh to take skin weights from has no faces")
    source_vertices, source_weights, target_vertices = (
        np.asarray(a, dtype=np.float64) for a in (source_vertices, source_weights, target_vertices)
    )
    if radius is None:
        radius = RADIUS_FRACTION * float(np.linalg.norm(np.ptp(target_vertices, axis=0)))
    target_normals = vertex_normals(target_vertices, target_faces)
    matched, interpolated = match(
        source_vertices, source_faces, source_weights, target_vertices, target_normals, radius, normal_threshold
    )
    neighbours = vertex_neighbours(len(target_vertices), target_faces)
    parts, part_of = connected_components(neighbours, directed=False)
    known = matched | (np.bincount(part_of, weights=matched, minlength=parts) == 0)[part_of]
    inpainted = inpaint(target_vertices, target_faces, interpolated, known)
    smoothed = smooth(target_vertices, neighbours, inpainted, known, radius, smooth_iters, smooth_alpha)
    weights = normalize_rows(np.clip(smoothed, 0, None))
    return RobustTransfer(matched, interpolated, inpainted, smoothed, weights)


def transfer_weights(
    source_vertices: np.ndarray,
    source_faces: np.ndarray,
    source_weights: np.ndarray,
    target_vertices: np.ndarray,
    target_faces: np.ndarray,
    **options,
) -> np.ndarray:
    """Like `robust_transfer`, for a mesh as it is stored in a file: float64 (N, J), rows sum to 1.

    Vertices at the same position (seams, hard edges) are one vertex here, so that they get the same weights and the
    surface cannot come apart there.
    """
    # -0.0 and 0.0 are the same place; `unique` compares rows by value, hence the addition.
    places, place_of = np.unique(np.asarray(target_vertices) + 0.0, axis=0, return_inverse=True)
    place_of = place_of.reshape(-1)
    faces = place_of[target_faces]
    result = robust_transfer(source_vertices, source_faces, source_weights, places, faces, **options)
    return result.weights[place_of]


def vertex_neighbours(count: int, faces: np.ndarray) -> csr_matrix:
    """(count, count) symmetric matrix with 1 where two vertices share an edge; sorted columns, empty diagonal."""
    start = np.concatenate([faces[:, 0], faces[:, 1], faces[:, 2]])
    end = np.concatenate([faces[:, 1], faces[:, 2], faces[:, 0]])
    proper = start != end
    start, end = start[proper], end[proper]
    matrix = csr_matrix(
        (np.ones(2 * len(start)), (np.concatenate([start, end]), np.concatenate([end, start]))), shape=(count, count)
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _lower(matrix: csr_matrix) -> csr_matrix:
    """The part strictly below the diagonal."""
    entries = matrix.tocoo()
    below = entries.col < entries.row
    return csr_matrix((entries.data[below], (entries.row[below], entries.col[below])), shape=matrix.shape)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
