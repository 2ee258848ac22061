"""What an engine gives back."""

import dataclasses

import numpy as np

from networks.kokoro.config import FRAME
from shared_utils.errors import PostConditionError


@dataclasses.dataclass
class Speech:
    """Sound at 24 kHz, float32 [samples], and the steps of 25 ms each token takes (padding included), or None."""

    audio: np.ndarray
    frames: np.ndarray | None


def checked(speech: Speech) -> Speech:
    """The same, after making sure that it is sound. Raises PostConditionError."""
    if not np.isfinite(speech.audio).all():
        raise PostConditionError("the model produced numbers that are no sound (not finite)")
    if speech.frames is not None and len(speech.audio) != FRAME * int(speech.frames.sum()):
        raise PostConditionError(f"{len(speech.audio)} samples do not match {int(speech.frames.sum())} duration steps")
    return speech
