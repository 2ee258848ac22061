"""PTv3Object: UniRig's point transformer, all stages at full resolution.

X. Wu et al., "Point Transformer V3: Simpler, Faster, Stronger" (CVPR 2024), without pooling and without decoder: the
cloud is put in order along four space-filling curves, and each block attends within patches of one of these orders.
State-dict keys are those of the published skin checkpoint under `mesh_encoder.`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.unirig.serialization import ORDERS, curve_code, curve_depth, grid_coordinates
from networks.unirig.subm_conv import Neighbourhood, SubMConv3d, neighbourhood

STEM_KERNEL, BLOCK_KERNEL = 5, 3
BATCH_NORM_EPS = 1e-3

# Settings of published configurations that change nothing at inference in float32.
_WITHOUT_EFFECT = frozenset(
    ("__target__", "pretrained_path", "freeze_encoder", "drop_path", "upcast_attention", "upcast_softmax")
)
_UNSUPPORTED = ("cls_mode", "layer_norm")  # known by name only; the published configuration has both off


@dataclass
class Serialization:
    """One order of the points cut into patches of equal length."""

    patched: Tensor  # (P * K,) int64: point at each position, the tail of the last patch filled from the one before
    position: Tensor  # (N,) int64: where each point's own result lies
    patch_size: int


def patch_indices(count: int, patch_size: int, device=None) -> tuple[Tensor, Tensor, int]:
    """(pad (P*K,), unpad (N,), K): positions in a sorted list of N = `count` points, cut into patches of
    K = min(patch_size, N). The last patch is completed with the entries one patch earlier; `unpad` finds the real ones.
    """
    size = min(patch_size, count)
    pad = torch.arange(-(-count // size) * size, device=device)
    return torch.where(pad < count, pad, pad - size), torch.arange(count, device=device), size


def patch_serialization(order: Tensor, patch_size: int) -> Serialization:
    """order: (N,) int64, the points sorted along a curve."""
    pad, unpad, size = patch_indices(len(order), patch_size, order.device)
    position = torch.empty_like(order)
    position[order] = unpad
    return Serialization(order[pad], position, size)


class PatchAttention(nn.Module):
    """Self-attention within patches; `qkv` rows are q of all heads, then k, then v. q and k are normalised over the
    head channels (no parameters) before the scaled product."""

    def __init__(self, channels: int, heads: int, qk_norm: bool, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.qk_norm = qk_norm
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, serialization: Serialization) -> Tensor:
        channels = x.shape[1]
        qkv = self.qkv(x)[serialization.patched].unflatten(0, (-1, serialization.patch_size))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (P, heads, K, channels / heads)
        if self.qk_norm:
            q, k = F.layer_norm(q, q.shape[-1:]), F.layer_norm(k, k.shape[-1:])
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, channels)
        return self.proj(out[serialization.position])


class MLP(nn.Module):
    def __init__(self, channels: int, ratio: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, ratio * channels)
        self.fc2 = nn.Linear(ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Convolution as positional encoding, patch attention, MLP; each added to its input, the last two pre-norm."""

    def __init__(self, channels: int, heads: int, mlp_ratio: int, qk_norm: bool, qkv_bias: bool):
        super().__init__()
        self.cpe = nn.Sequential(
            SubMConv3d(channels, channels, BLOCK_KERNEL), nn.Linear(channels, channels), nn.LayerNorm(channels)
        )
        self.norm1 = nn.Sequential(nn.LayerNorm(channels))
        self.attn = PatchAttention(channels, heads, qk_norm, qkv_bias)
        self.norm2 = nn.Sequential(nn.LayerNorm(channels))
        self.mlp = nn.Sequential(MLP(channels, mlp_ratio))

    def position_branch(self, x: Tensor, neighbours: Neighbourhood) -> Tensor:
        conv, linear, norm = self.cpe
        return norm(linear(conv(x, neighbours)))

    def attention_branch(self, x: Tensor, serialization: Serialization) -> Tensor:
        return self.attn(self.norm1(x), serialization)

    def forward(self, x: Tensor, neighbours: Neighbourhood, serialization: Serialization) -> Tensor:
        x = x + self.position_branch(x, neighbours)
        x = x + self.attention_branch(x, serialization)
        return x + self.mlp(self.norm2(x))


class Stem(nn.Module):
    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv = SubMConv3d(in_channels, channels, STEM_KERNEL, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=BATCH_NORM_EPS)


class Embedding(nn.Module):
    """5x5x5 convolution, batch norm, GELU, plus (after the activation) a linear map of the raw features."""

    def __init__(self, in_channels: int, channels: int, res_linear: bool):
        super().__init__()
        self.stem = Stem(in_channels, channels)
        self.res_linear = nn.Linear(in_channels, channels) if res_linear else None

    def forward(self, feat: Tensor, neighbours: Neighbourhood) -> Tensor:
        x = F.gelu(self.stem.norm(self.stem.conv(feat, neighbours)))
        return x if self.res_linear is None else x + self.res_linear(feat)


