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

import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from networks.omnipart.bbox_tokens import BoxTokenizer
from networks.omnipart.box_planner import BoxPlanner, PlannerSizes
from networks.omnipart.images import IMAGE_SIZE, over_white, resize_and_pad
from networks.omnipart.partfield import PartField
from networks.omnipart.segment_anything import prepare_pixels
from tiny_checkpoints.omnipart_generator import WIDTH, totem_boxes, write_generator

IMAGE_TOKENS = 1374  # class, 4 registers, 37 x 37 patches
VOXEL_TOKENS = 512
PART_COLOURS = ((205, 70, 50), (50, 95, 200), (70, 160, 85))  # foot, trunk, head
EXAMPLE_CELLS = 32
# Rectangles (top, left, bottom, right) of each part in cells of the example picture.
PART_CELLS = (
    ((23, 9, 26, 23), (26, 7, 29, 25)),
    ((12, 11, 23, 21), (14, 9, 20, 23)),
    ((4, 13, 12, 19), (6, 12, 10, 20)),
)
POINTS_PER_SIDE = 8  # of the mask generator: all points find the same masks, 32 would only take longer


@dataclass(frozen=True)
class TinyPaths:
    """Folders of a built set."""

    omnipart: Path
    modules: Path
    segmenter: Path
    image_encoder: Path


def example_image(scale: int = 16) -> Image.Image:
    """RGBA picture of the totem: head, trunk and foot, each of one colour, on a transparent background.

    It is made of 32 x 32 squares, which are the patches that the segmenter sees.
    """
    cells = np.zeros((EXAMPLE_CELLS, EXAMPLE_CELLS, 4), dtype=np.uint8)
    for colour, inside in zip(PART_COLOURS, part_cells(), strict=True):
        cells[inside] = (*colour, 255)
    return Image.fromarray(cells).resize((EXAMPLE_CELLS * scale,) * 2, Image.Resampling.NEAREST)


def part_cells() -> np.ndarray:
    """Which cells of the example picture belong to which part: bool [3, 32, 32]."""
    inside = np.zeros((len(PART_CELLS), EXAMPLE_CELLS, EXAMPLE_CELLS), dtype=bool)
    for mask, rectangles in zip(inside, PART_CELLS, strict=True):
        for top, left, bottom, right in rectangles:
            mask[top:bottom, left:right] = True
    return inside


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
    answer = torch.from_numpy(tokens.encode(totem_boxes()))
    first = IMAGE_TOKENS + VOXEL_TOKENS - 1 + 2  # row of the last prompt token; OPT's positions start at 2
    decoder.embed_positions.weight.mul_(0.1)
    decoder.embed_positions.weight[first : first + len(answer)] = 4 * embeddings[answer]
    planner.decoder.tie_weights()
    return planner


# --- SAM and DINOv2


def write_segmenter(folder: Path) -> None:
    """A SAM whose three masks are the three colours of the example, whatever point it is asked for."""
    from transformers import SamConfig, SamModel

    image_size, patch_size, width = 4 * EXAMPLE_CELLS, 4, WIDTH
    grid = image_size // patch_size
    vision = {
        "hidden_size": 48,
        "output_channels": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
        "mlp_dim": 64,
        "window_size": 8,
        "global_attn_indexes": [1],
        "num_pos_feats": width // 2,
    }
    prompt = {"hidden_size": width, "image_size": image_size, "patch_size": patch_size, "image_embedding_size": grid}
    decoder = {"hidden_size": width, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    model = SamModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 1 / parameter[0].numel() ** 0.5)
    for layer in (*model.vision_encoder.layers, *model.mask_decoder.transformer.layers):
        for name, parameter in layer.named_parameters():
            if name in ("attn.proj.weight", "mlp.lin2.weight"):
                parameter.mul_(0.05)
            elif name == "cross_attn_image_to_token.out_proj.weight":
                parameter.mul_(0.005)
    neck = model.vision_encoder.neck.conv2.weight  # keeps what a patch shows from spreading to its neighbours
    neck.mul_(torch.tensor([[0.05] * 3, [0.05, 3.0, 0.05], [0.05] * 3]))
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
    inside = torch.from_numpy(np.kron(part_cells(), np.ones((1, patch_size, patch_size)))).flatten(1).T
    readouts = torch.linalg.lstsq(features, 2 * inside.float() - 1).solution.T
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
