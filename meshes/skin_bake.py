"""Skin weights that reproduce given deformed shapes: a small constrained least-squares problem per point.

With the transforms T_pb (3x4) of bone b in pose p, a rest point v (as ~v = [x, y, z, 1]) and its targets y_p, weights w >= 0 with
sum 1 minimise sum_p |sum_b w_b T_pb ~v - y_p|^2. Because the weights sum to 1 this is w' Q w with
Q = A'A - (A'y)1' - 1(A'y)' + y'y, and (A'A)_bb' = ~v' (sum_p T_pb' T_pb') ~v: the bone-pair tensor in the brackets is computed
once, so the cost per point does not depend on the number of poses. V points, B bones, P poses, K weights.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from meshes.weight_rows import limit

SOLVERS = ("nnls", "std", "cholesky", "qr", "inv", "pinv", "lstsq", "svd")
# Of the diagonal of Q; keeps near-equal bones from being played against each other.
RIDGE = 1e-9
# Points solved together: bounds the memory of their Q matrices (points x bones x bones x 8 bytes) to about 200 MB.
_BATCH_BYTES = 2e8


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


@numba.njit(nogil=True)
def _skin_pose(points, offsets, joints, weights, transforms):
    posed = np.zeros_like(points)
    for v in range(len(points)):
        x, y, z = points[v, 0], points[v, 1], points[v, 2]
        for i in range(offsets[v], offsets[v + 1]):
            t, w = transforms[joints[i]], weights[i]
            for k in range(3):
                posed[v, k] += w * (t[k, 0] * x + t[k, 1] * y + t[k, 2] * z + t[k, 3])
    return posed


def skin_points(
    points: np.ndarray, offsets: np.ndarray, joints: np.ndarray, weights: np.ndarray, transforms: np.ndarray
) -> np.ndarray:
    """Linear-blend skinning of points [V, 3] with weights in compressed rows for all transforms [P, J, 3, 4]: [P, V, 3]."""
    points = np.ascontiguousarray(points, np.float64)
    rows = (np.asarray(offsets, np.int64), np.asarray(joints, np.int64), np.asarray(weights, np.float64))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(lambda t: _skin_pose(points, *rows, np.ascontiguousarray(t)), transforms)))


@numba.njit(nogil=True)
def _best_on(q, support, size, weights):
    """Minimise w' q w with sum 1 over the first `size` entries of `support`; weights may come out negative.

    Cholesky by hand: numba needs half a minute to compile numpy's solver.
    """
    lower = np.zeros((size, size))
    for i in range(size):
        for j in range(i + 1):
            value = q[support[i], support[j]]
            for k in range(j):
                value -= lower[i, k] * lower[j, k]
            if i == j:
                lower[i, i] = np.sqrt(max(value, 1e-300))
            else:
                lower[i, j] = value / lower[j, j]
    for i in range(size):
        value = 1.0
        for k in range(i):
            value -= lower[i, k] * weights[k]
        weights[i] = value / lower[i, i]
    total = 0.0
    for i in range(size - 1, -1, -1):
        value = weights[i]
        for k in range(i + 1, size):
            value -= lower[k, i] * weights[k]
        weights[i] = value / lower[i, i]
        total += weights[i]
    for i in range(size):
        weights[i] /= total


@numba.njit(nogil=True)
def _simplex(q, support, size):
    """Active-set solution of min w' q w, w >= 0, sum 1, started from `support[:size]`; returns weights [B].

    Lawson and Hanson's NNLS (Solving Least Squares Problems, 1974, ch. 23) with the sum as an equality.
    """
    bones = len(q)
    inside = np.zeros(bones, np.bool_)
    active = np.empty(bones, np.int64)
    old = np.zeros(bones)
    new = np.empty(bones)
    gradient = np.empty(bones)
    weights = np.zeros(bones)
    for i in range(size):
        active[i] = support[i]
        inside[support[i]] = True
        old[i] = 1.0 / size
    for _ in range(3 * bones + 10):
        while True:
            _best_on(q, active, size, new)
            step = 1.0
            for i in range(size):
                if new[i] <= 0.0 and old[i] - new[i] > 0.0:
                    step = min(step, old[i] / (old[i] - new[i]))
            for i in range(size):
                old[i] += step * (new[i] - old[i])
            if step >= 1.0:
                break
            kept = 0
            for i in range(size):
                if old[i] > 1e-14:
                    active[kept], old[kept] = active[i], old[i]
                    kept += 1
                else:
                    inside[active[i]] = False
            size = kept
        weights[:] = 0.0
        for i in range(size):
            weights[active[i]] = old[i]
        level = 0.0
        for b in range(bones):
            gradient[b] = 0.0
            for i in range(size):
                gradient[b] += q[b, active[i]] * old[i]
            level += weights[b] * gradient[b]
        entering, lowest = -1, -1e-10 * max(level, 1e-300)
        for b in range(bones):
            if not inside[b] and gradient[b] - level < lowest:
                entering, lowest = b, gradient[b] - level
        if entering < 0:
            break
        active[size], old[size] = entering, 0.0
        inside[entering] = True
        size += 1
    return weights


@numba.njit(nogil=True)
def _on_support(q, start):
    """Solve on the bones `start` uses."""
    support = np.flatnonzero(start > 0.0)
    n = len(support)
    inner = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            inner[i, j] = q[support[i], support[j]]
    small = _simplex(inner, np.arange(n), n)
    weights = np.zeros(len(q))
    for i in range(n):
        weights[support[i]] = small[i]
    return weights


@numba.njit(nogil=True)
def _refit(q, weights, influences):
    """Drop the smallest weight and solve again on the rest, until at most `influences` are left."""
    while True:
        support = np.flatnonzero(weights > 0.0)
        if len(support) <= influences:
            return weights
        smallest = 0
        for i in range(len(support)):
            if weights[support[i]] < weights[support[smallest]]:
                smallest = i
        weights[support[smallest]] = 0.0
        weights = _on_support(q, weights)


@numba.njit(nogil=True)
def _energy(q, weights):
    total = 0.0
    for i in range(len(q)):
        if weights[i] > 0.0:
            for j in range(len(q)):
                total += weights[i] * q[i, j] * weights[j]
    return total


@numba.njit(nogil=True)
def _solve_batch(qs, original, influences):
    out = np.zeros((len(qs), qs.shape[1]))
    for v in range(len(qs)):
        q = qs[v]
        bones = len(q)
        mean = 0.0
        for b in range(bones):
            mean += q[b, b] / bones
        for b in range(bones):
            q[b, b] += RIDGE * mean + 1e-300
        first = 0
        for b in range(bones):
            if q[b, b] < q[first, first]:
                first = b
        weights = _simplex(q, np.array([first]), 1)
        if influences:
            weights = _refit(q, weights, influences)
        # The original bones are the other natural choice of support; the smaller error wins.
        if original[v].max() > 0.0:
            other = _on_support(q, original[v])
            if _energy(q, other) < _energy(q, weights):
                weights = other
        out[v] = weights
    return out


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
            weights = limit(_solve_batch(np.ascontiguousarray(gram), limited[part], influences), influences, prune)
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
