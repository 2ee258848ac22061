"""PartField's point encoder: features that tell the parts of a shape apart, read from three feature planes.

Points go through one point-voxel convolution (Liu et al., "Point-Voxel CNN", 2019), are averaged onto the planes xy, yz
and xz, and the planes pass a UNet and a transformer (Liu et al., "PartField", 2025). The published weights are for
non-commercial use. State-dict keys are those of the published checkpoint; its parts that inference does not use
(`UNUSED_PREFIXES`) have no place here.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.omnipart.part_layout import voxel_points
from shared_utils.errors import InvalidInputError

UNUSED_PREFIXES = (
    "logit_scale",
    "sdf_decoder.",
    "pvcnn.pc_encoder.encoder.1.",
    "pvcnn.pc_encoder.encoder.2.",
    "pvcnn.pc_encoder.encoder.3.",
)
POINT_SCALE = 1.8  # from the unit cube [-0.5, 0.5]^3 to PartField's [-0.9, 0.9]^3
POINT_CHANNELS = 8  # position, doubled position, two zeros
PLANE_AXES = ((0, 1), (1, 2), (0, 2))  # the axes (column, row) of the planes xy, yz, xz
PLANE_SHRINK = 1 + 1e-5
PLANE_MAX = 1 - 1e-5
HEAD_DIM = 128  # of the transformer


def to_partfield_space(points: Tensor) -> Tensor:
    """Points [..., 3] of the unit cube, z up, to PartField's axes and scale: (x, y, z) -> 1.8 (x, z, -y)."""
    x, y, z = points.unbind(-1)
    return torch.stack([x, z, -y], dim=-1) * POINT_SCALE


def scatter_mean(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Mean of the columns of [B, C, N] that share an index ([B, N]); empty places are 0. -> [B, C, size]."""
    batch, channels, _ = values.shape
    total = values.new_zeros(batch, channels, size).scatter_add_(2, index[:, None].expand_as(values), values)
    count = values.new_zeros(batch, size).scatter_add_(1, index, torch.ones_like(index, dtype=values.dtype))
    return total / count.clamp(min=1)[:, None]


class PointFeatures(nn.Module):
    """Point-wise half of the point-voxel convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, 1), nn.InstanceNorm1d(out_channels, eps=1e-5), nn.ReLU()
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class PVConv(nn.Module):
    """Point-voxel convolution: [B, C, N] features at coordinates [B, 3, N] in -1..1 -> [B, C', N]."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int):
        super().__init__()
        self.resolution = resolution
        self.voxel_layers = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            nn.InstanceNorm3d(out_channels, eps=1e-4),
            nn.LeakyReLU(0.1),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            nn.InstanceNorm3d(out_channels, eps=1e-4),
            nn.LeakyReLU(0.1),
        )
        self.point_features = PointFeatures(in_channels, out_channels)

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        size = self.resolution
        position = ((coords + 1) / 2 * size).clamp(0, size - 1)
        x, y, z = position.round().long().unbind(1)
        grid = scatter_mean(features, (x * size + y) * size + z, size**3)
        grid = self.voxel_layers(grid.unflatten(2, (size, size, size)))
        # grid_sample takes (x, y, z) as (last, middle, first) axis, so x and z are exchanged: the weights expect it.
        where = ((2 * position + 1) / size - 1).transpose(1, 2)[:, :, None, None]
        read = F.grid_sample(grid, where, mode="bilinear", padding_mode="border", align_corners=False)
        return read[..., 0, 0] + self.point_features(features)


class PointEncoder(nn.Module):
    """Holds the one point-voxel convolution that inference uses, under its published name."""

    def __init__(self, channels: int, resolution: int):
        super().__init__()
        self.encoder = nn.ModuleList([PVConv(POINT_CHANNELS, channels, resolution)])

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        return self.encoder[0](features, coords)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm over planes rolled into one picture."""
    return nn.GroupNorm(min(32, channels), channels, eps=1e-6)


def roll(planes: Tensor) -> Tensor:
    """[B, 3, C, H, W] -> [B, C, 3 H, W]: the planes one under the other."""
    return planes.transpose(1, 2).flatten(2, 3)


def unroll(rolled: Tensor) -> Tensor:
    """[B, C, 3 H, W] -> [B, 3, C, H, W]."""
    return rolled.unflatten(2, (3, -1)).transpose(1, 2)


class CrossPlaneConv(nn.Module):
    """1x1 convolution over a plane and the averages of the other two along the axes they do not share with it."""

    def __init__(self, channels: int):
        super().__init__()
        self.plane_convs = nn.ModuleList([nn.Conv2d(3 * channels, channels, 1) for _ in range(3)])

    def forward(self, rolled: Tensor) -> Tensor:
        xy, yz, xz = unroll(rolled).unbind(1)
        planes = [xy, yz, xz.transpose(-1, -2)]
        mixed = []
        for i, conv in enumerate(self.plane_convs):
            own, following, last = planes[i], planes[(i + 1) % 3], planes[(i + 2) % 3]
            along_columns = following.mean(dim=-1)[:, :, None, :].expand_as(own)
            along_rows = last.mean(dim=-2)[:, :, :, None].expand_as(own)
            mixed.append(conv(torch.cat([own, along_columns, along_rows], dim=1)))
        mixed[2] = mixed[2].transpose(-1, -2)
        return roll(torch.stack(mixed, dim=1))


