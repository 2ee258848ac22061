"""The linear relaxation of maximum-weight matching, solved patch by patch: where the exact search starts from.

Without the odd-set constraints, the dual of matching is `min sum(y)` subject to `y_u + y_v >= weight` and `y >= 0` (Balinski 1965,
"Integer programming: methods, uses, computation"). Its primal optimum is half-integral: single edges, and odd cycles of halves. It is an
assignment problem on the graph's double cover (vertex v becomes a row and a column; staying alone is the entry (v, v) of weight 0), which
scipy solves by shortest augmenting paths in compiled code. On triangle meshes this bound lies within a fraction of a percent of the
optimum, and only the odd cycles and the seams between patches are left to the blossom algorithm.
"""

import time

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

# Weights are scaled to integers up to WEIGHT_LIMIT. The assignment solver works in float64; costs are at most 2 WEIGHT_LIMIT, its duals at most
# PATCH times that, so everything stays an exact integer below 2**53.
PATCH = 1 << 13  # vertices
WEIGHT_LIMIT = 1 << 38


def initial_dual(n: int, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A feasible dual: half the heaviest edge at each vertex. `edges` [m, 2], `weights` [m] int64, multiples of 4; returns [n] int64."""
    y = np.zeros(n, np.int64)
    for side in (0, 1):
        np.maximum.at(y, edges[:, side], weights // 2)
    return y


def split_in_space(positions: np.ndarray, largest: int, rng: np.random.Generator) -> np.ndarray:
    """Number the parts of a k-d tree with at most `largest` points each; `positions` [n, d], returns [n] int64.

    The axes are turned at random so that two calls cut in different places.
    """
    n, dimensions = positions.shape
    turned = positions @ np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    part = np.zeros(n, np.int64)
    pending, count = [np.arange(n)], 0
    while pending:
        points = pending.pop()
        if len(points) <= largest:
            part[points] = count
            count += 1
            continue
        spread = turned[points]
        half = len(points) // 2
        order = np.argpartition(spread[:, np.ptp(spread, axis=0).argmax()], half)
        pending += [points[order[half:]], points[order[:half]]]
    return part


def groups(labels: np.ndarray) -> list[np.ndarray]:
    """The indices of each label 0, 1, ... as arrays, ascending."""
    order = np.argsort(labels, kind="stable")
    count = int(labels.max(initial=-1)) + 1
    return np.split(order, np.searchsorted(labels[order], np.arange(1, count)))


def solve_patch(n: int, edges: np.ndarray, weights: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The relaxation on n vertices where y may not be below `least` [n]: returns y [n] and the assignment [n], an optimal pair.

    Every assigned edge v - assignment[v] is tight; assignment[v] = v means that v stays alone with y = least.
    """
    vertices = np.arange(n)
    rows = np.concatenate([edges[:, 0], edges[:, 1], vertices])
    columns = np.concatenate([edges[:, 1], edges[:, 0], vertices])
    gain = np.concatenate([weights, weights, 2 * least])
    top = int(gain.max()) + 4
    cost = sparse.csr_matrix(((top - gain).astype(np.float64), (rows, columns)), shape=(n, n))
    assignment = min_weight_full_bipartite_matching(cost)[1].astype(np.int64)

    # The solver keeps its duals to itself. Column potentials are shortest distances where the arc from the column assigned to a row to
    # another column of that row costs the difference; no cycle is negative at the optimum, so relaxing all arcs at once comes to rest.
    entries = cost.tocoo()
    rows, columns, values = entries.row, entries.col, entries.data.astype(np.int64)
    own = np.empty(n, np.int64)
    chosen = columns == assignment[rows]
    own[rows[chosen]] = values[chosen]
    order = np.argsort(columns, kind="stable")
    source, step = assignment[rows[order]], (values - own[rows])[order]
    starts = np.searchsorted(columns[order], vertices)
    potential = np.zeros(n, np.int64)
    while True:
        relaxed = np.minimum(potential, np.minimum.reduceat(potential[source] + step, starts))
        if np.array_equal(relaxed, potential):
            break
        potential = relaxed
    # Row and column dual of a vertex, averaged: still feasible and optimal, because the problem is symmetric.
    return (top - own + potential[assignment] - potential) // 2, assignment


def sweep(
    edges: np.ndarray,
    weights: np.ndarray,
    y: np.ndarray,
    fixed: np.ndarray,
    patch: np.ndarray,
    deadline: float,
) -> np.ndarray:
    """Solve the patches one after the other, each with the duals around it held; `y` [n] is lowered in place and stays feasible.

    `fixed` [n] bool: vertices whose dual is not to change. `patch` [n]: a patch number for every vertex. Returns the assignment [n] (itself:
    alone, fixed, or not reached before `deadline`, a `time.time()`).
    """
    n = len(y)
    assignment = np.arange(n)
    local = np.empty(n, np.int64)
    patch = np.where(fixed, -1, patch)
    ends = patch[edges]
    inner = np.flatnonzero((ends[:, 0] == ends[:, 1]) & (ends[:, 0] >= 0))
    border = np.flatnonzero(ends[:, 0] != ends[:, 1])
    count = int(patch.max(initial=-1)) + 1
    vertices_of = groups(patch + 1)[1:]
    inner_of = groups(ends[inner, 0])
    # A border edge concerns both its patches.
    near = np.concatenate([edges[border, 0], edges[border, 1]])
    far = np.concatenate([edges[border, 1], edges[border, 0]])
    across = np.concatenate([weights[border], weights[border]])
    border_of = groups(patch[near] + 1)[1:]
    none = np.zeros(0, np.int64)
    for k in range(count):
        if time.time() > deadline:
            break
        vertices = vertices_of[k]
        own = inner[inner_of[k]] if k < len(inner_of) else none
        around = border_of[k] if k < len(border_of) else none
        local[vertices] = np.arange(len(vertices))
        least = np.zeros(len(vertices), np.int64)
        np.maximum.at(least, local[near[around]], across[around] - y[far[around]])
        y[vertices], chosen = solve_patch(len(vertices), local[edges[own]], weights[own], least)
        assignment[vertices] = vertices[chosen]
    return assignment


def matching_of(assignment: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The matching in a half-integral solution, [n], -1: exposed. Of every odd cycle one vertex, of the least dual, stays exposed."""
    n = len(assignment)
    vertices = np.arange(n)
    mate = np.full(n, -1, np.int64)
    pairs = (assignment[assignment] == vertices) & (assignment != vertices)
    mate[pairs] = assignment[pairs]
    seen = assignment[assignment] == vertices
    following, seen = assignment.tolist(), seen.tolist()
    for start in np.flatnonzero(assignment[assignment] != vertices).tolist():
        if seen[start]:
            continue
        cycle = [start]
        while following[cycle[-1]] != start:
            cycle.append(following[cycle[-1]])
        for v in cycle:
            seen[v] = True
        if len(cycle) % 2:
            least = min(range(len(cycle)), key=lambda i: (y[cycle[i]], cycle[i]))
            cycle = cycle[least + 1 :] + cycle[:least]
        mate[cycle[::2]] = cycle[1::2]
        mate[cycle[1::2]] = cycle[::2]
    return mate


def match_tight(edges: np.ndarray, weights: np.ndarray, y: np.ndarray, mate: np.ndarray) -> None:
    """Match exposed vertices along tight edges, in the order of the edges; `mate` [n] is changed in place."""
    tight = (mate[edges] < 0).all(1) & (y[edges].sum(1) == weights)
    for u, v in edges[tight].tolist():
        if mate[u] < 0 and mate[v] < 0:
            mate[u], mate[v] = v, u
