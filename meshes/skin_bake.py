"""Skin weights that reproduce given deformed shapes: a small constrained least-squares problem per point.

With the transforms T_pb (3x4) of bone b in pose p, a rest point v (as ~v = [x, y, z, 1]) and its targets y_p, weights w >= 0 with
sum 1 minimise sum_p |sum_b w_b T_pb ~v - y_p|^2. Because the weights sum to 1 this is w' Q w with
Q = A'A - (A'y)1' - 1(A'y)' + y'y, and (A'A)_bb' = ~v' (sum_p T_pb' T_pb') ~v: the bone-pair tensor in the brackets is computed
once, so the cost per point does not depend on the number of poses. V points, B bones, P poses, K weights.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.sparse import csr_array

from meshes.weight_rows import limit

SOLVERS = ("nnls", "std", "cholesky", "qr", "inv", "pinv", "lstsq", "svd")
# Of the diagonal of Q; keeps near-equal bones from being played against each other.
RIDGE = 1e-9
# Points solved together: bounds the memory of their Q matrices (points x bones x bones x 8 bytes) to about 50 MB a thread.
_BATCH_BYTES = 5e7
# A bone enters while the error would fall by this share of itself; weights below the second number are zero.
_SLOPE, _ZERO = 1e-10, 1e-14


def random_rotations(rng: np.random.Generator, poses: int, bones: int, max_angle: float) -> np.ndarray:
    """Rotations about uniformly random axes by uniformly random angles up to `max_angle` (radians), [P, B, 3, 3]."""
    axis = rng.normal(size=(poses, bones, 3))
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = rng.uniform(-max_angle, max_angle, size=(poses, bones))
    x, y, z = np.moveaxis(axis, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([np.stack([zero, -z, y], -1), np.stack([z, zero, -x], -1), np.stack([-y, x, zero], -1)], -2)
    s, c = np.sin(angle)[..., None, None], np.cos(angle)[..., None, None]
    # Rodrigues' rotation formula.
    return np.eye(3) + s * cross + (1 - c) * (cross @ cross)


def pose_transforms(bind: np.ndarray, parents: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Transforms from the bind shape to the posed shape for every joint, [P, J, 3, 4].

    bind [J, 4, 4] joint-to-skeleton; parents [J], parents first; rotations [P, J, 3, 3] are applied at each joint, in its frame.
    """
    local = np.array(bind)
    for joint, parent in enumerate(parents):
        if parent >= 0:
            local[joint] = np.linalg.solve(bind[parent], bind[joint])
    turn = np.zeros((*rotations.shape[:2], 4, 4))
    turn[..., :3, :3] = rotations
    turn[..., 3, 3] = 1
    world = np.empty_like(turn)
    for joint, parent in enumerate(parents):
        step = local[joint] @ turn[:, joint]
        world[:, joint] = step if parent < 0 else world[:, parent] @ step
    return (world @ np.linalg.inv(bind))[:, :, :3]


def skin_points(
    points: np.ndarray, offsets: np.ndarray, joints: np.ndarray, weights: np.ndarray, transforms: np.ndarray
) -> np.ndarray:
    """Linear-blend skinning of points [V, 3] with weights in compressed rows for all transforms [P, J, 3, 4]: [P, V, 3]."""
    blend = csr_array((weights, joints, offsets), shape=(len(points), transforms.shape[1]))

    def skin(pose: np.ndarray) -> np.ndarray:
        blended = (blend @ pose.reshape(len(pose), 12)).reshape(-1, 3, 4)
        return np.einsum("vij,vj->vi", blended[:, :, :3], points) + blended[:, :, 3]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        posed = list(pool.map(skin, transforms))
    return np.stack(posed) if posed else np.zeros((0, len(points), 3))


