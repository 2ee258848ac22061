"""The part-aware flow over structured latents: all parts of an object are denoised together.

Structured latents and the sparse U-shaped transformer: Xiang et al. 2024 (TRELLIS); part and mask-group embeddings:
Yang et al. 2025 (OmniPart).
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.omnipart.layers import (
    OUTPUT_EPS,
    ModulatedCrossBlock,
    TimestepEmbedder,
    absolute_position_embedding,
    set_torso_dtype,
)
from networks.omnipart.sparse_blocks import SparseResBlock3d
from networks.omnipart.sparse_structure import head_count
from networks.sparse import downsample_coords, neighbour_table

PartSlices = list[slice]  # of one object's rows; the first is the whole object, the others its parts


@dataclass(frozen=True)
class LatentLevel:
    """One resolution. `parent` and `children` lead from the next finer level to this one (None at the finest)."""

    coords: Tensor  # [N, 4], batch column = part counted over all objects
    table: Tensor  # [N, 27]
    object_of_row: Tensor  # [N]
    parent: Tensor | None = None  # [N finer]
    children: Tensor | None = None  # [N]


@dataclass(frozen=True)
class LatentGrid:
    """Everything about the voxels that does not change from one denoising step to the next."""

    levels: list[LatentLevel]  # finest first
    positions: Tensor  # [M, 3] coordinates of the coarsest level
    part_of_row: Tensor  # [M] index of the part within its object
    lengths: list[int]  # rows of each object at the coarsest level


class SLatFlowModel(nn.Module):
    """Velocity of the latents of an object and its parts; see `forward`.

    `part_max_size` is the largest number of parts (the whole object, index 0, is not counted); it is also the largest
    id in a mask grid.
    """

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
        patch_size: int = 2,
        num_io_res_blocks: int = 2,
        io_block_channels: list[int] | None = None,
        pe_mode: str = "ape",
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        mask_group_emb_dim: int = 128,
        part_max_size: int = 50,
    ):
        super().__init__()
        io_channels = list(io_block_channels or [])
        if pe_mode != "ape":
            raise ValueError(f"pe_mode {pe_mode!r}: only the absolute position embedding 'ape' is supported")
        if 2 ** len(io_channels) != patch_size:
            raise ValueError(f"patch_size {patch_size} needs {math.log2(patch_size):g} io_block_channels")
        heads = head_count(model_channels, num_heads, num_head_channels)
        self.resolution, self.in_channels, self.out_channels = resolution, in_channels, out_channels
        self.part_max_size = part_max_size
        self.halvings = len(io_channels)
        self.torso_dtype = torch.float32
        self.model_channels = model_channels
        widths = [*io_channels, model_channels]
        self.t_embedder = TimestepEmbedder(model_channels)
        self.part_pe = _embedding(part_max_size + 1, model_channels)
        self.part_pe_proj = nn.Linear(model_channels, model_channels)
        self.mask_group_emb = _embedding(part_max_size + 1, mask_group_emb_dim)
        self.mask_group_emb_proj = nn.Linear(mask_group_emb_dim, cond_channels)
        self.input_layer = nn.Linear(in_channels, widths[0])
        self.input_blocks = nn.ModuleList()
        for width, next_width in pairwise(widths):
            self.input_blocks.extend(SparseResBlock3d(width, model_channels) for _ in range(num_io_res_blocks - 1))
            self.input_blocks.append(SparseResBlock3d(width, model_channels, next_width, downsample=True))
        self.blocks = nn.ModuleList(
            ModulatedCrossBlock(model_channels, cond_channels, heads, mlp_ratio, qk_rms_norm, qk_rms_norm_cross)
            for _ in range(num_blocks)
        )
        self.out_blocks = nn.ModuleList()
        for width, coarser_width in zip(widths[-2::-1], widths[:0:-1], strict=True):
            self.out_blocks.append(SparseResBlock3d(2 * coarser_width, model_channels, width, upsample=True))
            self.out_blocks.extend(
                SparseResBlock3d(2 * width, model_channels, width) for _ in range(num_io_res_blocks - 1)
            )
        self.out_layer = nn.Linear(widths[0], out_channels)

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        set_torso_dtype(self, [self.input_blocks, self.blocks, self.out_blocks], dtype)

    def grid(self, coords: Tensor, part_slices: list[PartSlices]) -> LatentGrid:
        """Neighbour tables, poolings and embedding indices for `forward`; build it once per object.

        coords [N, 4] integer: batch column = object, its rows together. part_slices[i]: the parts of object i as slices
        of its own rows, which they must cover in order.
        """
        part, object_of_part, part_index = _parts_of_rows(coords, part_slices, self.part_max_size)
        coords = torch.cat((part[:, None].to(coords.dtype), coords[:, 1:]), dim=1)
        levels = [LatentLevel(coords, neighbour_table(coords), object_of_part[part])]
        for _ in range(self.halvings):
            coords, parent, children = downsample_coords(coords)
            object_of_row = object_of_part[coords[:, 0].long()]
            levels.append(LatentLevel(coords, neighbour_table(coords), object_of_row, parent, children))
        coarse = levels[-1]
        lengths = torch.bincount(coarse.object_of_row, minlength=len(part_slices)).tolist()
        return LatentGrid(levels, coarse.coords[:, 1:], part_index[coarse.coords[:, 0].long()], lengths)

    def forward(self, features: Tensor, t: Tensor, cond: Tensor, masks: Tensor, grid: LatentGrid) -> Tensor:
        """features [N, in], t [B] (0..1000), cond [B, M, cond], masks [B, h, w] ids (0 = none), -> [N, out].

        The mask embedding is added to the **first** h·w condition tokens, class and register tokens included: an offset
        of the released model that its weights were trained with.
        """
        dtype = self.torso_dtype
        context = self._context(cond, masks).to(dtype)
        modulation = self.t_embedder(t).to(dtype)
        h = self.input_layer(features.float()).to(dtype)
        skips = []
        level = 0
        for block in self.input_blocks:
            level += block.downsample
            h = self._resample(block, h, modulation, grid, level)
            skips.append(h)
        part_embedding = self.part_pe_proj(self.part_pe.weight)[grid.part_of_row]
        h = h + (absolute_position_embedding(grid.positions, self.model_channels) + part_embedding).to(dtype)
        for block in self.blocks:
            h = block(h, modulation, context, grid.lengths)
        for block in self.out_blocks:
            level -= block.upsample
            h = self._resample(block, torch.cat((h, skips.pop()), dim=1), modulation, grid, level)
        h = h.float()
        return self.out_layer(F.layer_norm(h, h.shape[-1:], eps=OUTPUT_EPS)).to(features.dtype)

    def _resample(self, block: SparseResBlock3d, h: Tensor, modulation: Tensor, grid: LatentGrid, level: int) -> Tensor:
        here = grid.levels[level]
        coarse = grid.levels[level + 1] if block.upsample else here
        return block(h, modulation, here.object_of_row, here.table, coarse.parent, coarse.children)

    def _context(self, cond: Tensor, masks: Tensor) -> Tensor:
        ids = masks.flatten(1).long()
        tokens = ids.shape[1]
        if tokens > cond.shape[1]:
            raise ValueError(f"the mask grid has {tokens} cells, the condition only {cond.shape[1]} tokens")
        if ids.numel() and int(ids.max()) > self.part_max_size:
            raise ValueError(f"mask id {int(ids.max())}: this model knows ids up to {self.part_max_size}")
        embedding = self.mask_group_emb_proj(self.mask_group_emb(ids))
        return torch.cat((cond[:, :tokens] + embedding, cond[:, tokens:]), dim=1)


def _embedding(rows: int, width: int) -> nn.Embedding:
    """Unit variance like torch's own, but uniform: normal numbers on the meta device cost seconds of imports."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width).uniform_(-(3**0.5), 3**0.5), freeze=False)


