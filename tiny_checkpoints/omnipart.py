"""Small random OmniPart weights in the true on-disk formats, with which every stage runs in seconds on a CPU.

    paths = build(Path("somewhere"))
    paths.omnipart        pipeline.json and ckpts/<stem>.json, <stem>.safetensors, torso in float16
    paths.modules         bbox_gen.ckpt, partfield_encoder.ckpt: pickles as Lightning writes them
    paths.segmenter       SAM in transformers' layout
    paths.image_encoder   DINOv2 with registers in transformers' layout

A purely random network leaves nothing for the stage behind it: no voxel, no part, boxes turned inside out. So the last
layer of some networks is fitted by least squares, or their position table is written, such that they answer with the
object of `example_image()`: a totem of three parts. Everything in front of that stays random.
"""

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn

from networks.omnipart.bbox_tokens import BoxTokenizer
from networks.omnipart.box_planner import BoxPlanner, PlannerSizes
from networks.omnipart.images import IMAGE_SIZE, over_white, resize_and_pad
from networks.omnipart.partfield import PartField
from networks.omnipart.segment_anything import prepare_pixels
from networks.omnipart.slat_decoder import SLatGaussianDecoder, SLatMeshDecoder
from networks.omnipart.slat_flow import SLatFlowModel
from networks.omnipart.sparse_structure import ResBlock3d, SparseStructureDecoder, SparseStructureFlowModel

WIDTH = 64  # of every transformer here
IMAGE_TOKENS = 1374  # class, 4 registers, 37 x 37 patches
VOXEL_TOKENS = 512
PART_COLOURS = ((205, 70, 50), (50, 95, 200), (70, 160, 85))
POINTS_PER_SIDE = 8  # of the mask generator: all points find the same masks, 32 would only take longer

LATENT_RESOLUTION, LATENT_CHANNELS = 16, 8
RESOLUTION = 64
# The totem along z: (end of the section, radius) in voxels around the axis at 32, from FOOT up.
FOOT, SECTIONS = 20, ((27, 7.0), (37, 5.0), (43, 4.0))
AXIS = 31.5
FIELD_SLOPE = 0.06  # latent units per squared voxel
FIELD_LIMIT = 16.0  # voxels from the axis at which the field stops falling


@dataclass(frozen=True)
class TinyPaths:
    """Folders of a built set."""

    omnipart: Path
    modules: Path
    segmenter: Path
    image_encoder: Path


def example_image(size: int = 256) -> Image.Image:
    """RGBA picture of the totem: head, trunk and foot, each of one colour, on a transparent background."""
    image = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    foot, trunk, head = ((*colour, 255) for colour in PART_COLOURS)
    draw.rounded_rectangle((56, 180, 200, 236), 20, fill=foot)
    draw.rectangle((84, 88, 172, 180), fill=trunk)
    draw.ellipse((92, 20, 164, 92), fill=head)
    return image.resize((size, size), Image.Resampling.NEAREST)


def build(folder: Path, seed: int = 0) -> TinyPaths:
    """Write the four folders into `folder` (made if absent) and return where they are."""
    folder = Path(folder)
    paths = TinyPaths(
        folder / "OmniPart",
        folder / "OmniPart_modules",
        folder / "sam-vit-huge",
        folder / "dinov2-with-registers-large",
    )
    for path in vars(paths).values():
        path.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        write_generator(paths.omnipart)
        write_modules(paths.modules)
        write_segmenter(paths.segmenter)
        write_image_encoder(paths.image_encoder)
    return paths


