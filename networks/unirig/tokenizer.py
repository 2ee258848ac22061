"""Skeletons as token sequences, both ways.

A sequence is `bos, class, bone, bone, …, eos`. A bone is its joint as three coordinate bins, preceded by `branch` and
the joint of its parent when the parent is not the bone before it; a part token stands before the first bone of a part.
"""

from dataclasses import dataclass, field

import numpy as np

from networks.unirig.bone_names import PART_BONES

PARTS = ("spring", "body", "hand")  # in token order; "spring" is the unnamed remainder
CLASSES = ("none", "vroid", "mixamo", "articulationxl")  # in token order
LEAF_LENGTH = 0.5  # of the parent bone's length
ZERO_LENGTH = 1e-9


@dataclass
class Skeleton:
    """Bones in an order in which every parent comes before its children.

    joints, tails: float32 (J, 3), heads and tails of the bones. parents: int64 (J,), -1 for the root.
    parent_joints: float32 (J, 3), where each parent was found (for the root: its own joint). branch: bool (J,), the bone
    was written with an explicit parent. parts: the part tokens met, in order ("spring" is None).
    """

    joints: np.ndarray
    parents: np.ndarray
    tails: np.ndarray
    names: list[str]
    parent_joints: np.ndarray = field(repr=False)
    branch: np.ndarray = field(repr=False)
    parts: list[str | None] = field(default_factory=list)
    skeleton_class: str | None = None


