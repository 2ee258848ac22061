"""Baking corrective smoothing into the skin weights of one mesh.

Everything happens in the mesh's own space: bone transforms are carried over with the bind transform, so that armatures which are
scaled, mirrored or sheared are as good as any. V points, W welded points, B bones that move the mesh, P poses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from meshes.scene import Mesh, Skeleton, Skin
from meshes.skin_bake import (
    pose_transforms,
    random_rotations,
    skin_points,
    solve_weights,
)
from meshes.smoothing import CorrectiveSmooth, SmoothSettings
from meshes.weight_rows import compressed_rows, dense_rows, limit
from shared_utils.errors import InvalidInputError, PostConditionError

# The share of the training poses drawn anew for choosing (validation) and for the report (test), and their least number.
HELD_OUT_SHARE, HELD_OUT_MIN = 0.25, 20
CENTIMETRES_PER_METRE = 100.0


@dataclass
class BakeSettings:
    """`poses` to train on (None: max(ceil(bones x quality), 80)); `twist_angle` in degrees; `influences` per point, 0 = any
    number; `bake_range` "all", "selected" (points with `selection` True) or "deviation" (points that smoothing moves by more than
    `deviation_threshold` centimetres in some pose).
    """

    smooth: SmoothSettings = field(default_factory=SmoothSettings)
    quality: float = 1.0
    poses: int | None = None
    twist_angle: float = 45.0
    influences: int = 8
    solver: str = "nnls"
    prune: float = 0.01
    bake_range: str = "all"
    deviation_threshold: float = 0.01


@dataclass
class MeshReport:
    """Distances to the smoothed target over poses that neither solving nor choosing has seen, in the mesh's unit; `before` is the
    original weights, `limited` the same cut to the influence count, `after` the result.
    """

    name: str
    points: int
    baked: int
    kept: int
    unweighted: int
    bones: int
    poses: int
    rms_before: float
    max_before: float
    rms_limited: float
    max_limited: float
    rms_after: float
    max_after: float
    centimetres_per_unit: float


@dataclass
class Baked:
    """A mesh's new skin and report; distances [T, V] per test pose and point before and after, and the worst test pose's shapes."""

    skin: Skin
    report: MeshReport
    before: np.ndarray
    after: np.ndarray
    worst: dict[str, np.ndarray]


def deform_bones(skeleton: int, meshes: list[Mesh]) -> np.ndarray:
    """Joints of a skeleton that any of the meshes gives a positive weight."""
    used = [m.skin.joints[m.skin.weights > 0] for m in meshes if m.skin is not None and m.skin.skeleton == skeleton]
    return np.unique(np.concatenate(used)) if used else np.zeros(0, np.int64)


def weld(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """First point of every group of points with equal position and equal skin row, and each point's group: [W], [V].

    Files such as glTF split points where textures have seams; smoothed apart, they would open cracks.
    """
    skin = mesh.skin
    counts = np.diff(skin.offsets)
    width = int(counts.max(initial=0))
    rows = np.zeros((len(mesh.points), 3 + 2 * width))
    rows[:, :3] = mesh.points + 0.0  # makes -0.0 equal to 0.0
    place = np.arange(len(skin.joints)) - np.repeat(skin.offsets[:-1], counts)
    owner = np.repeat(np.arange(len(mesh.points)), counts)
    order = np.lexsort((skin.joints, owner))
    rows[owner, 3 + place] = skin.joints[order] + 1
    rows[owner, 3 + width + place] = skin.weights[order]
    _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, group.ravel()


def bake_mesh(
    mesh: Mesh,
    skeleton: Skeleton,
    moving: np.ndarray,
    settings: BakeSettings,
    rng: np.random.Generator,
    *,
    centimetres_per_unit: float,
    selection: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Baked:
    """Find weights with which linear-blend skinning does what skinning plus corrective smoothing did.

    `moving`: the joints that poses turn (see `deform_bones`). `selection` [V] bool; `mask` [V] 0..1 scales the smoothing.
    Raises `InvalidInputError` for a bind transform that cannot be inverted and `PostConditionError` when the result is worse
    than the original.
    """
    skin = mesh.skin
    to_mesh = _inverse(skin.bind_transform, f"mesh {mesh.name!r}: its bind transform")
    for joint in moving:
        _inverse(skeleton.bind[joint], f"joint {skeleton.joints[joint]!r}: its bind matrix")
    first, group = weld(mesh)
    points = mesh.points[first]
    every = dense_rows(skin.offsets, skin.joints, skin.weights, len(skeleton.joints))[first]
    bones = np.flatnonzero(every.max(axis=0) > 0)
    original = limit(every[:, bones], 0)
    weighted = original.sum(axis=1) > 0
    smooth = CorrectiveSmooth(
        points, mesh.face_sizes, group[mesh.face_vertices], settings.smooth, None if mask is None else mask[first]
    )

    def draw(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rotations = np.tile(np.eye(3), (count, len(skeleton.joints), 1, 1))
        rotations[:, moving] = random_rotations(rng, count, len(moving), math.radians(settings.twist_angle))
        full = np.zeros((count, len(skeleton.joints), 4, 4))
        full[:, :, :3] = pose_transforms(skeleton.bind, skeleton.parents, rotations)
        full[:, :, 3, 3] = 1
        transforms = np.ascontiguousarray((to_mesh @ full[:, bones] @ skin.bind_transform)[:, :, :3])
        posed = _posed(points, original, transforms, weighted)
        return transforms, posed, smooth.apply_all(posed)

    count = settings.poses or max(math.ceil(len(moving) * settings.quality), 80)
    held_out = max(HELD_OUT_MIN, round(count * HELD_OUT_SHARE))
    transforms, posed, targets = draw(count)
    chosen = weighted & _range(
        settings, posed, targets, centimetres_per_unit, None if selection is None else selection[first]
    )
    baked = limit(original, settings.influences)
    solved = solve_weights(
        points[chosen],
        targets[:, chosen],
        transforms,
        original[chosen],
        influences=settings.influences,
        solver=settings.solver,
        prune=settings.prune,
        progress=progress,
    )
    transforms, _, targets = draw(held_out)
    limited_error = _errors(points[chosen], baked[chosen], transforms, targets[:, chosen]).sum(axis=0)
    solved_error = _errors(points[chosen], solved, transforms, targets[:, chosen]).sum(axis=0)
    better = (solved_error < limited_error) & (solved.sum(axis=1) > 0)
    baked[np.flatnonzero(chosen)[better]] = solved[better]

    transforms, posed, targets = draw(held_out)
    before = np.linalg.norm(posed - targets, axis=-1)
    limited_shape = _posed(points, limit(original, settings.influences), transforms, weighted)
    limited_distance = np.linalg.norm(limited_shape - targets, axis=-1)
    shape = _posed(points, baked, transforms, weighted)
    after = np.linalg.norm(shape - targets, axis=-1)
    worst = int(np.argmax(before.max(axis=1)))
    report = MeshReport(
        name=mesh.name,
        points=len(mesh.points),
        baked=int(np.isin(group, np.flatnonzero(chosen)[better]).sum()),
        kept=int(np.isin(group, np.flatnonzero(chosen)[~better]).sum()),
        unweighted=int((~weighted)[group].sum()),
        bones=len(bones),
        poses=count,
        rms_before=_rms(before),
        max_before=float(before.max(initial=0)),
        rms_limited=_rms(limited_distance),
        max_limited=float(limited_distance.max(initial=0)),
        rms_after=_rms(after),
        max_after=float(after.max(initial=0)),
        centimetres_per_unit=centimetres_per_unit,
    )
    offsets, joints, weights = compressed_rows(baked[group])
    new = Skin(skin.skeleton, offsets, bones[joints].astype(np.int32), weights, skin.bind_transform)
    _check(mesh, new, report, settings)
    shapes = {"original": posed[worst][group], "smoothed": targets[worst][group], "baked": shape[worst][group]}
    return Baked(new, report, before, after, shapes)


def _inverse(matrix: np.ndarray, what: str) -> np.ndarray:
    if (
        not np.isfinite(matrix).all()
        or abs(np.linalg.det(matrix[:3, :3])) < 1e-12 * max(1e-30, np.abs(matrix[:3, :3]).max()) ** 3
    ):
        raise InvalidInputError(f"{what} flattens space and cannot be inverted")
    return np.linalg.inv(matrix)


def _posed(points: np.ndarray, weights: np.ndarray, transforms: np.ndarray, weighted: np.ndarray) -> np.ndarray:
    """Skinned shapes [P, W, 3]; a point without weights stays where it is."""
    posed = skin_points(points, *compressed_rows(weights), transforms)
    posed[:, ~weighted] = points[~weighted]
    return posed


def _errors(points: np.ndarray, weights: np.ndarray, transforms: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Squared distances [P, W]."""
    return ((skin_points(points, *compressed_rows(weights), transforms) - targets) ** 2).sum(axis=-1)


