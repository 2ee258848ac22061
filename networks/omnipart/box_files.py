"""Boxes of parts from a file, in place of planned ones."""

import json
from pathlib import Path

import numpy as np

from networks.omnipart.mask_files import MAX_PARTS
from shared_utils.errors import InvalidInputError, MissingInputError


def read_boxes(path: Path) -> np.ndarray:
    """float64 [K, 2, 3] (lower and upper corner, x y z from -0.5 to 0.5) from a .npy or .json file.

    Raises MissingInputError, or InvalidInputError for a file that holds anything else.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file of boxes")
    try:
        if path.suffix.lower() == ".npy":
            boxes = np.load(path, allow_pickle=False).astype(np.float64)
        elif path.suffix.lower() == ".json":
            boxes = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float64)
        else:
            raise InvalidInputError(f"{path}: boxes are a .npy or a .json file")
    except (OSError, ValueError, TypeError, EOFError, AttributeError) as error:
        raise InvalidInputError(f"{path}: not a readable file of boxes ({error})") from error
    if boxes.ndim != 3 or boxes.shape[1:] != (2, 3) or not 1 <= len(boxes) <= MAX_PARTS:
        raise InvalidInputError(
            f"{path}: boxes have shape [K, 2, 3] with K from 1 to {MAX_PARTS}, this has {list(boxes.shape)}"
        )
    if not np.isfinite(boxes).all() or np.abs(boxes).max() > 0.5:
        raise InvalidInputError(f"{path}: coordinates of boxes lie between -0.5 and 0.5")
    if (boxes[:, 0] >= boxes[:, 1]).any():
        number = int(np.flatnonzero((boxes[:, 0] >= boxes[:, 1]).any(axis=1))[0])
        raise InvalidInputError(f"{path}: box {number} has a lower corner that is not below its upper corner")
    return boxes
