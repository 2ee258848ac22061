"""Sparse voxel features: a neighbour table and the submanifold convolution that reads it.

Voxels are rows of an integer tensor with columns (batch, x, y, z) and a feature matrix [N, C] beside it. Kernel taps
are flattened with k0 slowest and k2 fastest, and k0, k1, k2 follow x, y, z. Weights are KRSC: [out, k0, k1, k2, in],
as spconv stores them (https://github.com/traveller59/spconv, B. Graham et al., "3D Semantic Segmentation with
Submanifold Sparse Convolutional Networks", CVPR 2018).
"""

import torch
from torch import Tensor

_TAP_ROWS = 1 << 17  # rows gathered at once for one tap: bounds the temporaries to _TAP_ROWS x channels


def voxel_keys(coords: Tensor, margin: int = 0) -> tuple[Tensor, tuple[int, int]]:
    """One int64 key a voxel, ordered like the rows (batch, x, y, z), and the key strides of x and y (z's is 1).

    `margin` cells stay free around the bounding box, so that key + offset never wraps into another row of voxels.
    Raises ValueError when coords is not an integer [N, 4] tensor or its box has more than 2**63 cells.
    """
    if coords.ndim != 2 or coords.shape[1] != 4 or coords.is_floating_point():
        raise ValueError(f"coords must be an integer tensor [N, 4] (batch, x, y, z), got {tuple(coords.shape)}")
    if len(coords) == 0:
        return coords.new_zeros(0, dtype=torch.int64), (1, 1)
    coords = coords.long()
    low, high = torch.stack((coords.amin(0), coords.amax(0))).tolist()
    size = [high[i] - low[i] + 1 + (2 * margin if i else 0) for i in range(4)]
    if size[0] * size[1] * size[2] * size[3] >= 2**63:
        raise ValueError(f"the voxels' bounding box {size} is too large to index")
    batch, x, y, z = ((coords - coords.new_tensor(low)) + coords.new_tensor([0, margin, margin, margin])).unbind(1)
    return ((batch * size[1] + x) * size[2] + y) * size[3] + z, (size[2] * size[3], size[3])


