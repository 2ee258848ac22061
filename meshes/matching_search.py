"""The weighted blossom algorithm as a sequence of local searches.

Maximum-weight matching after Edmonds (1965) with primal-dual bookkeeping: every vertex has a dual `y >= 0`, every blossom (a shrunken odd
cycle) a dual `z >= 0`; for every edge `y_u + y_v + (z of the blossoms around both) >= weight`. By weak duality
`sum(y) + sum(z * (size - 1) / 2)` is an upper bound on every matching, at any moment. A matching is optimal when matched edges are tight and
exposed (unmatched) vertices have y = 0.

Where the textbook grows trees from all exposed vertices at once, `search` grows one at a time, from one exposed vertex (Cook and Rohe 1999,
"Computing minimum-weight perfect matchings"; Kolmogorov 2009, "Blossom V"): only the duals in that tree move, so that on a mesh, where the
next exposed triangle is rarely far, a search stays small.

Duals move lazily. Within a search `clock` is how far the root's dual has sunk: the true dual of an S vertex (at even distance from the root)
is `y - clock`, of a T vertex (odd) `y + clock`, of an S blossom `z + 2 clock`, of a T blossom `z - 2 clock`. A heap of (clock, event) keys
tells what happens next; entries that later labels made stale are known by their slack when they surface.

Everything is an integer, so tight means exactly zero. Weights must be even: then slacks between S vertices are even too and the clock stays
an integer. Lists, not arrays: this is scalar code, and plain lists are what Python is quickest with.
"""

import heapq
import itertools
import time

from meshes.matching_blossom import DEGREE, FREE, WALL, BlossomForest, S, T

EVENT_BITS = (
    30  # an event is an arc, or a blossom counted from the end of the arcs: below 2**30 for up to 250 million vertices
)
EVENT_MASK = (1 << EVENT_BITS) - 1
CHECK_EVERY = 2048  # labelled vertices between two looks at the time


