"""A small random UniRig in the layout of VAST-AI/UniRig: two Lightning checkpoints, with their sizes beside them.

The decoder is random but for two leanings, without which it would seldom write a skeleton: it ends after some bones, and
prefers coordinates near the middle.
"""

import copyreg
import json
import sys
import types
from pathlib import Path

SKELETON = "skeleton/articulation-xl_quantization_256/model.ckpt"
SKIN = "skin/articulation-xl/model.ckpt"

_LLM = {
    "vocab_size": 267,
    "hidden_size": 48,
    "word_embed_proj_dim": 48,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "do_layer_norm_before": True,
    "activation_function": "relu",
}
_MICHELANGELO = {"width": 32, "heads": 4, "num_encoder_layers": 2, "token_num": 12}
_SKIN = {
    "feat_dim": 32,
    "num_heads": 4,
    "bone_embed_dim": 12,
    "mlp_dim": 16,
    "num_bone_attn": 2,
    "num_mesh_bone_attn": 2,
    "grid_size": 0.03,
    "mesh_encoder": {
        "in_channels": 9,
        "enc_depths": [1, 1, 2],
        "enc_channels": [8, 8, 16],
        "enc_num_head": [2, 2, 2],
    },
    "global_encoder": {"width": 24, "heads": 2, "num_encoder_layers": 1, "token_num": 10},
}
_LEANING = 6.0  # length of the final norm's bias, which logits of the favoured tokens see as a constant
_MIDDLE_BINS = 40  # of 256, on either side
_TO_THE_MIDDLE, _TO_BRANCHES = 0.8, 0.9  # what coordinates and branches gain, in units of the leaning
# The end comes after about this many tokens: from there on the positions speak for it, before against it.
_LENGTH = 24
_BEFORE, _AFTER, _TO_THE_END = -1.0, 4.0, 3.0


class _Box(dict):
    """Pickles as python-box's `Box`, which the hyper-parameters of the published checkpoints are made of."""

    def __reduce_ex__(self, protocol: int):
        return copyreg.__newobj__, (type(self),), {"_box_config": {"frozen_box": False}}, None, iter(self.items())


def build(folder: Path, seed: int = 0) -> Path:
    """Write both checkpoints (about 0.5 MB, float32) into `folder` and return it."""
    import torch

    from networks.unirig.ar import SkeletonModel
    from networks.unirig.skin import SkinModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        skeleton = SkeletonModel(_LLM, _MICHELANGELO)
        lean(skeleton)
        skin = SkinModel.from_config(_SKIN)
    _save(folder / SKELETON, skeleton, {"llm": _LLM, "mesh_encoder": _MICHELANGELO})
    _save(folder / SKIN, skin, _SKIN)
    return folder


def lean(model) -> None:
    """Make the decoder's skeletons short and central."""
    import torch

    tokens = model.tokenizer
    decoder = model.transformer.model.decoder
    embedding, positions = decoder.embed_tokens.weight, decoder.embed_positions.weight
    with torch.no_grad():
        embedding.normal_(std=0.25)
        middle, end = torch.linalg.qr(torch.randn(embedding.shape[1], 2))[0].T
        end = end - end.mean()  # layer norms take the mean away
        for direction in (middle, end):
            embedding -= (embedding @ direction)[:, None] * direction
        decoder.final_layer_norm.bias.copy_(_LEANING * middle)
        centre = tokens.num_discrete // 2
        embedding[centre - _MIDDLE_BINS : centre + _MIDDLE_BINS] += _TO_THE_MIDDLE * middle
        embedding[tokens.branch] += _TO_BRANCHES * middle
        embedding[tokens.eos] = _TO_THE_END * end
        late = decoder.embed_positions.offset + model.mesh_encoder.token_num + 2 + _LENGTH
        positions[:late] += _BEFORE * end
        positions[late:] += _AFTER * end


def _save(path: Path, model, sizes: dict) -> None:
    """A Lightning checkpoint with boxes in it; python-box itself is not needed."""
    import torch

    path.parent.mkdir(parents=True)
    content = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "hyper_parameters": _Box(model=_Box(__target__=path.parts[-3], sizes=_Box(sizes))),
        "loops": {},
    }
    module = types.ModuleType("box.box")
    module.Box = _Box
    named, before = (_Box.__module__, _Box.__qualname__), {n: sys.modules.get(n) for n in ("box", "box.box")}
    _Box.__module__, _Box.__qualname__ = "box.box", "Box"
    sys.modules |= {"box": types.ModuleType("box"), "box.box": module}
    try:
        torch.save(content, path)
    finally:
        _Box.__module__, _Box.__qualname__ = named
        for name, old in before.items():
            sys.modules.pop(name) if old is None else sys.modules.__setitem__(name, old)
    (path.parent / "config.json").write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
