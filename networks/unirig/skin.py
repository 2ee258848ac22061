"""UniRig's skin model: how much each joint moves each sampled surface point.

PTv3 describes the points, a Michelangelo encoder the whole shape, an MLP with cross-attention the joints. The points
then attend to joints and shape; per-head attention to the joints, joined with the geometric voxel feature, is turned
into one score a pair, a softmax over the joints, and a mask from the voxel feature.

Once PTv3 has run the points are independent of each other, so they pass in chunks: memory does not grow with their
number. State-dict keys are those of the published skin checkpoint (without its `model.` prefix).
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.unirig.checkpoint import load_weights, read_checkpoint, read_config
from networks.unirig.michelangelo import MichelangeloEncoder, fourier_features
from networks.unirig.ptv3 import PTv3Object

BONE_NUM_FREQS = 6
SCORE_LAYERS = 4  # hidden layers of the MLP that scores a pair of point and joint
CHUNK_POINTS = 4096  # points attended at once
CHUNK_PAIRS = 1 << 16  # (point, joint) pairs scored at once

# Settings of published configurations that change nothing at inference.
_WITHOUT_EFFECT = frozenset(("__target__", "num_train_vertex", "pretrained_path"))


def linear_norm_gelu(in_features: int, out_features: int) -> list[nn.Module]:
    return [nn.Linear(in_features, out_features), nn.LayerNorm(out_features), nn.GELU()]


class CrossAttention(nn.Module):
    """Multi-head attention whose `Wkv` rows are the keys of all heads, then the values of all heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.Wq = nn.Linear(width, width)
        self.Wkv = nn.Linear(width, 2 * width)
        self.out_proj = nn.Linear(width, width)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(1, T, width) -> keys and values, each (1, heads, T, width / heads)."""
        k, v = self.Wkv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        q = self.Wq(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out_proj(F.scaled_dot_product_attention(q, *keys_values).transpose(1, 2).flatten(2))


class CrossAttentionBlock(nn.Module):
    """Attention and feed-forward, each normalised after the addition (post-norm)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        x = self.norm1(x + self.attention(x, keys_values))
        return self.norm2(x + self.ffn(x))


class BoneFourier(nn.Module):
    """Holds place 0 of the bone encoder's `Sequential`: coordinates and their sines and cosines, with pi."""

    def forward(self, x: Tensor) -> Tensor:
        return fourier_features(x, BONE_NUM_FREQS, include_pi=True)


class BoneEncoder(nn.Module):
    def __init__(self, width: int, embed_dim: int, heads: int, num_attn: int):
        super().__init__()
        self.bone_encoder = nn.Sequential(
            BoneFourier(),
            *linear_norm_gelu(3 * (1 + 2 * BONE_NUM_FREQS), embed_dim),
            *linear_norm_gelu(embed_dim, 4 * embed_dim),
            *linear_norm_gelu(4 * embed_dim, width),
        )
        self.attn = nn.ModuleList(CrossAttentionBlock(width, heads) for _ in range(num_attn))

    def forward(self, positions: Tensor, shape_latents: Tensor) -> Tensor:
        """(1, J, 3) positions and (1, T, width) shape -> (1, J, width). Every block reads the same context: the first
        features of the joints, and the shape."""
        # Sines of up to 32 pi x need float32 coordinates, whatever the weights are.
        fourier = self.bone_encoder[0](positions.float())
        x = self.bone_encoder[1:](fourier.to(shape_latents.dtype))
        context = torch.cat([x, shape_latents], dim=1)
        for block in self.attn:
            x = block(x, block.attention.keys_values(context))
        return x


