"""Maximum-weight matching against networkx and rustworkx, and what must hold when it is cut short."""

import networkx
import numpy as np
import pytest
import rustworkx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from meshes import matching, matching_fractional
from meshes.matching import maximum_weight_matching
from meshes.matching_blossom import Blossoms
from meshes.matching_fractional import initial_dual, matching_of, split_in_space, sweep
from meshes.matching_search import BlossomSearch


def triangle_graph(points: int, seed: int, share: float = 1.0, kind: str = "length"):
    """(n, edges, weights, centres) of the triangles of a Delaunay triangulation, each edge kept with probability `share`."""
    rng = np.random.default_rng(seed)
    corners = rng.random((points, 2))
    mesh = Delaunay(corners)
    one = np.repeat(np.arange(len(mesh.simplices)), 3)
    other = mesh.neighbors.ravel()
    edges = np.stack([one, other], 1)[one < other]
    edges = edges[rng.random(len(edges)) < share]
    weights = {
        "length": lambda m: 1 + 0.1 * rng.random(m),
        "ones": np.ones,
        "ties": lambda m: rng.integers(1, 5, m).astype(float),
        "spread": lambda m: rng.random(m) + 1e-3,
    }[kind](len(edges))
    return len(mesh.simplices), edges, weights, corners[mesh.simplices].mean(1)


def best(n: int, edges: np.ndarray, weights: np.ndarray) -> float:
    graph = networkx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_weighted_edges_from(
        (*edge, weight) for edge, weight in zip(edges.tolist(), weights.tolist(), strict=True)
    )
    return sum(graph.edges[pair]["weight"] for pair in networkx.max_weight_matching(graph))


def assert_matching(result, n: int, edges: np.ndarray, weights: np.ndarray) -> None:
    assert result.mate.shape == (n,)
    matched = np.flatnonzero(result.mate >= 0)
    assert (result.mate[result.mate[matched]] == matched).all()
    assert len(np.unique(edges[result.chosen])) == 2 * len(result.chosen) == len(matched)
    assert (result.mate[edges[result.chosen, 0]] == edges[result.chosen, 1]).all()
    assert result.objective == pytest.approx(weights[result.chosen].sum())
    exposed = (result.mate[edges] < 0).all(1)
    assert not exposed.any(), "two neighbours are both left over"


GRAPHS = {
    "points": st.integers(4, 90),
    "seed": st.integers(0, 10**6),
    "share": st.sampled_from([1.0, 0.85, 0.6]),
    "kind": st.sampled_from(["length", "ones", "ties", "spread"]),
}


@given(**GRAPHS)
@settings(max_examples=120, deadline=None)
def test_small_graphs_are_solved_to_the_optimum(points, seed, share, kind):
    n, edges, weights, centres = triangle_graph(points, seed, share, kind)
    result = maximum_weight_matching(n, edges, weights, centres, seed=seed)
    assert_matching(result, n, edges, weights)
    optimum = best(n, edges, weights)
    assert result.objective == pytest.approx(optimum, abs=1e-7)
    assert optimum <= result.bound * (1 + 1e-12)
    assert result.bound == pytest.approx(result.objective, rel=1e-9)
    assert result.optimal and result.complete


@given(**GRAPHS)
@settings(max_examples=60, deadline=None)
def test_bound_and_matching_hold_when_cut_into_parts(points, seed, share, kind):
    n, edges, weights, centres = triangle_graph(points, seed, share, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "EXACT", 10)
        patch.setattr(matching, "PART", 40)
        patch.setattr(matching, "PATCH", 15)
        patch.setattr(matching, "SEARCH_LIMITS", (4, 12))
        result = maximum_weight_matching(n, edges, weights, centres, seed=seed)
    assert_matching(result, n, edges, weights)
    optimum = best(n, edges, weights)
    assert result.objective <= optimum + 1e-9
    assert optimum <= result.bound * (1 + 1e-12)
    if result.optimal:
        assert result.objective == pytest.approx(optimum, abs=1e-7)


@given(**GRAPHS)
@settings(max_examples=30, deadline=None)
def test_no_time_at_all_still_gives_a_matching_and_a_bound(points, seed, share, kind):
    n, edges, weights, centres = triangle_graph(points, seed, share, kind)
    result = maximum_weight_matching(n, edges, weights, centres, time_limit=-1.0)
    assert_matching(result, n, edges, weights)
    optimum = best(n, edges, weights)
    assert result.objective <= optimum + 1e-9 <= result.bound * (1 + 1e-12) + 2e-9
    assert result.optimal or not result.complete


