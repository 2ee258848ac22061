"""Stage one of the 3D generation: a rectified flow over a coarse dense latent, and its decoder to occupied voxels.

The architecture is TRELLIS' (Xiang et al. 2024, "Structured 3D Latents for Scalable and Versatile 3D Generation").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.omnipart.layers import (
    OUTPUT_EPS,
    ChannelLayerNorm32,
    ModulatedCrossBlock,
    TimestepEmbedder,
    absolute_position_embedding,
    set_torso_dtype,
)


def head_count(channels: int, num_heads: int | None, num_head_channels: int | None) -> int:
    """Number of heads from the two ways a checkpoint's configuration may state it."""
    if num_heads is None and num_head_channels is None:
        raise ValueError("either num_heads or num_head_channels must be given")
    return num_heads if num_heads is not None else channels // num_head_channels


class SparseStructureFlowModel(nn.Module):
    """Velocity of the dense latent: x [B, in, R, R, R], t [B] (0..1000), cond [B, M, cond] -> [B, out, R, R, R]."""

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        cond_channels: int,
        out_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4,
        patch_size: int = 1,
        pe_mode: str = "ape",
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ):
        super().__init__()
        if pe_mode != "ape":
            raise ValueError(f"pe_mode {pe_mode!r}: only the absolute position embedding 'ape' is supported")
        if resolution % patch_size:
            raise ValueError(f"resolution {resolution} is no multiple of patch_size {patch_size}")
        heads = head_count(model_channels, num_heads, num_head_channels)
        self.resolution, self.in_channels, self.out_channels = resolution, in_channels, out_channels
        self.patch_size = patch_size
        self.torso_dtype = torch.float32
        side = resolution // patch_size
        axes = torch.arange(side, device="cpu")
        grid = torch.cartesian_prod(axes, axes, axes).reshape(-1, 3)
        self.register_buffer("pos_emb", absolute_position_embedding(grid, model_channels))
        self.t_embedder = TimestepEmbedder(model_channels)
        self.input_layer = nn.Linear(in_channels * patch_size**3, model_channels)
        self.blocks = nn.ModuleList(
            ModulatedCrossBlock(model_channels, cond_channels, heads, mlp_ratio, qk_rms_norm, qk_rms_norm_cross)
            for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels * patch_size**3)

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        set_torso_dtype(self, [self.blocks], dtype)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        h = self.input_layer(_patchify(x.float(), self.patch_size)) + self.pos_emb
        modulation = self.t_embedder(t).to(self.torso_dtype)
        h, context = h.to(self.torso_dtype), cond.to(self.torso_dtype)
        for block in self.blocks:
            h = block(h, modulation, context)
        h = h.float()
        h = self.out_layer(F.layer_norm(h, h.shape[-1:], eps=OUTPUT_EPS))
        return _unpatchify(h, self.patch_size, self.resolution).to(x.dtype)


def _patchify(x: Tensor, patch: int) -> Tensor:
    """[B, C, R, R, R] -> [B, (R/p)^3, C·p^3], tokens and the cells of a patch row-major."""
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def _unpatchify(tokens: Tensor, patch: int, resolution: int) -> Tensor:
    side = resolution // patch
    x = tokens.unflatten(2, (-1, patch, patch, patch)).unflatten(1, (side, side, side))
    return x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)


class ResBlock3d(nn.Module):
    """(channel norm, SiLU, 3x3x3 convolution) twice, plus the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = ChannelLayerNorm32(channels, eps=OUTPUT_EPS)
        self.norm2 = ChannelLayerNorm32(channels, eps=OUTPUT_EPS)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class UpsampleBlock3d(nn.Module):
    """Convolution to eight times the channels, then a 3-D pixel shuffle (channel index = c·8 + i·4 + j·2 + k)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels * 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).unflatten(1, (-1, 2, 2, 2))
        return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6).flatten(4, 5).flatten(2, 3)


class SparseStructureDecoder(nn.Module):
    """Latent [B, latent, R, R, R] -> occupancy logits [B, out, sR, sR, sR] with s = 2^(levels - 1)."""

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: list[int],
        num_res_blocks_middle: int = 2,
        norm_type: str = "layer",
    ):
        super().__init__()
        if norm_type != "layer":
            raise ValueError(f"norm_type {norm_type!r}: only 'layer' is supported")
        self.torso_dtype = torch.float32
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(*(ResBlock3d(channels[0]) for _ in range(num_res_blocks_middle)))
        self.blocks = nn.ModuleList()
        for level, width in enumerate(channels):
            self.blocks.extend(ResBlock3d(width) for _ in range(num_res_blocks))
            if level + 1 < len(channels):
                self.blocks.append(UpsampleBlock3d(width, channels[level + 1]))
        self.out_layer = nn.Sequential(
            ChannelLayerNorm32(channels[-1], eps=OUTPUT_EPS),
            nn.SiLU(),
            nn.Conv3d(channels[-1], out_channels, 3, padding=1),
        )

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        set_torso_dtype(self, [self.blocks, self.middle_block], dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle_block(self.input_layer(x.float()).to(self.torso_dtype))
        for block in self.blocks:
            h = block(h)
        return self.out_layer(h.float()).to(x.dtype)


def occupied_voxels(logits: Tensor) -> Tensor:
    """logits [B, 1, R, R, R] -> int32 [N, 4] (batch, x, y, z) where the logit is positive, in row-major order."""
    return torch.argwhere(logits > 0)[:, [0, 2, 3, 4]].int()