def fit_readout(features: Tensor, targets: Tensor, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weight [k, d] and bias [k] of the linear map from features [n, d] to targets [n, k] with the least square error."""
    features, targets = features.double(), targets.double()
    mean, goal = features.mean(0), targets.mean(0)
    centred = features - mean
    gram = centred.T @ centred / len(features)
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ (targets - goal) / len(features)).T
    return weight.float(), (goal - weight @ mean).float()


def inputs_of(module: nn.Module, call) -> Tensor:
    """What `module` is given while `call()` runs."""
    seen = []
    hook = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    call()
    hook.remove()
    return seen[-1]


# --- the generator: pipeline.json and five networks


def write_generator(folder: Path) -> None:
    """Flows and decoders, with the pipeline file that names them."""
    flow = structure_flow()
    networks = {
        "sparse_structure_flow_model": (*flow, "ss_flow_tiny"),
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
    along = torch.where(radius > 0, radius.square(), -(((z - 31.5).abs() - 8).clamp(0, FIELD_LIMIT).square()))
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
        "num_blocks": 2,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 1,
        "pe_mode": "ape",
        "qk_rms_norm": True,
    }
    flow = SparseStructureFlowModel(**arguments).eval()
    flow.input_layer.weight.mul_(0.1)
    for block in flow.blocks:
        block.adaLN_modulation[1].weight.mul_(0.1)
        block.cross_attn.to_out.weight.mul_(0.1)
    features, goals = [], []
    for time in (1000.0, 700.0, 300.0):
        for condition in (torch.randn(1, 40, WIDTH), torch.zeros(1, 40, WIDTH)):
            latent = target_latent() * (1 - time / 1000) + torch.randn_like(target_latent())
            features.append(
                inputs_of(flow.out_layer, lambda x=latent, t=time, c=condition: flow(x, torch.tensor([t]), c))[0]
            )
            goals.append(-target_latent()[0].flatten(1).T)
    weight, bias = fit_readout(torch.cat(features), torch.cat(goals))
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
    "model_channels": WIDTH,
    "latent_channels": 8,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
    "attn_mode": "swin",
    "window_size": 8,
}


def mesh_decoder() -> tuple[nn.Module, dict]:
    """Distances biased to the inside: the surface is the outside of the active voxels, with random dents and colours."""
    arguments = TORSO | {"num_groups": 8, "representation_config": {"use_color": True}}
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


# --- box planner and PartField


def write_modules(folder: Path) -> None:
    """The two Lightning pickles. Their hyper-parameters are of a class that the reader does not have."""
    partfield = PartField(
        z_triplane_channels=16,
        z_triplane_resolution=32,
        unet_start_hidden_channels=4,
        unet_depth=3,
        transformer_dim=WIDTH,
        layers=1,
        heads=1,
        low_res=8,
        high_res=32,
        triplane_dim=64 + 13,
    )
    unused = {
        "logit_scale": torch.ones(1),
        "sdf_decoder.layers.0.weight": torch.randn(64, 64),
        "pvcnn.pc_encoder.encoder.1.point_features.layers.0.weight": torch.randn(16, 16, 1),
        "pvcnn.pc_encoder.encoder.2.point_features.layers.0.weight": torch.randn(16, 16, 1),
        "pvcnn.pc_encoder.encoder.3.point_features.layers.0.weight": torch.randn(16, 16, 1),
    }
    save_lightning(folder / "partfield_encoder.ckpt", partfield.state_dict() | unused)
    save_lightning(folder / "bbox_gen.ckpt", box_planner(partfield.feature_channels).state_dict())


def save_lightning(path: Path, state_dict: dict[str, Tensor]) -> None:
    """Pickle a state dict as Lightning does, hyper-parameters in a yacs node included."""
    name = "yacs.config"

    class CfgNode(dict):
        """Pickled under the name of yacs' class."""

    CfgNode.__module__, CfgNode.__qualname__ = name, "CfgNode"
    module = types.ModuleType(name)
    module.CfgNode = CfgNode
    replaced = {key: sys.modules.get(key) for key in ("yacs", name)}
    sys.modules |= {"yacs": types.ModuleType("yacs"), name: module}
    try:
        node = CfgNode(seed=0)
        node.__dict__["__immutable__"] = False
        content = {
            "epoch": 0,
            "global_step": 1,
            "pytorch-lightning_version": "2.2.0",
            "state_dict": {key: tensor.clone() for key, tensor in state_dict.items()},
            "hyper_parameters": {"cfg": node},
        }
        torch.save(content, path)
    finally:
        for key, previous in replaced.items():
            if previous is None:
                del sys.modules[key]
            else:
                sys.modules[key] = previous


def example_boxes() -> np.ndarray:
    """Boxes of the totem's sections, float64 [3, 2, 3]."""
    boxes, start = [], FOOT
    for end, radius in SECTIONS:
        low = np.array([AXIS - radius, AXIS - radius, start])
        high = np.array([AXIS + radius, AXIS + radius, end])
        boxes.append(np.stack([low, high + 1]) / RESOLUTION - 0.5)
        start = end
    return np.stack(boxes)


def box_planner(partfield_channels: int) -> nn.Module:
    """A planner that writes about the totem's boxes: the position table points at their tokens.

    Embeddings of neighbouring coordinates are alike, so sampling strays by a bin or two.
    """
    sizes = PlannerSizes(
        image_dim=WIDTH,
        group_embedding_dim=8,
        decoder_hidden=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=1,
        ffn_dim=WIDTH,
        voxel_in_channels=partfield_channels + 3,
        voxel_encoder_channels=(8, 8, 8, WIDTH),
    )
    planner = BoxPlanner(sizes).eval()
    decoder = planner.decoder.model.decoder
    for layer in decoder.layers:
        layer.self_attn.out_proj.weight.mul_(0.1)
        layer.fc2.weight.mul_(0.1)
    tokens = BoxTokenizer()
    frequency = torch.randn(WIDTH // 2) * 0.15
    angle = torch.arange(tokens.bins)[:, None] * frequency + torch.rand(WIDTH // 2) * 6.28
    embeddings = torch.randn(sizes.vocab_size, WIDTH)
    embeddings[: tokens.bins] = torch.cat([angle.cos(), angle.sin()], dim=1) * 2**0.5
    decoder.embed_tokens.weight.copy_(embeddings)
    answer = torch.from_numpy(tokens.encode(example_boxes()))
    first = IMAGE_TOKENS + VOXEL_TOKENS - 1 + 2  # row of the last prompt token; OPT's positions start at 2
    decoder.embed_positions.weight.mul_(0.1)
    decoder.embed_positions.weight[first : first + len(answer)] = 4 * embeddings[answer]
    planner.decoder.tie_weights()
    return planner


# --- SAM and DINOv2


def write_segmenter(folder: Path) -> None:
    """A SAM whose three masks are the three colours of the example, whatever point it is asked for."""
    from transformers import SamConfig, SamModel

    image_size, patch_size = 128, 4
    grid = image_size // patch_size
    vision = {
        "hidden_size": 48,
        "output_channels": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
        "mlp_dim": 64,
        "window_size": 8,
        "global_attn_indexes": [1],
        "num_pos_feats": WIDTH // 2,
    }
    prompt = {"hidden_size": WIDTH, "image_size": image_size, "patch_size": patch_size, "image_embedding_size": grid}
    decoder = {"hidden_size": WIDTH, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    model = SamModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 1 / parameter[0].numel() ** 0.5)
    for layer in (*model.vision_encoder.layers, *model.mask_decoder.transformer.layers):
        for name, parameter in layer.named_parameters():
            if name in ("attn.proj.weight", "mlp.lin2.weight", "cross_attn_image_to_token.out_proj.weight"):
                parameter.mul_(0.05)
    masks = model.mask_decoder
    for convolution in (masks.upscale_conv1, masks.upscale_conv2):
        convolution.weight.copy_(convolution.weight[:, :, :1, :1].expand_as(convolution.weight))

    image = resize_and_pad(example_image(), IMAGE_SIZE)
    pixels, _ = prepare_pixels(over_white(image), image_size)
    points = torch.full((1, 1, 1, 2), image_size / 2)
    outputs = []
    hook = masks.upscale_conv2.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    model(pixel_values=pixels, input_points=points)
    hook.remove()
    features = masks.activation(outputs[0])[0].flatten(1).T
    regions = np.asarray(image.resize((image_size, image_size), Image.Resampling.NEAREST))
    goals = [
        torch.from_numpy((regions[..., :3] == colour).all(axis=2) & (regions[..., 3] > 0)).flatten()
        for colour in PART_COLOURS
    ]
    readouts = torch.linalg.lstsq(features, 2 * torch.stack(goals, dim=1).float() - 1).solution.T
    for mlp, readout in zip(masks.output_hypernetworks_mlps[1:], readouts, strict=True):
        mlp.proj_out.weight.zero_()
        mlp.proj_out.bias.copy_(40 * readout)
    masks.iou_prediction_head.proj_out.weight.zero_()
    masks.iou_prediction_head.proj_out.bias.fill_(0.95)
    model.save_pretrained(folder)


def write_image_encoder(folder: Path) -> None:
    """A random DINOv2 with registers that makes the published number of tokens."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=IMAGE_SIZE, patch_size=14
    )
    Dinov2WithRegistersModel(config).save_pretrained(folder)
