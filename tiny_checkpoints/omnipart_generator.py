"""Small OmniPart flows and decoders in TRELLIS' on-disk layout, fitted so that they generate a totem of three sections.

The totem is a body of revolution around the z axis. Its field, positive inside, is a sum of functions of x, y and z,
because that is what a linear layer can make of the position embeddings of the structure flow.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from networks.omnipart.slat_decoder import SLatGaussianDecoder, SLatMeshDecoder
from networks.omnipart.slat_flow import SLatFlowModel
from networks.omnipart.sparse_structure import ResBlock3d, SparseStructureDecoder, SparseStructureFlowModel

WIDTH = 64  # of the flows and of the image tokens
LATENT_RESOLUTION, LATENT_CHANNELS = 16, 8
RESOLUTION = 64
# The totem along z: (end of the section, radius) in voxels, from FOOT up.
FOOT, SECTIONS = 21, ((27, 6.0), (36, 4.5), (42, 3.5))
AXIS = 31.5  # the middle of the grid, in voxel coordinates
FIELD_SLOPE = 0.06  # latent units per squared voxel
FIELD_LIMIT = 10.0  # voxels from the axis at which the field stops falling


def write_generator(folder: Path) -> None:
    """Flows and decoders, with the pipeline file that names them."""
    networks = {
        "sparse_structure_flow_model": (*structure_flow(), "ss_flow_tiny"),
        "sparse_structure_decoder": (*structure_decoder(), "ss_dec_tiny"),
        "slat_flow_model": (*latent_flow(), "slat_flow_tiny"),
        "slat_decoder_mesh": (*mesh_decoder(), "slat_dec_mesh_tiny"),
        "slat_decoder_gs": (*gaussian_decoder(), "slat_dec_gs_tiny"),
    }
    (folder / "ckpts").mkdir(exist_ok=True)
    for network, arguments, stem in networks.values():
        network.set_torso_dtype(torch.float16)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / f"ckpts/{stem}.safetensors")
        description = {"name": type(network).__name__, "args": arguments | {"use_fp16": True}}
        write_json(folder / f"ckpts/{stem}.json", description)
    sampler = {
        "name": "FlowEulerGuidanceIntervalSampler",
        "args": {"sigma_min": 1e-5},
        "params": {"steps": 25, "cfg_strength": 7.5, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0},
    }
    arguments = {
        "models": {role: f"ckpts/{stem}" for role, (_, _, stem) in networks.items()},
        "sparse_structure_sampler": sampler,
        "slat_sampler": sampler,
        "slat_normalization": {"mean": [0.0] * 9, "std": [1.0] * 9},
        "image_cond_model": "dinov2_vitl14_reg",
    }
    write_json(folder / "pipeline.json", {"name": "OmniPartImageTo3DPipeline", "args": arguments})


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def totem_field(points: Tensor) -> Tensor:
    """Positive inside the totem: [..., 3] voxel coordinates -> [...]. A sum of functions of one axis each."""
    x, y, z = points.unbind(-1)
    radius = torch.zeros_like(z)
    start = FOOT
    for end, section in SECTIONS:
        radius = torch.where((z >= start) & (z < end), section, radius)
        start = end
    across = [(axis - AXIS).abs().clamp(max=FIELD_LIMIT).square() for axis in (x, y)]
    along = torch.where(radius > 0, radius.square(), -(((z - AXIS).abs() - 8).clamp(0, FIELD_LIMIT).square()))
    return FIELD_SLOPE * (along - across[0] - across[1])


def cell_centres(resolution: int) -> Tensor:
    """Centres of the cells of a grid over the 64^3 voxels, in voxel coordinates: [r, r, r, 3]."""
    ticks = (torch.arange(resolution) + 0.5) * (RESOLUTION / resolution) - 0.5
    return torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), dim=-1)


def target_latent() -> Tensor:
    """The totem's field in every latent channel, alternating in sign: [1, C, r, r, r]."""
    field = totem_field(cell_centres(LATENT_RESOLUTION))
    return (latent_signs()[:, None, None, None] * field)[None]


def latent_signs() -> Tensor:
    """Alternating signs of the latent channels."""
    return 1.0 - 2 * (torch.arange(LATENT_CHANNELS) % 2)


def structure_flow() -> tuple[nn.Module, dict]:
    """A flow whose velocity is about minus the target: noise ends as noise plus target."""
    arguments = {
        "resolution": LATENT_RESOLUTION,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "model_channels": WIDTH,
        "cond_channels": WIDTH,
        "num_blocks": 1,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 1,
        "pe_mode": "ape",
        "qk_rms_norm": True,
    }
    flow = SparseStructureFlowModel(**arguments).eval()
    # Only the position may weigh much in the readout: guidance multiplies whatever depends on the picture.
    flow.input_layer.weight.mul_(0.02)
    for block in flow.blocks:
        for layer in (block.self_attn.to_out, block.mlp.mlp[2]):
            layer.weight.mul_(0.02)
        block.cross_attn.to_out.weight.mul_(0.001)
    features, goals = [], []
    for time in (1000.0, 700.0, 300.0):
        for condition in (torch.randn(1, 40, WIDTH), torch.zeros(1, 40, WIDTH)):
            latent = target_latent() * (1 - time / 1000) + torch.randn_like(target_latent())
            features.append(
                inputs_of(flow.out_layer, lambda x=latent, t=time, c=condition: flow(x, torch.tensor([t]), c))[0]
            )
            goals.append(-target_latent()[0].flatten(1).T)
    weight, bias = fit_readout(torch.cat(features), torch.cat(goals), ridge=1e-4)
    flow.out_layer.weight.copy_(weight)
    flow.out_layer.bias.copy_(bias)
    return flow, arguments


