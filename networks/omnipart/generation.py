"""The stages of the 3D generation, each a function of one loaded network, so that the next can be loaded after it.

    latent = sample_structure(flow, condition, settings, seed)            # [1, 8, 16, 16, 16]
    voxels = decode_structure(decoder, latent)                            # [N, 4]
    (boxes and part layout)
    features = sample_latents(flow, coords, slices, condition, masks, settings, seed)
    coords, features, sizes = divide_slat(coords, features, slices, mean, std)
    for mesh in decode_parts(mesh_decoder, coords, features, sizes): ...
    for splats in decode_parts(gaussian_decoder, coords, features, sizes): ...

A caller that keeps no reference to a network beyond its stage holds one network at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from networks.omnipart.gaussians import Gaussians
from networks.omnipart.sampler import Progress, SamplerSettings, sample_flow
from networks.omnipart.slat_decoder import SLatGaussianDecoder, SLatMeshDecoder
from networks.omnipart.slat_flow import PartSlices, SLatFlowModel
from networks.omnipart.sparse_structure import SparseStructureDecoder, SparseStructureFlowModel, occupied_voxels
from networks.omnipart.surface import SurfaceMesh
from shared_utils.errors import PostConditionError


def _device(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device


def _noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Drawn on the CPU whatever the device, from a fresh stream for each stage: a seed means the same everywhere."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).to(device)


@torch.no_grad()
def sample_structure(
    flow: SparseStructureFlowModel,
    condition: Tensor,
    settings: SamplerSettings,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Image condition [1, tokens, C] -> dense latent [1, out, R, R, R], float32 on the network's device."""
    device = _device(flow)
    noise = _noise((1, flow.in_channels, *[flow.resolution] * 3), seed, device)
    return sample_flow(
        lambda x, t, cond, _masks: flow(x, t, cond), noise, condition.to(device), settings, progress=progress
    )


@torch.no_grad()
def decode_structure(decoder: SparseStructureDecoder, latent: Tensor) -> Tensor:
    """Latent -> occupied voxels int32 [N, 4] (0, x, y, z) on the CPU, row-major.

    Raises PostConditionError when there are none.
    """
    voxels = occupied_voxels(decoder(latent.to(_device(decoder)))).cpu()
    if len(voxels) == 0:
        raise PostConditionError("the sparse structure came out empty: no voxel is occupied; try another seed")
    return voxels


@torch.no_grad()
def sample_latents(
    flow: SLatFlowModel,
    coords: Tensor,
    slices: PartSlices,
    condition: Tensor,
    masks: Tensor,
    settings: SamplerSettings,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Latents of one object and its parts, float32 [M, in] on the network's device, rows as in coords.

    coords int [M, 4] (0, x, y, z), slices the whole object and then its parts, condition [1, tokens, C], masks int
    [1, h, w] (0 = background, k = part k).
    """
    device = _device(flow)
    grid = flow.grid(coords.to(device), [slices])
    noise = _noise((len(coords), flow.in_channels), seed, device)
    return sample_flow(
        lambda x, t, cond, ids: flow(x, t, cond, ids, grid),
        noise,
        condition.to(device),
        settings,
        masks=masks.to(device),
        batch_size=1,
        progress=progress,
    )


@torch.no_grad()
def decode_parts(
    decoder: SLatMeshDecoder | SLatGaussianDecoder,
    coords: Tensor,
    features: Tensor,
    sizes: list[int],
    progress: Progress | None = None,
) -> Iterator[SurfaceMesh | Gaussians]:
    """Decode part after part (they do not influence each other): one result on the CPU for each entry of sizes.

    coords int [M, 4] with the parts' rows one after another, features [M, latent], as `divide_slat` returns them. A part
    without rows gives an empty mesh or no Gaussians.
    """
    device = _device(decoder)
    start = 0
    for index, size in enumerate(sizes):
        rows = slice(start, start + size)
        start += size
        result = decoder.decode(coords[rows].to(device), features[rows].to(device)).to("cpu")
        if progress is not None:
            progress(index + 1, len(sizes))
        yield result