def _range(
    settings: BakeSettings, posed: np.ndarray, targets: np.ndarray, scale: float, selection: np.ndarray | None
) -> np.ndarray:
    if settings.bake_range == "selected":
        return np.asarray(selection, bool)
    if settings.bake_range == "deviation":
        return np.linalg.norm(targets - posed, axis=-1).max(axis=0) * scale > settings.deviation_threshold
    return np.ones(posed.shape[1], bool)


def _rms(distances: np.ndarray) -> float:
    return float(np.sqrt((distances**2).mean())) if distances.size else 0.0


def _check(mesh: Mesh, skin: Skin, report: MeshReport, settings: BakeSettings) -> None:
    """The post-conditions of a bake. Raises `PostConditionError`."""
    counts = np.diff(skin.offsets)
    totals = np.add.reduceat(np.append(skin.weights, 0.0), skin.offsets[:-1])[counts > 0]
    if (skin.weights < 0).any() or (np.abs(totals - 1) > 1e-6).any():
        raise PostConditionError(f"mesh {mesh.name!r}: weights are negative or do not sum to 1")
    if settings.influences and counts.max(initial=0) > settings.influences:
        raise PostConditionError(
            f"mesh {mesh.name!r}: {counts.max()} influences on a point, {settings.influences} allowed"
        )
    # What rounding alone can do counts as equal.
    extent = float(np.ptp(mesh.points, axis=0).max()) if len(mesh.points) else 0.0
    if report.rms_after > 1.01 * report.rms_limited + 1e-9 * extent:
        raise PostConditionError(
            f"mesh {mesh.name!r}: held-out error {report.rms_after:.3g} is worse than the original's {report.rms_limited:.3g}; try more --poses"
        )
