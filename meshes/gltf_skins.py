"""Which glTF nodes are joints of which skeleton, and what each skin's inverse bind matrices mean for it.

glTF skins name nodes anywhere in the hierarchy. A Skeleton owns its joints: all joints of skins that share a hierarchy, the
nodes that lie between them, and bare transforms below them (bone ends, sockets).
"""

import numpy as np

from meshes.scene import Parts, Skeleton
from meshes.transforms import compose, decompose

# Two skins share a skeleton's bind pose if their inverse bind matrices agree to this part of their size.
_SAME_BIND = 1e-5


def node_transform(entry: dict) -> tuple[np.ndarray, Parts | None]:
    """The matrix of a glTF node, and the parts it is written as (None where it is written as a matrix)."""
    if "matrix" in entry:
        return np.array(entry["matrix"], np.float64).reshape(4, 4).T, None
    parts = Parts(
        np.array(entry.get("translation", (0, 0, 0)), np.float64),
        np.array(entry.get("rotation", (0, 0, 0, 1)), np.float64),
        np.array(entry.get("scale", (1, 1, 1)), np.float64),
    )
    return compose(parts), parts


class SkeletonLayout:
    """`skeletons` with, per skeleton, the glTF node it stands at in `places` (-1: none); `joint_of` maps a glTF node to
    (skeleton, joint). `copies[k]` lists further skeletons with the joints of skeleton k and another bind pose.
    """

    def __init__(self, gltf, parents: list[int], order: list[int]):
        self.gltf, self.parents, self.order = gltf, parents, order
        self.entries = gltf.list("nodes")
        self.skeletons: list[Skeleton] = []
        self.places: list[int] = []
        self.joint_of: dict[int, tuple[int, int]] = {}
        self.copies: dict[int, list[int]] = {}
        self._skins: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
        self._joints_of_skins = {joint for skin in gltf.list("skins") for joint in skin["joints"]}
        if self._joints_of_skins:
            self._rank = {node: rank for rank, node in enumerate(self._preorder())}
            for members, place, skins in self._groups():
                self._build(members, place, skins)

    def skin(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """For a glTF skin: its joints as the skeleton's joints [n], its bind transform [4, 4], the skeleton's index."""
        return self._skins[index]

    def _preorder(self) -> list[int]:
        order, stack = [], [i for i, parent in reversed(list(enumerate(self.parents))) if parent < 0]
        while stack:
            order.append(stack.pop())
            stack.extend(reversed(self.entries[order[-1]].get("children", [])))
        return order

    def _ancestors(self, node: int) -> list[int]:
        """The node's parent, grandparent and so on."""
        found = []
        while (node := self.parents[node]) >= 0:
            found.append(node)
        return found

    def _groups(self):
        """(member nodes in order, place, skins) of every skeleton."""
        tops = {}
        for joint in self._joints_of_skins:
            chain = [joint, *self._ancestors(joint)]
            tops[joint] = [node for node in chain if node in self._joints_of_skins][-1]
        groups: list[tuple[set[int], list[int]]] = []
        for index, skin in enumerate(self.gltf.list("skins")):
            groups.append(({tops[joint] for joint in skin["joints"]}, [index]))
        while True:
            groups = _merge_overlapping(groups)
            placed = [(*self._place(roots), roots, skins) for roots, skins in groups]
            # A skeleton that would stand inside another's joints belongs to it.
            inside = [
                (a, b)
                for a, (_, between, _, _) in enumerate(placed)
                for b, (place, _, _, _) in enumerate(placed)
                if a != b and place in between
            ]
            if not inside:
                break
            a, b = inside[0]
            groups[a][0].update(groups[b][0])
        for place, between, roots, skins in sorted(placed, key=lambda group: min(self._rank[n] for n in group[2])):
            yield self._members(between | roots), place, sorted(skins)

    def _place(self, roots: set[int]) -> tuple[int, set[int]]:
        """The lowest node above all roots (-1: none), and the nodes between it and them."""
        chains = [self._ancestors(root)[::-1] for root in sorted(roots)]
        depth = 0
        while all(len(chain) > depth and chain[depth] == chains[0][depth] for chain in chains):
            depth += 1
        place = chains[0][depth - 1] if depth else -1
        return place, {node for chain in chains for node in chain[depth:]}

    def _members(self, seeds: set[int]) -> list[int]:
        """The seeds with everything below them that is a joint, leads to one, or shows nothing at all."""
        shows, leads = set(), set()
        for node in sorted(self._rank, key=self._rank.get, reverse=True):
            entry, children = self.entries[node], self.entries[node].get("children", [])
            light = "KHR_lights_punctual" in entry.get("extensions", {})
            if "mesh" in entry or "camera" in entry or light or any(child in shows for child in children):
                shows.add(node)
            if node in self._joints_of_skins or any(child in leads for child in children):
                leads.add(node)
        members = set(seeds)
        stack = list(seeds)
        while stack:
            for child in self.entries[stack.pop()].get("children", []):
                if child not in members and (child in leads or child not in shows):
                    members.add(child)
                    stack.append(child)
        return sorted(members, key=self._rank.get)

    def _build(self, members: list[int], place: int, skins: list[int]) -> None:
        number = {node: joint for joint, node in enumerate(members)}
        parents = np.array([number.get(self.parents[node], -1) for node in members], np.int32)
        transforms = [node_transform(self.entries[node]) for node in members]
        rest = np.stack([matrix for matrix, _ in transforms])
        parts = [own if own is not None else decompose(matrix) for matrix, own in transforms]
        stacked = Parts(*(np.stack([getattr(p, f) for p in parts]) for f in ("translation", "rotation", "scale")))
        names = unique_names([self.entries[node].get("name") or f"node{node}" for node in members])
        name = self.gltf.document["skins"][skins[0]].get("name") or "Skeleton"
        first = Skeleton(name, names, parents, rest, np.zeros_like(rest), stacked)
        primary = len(self.skeletons)
        built: list[tuple[int, np.ndarray]] = []  # (skeleton, which joints have a bind matrix)
        for skin in skins:
            entry = self.gltf.document["skins"][skin]
            joints = np.array([number[node] for node in entry["joints"]], np.int32)
            inverse_bind = self._inverse_bind(entry, skin, len(joints))
            for skeleton, known in built:
                bind_transform = _fit(self.skeletons[skeleton].bind, known, joints, inverse_bind)
                if bind_transform is not None:
                    break
            else:
                skeleton, known = len(self.skeletons), np.zeros(len(members), bool)
                self.skeletons.append(Skeleton(name, names, parents, rest, np.zeros_like(rest), stacked))
                self.places.append(place)
                built.append((skeleton, known))
                bind_transform = _first_bind_transform(first.pose(), joints, inverse_bind)
            bind = bind_transform @ np.linalg.inv(inverse_bind)
            for row, joint in enumerate(joints):
                if not known[joint]:
                    self.skeletons[skeleton].bind[joint], known[joint] = bind[row], True
                elif not _close(self.skeletons[skeleton].bind[joint], bind[row]):
                    self.gltf.fail(f"skin {skin} names one joint twice with different inverse bind matrices")
            self._skins[skin] = (joints, bind_transform, skeleton)
        for skeleton, known in built:
            bind = self.skeletons[skeleton].bind
            for joint in np.flatnonzero(~known):
                bind[joint] = rest[joint] if parents[joint] < 0 else bind[parents[joint]] @ rest[joint]
        self.copies[primary] = [skeleton for skeleton, _ in built[1:]]
        self.joint_of |= {node: (primary, joint) for node, joint in number.items()}

    def _inverse_bind(self, entry: dict, skin: int, count: int) -> np.ndarray:
        if "inverseBindMatrices" not in entry:
            return np.broadcast_to(np.eye(4), (count, 4, 4))
        matrices = self.gltf.accessor(entry["inverseBindMatrices"], kind="MAT4").astype(np.float64)
        if len(matrices) < count:
            self.gltf.fail(f"skin {skin} has {len(matrices)} inverse bind matrices for {count} joints")
        matrices = matrices[:count].copy()
        matrices[:, 3] = [0, 0, 0, 1]
        determinants = np.abs(np.linalg.det(matrices))
        if not np.isfinite(matrices).all() or (determinants == 0).any():
            self.gltf.fail(f"skin {skin} has an inverse bind matrix that cannot be inverted")
        return matrices


def _merge_overlapping(groups: list[tuple[set[int], list[int]]]) -> list[tuple[set[int], list[int]]]:
    merged: list[tuple[set[int], list[int]]] = []
    for roots, skins in groups:
        roots, skins = set(roots), list(skins)
        for other in [group for group in merged if group[0] & roots]:
            merged.remove(other)
            roots |= other[0]
            skins = other[1] + skins
        merged.append((roots, skins))
    return merged


def _first_bind_transform(pose: np.ndarray, joints: np.ndarray, inverse_bind: np.ndarray) -> np.ndarray:
    """What takes the mesh to the skeleton's space if the first joint is bound where it rests: the skin's own formula leaves
    this choice open, and with it the bind matrices are where one expects them."""
    top = int(np.argmin(joints))
    transform = pose[joints[top]] @ inverse_bind[top]
    if not np.isfinite(transform).all() or abs(np.linalg.det(transform)) < 1e-12 or _close(transform, np.eye(4)):
        return np.eye(4)
    return transform


def _fit(bind: np.ndarray, known: np.ndarray, joints: np.ndarray, inverse_bind: np.ndarray) -> np.ndarray | None:
    """The bind transform with which these inverse bind matrices agree with the known bind matrices, or None."""
    shared = np.flatnonzero(known[joints])
    if len(shared) == 0:
        return None
    transforms = bind[joints[shared]] @ inverse_bind[shared]
    if not all(_close(transforms[0], other) for other in transforms[1:]):
        return None
    return np.eye(4) if _close(transforms[0], np.eye(4)) else transforms[0]


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    size = max(float(np.abs(a).max()), float(np.abs(b).max()))
    return float(np.abs(a - b).max()) <= _SAME_BIND * size


def unique_names(names: list[str]) -> list[str]:
    """The names, with _1, _2 ... behind those that were there before."""
    seen: set[str] = set()
    result = []
    for name in names:
        candidate, number = name, 0
        while candidate in seen:
            number += 1
            candidate = f"{name}_{number}"
        seen.add(candidate)
        result.append(candidate)
    return result