def _best_on(q: np.ndarray, rows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Weights [R, B] minimising w' q w with sum 1 on the bones `inside` [R, B]; some may come out negative."""
    bones, used = _columns(inside)
    inner = q[rows[:, None, None], bones[:, :, None], bones[:, None, :]]
    # Places that a row does not use hold an equation of their own: 1 x = 0.
    inner = np.where(used[:, :, None] & used[:, None, :], inner, np.eye(bones.shape[1]))
    solution = np.linalg.solve(inner, used[..., None].astype(float))[..., 0]
    weights = np.zeros(inside.shape)
    np.put_along_axis(weights, bones, solution / solution.sum(axis=1, keepdims=True), 1)
    return weights


def _columns(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The True columns of each row first, as many as the fullest row has: indices [R, K] and which of them count [R, K]."""
    counts = inside.sum(axis=1)
    most = int(counts.max(initial=0))
    return np.argsort(~inside, axis=1, kind="stable")[:, :most], np.arange(most) < counts[:, None]


def _times(q: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """q w for sparse weights, [R, B]."""
    bones, _ = _columns(weights > 0)
    return np.einsum("rkb,rk->rb", q[rows[:, None], bones], np.take_along_axis(weights, bones, 1))


def _simplex(q: np.ndarray, rows: np.ndarray, start: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Weights [R, B] with the least w' q w, w >= 0, sum 1, on the bones `allowed` [R, B], from the feasible `start` [R, B].

    Lawson and Hanson's active sets (Solving Least Squares Problems, 1974, ch. 23) with the sum as an equality, for all rows of
    `q` [N, B, B] that `rows` [R] names in step.
    """
    result, inside = start.copy(), start > 0
    open_ = np.arange(len(rows))
    for _ in range(3 * q.shape[1] + 10):
        if not len(open_):
            break
        old = result[open_]
        new = _best_on(q, rows[open_], inside[open_])
        # Go to the optimum of this set of bones, or as far as the first weight that reaches zero, which leaves the set.
        blocked = inside[open_] & (new <= 0) & (old > new)
        ratio = np.divide(old, old - new, out=np.ones_like(old), where=blocked)
        step = ratio.min(axis=1, keepdims=True)
        moved = old + step * (new - old)
        arrived = step[:, 0] >= 1
        moved[~arrived] = np.where(moved[~arrived] > _ZERO, moved[~arrived], 0.0)
        result[open_] = moved
        inside[open_] &= arrived[:, None] | (moved > 0)
        # At an optimum, let the bone in along which the error falls most steeply.
        slope = _times(q, rows[open_[arrived]], moved[arrived])
        level = np.einsum("rb,rb->r", slope, moved[arrived])
        slope = np.where(allowed[open_[arrived]] & ~inside[open_[arrived]], slope - level[:, None], 0.0)
        entering = slope.argmin(axis=1)
        falls = slope[np.arange(len(slope)), entering] < -_SLOPE * level
        inside[open_[arrived][falls], entering[falls]] = True
        more = ~arrived
        more[np.flatnonzero(arrived)[falls]] = True
        open_ = open_[more]
    return result / result.sum(axis=1, keepdims=True)


def _fewer(q: np.ndarray, weights: np.ndarray, influences: int, prune: float) -> np.ndarray:
    """Drop a point's smallest weight and solve on the rest until `influences` (0: any number) are left, none below `prune`."""
    weights = weights.copy()
    while True:
        positive = np.where(weights > 0, weights, np.inf)
        count = (weights > 0).sum(axis=1)
        many = (count > influences) if influences else np.zeros(len(weights), bool)
        rows = np.flatnonzero((many | (positive.min(axis=1) < prune)) & (count > 1))
        if not len(rows):
            return weights
        kept = weights[rows]
        kept[np.arange(len(rows)), positive[rows].argmin(axis=1)] = 0.0
        weights[rows] = _simplex(q, rows, kept / kept.sum(axis=1, keepdims=True), kept > 0)


def _energy(q: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.einsum("rb,rb->r", _times(q, np.arange(len(q)), weights), weights)


def _constrained(q: np.ndarray, original: np.ndarray, influences: int, prune: float) -> np.ndarray:
    """Weights [N, B], at most `influences` a row, that make w' q w small; `original` [N, B] are the weights so far, limited."""
    diagonal = np.einsum("nbb->nb", q)
    diagonal += RIDGE * diagonal.mean(axis=1, keepdims=True) + 1e-300
    every = np.arange(len(q))
    nearest = np.zeros(original.shape)
    nearest[every, diagonal.argmin(axis=1)] = 1.0
    start = np.where(original.max(axis=1, keepdims=True) > 0, original, nearest)
    best = _fewer(q, _simplex(q, every, start, np.ones(start.shape, bool)), influences, prune)
    # The original's own bones are another choice of support; the smaller error wins.
    other = _fewer(q, _simplex(q, every, start, start > 0), influences, prune)
    return np.where((_energy(q, other) < _energy(q, best))[:, None], other, best)


def solve_weights(
    points: np.ndarray,
    targets: np.ndarray,
    transforms: np.ndarray,
    original: np.ndarray,
    *,
    influences: int,
    solver: str = "nnls",
    prune: float = 0.0,
    progress: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Weights [V, B] (rows >= 0, sum 1, at most `influences` non-zero, 0 = no limit) that best map points to targets.

    points [V, 3] rest positions; targets [P, V, 3]; transforms [P, B, 3, 4]; original [V, B] the weights to start from.
    `solver` "nnls" solves with the constraints; the others of `SOLVERS` solve the unconstrained normal equations that way and
    then cut, prune and normalise. Raises `numpy.linalg.LinAlgError` where the equations are singular for the method chosen.
    """
    bones = transforms.shape[1]
    pair = _pair_tensor(transforms)
    batch = max(1, int(_BATCH_BYTES / (8 * bones * bones)))
    starts = range(0, len(points), batch)
    limited = limit(original, influences)

    def work(start: int) -> np.ndarray:
        part = slice(start, start + batch)
        gram, moment, energy = _normal_equations(points[part], targets[:, part], transforms, pair)
        if solver == "nnls":
            gram -= moment[:, :, None] + moment[:, None, :]
            gram += energy[:, None, None]
            weights = _constrained(gram, limited[part], influences, prune)
        else:
            weights = limit(_unconstrained(gram, moment, solver), influences, prune)
        progress(len(gram))
        return weights

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(work, starts))) if len(points) else np.zeros((0, bones))


def _pair_tensor(transforms: np.ndarray) -> np.ndarray:
    """sum_p T_pb' T_pb' as a matrix [B * B, 16] that multiplies the outer products of homogeneous points."""
    bones = transforms.shape[1]
    rows = transforms.transpose(1, 3, 0, 2).reshape(bones * 4, -1)
    gram = (rows @ rows.T).reshape(bones, 4, bones, 4)
    return np.ascontiguousarray(gram.transpose(0, 2, 1, 3).reshape(bones * bones, 16))


def _normal_equations(
    points: np.ndarray, targets: np.ndarray, transforms: np.ndarray, pair: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A'A [V, B, B], A'y [V, B] and y'y [V]."""
    count, bones = len(points), transforms.shape[1]
    homogeneous = np.concatenate([points, np.ones((count, 1))], axis=1)
    outer = (homogeneous[:, :, None] * homogeneous[:, None, :]).reshape(count, 16)
    gram = (outer @ pair.T).reshape(count, bones, bones)
    flat = targets.transpose(1, 0, 2).reshape(count, -1)
    rows = transforms.transpose(0, 2, 1, 3).reshape(flat.shape[1], bones * 4)
    moment = np.einsum("vbi,vi->vb", (flat @ rows).reshape(count, bones, 4), homogeneous)
    return gram, moment, (flat * flat).sum(1)


def _unconstrained(gram: np.ndarray, moment: np.ndarray, solver: str) -> np.ndarray:
    right = moment[..., None]
    if solver == "std":
        solution = np.linalg.solve(gram, right)
    elif solver == "cholesky":
        lower = np.linalg.cholesky(gram)
        solution = np.linalg.solve(lower.transpose(0, 2, 1), np.linalg.solve(lower, right))
    elif solver == "qr":
        q, r = np.linalg.qr(gram)
        solution = np.linalg.solve(r, q.transpose(0, 2, 1) @ right)
    elif solver == "inv":
        solution = np.linalg.inv(gram) @ right
    elif solver == "pinv":
        solution = np.linalg.pinv(gram, hermitian=True) @ right
    elif solver == "lstsq":
        solution = np.stack([np.linalg.lstsq(g, m, rcond=None)[0] for g, m in zip(gram, right, strict=True)])
    elif solver == "svd":
        u, s, vt = np.linalg.svd(gram)
        inverse = np.where(s > s[:, :1] * np.finfo(float).eps * gram.shape[1], 1 / np.maximum(s, 1e-300), 0.0)
        solution = vt.transpose(0, 2, 1) @ (inverse[..., None] * (u.transpose(0, 2, 1) @ right))
    else:
        raise ValueError(f"solver {solver!r}: must be one of {', '.join(SOLVERS)}")
    return solution[..., 0]
