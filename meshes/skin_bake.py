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
# Points solved together: bounds the memory of their Q matrices (points x bones x bones x 8 bytes) to about 32 MB a thread.
_BATCH_BYTES = 3.2e7
# A bone enters while the error falls along it by more than this share of itself.
_SLOPE = 1e-10
# Bones that enter at once, and rounds without progress before bones are exchanged one by one.
_ENTERING, _PATIENCE = 3, 3
_PARTS = 4


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


def _columns(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The True columns of each row first, as many as the fullest row has: indices [R, K] and which of them count [R, K]."""
    counts = inside.sum(axis=1)
    most = int(counts.max(initial=0))
    return np.argsort(~inside, axis=1, kind="stable")[:, :most], np.arange(most) < counts[:, None]


def _inner(q: np.ndarray, rows: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of q[rows] on the bones `inside` [R, B], [R, K, K], with the `_columns` it belongs to.

    Places that a row does not use hold an equation of their own: 1 x = 0.
    """
    bones, used = _columns(inside)
    # Flat indices: numpy takes by them twice as fast as by three arrays.
    line = (rows[:, None] * q.shape[1] + bones) * q.shape[1]
    inner = q.reshape(-1).take(line[:, :, None] + bones[:, None, :])
    inner *= used[:, :, None]
    inner *= used[:, None, :]
    np.einsum("rkk->rk", inner)[~used] = 1.0
    return inner, bones, used


def _optimum(q: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Weights [N, B] with the least w' q w, w >= 0, sum 1; `start` [N, B] says from which bones the search begins.

    With x = w / (w' q w) this is the complementarity problem x >= 0, q x - 1 >= 0, x' (q x - 1) = 0, solved by exchanging bones
    between the two sides: block principal pivoting (Kim and Park, Fast Nonnegative Matrix Factorization, SIAM J. Sci. Comput. 33,
    2011), with few bones entering at a time to keep the systems small. All points go in step; those that are done leave.
    """
    inside, weights = start.copy(), np.zeros(start.shape)
    fewest, patience = np.full(len(q), q.shape[1] + 1), np.full(len(q), _PATIENCE)
    rows, lines = np.arange(len(q)), q.reshape(-1, q.shape[1])
    rounds = 0
    while len(rows):
        now, rounds = inside[rows], rounds + 1
        inner, bones, used = _inner(q, rows, now)
        solution = np.linalg.solve(inner, used[..., None].astype(float))[..., 0]
        x = np.zeros(now.shape)
        np.put_along_axis(x, bones, solution, 1)
        slope = np.einsum("rkb,rk->rb", lines.take(rows[:, None] * len(start[0]) + bones, axis=0), solution) - 1.0
        falls = np.where(now, 0.0, slope) < -_SLOPE
        wrong = (now & (x < 0)) | falls
        steepest = np.argpartition(np.where(falls, slope, 0.0), min(_ENTERING, slope.shape[1]) - 1, axis=1)
        exchange = np.zeros(now.shape, bool)
        np.put_along_axis(exchange, steepest[:, :_ENTERING], True, 1)
        exchange = (exchange & falls) | (now & wrong)
        # Where the number of wrong bones has stopped falling, exchange only the last of them: that cannot go in circles.
        count = wrong.sum(axis=1)
        improved = count < fewest[rows]
        fewest[rows] = np.minimum(fewest[rows], count)
        patience[rows] = np.where(improved, _PATIENCE, patience[rows] - 1)
        alone = (patience[rows] < 0)[:, None]
        last = now.shape[1] - 1 - wrong[:, ::-1].argmax(axis=1)
        exchange = np.where(alone, wrong & (np.arange(now.shape[1]) == last[:, None]), exchange)
        done = count == 0
        if rounds > 20 * q.shape[1]:
            # q is nothing but rounding here: every choice of these bones is as good, the one from the start included.
            x, done = start[rows].astype(float), np.ones(len(rows), bool)
        weights[rows[done]] = x[done] / x[done].sum(axis=1, keepdims=True)
        inside[rows] = now ^ exchange
        rows = rows[~done]
    return weights


def _reduced(q: np.ndarray, chosen: np.ndarray, support: np.ndarray, influences: int, prune: float) -> np.ndarray:
    """Weights [R, B] of the points `chosen` [R], on at most `influences` (0: any number) of the bones in `support` [R, B], none
    negative or below `prune`.

    The optimum on a set of bones is x / sum(x) with x = inverse(q) 1, and its error 1 / sum(x); without bone i sum(x) falls by
    x_i^2 / inverse(q)_ii. So bones go one by one, the negative first, then the one that costs least, then those below `prune`.
    """
    left = support.copy()
    inner, bones, used = _inner(q, chosen, support)
    inverse = np.linalg.inv(inner) * (used[:, :, None] & used[:, None, :])
    rows = np.arange(len(chosen))
    while len(rows):
        x = inverse.sum(axis=2)
        weights = np.where(used, x / x.sum(axis=1, keepdims=True), np.inf)
        lowest, count = weights.min(axis=1), used.sum(axis=1)
        drop = weights.argmin(axis=1)
        many = (count > influences) & (lowest > 0) if influences else np.zeros(len(rows), bool)
        cost = x[many] ** 2 / np.where(used[many], np.einsum("nkk->nk", inverse[many]), 1.0)
        drop[many] = np.where(used[many], cost, np.inf).argmin(axis=1)
        more = (many | (lowest <= 0) | (lowest < prune)) & (count > 1)
        if not more.all():
            rows, bones, used, inverse, drop = rows[more], bones[more], used[more], inverse[more], drop[more]
        each = np.arange(len(rows))
        column = inverse[each, :, drop]
        inverse -= column[:, :, None] * (column / column[each, drop][:, None])[:, None, :]
        inverse[each, :, drop] = inverse[each, drop] = 0.0
        used[each, drop] = False
        left[rows, bones[each, drop]] = False
    # Once more from the start: many steps of elimination add up their rounding.
    inner, bones, used = _inner(q, chosen, left)
    x = np.maximum(np.linalg.solve(inner, used[..., None].astype(float))[..., 0], 0.0)
    weights = np.zeros(support.shape)
    np.put_along_axis(weights, bones, x / x.sum(axis=1, keepdims=True), 1)
    return weights


def _constrained(q: np.ndarray, original: np.ndarray, influences: int, prune: float) -> np.ndarray:
    """Weights [N, B], at most `influences` a row, that make w' q w small; `original` [N, B] are the weights so far, limited."""
    diagonal = np.einsum("nbb->nb", q)
    diagonal += RIDGE * diagonal.mean(axis=1, keepdims=True) + 1e-300
    start = original > 0
    start[np.arange(len(q)), diagonal.argmin(axis=1)] = True
    support, weights = _optimum(q, start) > 0, np.zeros(start.shape)
    # Points with about as many bones go together, as each takes as much room as the one with most.
    for part in np.array_split(support.sum(axis=1).argsort(), _PARTS):
        weights[part] = _reduced(q, part, support[part], influences, prune)
    return weights


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
