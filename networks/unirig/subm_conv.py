"""Submanifold convolution on points that may share a voxel.

UniRig does not voxelise its samples, so 3 to 44 % of them share a cell, and what a convolution does then is a property
of the kernel library (spconv 2.3.8, https://github.com/traveller59/spconv), not of the definition. On distinct voxels
all rules are the same. Every rule lets each point use its own feature on the centre tap; elsewhere one point speaks for
its voxel, the representative. With the flattened taps below the centre as first half:

native          spconv's native algorithm, all kernels on CPU and 5x5x5 on CUDA; the rule checked against spconv itself.
                First half: only the representative (the first point of the voxel) receives, and it receives the sum
                over all points of the neighbouring voxel. Second half: every point reads the neighbour's representative.
implicit_gemm   spconv's CUDA algorithm for 3x3x3, with "last writer" made definite as the highest index. First half:
                every point reads the neighbour's representative. Second half: only representatives do.
representative  Every point reads the neighbour's first point on all taps: order independent of the tap's half.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from networks.sparse import neighbour_table, voxel_keys

RULES = ("native", "implicit_gemm", "representative")


@dataclass
class Neighbourhood:
    """Which points read which, per tap, for one cloud and kernel size; see `neighbourhood`."""

    kernel_size: int
    targets: list[Tensor]  # per tap: rows that receive, int64
    sources: list[Tensor]  # per tap: rows they read, int64; empty for the centre tap
    voxel_sum_of: Tensor | None  # (N,) int64: row that collects the sum of the voxel; None: first half reads plain rows


def neighbourhood(grid_coord: Tensor, kernel_size: int, rule: str = "native") -> Neighbourhood:
    """Build the reading list of `subm_conv` once per cloud. grid_coord: (N, 3) integer; kernel_size odd."""
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is none of {', '.join(RULES)}")
    count = len(grid_coord)
    coords = torch.cat((torch.zeros_like(grid_coord[:, :1]), grid_coord), dim=1).long()
    table = neighbour_table(coords, kernel_size)
    voxels, voxel_of = torch.unique(voxel_keys(coords)[0], return_inverse=True)
    rows = torch.arange(count, device=grid_coord.device)
    pick = "amax" if rule == "implicit_gemm" else "amin"
    representative = rows.new_zeros(len(voxels)).scatter_reduce(0, voxel_of, rows, pick, include_self=False)
    speaks = representative[voxel_of] == rows
    centre = kernel_size**3 // 2
    targets, sources = [], []
    for tap in range(kernel_size**3):
        found = table[:, tap] != count
        if (rule == "native" and tap < centre) or (rule == "implicit_gemm" and tap > centre):
            found &= speaks
        target = torch.nonzero(found)[:, 0] if tap != centre else rows[:0]
        targets.append(target)
        sources.append(representative[voxel_of[table[target, tap]]])
    pooled = rule == "native" and len(voxels) < count
    return Neighbourhood(kernel_size, targets, sources, representative[voxel_of] if pooled else None)


def subm_conv(features: Tensor, weight: Tensor, bias: Tensor | None, neighbours: Neighbourhood) -> Tensor:
    """Cross-correlation on the occupied voxels: (N, in) -> (N, out).

    weight: (out, k, k, k, in), the last three spatial axes following x, y, z; bias: (out,) or None. Gather,
    multiply and scatter tap by tap, so memory stays at a few times the features.
    """
    taps = weight.flatten(1, 3).permute(1, 2, 0)
    if len(taps) != neighbours.kernel_size**3:
        raise ValueError(f"weight {tuple(weight.shape)} does not fit kernel size {neighbours.kernel_size}")
    centre = len(taps) // 2
    first_half = features
    if neighbours.voxel_sum_of is not None:
        first_half = torch.zeros_like(features).index_add_(0, neighbours.voxel_sum_of, features)
    out = features @ taps[centre] if bias is None else torch.addmm(bias, features, taps[centre])
    for tap, (target, source) in enumerate(zip(neighbours.targets, neighbours.sources, strict=True)):
        if len(target):
            out.index_add_(0, target, (first_half if tap < centre else features)[source] @ taps[tap])
    return out


class SubMConv3d(nn.Module):
    """Parameters of one submanifold convolution; keys and shapes as spconv stores them."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, kernel_size, kernel_size, kernel_size, in_channels))
        # Uniform like torch's own layers: `normal_` on the meta device imports half of torch first, for seconds.
        bound = (in_channels * kernel_size**3) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, features: Tensor, neighbours: Neighbourhood) -> Tensor:
        return subm_conv(features, self.weight, self.bias, neighbours)
