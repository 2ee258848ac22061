"""Matching, duals and shrunken odd cycles of a graph: what the searches of `matching_search.py` work on."""

from dataclasses import dataclass

import numpy as np

FREE, S, T, WALL = 0, 1, 2, 3  # labels: outside the tree, even, odd, not to be touched
DEGREE = 3


@dataclass
class Blossoms:
    """Matching and duals of a graph with n vertices and some shrunken cycles, as int64 arrays.

    Ids 0..n-1 are the vertices, ids n..n+K-1 the blossoms. Blossoms form a forest (`parent`); those without parent are the outer ones. The
    children of a blossom are a ring (`after`), `edge_from[c], edge_to[c]` are the ends of the edge from child c to the child after it;
    `first` is the child which holds `base`, the one vertex that is not matched inside. -1 stands for none everywhere.
    """

    mate: np.ndarray  # [n]
    y: np.ndarray  # [n]
    z: np.ndarray  # [K]
    first: np.ndarray  # [K]
    base: np.ndarray  # [K]
    parent: np.ndarray  # [n + K]
    after: np.ndarray  # [n + K]
    edge_from: np.ndarray  # [n + K]
    edge_to: np.ndarray  # [n + K]

    @classmethod
    def flat(cls, mate: np.ndarray, y: np.ndarray) -> "Blossoms":
        """A matching and vertex duals, no blossoms."""
        none = np.zeros(0, np.int64)
        nowhere = np.full((4, len(mate)), -1, np.int64)
        return cls(mate, y, none, none, none, *nowhere)

    def place(self, part: "Blossoms", vertices: np.ndarray) -> None:
        """Put the state of a subgraph in: its vertex i is our vertex `vertices[i]`, which must not be in a blossom or matched yet."""
        n, own, k = len(self.mate), len(self.z), len(part.z)
        ids = np.concatenate([vertices, n + own + np.arange(k), [-1]])  # the last one keeps -1 as -1
        count = len(vertices)
        self.mate[vertices] = ids[part.mate]
        self.y[vertices] = part.y
        self.z = np.concatenate([self.z, part.z])
        self.first = np.concatenate([self.first, ids[part.first]])
        self.base = np.concatenate([self.base, ids[part.base]])
        for name in ("parent", "after", "edge_from", "edge_to"):
            values = ids[getattr(part, name)]
            getattr(self, name)[vertices] = values[:count]
            setattr(self, name, np.concatenate([getattr(self, name), values[count:]]))


