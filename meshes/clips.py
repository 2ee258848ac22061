"""Key frames at any time: the interpolations of glTF 2.0 (specification, appendix C) evaluated with numpy."""

import numpy as np

from meshes.scene import Channel

# A step becomes two linear keys this far apart, in seconds.
STEP_SECONDS = 1e-4
# Curved keys become linear ones this often, in hertz.
CURVE_RATE = 30.0


def timeline(channels: list[Channel]) -> np.ndarray:
    """Times [T] at which linear keys give back all the channels: their own, both sides of steps, curves sampled."""
    times = [np.zeros(0)]
    for channel in channels:
        own = channel.times
        times.append(own)
        if channel.interpolation == "STEP" and len(own) > 1:
            before = own[1:] - np.minimum(STEP_SECONDS, np.diff(own) / 2)
            times.append(before)
        elif channel.interpolation == "CUBICSPLINE" and len(own) > 1:
            first, last = np.ceil(own[0] * CURVE_RATE), np.floor(own[-1] * CURVE_RATE)
            times.append(np.clip(np.arange(first, last + 1) / CURVE_RATE, own[0], own[-1]))
    return np.unique(np.concatenate(times))


def sample_channel(channel: Channel, times: np.ndarray) -> np.ndarray:
    """The channel's values [T, C] at `times` [T]; before the first and after the last key they hold."""
    keys = channel.times
    curved = channel.interpolation == "CUBICSPLINE"
    values = channel.values[:, 1] if curved else channel.values
    at = np.clip(np.searchsorted(keys, times, side="right") - 1, 0, max(len(keys) - 2, 0))
    after = np.minimum(at + 1, len(keys) - 1)
    span = np.where(keys[after] > keys[at], keys[after] - keys[at], 1.0)
    t = np.clip((times - keys[at]) / span, 0.0, 1.0)[:, None]
    if channel.interpolation == "STEP":
        return np.where(t >= 1.0, values[after], values[at])
    if curved:
        leaving, arriving = channel.values[at, 2] * span[:, None], channel.values[after, 0] * span[:, None]
        t2, t3 = t * t, t * t * t
        result = (2 * t3 - 3 * t2 + 1) * values[at] + (t3 - 2 * t2 + t) * leaving
        result = result + (3 * t2 - 2 * t3) * values[after] + (t3 - t2) * arriving
        return _unit(result) if channel.path == "rotation" else result
    if channel.path == "rotation":
        return slerp(values[at], values[after], t)
    return values[at] * (1 - t) + values[after] * t


def slerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Rotations [T, 4] between unit quaternions a and b [T, 4] the short way round, at t [T, 1] in 0..1."""
    dot = np.einsum("ij,ij->i", a, b)[:, None]
    b = np.where(dot < 0, -b, b)
    angle = np.arccos(np.clip(np.abs(dot), 0.0, 1.0))
    sine = np.sin(angle)
    close = sine < 1e-6
    safe = np.where(close, 1.0, sine)
    from_a = np.where(close, 1 - t, np.sin((1 - t) * angle) / safe)
    from_b = np.where(close, t, np.sin(t * angle) / safe)
    return _unit(from_a * a + from_b * b)


def _unit(rotations: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rotations, axis=-1, keepdims=True)
    return np.where(lengths > 0, rotations / np.where(lengths > 0, lengths, 1), [0.0, 0.0, 0.0, 1.0])
