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

# Poses drawn anew for choosing are as many as those of the training: with fewer, chance rejects good weights. For the report
# (test) it is this share of them, and at least so many.
TEST_SHARE, MIN_TEST = 0.25, 20
MIN_POSES = 80
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


@dataclass
class Poses:
    """P poses of a mesh: bone transforms [P, B, 3, 4] in its space, skinned points [P, W, 3], and the same smoothed."""

    transforms: np.ndarray
    skinned: np.ndarray
    smoothed: np.ndarray


class PosedMesh:
    """A skinned mesh with its points welded, which can be posed at random.

    `first`, `group`: see `weld`. `bones` [B] are the joints with weights on it, `moving` those that poses turn; `original` [W, B]
    are its weights, `weighted` [W] says which points have any. `mask` [V] 0..1 scales the smoothing. Raises `InvalidInputError`
    for a bind transform that cannot be inverted.
    """

    def __init__(
        self, mesh: Mesh, skeleton: Skeleton, moving: np.ndarray, smooth: SmoothSettings, mask: np.ndarray | None = None
    ):
        skin = mesh.skin
        self.skeleton, self.moving, self.bind_transform = skeleton, moving, skin.bind_transform
        self.to_mesh = _inverse(skin.bind_transform, f"mesh {mesh.name!r}: its bind transform")
        for joint in range(len(skeleton.joints)):
            _inverse(skeleton.bind[joint], f"joint {skeleton.joints[joint]!r}: its bind matrix")
        self.first, self.group = weld(mesh)
        self.points = mesh.points[self.first]
        every = dense_rows(skin.offsets, skin.joints, skin.weights, len(skeleton.joints))[self.first]
        self.bones = np.flatnonzero(every.max(axis=0, initial=0) > 0)
        self.original = limit(every[:, self.bones], 0)
        self.weighted = self.original.sum(axis=1) > 0
        self.smooth = CorrectiveSmooth(
            self.points,
            mesh.face_sizes,
            self.group[mesh.face_vertices],
            smooth,
            None if mask is None else mask[self.first],
        )

    def draw(self, rng: np.random.Generator, count: int, twist_angle: float) -> Poses:
        """`count` poses with every moving joint turned about a random axis by up to `twist_angle` degrees."""
        joints = len(self.skeleton.joints)
        rotations = np.tile(np.eye(3), (count, joints, 1, 1))
        rotations[:, self.moving] = random_rotations(rng, count, len(self.moving), math.radians(twist_angle))
        full = np.zeros((count, joints, 4, 4))
        full[:, :, :3] = pose_transforms(self.skeleton.bind, self.skeleton.parents, rotations)
        full[:, :, 3, 3] = 1
        transforms = np.ascontiguousarray((self.to_mesh @ full[:, self.bones] @ self.bind_transform)[:, :, :3])
        skinned = self.skin(self.original, transforms)
        return Poses(transforms, skinned, self.smooth.apply_all(skinned))

    def skin(self, weights: np.ndarray, transforms: np.ndarray) -> np.ndarray:
        """Skinned shapes [P, W, 3] for weights [W, B]; a point without weights stays where it is."""
        posed = skin_points(self.points, *compressed_rows(weights), transforms)
        posed[:, ~self.weighted] = self.points[~self.weighted]
        return posed


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
    posed = PosedMesh(mesh, skeleton, moving, settings.smooth, mask)
    count = settings.poses or max(math.ceil(len(moving) * settings.quality), MIN_POSES)
    train = posed.draw(rng, count, settings.twist_angle)
    chosen = posed.weighted & _range(
        settings, train, centimetres_per_unit, None if selection is None else selection[posed.first]
    )
    solved = solve_weights(
        posed.points[chosen],
        train.smoothed[:, chosen],
        train.transforms,
        posed.original[chosen],
        influences=settings.influences,
        solver=settings.solver,
        prune=settings.prune,
        progress=progress,
    )
    del train
    limited = limit(posed.original, settings.influences)
    baked = limited.copy()
    better = improves(posed, chosen, solved, limited, posed.draw(rng, max(count, MIN_TEST), settings.twist_angle))
    baked[np.flatnonzero(chosen)[better]] = solved[better]

    test = posed.draw(rng, max(MIN_TEST, round(count * TEST_SHARE)), settings.twist_angle)
    shape = posed.skin(baked, test.transforms)
    before, cut, after = (
        np.linalg.norm(points - test.smoothed, axis=-1)
        for points in (test.skinned, posed.skin(limited, test.transforms), shape)
    )
    worst = int(np.argmax(before.max(axis=1)))
    group = posed.group
    report = MeshReport(
        name=mesh.name,
        points=len(mesh.points),
        baked=int(np.isin(group, np.flatnonzero(chosen)[better]).sum()),
        kept=int(np.isin(group, np.flatnonzero(chosen)[~better]).sum()),
        unweighted=int((~posed.weighted)[group].sum()),
        bones=len(posed.bones),
        poses=count,
        rms_before=_rms(before),
        max_before=float(before.max(initial=0)),
        rms_limited=_rms(cut),
        max_limited=float(cut.max(initial=0)),
        rms_after=_rms(after),
        max_after=float(after.max(initial=0)),
        centimetres_per_unit=centimetres_per_unit,
    )
    offsets, joints, weights = compressed_rows(baked[group])
    skin = Skin(mesh.skin.skeleton, offsets, posed.bones[joints].astype(np.int32), weights, mesh.skin.bind_transform)
    _check(mesh, skin, report, settings)
    shapes = {"original": test.skinned[worst], "smoothed": test.smoothed[worst], "baked": shape[worst]}
    return Baked(skin, report, before, after, {name: points[group] for name, points in shapes.items()})


def improves(posed: PosedMesh, chosen: np.ndarray, solved: np.ndarray, limited: np.ndarray, poses: Poses) -> np.ndarray:
    """Which of the `chosen` points [W] are nearer to the target with `solved` [C, B] than with `limited` [W, B] weights, [C]."""
    points, targets = posed.points[chosen], poses.smoothed[:, chosen]
    before, after = (
        ((skin_points(points, *compressed_rows(weights), poses.transforms) - targets) ** 2).sum(axis=(0, 2))
        for weights in (limited[chosen], solved)
    )
    return (after < before) & (solved.sum(axis=1) > 0)


def _inverse(matrix: np.ndarray, what: str) -> np.ndarray:
    if (
        not np.isfinite(matrix).all()
        or abs(np.linalg.det(matrix[:3, :3])) < 1e-12 * max(1e-30, np.abs(matrix[:3, :3]).max()) ** 3
    ):
        raise InvalidInputError(f"{what} flattens space and cannot be inverted")
    return np.linalg.inv(matrix)


def _range(settings: BakeSettings, poses: Poses, scale: float, selection: np.ndarray | None) -> np.ndarray:
    if settings.bake_range == "selected":
        return np.asarray(selection, bool)
    if settings.bake_range == "deviation":
        moved = np.linalg.norm(poses.smoothed - poses.skinned, axis=-1).max(axis=0)
        return moved * scale > settings.deviation_threshold
    return np.ones(poses.skinned.shape[1], bool)


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
