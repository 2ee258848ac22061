"""Decoders of structured latents: to the fields a surface is extracted from, and to Gaussians (TRELLIS, 2024).

Parts never mix: attention windows and group norm statistics stay inside a part, so decoding the parts one by one gives
the same result as decoding them together, with the memory of the largest.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.omnipart.gaussians import Gaussians, GaussianSettings
from networks.omnipart.layers import OUTPUT_EPS, absolute_position_embedding, set_torso_dtype
from networks.omnipart.sparse_blocks import SparseSubdivideBlock3d, WindowBlock, plan_windows
from networks.omnipart.sparse_structure import head_count
from networks.omnipart.surface import FIELD_CHANNELS, SurfaceMesh, extract_surface
from networks.sparse import neighbour_table, subdivide_coords, subdivide_table


class SLatDecoderTorso(nn.Module):
    """Transformer with windowed attention; windows shift by half their size in every other block."""

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4,
        attn_mode: str = "swin",
        window_size: int = 8,
        pe_mode: str = "ape",
        qk_rms_norm: bool = False,
    ):
        super().__init__()
        if attn_mode != "swin":
            raise ValueError(f"attn_mode {attn_mode!r}: only 'swin' is supported")
        if pe_mode != "ape":
            raise ValueError(f"pe_mode {pe_mode!r}: only the absolute position embedding 'ape' is supported")
        heads = head_count(model_channels, num_heads, num_head_channels)
        self.resolution, self.model_channels, self.window_size = resolution, model_channels, window_size
        self.torso_dtype = torch.float32
        self.input_layer = nn.Linear(latent_channels, model_channels)
        self.blocks = nn.ModuleList(
            WindowBlock(model_channels, heads, mlp_ratio, qk_rms_norm) for _ in range(num_blocks)
        )

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        set_torso_dtype(self, [self.blocks], dtype)

    def torso(self, coords: Tensor, features: Tensor) -> Tensor:
        """coords [N, 4] (part, x, y, z), features [N, latent] -> [N, model_channels] in the dtype of the torso."""
        h = self.input_layer(features.float()) + absolute_position_embedding(coords[:, 1:], self.model_channels)
        h = h.to(self.torso_dtype)
        plans = [plan_windows(coords, self.window_size, shift) for shift in (0, self.window_size // 2)]
        for index, block in enumerate(self.blocks):
            h = block(h, plans[index % 2])
        return h


class SLatMeshDecoder(SLatDecoderTorso):
    """Latents at resolution R -> surface fields at 4·R -> one mesh a part."""

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        representation_config: dict | None = None,
        num_groups: int = 32,
        **torso,
    ):
        super().__init__(resolution, model_channels, latent_channels, num_blocks, **torso)
        self.use_color = bool((representation_config or {}).get("use_color", False))
        self.upsample = nn.ModuleList(
            (
                SparseSubdivideBlock3d(model_channels, model_channels // 4, num_groups),
                SparseSubdivideBlock3d(model_channels // 4, model_channels // 8, num_groups),
            )
        )
        self.out_layer = nn.Linear(model_channels // 8, FIELD_CHANNELS if self.use_color else FIELD_CHANNELS - 48)

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        set_torso_dtype(self, [self.blocks, self.upsample], dtype)

    @property
    def surface_resolution(self) -> int:
        return 4 * self.resolution

    def forward(self, coords: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """coords [N, 4], features [N, latent] -> fields of the N·64 fine voxels: coords [64·N, 4], float32 [64·N, F]."""
        h = self.torso(coords, features)
        table = neighbour_table(coords)
        for block in self.upsample:
            fine_table = subdivide_table(table)
            h = block(h, coords[:, 0], table, fine_table)
            table = fine_table
            coords = subdivide_coords(coords)
        return coords, self.out_layer(h.float())

    def decode(self, coords: Tensor, features: Tensor) -> SurfaceMesh:
        """The mesh of one part: coords [N, 4] with one batch item, features [N, latent]. N = 0 gives an empty mesh."""
        if len(coords) == 0:
            return SurfaceMesh.empty(self.use_color, features.device)
        fine_coords, fields = self(coords, features)
        return extract_surface(fine_coords[:, 1:], fields, self.surface_resolution, self.use_color)


class SLatGaussianDecoder(SLatDecoderTorso):
    """Latents -> a fixed number of Gaussians a voxel."""

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        representation_config: dict,
        **torso,
    ):
        super().__init__(resolution, model_channels, latent_channels, num_blocks, **torso)
        config = representation_config
        self.settings = GaussianSettings(
            kernel_size_3d=config["3d_filter_kernel_size"],
            scaling_bias=config["scaling_bias"],
            opacity_bias=config["opacity_bias"],
            scaling_activation=config["scaling_activation"],
        )
        self.count, self.voxel_size, self.lr = config["num_gaussians"], config["voxel_size"], config["lr"]
        # In the order of the output channels: values a Gaussian.
        self.layout = {"_xyz": 3, "_features_dc": 3, "_scaling": 3, "_rotation": 4, "_opacity": 1}
        self.out_layer = nn.Linear(model_channels, self.count * sum(self.layout.values()))
        if config.get("perturb_offset", True):
            self.register_buffer("offset_perturbation", _offset_perturbation(self.count, self.voxel_size))
        else:
            self.offset_perturbation = None

    def forward(self, coords: Tensor, features: Tensor) -> Tensor:
        """coords [N, 4], features [N, latent] -> float32 [N, channels] of the N voxels."""
        h = self.torso(coords, features).float()
        return self.out_layer(F.layer_norm(h, h.shape[-1:], eps=OUTPUT_EPS))

    def decode(self, coords: Tensor, features: Tensor) -> Gaussians:
        """The Gaussians of one part, [N·count] of them in voxel order. N = 0 gives none."""
        return self.represent(coords, self(coords, features))

    def represent(self, coords: Tensor, channels: Tensor) -> Gaussians:
        """coords [N, 4] and the output [N, channels] of `forward` -> Gaussians in the unit cube around the origin."""
        raw = {}
        for (name, width), block in zip(
            self.layout.items(), channels.split([self.count * w for w in self.layout.values()], dim=1), strict=True
        ):
            raw[name] = block.unflatten(1, (self.count, width)) * self.lr[name]
        if self.offset_perturbation is not None:
            raw["_xyz"] = raw["_xyz"] + self.offset_perturbation
        offset = torch.tanh(raw["_xyz"]) / self.resolution * 0.5 * self.voxel_size
        centre = (coords[:, None, 1:].float() + 0.5) / self.resolution
        return Gaussians(
            xyz=(centre + offset).flatten(0, 1),
            features_dc=raw["_features_dc"].flatten(0, 1)[:, None],
            scaling=raw["_scaling"].flatten(0, 1),
            rotation=raw["_rotation"].flatten(0, 1),
            opacity=raw["_opacity"].flatten(0, 1),
            settings=self.settings,
        )


def _offset_perturbation(count: int, voxel_size: float) -> Tensor:
    """Spread of a voxel's Gaussians before tanh: Hammersley points scaled to 1 / voxel_size, [count, 3]."""
    points = torch.tensor(
        [[i / count, _radical_inverse(2, i), _radical_inverse(3, i)] for i in range(count)], device="cpu"
    )
    return torch.atanh((2 * points - 1) / voxel_size)


def _radical_inverse(base: int, index: int) -> float:
    """Digits of index in this base, mirrored behind the point (van der Corput)."""
    value, scale = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * scale
        scale /= base
    return value


def view_sphere(count: int) -> list[tuple[float, float]]:
    """(yaw, pitch) in radians of `count` cameras spread over a sphere: Hammersley points (u, v).

    yaw = 2 pi v, pitch = acos(1 - 2u) - pi/2; a camera at distance r stands at r (sin yaw cos pitch, cos yaw cos pitch,
    sin pitch), z up.
    """
    return [(2 * math.pi * _radical_inverse(2, i), math.acos(1 - 2 * i / count) - math.pi / 2) for i in range(count)]
