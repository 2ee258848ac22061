"""The box planner: image, part masks and voxels in, one box for each part out.

Image tokens that know their part's number and tokens of the voxels (with PartField's features) form the prompt of an OPT
decoder (Zhang et al., "OPT", 2022), which writes the boxes as coordinate tokens. State-dict keys are those of the
published `bbox_gen.ckpt`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.omnipart.bbox_tokens import BoxTokenizer
from networks.omnipart.box_sampling import MAX_BOXES, TEMPERATURE, TOP_K, TOP_P, generate_tokens
from networks.omnipart.layers import set_torso_dtype
from networks.omnipart.part_layout import voxel_points
from networks.omnipart.voxel_encoder import VoxelEncoder
from shared_utils.errors import InvalidInputError

HEAD_DIM = 64  # of the OPT decoder; head counts cannot be read off the shapes
VOLUME_RESOLUTION = 64
IGNORED_PREFIXES = ("image_encoder.", "partfield_encoder.")  # copies of models that are loaded from their own files


@dataclass(frozen=True)
class PlannerSizes:
    """Sizes of a planner. The defaults are those of the published one."""

    image_dim: int = 1024
    group_embedding_dim: int = 64
    max_group_size: int = 50
    decoder_hidden: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    ffn_dim: int = 4096
    max_position_embeddings: int = 2187
    vocab_size: int = 67
    voxel_in_channels: int = 451
    voxel_encoder_channels: tuple[int, ...] = (448, 448, 448, 1024)
    num_res_blocks: int = 1
    num_res_blocks_middle: int = 1

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor]) -> "PlannerSizes":
        """Read the sizes off a state dict; heads have 64 dimensions. KeyError when a tensor is missing."""
        groups, group_dim = weights["group_embedding.group_embedding.weight"].shape
        vocab, hidden = weights["decoder.model.decoder.embed_tokens.weight"].shape
        encoder = "partfield_voxel_encoder."
        first_width, voxel_in = weights[encoder + "input_layer.weight"].shape[:2]
        widths, res_blocks, index = [first_width], 0, 0
        while encoder + f"blocks.{index}.conv.weight" in weights or encoder + f"blocks.{index}.conv1.weight" in weights:
            halving = weights.get(encoder + f"blocks.{index}.conv.weight")
            if halving is not None:
                widths.append(halving.shape[0])
            elif len(widths) == 1:
                res_blocks += 1
            index += 1
        return cls(
            image_dim=weights["image_projector.norm1.weight"].numel() - group_dim,
            group_embedding_dim=group_dim,
            max_group_size=groups - 1,
            decoder_hidden=hidden,
            num_hidden_layers=_count(weights, "decoder.model.decoder.layers.", ".fc1.weight"),
            num_attention_heads=max(1, hidden // HEAD_DIM),
            ffn_dim=weights["decoder.model.decoder.layers.0.fc1.weight"].shape[0],
            max_position_embeddings=weights["decoder.model.decoder.embed_positions.weight"].shape[0] - 2,
            vocab_size=vocab,
            voxel_in_channels=voxel_in,
            voxel_encoder_channels=tuple(widths),
            num_res_blocks=res_blocks,
            num_res_blocks_middle=_count(weights, encoder + "middle_block.", ".conv1.weight"),
        )

    @property
    def tokenizer(self) -> BoxTokenizer:
        """The last three tokens of the vocabulary are BOS, EOS and PAD; the others are coordinates."""
        bins = self.vocab_size - 3
        return BoxTokenizer(bins=bins, bos=bins, eos=bins + 1, pad=bins + 2)


def _count(weights: Mapping[str, Tensor], prefix: str, suffix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith(suffix) for name in weights)


class GroupEmbedding(nn.Module):
    """Embedding of part numbers; 0 is "no part"."""

    def __init__(self, max_group_size: int, dim: int):
        super().__init__()
        self.group_embedding = nn.Embedding(max_group_size + 1, dim)

    def forward(self, grid: Tensor, tokens: int) -> Tensor:
        """Grid int64 [B, G, G] -> [B, tokens, dim]: one embedding a cell, row-major, then zeros."""
        embedded = self.group_embedding(grid.flatten(1))
        return F.pad(embedded, (0, 0, 0, tokens - embedded.shape[1]))


class FeedForward(nn.Module):
    """Linear, exact GELU, Linear, under the published names `net.0.proj` and `net.2`."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        first = nn.Module()
        first.proj = nn.Linear(in_dim, in_dim)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(in_dim, out_dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0].proj(x)))


