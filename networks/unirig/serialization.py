"""Space-filling curves: the orders in which PTv3 reads a point cloud.

Morton's z-curve, and Hilbert's curve by J. Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707 (2004). A
code is `batch << 3*depth | position on the curve`; the `-trans` orders are the same curves with x and y exchanged.
"""

import torch
from torch import Tensor

ORDERS = ("z", "z-trans", "hilbert", "hilbert-trans")
MAX_DEPTH = 20  # 3 * 20 bits for the curve leave three for the batch index in an int64


def grid_coordinates(points: Tensor, grid_size: float) -> Tensor:
    """Integer cell of each point, counted from the lowest corner of the cloud: (N, 3) float -> (N, 3) int32."""
    return torch.trunc((points - points.amin(0)) / grid_size).to(torch.int32)


def curve_depth(grid_coord: Tensor) -> int:
    """Bits needed for the largest coordinate. Raises ValueError beyond MAX_DEPTH: points too far apart for the grid."""
    depth = int(grid_coord.max()).bit_length()
    if depth > MAX_DEPTH:
        raise ValueError(f"grid coordinates need {depth} bits, at most {MAX_DEPTH} fit: the grid is too fine")
    return depth


def z_curve(x: Tensor, y: Tensor, z: Tensor, depth: int) -> Tensor:
    """Interleave the bits of three int64 coordinates; per level x is the most significant of the three."""
    code = torch.zeros_like(x)
    for bit in range(depth):
        for shift, axis in ((2, x), (1, y), (0, z)):
            code |= ((axis >> bit) & 1) << (3 * bit + shift)
    return code


def hilbert_curve(x: Tensor, y: Tensor, z: Tensor, depth: int) -> Tensor:
    """Position on the Hilbert curve of 2**depth cells a side, int64: Skilling's axes-to-transpose, then interleaved."""
    axes = [x.clone(), y.clone(), z.clone()]
    for bit in range(depth - 1, 0, -1):
        low_bits = (1 << bit) - 1
        for axis in axes:
            is_set = ((axis >> bit) & 1).bool()
            swap = torch.where(is_set, 0, (axes[0] ^ axis) & low_bits)
            axes[0] ^= torch.where(is_set, low_bits, swap)
            if axis is not axes[0]:
                axis ^= swap
    axes[1] ^= axes[0]
    axes[2] ^= axes[1]
    flip = torch.zeros_like(x)
    for bit in range(depth - 1, 0, -1):
        flip ^= torch.where(((axes[2] >> bit) & 1).bool(), (1 << bit) - 1, 0)
    return z_curve(*(axis ^ flip for axis in axes), depth)


def curve_code(grid_coord: Tensor, order: str, depth: int, batch: Tensor | None = None) -> Tensor:
    """Codes of (N, 3) integer coordinates below 2**depth in one of `ORDERS`: (N,) int64; batch: (N,) int or None."""
    if order not in ORDERS:
        raise ValueError(f"order {order!r} is none of {', '.join(ORDERS)}")
    x, y, z = grid_coord.long().unbind(1)
    if order.endswith("-trans"):
        x, y = y, x
    code = (z_curve if order.startswith("z") else hilbert_curve)(x, y, z, depth)
    return code if batch is None else (batch.long() << 3 * depth) | code
