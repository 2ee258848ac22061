"""Euler sampling of a rectified flow with classifier-free guidance inside an interval of time.

Liu et al. 2022, "Flow Straight and Fast"; Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval".
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Progress = Callable[[int, int], None]  # called with (steps done, steps in all)


@dataclass(frozen=True)
class SamplerSettings:
    """steps; guidance strength s (0 = none) used while low <= t <= high; time warp; the noise left at t = 0."""

    steps: int = 25
    cfg_strength: float = 7.5
    cfg_interval: tuple[float, float] = (0.5, 1.0)
    rescale_t: float = 3.0
    sigma_min: float = 1e-5

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.rescale_t <= 0:
            raise ValueError(f"rescale_t must be positive, got {self.rescale_t}")


def time_steps(steps: int, rescale_t: float) -> np.ndarray:
    """steps + 1 float64 times from 1 to 0, warped by r·t / (1 + (r - 1)·t)."""
    t = np.linspace(1.0, 0.0, steps + 1)
    return rescale_t * t / (1.0 + (rescale_t - 1.0) * t)


def sample_flow(
    velocity: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    noise: Tensor,
    cond: Tensor,
    settings: SamplerSettings,
    masks: Tensor | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    on_step: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Integrate dx/dt = velocity(x, 1000·t, cond, masks) from t = 1 (noise) to 0 and return x.

    The time handed to `velocity` is a float32 tensor [batch_size] (default: len(noise); sparse latents of one object
    pass 1). The guiding pass sees a zero condition and, where masks are given, zero masks. `on_step` receives the
    estimate of x at t = 0 after each step.
    """
    batch_size = len(noise) if batch_size is None else batch_size
    if len(cond) == 1:
        cond = cond.expand(batch_size, *cond.shape[1:])
    no_cond = torch.zeros_like(cond)
    no_masks = None if masks is None else torch.zeros_like(masks)
    low, high = settings.cfg_interval
    strength, sigma = settings.cfg_strength, settings.sigma_min
    times = time_steps(settings.steps, settings.rescale_t).tolist()
    x = noise
    for step, (t, t_next) in enumerate(pairwise(times)):
        model_time = torch.full((batch_size,), 1000.0 * t, dtype=torch.float32, device=x.device)
        v = velocity(x, model_time, cond, masks)
        if strength != 0 and low <= t <= high:
            v = (1.0 + strength) * v - strength * velocity(x, model_time, no_cond, no_masks)
        if on_step is not None:
            on_step((1.0 - sigma) * x - (sigma + (1.0 - sigma) * t) * v)
        x = x - (t - t_next) * v
        if progress is not None:
            progress(step + 1, settings.steps)
    return x
