"""A base-colour texture for all parts: unwrapped by xatlas, each texel coloured from the mesh as it was decoded."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from networks.omnipart.part_meshes import PartMesh

NEIGHBOURS = 4  # original points that a texel's colour is mixed of, by inverse distance
PADDING = 2  # texels between charts
_TRIANGLES = 20_000  # rasterised at once; bounds the memory


@dataclass
class Baked:
    """`parts`: the meshes cut open at the seams; `uvs`: per part [V, 2], origin bottom left; `texture`: uint8 [S, S, 3]."""

    parts: dict[int, PartMesh]
    uvs: dict[int, np.ndarray]
    texture: np.ndarray


def bake(parts: dict[int, PartMesh], originals: dict[int, PartMesh], size: int) -> Baked:
    """Unwrap simplified `parts` into one atlas and look the colours up in the `originals` (same keys), sRGB."""
    import xatlas

    atlas = xatlas.Atlas()
    for part in parts.values():
        atlas.add_mesh(part.points.astype(np.float32), part.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, PADDING, True
    atlas.generate(pack_options=packing)
    texture = np.zeros((size, size, 3))
    covered = np.zeros((size, size), bool)
    cut, uvs = {}, {}
    for index, (number, part) in enumerate(parts.items()):
        source, faces, uv = atlas[index]
        faces, uv = faces.astype(np.int64), uv.astype(np.float64)
        cut[number] = PartMesh(part.points[source], faces, part.colours[source])
        uvs[number] = uv
        rows, columns, places = texels(uv * size, cut[number].points, faces, size)
        texture[rows, columns] = _look_up(originals[number], places)
        covered[rows, columns] = True
    # Outside the charts every texel repeats the nearest inside: no seam shows when the texture is filtered.
    nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    filled = texture[tuple(nearest)] if covered.any() else texture
    return Baked(cut, uvs, np.round(np.clip(filled, 0, 1) * 255).astype(np.uint8))


def texels(
    corners: np.ndarray, points: np.ndarray, faces: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texels whose centre lies in a triangle: row (from the top) and column [N], and the point [N, 3] of the surface there.

    `corners` [V, 2]: texture coordinates in texels, origin bottom left.
    """
    found = []
    for start in range(0, len(faces), _TRIANGLES):
        own = faces[start : start + _TRIANGLES]
        triangle = corners[own]
        low = np.clip(np.floor(triangle.min(1) - 0.5), 0, size - 1).astype(np.int64)
        high = np.clip(np.ceil(triangle.max(1) - 0.5), 0, size - 1).astype(np.int64)
        spans = high - low + 1
        counts = spans.prod(1)
        owner = np.repeat(np.arange(len(own)), counts)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        x = low[owner, 0] + number % spans[owner, 0]
        y = low[owner, 1] + number // spans[owner, 0]
        weights = _barycentric(triangle[owner], np.stack([x + 0.5, y + 0.5], 1))
        inside = (weights >= -1e-9).all(1)
        places = np.einsum("nk,nkd->nd", weights[inside], points[own[owner[inside]]])
        found.append((size - 1 - y[inside], x[inside], places))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def _barycentric(triangle: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Weights [N, 3] of places [N, 2] in triangles [N, 3, 2]; -1 for a triangle without area."""
    a, b, c = triangle[:, 0], triangle[:, 1], triangle[:, 2]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    flat = np.abs(area) < 1e-12
    divisor = np.where(flat, 1, area)
    first = (
        (b[:, 0] - place[:, 0]) * (c[:, 1] - place[:, 1]) - (b[:, 1] - place[:, 1]) * (c[:, 0] - place[:, 0])
    ) / divisor
    second = (
        (c[:, 0] - place[:, 0]) * (a[:, 1] - place[:, 1]) - (c[:, 1] - place[:, 1]) * (a[:, 0] - place[:, 0])
    ) / divisor
    weights = np.stack([first, second, 1 - first - second], axis=1)
    return np.where(flat[:, None], -1, weights)


def _look_up(original: PartMesh, places: np.ndarray) -> np.ndarray:
    """Colours [N, 3] at places [N, 3] near the original's points."""
    if len(places) == 0:
        return np.zeros((0, 3))
    distance, index = cKDTree(original.points).query(places, k=min(NEIGHBOURS, len(original.points)))
    distance, index = distance.reshape(len(places), -1), index.reshape(len(places), -1)
    weights = 1 / np.maximum(distance, 1e-9)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkd->nd", weights, original.colours[index])