def structure_decoder() -> tuple[nn.Module, dict]:
    """A decoder that averages the latent's channels, interpolates, and tells the sign of the field at 64^3."""
    arguments = {
        "out_channels": 1,
        "latent_channels": LATENT_CHANNELS,
        "num_res_blocks": 1,
        "num_res_blocks_middle": 1,
        "channels": [16, 8, 8],
    }
    decoder = SparseStructureDecoder(**arguments).eval()
    mean = latent_signs() / LATENT_CHANNELS
    decoder.input_layer.weight.mul_(0.01)
    decoder.input_layer.weight[:, :, 1, 1, 1] += torch.randn(16, 1) * mean
    for block in (*decoder.middle_block, *decoder.blocks):
        if isinstance(block, ResBlock3d):
            block.conv2.weight.mul_(0.05)
        else:
            interpolate(block.conv)
    convolution = decoder.out_layer[2]
    latent = target_latent() + torch.randn(1, LATENT_CHANNELS, *[LATENT_RESOLUTION] * 3)
    features = inputs_of(convolution, lambda: decoder(latent))[0].flatten(1).T
    goal = totem_field(cell_centres(RESOLUTION)).flatten()
    near = goal > -1
    weight, bias = fit_readout(features[near], goal[near, None].sign())
    convolution.weight.zero_()
    convolution.weight[:, :, 1, 1, 1] = weight
    convolution.bias.copy_(bias)
    return decoder, arguments


def interpolate(convolution: nn.Conv3d) -> None:
    """Make the convolution in front of a pixel shuffle upsample linearly, its channels mixed at random."""
    taps = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])  # for the two halves of a cell
    kernel = torch.einsum("ix,jy,kz->ijkxyz", taps, taps, taps).reshape(8, 1, 3, 3, 3)
    outputs, inputs = convolution.weight.shape[0] // 8, convolution.weight.shape[1]
    mixing = torch.randn(outputs, 1, inputs, 1, 1, 1) / inputs**0.5
    convolution.weight.copy_((mixing * kernel).flatten(0, 1))
    convolution.bias.zero_()


def latent_flow() -> tuple[nn.Module, dict]:
    """A random flow over latents that trusts most voxels: its last channel, the confidence, is biased."""
    arguments = {
        "resolution": RESOLUTION,
        "in_channels": 9,
        "out_channels": 9,
        "model_channels": WIDTH,
        "cond_channels": WIDTH,
        "num_blocks": 2,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 2,
        "num_io_res_blocks": 2,
        "io_block_channels": [32],
        "pe_mode": "ape",
        "qk_rms_norm": True,
    }
    flow = SLatFlowModel(**arguments).eval()
    flow.out_layer.weight.mul_(0.2)
    flow.out_layer.bias[8] = -3.0
    return flow, arguments


TORSO = {
    "resolution": RESOLUTION,
    "model_channels": 32,
    "latent_channels": 8,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
    "attn_mode": "swin",
    "window_size": 8,
}


def mesh_decoder() -> tuple[nn.Module, dict]:
    """Distances biased to the inside: the surface is the outside of the active voxels, with random dents and colours."""
    arguments = TORSO | {"num_groups": 4, "representation_config": {"use_color": True}}
    decoder = SLatMeshDecoder(**arguments).eval()
    decoder.out_layer.weight[:8].mul_(0.1)
    decoder.out_layer.bias[:8] = -0.5
    decoder.out_layer.weight[53:].mul_(3)
    return decoder, arguments


def gaussian_decoder() -> tuple[nn.Module, dict]:
    """A random decoder to eight Gaussians a voxel."""
    representation = {
        "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
        "perturb_offset": True,
        "voxel_size": 1.5,
        "num_gaussians": 8,
        "2d_filter_kernel_size": 0.1,
        "3d_filter_kernel_size": 9e-4,
        "scaling_bias": 4e-3,
        "opacity_bias": 0.1,
        "scaling_activation": "softplus",
    }
    arguments = TORSO | {"representation_config": representation}
    return SLatGaussianDecoder(**arguments).eval(), arguments


def totem_boxes() -> np.ndarray:
    """Boxes of the totem's sections in the unit cube, float64 [3, 2, 3]."""
    boxes, start = [], FOOT
    for end, radius in SECTIONS:
        low, high = AXIS + 0.5 - radius, AXIS + 0.5 + radius
        boxes.append([[low, low, start], [high, high, end]])
        start = end
    return np.array(boxes) / RESOLUTION - 0.5


def fit_readout(features: Tensor, targets: Tensor, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weight [k, d] and bias [k] of the linear map from features [n, d] to targets [n, k] with the least square error."""
    features, targets = features.double(), targets.double()
    mean, goal = features.mean(0), targets.mean(0)
    centred = features - mean
    gram = centred.T @ centred / len(features)
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ (targets - goal) / len(features)).T
    return weight.float(), (goal - weight @ mean).float()


def inputs_of(module: nn.Module, call: Callable[[], object]) -> Tensor:
    """What `module` is given while `call()` runs."""
    seen = []
    hook = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    call()
    hook.remove()
    return seen[-1]
