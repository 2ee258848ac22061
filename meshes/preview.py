"""Pictures of meshes without a graphics card: a z-buffer in numpy, flat shading, the polygons' own edges as lines.

An image is [H, W, 3] uint8. The same scene gives the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meshes.pictures import png_bytes
from meshes.scene import Mesh, Node, Scene
from meshes.skinning import world_points
from meshes.triangulate import newell_normals, triangulate
from shared_utils.output_dir import atomic

CLAY = (0.84, 0.83, 0.80)
BACKGROUND = (0.95, 0.95, 0.96)
_LINE = np.array([0.08, 0.10, 0.14])
# Pixels drawn at once; bounds the memory to about 1 GB.
_MAX_FRAGMENTS = 4_000_000


@dataclass
class View:
    """A parallel camera: it looks along `direction`, with `up` upwards in the picture, at `center`; half the
    picture's smaller side is `radius` scene units. Two pictures with one View can be laid side by side and compared.
    """

    direction: np.ndarray
    up: np.ndarray
    center: np.ndarray
    radius: float

    def axes(self) -> np.ndarray:
        """Rows: right, up and towards the viewer, [3, 3]."""
        back = -np.asarray(self.direction, np.float64)
        back = back / np.linalg.norm(back)
        right = np.cross(self.up, back)
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(back, right), back])


def fit_view(thing: Scene | Mesh, *, azimuth: float = 35.0, elevation: float = 20.0) -> View:
    """A View that shows everything from the front, turned by `azimuth` and raised by `elevation` degrees."""
    scene = _as_scene(thing)
    points = [world_points(scene, node) for node, _ in scene.mesh_nodes()]
    points = np.concatenate([np.zeros((0, 3)), *points])
    points = points[np.isfinite(points).all(1)]
    low, high = (points.min(0), points.max(0)) if len(points) else (np.full(3, -1.0), np.full(3, 1.0))
    turn, rise = np.radians([azimuth, elevation])
    towards = np.array([np.sin(turn) * np.cos(rise), np.sin(rise), np.cos(turn) * np.cos(rise)])
    up = np.array([0.0, 1.0, 0.0])
    if scene.up_axis == "Z":
        towards, up = np.array([towards[0], -towards[2], towards[1]]), np.array([0.0, 0.0, 1.0])
    view = View(-towards, up, (low + high) / 2, 1.0)
    seen = (points - view.center) @ view.axes()[:2].T
    view.radius = 1.08 * float(np.abs(seen).max(initial=0)) or 1.0
    return view


def render(
    thing: Scene | Mesh,
    size: int | tuple[int, int] = 640,
    camera: View | None = None,
    wireframe: bool = True,
    face_colors: np.ndarray | dict[int, np.ndarray] | None = None,
    vertex_colors: np.ndarray | dict[int, np.ndarray] | None = None,
    *,
    background: Sequence[float] = BACKGROUND,
    color: Sequence[float] = CLAY,
) -> np.ndarray:
    """Draw a scene (skinned meshes at rest) or one mesh: [height, width, 3] uint8.

    `size` is (width, height) or one number for both. `face_colors` [F, 3] or `vertex_colors` [V, 3], numbers in
    0..1, paint a mesh (for a Scene: a dict by mesh index); faces without any are `color`. Triangles with a position
    that is not finite are left out.
    """
    width, height = (size, size) if isinstance(size, int) else size
    scene = _as_scene(thing)
    camera = camera or fit_view(scene)
    buffers = _Buffers(2 * width, 2 * height, background)  # Twice as fine, then averaged: smooth edges.
    for node, number in scene.mesh_nodes():
        if scene.nodes[node].visible:
            colors = [_pick(given, number, thing) for given in (face_colors, vertex_colors)]
            _draw(
                scene.meshes[number],
                world_points(scene, node),
                camera,
                buffers,
                wireframe,
                *colors,
                np.asarray(color, float),
            )
    fine = buffers.color.reshape(height, 2, width, 2, 3).mean((1, 3))
    return np.round(np.clip(fine, 0, 1) * 255).astype(np.uint8)


def save_png(image: np.ndarray, path: Path | str) -> None:
    """Write an image [H, W, 3] uint8 as PNG, atomically."""
    from PIL import Image

    with atomic(Path(path)) as partial:
        partial.write_bytes(png_bytes(Image.fromarray(np.ascontiguousarray(image))))


def panels(images: Sequence[tuple[np.ndarray, str]], *, gap: int = 8) -> np.ndarray:
    """Images of one height side by side, each with its caption above."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=18)
    bar, height = 30, max(image.shape[0] for image, _ in images)
    total = sum(image.shape[1] for image, _ in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (total, height + bar), "white")
    draw, left = ImageDraw.Draw(sheet), 0
    for image, caption in images:
        sheet.paste(Image.fromarray(np.ascontiguousarray(image)), (left, bar))
        draw.text((left + 8, 5), caption, fill=(20, 24, 32), font=font)
        left += image.shape[1] + gap
    return np.asarray(sheet)


