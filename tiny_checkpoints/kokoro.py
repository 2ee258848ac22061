"""A small Kokoro checkpoint with random weights, in the layout of hexgrad/Kokoro-82M.

    config.json
    kokoro-v1_0.pth    state dicts of bert, bert_encoder, predictor, text_encoder, decoder, names with `module.` in front
    voices/<name>.pt   float32 [510, 1, 256]

The widths of the decoder are fixed in the model's code, so small means: fewer and narrower layers elsewhere, fewer samples a
step of the generator, and a file in which all rows of a large weight share one piece of memory.
"""

import json
from pathlib import Path

from networks.kokoro.config import CONFIG_V1, MAX_PHONEMES, STYLE_WIDTH

VOICES = (
    "af_heart",
    "af_bella",
    "bf_emma",
    "ef_dora",
    "ff_siwis",
    "hf_alpha",
    "if_sara",
    "jf_alpha",
    "pf_dora",
    "zf_xiaobei",
)

CONFIG = {
    **CONFIG_V1,
    "istftnet": {
        # Two doublings and a hop of 75 make the same 300 samples of a half step as the real 10 x 6 x 5.
        "upsample_kernel_sizes": [4, 4],
        "upsample_rates": [2, 2],
        "gen_istft_hop_size": 75,
        "gen_istft_n_fft": 300,
        "resblock_dilation_sizes": [[1, 3, 5]],
        "resblock_kernel_sizes": [3],
        "upsample_initial_channel": 512,
    },
    "n_layer": 1,
    "plbert": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "num_hidden_layers": 1,
        "dropout": 0.1,
    },
}
SHARED_ABOVE = 1 << 14  # numbers; larger weights are stored as one row, repeated
STEPS = 3.0  # of 25 ms a phoneme takes on average
PITCH = 150.0  # Hz, about which the voice moves
GAIN = 0.04  # length of the weights of the generator's last layers
LOUDNESS = 4.5  # logarithm of a spectral bin


def make_kokoro(folder: Path, seed: int = 0, voices: tuple[str, ...] = VOICES, config: dict = CONFIG) -> Path:
    """Write the checkpoint (a few MB) into `folder` and return it; the same seed gives the same files."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(random_parts(config), folder / "kokoro-v1_0.pth")
        (folder / "voices").mkdir(exist_ok=True)
        for name in voices:
            # Rows of a real voice hardly differ from one another.
            row = 0.3 * torch.randn(1, 1, STYLE_WIDTH)
            torch.save(row + 0.01 * torch.randn(MAX_PHONEMES, 1, STYLE_WIDTH), folder / "voices" / f"{name}.pt")
    return folder


def random_parts(config: dict) -> dict:
    """State dicts by part, as in the real file: without instance norms' scale and shift, which are the identity."""
    import math

    import torch

    from networks.kokoro.checkpoint import PARTS, empty_kmodel

    with torch.device("meta"):
        model = empty_kmodel(config)
    parts = {}
    for part in PARTS:
        module = getattr(model, part)
        state = {}
        for name, weight in module.state_dict().items():
            if isinstance(module.get_submodule(name.rpartition(".")[0]), torch.nn.InstanceNorm1d):
                continue
            state[f"module.{name}"] = random_weight(name, tuple(weight.shape))
        parts[part] = state
    predictor, decoder = parts["predictor"], parts["decoder"]
    bias = predictor["module.duration_proj.linear_layer.bias"]
    # The sum of max_dur sigmoids is the number of steps.
    bias.fill_(math.log(STEPS / (len(bias) - STEPS)))
    predictor["module.F0_proj.bias"].fill_(PITCH)
    # All channels of a repeated weight are alike and add up, and the generator ends with an exponential.
    for name in ("ups.0", "ups.1", "conv_post"):
        decoder[f"module.generator.{name}.weight_g"].fill_(GAIN)
    decoder["module.generator.conv_post.bias"].fill_(LOUDNESS)
    return parts


def random_weight(name: str, shape: tuple[int, ...]):
    """A weight of about the scale that keeps signals at theirs."""
    import torch

    last = name.rpartition(".")[2]
    if last == "weight_g":
        return 0.8 + 0.4 * torch.rand(shape)
    if last in ("gamma",) or "alpha" in name or "LayerNorm.weight" in name or "layer_norm.weight" in name:
        return torch.ones(shape)
    if len(shape) < 2:
        return 0.02 * torch.randn(shape)
    inputs = torch.Size(shape[1:]).numel()
    size = torch.Size(shape).numel()
    if size > SHARED_ABOVE:
        return (torch.randn(1, *shape[1:]) / inputs**0.5).expand(shape)
    return torch.randn(shape) / inputs**0.5
