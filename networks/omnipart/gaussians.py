"""Gaussian splats: their stored and activated values, merging parts, and the columns of a PLY file.

Stored values are those of Kerbl et al. 2023 ("3D Gaussian Splatting") with TRELLIS' biases; the PLY columns are the
ones the viewers of that format read.
"""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PLY_COLUMNS = [
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
]
# (x, y, z) -> (x, -z, y): from the model's frame to that of PLY viewers. GLB files use another map.
PLY_AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


@dataclass(frozen=True)
class GaussianSettings:
    """Constants of the activations; the defaults are the released decoder's."""

    kernel_size_3d: float = 9e-4  # low-pass filter added to every scale, in units of the unit cube
    scaling_bias: float = 4e-3
    opacity_bias: float = 0.1
    scaling_activation: str = "softplus"

    def __post_init__(self):
        if self.scaling_activation not in ("softplus", "exp"):
            raise ValueError(f"scaling_activation {self.scaling_activation!r}: known are 'softplus' and 'exp'")


@dataclass(frozen=True)
class Gaussians:
    """Stored values of n Gaussians: xyz [n, 3] in 0..1, features_dc [n, 1, 3], scaling [n, 3], rotation [n, 4], opacity
    [n, 1]. Scaling, rotation (wxyz) and opacity are kept without bias and activation."""

    xyz: Tensor
    features_dc: Tensor
    scaling: Tensor
    rotation: Tensor
    opacity: Tensor
    settings: GaussianSettings = GaussianSettings()

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def positions(self) -> Tensor:
        """[n, 3] in the unit cube around the origin."""
        return self.xyz - 0.5

    @property
    def scales(self) -> Tensor:
        """Standard deviations [n, 3]."""
        bias, kernel = self.settings.scaling_bias, self.settings.kernel_size_3d
        if self.settings.scaling_activation == "softplus":
            scale = F.softplus(self.scaling + (bias + math.log(-math.expm1(-bias))))
        else:
            scale = torch.exp(self.scaling + math.log(bias))
        return torch.sqrt(scale**2 + kernel**2)

    @property
    def quaternions(self) -> Tensor:
        """Unit quaternions wxyz [n, 4]."""
        return F.normalize(self.rotation + self.rotation.new_tensor([1.0, 0.0, 0.0, 0.0]), dim=-1)

    @property
    def opacity_logits(self) -> Tensor:
        """[n, 1]."""
        bias = self.settings.opacity_bias
        return self.opacity + math.log(bias / (1 - bias))

    @property
    def opacities(self) -> Tensor:
        """[n, 1] in 0..1."""
        return torch.sigmoid(self.opacity_logits)

    def moved(self, offset: Tensor) -> "Gaussians":
        return replace(self, xyz=self.xyz + offset)

    def to(self, device: torch.device | str) -> "Gaussians":
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})


_TENSORS = [field.name for field in fields(Gaussians) if field.name != "settings"]


def merge(parts: list[Gaussians]) -> Gaussians:
    """All parts one after another. Raises ValueError without parts or when their settings differ."""
    if not parts or any(part.settings != parts[0].settings for part in parts):
        raise ValueError("merging needs at least one part, all with the same settings")
    return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS})


def explode(parts: list[Gaussians], distance: float = 0.3) -> list[Gaussians]:
    """Move each part by `distance` along the unit vector from the mean of the parts' centres to its own centre.

    A part without Gaussians has no centre and stays out of the mean; one whose centre is that mean does not move.
    """
    filled = [part for part in parts if len(part)]
    if not filled:
        return list(parts)
    middle = torch.stack([part.xyz.mean(0) for part in filled]).mean(0)
    return [
        part.moved(F.normalize(part.xyz.mean(0) - middle, dim=0) * distance) if len(part) else part for part in parts
    ]


def ply_columns(gaussians: Gaussians) -> np.ndarray:
    """float32 [n, 17], columns as in PLY_COLUMNS: positions and rotations turned to the PLY frame, normals zero, opacity
    as logit, scale as natural logarithm, quaternion wxyz of unit length."""
    axes = PLY_AXES.to(gaussians.xyz)
    # A rotation about x by 90 degrees is the quaternion (1, 1, 0, 0) / sqrt(2).
    turn = gaussians.xyz.new_tensor([math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0])
    columns = torch.cat(
        (
            gaussians.positions @ axes.T,
            torch.zeros_like(gaussians.positions),
            gaussians.features_dc.flatten(1),
            gaussians.opacity_logits,
            torch.log(gaussians.scales),
            F.normalize(_quaternion_product(turn, gaussians.quaternions), dim=-1),
        ),
        dim=1,
    )
    return columns.cpu().numpy().astype(np.float32)


def ply_bytes(gaussians: Gaussians) -> bytes:
    """A binary little-endian PLY file of float32 columns."""
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(gaussians)}"]
    header += [f"property float {name}" for name in PLY_COLUMNS]
    return "\n".join([*header, "end_header", ""]).encode() + ply_columns(gaussians).astype("<f4").tobytes()


def _quaternion_product(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of wxyz quaternions [..., 4]."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        dim=-1,
    )
