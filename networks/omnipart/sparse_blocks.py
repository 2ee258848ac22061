"""Sparse building blocks of OmniPart: pooling, residual block, group norm, subdivision, windowed attention.

Features are [N, C]; voxel coordinates [N, 4] (batch, x, y, z), where batch counts the parts of all objects.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.omnipart.layers import BLOCK_EPS, Attention, FeedForward, LayerNorm32, attend
from networks.sparse import subdivided_conv, submanifold_conv, voxel_keys

_WINDOW_TOKENS = 1 << 15  # tokens (with padding) that one call of the windowed attention handles


class SubmanifoldConv3d(nn.Module):
    """Holds the parameters of a submanifold convolution under the names of the checkpoints (`conv.weight`, KRSC)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        self.conv = nn.Module()
        self.conv.weight = nn.Parameter(torch.empty(out_channels, *[kernel_size] * 3, in_channels))
        self.conv.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_uniform_(self.conv.weight.data.movedim(-1, 1), a=5**0.5)

    def forward(self, features: Tensor, table: Tensor | None = None) -> Tensor:
        """features [N, in] -> [N, out]; a kernel of size 1 needs no table."""
        if self.conv.weight.shape[1] == 1:
            return F.linear(features, self.conv.weight.flatten(1), self.conv.bias)
        return submanifold_conv(features, self.conv.weight, self.conv.bias, table)


def pool(features: Tensor, parent: Tensor, children: Tensor) -> Tensor:
    """Sum of the children divided by their number **plus one**: the mean the checkpoints were trained with."""
    total = torch.zeros((len(children), features.shape[1]), dtype=torch.float32, device=features.device)
    total.index_add_(0, parent, features.float())
    return (total / (children[:, None] + 1)).to(features.dtype)


