"""A triangle mesh from the fields of a sparse voxel grid: dual marching cubes with learned weights.

FlexiCubes (Shen et al. 2023, "Flexible Isosurface Extraction for Gradient-Based Mesh Optimization") on the cells that a
surface crosses. Nothing here has the size of the dense grid, and the tables of the 256 corner signs are derived.

Corner k of a cell lies at (k & 1, k >> 1 & 1, k >> 2 & 1). A cell and its low corner have the same key
(x·n + y)·n + z with n = resolution + 1, so corners and neighbours are additions of keys. No cell has a coordinate equal
to `resolution`, so a key that leaves the grid on one axis meets no cell on another.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Channels of the fields: sdf 8 | deformation 8x3 | weights beta 12, alpha 8, gamma 1 | colour 8x6 (rgb, normal).
SDF, DEFORM, WEIGHTS, COLOR = slice(0, 8), slice(8, 32), slice(32, 53), slice(53, 101)
FIELD_CHANNELS = COLOR.stop
_BETA, _ALPHA, _GAMMA = slice(0, 12), slice(12, 20), 20

_CELLS = 1 << 15  # crossed cells whose edges are interpolated at once

# Ends of the twelve edges. Edges along y run from the high to the low end; winding depends on that.
EDGES = ((0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4))


@dataclass(frozen=True)
class SurfaceMesh:
    """vertices float32 [V, 3] in the unit cube around the origin, faces int32 [F, 3], attributes [V, 6] in 0..1: red,
    green, blue and the normal (n + 1) / 2, or None without colour."""

    vertices: Tensor
    faces: Tensor
    attributes: Tensor | None

    @classmethod
    def empty(cls, use_color: bool, device: torch.device | str) -> "SurfaceMesh":
        return cls(
            torch.zeros((0, 3), device=device),
            torch.zeros((0, 3), dtype=torch.int32, device=device),
            torch.zeros((0, 6), device=device) if use_color else None,
        )

    def to(self, device: torch.device | str) -> "SurfaceMesh":
        attributes = None if self.attributes is None else self.attributes.to(device)
        return SurfaceMesh(self.vertices.to(device), self.faces.to(device), attributes)

    @property
    def face_normals(self) -> Tensor:
        """Unit normals [F, 3]; zero for a face without area."""
        a, b, c = self.vertices[self.faces.long()].unbind(1)
        return F.normalize(torch.linalg.cross(b - a, c - a), dim=-1)


@dataclass(frozen=True)
class _CaseTables:
    """For each of the 256 patterns of negative corners (bit k = corner k)."""

    loop: Tensor  # [256, 12] which dual vertex of the cell the crossing on this edge belongs to, -1 = no crossing
    loops: Tensor  # [256] dual vertices
    ambiguous_face: Tensor  # [256] index into _FACES where the case may have to be complemented, else -1


# (axis, side) of a cell's faces, and the corners of each in cyclic order.
_FACES = [(axis, side) for axis in range(3) for side in range(2)]


def _face_corners(axis: int, side: int) -> list[int]:
    b, c = (other for other in range(3) if other != axis)
    return [(side << axis) | (i << b) | (j << c) for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))]


@lru_cache
def _case_tables() -> _CaseTables:
    """Dual vertices are the closed loops of crossings around a cell, joined face by face.

    A face with two crossings joins them; one with four (an ambiguous face) joins the two next to each negative corner.
    A case with one ambiguous face and one loop is marked: where both cells at such a face are marked, the other way to
    join is taken on both sides, which is that of the complementary case.
    """
    edge_of = {frozenset(edge): index for index, edge in enumerate(EDGES)}
    loop = np.full((256, 12), -1, dtype=np.int8)
    ambiguous = np.full(256, -1, dtype=np.int64)
    for case in range(256):
        group = {e: {e} for e, (p, q) in enumerate(EDGES) if (case >> p ^ case >> q) & 1}
        ambiguous_faces = []
        for face, (axis, side) in enumerate(_FACES):
            corners = _face_corners(axis, side)
            edges = [edge_of[frozenset((corners[i], corners[(i + 1) % 4]))] for i in range(4)]
            crossing = [e for e in edges if e in group]
            pairs = [crossing] if len(crossing) == 2 else []
            if len(crossing) == 4:
                ambiguous_faces.append(face)
                pairs = [(edges[i - 1], edges[i]) for i in range(4) if case >> corners[i] & 1]
            for first, second in pairs:
                joined = group[first] | group[second]
                for e in joined:
                    group[e] = joined
        distinct = []
        for e in sorted(group):
            if group[e] not in distinct:
                distinct.append(group[e])
            loop[case, e] = distinct.index(group[e])
        if len(ambiguous_faces) == 1 and len(distinct) == 1:
            ambiguous[case] = ambiguous_faces[0]
    loops = torch.from_numpy(loop.max(1) + 1).long()
    return _CaseTables(torch.from_numpy(loop), loops, torch.from_numpy(ambiguous))


def _strides(resolution: int) -> tuple[int, int, int]:
    n = resolution + 1
    return n * n, n, 1


def _corner_offsets(resolution: int) -> list[int]:
    return [sum(stride for axis, stride in enumerate(_strides(resolution)) if k >> axis & 1) for k in range(8)]


def _find(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Position of each wanted key in the sorted keys, and whether it is there."""
    position = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return position, keys[position] == wanted