@given(points=st.integers(4, 60), seed=st.integers(0, 10**6), limit=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_search_given_up_leaves_a_state_to_go_on_from(points, seed, limit):
    n, edges, weights, _ = triangle_graph(points, seed)
    scaled = np.ceil(weights * 1000).astype(np.int64) * 4
    arcs = matching._arcs(n, edges, scaled)
    optimum = best(n, edges, scaled)
    search = BlossomSearch(*arcs, Blossoms.flat(np.full(n, -1, np.int64), initial_dual(n, edges, scaled)))
    for _ in range(3):
        search.run(search.open_roots(), limit, float("inf"))
        assert search.bound() >= optimum
        again = BlossomSearch(*arcs, search.state())
        assert again.bound() == search.bound()
        search = again
    search.run(search.open_roots(), None, float("inf"))
    assert search.open_roots() == []
    assert search.bound() == optimum


@given(points=st.integers(4, 90), seed=st.integers(0, 10**6), share=st.sampled_from([1.0, 0.8]))
@settings(max_examples=40, deadline=None)
def test_relaxation_gives_feasible_duals_and_a_tight_matching(points, seed, share):
    n, edges, weights, centres = triangle_graph(points, seed, share)
    if len(edges) == 0:
        return
    scaled = np.ceil(weights * 1000).astype(np.int64) * 4
    y = initial_dual(n, edges, scaled)
    rng = np.random.default_rng(seed)
    before = y.sum()
    for largest in (12, 20):
        patch = split_in_space(centres, largest, rng)
        assert np.bincount(patch).max() <= largest
        assignment = sweep(edges, scaled, y, np.zeros(n, bool), patch, float("inf"))
        assert (y >= 0).all() and (y[edges].sum(1) >= scaled).all()
        assert y.sum() <= before
        before = y.sum()
    assert y.sum() >= best(n, edges, scaled)
    mate = matching_of(assignment, y)
    pairs = mate[edges[:, 0]] == edges[:, 1]
    assert pairs.sum() * 2 == (mate >= 0).sum()
    assert (y[edges[pairs]].sum(1) == scaled[pairs]).all()


def test_same_result_whatever_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(matching, "EXACT", 100)
    monkeypatch.setattr(matching, "PART", 400)
    n, edges, weights, centres = triangle_graph(900, 3)
    seen = []
    alone = maximum_weight_matching(n, edges, weights, centres, seed=5)
    shared = maximum_weight_matching(n, edges, weights, centres, seed=5, workers=2, progress=seen.append)
    assert np.array_equal(alone.mate, shared.mate)
    assert alone.bound == shared.bound
    assert seen == sorted(seen) and len(seen) >= 4 and seen[-1] == 1


def test_components_have_bounds_of_their_own():
    graphs = [triangle_graph(40, 1), triangle_graph(60, 2, 0.7), triangle_graph(30, 3, 0.8, "ties")]
    starts = np.cumsum([0] + [graph[0] for graph in graphs])
    edges = np.concatenate([graph[1] + start for graph, start in zip(graphs, starts, strict=False)])
    together = maximum_weight_matching(
        int(starts[-1]),
        edges,
        np.concatenate([graph[2] for graph in graphs]),
        np.concatenate([graph[3] for graph in graphs]),
    )
    for index, (n, own_edges, weights, _) in enumerate(graphs):
        rows = slice(starts[index], starts[index + 1])
        assert together.share[rows].sum() == pytest.approx(best(n, own_edges, weights), rel=1e-9)
        assert not together.unsettled[rows].any()


def test_large_meshes_keep_their_promises():
    n, edges, weights, centres = triangle_graph(12_500, 7)
    assert n > matching.EXACT
    result = maximum_weight_matching(n, edges, weights, centres)
    assert_matching(result, n, edges, weights)
    assert result.ratio > 0.9995
    assert np.array_equal(result.mate, maximum_weight_matching(n, edges, weights, centres).mate)


@pytest.mark.slow
def test_ten_thousand_triangles_against_an_independent_solver():
    n, edges, weights, centres = triangle_graph(5_020, 11)
    graph = rustworkx.PyGraph()
    graph.add_nodes_from(range(n))
    scaled = np.round(weights * 2**30).astype(int)
    graph.add_edges_from([(a, b, w) for (a, b), w in zip(edges.tolist(), scaled.tolist(), strict=True)])
    pairs = rustworkx.max_weight_matching(graph, weight_fn=int)
    optimum = sum(graph.get_edge_data(a, b) for a, b in pairs) / 2**30
    result = maximum_weight_matching(n, edges, weights, centres)
    assert result.optimal
    assert result.objective == pytest.approx(optimum, rel=1e-8)


def test_graphs_with_nothing_to_match():
    empty = np.zeros((0, 2), np.int64)
    for n in (0, 1, 5):
        result = maximum_weight_matching(n, empty, np.zeros(0), np.zeros((n, 3)))
        assert result.mate.tolist() == [-1] * n
        assert (result.objective, result.bound, result.ratio, result.optimal) == (0, 0, 1, True)


@pytest.mark.parametrize(
    "edges, weights, message",
    [
        ([[0, 9]], [1.0], "outside 0..3"),
        ([[0, 1]], [0.0], "positive"),
        ([[0, 1]], [float("nan")], "finite"),
        ([[0, 1], [1, 0]], [1.0, 1.0], "twice"),
        ([[2, 2]], [1.0], "own vertex"),
        ([[0, 1]], [1.0, 2.0], "2 weights for 1 edges"),
    ],
)
def test_graphs_that_are_refused(edges, weights, message):
    with pytest.raises(ValueError, match=message):
        maximum_weight_matching(4, np.array(edges), np.array(weights), np.zeros((4, 3)))


def test_more_than_three_neighbours_are_refused():
    with pytest.raises(ValueError, match="more than 3"):
        maximum_weight_matching(5, np.array([[0, k] for k in range(1, 5)]), np.ones(4), np.zeros((5, 3)))


def test_integers_of_the_relaxation_stay_exact():
    assert 2 * matching_fractional.PATCH * matching_fractional.WEIGHT_LIMIT <= 2**53