def _parts_of_rows(coords: Tensor, part_slices: list[PartSlices], part_max_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """part [N] counted over all objects, object of each part [P], and the part's index within its object [P]."""
    sizes, objects, indices = [], [], []
    for item, parts in enumerate(part_slices):
        rows = int((coords[:, 0] == item).sum())
        edges = [0, *(part.stop for part in parts)]
        if [part.start for part in parts] != edges[:-1] or edges[-1] != rows:
            raise ValueError(f"part slices {parts} do not cover the {rows} rows of object {item} in order")
        if len(parts) > part_max_size + 1:
            raise ValueError(f"{len(parts) - 1} parts: this model knows at most {part_max_size}")
        sizes += [part.stop - part.start for part in parts]
        objects += [item] * len(parts)
        indices += range(len(parts))
    device = coords.device
    if sum(sizes) != len(coords) or bool((coords[1:, 0] < coords[:-1, 0]).any()):
        raise ValueError("the rows of an object must lie together, objects in order, one list of slices an object")
    part = torch.repeat_interleave(torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device))
    return part, torch.tensor(objects, device=device), torch.tensor(indices, device=device)


def divide_slat(
    coords: Tensor,
    features: Tensor,
    part_slices: PartSlices,
    mean: Tensor,
    std: Tensor,
    threshold: float = 0.3,
) -> tuple[Tensor, Tensor, list[int]]:
    """Denormalise a latent and hand out its rows to the parts.

    coords [N, 4], features [N, C + 1], mean and std [C + 1]. The last channel is a confidence logit: rows below
    `threshold` are dropped, and so is the channel. Returns coords [M, 4] with the part as batch column, features [M, C]
    and the rows of each part; a part may have none left.
    """
    features = features * std.to(features) + mean.to(features)
    keep = torch.sigmoid(features[:, -1]) >= threshold
    part = torch.full((len(coords),), -1, dtype=coords.dtype, device=coords.device)
    for index, rows in enumerate(part_slices):
        part[rows] = index
    keep &= part >= 0
    divided = torch.cat((part[:, None], coords[:, 1:]), dim=1)[keep]
    sizes = torch.bincount(divided[:, 0].long(), minlength=len(part_slices)).tolist()
    return divided, features[keep, :-1], sizes