def _as_scene(thing: Scene | Mesh) -> Scene:
    if isinstance(thing, Scene):
        return thing
    from dataclasses import replace

    return Scene(nodes=[Node(thing.name, mesh=0)], meshes=[replace(thing, skin=None)])


def _pick(given, number: int, thing) -> np.ndarray | None:
    if given is None or (isinstance(given, dict) and number not in given):
        return None
    return np.asarray(given[number] if isinstance(given, dict) else given, np.float64)


class _Buffers:
    """Colour [H, W, 3] and depth [H * W] (larger is nearer)."""

    def __init__(self, width: int, height: int, background: Sequence[float]):
        self.width, self.height = width, height
        self.color = np.tile(np.asarray(background, np.float64), (height, width, 1))
        self.depth = np.full(width * height, -np.inf)


def _draw(
    mesh: Mesh, points, camera: View, buffers: _Buffers, wireframe: bool, face_colors, vertex_colors, color
) -> None:
    triangles, face_of = triangulate(mesh)
    if not len(triangles):
        return
    axes = camera.axes()
    scale = min(buffers.width, buffers.height) / 2 / camera.radius
    with np.errstate(invalid="ignore", over="ignore"):
        seen = (points - camera.center) @ axes.T * scale
    seen[:, 0] += buffers.width / 2
    seen[:, 1] = buffers.height / 2 - seen[:, 1]
    corners = seen[mesh.face_vertices[triangles]]
    keep = np.isfinite(corners).all((1, 2)) & (np.abs(corners[:, :, :2]) < 1e7).all((1, 2))
    inside = (corners[:, :, :2].max(1) >= 0) & (corners[:, :, :2].min(1) <= [buffers.width, buffers.height])
    keep &= inside.all(1)
    placed = Mesh(mesh.name, points, mesh.face_sizes, mesh.face_vertices)
    light = _light(newell_normals(placed), axes)
    base = np.broadcast_to(color, (len(mesh.face_sizes), 3)) if face_colors is None else face_colors
    real = _real_edges(mesh, triangles) if wireframe else None
    order = np.flatnonzero(keep)
    low = np.clip(np.floor(corners[order][:, :, :2].min(1)), 0, [buffers.width - 1, buffers.height - 1]).astype(
        np.int64
    )
    high = np.clip(np.ceil(corners[order][:, :, :2].max(1)), 0, [buffers.width - 1, buffers.height - 1]).astype(
        np.int64
    )
    counts = (high - low + 1).prod(1)
    ends = np.cumsum(counts)
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _MAX_FRAGMENTS, side="right")))
        chosen = slice(start, stop)
        own = order[chosen]
        _draw_batch(
            corners[own], low[chosen], high[chosen], buffers,
            colors=base[face_of[own]] if vertex_colors is None else vertex_colors[mesh.face_vertices[triangles[own]]],
            light=light[face_of[own]],
            edges=None if real is None else real[own],
        )  # fmt: skip
        start = stop


