"""Pictures of a bake: how far points were from the smoothed target before and after, and the pose where it showed most."""

from pathlib import Path

import numpy as np


def deviation_histogram(distances: list[tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Histograms of the distances [T, V] (mesh units) before and after, one panel a mesh, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3 * len(distances)), layout="constrained")
    for panel, (before, after) in zip(np.atleast_1d(figure.subplots(len(distances))), distances, strict=True):
        top = max(float(before.max(initial=0)), float(after.max(initial=0)), 1e-12)
        bins = np.linspace(0, top, 60)
        panel.hist(before.ravel(), bins, alpha=0.6, label="before")
        panel.hist(after.ravel(), bins, alpha=0.6, label="after")
        panel.set_yscale("log")
        panel.set_xlabel("distance to the smoothed target, mesh units (held-out poses)")
        panel.set_ylabel("points")
        panel.legend()
    # Without the version and date matplotlib writes, the same bake gives the same file.
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})