class PlaneResBlock(nn.Module):
    """Residual block on rolled planes. Its 3x3 kernels reach over the border between planes, as in training."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_mid = group_norm(out_channels)
        self.conv_3daware = CrossPlaneConv(out_channels)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv_3daware(F.silu(self.norm_mid(h)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class DownStage(nn.Module):
    """One level of the UNet on its way down."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.block = PlaneResBlock(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class UpStage(nn.Module):
    """One level up: nearest upsampling, the skip appended, a group norm, a residual block."""

    def __init__(self, in_channels: int, skip_channels: int):
        super().__init__()
        self.norm1 = group_norm(in_channels + skip_channels)
        self.block = PlaneResBlock(in_channels + skip_channels, skip_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.block(self.norm1(torch.cat([x, skip], dim=1)))


class PlaneUNet(nn.Module):
    """UNet over rolled planes [B, C, 3 R, R]; widths double with each of `depth` levels."""

    def __init__(self, channels: int, start_hidden_channels: int, depth: int):
        super().__init__()
        widths = [start_hidden_channels * 2**level for level in range(depth)]
        self.down_convs = nn.ModuleList(
            [DownStage(a, b) for a, b in zip([channels, *widths[:-1]], widths, strict=True)]
        )
        self.up_convs = nn.ModuleList([UpStage(widths[i], widths[i - 1]) for i in range(depth - 1, 0, -1)])
        self.norm_out = group_norm(widths[0])
        self.conv_final = nn.Conv2d(widths[0], channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, stage in enumerate(self.down_convs):
            if level:
                x = F.avg_pool2d(x, 2)
            x = stage(x)
            skips.append(x)
        for stage, skip in zip(self.up_convs, reversed(skips[:-1]), strict=True):
            x = stage(x, skip)
        return self.conv_final(F.silu(self.norm_out(x)))


class PointToPlanes(nn.Module):
    """Points [B, N, 3] in PartField's space -> planes [B, 3, C, R, R], axes of a plane [row, column]."""

    def __init__(self, channels: int, resolution: int, voxel_resolution: int, start_hidden_channels: int, depth: int):
        super().__init__()
        self.resolution = resolution
        self.pc_encoder = PointEncoder(channels, voxel_resolution)
        self.unet_encoder = PlaneUNet(channels, start_hidden_channels, depth)

    def point_features(self, points: Tensor) -> Tensor:
        """[B, N, 3] -> [B, C, N]."""
        coords = points.transpose(1, 2)
        zeros = torch.zeros_like(coords[:, : POINT_CHANNELS - 6])
        return self.pc_encoder(torch.cat([coords, 2 * coords, zeros], dim=1), coords)

    def forward(self, points: Tensor) -> Tensor:
        features = self.point_features(points)
        unit = (points / 2 / PLANE_SHRINK + 0.5).clamp(0, PLANE_MAX)  # -1..1 to 0..1
        cell = (unit * self.resolution).long()
        size = self.resolution
        planes = [
            scatter_mean(features, cell[..., a] + size * cell[..., b], size * size).unflatten(2, (size, size))
            for a, b in PLANE_AXES
        ]
        return unroll(self.unet_encoder(torch.cat(planes, dim=2)))


class SelfAttention(nn.Module):
    """Multi-head self-attention without biases, in the layout of torch's MultiheadAttention."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer, exact GELU. Index 3 of `mlp` is the published name of its second matrix."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.self_attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Stack of layers and a final norm."""

    def __init__(self, dim: int, layers: int, heads: int):
        super().__init__()
        self.layers = nn.ModuleList([TransformerLayer(dim, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class TriplaneTransformer(nn.Module):
    """Planes [B, 3, C, H, H] -> [B, 3, D, H, H]: context at a quarter of the resolution, detail by a pixel MLP."""

    def __init__(self, in_channels: int, dim: int, layers: int, heads: int, low_res: int, out_channels: int):
        super().__init__()
        self.low_res = low_res
        self.pos_embed = nn.Parameter(torch.zeros(1, 3 * low_res * low_res, dim))
        self.transformer = Transformer(dim, layers, heads)
        self.downsampler = nn.Sequential(
            nn.Conv2d(in_channels, dim, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.upsampler = nn.ConvTranspose2d(dim, out_channels, 4, stride=4)
        self.mlp = nn.Sequential(nn.Linear(in_channels, out_channels), nn.ReLU(), nn.Linear(out_channels, out_channels))

    def forward(self, planes: Tensor) -> Tensor:
        batch = planes.shape[0]
        low = self.downsampler(planes.flatten(0, 1)).unflatten(0, (batch, 3))
        tokens = low.permute(0, 1, 3, 4, 2).flatten(1, 3) + self.pos_embed
        tokens = self.transformer(tokens).unflatten(1, (3, self.low_res, self.low_res))
        up = self.upsampler(tokens.permute(0, 1, 4, 2, 3).flatten(0, 1)).unflatten(0, (batch, 3))
        return up + self.mlp(planes.movedim(2, -1)).movedim(-1, 2)


def sample_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Sum of the bilinear reads of planes [B, 3, C, R, R] at points [B, N, 3] in -1..1 -> [B, N, C]."""
    total = 0
    for plane, axes in zip(planes.unbind(1), PLANE_AXES, strict=True):
        where = points[..., axes][:, None]
        total = total + F.grid_sample(plane, where, mode="bilinear", padding_mode="border", align_corners=True)
    return total[:, :, 0].transpose(1, 2)


def sizes_of_weights(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Arguments of `PartField` that fit a state dict. KeyError when a tensor is missing.

    Heads have 128 dimensions; the resolution of the voxel grid leaves no trace in the shapes, it is the published one.
    """
    transformer = "triplane_transformer."
    tokens, dim = weights[transformer + "pos_embed"].shape[1:]
    low_res = math.isqrt(tokens // 3)
    triplane_dim, channels = weights[transformer + "mlp.0.weight"].shape
    layers = sum(name.endswith(".mlp.3.weight") for name in weights)
    return {
        "z_triplane_channels": channels,
        "z_triplane_resolution": 4 * low_res,
        "unet_start_hidden_channels": weights["pvcnn.unet_encoder.conv_final.weight"].shape[1],
        "unet_depth": sum(name.endswith("block.conv1.weight") and ".down_convs." in name for name in weights),
        "transformer_dim": dim,
        "layers": layers,
        "heads": max(1, dim // HEAD_DIM),
        "low_res": low_res,
        "high_res": 4 * low_res,
        "triplane_dim": triplane_dim,
    }


class PartField(nn.Module):
    """Points of the unit cube -> part features. Defaults are the published sizes: 448 features."""

    def __init__(
        self,
        z_triplane_channels: int = 256,
        z_triplane_resolution: int = 128,
        pvcnn_first_voxel_resolution: int = 32,
        unet_start_hidden_channels: int = 32,
        unet_depth: int = 3,
        transformer_dim: int = 1024,
        layers: int = 6,
        heads: int = 8,
        low_res: int = 32,
        high_res: int = 128,
        triplane_dim: int = 512,
        sdf_channels: int = 64,
    ):
        super().__init__()
        if not high_res == z_triplane_resolution == 4 * low_res:
            raise ValueError("plane resolutions disagree: high_res and z_triplane_resolution must be 4 * low_res")
        self.sdf_channels = sdf_channels
        self.pvcnn = PointToPlanes(
            z_triplane_channels,
            z_triplane_resolution,
            pvcnn_first_voxel_resolution,
            unet_start_hidden_channels,
            unet_depth,
        )
        self.triplane_transformer = TriplaneTransformer(
            z_triplane_channels, transformer_dim, layers, heads, low_res, triplane_dim
        )

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], device: str | torch.device = "cpu") -> "PartField":
        """Model of a published state dict (`load_checkpoint`), its size read off the shapes; runs in float32.

        Raises InvalidInputError when a tensor is missing, unknown or misshapen.
        """
        own = {name: tensor for name, tensor in weights.items() if not name.startswith(UNUSED_PREFIXES)}
        try:
            with torch.device("meta"):
                model = cls(**sizes_of_weights(own))
            model.load_state_dict(own, assign=True)
        except (KeyError, RuntimeError) as error:
            raise InvalidInputError(f"PartField's weights do not fit: {str(error).splitlines()[-1]}") from error
        return model.float().to(device).eval().requires_grad_(False)

    @property
    def feature_channels(self) -> int:
        return self.triplane_transformer.mlp[2].out_features - self.sdf_channels

    def forward(self, points: Tensor) -> Tensor:
        """Points float32 [B, N, 3] in [-0.5, 0.5]^3 -> features float32 [B, N, triplane_dim - sdf_channels]."""
        points = to_partfield_space(points)
        planes = self.triplane_transformer(self.pvcnn(points))
        return sample_planes(planes[:, :, self.sdf_channels :], points)


@torch.inference_mode()
def voxel_features(model: PartField, voxels: np.ndarray, resolution: int = 64) -> Tensor:
    """Features float32 [N, C] of the voxels int32 [N, 4] (batch, x, y, z) of one object, on the model's device."""
    points = torch.from_numpy(voxel_points(voxels[:, 1:], resolution))
    return model(points[None].to(model.triplane_transformer.pos_embed.device))[0]