class SparseResBlock3d(nn.Module):
    """Residual block with a scale and shift from the time embedding; resamples first where it is told to."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int | None = None,
        downsample: bool = False,
        upsample: bool = False,
    ):
        super().__init__()
        if downsample and upsample:
            raise ValueError("a block cannot both down- and upsample")
        out_channels = out_channels or channels
        self.downsample, self.upsample = downsample, upsample
        self.norm1 = LayerNorm32(channels, eps=BLOCK_EPS)
        self.norm2 = LayerNorm32(out_channels, eps=BLOCK_EPS, elementwise_affine=False)
        self.conv1 = SubmanifoldConv3d(channels, out_channels)
        self.conv2 = SubmanifoldConv3d(out_channels, out_channels)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.skip_connection = nn.Linear(channels, out_channels) if channels != out_channels else nn.Identity()

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        emb_row: Tensor,
        table: Tensor,
        parent: Tensor | None = None,
        children: Tensor | None = None,
    ) -> Tensor:
        """x [N, C], emb [B, E], emb_row [N'] (row of emb for each voxel after resampling), table [N', 27] -> [N', C'].

        `parent` [fine] and `children` [coarse] tie the two resolutions together where the block resamples.
        """
        if self.downsample:
            x = pool(x, parent, children)
        elif self.upsample:
            x = x[parent]
        scale, shift = self.emb_layers(emb)[emb_row].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)), table)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip_connection(x) + self.conv2(F.silu(h), table)


class SparseGroupNorm32(nn.GroupNorm):
    """Group norm whose statistics run over all voxels of one batch item (a part), in float32."""

    def forward(self, features: Tensor, batch: Tensor) -> Tensor:
        items = torch.unique(batch).tolist()
        if len(items) == 1:
            return self._normalise(features)
        result = torch.empty_like(features)
        for item in items:
            rows = torch.nonzero(batch == item)[:, 0]
            result[rows] = self._normalise(features[rows])
        return result

    def _normalise(self, features: Tensor) -> Tensor:
        grouped = features.float().unflatten(1, (self.num_groups, -1))
        variance, mean = torch.var_mean(grouped, dim=(0, 2), correction=0)
        width = grouped.shape[2]
        factor = self.weight * torch.rsqrt(variance + self.eps).repeat_interleave(width)
        offset = self.bias - mean.repeat_interleave(width) * factor
        return torch.addcmul(offset, features.float(), factor).to(features.dtype)


class SparseSubdivideBlock3d(nn.Module):
    """Group norm, SiLU, split every voxel in eight, convolution, group norm, SiLU, convolution; plus a 1x1x1 skip."""

    def __init__(self, channels: int, out_channels: int | None = None, num_groups: int = 32):
        super().__init__()
        out_channels = out_channels or channels
        self.act_layers = nn.Sequential(SparseGroupNorm32(num_groups, channels), nn.SiLU())
        self.out_layers = nn.Sequential(
            SubmanifoldConv3d(channels, out_channels),
            SparseGroupNorm32(num_groups, out_channels),
            nn.SiLU(),
            SubmanifoldConv3d(out_channels, out_channels),
        )
        same_width = channels == out_channels
        self.skip_connection = nn.Identity() if same_width else SubmanifoldConv3d(channels, out_channels, 1)

    def forward(self, x: Tensor, batch: Tensor, table: Tensor, fine_table: Tensor) -> Tensor:
        """x [N, C], batch [N], table [N, 27] of these voxels and [8·N, 27] of the subdivided ones -> [8·N, C']."""
        norm, _ = self.act_layers
        first, fine_norm, _, second = self.out_layers
        h = F.silu(norm(x, batch), inplace=True)
        h = subdivided_conv(h, first.conv.weight, first.conv.bias, table)
        h = F.silu(fine_norm(h, batch.repeat_interleave(8)), inplace=True)
        h = second(h, fine_table)
        return (h.unflatten(0, (-1, 8)) + self.skip_connection(x)[:, None]).flatten(0, 1)


@dataclass(frozen=True)
class WindowPlan:
    """Which voxels attend to each other: per bucket, rows [windows, capacity] and which of them are real."""

    buckets: list[tuple[Tensor, Tensor]]


def plan_windows(coords: Tensor, window_size: int, shift: int) -> WindowPlan:
    """Group voxels by (batch, (coordinate + shift) // window_size), windows of similar size in one padded bucket.

    The capacities are powers of two, so at most half a bucket is padding and there are few of them.
    """
    window = torch.cat((coords[:, :1], (coords[:, 1:] + shift) // window_size), dim=1)
    _, label, sizes = torch.unique(voxel_keys(window)[0], return_inverse=True, return_counts=True)
    order = torch.argsort(label, stable=True)
    starts = torch.cumsum(sizes, 0) - sizes
    buckets = []
    capacity = 1
    while len(sizes) and capacity // 2 < int(sizes.max()):
        chosen = torch.nonzero((sizes <= capacity) & (sizes > capacity // 2))[:, 0]
        for some in chosen.split(max(1, _WINDOW_TOKENS // capacity)) if len(chosen) else ():
            slot = torch.arange(capacity, device=coords.device)
            real = slot < sizes[some, None]
            rows = order[torch.where(real, starts[some, None] + slot, starts[some, None])]
            buckets.append((rows, real))
        capacity *= 2
    return WindowPlan(buckets)


class WindowAttention(Attention):
    """Self-attention inside the windows of a plan."""

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """x [N, C] -> [N, C]."""
        q, k, v = self.project(x)
        mixed = torch.empty_like(x)
        for rows, real in plan.buckets:
            out = attend(q[rows], k[rows], v[rows], mask=real[:, None, None, :])
            mixed[rows[real]] = out.flatten(-2)[real]
        return self.to_out(mixed)


class WindowBlock(nn.Module):
    """Pre-norm transformer block of the decoders: windowed self-attention and MLP."""

    def __init__(self, channels: int, heads: int, mlp_ratio: float, qk_rms_norm: bool = False):
        super().__init__()
        self.norm1 = LayerNorm32(channels, eps=BLOCK_EPS, elementwise_affine=False)
        self.norm2 = LayerNorm32(channels, eps=BLOCK_EPS, elementwise_affine=False)
        self.attn = WindowAttention(channels, heads, qk_rms_norm=qk_rms_norm)
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        x = x + self.attn(self.norm1(x), plan)
        return x + self.mlp(self.norm2(x))
