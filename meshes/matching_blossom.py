"""The weighted blossom algorithm as a sequence of local searches, on plain arrays.

Maximum-weight matching after Edmonds (1965) with primal-dual bookkeeping: every vertex has a dual `y >= 0`, every blossom (a shrunken odd
cycle) a dual `z >= 0`; for every edge `y_u + y_v + (z of the blossoms around both) >= weight`. By weak duality
`sum(y) + sum(z * (size - 1) / 2)` is an upper bound on every matching, at any moment. A matching is optimal when matched edges are tight and
exposed vertices have y = 0.

Where the textbook grows trees from all exposed vertices at once, `search` grows one tree at a time, from one exposed vertex (Cook and
Rohe 1999, "Computing minimum-weight perfect matchings"; Kolmogorov 2009, "Blossom V"): only the duals in that tree move, so that on a
mesh, where the next exposed triangle is rarely far, a search stays small and the whole solve is close to linear.

Duals move lazily. Within a search `clock` is how far the root's dual has sunk: an S vertex's (even distance from the root) true dual is
`y - clock`, a T vertex's (odd) `y + clock`, an S blossom's `z + 2 clock`, a T blossom's `z - 2 clock`. What happens next comes from a heap
of (clock, event) keys; entries that later labels made stale are recognised by their slack when they surface.

Everything is an integer, so tight means exactly zero. Weights must be even: then slacks between S vertices are even too and the clock stays
an integer.

All functions here run as they are, on lists or arrays; `matching.py` compiles them with numba when the graph is large.
"""

import heapq
from typing import NamedTuple

import numpy as np

FREE, S, T = 0, 1, 2  # labels: outside the tree, even, odd
EXPOSED, AUGMENTED, BLOCKED, STOPPED = 0, 1, 2, 3  # how a search ended
DEGREE = 3


class State(NamedTuple):
    """Graph, matching and duals. n vertices, blossom ids: 0..n-1 the vertices themselves, from n on shrunken cycles.

    Arc `3 v + i` leads from v to its i-th neighbour (-1 from there on: no more). Blossoms form a forest (`parent`); those without
    parent are the outer ones. The children of a blossom are a ring (`after`, `before`), `edge_from[c], edge_to[c]` are the ends of
    the edge from child c to the child after it; `first` is the child that holds `base`, the one vertex not matched inside.
    """

    neighbour: np.ndarray  # [3 n] int64
    weight: np.ndarray  # [3 n] int64, even
    zone: np.ndarray  # [n] int8, see search
    mate: np.ndarray  # [n] int64, -1: exposed
    y: np.ndarray  # [n] int64
    vertex_label: np.ndarray  # [n] int8
    outer: np.ndarray  # [n] int64: the outer blossom, up to merges recorded in `merged`
    merged: np.ndarray  # [B] int64: union-find over blossoms shrunk during the running search
    z: np.ndarray  # [B] int64
    label: np.ndarray  # [B] int8
    tree_from: (
        np.ndarray
    )  # [B] int64: a T blossom was reached by the edge tree_from (S vertex) - tree_to (its own vertex)
    tree_to: np.ndarray
    parent: np.ndarray  # [B] int64, -1: none
    base: np.ndarray
    first: np.ndarray
    after: np.ndarray
    before: np.ndarray
    edge_from: np.ndarray
    edge_to: np.ndarray
    stamp: np.ndarray  # [B] int64, scratch of the ancestor search
    unused: np.ndarray  # [B - n] int64, stacks of free blossom ids, one a zone
    counters: np.ndarray  # [zones, 2] int64: top of the zone's stack in `unused`, last stamp
    stop: np.ndarray  # [1] int8: set from outside to end the running search


def outer_blossom(s, vertex):
    b = s.outer[vertex]
    top = b
    while s.merged[top] != top:
        top = s.merged[top]
    while s.merged[b] != top:
        step = s.merged[b]
        s.merged[b] = top
        b = step
    return top


def members(s, b, out):
    """Append the vertices inside blossom b to the list `out`."""
    n = len(s.mate)
    if b < n:
        out.append(b)
        return
    pending = [b]
    while len(pending) > 0:
        top = pending.pop()
        child = s.first[top]
        while True:
            if child < n:
                out.append(child)
            else:
                pending.append(child)
            child = s.after[child]
            if child == s.first[top]:
                break


