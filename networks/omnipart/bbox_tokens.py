"""Boxes to tokens and back: six coordinate tokens a box (xmin ymin zmin xmax ymax zmax) between BOS and EOS.

A coordinate in [low, high] is first squeezed into the centres of the outer bins, 0.5/bins .. 1 - 0.5/bins, then cut
into bins. Decoding takes a token at the lower edge of its bin, so a round trip lands up to one bin lower: the published
planner was trained that way.
"""

from dataclasses import dataclass

import numpy as np

VALUES_PER_BOX = 6


def squeeze(unit: np.ndarray, bins: int) -> np.ndarray:
    """Map 0..1 linearly onto 0.5/bins .. 1 - 0.5/bins."""
    return unit * (1 - 1 / bins) + 0.5 / bins


@dataclass(frozen=True)
class BoxTokenizer:
    """Vocabulary of the box planner. Tokens 0..bins-1 are coordinates; `low`, `high` bound the coordinates."""

    bins: int = 64
    bos: int = 64
    eos: int = 65
    pad: int = 66
    low: float = -0.5
    high: float = 0.5

    def encode(self, boxes: np.ndarray) -> np.ndarray:
        """Float boxes [K, 2, 3] (lower, upper corner) to int64 tokens [6 K + 2]. ValueError outside low..high."""
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1)
        if not np.all((boxes >= self.low) & (boxes <= self.high)):
            raise ValueError(f"box coordinates must lie in {self.low}..{self.high}")
        unit = (boxes - self.low) / (self.high - self.low)
        tokens = np.trunc(squeeze(unit, self.bins) * self.bins).astype(np.int64)
        return np.concatenate([[self.bos], tokens, [self.eos]])

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (special ones are dropped) to float64 boxes [K, 2, 3]. ValueError unless whole boxes remain."""
        tokens = np.asarray(tokens).reshape(-1)
        tokens = tokens[(tokens >= 0) & ~np.isin(tokens, [self.bos, self.eos, self.pad])]
        if tokens.size % VALUES_PER_BOX:
            raise ValueError(f"{tokens.size} coordinate tokens do not make whole boxes of {VALUES_PER_BOX}")
        unit = (tokens / self.bins - 0.5 / self.bins) / (1 - 1 / self.bins)
        return (unit * (self.high - self.low) + self.low).reshape(-1, 2, 3)
