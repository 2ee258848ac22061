"""The skin stage: a prepared mesh and its joints get skin weights.

model = SkinModel.from_checkpoint("skin/articulation-xl/model.ckpt")
weights = predict_skin(model, mesh, skeleton.joints, skeleton.parents, SkinSettings(seed=42))
weights = transfer_weights(mesh.vertices, mesh.faces, weights, original_points, original_triangles)
weights = top_k(weights, 4)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from networks.unirig.mesh_prep import PreparedMesh
from networks.unirig.normalize import fit_matrix, transform
from networks.unirig.reskin import reskin
from networks.unirig.sampler import MeshSamples, draw, sample_mesh
from networks.unirig.skin import SkinModel
from networks.unirig.voxel_skin import voxel_skin
from shared_utils.errors import InvalidInputError


@dataclass(frozen=True)
class SkinSettings:
    """Defaults are the published ones. The seed decides which points are sampled and in which orders PTv3 reads them."""

    seed: int = 42
    num_samples: int = 32_768
    vertex_samples: int = 8_192
    voxel_grid: int = 196


@dataclass
class SkinStage:
    """Everything the skin stage made, in stage-2 space, where mesh and joints together fill [-1, 1].

    matrix: float32 (4, 4), the space of the mesh given to stage-2 space. joints: float32 (J, 3). samples: their groups
    are the voxel feature. voxel_skin (V, J), sampled_skin (N, J) and weights (V, J): float32.
    """

    mesh: PreparedMesh
    matrix: np.ndarray
    joints: np.ndarray
    voxel_skin: np.ndarray
    samples: MeshSamples
    sampled_skin: np.ndarray
    weights: np.ndarray


def predict_skin(
    model: SkinModel,
    mesh: PreparedMesh,
    joints: np.ndarray,
    parents: np.ndarray,
    settings: SkinSettings,
    progress: Callable[[str, int, int], None] | None = None,
) -> np.ndarray:
    """Skin weights of the prepared mesh: float32 (V, J), rows sum to 1.

    joints: float (J, 3) in the space of the mesh. parents: int (J,), below 0 for a root. progress(phase, done, total):
    phase "voxels" counts joints, "network" points. Raises InvalidInputError without joints or surface.
    """
    return run_skin_stage(model, mesh, joints, parents, settings, progress).weights


@torch.no_grad()
def run_skin_stage(
    model: SkinModel,
    mesh: PreparedMesh,
    joints: np.ndarray,
    parents: np.ndarray,
    settings: SkinSettings,
    progress: Callable[[str, int, int], None] | None = None,
    order_perm: torch.Tensor | None = None,
) -> SkinStage:
    """`predict_skin` with everything in between. order_perm: PTv3's orders, drawn from the seed when not given."""
    if len(joints) == 0:
        raise InvalidInputError("a skeleton without joints cannot be given skin weights")
    joints = joints.astype(np.float32)
    matrix = fit_matrix(np.concatenate([mesh.vertices, joints]))
    mesh = replace(mesh, vertices=transform(matrix, mesh.vertices))
    joints = transform(matrix, joints)
    voxel = voxel_skin(mesh.vertices, mesh.faces, joints, grid=settings.voxel_grid, progress=_phase(progress, "voxels"))
    random = np.random.RandomState(settings.seed % 2**32)
    draws = draw(random, len(mesh.vertices), settings.num_samples, settings.vertex_samples)
    samples = sample_mesh(mesh, settings.num_samples, settings.vertex_samples, draws, voxel)
    if order_perm is None:
        orders = len(model.mesh_encoder.order)
        order_perm = torch.randperm(orders, generator=torch.Generator().manual_seed(settings.seed))
    device = model.qmesh.weight.device
    points, normals, sampled_voxel, placed_joints = (
        torch.from_numpy(array).to(device) for array in (samples.points, samples.normals, samples.groups, joints)
    )
    sampled_skin = model(
        points,
        normals,
        placed_joints,
        torch.as_tensor(parents),
        sampled_voxel,
        order_perm,
        progress=_phase(progress, "network"),
    )
    sampled_skin = sampled_skin.cpu().numpy()
    weights = reskin(samples.points, sampled_skin, mesh.vertices, mesh.faces, parents)
    return SkinStage(mesh, matrix, joints, voxel, samples, sampled_skin, weights)


def _phase(progress: Callable[[str, int, int], None] | None, phase: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(phase, done, total)
