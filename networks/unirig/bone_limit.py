"""Ending a skeleton after so many bones."""

import numpy as np

from networks.unirig.tokenizer import Tokenizer

TOKENS_A_BONE = 8  # at most: a part, a branch, the parent's joint and its own


def cut_bones(ids: np.ndarray, tokenizer: Tokenizer, bones: int) -> np.ndarray:
    """The ids up to the end of bone number `bones`, or of the last whole bone, closed by eos.

    ids: int (n,), bos and class first, with or without eos. Parents come before their children, so what is left is a
    skeleton too; without a whole bone it has none.
    """
    coordinates, end, at, found = tokenizer.num_discrete, 0, 0, 0
    parts = set(tokenizer.part_ids.values())
    tokens = ids.tolist()
    while at < len(tokens) and tokens[at] >= coordinates and tokens[at] != tokenizer.branch and tokens[at] not in parts:
        at += 1
        end = at
    while at < len(tokens) and found < bones:
        while at < len(tokens) and tokens[at] in parts:
            at += 1
        length = 7 if at < len(tokens) and tokens[at] == tokenizer.branch else 3
        numbers = tokens[at + (length == 7) : at + length]
        if len(numbers) < 3 * (1 + (length == 7)) or max(numbers) >= coordinates:
            break
        at += length
        end, found = at, found + 1
    return np.array([*tokens[:end], tokenizer.eos], dtype=np.int64)
