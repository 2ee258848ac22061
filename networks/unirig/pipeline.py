"""UniRig's skeleton stage: a prepared mesh gets a skeleton.

    mesh = prepare_mesh(vertices, faces)
    model = SkeletonModel.from_checkpoint("skeleton/articulation-xl_quantization_256/model.ckpt")
    skeleton = generate_skeleton(model, mesh, SkeletonSettings(seed=42))

`skinning` goes on from there. A `PreparedMesh` and the skeleton returned are in the mesh's own space (Z up). Inside,
the skeleton stage works in "stage-1 space", where the mesh fills [-1, 1], and the skin stage in "stage-2 space", where
mesh and joints together do. The matrices are kept and inverted, so nothing is fitted again on the way back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from networks.unirig.ar import SkeletonModel
from networks.unirig.generation import GenerationSettings
from networks.unirig.mesh_prep import PreparedMesh
from networks.unirig.normalize import fit_matrix, inverse_transform, transform
from networks.unirig.sampler import MeshSamples, draw, sample_mesh
from networks.unirig.tokenizer import Skeleton
from shared_utils.errors import PostConditionError


@dataclass(frozen=True)
class SkeletonSettings:
    """Defaults are the published ones.

    published_rules: keep UniRig's own grammar and root tail, which `grammar` and `tokenizer` describe, instead of ours;
    for comparison with recorded data.
    """

    seed: int = 42
    skeleton_class: str = "articulationxl"
    num_samples: int = 65_536
    vertex_samples: int = 8_192
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    published_rules: bool = False


@dataclass
class SkeletonInput:
    """What the skeleton model reads, in stage-1 space. matrix: float32 (4, 4), mesh space to stage-1 space."""

    mesh: PreparedMesh
    matrix: np.ndarray
    samples: MeshSamples


def generate_skeleton(
    model: SkeletonModel,
    mesh: PreparedMesh,
    settings: SkeletonSettings,
    progress: Callable[[int], None] | None = None,
) -> Skeleton:
    """Predict the skeleton of a mesh; joints and tails are float64 in the mesh's space.

    progress: called with the number of tokens so far. Raises PostConditionError when the sequence is not finished after
    `max_new_tokens`.
    """
    stage = sample_skeleton_stage(mesh, settings)
    ids = predict_ids(model, stage.samples, settings, progress)
    try:
        skeleton = model.tokenizer.detokenize(ids, published_root_tail=settings.published_rules)
    except ValueError as error:
        raise PostConditionError(
            f"no usable skeleton after {len(ids) - 2} tokens ({error}); another seed may find one"
        ) from error
    return move_skeleton(skeleton, lambda points: inverse_transform(stage.matrix, points))


def sample_skeleton_stage(mesh: PreparedMesh, settings: SkeletonSettings) -> SkeletonInput:
    """Fit the mesh into [-1, 1] and sample it. Raises InvalidInputError for a mesh without extent or area."""
    matrix = fit_matrix(mesh.vertices)
    fitted = replace(mesh, vertices=transform(matrix, mesh.vertices))
    random = np.random.RandomState(settings.seed % 2**32)
    draws = draw(random, len(mesh.vertices), settings.num_samples, settings.vertex_samples)
    return SkeletonInput(fitted, matrix, sample_mesh(fitted, settings.num_samples, settings.vertex_samples, draws))


def predict_ids(
    model: SkeletonModel,
    samples: MeshSamples,
    settings: SkeletonSettings,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """int64 token ids, bos first; the seed of the settings is set before."""
    torch.manual_seed(settings.seed)
    ids = model.generate(
        torch.from_numpy(samples.points),
        torch.from_numpy(samples.normals),
        settings.generation,
        skeleton_class=settings.skeleton_class,
        published_grammar=settings.published_rules,
        progress=progress,
    )
    return ids.numpy()


def move_skeleton(skeleton: Skeleton, move: Callable[[np.ndarray], np.ndarray]) -> Skeleton:
    """The skeleton with all positions mapped by `move`, float64 (N, 3) -> float64 (N, 3)."""
    positions = {
        name: move(getattr(skeleton, name).astype(np.float64)) for name in ("joints", "tails", "parent_joints")
    }
    return replace(skeleton, **positions)