def rebase(s, b, vertex):
    """Make `vertex` the one that is not matched inside blossom b, by swapping matched and unmatched edges along its rings."""
    n = len(s.mate)
    pending = [(b, vertex)]
    while len(pending) > 0:
        b, vertex = pending.pop()
        if b < n or s.base[b] == vertex:
            continue
        entry = vertex
        while s.parent[entry] != b:
            entry = s.parent[entry]
        pending.append((entry, vertex))
        last = s.first[b]
        steps = 0
        child = entry
        while child != last:
            child = s.after[child]
            steps += 1
        child = entry
        while child != last:
            if steps % 2 == 0:
                near = s.after[child]
                far = s.after[near]
                near_end = s.edge_from[near]
                far_end = s.edge_to[near]
            else:
                near = s.before[child]
                far = s.before[near]
                near_end = s.edge_to[far]
                far_end = s.edge_from[far]
            pending.append((near, near_end))
            pending.append((far, far_end))
            s.mate[near_end] = far_end
            s.mate[far_end] = near_end
            child = far
        s.first[b] = entry
        s.base[b] = vertex


def flip_path(s, vertex, partner):
    """Swap the alternating path from S vertex `vertex` to the root; `vertex` is matched to `partner` (-1: left exposed)."""
    while True:
        b = outer_blossom(s, vertex)
        outside = s.mate[s.base[b]]
        rebase(s, b, vertex)
        s.mate[vertex] = partner
        if outside < 0:
            return
        t = outer_blossom(s, outside)
        partner = s.tree_to[t]
        vertex = s.tree_from[t]
        rebase(s, t, partner)
        s.mate[partner] = vertex


def dissolve(s, b, zone):
    """Take an outer blossom apart: its children become outer ones. The id goes back to the zone's stack."""
    inside = [b]
    inside.pop()
    child = s.first[b]
    while True:
        s.parent[child] = -1
        s.merged[child] = child
        inside.clear()
        members(s, child, inside)
        for v in inside:
            s.outer[v] = child
        child = s.after[child]
        if child == s.first[b]:
            break
    s.label[b] = FREE
    s.first[b] = -1
    s.unused[s.counters[zone, 0]] = b
    s.counters[zone, 0] += 1


def tree_parent(s, b):
    """The S blossom above S blossom b in the tree, -1 for the root's."""
    outside = s.mate[s.base[b]]
    if outside < 0:
        return -1
    return outer_blossom(s, s.tree_from[outer_blossom(s, outside)])


def common_ancestor(s, b, c, stamp):
    """The nearest S blossom above both b and c, walking up from both by turns so that the cost is that of the cycle."""
    while True:
        if b >= 0:
            if s.stamp[b] == stamp:
                return b
            s.stamp[b] = stamp
            b = tree_parent(s, b)
        b, c = c, b


def label_s(s, b, clock, tree, scan):
    tree.append(b)
    s.label[b] = S
    s.z[b] -= 2 * clock
    start = len(scan)
    members(s, b, scan)
    for i in range(start, len(scan)):
        v = scan[i]
        s.y[v] += clock
        s.vertex_label[v] = S


def label_t(s, b, edge_from, edge_to, clock, tree, others):
    tree.append(b)
    s.label[b] = T
    s.tree_from[b] = edge_from
    s.tree_to[b] = edge_to
    s.z[b] += 2 * clock
    start = len(others)
    members(s, b, others)
    for i in range(start, len(others)):
        v = others[i]
        s.y[v] -= clock
        s.vertex_label[v] = T


def absorb(s, child, blossom, clock, scan):
    """Make an outer blossom of the tree a child of the S blossom that is being shrunk; its T vertices become S."""
    s.parent[child] = blossom
    s.merged[child] = blossom
    if s.label[child] == S:
        s.z[child] += 2 * clock
        return
    s.z[child] -= 2 * clock
    start = len(scan)
    members(s, child, scan)
    for i in range(start, len(scan)):
        v = scan[i]
        s.y[v] += 2 * clock
        s.vertex_label[v] = S


def link(s, child, following, edge_from, edge_to):
    s.after[child] = following
    s.before[following] = child
    s.edge_from[child] = edge_from
    s.edge_to[child] = edge_to


def shrink(s, u, v, bu, bv, clock, zone, tree, scan):
    """Shrink the odd cycle which the tight edge u-v closes between the S blossoms bu and bv."""
    s.counters[zone, 1] += 1
    lca = common_ancestor(s, bu, bv, s.counters[zone, 1])
    s.counters[zone, 0] -= 1
    blossom = s.unused[s.counters[zone, 0]]
    link(s, bu, bv, u, v)
    # Both walks read the tree through `merged` and `parent` of blossoms further up only, so children are absorbed afterwards.
    b = bu
    while b != lca:
        t = outer_blossom(s, s.mate[s.base[b]])
        link(s, t, b, s.mate[s.base[b]], s.base[b])
        up = outer_blossom(s, s.tree_from[t])
        link(s, up, t, s.tree_from[t], s.tree_to[t])
        b = up
    b = bv
    while b != lca:
        t = outer_blossom(s, s.mate[s.base[b]])
        link(s, b, t, s.base[b], s.mate[s.base[b]])
        up = outer_blossom(s, s.tree_from[t])
        link(s, t, up, s.tree_to[t], s.tree_from[t])
        b = up
    s.first[blossom] = lca
    s.base[blossom] = s.base[lca]
    s.parent[blossom] = -1
    s.merged[blossom] = blossom
    s.label[blossom] = S
    s.z[blossom] = -2 * clock
    tree.append(blossom)
    child = lca
    while True:
        absorb(s, child, blossom, clock, scan)
        child = s.after[child]
        if child == lca:
            break


