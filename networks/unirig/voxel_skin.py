"""UniRig's voxel feature: how near each mesh vertex is to each joint on a way through the inside of the mesh.

The mesh is filled with voxels, mesh edges and voxel neighbours become a graph, and Dijkstra's distance from each joint
is turned into weights. The published weights were trained with this exact feature, its mirrored z test included.
All arrays are numpy; coordinates are those of the mesh scaled so that its bounds fill [-1, 1].
"""

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from networks.unirig.zbuffer import EYE_DISTANCE, VIEWS, depth_image
from shared_utils.errors import InvalidInputError

NEIGHBOUR_SLACK = 1.001  # a voxel reaches what is at most this many cell widths away
MIN_DISTANCE = 1e-6
NEAREST_JOINTS = 3  # a vertex without any way to a joint gets straight distances to this many
EXP_SHARPNESS = 20.0
MODES = ("square", "exp")
_DISTANCES_AT_ONCE = 1 << 25  # numbers Dijkstra may return at once (256 MiB)
_JOINTS_AT_ONCE = 8  # keeps progress reports coming


def fill_unit_box(vertices: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move and scale both so that the bounds of the vertices are centred and their longest side is [-1, 1]: float32."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    centre, scale = (low + high) / 2, (high - low).max() / 2
    if not scale > 0:
        raise InvalidInputError("the mesh has no extent: all its vertices are at one point")
    return tuple(((points - centre) / scale).astype(np.float32) for points in (vertices, joints))


def voxel_centres(grid: int) -> np.ndarray:
    """Coordinate of the centre of each of `grid` cells over [-1, 1]: float64 (grid,)."""
    return 2 * (np.arange(grid) + 0.5) / grid - 1


def depth_images(vertices: np.ndarray, faces: np.ndarray, grid: int) -> dict[str, np.ndarray]:
    """The six images of `zbuffer.VIEWS`, each float32 (grid, grid)."""
    return {name: depth_image(vertices, faces, view, grid) for name, view in VIEWS.items()}


def occupancy(images: dict[str, np.ndarray]) -> np.ndarray:
    """Which voxels are inside along at least two of the three axes: bool (grid, grid, grid), indexed [x, y, z].

    Inside along an axis means between the first hits from both ends. The views `+x` and `+y` look along their axis, `+z`
    looks against it; the hits along z are nevertheless read like the others, that is with their sign lost, as in the
    data the published weights were trained with. What comes out is mirrored in the z test alone.
    """
    grid = len(images["+x"])
    centres = voxel_centres(grid)
    low = {axis: images[f"+{axis}"].astype(np.float64) - EYE_DISTANCE for axis in "xyz"}
    high = {axis: EYE_DISTANCE - images[f"-{axis}"].astype(np.float64) for axis in "xyz"}
    # Images are [row, column]; turn each pair into the two remaining axes in ascending order.
    x_low, x_high = low["x"][::-1, :], high["x"][::-1, ::-1]  # [y, z]
    y_low, y_high = low["y"][::-1, :].T, high["y"].T  # [x, z]
    z_low, z_high = low["z"][::-1, :].T, high["z"][::-1, ::-1].T  # [x, y]
    x, y, z = centres[:, None, None], centres[None, :, None], centres[None, None, :]
    votes = ((x_low[None] <= x) & (x <= x_high[None])).astype(np.uint8)
    votes += (y_low[:, None] <= y) & (y <= y_high[:, None])
    votes += (z_low[:, :, None] <= z) & (z <= z_high[:, :, None])
    return votes >= 2


def occupied_cells(occupied: np.ndarray) -> np.ndarray:
    """Indices of the occupied voxels, int64 (M, 3): x ascending, then y ascending, then z descending."""
    cells = np.argwhere(occupied[:, :, ::-1])
    cells[:, 2] = occupied.shape[2] - 1 - cells[:, 2]
    return cells


def voxelize(vertices: np.ndarray, faces: np.ndarray, grid: int) -> np.ndarray:
    """Indices of the voxels inside a mesh within [-1, 1]^3: int64 (M, 3), see `occupied_cells`."""
    return occupied_cells(occupancy(depth_images(vertices, faces, grid)))


def mesh_edges(
    points: np.ndarray, faces: np.ndarray, link_distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(from, to, length) of the mesh's part of the graph, symmetric.

    An edge listed k times in the same direction counts k times its length; of the two directions the shorter holds.
    Vertices closer than link_distance without coinciding are joined.
    """
    start = np.concatenate([faces[:, 0], faces[:, 1], faces[:, 2]])
    end = np.concatenate([faces[:, 1], faces[:, 2], faces[:, 0]])
    length = np.linalg.norm(points[start] - points[end], axis=1)
    distance, neighbour = cKDTree(points).query(points, k=min(4, len(points)), distance_upper_bound=link_distance)
    distance, neighbour = distance.reshape(len(points), -1), neighbour.reshape(len(points), -1)
    near = (distance > 0) & (distance < link_distance)
    start = np.concatenate([start, np.nonzero(near)[0]])
    end = np.concatenate([end, neighbour[near]])
    length = np.concatenate([length, distance[near]])

    directed, which = np.unique(start * len(points) + end, return_inverse=True)
    total = np.bincount(which, weights=length)
    start, end = np.divmod(directed, len(points))
    low, high = np.minimum(start, end), np.maximum(start, end)
    edges, which = np.unique(low * len(points) + high, return_inverse=True)
    shortest = np.full(len(edges), np.inf)
    np.minimum.at(shortest, which, total)
    low, high = np.divmod(edges, len(points))
    return np.concatenate([low, high]), np.concatenate([high, low]), np.concatenate([shortest, shortest])


def lattice_edges(cells: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """(from, to) between face neighbours among the occupied voxels, both directions."""
    number = np.full((grid + 1,) * 3, -1, dtype=np.int64)
    number[tuple(cells.T)] = np.arange(len(cells))
    starts, ends = [], []
    for axis in range(3):
        step = np.eye(3, dtype=np.int64)[axis]
        other = number[tuple((cells + step).T)]
        here = np.flatnonzero(other >= 0)
        starts += [here, other[here]]
        ends += [other[here], here]
    return np.concatenate(starts), np.concatenate(ends)


def joint_distances(
    vertices: np.ndarray,
    faces: np.ndarray,
    joints: np.ndarray,
    cells: np.ndarray,
    *,
    grid: int,
    link_distance: float = 1e-5,
    grid_weight: float = 3.0,
    vertex_query: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Length of the shortest way from each joint to each vertex: float64 (V, J), inf where there is none.

    Ways run along mesh edges, between neighbouring voxels (at grid_weight times the distance) and from a voxel to its
    nearest vertices. A joint starts at the vertex or voxel nearest to it. progress(done, total) counts joints.
    """
    points = vertices.astype(np.float64)
    voxels = voxel_centres(grid)[cells].astype(np.float32).astype(np.float64)
    count = len(points)
    reach = NEIGHBOUR_SLACK * 2 / grid
    edges = [mesh_edges(points, faces, link_distance)]
    if len(voxels):
        a, b = lattice_edges(cells, grid)
        edges.append((a + count, b + count, np.full(len(a), grid_weight * 2 / grid)))
        k = min(vertex_query, count)
        distance, vertex = (q.reshape(len(voxels), k) for q in cKDTree(points).query(voxels, k=k))
        voxel, rank = np.nonzero((distance > 0) & (distance < reach))
        vertex, distance = vertex[voxel, rank], distance[voxel, rank]
        edges += [(voxel + count, vertex, distance), (vertex, voxel + count, distance)]
    start, end, length = (np.concatenate(parts) for parts in zip(*edges, strict=True))
    nodes = count + len(voxels)
    graph = csr_matrix((length, (start, end)), shape=(nodes, nodes))

    _, source = cKDTree(np.concatenate([points, voxels])).query(joints.astype(np.float64))
    sources, joint_source = np.unique(source, return_inverse=True)
    result = np.empty((count, len(sources)))
    at_once = min(max(1, _DISTANCES_AT_ONCE // nodes), _JOINTS_AT_ONCE)
    for first in range(0, len(sources), at_once):
        batch = sources[first : first + at_once]
        result[:, first : first + len(batch)] = dijkstra(graph, indices=batch)[:, :count].T
        if progress:
            progress(first + len(batch), len(sources))
    return result[:, joint_source]


def skin_from_distances(
    distances: np.ndarray, vertices: np.ndarray, joints: np.ndarray, *, alpha: float = 0.5, mode: str = "square"
) -> np.ndarray:
    """Weights from the distances of `joint_distances`: float32 (V, J), rows sum to 1 (a row that cannot is all zero).

    Vertices without a way to any joint use straight distances to their nearest joints; other missing ways count as the
    largest distance there is. mode "square": 1 / ((1-alpha) d + alpha d^2)^2; "exp": exp(-20 d / largest d).
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
    d = distances.copy()
    lost = np.flatnonzero(~np.isfinite(d).any(axis=1))
    if len(lost):
        k = min(NEAREST_JOINTS, len(joints))
        straight, joint = cKDTree(joints.astype(np.float64)).query(vertices[lost].astype(np.float64), k=k)
        d[lost[:, None], joint.reshape(-1, k)] = straight.reshape(-1, k)
    largest = d[np.isfinite(d)].max()
    d = np.maximum(np.where(np.isfinite(d), d, largest), MIN_DISTANCE)
    mixed = (1 - alpha) * d + alpha * d**2
    skin = mixed**-2 if mode == "square" else np.exp(-EXP_SHARPNESS * d / largest)
    total = skin.sum(axis=1, keepdims=True)
    return np.divide(skin, total, out=np.zeros_like(skin), where=total > 0).astype(np.float32)


def voxel_skin(
    vertices: np.ndarray,
    faces: np.ndarray,
    joints: np.ndarray,
    *,
    grid: int = 196,
    alpha: float = 0.5,
    link_dis: float = 1e-5,
    grid_query: int = 7,
    vertex_query: int = 1,
    grid_weight: float = 3.0,
    mode: str = "square",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The voxel feature of a mesh: float32 (V, J), rows sum to 1.

    vertices (V, 3), faces (F, 3) int, joints (J, 3), in any coordinates. The keyword arguments carry the names of the
    published configuration; grid_query is the number of voxels looked at for neighbours, the voxel itself included.
    """
    if grid_query < 7:
        raise ValueError(f"grid_query {grid_query}: at least 7 is needed to see all six neighbours of a voxel")
    vertices, joints = fill_unit_box(vertices, joints)
    distances = joint_distances(
        vertices,
        faces,
        joints,
        voxelize(vertices, faces, grid),
        grid=grid,
        link_distance=link_dis,
        grid_weight=grid_weight,
        vertex_query=vertex_query,
        progress=progress,
    )
    return skin_from_distances(distances, vertices, joints, alpha=alpha, mode=mode)
