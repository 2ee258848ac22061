"""Maximum-weight matching on graphs in which no vertex has more than three neighbours, such as the triangles of a mesh.

Four steps, each of which leaves a valid matching and a valid upper bound behind:

1. The graph is cut into parts of at most PART vertices; connected components of at most EXACT vertices stay whole. Where two parts touch, the
   vertices on one side become walls, which nothing changes for now. Parts are independent, and solved on several processes.
2. In a part, the linear relaxation (`matching_fractional`) gives duals and most of the matching.
3. Blossom searches (`matching_search`) settle what is still exposed. Each is local. In a component of at most EXACT vertices they go on
   until the optimum is proven; in larger ones a search gives up at SEARCH_LIMITS[-1] vertices, which keeps the whole near to linear.
4. The parts are put together, and the searches that came up against a wall are run again without walls.

The parts depend on the graph and the seed alone, so the result does not depend on the number of processes.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components

from meshes.matching_blossom import DEGREE, Blossoms
from meshes.matching_fractional import (
    PATCH,
    WEIGHT_LIMIT,
    groups,
    initial_dual,
    match_tight,
    matching_of,
    split_in_space,
    sweep,
)
from meshes.matching_search import BlossomSearch

EXACT = 20_000  # vertices of a component which is always solved to the optimum
PART = 60_000  # vertices
SEARCH_LIMITS = (300, 1_000, 3_000, 10_000)  # labelled vertices: near partners first, then farther ones
SWEEPS = 2  # of the relaxation, with other patches each time


@dataclass
class Matching:
    """`mate` [n] int64 (-1: exposed) and `chosen` [k] int64, the rows of the matched edges, ascending.

    `objective` is the sum of their weights. No matching weighs more than `bound`. `optimal`: the optimum is proven for the weights rounded up
    to multiples of the heaviest / 2**36, which is all that `bound` and `objective` then differ by. `complete` is False if the time limit
    stopped the work.

    `share` [n] float64 says what each vertex adds to the bound: summed over a set of components it is the bound for them. `unsettled` [n] bool
    marks the exposed vertices which might not be exposed at the optimum; a component without any is solved to the optimum.
    """

    mate: np.ndarray
    chosen: np.ndarray
    objective: float
    bound: float
    share: np.ndarray
    unsettled: np.ndarray
    complete: bool

    @property
    def optimal(self) -> bool:
        return not self.unsettled.any()

    @property
    def ratio(self) -> float:
        """objective / bound, 1 for a graph without edges."""
        return self.objective / self.bound if self.bound > 0 else 1.0


def maximum_weight_matching(
    n: int,
    edges: np.ndarray,
    weights: np.ndarray,
    positions: np.ndarray,
    *,
    time_limit: float | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Matching:
    """Match vertices 0..n-1 along `edges` [m, 2] so that the sum of the `weights` [m] is as large as possible.

    `positions` [n, d] place the vertices in space; only speed depends on how near neighbours are. `time_limit` seconds (None: unlimited) give
    the best matching found by then. `workers` processes. `progress` is called with the share of vertices done.

    ValueError: an edge out of range or to itself, two edges between the same vertices, more than three at one, or a weight that is not finite and
    positive.
    """
    deadline = float("inf") if time_limit is None else time.time() + time_limit
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    weights = np.asarray(weights, np.float64)
    _check(n, edges, weights)
    if len(edges) == 0:
        return Matching(
            np.full(n, -1, np.int64), np.zeros(0, np.int64), 0.0, 0.0, np.zeros(n), np.zeros(n, bool), True
        )  # fmt: skip
    unit = weights.max() * 4 / WEIGHT_LIMIT
    scaled = np.ceil(weights / unit).astype(np.int64) * 4

    search = _solve(n, edges, scaled, np.asarray(positions, np.float64), seed, workers, deadline, progress)
    if progress is not None:
        progress(1.0)
    mate = np.array(search.mate, np.int64)
    share = search.bound_shares() / 4 * unit
    unsettled = np.zeros(n, bool)
    unsettled[search.open_roots()] = True
    complete = time.time() <= deadline or not unsettled.any()
    _fill(edges, weights, mate)
    chosen = np.flatnonzero(mate[edges[:, 0]] == edges[:, 1])
    objective = float(weights[chosen].sum())
    bound = max(objective, float(share.sum()))
    return Matching(mate, chosen, objective, bound, share, unsettled, complete)


def _check(n: int, edges: np.ndarray, weights: np.ndarray) -> None:
    if len(weights) != len(edges):
        raise ValueError(f"{len(weights)} weights for {len(edges)} edges")
    if len(edges) == 0:
        return
    if edges.min() < 0 or edges.max() >= n:
        raise ValueError(f"an edge names a vertex outside 0..{n - 1}")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("weights must be finite and positive")
    if np.bincount(edges.ravel(), minlength=n).max() > DEGREE:
        raise ValueError(f"a vertex has more than {DEGREE} edges")
    low, high = edges.min(1), edges.max(1)
    if (low == high).any() or len(np.unique(low * n + high)) != len(edges):
        raise ValueError("an edge leads to its own vertex, or occurs twice")


def _solve(
    n: int,
    edges: np.ndarray,
    weights: np.ndarray,
    positions: np.ndarray,
    seed: int,
    workers: int,
    deadline: float,
    progress: Callable[[float], None] | None,
) -> BlossomSearch:
    rng = np.random.default_rng(seed)
    adjacency = sparse.coo_matrix((np.ones(len(edges), np.int8), edges.T), shape=(n, n))
    component = connected_components(adjacency, directed=False)[1]
    exact = np.bincount(component)[component] <= EXACT
    part = _parts(component, exact, positions, rng)
    ends = part[edges]
    wall = np.zeros(n, bool)
    wall[np.where(ends[:, 0] > ends[:, 1], edges[:, 0], edges[:, 1])[ends[:, 0] != ends[:, 1]]] = True
    y = initial_dual(n, edges, weights)

    tasks = list(_tasks(edges, weights, positions, y, exact, part, wall, seed, deadline))
    if len(tasks) == 1:
        return _search_part(tasks[0])
    state = Blossoms.flat(np.full(n, -1, np.int64), y)
    if time.time() > deadline:  # not even time to start processes
        return BlossomSearch(*_arcs(n, edges, weights), state)
    solved: list[Blossoms | None] = [None] * len(tasks)
    done = 0
    for index, result in _run(tasks, workers):
        solved[index] = result
        done += len(tasks[index].vertices)
        if progress is not None:
            progress(min(1.0, done / n))
    for task, result in zip(tasks, solved, strict=True):
        state.place(result, task.vertices)

    match_tight(edges, weights, state.y, state.mate)
    neighbour, weight = _arcs(n, edges, weights)
    _lower(np.flatnonzero(wall), neighbour, weight, state)
    search = BlossomSearch(neighbour, weight, state)
    for limit in SEARCH_LIMITS:
        search.run(search.open_roots(), limit, deadline)
    return search


def _parts(component: np.ndarray, exact: np.ndarray, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part number for every vertex: small components are put together up to PART vertices, large ones cut in space."""
    part = np.empty(len(component), np.int64)
    sizes = np.bincount(component)
    whole = np.where(sizes <= EXACT, sizes, 0)
    part[exact] = (np.cumsum(whole) // PART)[component[exact]]
    count = int(part[exact].max(initial=-1)) + 1
    for k in np.flatnonzero(sizes > EXACT):
        vertices = np.flatnonzero(component == k)
        part[vertices] = count + split_in_space(positions[vertices], PART, rng)
        count = int(part[vertices].max()) + 1
    return np.unique(part, return_inverse=True)[1]


@dataclass
class _Part:
    """The subgraph of one part. `vertices` are its own and, behind them, the walls beside it; the rest is in its own numbering."""

    vertices: np.ndarray
    edges: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    y: np.ndarray
    exact: np.ndarray
    wall: np.ndarray
    seed: int
    deadline: float


def _tasks(edges, weights, positions, y, exact, part, wall, seed, deadline) -> Iterator[_Part]:
    inner = np.where(wall, -1, part)
    owner = inner[edges].max(1)  # an edge has at most one part beside walls
    edges_of = groups(owner + 1)[1:]
    vertices_of = groups(inner + 1)[1:]
    local = np.empty(len(part), np.int64)
    for k, own in enumerate(vertices_of):
        rows = edges_of[k] if k < len(edges_of) else np.zeros(0, np.int64)
        ends = edges[rows]
        vertices = np.concatenate([own, np.unique(ends[wall[ends]])])
        local[vertices] = np.arange(len(vertices))
        yield _Part(
            vertices, local[ends], weights[rows], positions[vertices], y[vertices], exact[vertices], wall[vertices], seed, deadline
        )  # fmt: skip


def _search_part(task: _Part) -> BlossomSearch:
    n, y = len(task.vertices), task.y.copy()
    rng = np.random.default_rng(task.seed)
    assignment = np.arange(n)
    for _ in range(SWEEPS if n > PATCH else 1):
        patch = split_in_space(task.positions, PATCH, rng)
        assignment = sweep(task.edges, task.weights, y, task.wall, patch, task.deadline)
    mate = matching_of(assignment, y)
    free = ~task.wall
    inside = free[task.edges].all(1)
    match_tight(task.edges[inside], task.weights[inside], y, mate)
    search = BlossomSearch(*_arcs(n, task.edges, task.weights), Blossoms.flat(mate, y), task.wall)
    for limit in SEARCH_LIMITS:
        search.run(search.open_roots(), limit, task.deadline)
    search.run([v for v in search.open_roots() if task.exact[v]], None, task.deadline)
    return search


def _solve_part(task: _Part) -> Blossoms:
    return _search_part(task).state()


def _run(tasks: list[_Part], workers: int) -> Iterator[tuple[int, Blossoms]]:
    """Solve the parts in up to `workers` processes; yields (index, state) as they finish."""
    workers = min(workers, len(tasks))
    if workers <= 1:
        for index, task in enumerate(tasks):
            yield index, _solve_part(task)
        return
    # Fresh processes: a fork would take over whatever threads and locks the caller holds.
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        index_of = {executor.submit(_solve_part, task): index for index, task in enumerate(tasks)}
        for future in as_completed(index_of):
            yield index_of[future], future.result()
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """The parent alone answers Ctrl-C; and a worker does not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _arcs(n: int, edges: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edges as BlossomSearch wants them: neighbours and weights, [3 n] each."""
    source = np.concatenate([edges[:, 0], edges[:, 1]])
    order = np.argsort(source, kind="stable")
    source = source[order]
    slot = DEGREE * source + np.arange(len(source)) - np.searchsorted(source, source)
    neighbour = np.full(DEGREE * n, -1, np.int64)
    weight = np.zeros(DEGREE * n, np.int64)
    neighbour[slot] = np.concatenate([edges[:, 1], edges[:, 0]])[order]
    weight[slot] = np.concatenate([weights, weights])[order]
    return neighbour, weight


def _lower(vertices: np.ndarray, neighbour: np.ndarray, weight: np.ndarray, state: Blossoms) -> None:
    """Let the duals of exposed vertices sink as far as their neighbours' allow, and match them where that makes an edge tight."""
    for v in vertices[state.mate[vertices] < 0].tolist():
        arcs = [a for a in range(DEGREE * v, DEGREE * v + DEGREE) if neighbour[a] >= 0]
        need = {int(neighbour[a]): int(weight[a] - state.y[neighbour[a]]) for a in arcs}
        state.y[v] = max(0, *need.values())
        for u, least in need.items():
            if least == state.y[v] and state.mate[u] < 0 and state.mate[v] < 0:
                state.mate[u], state.mate[v] = v, u


def _fill(edges: np.ndarray, weights: np.ndarray, mate: np.ndarray) -> None:
    """Match exposed neighbours, the heaviest edges first, for what a limit left over."""
    left = np.flatnonzero((mate[edges] < 0).all(1))
    for u, v in edges[left[np.argsort(-weights[left], kind="stable")]].tolist():
        if mate[u] < 0 and mate[v] < 0:
            mate[u], mate[v] = v, u