def _light(normals: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Brightness of each face, lit from over the viewer's left shoulder, both sides alike."""
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    usable = (lengths > 0) & np.isfinite(lengths)
    unit = np.where(usable, normals / np.where(usable, lengths, 1), 0)
    from_light = np.array([-0.4, 0.5, 0.77]) @ axes
    facing = np.where((unit @ axes[2] < 0)[:, None], -unit, unit)
    return 0.45 + 0.55 * np.clip(facing @ from_light, 0, 1)


def _real_edges(mesh: Mesh, triangles: np.ndarray) -> np.ndarray:
    """Whether the side opposite each triangle corner is a side of the polygon, [T, 3]."""
    sizes, offsets = mesh.face_sizes.astype(np.int64), mesh.face_offsets()
    place = np.arange(len(mesh.face_vertices)) - np.repeat(offsets[:-1], sizes)
    count = np.repeat(sizes, sizes)
    a, b = triangles[:, [1, 2, 0]], triangles[:, [2, 0, 1]]
    gap = np.abs(place[a] - place[b])
    return (gap == 1) | (gap == count[a] - 1)


def _draw_batch(corners, low, high, buffers: _Buffers, colors, light, edges) -> None:
    """Draw triangles [T, 3, (x, y, depth)]: every pixel of every bounding box at once."""
    spans = high - low + 1
    counts = spans.prod(1)
    owner = np.repeat(np.arange(len(corners)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    x = low[owner, 0] + number % spans[owner, 0]
    y = low[owner, 1] + number // spans[owner, 0]
    a, b, c = (corners[:, i, :2] for i in range(3))
    double = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    flat = double == 0
    inverse = 1 / np.where(flat, 1, double)
    middle_x, middle_y = x + 0.5, y + 0.5
    weights = np.empty((3, len(owner)))
    for i, (p, q) in enumerate(((b, c), (c, a))):
        side = q - p
        across = middle_y - p[owner, 1], middle_x - p[owner, 0]
        weights[i] = (side[owner, 0] * across[0] - side[owner, 1] * across[1]) * inverse[owner]
    weights[2] = 1 - weights[0] - weights[1]
    hit = (weights >= 0).all(0) & ~flat[owner]
    owner, weights, pixel = owner[hit], weights[:, hit], (y * buffers.width + x)[hit]
    depth = np.einsum("in,ni->n", weights, corners[owner, :, 2])
    np.maximum.at(buffers.depth, pixel, depth)
    front = depth == buffers.depth[pixel]
    owner, weights, pixel = owner[front], weights[:, front], pixel[front]
    shade = colors[owner] if colors.ndim == 2 else np.einsum("in,nij->nj", weights, colors[owner])
    shade = shade * light[owner][:, None]
    if edges is not None:
        ink = _ink(corners, owner, weights, edges, np.abs(double))
        shade = shade * (1 - ink) + _LINE * ink
    buffers.color.reshape(-1, 3)[pixel] = shade


def _ink(corners, owner, weights, edges, double) -> np.ndarray:
    """How dark the lines are at each pixel [N, 1]: by distance to the nearest real edge, fainter where triangles are
    tiny.
    """
    sides = np.stack(
        [np.linalg.norm(corners[:, j, :2] - corners[:, k, :2], axis=1) for j, k in ((1, 2), (2, 0), (0, 1))], 1
    )
    heights = double[:, None] / np.maximum(sides, 1e-9)
    distance = np.where(edges[owner].T, weights * heights[owner].T, np.inf).min(0)
    strength = np.clip(np.sqrt(double / 2) / 12, 0.12, 1)[owner]
    return (np.clip(1.6 - distance, 0, 1) * strength * 0.85)[:, None]