def expand(s, b, clock, zone, tree, scan, others, released):
    """Take apart a T blossom whose dual has sunk to zero: the even way from its entry to its base stays in the tree, the rest leaves it."""
    n = len(s.mate)
    last = s.first[b]
    fr = s.tree_from[b]
    to = s.tree_to[b]
    entry = to
    while s.parent[entry] != b:
        entry = s.parent[entry]
    steps = 0
    child = entry
    while child != last:
        child = s.after[child]
        steps += 1
    # Members leave the tree; those on the way come back below.
    start = len(others)
    members(s, b, others)
    for i in range(start, len(others)):
        v = others[i]
        s.y[v] += clock
        s.vertex_label[v] = FREE
    dissolve(s, b, zone)
    child = entry
    label_t(s, child, fr, to, clock, tree, others)
    while child != last:
        if steps % 2 == 0:
            near = s.after[child]
            far = s.after[near]
            fr = s.edge_from[near]
            to = s.edge_to[near]
        else:
            near = s.before[child]
            far = s.before[near]
            fr = s.edge_to[far]
            to = s.edge_from[far]
        label_s(s, near, clock, tree, scan)
        label_t(s, far, fr, to, clock, tree, others)
        child = far
    child = entry
    while True:
        if s.label[child] == FREE:
            members(s, child, released)
        elif s.label[child] == T and child >= n:
            released.append(-child)  # its own expansion is still to be scheduled
        child = s.after[child]
        if child == entry:
            break


def finish(s, clock, zone, tree, scan, others):
    """Write the true duals back and clear all labels. Blossoms shrunk in this search become proper ones, or go if their dual is 0."""
    n = len(s.mate)
    for v in scan:
        if s.vertex_label[v] == S:
            s.y[v] -= clock
            s.vertex_label[v] = FREE
    for v in others:
        if s.vertex_label[v] == T:
            s.y[v] += clock
            s.vertex_label[v] = FREE
    for b in tree:
        if s.label[b] == FREE:
            continue
        if s.parent[b] < 0:
            s.z[b] += 2 * clock if s.label[b] == S else -2 * clock
        s.label[b] = FREE
    inside = [0]
    for i in range(len(tree) - 1, -1, -1):  # the newest first: taking it apart may uncover others
        b = tree[i]
        if b >= n and s.parent[b] < 0 and s.first[b] >= 0:
            if s.z[b] == 0:
                dissolve(s, b, zone)
            else:
                inside.clear()
                members(s, b, inside)
                for v in inside:
                    s.outer[v] = b
    for b in tree:
        if b < n:
            s.z[b] = 0


