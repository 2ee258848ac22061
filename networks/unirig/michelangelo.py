"""The point-cloud encoder of both UniRig models: sampled surface points become a short sequence of latents.

Fourier features of all points are the keys and values of one cross-attention block; the queries are the features of
`token_num` points picked by farthest point sampling. Pre-norm self-attention blocks follow. State-dict keys are those
of the published checkpoints (`encoder.…`). Point sampling and Fourier features are always computed in float32: the
highest frequency turns a coordinate error 2^(num_freqs-1) times as large.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Settings that stand in published configurations and change nothing here (training, kernels, heads without use).
_LOADING = {"__target__", "pretrained_path", "freeze_encoder", "device", "dtype"}
_NO_EFFECT = {"num_latents", "embed_dim", "init_scale", "use_checkpoint", "flash", "supervision_type", "query_method"}

PRESAMPLE_FACTOR = 4  # points kept for farthest point sampling, per token
PRESAMPLE_SEED = 0


def fourier_features(x: Tensor, num_freqs: int, include_pi: bool) -> Tensor:
    """(..., D) float -> (..., D·(1 + 2·num_freqs)): [x, sin, cos] with frequencies 2^0 … 2^(num_freqs-1), times pi if
    asked; the coordinate is the slow index inside sin and cos."""
    frequencies = 2.0 ** torch.arange(num_freqs, dtype=x.dtype, device=x.device)
    if include_pi:
        frequencies = frequencies * torch.pi
    angles = (x[..., None] * frequencies).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


def presample_index(num_points: int, token_num: int) -> np.ndarray:
    """The fixed random subset farthest point sampling starts from: int64 (4·token_num,), with repeats when the cloud
    is smaller than that."""
    count = PRESAMPLE_FACTOR * token_num
    return np.random.default_rng(PRESAMPLE_SEED).choice(num_points, count, replace=count > num_points)


def farthest_point_sampling(points: np.ndarray, count: int) -> np.ndarray:
    """int64 (count,): from point 0 on, always the point farthest from those chosen (the first among equals).

    points: float32 (N, 3). Sequential and small, hence on the CPU for every device, which also keeps ties the same.
    """
    x, y, z = np.ascontiguousarray(points.T)
    distance = np.full(len(points), np.inf, dtype=points.dtype)
    chosen = np.zeros(count, dtype=np.int64)
    for i in range(1, count):
        last = chosen[i - 1]
        dx, dy, dz = x - x[last], y - y[last], z - z[last]
        np.minimum(distance, dx * dx + dy * dy + dz * dz, out=distance)
        chosen[i] = distance.argmax()
    return chosen


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class CrossAttention(nn.Module):
    """Multi-head attention whose `c_kv` rows are [k|v] of head 0, [k|v] of head 1, …"""

    def __init__(self, width: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.c_q = nn.Linear(width, width, bias=qkv_bias)
        self.c_kv = nn.Linear(width, 2 * width, bias=qkv_bias)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, data: Tensor) -> Tensor:
        q = self.c_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.c_kv(data).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(2, dim=-1)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SelfAttention(nn.Module):
    """Multi-head attention whose `c_qkv` rows are [q|k|v] of head 0, [q|k|v] of head 1, …"""

    def __init__(self, width: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_qkv(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.attn = CrossAttention(width, heads, qkv_bias)
        self.ln_1 = nn.LayerNorm(width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.ln_3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, data: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), self.ln_2(data))
        return x + self.mlp(self.ln_3(x))


class SelfAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.attn = SelfAttention(width, heads, qkv_bias)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SelfAttentionStack(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, qkv_bias: bool):
        super().__init__()
        self.resblocks = nn.ModuleList(SelfAttentionBlock(width, heads, qkv_bias) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class PointEncoder(nn.Module):
    """What stands under the `encoder.` prefix of the checkpoints."""

    def __init__(self, *, width, heads, num_encoder_layers, num_freqs, include_pi, point_feats, qkv_bias, use_ln_post):
        super().__init__()
        self.num_freqs = num_freqs
        self.include_pi = include_pi
        self.input_proj = nn.Linear(3 * (1 + 2 * num_freqs) + point_feats, width)
        self.cross_attn = CrossAttentionBlock(width, heads, qkv_bias)
        self.self_attn = SelfAttentionStack(width, heads, num_encoder_layers, qkv_bias)
        self.ln_post = nn.LayerNorm(width) if use_ln_post else None

    def project(self, points: Tensor, feats: Tensor | None) -> Tensor:
        """(B, N, 3) and (B, N, point_feats) float32 -> (B, N, width) in the dtype of the weights."""
        x = fourier_features(points.float(), self.num_freqs, self.include_pi)
        if feats is not None:
            x = torch.cat([x, feats.float()], dim=-1)
        return self.input_proj(x.to(self.input_proj.weight.dtype))

    def forward(self, queries: Tensor, data: Tensor) -> Tensor:
        x = self.self_attn(self.cross_attn(queries, data))
        return x if self.ln_post is None else self.ln_post(x)


class MichelangeloEncoder(nn.Module):
    """Points with normals -> latents.

    The arguments carry the names of the published configuration; see `from_config` for a whole configuration mapping.
    """

    def __init__(
        self,
        *,
        width: int = 512,
        heads: int = 8,
        num_encoder_layers: int = 16,
        token_num: int = 1024,
        num_freqs: int = 8,
        include_pi: bool = False,
        point_feats: int = 3,
        qkv_bias: bool = False,
        use_ln_post: bool = True,
    ):
        super().__init__()
        self.width = width
        self.token_num = token_num
        self.point_feats = point_feats
        self.encoder = PointEncoder(
            width=width,
            heads=heads,
            num_encoder_layers=num_encoder_layers,
            num_freqs=num_freqs,
            include_pi=include_pi,
            point_feats=point_feats,
            qkv_bias=qkv_bias,
            use_ln_post=use_ln_post,
        )

    @classmethod
    def from_config(cls, config: dict) -> "MichelangeloEncoder":
        """Build from a published configuration mapping. Raises TypeError on a setting we do not know."""
        if config.get("query_method"):
            raise ValueError(f"query_method={config['query_method']!r}: only sampled queries (False) are supported")
        return cls(**{name: value for name, value in config.items() if name not in _LOADING | _NO_EFFECT})

    def query_index(self, points: Tensor) -> Tensor:
        """Index of the points that become queries: (B, N, 3) -> int64 (B, token_num), in farthest-point order."""
        presample = presample_index(points.shape[1], self.token_num)
        clouds = points.detach().float().cpu().numpy()[:, presample]
        chosen = np.stack([presample[farthest_point_sampling(cloud, self.token_num)] for cloud in clouds])
        return torch.from_numpy(chosen).to(points.device)

    def forward(self, points: Tensor, feats: Tensor | None = None) -> Tensor:
        """(B, N, 3) coordinates in [-1, 1] and (B, N, point_feats) normals -> (B, token_num, width) latents.

        The order of the latents is the farthest-point order; the decoder reads it as positions.
        """
        data = self.encoder.project(points, feats)
        index = self.query_index(points)
        queries = data.gather(1, index[..., None].expand(-1, -1, data.shape[-1]))
        return self.encoder(queries, data)
