"""A thin tube around every bone: a mesh to look at, or to skin, when there is only a skeleton."""

import numpy as np

SIDES = 8
RADIUS = 0.01  # of the bone's length


def skeleton_mesh(bones: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 (J, 6) heads and tails -> vertices float64 (16·J, 3), faces int32 (16·J, 3), skin float32 (16·J, J).

    Each bone gets eight pairs of points, at its head and at its tail, moved by that bone alone.
    """
    heads, tails = bones[:, :3], bones[:, 3:]
    length = np.linalg.norm(tails - heads, axis=1, keepdims=True)
    up = np.array([0.0, 0.0, 1.0])
    axis = np.where(length > 0, (tails - heads) / np.where(length > 0, length, 1), up)
    first = up - axis * axis[:, 2:]
    along_z = np.linalg.norm(first, axis=1, keepdims=True) < 1e-8
    first = np.where(along_z, np.array([1.0, 0.0, 0.0]) - axis * axis[:, :1], first)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(axis, first)

    angle = 2 * np.pi * np.arange(SIDES) / SIDES
    ring = np.cos(angle)[:, None] * first[:, None] + np.sin(angle)[:, None] * second[:, None]
    ring *= RADIUS * length[:, None]
    pairs = np.stack([heads[:, None] + ring, tails[:, None] + ring], axis=2)

    step = 2 * np.arange(SIDES)
    quads = np.stack([step, step + 2, step + 1, step + 2, step + 3, step + 1], axis=1).reshape(-1, 3) % (2 * SIDES)
    offsets = 2 * SIDES * np.arange(len(bones))
    faces = (quads[None] + offsets[:, None, None]).reshape(-1, 3)
    skin = np.repeat(np.eye(len(bones), dtype=np.float32), 2 * SIDES, axis=0)
    return pairs.reshape(-1, 3), faces.astype(np.int32), skin