class ImageProjector(nn.Module):
    """Image features to prompt embeddings: layer norm, feed-forward, layer norm."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim, eps=1e-5)
        self.ff = FeedForward(in_dim, out_dim)
        self.norm2 = nn.LayerNorm(out_dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.ff(self.norm1(x)))


class BoxPrompt(nn.Module):
    """The planner's prompt from image latents [B, T, image_dim], part grid [B, G, G] and volume [B, C, R, R, R]."""

    def __init__(
        self,
        image_dim: int,
        group_embedding_dim: int,
        decoder_hidden: int,
        voxel_in_channels: int,
        voxel_encoder_channels: Sequence[int],
        num_res_blocks: int = 1,
        num_res_blocks_middle: int = 1,
        max_group_size: int = 50,
    ):
        super().__init__()
        self.group_embedding = GroupEmbedding(max_group_size, group_embedding_dim)
        self.image_projector = ImageProjector(image_dim + group_embedding_dim, decoder_hidden)
        self.partfield_voxel_encoder = VoxelEncoder(
            voxel_in_channels, voxel_encoder_channels, num_res_blocks, num_res_blocks_middle
        )

    def image_tokens(self, latents: Tensor, grid: Tensor) -> Tensor:
        """The grid's embeddings go to the first G * G tokens, special tokens included: so it was trained."""
        groups = self.group_embedding(grid, latents.shape[1])
        return self.image_projector(torch.cat([latents, groups], dim=-1))

    def forward(self, latents: Tensor, grid: Tensor, volume: Tensor) -> Tensor:
        """-> [B, T + r^3, decoder_hidden], voxel tokens in x, y, z row-major order."""
        voxels = self.partfield_voxel_encoder(volume).flatten(2).transpose(1, 2)
        return torch.cat([self.image_tokens(latents.float(), grid), voxels.float()], dim=1)


def build_opt(
    vocab_size: int,
    hidden_size: int,
    num_hidden_layers: int,
    ffn_dim: int,
    max_position_embeddings: int,
    num_attention_heads: int,
    pad_token_id: int,
    bos_token_id: int,
    eos_token_id: int,
) -> nn.Module:
    """transformers' OPT with ReLU, pre-norm, a tied head and position offset 2; no weights are loaded."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        ffn_dim=ffn_dim,
        max_position_embeddings=max_position_embeddings,
        num_attention_heads=num_attention_heads,
        word_embed_proj_dim=hidden_size,
        do_layer_norm_before=True,
        activation_function="relu",
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=pad_token_id,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        tie_word_embeddings=True,
    )
    return OPTForCausalLM(config).eval()


class BoxPlanner(BoxPrompt):
    """Prompt and decoder together."""

    def __init__(self, sizes: PlannerSizes):
        super().__init__(
            image_dim=sizes.image_dim,
            group_embedding_dim=sizes.group_embedding_dim,
            decoder_hidden=sizes.decoder_hidden,
            voxel_in_channels=sizes.voxel_in_channels,
            voxel_encoder_channels=sizes.voxel_encoder_channels,
            num_res_blocks=sizes.num_res_blocks,
            num_res_blocks_middle=sizes.num_res_blocks_middle,
            max_group_size=sizes.max_group_size,
        )
        self.sizes = sizes
        self.tokenizer = sizes.tokenizer
        self.decoder = build_opt(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.decoder_hidden,
            num_hidden_layers=sizes.num_hidden_layers,
            ffn_dim=sizes.ffn_dim,
            max_position_embeddings=sizes.max_position_embeddings,
            num_attention_heads=sizes.num_attention_heads,
            pad_token_id=self.tokenizer.pad,
            bos_token_id=self.tokenizer.bos,
            eos_token_id=self.tokenizer.eos,
        )

    @classmethod
    def from_weights(
        cls, weights: Mapping[str, Tensor], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "BoxPlanner":
        """Planner of a published state dict (`load_checkpoint`), its size read off the shapes.

        Convolutions and decoder run in `dtype`, norms of the convolutional encoder and the image projector in float32.
        Raises InvalidInputError when a tensor is missing, unknown or misshapen.
        """
        own = {name: tensor for name, tensor in weights.items() if not name.startswith(IGNORED_PREFIXES)}
        own.setdefault("decoder.lm_head.weight", own.get("decoder.model.decoder.embed_tokens.weight"))
        try:
            with torch.device("meta"):
                planner = cls(PlannerSizes.of_weights(own))
            planner.load_state_dict(own, assign=True)
        except (KeyError, RuntimeError, AttributeError) as error:
            raise InvalidInputError(f"the box planner's weights do not fit: {str(error).splitlines()[-1]}") from error
        planner.decoder.tie_weights()
        encoder = planner.partfield_voxel_encoder
        planner.float()
        set_torso_dtype(encoder, [encoder], dtype)
        planner.decoder.to(dtype)
        return planner.to(device).eval().requires_grad_(False)


def partfield_of_planner(planner_weights: Mapping[str, Tensor], published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PartField's weights for a planner: the copy inside the planner's own checkpoint if it has one, else `published`."""
    prefix = "partfield_encoder."
    own = {name.removeprefix(prefix): t for name, t in planner_weights.items() if name.startswith(prefix)}
    return own or dict(published)


