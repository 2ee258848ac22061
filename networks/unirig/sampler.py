"""Points on a mesh for the networks: some of its vertices first, the rest drawn on its surface."""

from dataclasses import dataclass

import numpy as np

from networks.unirig.mesh_prep import PreparedMesh
from shared_utils.errors import InvalidInputError


@dataclass
class SampleDraws:
    """The random numbers of one sampling, so that recorded ones can be used.

    vertex_order: int (V,), a permutation of which the first entries are taken. face: float64 (S,) in [0, 1).
    barycentric: float64 (S, 2, 1) in [0, 1).
    """

    vertex_order: np.ndarray
    face: np.ndarray
    barycentric: np.ndarray


@dataclass
class MeshSamples:
    """points, normals: float32 (N, 3). groups: float32 (N, K), further per-vertex values carried along, or None."""

    points: np.ndarray
    normals: np.ndarray
    groups: np.ndarray | None = None


def draw(random: np.random.RandomState, num_vertices: int, num_samples: int, vertex_samples: int) -> SampleDraws:
    """Draw in UniRig's order, so that the same seed of numpy's legacy generator gives the same points."""
    num_surface = num_samples - min(vertex_samples, num_vertices, num_samples)
    vertex_order = random.permutation(num_vertices)
    random.permutation(num_surface)  # drawn and unused in the original; keeps the order of what follows
    return SampleDraws(vertex_order, random.rand(num_surface), random.rand(num_surface, 2, 1))


def sample_mesh(
    mesh: PreparedMesh,
    num_samples: int,
    vertex_samples: int,
    draws: SampleDraws,
    groups: np.ndarray | None = None,
) -> MeshSamples:
    """`min(vertex_samples, V)` vertices with their normals, then surface points with their faces' normals.

    Faces are drawn in proportion to their SQUARED area, as in training. groups: float (V, K), interpolated with the
    points. Raises InvalidInputError when the mesh has no area.
    """
    vertices, faces = mesh.vertices, mesh.faces
    vertex_samples = min(vertex_samples, len(vertices), num_samples)
    picked = draws.vertex_order[:vertex_samples]

    a, b, c = (vertices[faces[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    cumulative = np.cumsum((cross**2).sum(axis=1), dtype=np.float32)
    if not cumulative[-1] > 0:
        raise InvalidInputError("the mesh has no area to sample")
    chosen = np.searchsorted(cumulative, draws.face * cumulative[-1], side="left")
    chosen = np.minimum(chosen, len(faces) - 1)
    weights = draws.barycentric.reshape(-1, 2)
    outside = weights.sum(axis=1) > 1
    weights = np.where(outside[:, None], np.abs(weights - 1), weights)

    def interpolate(values: np.ndarray) -> np.ndarray:
        first, second, third = (values[faces[chosen, k]] for k in range(3))
        surface = first + weights[:, :1] * (second - first) + weights[:, 1:] * (third - first)
        return np.concatenate([values[picked], surface]).astype(np.float32)

    normals = np.concatenate([mesh.vertex_normals[picked], mesh.face_normals[chosen]]).astype(np.float32)
    return MeshSamples(interpolate(vertices), normals, None if groups is None else interpolate(groups))