class PTv3Object(nn.Module):
    """A cloud of points with features -> one feature vector a point.

    The arguments carry the names of the published configuration; `enc_patch_size` is one number or one a stage.
    `duplicate_rule` says what the convolutions do with points that share a voxel, see `subm_conv.RULES`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 9,
        order: tuple[str, ...] = ORDERS,
        enc_depths: tuple[int, ...] = (3, 3, 3, 6, 16),
        enc_channels: tuple[int, ...] = (32, 64, 128, 256, 384),
        enc_num_head: tuple[int, ...] = (2, 4, 8, 16, 24),
        enc_patch_size: int | tuple[int, ...] = 1024,
        mlp_ratio: int = 4,
        qkv_bias: bool = True,
        enable_qknorm: bool = True,
        res_linear: bool = True,
        shuffle_orders: bool = True,
        grid_size: float = 0.005,
        duplicate_rule: str = "native",
    ):
        super().__init__()
        stages = len(enc_depths)
        if isinstance(enc_patch_size, int):
            enc_patch_size = (enc_patch_size,) * stages
        if not len(enc_channels) == len(enc_num_head) == len(enc_patch_size) == stages:
            raise ValueError(f"enc_channels, enc_num_head, enc_patch_size must have {stages} entries, like enc_depths")
        self.order = tuple(order)
        self.patch_sizes = tuple(enc_patch_size)
        self.shuffle_orders = shuffle_orders
        self.grid_size = grid_size
        self.duplicate_rule = duplicate_rule
        self.out_channels = enc_channels[-1]
        self.embedding = Embedding(in_channels, enc_channels[0], res_linear)
        self.enc = nn.Sequential()
        previous = enc_channels[0]
        for s, (depth, channels, heads) in enumerate(zip(enc_depths, enc_channels, enc_num_head, strict=True)):
            stage = nn.Sequential()
            if s > 0:
                stage.append(nn.Linear(previous, channels))
            for i in range(depth):
                stage.add_module(f"block{i}", Block(channels, heads, mlp_ratio, enable_qknorm, qkv_bias))
            self.enc.add_module(f"enc{s}", stage)
            previous = channels

    @classmethod
    def from_config(cls, config: dict, **overrides) -> "PTv3Object":
        """Build from a published configuration mapping. Raises TypeError or ValueError on what we do not support."""
        for name in _UNSUPPORTED:
            if config.get(name):
                raise ValueError(f"{name}={config[name]!r}: only {name}=False is supported")
        ignored = _WITHOUT_EFFECT.union(_UNSUPPORTED)
        return cls(**{name: value for name, value in config.items() if name not in ignored} | overrides)

    def serialize(self, coord: Tensor, order_perm: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(grid (N, 3) int32, codes (O, N) int64, orders (O, N) int64); row j belongs to `order[order_perm[j]]`.

        Equal codes keep the order of the points (stable sort). Without `order_perm` the rows are in order, or shuffled
        by torch's global generator when `shuffle_orders` is set.
        """
        grid = grid_coordinates(coord, self.grid_size)
        depth = curve_depth(grid)
        if order_perm is None:
            order_perm = torch.randperm(len(self.order)) if self.shuffle_orders else torch.arange(len(self.order))
        codes = torch.stack([curve_code(grid, self.order[i], depth) for i in order_perm.tolist()])
        return grid, codes, torch.argsort(codes, dim=1, stable=True)

    def forward(
        self,
        coord: Tensor,
        feat: Tensor,
        order_perm: Tensor | None = None,
        serialized_order: Tensor | None = None,
    ) -> Tensor:
        """coord (N, 3) float32, feat (N, in_channels) -> (N, out_channels).

        `order_perm` and `serialized_order` (O, N): see `serialize`, which makes them when they are not given.
        """
        grid, _, orders = self.serialize(coord, order_perm)
        if serialized_order is not None:
            orders = serialized_order
        x = self.embedding(feat, neighbourhood(grid, STEM_KERNEL, self.duplicate_rule))
        neighbours = neighbourhood(grid, BLOCK_KERNEL, self.duplicate_rule)
        for stage, patch_size in zip(self.enc, self.patch_sizes, strict=True):
            serializations = [patch_serialization(order, patch_size) for order in orders]
            blocks = list(stage)
            if isinstance(blocks[0], nn.Linear):
                x = blocks.pop(0)(x)
            for i, block in enumerate(blocks):
                x = block(x, neighbours, serializations[i % len(serializations)])
        return x
