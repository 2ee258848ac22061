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


def worst_pose(results: list, path: Path) -> None:
    """The held-out pose in which smoothing mattered most, as PNG: a row per mesh with skinned, smoothed target and baked.

    `results`: pairs of a mesh and its `Baked`. Coloured by the distance to the target, from clay to red at the largest.
    """
    from dataclasses import replace

    from meshes.preview import CLAY, fit_view, panels, render, save_png

    rows = []
    for mesh, baked in results:
        shapes = {name: replace(mesh, points=points, skin=None, normals=None) for name, points in baked.worst.items()}
        view = fit_view(shapes["smoothed"])
        distances = {
            name: np.linalg.norm(points - baked.worst["smoothed"], axis=1) for name, points in baked.worst.items()
        }
        largest = max(1e-12, float(distances["original"].max(initial=0)))
        pictures = []
        for name, shape in shapes.items():
            heat = np.clip(distances[name] / largest, 0, 1)[:, None]
            colors = np.asarray(CLAY) * (1 - heat) + np.array([0.9, 0.1, 0.1]) * heat
            caption = f"{mesh.name}: {name}"
            pictures.append((render(shape, 480, view, wireframe=False, vertex_colors=colors), caption))
        rows.append(panels(pictures))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    save_png(np.concatenate(rows), path)