def neighbour_table(coords: Tensor, kernel_size: int = 3) -> Tensor:
    """Row index of every voxel's neighbour under each kernel tap; N where there is none.

    coords [N, 4] integer (batch, x, y, z); returns int64 [N, kernel_size**3]. Each column is contiguous in memory. The
    centre tap is the voxel itself. Where several rows share a voxel, other voxels see the first of them.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    count, radius = len(coords), kernel_size // 2
    keys, (stride_x, stride_y) = voxel_keys(coords, margin=radius)
    # The table is made for distinct voxels in key order: lookups then walk memory forwards.
    keys, order = torch.sort(keys, stable=True)
    is_first = torch.ones_like(keys, dtype=torch.bool)
    is_first[1:] = keys[1:] != keys[:-1]
    distinct, first_row = keys[is_first], order[is_first]
    taps = kernel_size**3
    table = torch.full((taps, len(distinct)), len(distinct), dtype=torch.int64, device=coords.device)
    table[taps // 2] = torch.arange(len(distinct), device=coords.device)
    for dx in range(-radius, 1):
        for dy in range(-radius, radius + 1):
            if dx < 0 or dy < 0:
                _fill_run(table, distinct, dx, dy, range(-radius, radius + 1), kernel_size, stride_x, stride_y)
            elif dy == 0:
                _fill_run(table, distinct, 0, 0, range(-radius, 0), kernel_size, stride_x, stride_y)
    if len(distinct) == count:
        return _in_input_order(table, order, first_row, count)
    voxel_of_row = torch.empty_like(order)
    voxel_of_row[order] = torch.cumsum(is_first, 0) - 1
    rows = torch.cat((first_row, first_row.new_tensor([count])))
    full = rows[table][:, voxel_of_row]
    full[taps // 2] = torch.arange(count, device=coords.device)
    return full.T


def _fill_run(
    table: Tensor, keys: Tensor, dx: int, dy: int, run: range, kernel_size: int, stride_x: int, stride_y: int
) -> None:
    """Write the taps (dx, dy, run) and their mirror images: one binary search, then steps along z in sorted keys."""
    radius, count = kernel_size // 2, len(keys)
    if count == 0:
        return
    target = keys + (dx * stride_x + dy * stride_y + run.start)
    position = torch.searchsorted(keys, target)
    for dz in run:
        found = keys[position.clamp(max=count - 1)] == target
        here = torch.nonzero(found)[:, 0]
        there = position[here]
        tap = ((dx + radius) * kernel_size + dy + radius) * kernel_size + dz + radius
        table[tap, here] = there
        table[kernel_size**3 - 1 - tap, there] = here
        position = position + found
        target = target + 1


def _in_input_order(table: Tensor, order: Tensor, first_row: Tensor, count: int) -> Tensor:
    rows = torch.cat((first_row, first_row.new_tensor([count])))
    result = torch.empty_like(table)
    for tap in range(len(table)):  # tap by tap: one column's worth of temporaries
        result[tap, order] = rows[table[tap]]
    return result.T


def submanifold_conv(features: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor) -> Tensor:
    """Submanifold sparse convolution: output at p sums weight[:, a, b, c] . features(p + (a, b, c) - k // 2).

    features [N, in]; weight [out, k, k, k, in]; bias [out] or None; table [N, k**3] from `neighbour_table`. Returns
    [N, out] in the dtype of features. Taps are gathered, multiplied and added one by one; with half precision features
    the sum is kept in float32. Equals a dense zero-padded cross-correlation read at the occupied voxels.
    """
    taps = weight.flatten(1, 3).permute(1, 2, 0)  # [k**3, in, out]
    count = len(features)
    if table.shape != (count, len(taps)) or features.shape[1] != taps.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)}, weight {tuple(weight.shape)} and table {tuple(table.shape)} do not fit"
        )
    centre = len(taps) // 2
    accumulator = _accumulator(features)
    total = (features @ taps[centre]).to(accumulator)
    for tap in range(len(taps)):
        if tap == centre:
            continue
        column = table[:, tap]
        rows = torch.nonzero(column != count)[:, 0]
        for part in rows.split(_TAP_ROWS):
            total.index_add_(0, part, (features[column[part]] @ taps[tap]).to(accumulator))
    if bias is not None:
        total += bias.to(accumulator)
    return total.to(features.dtype)


def _accumulator(features: Tensor) -> torch.dtype:
    return torch.float32 if features.dtype in (torch.float16, torch.bfloat16) else features.dtype


def downsample_coords(coords: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Halve the resolution: coords [N, 4] -> coarse [M, 4] sorted by (batch, x, y, z), parent [N], children [M].

    `parent` is each voxel's row in coarse, `children` how many rows share a coarse voxel.
    """
    halved = torch.cat((coords[:, :1], coords[:, 1:] // 2), dim=1)
    keys, _ = voxel_keys(halved)
    distinct, parent, children = torch.unique(keys, return_inverse=True, return_counts=True)
    coarse = coords.new_empty((len(distinct), 4))
    coarse[parent] = halved
    return coarse, parent, children


def subdivide_coords(coords: Tensor) -> Tensor:
    """Split every voxel in eight: [N, 4] -> [8·N, 4], children 2c + (i, j, k) with k fastest."""
    child = torch.cartesian_prod(*[torch.arange(2, dtype=coords.dtype, device=coords.device)] * 3)
    fine = coords[:, None, 1:] * 2 + child
    return torch.cat((coords[:, None, :1].expand(-1, 8, -1), fine), dim=-1).flatten(0, 1)


def subdivide_table(table: Tensor) -> Tensor:
    """The 3x3x3 neighbour table of `subdivide_coords(coords)` from that of coords: [N, 27] -> [8·N, 27].

    All eight children exist, so a child's neighbour is a child of its parent's neighbour: nothing is searched.
    """
    count = len(table)
    coarse_tap, sibling = _child_taps()
    fine = torch.empty((27, count, 8), dtype=torch.int64, device=table.device)
    for child in range(8):
        for tap in range(27):
            parent = table[:, coarse_tap[child][tap]]
            fine[tap, :, child] = torch.where(parent < count, parent * 8 + sibling[child][tap], 8 * count)
    return fine.flatten(1).T


def subdivided_conv(features: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor) -> Tensor:
    """The 3x3x3 `submanifold_conv` of the subdivided voxels whose children all carry their parent's features.

    features [N, in] and table [N, 27] are those of the parents; returns [8·N, out], children as in `subdivide_coords`.
    A child's 27 taps fall on at most 8 parents, so the taps that share a parent are added up first: a third of the
    multiplications, and neither the repeated features nor a table of the children.
    """
    accumulator = _accumulator(features)
    out_channels, count = weight.shape[0], len(features)
    taps = weight.flatten(1, 3).permute(1, 2, 0).to(accumulator)
    coarse_tap, _ = _child_taps()
    summed = taps.new_zeros((27, 8, *taps.shape[1:]))
    for child in range(8):
        summed[:, child].index_add_(0, torch.tensor(coarse_tap[child], device=taps.device), taps)
    summed = summed.to(features.dtype)
    total = torch.zeros((count, 8, out_channels), dtype=accumulator, device=features.device)
    for tap in range(27):
        children = [child for child in range(8) if tap in coarse_tap[child]]
        wide = summed[tap, children].transpose(0, 1).flatten(1)  # [in, children x out]
        column = table[:, tap]
        for rows in torch.nonzero(column != count)[:, 0].split(_TAP_ROWS):
            product = (features[column[rows]] @ wide).to(accumulator)
            for child, part in zip(children, product.split(out_channels, dim=1), strict=True):
                total[:, child].index_add_(0, rows, part)
    if bias is not None:
        total += bias.to(accumulator)
    return total.flatten(0, 1).to(features.dtype)


def _child_taps() -> tuple[list[list[int]], list[list[int]]]:
    """For child 0..7 and fine tap 0..26: the tap of its parent's neighbour, and which child of it."""
    tap = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    child = torch.cartesian_prod(*[torch.arange(2)] * 3)
    fine = child[:, None] + tap  # position in units of fine cells, from the parent's low corner
    step = fine.div(2, rounding_mode="floor")
    place = torch.tensor([9, 3, 1])
    return ((step + 1) * place).sum(-1).tolist(), ((fine - 2 * step) * torch.tensor([4, 2, 1])).sum(-1).tolist()
