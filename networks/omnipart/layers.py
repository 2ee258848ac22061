"""Layers that the dense and the sparse transformers of OmniPart share.

Norms, the q/k norm, embeddings and the first and last linear layer of a network run in float32; only the torso (its
blocks) runs in the dtype it is given by `set_torso_dtype`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_EPS = 1e-6  # layer norms inside blocks
OUTPUT_EPS = 1e-5  # layer norms without parameters in front of an output layer, and channel norms of the decoders


class LayerNorm32(nn.LayerNorm):
    """Layer norm over the last axis, computed in float32 and returned in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class ChannelLayerNorm32(LayerNorm32):
    """Layer norm over axis 1 of [B, C, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1).contiguous()


def set_torso_dtype(model: nn.Module, torso: list[nn.Module], dtype: torch.dtype) -> None:
    """Give the linear layers and convolutions of `torso` this dtype and everything else of `model` float32."""
    in_torso = {
        id(parameter)
        for part in torso
        for module in part.modules()
        if not isinstance(module, (nn.LayerNorm, nn.GroupNorm, MultiHeadRMSNorm))
        for parameter in module.parameters(recurse=False)
    }
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.to(dtype if id(tensor) in in_torso else torch.float32)
    model.torso_dtype = dtype


def absolute_position_embedding(coords: Tensor, channels: int) -> Tensor:
    """Sine embedding of integer coordinates: coords [N, 3] -> float32 [N, channels].

    f = channels // 3 // 2 frequencies 10000^(-k/f); an axis is [f sines, f cosines], the axes follow each other and
    what is left of the width is zero.
    """
    count = channels // 3 // 2
    frequency = torch.arange(count, dtype=torch.float32, device=coords.device) / count
    frequency = 1.0 / 10000.0**frequency
    angle = coords.float()[:, :, None] * frequency
    embedding = torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(1)
    return F.pad(embedding, (0, channels - embedding.shape[1]))


class TimestepEmbedder(nn.Module):
    """Diffusion time (0..1000) -> [B, channels]: cosines then sines of 128 frequencies, and a two-layer MLP."""

    def __init__(self, channels: int, frequencies: int = 256):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequencies // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angle = t.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
        return self.mlp(torch.cat((angle.cos(), angle.sin()), dim=-1))


class MultiHeadRMSNorm(nn.Module):
    """L2-normalise the last axis of [..., heads, dim], times gamma and sqrt(dim), in float32."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, dim))

    def forward(self, x: Tensor) -> Tensor:
        scale = math.sqrt(x.shape[-1])
        return (F.normalize(x.float(), dim=-1, eps=1e-12) * self.gamma.float() * scale).to(x.dtype)


class Attention(nn.Module):
    """Projections of a multi-head attention; the caller decides which tokens see each other.

    `project` and `attend` work on tokens [..., N, C]; heads come after the token axis and the fused projection is
    three-major: [..., N, 3, heads, dim].
    """

    def __init__(self, channels: int, heads: int, context_channels: int | None = None, qk_rms_norm: bool = False):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads")
        self.heads, self.qk_rms_norm = heads, qk_rms_norm
        if context_channels is None:
            self.to_qkv = nn.Linear(channels, 3 * channels)
        else:
            self.to_q = nn.Linear(channels, channels)
            self.to_kv = nn.Linear(context_channels, 2 * channels)
        if qk_rms_norm:
            self.q_rms_norm = MultiHeadRMSNorm(channels // heads, heads)
            self.k_rms_norm = MultiHeadRMSNorm(channels // heads, heads)
        self.to_out = nn.Linear(channels, channels)

    def project(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as [..., tokens, heads, dim]; keys and values come from `context` where one is given."""
        if context is None:
            q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        else:
            q = self.to_q(x).unflatten(-1, (self.heads, -1))
            k, v = self.to_kv(context).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        if self.qk_rms_norm:
            q, k = self.q_rms_norm(q), self.k_rms_norm(k)
        return q, k, v

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B, N, C], context [B, M, C'] -> [B, N, C]."""
        return self.to_out(attend(*self.project(x, context)).flatten(-2))

    def forward_packed(self, x: Tensor, lengths: list[int], context: Tensor | None = None) -> Tensor:
        """x [N, C] holds len(lengths) items one after another; each sees only itself, or its own context[i]."""
        q, k, v = self.project(x, context)
        items = []
        for i, query in enumerate(q.split(lengths)):
            if context is None:
                start = sum(lengths[:i])
                key, value = k[start : start + lengths[i]], v[start : start + lengths[i]]
            else:
                key, value = k[i], v[i]
            items.append(attend(query[None], key[None], value[None])[0])
        return self.to_out(torch.cat(items).flatten(-2))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of [B, tokens, heads, dim]; mask [B, 1, 1, keys] is True where a key is real."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, tanh GELU, Linear."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        hidden = int(channels * ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU("tanh"), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class ModulatedCrossBlock(nn.Module):
    """Transformer block of the flows: modulated self-attention, cross-attention, modulated MLP (Peebles & Xie 2023).

    `modulation` [B, C] is the time embedding. Dense: x [B, N, C]. Packed: x [N, C] with `lengths`, the rows of the B
    objects one after another.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        heads: int,
        mlp_ratio: float,
        qk_rms_norm: bool,
        qk_rms_norm_cross: bool,
    ):
        super().__init__()
        self.norm1 = LayerNorm32(channels, eps=BLOCK_EPS, elementwise_affine=False)
        self.norm2 = LayerNorm32(channels, eps=BLOCK_EPS)
        self.norm3 = LayerNorm32(channels, eps=BLOCK_EPS, elementwise_affine=False)
        self.self_attn = Attention(channels, heads, qk_rms_norm=qk_rms_norm)
        self.cross_attn = Attention(channels, heads, context_channels, qk_rms_norm=qk_rms_norm_cross)
        self.mlp = FeedForward(channels, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))

    def forward(self, x: Tensor, modulation: Tensor, context: Tensor, lengths: list[int] | None = None) -> Tensor:
        modulation = self.adaLN_modulation(modulation)
        if lengths is None:
            modulation = modulation[:, None]
        elif len(lengths) > 1:  # one object's row of modulation fits all rows by broadcasting
            modulation = torch.repeat_interleave(modulation, torch.tensor(lengths, device=x.device), dim=0)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        h = self.norm1(x) * (1 + scale1) + shift1
        h = self.self_attn(h) if lengths is None else self.self_attn.forward_packed(h, lengths)
        x = x + h * gate1
        h = self.norm2(x)
        h = self.cross_attn(h, context) if lengths is None else self.cross_attn.forward_packed(h, lengths, context)
        x = x + h
        h = self.norm3(x) * (1 + scale2) + shift2
        return x + self.mlp(h) * gate2