class SkinweightPredictor(nn.Module):
    def __init__(self, in_features: int, mlp_dim: int):
        super().__init__()
        sizes = [in_features] + [mlp_dim] * SCORE_LAYERS
        layers = [layer for pair in pairwise(sizes) for layer in linear_norm_gelu(*pair)]
        self.net = nn.Sequential(*layers, nn.Linear(mlp_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[..., 0]


def accumulate_children(weights: Tensor, parents: list[int]) -> Tensor:
    """Add each joint's column to its parent's, joints in ascending order: a parent gets what the child holds then.

    weights: (N, J); parents: J indices, below 0 for a root. With children after their parents this hands a column up one
    generation only; the published weights were trained with that.
    """
    out = weights.clone()
    for joint, parent in enumerate(parents):
        if parent >= 0:
            out[:, parent] += out[:, joint]
    return out


def mask_weights(weights: Tensor, voxel_skin: Tensor, parents: list[int], exponent: float) -> Tensor:
    """weights * accumulated voxel feature ** exponent, rows summing to 1: (N, J) float32.

    A row the mask empties keeps the unmasked weights: dividing by its sum would give NaN.
    """
    masked = weights * accumulate_children(voxel_skin, parents) ** exponent
    total = masked.sum(dim=1, keepdim=True)
    return torch.where(total > 0, masked / total.clamp_min(torch.finfo(masked.dtype).tiny), weights)


class SkinModel(nn.Module):
    """Sampled surface points, joints and the voxel feature -> skin weights of the points.

    The arguments carry the names of the published configuration; `mesh_encoder` and `global_encoder` are the
    configuration mappings of `PTv3Object` and `MichelangeloEncoder`. For lower precision use `set_dtype`.
    """

    def __init__(
        self,
        *,
        feat_dim: int = 768,
        num_heads: int = 16,
        bone_embed_dim: int = 1024,
        mlp_dim: int = 512,
        num_bone_attn: int = 8,
        num_mesh_bone_attn: int = 16,
        grid_size: float = 0.005,
        voxel_mask: float = 3.0,
        mesh_encoder: dict | None = None,
        global_encoder: dict | None = None,
        duplicate_rule: str = "native",
    ):
        super().__init__()
        self.num_heads = num_heads
        self.voxel_mask = voxel_mask
        self.mesh_encoder = PTv3Object.from_config(
            mesh_encoder or {}, grid_size=grid_size, duplicate_rule=duplicate_rule
        )
        self.global_encoder = MichelangeloEncoder.from_config(global_encoder or {})
        self.feat_map = nn.Sequential(*linear_norm_gelu(self.mesh_encoder.out_channels, feat_dim))
        self.out_proj = nn.Sequential(*linear_norm_gelu(self.global_encoder.width, feat_dim))
        self.bone_encoder = BoneEncoder(feat_dim, bone_embed_dim, num_heads, num_bone_attn)
        self.downscale = nn.Sequential(*linear_norm_gelu(2 * num_heads, num_heads))
        self.skinweight_pred = SkinweightPredictor(num_heads, mlp_dim)
        self.mesh_bone_attn = nn.ModuleList(CrossAttentionBlock(feat_dim, num_heads) for _ in range(num_mesh_bone_attn))
        self.qmesh = nn.Linear(feat_dim, feat_dim * num_heads)
        self.kmesh = nn.Linear(feat_dim, feat_dim * num_heads)
        self.voxel_skin_embed = nn.Linear(1, num_heads)
        self.voxel_skin_norm = nn.LayerNorm(num_heads)
        self.attn_skin_norm = nn.LayerNorm(num_heads)
        self.eval()

    @classmethod
    def from_config(cls, config: dict, **overrides) -> "SkinModel":
        """Build from a published configuration mapping. Raises TypeError on a setting we do not know."""
        return cls(**{name: value for name, value in config.items() if name not in _WITHOUT_EFFECT} | overrides)

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "SkinModel":
        """Load a checkpoint (see `checkpoint.read_checkpoint`) of the published sizes, or of those in the `config.json`
        beside it."""
        weights = read_checkpoint(path)
        with torch.device("meta"):
            model = cls.from_config(read_config(path))
        load_weights(model, weights)
        return model.set_dtype(dtype).to(device)

    @property
    def dtype(self) -> torch.dtype:
        return self.qmesh.weight.dtype

    def set_dtype(self, dtype: torch.dtype) -> "SkinModel":
        """Compute in `dtype`, except PTv3, which the published model runs in float32 always."""
        self.to(dtype)
        self.mesh_encoder.float()
        return self

    def shape_latents(self, points: Tensor, normals: Tensor) -> Tensor:
        """(N, 3) points and normals -> (1, T, feat_dim), T = token_num of the global encoder."""
        return self.out_proj(self.global_encoder(points[None], normals[None]).to(self.dtype))

    def bone_features(self, points: Tensor, joints: Tensor, shape_latents: Tensor) -> Tensor:
        """(J, 3) joints, placed relative to the lowest corner of the points -> (1, J, feat_dim)."""
        positions = (joints - points.amin(0))[None]
        return self.bone_encoder(positions, shape_latents)

    def mesh_features(self, points: Tensor, normals: Tensor, order_perm: Tensor | None) -> Tensor:
        """(N, 3) points and normals -> (N, feat_dim). Three of PTv3's nine input channels are always zero."""
        feat = torch.cat([points, normals, torch.zeros_like(points)], dim=1)
        return self.feat_map(self.mesh_encoder(points, feat, order_perm).to(self.dtype))

    def context_keys_values(self, bones: Tensor, shape_latents: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every mesh-bone block, computed once for all chunks of points."""
        context = torch.cat([bones, shape_latents], dim=1)
        return [block.attention.keys_values(context) for block in self.mesh_bone_attn]

    def attend(self, mesh: Tensor, keys_values: list[tuple[Tensor, Tensor]]) -> Tensor:
        """(n, feat_dim) features of some points -> the same shape, having read the joints and the shape."""
        x = mesh[None]
        for block, block_keys_values in zip(self.mesh_bone_attn, keys_values, strict=True):
            x = block(x, block_keys_values)
        return x[0]

    def scores(self, mesh: Tensor, bone_keys: Tensor, voxel_skin: Tensor) -> Tensor:
        """(n, feat_dim) attended features, (J, heads, feat_dim) keys, (n, J) voxel feature -> (n, J) before softmax."""
        q = self.qmesh(mesh).unflatten(-1, (self.num_heads, -1))
        product = torch.einsum("nhc,jhc->nhj", q, bone_keys) * mesh.shape[-1] ** -0.5
        attention = self.attn_skin_norm(product.softmax(dim=-1).transpose(1, 2))
        voxel = self.voxel_skin_norm(self.voxel_skin_embed(voxel_skin[..., None].to(self.dtype)))
        return self.skinweight_pred(self.downscale(torch.cat([attention, voxel], dim=-1)))

    def forward(
        self,
        points: Tensor,
        normals: Tensor,
        joints: Tensor,
        parents: Tensor,
        voxel_skin: Tensor,
        order_perm: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Skin weights of the sampled points, float32 (N, J), rows sum to 1.

        points, normals (N, 3) and joints (J, 3): float32, in the coordinates of the skin stage. parents: (J,) int, below
        0 for a root. voxel_skin: (N, J) float32. order_perm: permutation of PTv3's orders; without it one is drawn from
        torch's global generator. progress(done, total) is called with points.
        """
        count, joint_count = voxel_skin.shape
        latents = self.shape_latents(points, normals)
        bones = self.bone_features(points, joints, latents)
        mesh = self.mesh_features(points, normals, order_perm)
        keys_values = self.context_keys_values(bones, latents)
        bone_keys = self.kmesh(bones[0]).unflatten(-1, (self.num_heads, -1))
        weights = torch.empty(count, joint_count, dtype=torch.float32, device=points.device)
        score_chunk = max(1, CHUNK_PAIRS // joint_count)
        for start in range(0, count, CHUNK_POINTS):
            rows = slice(start, min(start + CHUNK_POINTS, count))
            attended = self.attend(mesh[rows], keys_values).split(score_chunk)
            voxel = voxel_skin[rows].split(score_chunk)
            parts = [self.scores(a, bone_keys, v).float() for a, v in zip(attended, voxel, strict=True)]
            weights[rows] = torch.cat(parts).softmax(dim=1)
            if progress:
                progress(rows.stop, count)
        return mask_weights(weights, voxel_skin.float(), parents.tolist(), self.voxel_mask)