class BlossomForest:
    """A graph of degree <= 3 with a feasible dual, a matching of tight edges, and blossoms, as lists.

    `neighbour`, `weight` [3 n]: arc `3 v + i` leads from v to its i-th neighbour (-1 from there on: no more), weights are even. `walls` [n] bool:
    vertices no search may label. Lists, not arrays: this is scalar code, and plain lists are what Python is quickest with.
    """

    def __init__(self, neighbour: np.ndarray, weight: np.ndarray, start: Blossoms, walls: np.ndarray | None = None):
        n, k = len(start.mate), len(start.z)
        self.n = n
        self.neighbour, self.weight = neighbour.tolist(), weight.tolist()
        self.mate, self.y = start.mate.tolist(), start.y.tolist()
        self.vertex_label = [FREE] * n if walls is None else np.where(walls, WALL, FREE).tolist()
        none = [-1] * n
        self.parent, self.after = start.parent.tolist(), start.after.tolist()
        self.edge_from, self.edge_to = start.edge_from.tolist(), start.edge_to.tolist()
        self.z, self.first = none + start.z.tolist(), none + start.first.tolist()
        self.base = list(range(n)) + start.base.tolist()
        self.before = [-1] * (n + k)
        for child, following in enumerate(self.after):
            if following >= 0:
                self.before[following] = child
        self.label = [FREE] * (n + k)
        self.tree_from, self.tree_to = (
            [-1] * (n + k),
            [-1] * (n + k),
        )  # how a T blossom was reached: S vertex, its own vertex
        self.down = [-1] * (n + k)  # the child towards a vertex, see _descend
        self.stamp = [0] * (n + k)
        self.stamps = 0
        self.unused: list[int] = []
        # The outer blossom of a vertex is `outer`, up to merges in the running search, which `merged` records as union-find.
        self.merged = list(range(n + k))
        self.outer = list(range(n))
        self.size = [1] * n + [0] * k
        for b in range(n, n + k):
            if self.parent[b] < 0:
                inside: list[int] = []
                self._members(b, inside)
                for v in inside:
                    self.outer[v] = b
        for v in range(n):  # sizes: every vertex counts once for each blossom around it; added up level by level
            if self.parent[v] >= 0:
                self.size[self.parent[v]] += 1
        for b in self._inner_first(range(n, n + k)):
            if self.parent[b] >= 0:
                self.size[self.parent[b]] += self.size[b]

    def _inner_first(self, blossoms) -> list[int]:
        order, pending = [], [b for b in blossoms if self.parent[b] < 0]
        while pending:
            b = pending.pop()
            order.append(b)
            pending.extend(c for c in self._children(b) if c >= self.n)
        return order[::-1]

    def state(self) -> Blossoms:
        """What has been reached, with blossoms numbered without gaps."""
        n = self.n
        live = np.flatnonzero(np.array(self.first[n:], np.int64) >= 0) + n
        number = np.full(len(self.first) + 1, -1, np.int64)
        number[:n] = np.arange(n)
        number[live] = n + np.arange(len(live))
        keep = np.concatenate([np.arange(n), live])
        inside = np.array(self.parent, np.int64)[keep] >= 0

        def ids(values: list[int]) -> np.ndarray:
            return np.where(inside, number[np.array(values, np.int64)[keep]], -1)

        return Blossoms(
            mate=np.array(self.mate, np.int64),
            y=np.array(self.y, np.int64),
            z=np.array(self.z, np.int64)[live],
            first=number[np.array(self.first, np.int64)[live]],
            base=np.array(self.base, np.int64)[live],
            parent=ids(self.parent),
            after=ids(self.after),
            edge_from=ids(self.edge_from),
            edge_to=ids(self.edge_to),
        )

    def bound(self) -> int:
        """The value of the dual: no matching weighs more."""
        return int(self.bound_shares().sum())

    def bound_shares(self) -> np.ndarray:
        """The dual's value, vertex by vertex, [n] int64: a blossom counts at its base."""
        shares = np.array(self.y, np.int64)
        for b in range(self.n, len(self.first)):
            if self.first[b] >= 0:
                shares[self.base[b]] += self.z[b] * ((self.size[b] - 1) // 2)
        return shares

    def _children(self, b: int) -> list[int]:
        after, first = self.after, self.first[b]
        ring = [first]
        child = after[first]
        while child != first:
            ring.append(child)
            child = after[child]
        return ring

    def _members(self, b: int, out: list[int]) -> None:
        """Append the vertices inside blossom b to `out`."""
        n, first, after = self.n, self.first, self.after
        if b < n:
            out.append(b)
            return
        pending = [b]
        while pending:
            start = child = first[pending.pop()]
            while True:
                if child < n:
                    out.append(child)
                else:
                    pending.append(child)
                child = after[child]
                if child == start:
                    break

    def _outer(self, vertex: int) -> int:
        merged = self.merged
        b = top = self.outer[vertex]
        while merged[top] != top:
            top = merged[top]
        while merged[b] != top:
            merged[b], b = top, merged[b]
        return top

    def _descend(self, b: int, vertex: int) -> None:
        """Note for each blossom from b inwards which child `vertex` is in."""
        parent, down = self.parent, self.down
        child = vertex
        while child != b:
            down[parent[child]] = child
            child = parent[child]

    def _rebase(self, b: int, vertex: int) -> None:
        """Make `vertex` the one that is not matched inside b, by swapping matched and unmatched edges along its rings."""
        n, base, mate, down = self.n, self.base, self.mate, self.down
        pending = [(b, vertex)]
        while pending:
            b, vertex = pending.pop()
            if b < n or base[b] == vertex:
                continue
            self._descend(b, vertex)
            while b >= n and base[b] != vertex:
                entry = down[b]
                for near, near_end, far, far_end in self._even_way(b, entry):
                    pending.append((near, near_end))
                    pending.append((far, far_end))
                    mate[near_end], mate[far_end] = far_end, near_end
                self.first[b] = entry
                base[b] = vertex
                b = entry

    def _even_way(self, b: int, entry: int) -> list[tuple[int, int, int, int]]:
        """The way from child `entry` to the first child with an even number of edges, two edges an item.

        (near child, its end of the second edge, far child, its end of the second edge); the first edge of each item is a matched one.
        """
        ring = self._children(b)
        i = ring.index(entry)
        way = []
        if (len(ring) - i) % 2 == 0:
            for near, far in zip(ring[i + 1 :: 2], ring[i + 2 :: 2] + ring[:1], strict=True):
                way.append((near, self.edge_from[near], far, self.edge_to[near]))
        else:
            for j in range(i, 0, -2):
                near, far = ring[j - 1], ring[j - 2]
                way.append((near, self.edge_to[far], far, self.edge_from[far]))
        return way

    def _discard(self, b: int) -> None:
        self.first[b] = -1
        self.label[b] = FREE
        self.unused.append(b)

    def _dissolve(self, b: int) -> None:
        """Take an outer, unlabelled blossom with z = 0 apart: its children become outer ones."""
        for child in self._children(b):
            self.parent[child] = -1
            self.merged[child] = child
            inside: list[int] = []
            self._members(child, inside)
            for v in inside:
                self.outer[v] = child
        self._discard(b)

    def _link(self, child: int, following: int, edge_from: int, edge_to: int) -> None:
        self.after[child] = following
        self.before[following] = child
        self.edge_from[child] = edge_from
        self.edge_to[child] = edge_to

    def _new_blossom(self) -> int:
        if self.unused:
            return self.unused.pop()
        for values in (
            self.parent, self.after, self.before, self.edge_from, self.edge_to, self.tree_from, self.tree_to, self.down, self.base, self.first,
        ):  # fmt: skip
            values.append(-1)
        for values in (self.label, self.stamp, self.z, self.size):
            values.append(0)
        self.merged.append(len(self.merged))
        return len(self.merged) - 1

    def _rename(self, b: int, name: int) -> None:
        for child in self._children(b):
            self.parent[child] = name
        for values in (self.first, self.base, self.size, self.z, self.down):
            values[name] = values[b]
        self._discard(b)
