"""The skeleton model: point latents are the prompt of an OPT decoder that writes bones as tokens."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from networks.unirig.checkpoint import load_weights, read_checkpoint, read_config
from networks.unirig.generation import GenerationSettings, generate
from networks.unirig.grammar import Grammar, State
from networks.unirig.michelangelo import MichelangeloEncoder
from networks.unirig.tokenizer import Tokenizer

# The decoder of the published model. Token 1 is an ordinary coordinate: as padding index it only matters in training.
PUBLISHED_LLM = {
    "vocab_size": 267,
    "hidden_size": 1024,
    "word_embed_proj_dim": 1024,
    "ffn_dim": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 3076,
    "do_layer_norm_before": True,
    "activation_function": "relu",
}
LM_HEAD = "transformer.lm_head.weight"  # tied to the token embedding; checkpoints may omit it


class SkeletonModel(nn.Module):
    """Michelangelo encoder, projection and OPT decoder under the names of the published checkpoint.

    llm: arguments of `OPTConfig`. mesh_encoder: configuration of `MichelangeloEncoder`. Both default to the published
    sizes.
    """

    def __init__(self, llm: dict | None = None, mesh_encoder: dict | None = None):
        super().__init__()
        config = OPTConfig(**{"pad_token_id": 1, "dropout": 0.0, **(PUBLISHED_LLM if llm is None else llm)})
        # The mask of `BeamDecoder` is boolean, which the eager attention does not take.
        self.transformer = OPTForCausalLM._from_config(config, attn_implementation="sdpa")
        self.mesh_encoder = MichelangeloEncoder.from_config(mesh_encoder or {})
        self.output_proj = nn.Linear(self.mesh_encoder.width, config.hidden_size)
        self.tokenizer = Tokenizer()
        if config.vocab_size != self.tokenizer.vocab_size:
            raise ValueError(f"vocab_size {config.vocab_size}: the tokens of UniRig need {self.tokenizer.vocab_size}")
        self.eval()

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "SkeletonModel":
        """Load a checkpoint (see `checkpoint.read_checkpoint`) of the published sizes, or of those in the `config.json`
        beside it (`llm` and `mesh_encoder`)."""
        weights = read_checkpoint(path)
        with torch.device("meta"):
            model = cls(**read_config(path))
        load_weights(model, weights, optional={LM_HEAD})
        return model.to(device, dtype)

    @property
    def max_new_tokens(self) -> int:
        """How many tokens fit after the latents, bos and class."""
        return self.transformer.config.max_position_embeddings - self.mesh_encoder.token_num - 2

    def encode(self, points: Tensor, normals: Tensor) -> Tensor:
        """(1, N, 3) points in [-1, 1] and normals -> (1, token_num, hidden) conditioning."""
        return self.output_proj(self.mesh_encoder(points, normals))

    def prompt(self, condition: Tensor, start_tokens: Tensor) -> Tensor:
        """Conditioning (1, T, hidden) and int64 (n,) start tokens -> (1, T + n, hidden) embeddings."""
        embedded = self.transformer.get_input_embeddings()(start_tokens)[None]
        return torch.cat([condition, embedded.to(condition.dtype)], dim=1)

    @torch.no_grad()
    def generate(
        self,
        points: Tensor,
        normals: Tensor,
        settings: GenerationSettings,
        *,
        skeleton_class: str = "articulationxl",
        published_grammar: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Points and normals, float32 (N, 3) each -> int64 ids on the CPU, from bos to eos.

        eos is missing when `max_new_tokens` was reached first. published_grammar: see `grammar`. Raises ValueError when
        `max_new_tokens` exceeds the positions the decoder has.
        """
        if not 1 <= settings.max_new_tokens <= self.max_new_tokens:
            raise ValueError(f"max_new_tokens {settings.max_new_tokens}: must be 1 to {self.max_new_tokens}")
        device = self.output_proj.weight.device
        tokens = self.tokenizer
        start = torch.tensor([tokens.bos, tokens.class_ids[skeleton_class]], device=device)
        condition = self.encode(points.to(device)[None], normals.to(device)[None])
        ids = generate(
            self.transformer,
            self.prompt(condition, start),
            Grammar(tokens, published=published_grammar, device=device),
            int(State.AFTER_CLASS),
            settings,
            eos=tokens.eos,
            progress=progress,
        )
        return torch.cat([start, ids]).cpu()