def feature_volume(voxels: np.ndarray, features: Tensor, resolution: int = VOLUME_RESOLUTION) -> Tensor:
    """Dense volume [1, C + 3, R, R, R]: features [N, C], then positions, at voxels (int [N, 4]); zero elsewhere."""
    index = torch.from_numpy(np.ascontiguousarray(voxels[:, 1:])).long().to(features.device)
    points = torch.from_numpy(voxel_points(voxels[:, 1:], resolution)).to(features)
    channels = features.shape[1] + 3
    volume = torch.zeros(channels, resolution, resolution, resolution, dtype=features.dtype, device=features.device)
    volume[:, index[:, 0], index[:, 1], index[:, 2]] = torch.cat([features, points], dim=1).T
    return volume[None]


@torch.inference_mode()
def plan_boxes(
    planner: BoxPlanner,
    image_latents: Tensor,
    grid: np.ndarray,
    voxels: np.ndarray,
    features: Tensor,
    seed: int,
    max_boxes: int = MAX_BOXES,
    temperature: float = TEMPERATURE,
    top_k: int = TOP_K,
    top_p: float = TOP_P,
    progress: Callable[[int, int], None] | None = None,
    boxes: int | None = None,
) -> np.ndarray:
    """Boxes float64 [K, 2, 3] (lower and upper corner in [-0.5, 0.5]) for an object: at most `max_boxes`, or with `boxes`
    exactly so many.

    `image_latents` [1, T, image_dim]: the image encoder's normalised tokens of the picture over white; `grid` int64
    [G, G] with part numbers up to the planner's max_group_size; `voxels` int32 [N, 4]; `features` [N, C] of PartField.
    Tokens are drawn on the CPU from `seed`. ValueError for a part number the planner has no embedding for.
    """
    if grid.max() > planner.sizes.max_group_size:
        raise ValueError(f"{grid.max()} parts, the box planner knows {planner.sizes.max_group_size} at most")
    device = planner.image_projector.norm1.weight.device
    volume = feature_volume(voxels, features.to(device, planner.partfield_voxel_encoder.input_layer.weight.dtype))
    prompt = planner(image_latents.to(device), torch.from_numpy(grid).to(device)[None], volume)
    prompt = prompt.to(planner.decoder.dtype)
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(probabilities: Tensor) -> int:
        return int(torch.multinomial(probabilities, 1, generator=generator))

    tokens = generate_tokens(
        planner.decoder, prompt, planner.tokenizer, draw, max_boxes, temperature, top_k, top_p, progress, boxes
    )
    return planner.tokenizer.decode(tokens.numpy())