@dataclass(frozen=True)
class Tokenizer:
    """The vocabulary: `num_discrete` coordinate bins over `continuous_range`, then the special tokens."""

    num_discrete: int = 256
    continuous_range: tuple[float, float] = (-1.0, 1.0)

    @property
    def branch(self) -> int:
        return self.num_discrete

    @property
    def bos(self) -> int:
        return self.num_discrete + 1

    @property
    def eos(self) -> int:
        return self.num_discrete + 2

    @property
    def pad(self) -> int:
        return self.num_discrete + 3

    @property
    def part_ids(self) -> dict[str, int]:
        return {name: self.num_discrete + 4 + i for i, name in enumerate(PARTS)}

    @property
    def class_ids(self) -> dict[str, int]:
        return {name: self.num_discrete + 4 + len(PARTS) + i for i, name in enumerate(CLASSES)}

    @property
    def vocab_size(self) -> int:
        return self.num_discrete + 4 + len(PARTS) + len(CLASSES)

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """float (…) -> int64 bins (…): round((t - low) / (high - low) · bins), half to even, clipped."""
        low, high = self.continuous_range
        bins = np.round((np.asarray(values) - low) / (high - low) * self.num_discrete)
        return np.clip(bins, 0, self.num_discrete - 1).astype(np.int64)

    def dequantize(self, ids: np.ndarray) -> np.ndarray:
        """int bins (…) -> float32 bin centres (…).

        Not the inverse of `quantize`: a round trip moves a value up by 0 … one half bin width. The published weights
        were trained with this pair.
        """
        low, high = self.continuous_range
        return ((np.asarray(ids) + 0.5) / self.num_discrete * (high - low) + low).astype(np.float32)

    def tokenize(
        self,
        joints: np.ndarray,
        parents: np.ndarray,
        skeleton_class: str,
        part_starts: dict[int, str | None] | None = None,
    ) -> np.ndarray:
        """Skeleton -> int64 ids, bos to eos.

        joints: float (J, 3) within `continuous_range`; parents: int (J,), earlier bones only. part_starts: the index of
        the first bone of each part (None is "spring"); a class without named parts always starts with "spring".
        """
        if skeleton_class not in PART_BONES:
            part_starts = {0: None}
        bins = self.quantize(joints)
        ids = [self.bos, self.class_ids[skeleton_class]]
        for i, parent in enumerate(np.asarray(parents).tolist()):
            if part_starts and i in part_starts:
                ids.append(self.part_ids[part_starts[i] or "spring"])
            if i > 0 and not 0 <= parent < i:
                raise ValueError(f"bone {i} has parent {parent}: parents must come before their children")
            if i > 0 and parent != i - 1:
                ids += [self.branch, *bins[parent].tolist()]
            ids += bins[i].tolist()
        return np.array([*ids, self.eos], dtype=np.int64)

    def detokenize(self, ids: np.ndarray, *, published_root_tail: bool = False) -> Skeleton:
        """int ids -> Skeleton. A parent is the nearest earlier joint to the position written, the latest among equals.

        Trailing pads are dropped. Raises ValueError when the sequence is not closed by eos (generation was cut off),
        has no bone, or is broken inside a bone. published_root_tail: see `bone_tails`.
        """
        tokens = [int(i) for i in ids]
        while tokens and tokens[-1] == self.pad:
            tokens.pop()
        if not tokens or tokens[-1] != self.eos:
            raise ValueError("the token sequence does not end with eos")
        tokens.pop()
        if tokens and tokens[0] == self.bos:
            tokens = tokens[1:]
        class_names = {i: name for name, i in self.class_ids.items()}
        skeleton_class = None
        if tokens and tokens[0] in class_names:
            skeleton_class = class_names[tokens.pop(0)]
            skeleton_class = None if skeleton_class == "none" else skeleton_class
        bins, parents, branch, parts = self._read_bones(tokens)
        joints = self.dequantize(bins)
        parents = np.array(parents, dtype=np.int64)
        parent_index = np.where(parents < 0, np.arange(len(parents)), parents)
        return Skeleton(
            joints=joints,
            parents=parents,
            tails=bone_tails(joints, parents, published_root=published_root_tail),
            names=bone_names(len(joints), skeleton_class, parts),
            parent_joints=joints[parent_index],
            branch=np.array(branch, dtype=bool),
            parts=parts,
            skeleton_class=skeleton_class,
        )

    def _read_bones(self, tokens: list[int]) -> tuple[np.ndarray, list[int], list[bool], list[str | None]]:
        """Body of a sequence -> coordinate bins (J, 3), parents, branch flags, parts in order of appearance."""
        part_names = {i: name for name, i in self.part_ids.items()}
        bins = np.zeros((len(tokens) // 3 + 1, 3), dtype=np.int64)
        parents: list[int] = []
        branch: list[bool] = []
        parts: list[str | None] = []
        at = 0
        while at < len(tokens):
            if tokens[at] in part_names:
                name = part_names[tokens[at]]
                parts.append(None if name == "spring" else name)
                at += 1
                continue
            has_parent = tokens[at] == self.branch
            numbers = tokens[at + has_parent : at + has_parent + 3 * (1 + has_parent)]
            if len(numbers) < 3 * (1 + has_parent) or not all(0 <= n < self.num_discrete for n in numbers):
                raise ValueError(f"the token sequence breaks off inside bone {len(parents)}")
            bone = len(parents)
            bins[bone] = numbers[-3:]
            parents.append(nearest_earlier_joint(bins[:bone], numbers[:3]) if has_parent else bone - 1)
            branch.append(has_parent)
            at += has_parent + len(numbers)
        if not parents:
            raise ValueError("the token sequence holds no bone")
        return bins[: len(parents)], parents, branch, parts


def nearest_earlier_joint(bins: np.ndarray, position) -> int:
    """Index of the row of `bins` int (n, 3) nearest to `position`, the last among equals; -1 when there is none.

    Squared bin distances are whole numbers, hence exact, and order the joints as their float32 positions would.
    """
    if len(bins) == 0:
        return -1
    squared = ((bins - np.asarray(position)) ** 2).sum(axis=1)
    return int(len(bins) - 1 - squared[::-1].argmin())


def bone_tails(joints: np.ndarray, parents: np.ndarray, *, published_root: bool = False) -> np.ndarray:
    """float (J, 3) heads -> (J, 3) tails, same dtype.

    One child: its head. Otherwise the bone goes on for half the length of its parent bone in the same direction, or
    half a unit upwards from a joint which lies on its parent. The root with several children points upwards, half the
    mean distance to them, and a skeleton of one joint half a unit upwards.

    published_root: UniRig's own formula for a root with several children, which adds the head twice, so that the tail
    depends on where the origin is. No network reads tails; only recorded data needs it.
    """
    tails = joints.copy()
    children: list[list[int]] = [[] for _ in parents]
    for i, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(i)
    up = np.array([0, 0, 1], dtype=joints.dtype)
    for i, parent in enumerate(parents):
        if len(children[i]) == 1:
            tails[i] = joints[children[i][0]]
        elif parent >= 0:
            direction = joints[i] - joints[parent]
            tails[i] += LEAF_LENGTH * (direction if np.linalg.norm(direction) > ZERO_LENGTH else up)
        elif children[i]:
            reach = np.linalg.norm(joints[children[i]] - joints[i], axis=1).mean()
            if published_root:
                tails[i] += LEAF_LENGTH * (joints[i] + LEAF_LENGTH * reach * up)
            else:
                tails[i] += LEAF_LENGTH * (reach if reach > ZERO_LENGTH else 1) * up
        else:
            tails[i] += LEAF_LENGTH * up
    return tails


def bone_names(count: int, skeleton_class: str | None, parts: list[str | None]) -> list[str]:
    """`count` names: those of the parts seen, each in the order of its table, then `bone_<index>`."""
    table = PART_BONES.get(skeleton_class or "", {})
    names = [name for part in parts for name in table.get(part or "", ())][:count]
    return names + [f"bone_{i}" for i in range(len(names), count)]