class BlossomSearch(BlossomForest):
    """A matching that is improved search by search.

    The start must satisfy what the module's docstring says, except that exposed vertices may have y > 0.
    """

    def open_roots(self) -> list[int]:
        """Exposed vertices whose dual is still above 0: none, and the matching is optimal."""
        return [v for v, (mate, y) in enumerate(zip(self.mate, self.y, strict=True)) if mate < 0 and y > 0]

    def run(self, roots: list[int], limit: int | None, deadline: float) -> None:
        """Search from each of `roots` that is (still) open. `limit`: labelled vertices at which a search gives up; None: never."""
        for root in roots:
            if time.time() > deadline:
                return
            if self.mate[root] < 0 and self.y[root] > 0 and self.vertex_label[root] != WALL:
                self.search(root, limit, deadline)

    def _flip(self, vertex: int, partner: int) -> None:
        """Swap the alternating path from S vertex `vertex` to the root; `vertex` is matched to `partner` (-1: left exposed)."""
        while True:
            b = self._outer(vertex)
            outside = self.mate[self.base[b]]
            self._rebase(b, vertex)
            self.mate[vertex] = partner
            if outside < 0:
                return
            t = self._outer(outside)
            partner, vertex = self.tree_to[t], self.tree_from[t]
            self._rebase(t, partner)
            self.mate[partner] = vertex

    def _tree_parent(self, b: int) -> int:
        """The S blossom above S blossom b in the tree, -1 for the root's."""
        outside = self.mate[self.base[b]]
        return -1 if outside < 0 else self._outer(self.tree_from[self._outer(outside)])

    def _common_ancestor(self, b: int, c: int) -> int:
        """The nearest S blossom above both b and c, walking up from both by turns so that the cost is that of the cycle."""
        self.stamps += 1
        while True:
            if b >= 0:
                if self.stamp[b] == self.stamps:
                    return b
                self.stamp[b] = self.stamps
                b = self._tree_parent(b)
            b, c = c, b

    def _shrink(self, u: int, v: int, bu: int, bv: int, clock: int, scan: list[int]) -> int:
        """Shrink the odd cycle which the tight edge u-v closes between the S blossoms bu and bv; returns the new S blossom."""
        mate, base, outer, y, vertex_label = self.mate, self.base, self._outer, self.y, self.vertex_label
        lca = self._common_ancestor(bu, bv)
        self._link(bu, bv, u, v)
        b = bu
        while b != lca:
            outside = mate[base[b]]
            t = outer(outside)
            self._link(t, b, outside, base[b])
            b = outer(self.tree_from[t])
            self._link(b, t, self.tree_from[t], self.tree_to[t])
        b = bv
        while b != lca:
            outside = mate[base[b]]
            t = outer(outside)
            self._link(b, t, base[b], outside)
            b = outer(self.tree_from[t])
            self._link(t, b, self.tree_to[t], self.tree_from[t])
        new = self._new_blossom()
        self.first[new] = lca
        self.base[new] = base[lca]
        self.parent[new] = -1
        self.merged[new] = new
        self.label[new] = S
        self.z[new] = -2 * clock
        size = 0
        for child in self._children(new):
            self.parent[child] = new
            self.merged[child] = new
            size += self.size[child]
            if child >= self.n:
                if self.label[child] == S:
                    self.z[child] += 2 * clock
                    continue
                self.z[child] -= 2 * clock
            elif vertex_label[child] == S:
                continue
            start = len(scan)
            self._members(child, scan)
            for w in scan[start:]:
                y[w] += 2 * clock
                vertex_label[w] = S
        self.size[new] = size
        return new

    def _expand(
        self, b: int, clock: int, tree: list[int], scan: list[int], released: list[int], due: list[int]
    ) -> None:
        """Take apart a T blossom whose dual has sunk to 0.

        The even way from its entry to its base stays in the tree; the vertices that leave it are appended to `released`, T children with an
        expansion of their own to come to `due`.
        """
        n, y, vertex_label, outer, label, z = self.n, self.y, self.vertex_label, self.outer, self.label, self.z
        entry, entry_edge = self.down[b], (self.tree_from[b], self.tree_to[b])
        ring = self._children(b)
        odd, even = [], [(entry, *entry_edge)]
        for near, near_end, far, far_end in self._even_way(b, entry):
            odd.append(near)
            even.append((far, near_end, far_end))
        leaving = set(ring).difference(odd, (t for t, _, _ in even))
        # T children stay as they are. The largest takes over b's name, so that the outer blossom of its many vertices stays right.
        heir = max((t for t, _, _ in even), key=self.size.__getitem__)
        for child in ring:
            self.parent[child] = -1
            self.merged[child] = child
        for t, edge_from, edge_to in even:
            name = t
            if t < n:
                outer[t] = t
            else:
                if t != entry:
                    self._descend(t, edge_to)
                if t == heir:
                    name = b
                    self._rename(t, b)
                else:
                    inside: list[int] = []
                    self._members(t, inside)
                    for v in inside:
                        outer[v] = t
                    tree.append(t)
                label[name] = T
                z[name] += 2 * clock
                due.append(name)
            self.tree_from[name], self.tree_to[name] = edge_from, edge_to
        if heir < n:
            self._discard(b)
        for child in odd:
            if child >= n:
                label[child] = S
                z[child] -= 2 * clock
                tree.append(child)
            start = len(scan)
            self._members(child, scan)
            for v in scan[start:]:
                outer[v] = child
                y[v] += 2 * clock
                vertex_label[v] = S
        for child in leaving:
            if child >= n:
                label[child] = FREE
            start = len(released)
            self._members(child, released)
            for v in released[start:]:
                outer[v] = child
                y[v] += clock
                vertex_label[v] = FREE

    def _finish(self, clock: int, tree: list[int], fresh: list[int], scan: list[int], others: list[int]) -> None:
        """Write the true duals back and clear all labels. Blossoms shrunk in this search become proper ones, or go if their dual is 0."""
        y, z, vertex_label, label, outer = self.y, self.z, self.vertex_label, self.label, self.outer
        for v in scan:
            if vertex_label[v] == S:
                y[v] -= clock
                vertex_label[v] = FREE
        for v in others:
            if vertex_label[v] == T:
                y[v] += clock
                vertex_label[v] = FREE
        for b in itertools.chain(tree, fresh):
            if label[b] == FREE:
                continue
            if self.parent[b] < 0:
                z[b] += 2 * clock if label[b] == S else -2 * clock
            label[b] = FREE
        for b in reversed(fresh):  # the newest first: taking it apart may uncover others
            if self.parent[b] >= 0:
                continue
            if z[b] == 0:
                self._dissolve(b)
            else:
                inside: list[int] = []
                self._members(b, inside)
                for v in inside:
                    outer[v] = b

    def search(self, root: int, limit: int | None, deadline: float) -> bool:
        """Grow the tree of the exposed vertex `root` until it is matched, or some vertex of dual 0 is left exposed in its place.

        False: it was given up (a wall, `limit` labelled vertices, the time); the root is still exposed. Matching and dual are valid in any case.
        """
        n, y, mate, base = self.n, self.y, self.mate, self.base
        neighbour, weight, vertex_label = self.neighbour, self.weight, self.vertex_label
        outer, merged, outer_of = self.outer, self.merged, self._outer
        tree_from, tree_to = self.tree_from, self.tree_to
        heappush, heappop = heapq.heappush, heapq.heappop
        arcs = DEGREE * n
        heap: list[int] = []
        tight: list[int] = []  # arcs that are tight already, in the order they were found
        tree: list[int] = []  # the blossoms that got a label
        fresh: list[int] = []  # those shrunk here
        scan: list[int] = []  # the S vertices, in the order they became so
        others: list[int] = []  # the vertices that were T at some time
        clock = scanned = processed = 0
        lowest, lowest_vertex = y[root], root
        check = CHECK_EVERY if limit is None else min(limit, CHECK_EVERY)
        done = False

        def label_s(b: int) -> None:
            if b >= n:
                tree.append(b)
                self.label[b] = S
                self.z[b] -= 2 * clock
            start = len(scan)
            self._members(b, scan)
            for v in scan[start:]:
                y[v] += clock
                vertex_label[v] = S

        def label_t(b: int, edge_from: int, edge_to: int) -> None:
            tree_from[b], tree_to[b] = edge_from, edge_to
            tree.append(b)
            self.label[b] = T
            self.z[b] += 2 * clock
            self._descend(b, edge_to)
            start = len(others)
            self._members(b, others)
            for v in others[start:]:
                y[v] -= clock
                vertex_label[v] = T
            heappush(heap, ((self.z[b] >> 1) << EVENT_BITS) | (arcs + b - n))

        label_s(outer_of(root))
        while True:
            while scanned < len(scan):
                u = scan[scanned]
                scanned += 1
                if y[u] < lowest:
                    lowest, lowest_vertex = y[u], u
                b = outer[u]
                if merged[b] != b:
                    b = outer_of(u)
                reduced = y[u] - clock
                for a in range(DEGREE * u, DEGREE * u + DEGREE):
                    v = neighbour[a]
                    if v < 0:
                        break
                    label = vertex_label[v]
                    if label == T or outer[v] == b:
                        continue
                    slack = reduced + y[v] - weight[a]
                    if label == S:
                        if merged[outer[v]] == b or outer_of(v) == b:
                            continue
                        slack = (slack - clock) >> 1
                    if slack == 0:
                        tight.append(a)
                    elif clock + slack <= lowest:
                        heappush(heap, ((clock + slack) << EVENT_BITS) | a)
            if processed < len(tight):
                event = tight[processed]
                processed += 1
            elif heap and heap[0] >> EVENT_BITS <= lowest:
                key = heappop(heap)
                clock, event = key >> EVENT_BITS, key & EVENT_MASK
            else:
                clock = lowest
                self._flip(lowest_vertex, -1)
                done = True
                break
            if scanned > check:
                check = scanned + CHECK_EVERY if limit is None else min(limit, scanned + CHECK_EVERY)
                if time.time() > deadline or (limit is not None and scanned > limit):
                    break

            if event >= arcs:
                b = event - arcs + n
                if self.label[b] == T and self.parent[b] < 0 and self.z[b] == 2 * clock:
                    released: list[int] = []
                    due: list[int] = []
                    self._expand(b, clock, tree, scan, released, due)
                    for t in due:
                        heappush(heap, ((self.z[t] >> 1) << EVENT_BITS) | (arcs + t - n))
                    for v in released:
                        for a in range(DEGREE * v, DEGREE * v + DEGREE):
                            u = neighbour[a]
                            if u < 0:
                                break
                            if vertex_label[u] == S:
                                slack = y[v] + y[u] - clock - weight[a]
                                if clock + slack <= lowest:
                                    heappush(heap, ((clock + slack) << EVENT_BITS) | a)
                continue

            u, v = event // DEGREE, neighbour[event]
            if vertex_label[u] != S:
                u, v = v, u
            label = vertex_label[v]
            if label == T:
                continue
            slack = y[u] - clock + y[v] - weight[event]
            if label == S:
                bu, bv = outer_of(u), outer_of(v)
                if bu != bv and slack == clock:
                    fresh.append(self._shrink(u, v, bu, bv, clock, scan))
                continue
            if slack != 0:
                continue
            if label == WALL:
                break
            bv = outer[v]
            partner = mate[base[bv]]
            if partner < 0:
                self._flip(u, v)
                self._rebase(bv, v)
                mate[v] = u
                done = True
                break
            if vertex_label[partner] == WALL:
                break
            if bv < n:  # label_t and label_s once more, for the most frequent case
                tree_from[v], tree_to[v] = u, v
                y[v] -= clock
                vertex_label[v] = T
                others.append(v)
            else:
                label_t(bv, u, v)
            b = outer[partner]
            if b < n:
                y[b] += clock
                vertex_label[b] = S
                scan.append(b)
            else:
                label_s(b)
        self._finish(clock, tree, fresh, scan, others)
        return done