def _keys(coords: Tensor, resolution: int) -> Tensor:
    dtype = torch.int32 if (resolution + 1) ** 3 < 2**31 else torch.int64
    return (coords.long() * coords.new_tensor(_strides(resolution), dtype=torch.int64)).sum(1).to(dtype)


def _coordinates(keys: Tensor, resolution: int) -> Tensor:
    n = resolution + 1
    return torch.stack((keys // (n * n), keys // n % n, keys % n), dim=1)


def extract_surface(
    coords: Tensor, fields: Tensor, resolution: int, use_color: bool = True, sdf_bias: float | None = None
) -> SurfaceMesh:
    """The zero surface of the fields of active cells.

    coords [M, 3] integer cells in 0..resolution-1, each at most once; fields [M, 101] (53 without colour). `sdf_bias` is
    added to the distances and defaults to -1 / resolution. Corner values are the mean over the active cells around a
    grid vertex; a vertex without one is outside (+1), undeformed and grey. Order of vertices and faces: by cell.
    """
    if len(coords) and (int(coords.min()) < 0 or int(coords.max()) >= resolution):
        raise ValueError(f"voxel coordinates must lie in 0..{resolution - 1}")
    bias = -1.0 / resolution if sdf_bias is None else sdf_bias
    offsets = _corner_offsets(resolution)
    active, row = torch.sort(_keys(coords, resolution))
    if bool((active[1:] == active[:-1]).any()):
        raise ValueError("an active cell is listed twice")
    vertex, sdf = _vertex_distances(active, row, fields, resolution, bias)
    cells = _crossed_cells(vertex, sdf, resolution, offsets)
    if len(cells) == 0:
        return SurfaceMesh.empty(use_color, fields.device)

    used, corners = torch.unique(torch.stack([cells + offset for offset in offsets], dim=1), return_inverse=True)
    position, known = _find(vertex, used)
    used_sdf = torch.where(known, sdf[position], 1.0)
    deform = _vertex_mean(used, active, row, fields, DEFORM, offsets)
    grid = _coordinates(used, resolution).float() / resolution - 0.5
    points = grid + (1 - 1e-8) / (2 * resolution) * torch.tanh(deform)
    color = torch.sigmoid(_vertex_mean(used, active, row, fields, COLOR, offsets)) if use_color else None
    position, known = _find(active, cells)
    weights = torch.where(known[:, None], fields[row[position], WEIGHTS].float(), 0.0)
    return dual_mesh(cells, corners, points, used_sdf, color, weights, resolution)


def _vertex_distances(
    active: Tensor, row: Tensor, fields: Tensor, resolution: int, bias: float
) -> tuple[Tensor, Tensor]:
    """Sorted keys of all corners of active cells, and the mean distance there."""
    vertex = active
    for stride in _strides(resolution):  # axis by axis: three small unions instead of one of eight copies
        vertex = torch.unique(torch.cat((vertex, vertex + stride)))
    total = torch.zeros(len(vertex), device=fields.device)
    count = torch.zeros(len(vertex), device=fields.device)
    for corner, offset in enumerate(_corner_offsets(resolution)):
        position = torch.searchsorted(vertex, active + offset)
        total[position] += fields[row, SDF.start + corner].float() + bias  # a cell has each corner once: no repeats
        count[position] += 1
    return vertex, total / count


def _crossed_cells(vertex: Tensor, sdf: Tensor, resolution: int, offsets: list[int]) -> Tensor:
    """Sorted keys of the cells, active or not, with a negative corner and one that is not."""
    negative = vertex[sdf < 0]
    cells = negative
    for stride in _strides(resolution):
        cells = torch.unique(torch.cat((cells, cells - stride)))
    cells = _within(cells, resolution)
    if len(cells) == 0:
        return cells
    negatives = torch.zeros(len(cells), dtype=torch.int8, device=vertex.device)
    for offset in offsets:
        negatives += _find(negative, cells + offset)[1]
    return cells[negatives < 8]


def _within(keys: Tensor, resolution: int) -> Tensor:
    """Only the keys that are cells of the grid."""
    n = resolution + 1
    return keys[(keys >= 0) & (keys % n < resolution) & (keys // n % n < resolution) & (keys // (n * n) < resolution)]


def _vertex_mean(
    used: Tensor, active: Tensor, row: Tensor, fields: Tensor, channels: slice, offsets: list[int]
) -> Tensor:
    """Mean over the active cells around each vertex of its 1/8 of these channels; 0 where there is no such cell."""
    width = (channels.stop - channels.start) // 8
    total = torch.zeros((len(used), width), device=fields.device)
    count = torch.zeros((len(used), 1), device=fields.device)
    for corner, offset in enumerate(offsets):
        position, known = _find(active, used - offset)
        start = channels.start + corner * width
        here = torch.nonzero(known)[:, 0]
        total[here] += fields[row[position[here]], start : start + width].float()
        count[here] += 1
    return total / count.clamp(min=1)


def dual_mesh(
    cells: Tensor,
    corners: Tensor,
    points: Tensor,
    sdf: Tensor,
    color: Tensor | None,
    weights: Tensor,
    resolution: int,
) -> SurfaceMesh:
    """Dual vertices and quads of the given cells.

    cells [C] sorted keys; corners [C, 8] rows of points [V, 3], sdf [V] and color [V, 6]; weights [C, 21] raw. A cell
    with corners on both sides must be listed; others may be.
    """
    device = cells.device
    loop, loops, ambiguous_face = (table.to(device) for table in vars(_case_tables()).values())
    inside = sdf[corners] < 0
    case = sum(inside[:, k].long() << k for k in range(8))
    case = _settle_ambiguity(cells, case, ambiguous_face, resolution)
    loop_of = loop[case]
    first_dual = torch.cumsum(loops[case], 0) - loops[case]

    duals = int(loops[case].sum())
    values = points if color is None else torch.cat((points, color), dim=1)
    total = torch.zeros((duals, values.shape[1]), device=device)
    total_weight = torch.zeros((duals, 1), device=device)
    ends = torch.tensor(EDGES, device=device)
    for block in torch.arange(len(cells), device=device).split(_CELLS):
        cell, edge = torch.nonzero(loop_of[block] >= 0, as_tuple=True)
        cell = block[cell]
        end = ends[edge]
        row = corners[cell[:, None], end]
        alpha = 1.0 + 0.99 * torch.tanh(weights[cell[:, None], _ALPHA.start + end])
        beta = 1.0 + 0.99 * torch.tanh(weights[cell, _BETA.start + edge])[:, None]
        pull = sdf[row] * alpha
        length = pull[:, 1] - pull[:, 0]
        first, second = (pull[:, 1] / length)[:, None], (-pull[:, 0] / length)[:, None]
        dual = first_dual[cell] + loop_of[cell, edge]
        total.index_add_(0, dual, (values[row[:, 0]] * first + values[row[:, 1]] * second) * beta)
        total_weight.index_add_(0, dual, beta)
    total /= total_weight

    gamma = 0.99 * torch.sigmoid(weights[:, _GAMMA]) + 0.005
    faces = _quads(cells, inside, sdf, corners, first_dual, loop_of, gamma, resolution)
    return SurfaceMesh(total[:, :3].contiguous(), faces, None if color is None else total[:, 3:].contiguous())


def _settle_ambiguity(cells: Tensor, case: Tensor, ambiguous_face: Tensor, resolution: int) -> Tensor:
    """Complement the case of marked cells whose neighbour across the ambiguous face is marked too."""
    strides = _strides(resolution)
    step = torch.tensor([strides[axis] * (2 * side - 1) for axis, side in _FACES], device=cells.device)
    face = ambiguous_face[case]
    marked = torch.nonzero(face >= 0)[:, 0]
    if len(marked) == 0:
        return case
    neighbour, known = _find(cells, cells[marked] + step[face[marked]].to(cells.dtype))
    change = marked[known & (face[neighbour] >= 0)]
    settled = case.clone()
    settled[change] = 255 - case[change]
    return settled


def _quads(
    cells: Tensor,
    inside: Tensor,
    sdf: Tensor,
    corners: Tensor,
    first_dual: Tensor,
    loop_of: Tensor,
    gamma: Tensor,
    resolution: int,
) -> Tensor:
    """Two triangles for each grid edge that the surface crosses and that has all four cells around it: int32 [F, 3]."""
    strides = _strides(resolution)
    edge_of = {frozenset(edge): index for index, edge in enumerate(EDGES)}
    triangles = []
    for axis in range(3):
        b, c = (other for other in range(3) if other != axis)
        high_end = 1 << axis
        # The edge starts at corner 0 of its last cell; the four cells lie below or at it on the other two axes.
        last = torch.nonzero(inside[:, 0] != inside[:, high_end])[:, 0]
        around, complete = [], torch.ones_like(last, dtype=torch.bool)
        for below_b, below_c in ((1, 1), (1, 0), (0, 1), (0, 0)):
            position, known = _find(cells, cells[last] - below_b * strides[b] - below_c * strides[c])
            low = below_b << b | below_c << c
            edge = edge_of[frozenset((low, low | high_end))]
            around.append((position, first_dual[position] + loop_of[position, edge]))
            complete &= known
        cell = torch.stack([position for position, _ in around], dim=1)[complete]
        dual = torch.stack([index for _, index in around], dim=1)[complete]
        first_end = high_end if axis == 1 else 0
        outside_first = sdf[corners[last[complete], first_end]] > 0
        order = torch.where(
            outside_first[:, None],
            torch.tensor([0, 1, 3, 2], device=cells.device),
            torch.tensor([2, 3, 1, 0], device=cells.device),
        )
        quad, g = dual.gather(1, order), gamma[cell].gather(1, order)
        even = g[:, 0] * g[:, 2] > g[:, 1] * g[:, 3]
        split = torch.where(
            even[:, None],
            torch.tensor([0, 1, 2, 0, 2, 3], device=cells.device),
            torch.tensor([0, 1, 3, 3, 1, 2], device=cells.device),
        )
        triangles.append(quad.gather(1, split).reshape(-1, 3))
    return torch.cat(triangles).int()