def search(s, root, zone, walls, bits, heap, tight, tree, scan, others, released):
    """Grow the tree of the exposed vertex `root` until its dual is settled; returns how it ended.

    AUGMENTED: two more vertices are matched. EXPOSED: some vertex on the tree has dual 0 and is the one left over. STOPPED: `s.stop` was
    set. BLOCKED: with `walls` the search may only label vertices whose `s.zone` is `zone`, and it came up against another one. In the last
    two cases the root is still exposed; matching and duals are valid in all.
    """
    n = len(s.mate)
    arcs = DEGREE * n
    mask = (1 << bits) - 1
    clock = 0
    heap.clear()
    tight.clear()
    tree.clear()
    scan.clear()
    others.clear()
    released.clear()
    scanned = 0
    processed = 0
    lowest = s.y[root]
    lowest_vertex = root
    outcome = STOPPED
    label_s(s, outer_blossom(s, root), clock, tree, scan)
    while s.stop[0] == 0:
        while scanned < len(scan):
            u = scan[scanned]
            scanned += 1
            if s.y[u] < lowest:
                lowest = s.y[u]
                lowest_vertex = u
            b = outer_blossom(s, u)
            for a in range(DEGREE * u, DEGREE * u + DEGREE):
                v = s.neighbour[a]
                if v < 0:
                    break
                slack = s.y[u] - clock - s.weight[a] + s.y[v]
                if not walls or s.zone[v] == zone:
                    label = s.vertex_label[v]
                    if label == T or s.outer[v] == s.outer[u] or outer_blossom(s, v) == b:
                        continue
                    if label == S:
                        slack = (slack - clock) // 2
                if slack == 0:
                    tight.append(a)
                elif clock + slack <= lowest:
                    heapq.heappush(heap, ((clock + slack) << bits) | a)
        if processed < len(tight):
            event = tight[processed]
            processed += 1
        elif len(heap) > 0 and heap[0] >> bits <= lowest:
            key = heapq.heappop(heap)
            clock = key >> bits
            event = key & mask
        else:
            clock = lowest
            flip_path(s, lowest_vertex, -1)
            outcome = EXPOSED
            break

        if event >= arcs:
            b = event - arcs + n
            if s.label[b] == T and s.parent[b] < 0 and s.z[b] == 2 * clock:
                released.clear()
                expand(s, b, clock, zone, tree, scan, others, released)
                for v in released:
                    if v < 0:
                        heapq.heappush(heap, ((s.z[-v] >> 1) << bits) | (arcs - v - n))
                        continue
                    for a in range(DEGREE * v, DEGREE * v + DEGREE):
                        u = s.neighbour[a]
                        if u < 0:
                            break
                        if (not walls or s.zone[u] == zone) and s.vertex_label[u] == S:
                            slack = s.y[v] + s.y[u] - clock - s.weight[a]
                            if clock + slack <= lowest:
                                heapq.heappush(heap, ((clock + slack) << bits) | a)
            continue

        u = event // DEGREE
        v = s.neighbour[event]
        if s.vertex_label[u] != S:
            u, v = v, u
        if walls and s.zone[v] != zone:
            outcome = BLOCKED
            break
        label = s.vertex_label[v]
        if label == T:
            continue
        bu = outer_blossom(s, u)
        bv = outer_blossom(s, v)
        if bu == bv:
            continue
        slack = s.y[u] - clock + s.y[v] - s.weight[event]
        if label == S:
            slack -= clock
        if slack != 0:
            continue
        if label == S:
            shrink(s, u, v, bu, bv, clock, zone, tree, scan)
            continue
        partner = s.mate[s.base[bv]]
        if partner < 0:
            flip_path(s, u, v)
            rebase(s, bv, v)
            s.mate[v] = u
            outcome = AUGMENTED
            break
        if walls and s.zone[partner] != zone:
            outcome = BLOCKED
            break
        label_t(s, bv, u, v, clock, tree, others)
        if bv >= n:
            heapq.heappush(heap, ((s.z[bv] >> 1) << bits) | (arcs + bv - n))
        label_s(s, outer_blossom(s, partner), clock, tree, scan)
    finish(s, clock, zone, tree, scan, others)
    return outcome


def solve(s, roots, zone, walls, bits, ends):
    """Search from every vertex of `roots` that is exposed with a dual above 0. `ends` [4] int64 counts the outcomes."""
    heap = [np.int64(0)]
    tight = [np.int64(0)]
    tree = [np.int64(0)]
    scan = [np.int64(0)]
    others = [np.int64(0)]
    released = [np.int64(0)]
    for root in roots:
        if s.stop[0] != 0:
            break
        if s.mate[root] < 0 and s.y[root] > 0:
            ends[search(s, root, zone, walls, bits, heap, tight, tree, scan, others, released)] += 1


def greedy(s, zone, walls):
    """A first feasible dual and a matching of tight edges: each dual as low as its neighbours allow, matched where that makes an edge tight."""
    n = len(s.mate)
    for v in range(n):
        highest = 0
        for a in range(DEGREE * v, DEGREE * v + DEGREE):
            if s.neighbour[a] < 0:
                break
            highest = max(highest, s.weight[a])
        s.y[v] = highest // 2
    for v in range(n):
        if s.mate[v] >= 0:
            continue
        need = 0
        best = -1
        for a in range(DEGREE * v, DEGREE * v + DEGREE):
            u = s.neighbour[a]
            if u < 0:
                break
            least = s.weight[a] - s.y[u]
            if least > need or (least == need and best < 0):
                need = least
                best = -1
            if least == need and best < 0 and s.mate[u] < 0:
                best = u
        s.y[v] = need
        if best >= 0:
            s.mate[v] = best
            s.mate[best] = v


def bound(s, size):
    """The dual value, an upper bound on every matching. `size` [B] int64 zeros, scratch."""
    n = len(s.mate)
    total = np.int64(0)
    for v in range(n):
        total += s.y[v]
        b = s.parent[v]
        while b >= 0:
            size[b] += 1
            b = s.parent[b]
    for b in range(n, len(size)):
        if size[b] > 0:
            total += s.z[b] * ((size[b] - 1) // 2)
    return total


KERNELS = (
    outer_blossom,
    members,
    rebase,
    flip_path,
    dissolve,
    tree_parent,
    common_ancestor,
    label_s,
    label_t,
    absorb,
    link,
    shrink,
    expand,
    finish,
    search,
    solve,
    greedy,
    bound,
)
