"""Which token may follow: a finite automaton over the bone sequences of `tokenizer`, one state a beam.

The state after a token is a table look-up, so a step costs the same however long the sequence is.
"""

from enum import IntEnum, auto

import torch
from torch import Tensor

from networks.unirig.tokenizer import Tokenizer


class Kind(IntEnum):
    COORDINATE = 0
    BRANCH = auto()
    BOS = auto()
    EOS = auto()
    PAD = auto()
    PART = auto()
    CLASS = auto()


class State(IntEnum):
    START = 0
    AFTER_BOS = auto()
    AFTER_CLASS = auto()
    AFTER_FIRST_PART = auto()
    AFTER_LATER_PART = auto()
    AFTER_BRANCH = auto()
    PARENT_1 = auto()  # one coordinate of the parent's joint written
    PARENT_2 = auto()
    PARENT = auto()  # the parent's joint is complete, its child's must follow
    JOINT_1 = auto()
    JOINT_2 = auto()
    BONE = auto()  # a bone is complete
    END = auto()
    DEAD = auto()  # after a token that was not allowed


# What `Tokenizer.tokenize` can write, and nothing else: every sequence of it is a skeleton of at least one bone.
_COMPLETE = {
    State.START: {Kind.BOS: State.AFTER_BOS},
    State.AFTER_BOS: {
        Kind.CLASS: State.AFTER_CLASS,
        Kind.PART: State.AFTER_FIRST_PART,
        Kind.COORDINATE: State.JOINT_1,
    },
    State.AFTER_CLASS: {Kind.PART: State.AFTER_FIRST_PART, Kind.COORDINATE: State.JOINT_1},
    State.AFTER_FIRST_PART: {Kind.COORDINATE: State.JOINT_1},
    State.AFTER_LATER_PART: {Kind.BRANCH: State.AFTER_BRANCH, Kind.COORDINATE: State.JOINT_1},
    State.AFTER_BRANCH: {Kind.COORDINATE: State.PARENT_1},
    State.PARENT_1: {Kind.COORDINATE: State.PARENT_2},
    State.PARENT_2: {Kind.COORDINATE: State.PARENT},
    State.PARENT: {Kind.COORDINATE: State.JOINT_1},
    State.JOINT_1: {Kind.COORDINATE: State.JOINT_2},
    State.JOINT_2: {Kind.COORDINATE: State.BONE},
    State.BONE: {
        Kind.COORDINATE: State.JOINT_1,
        Kind.PART: State.AFTER_LATER_PART,
        Kind.BRANCH: State.AFTER_BRANCH,
        Kind.EOS: State.END,
    },
    State.END: {Kind.PAD: State.END},
    State.DEAD: {},
}

# The rules UniRig was published with. They let a sequence end before its first bone, do not ask for the child after
# `branch` and a parent, forbid `branch` after a later part, and allow any number of parts before the first bone.
_PUBLISHED = _COMPLETE | {
    State.AFTER_BOS: {
        Kind.CLASS: State.AFTER_CLASS,
        Kind.PART: State.AFTER_CLASS,
        Kind.COORDINATE: State.JOINT_1,
    },
    State.AFTER_CLASS: {Kind.PART: State.AFTER_CLASS, Kind.COORDINATE: State.JOINT_1, Kind.EOS: State.END},
    State.AFTER_LATER_PART: {Kind.COORDINATE: State.JOINT_1},
    State.AFTER_BRANCH: {Kind.COORDINATE: State.JOINT_1},
}


class Grammar:
    """The automaton as tables on one device.

    next_state: int64 (states, vocab). allowed: bool (states, vocab). published: follow UniRig's own, looser rules.
    """

    def __init__(self, tokenizer: Tokenizer, *, published: bool = False, device: torch.device | str = "cpu"):
        kinds = _kinds(tokenizer)
        rules = _PUBLISHED if published else _COMPLETE
        by_kind = torch.full((len(State), len(Kind)), int(State.DEAD), dtype=torch.int64)
        for state, moves in rules.items():
            for kind, target in moves.items():
                by_kind[state, kind] = int(target)
        self.next_state = by_kind[:, kinds].to(device)
        self.allowed = self.next_state != int(State.DEAD)

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """int64 (…) states and tokens -> int64 (…) states after those tokens."""
        return self.next_state[states, tokens]

    def run(self, tokens: Tensor) -> Tensor:
        """The states before each token and after the last one: int64 (n,) tokens -> int64 (n + 1,)."""
        states = [torch.tensor(int(State.START), device=self.next_state.device)]
        for token in tokens:
            states.append(self.advance(states[-1], token))
        return torch.stack(states)


def _kinds(tokenizer: Tokenizer) -> Tensor:
    kinds = torch.full((tokenizer.vocab_size,), int(Kind.COORDINATE), dtype=torch.int64)
    for name in ("branch", "bos", "eos", "pad"):
        kinds[getattr(tokenizer, name)] = int(Kind[name.upper()])
    kinds[list(tokenizer.part_ids.values())] = int(Kind.PART)
    kinds[list(tokenizer.class_ids.values())] = int(Kind.CLASS)
    return kinds
