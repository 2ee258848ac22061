"""Image conditions: tokens of DINOv2 with registers (Darcet et al., "Vision Transformers Need Registers", 2023)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from shared_utils.errors import InvalidInputError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CONDITION_EPS = 1e-5


@dataclass
class ImageTokens:
    """Tokens float32 [1, 1 + registers + patches, D] of one picture.

    `condition`: the last block's output, layer-normed without the model's own norm: what the flows are conditioned on.
    `normalised`: the model's final output: what the box planner reads.
    """

    condition: Tensor
    normalised: Tensor


def load_image_encoder(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Dinov2WithRegistersModel from a local folder in transformers' layout. InvalidInputError for anything else."""
    from transformers import Dinov2WithRegistersModel

    return load_pretrained(Dinov2WithRegistersModel, folder, device, dtype)


def load_pretrained(kind: type, folder: Path, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """A transformers model from a local folder: safetensors only, no request, nothing left randomly initialised."""
    try:
        model, report = kind.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InvalidInputError(
            f"{folder}: no {kind.__name__} can be read there: {str(error).splitlines()[0]}"
        ) from error
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise InvalidInputError(f"{folder}: {len(absent)} tensors are missing or misshapen, such as {absent[0]}")
    return model.to(device).eval().requires_grad_(False)


@torch.inference_mode()
def encode_image(model: nn.Module, image: np.ndarray) -> ImageTokens:
    """Tokens of a picture float32 [3, H, W] in 0..1; H and W are multiples of the model's patch size."""
    parameter = next(model.parameters())
    mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (MEAN, STD))
    pixels = ((torch.from_numpy(image) - mean) / std)[None].to(parameter)
    output = model(pixel_values=pixels, output_hidden_states=True)
    last = output.hidden_states[-1].float()
    return ImageTokens(
        condition=F.layer_norm(last, last.shape[-1:], eps=CONDITION_EPS),
        normalised=output.last_hidden_state.float(),
    )
