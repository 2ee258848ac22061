"""Pairing triangles to quads against the usual integer programme (PuLP and CBC, gap 1 %, 60 s), on the same meshes with the same candidates.

Examples:
    uv run benchmarks/tris_to_quads.py
    uv run benchmarks/tris_to_quads.py --sizes 10000 50000 --kinds noised
    uv run benchmarks/tris_to_quads.py --sizes 50000 200000 1000000 --skip-cbc --json

Every row is one mesh. Seconds are wall-clock and CPU (with child processes) without reading and writing files: ours are finding candidates, matching
and rebuilding the faces, CBC's are building the programme and solving it. Up to 12 000 triangles rustworkx's exact solver tells
the optimum. Meshes are made here: "noised" is a bumpy torus, Delaunay-triangulated over a jittered grid; "decimated" a finer regular one after
quadric edge collapse.
"""

import argparse
import json
import math
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil

from meshes.pairing import Candidates, PairingSettings, convert_mesh, find_candidates
from meshes.scene import Mesh

EXACT_UP_TO = 12_000  # triangles: rustworkx takes time with the cube of the size
CBC_UP_TO = 250_000  # triangles: above, building the programme alone takes minutes
CBC_GAP, CBC_SECONDS = 0.01, 60
JITTER = 0.4  # of the grid's spacing
FINER = 2.5  # triangles before decimation, for one after it


def bumpy_torus(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """Points [n, 3] of a torus with a rough tube, for angles u (around the axis) and v (around the tube)."""
    random = np.random.default_rng(seed)
    waves = random.integers(1, 9, (24, 2))
    tube = 0.5 + sum(
        random.normal(0, 0.013) * np.sin(a * u + b * v + phase)
        for (a, b), phase in zip(waves, random.uniform(0, 2 * np.pi, len(waves)), strict=True)
    )
    return np.stack([(1 + tube * np.cos(v)) * np.cos(u), (1 + tube * np.cos(v)) * np.sin(u), tube * np.sin(v)], 1)


def noised(triangles: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and faces of a closed torus, triangulated over a jittered grid in its parameters (Delaunay, periodic)."""
    from scipy.spatial import Delaunay

    rows = max(4, round(math.sqrt(triangles / 4)))
    size = np.array([2 * rows, rows])
    place = np.stack(np.meshgrid(*(np.arange(s, dtype=float) for s in size), indexing="ij"), -1).reshape(-1, 2)
    place += np.random.default_rng(seed).uniform(-JITTER, JITTER, place.shape)
    margin = 4  # copies of the points this far around the parameter rectangle close the triangulation
    shifts = [np.array([x, y]) * size for x in (-1, 0, 1) for y in (-1, 0, 1)]
    copies = np.concatenate([place + shift for shift in shifts])
    number = np.tile(np.arange(len(place)), len(shifts))
    near = ((copies > -margin) & (copies < size + margin)).all(1)
    copies, number = copies[near], number[near]
    faces = Delaunay(copies).simplices
    middle = copies[faces].mean(1)
    faces = faces[((middle >= -0.5) & (middle < size - 0.5)).all(1)]
    a, b, c = (copies[faces[:, k]] for k in range(3))
    clockwise = (b - a)[:, 0] * (c - a)[:, 1] < (b - a)[:, 1] * (c - a)[:, 0]
    faces[clockwise] = faces[clockwise][:, ::-1]
    angles = place / size * 2 * np.pi
    return bumpy_torus(angles[:, 0], angles[:, 1], seed), number[faces]


def decimated(triangles: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and faces of a regular torus, decimated to `triangles`."""
    import fast_simplification

    rows = max(4, math.ceil(math.sqrt(FINER * triangles / 4)))
    columns = 2 * rows
    i, j = (grid.ravel() for grid in np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"))
    right, up = (i + 1) % columns, (j + 1) % rows
    a, b, c, d = i * rows + j, right * rows + j, right * rows + up, i * rows + up
    points = bumpy_torus(i / columns * 2 * np.pi, j / rows * 2 * np.pi, seed)
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    points, faces = fast_simplification.simplify(
        points.astype(np.float32), faces.astype(np.int32), target_count=triangles
    )
    return points.astype(np.float64), faces


KINDS = {"noised": noised, "decimated": decimated}


class Stopwatch:
    """`with Stopwatch() as watch: ...` measures wall-clock and CPU seconds, those of finished child processes too."""

    def __enter__(self):
        self._wall, self._cpu = time.perf_counter(), sum(os.times()[:4])
        return self

    def __exit__(self, *_):
        self.wall, self.cpu = time.perf_counter() - self._wall, sum(os.times()[:4]) - self._cpu


class PeakMemory:
    """`with PeakMemory() as memory: ...` watches the resident memory of this process and its children, ten times a second, in bytes."""

    def __enter__(self):
        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while True:
            total = own.memory_info().rss
            for child in own.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)
            if self._done.wait(0.1):
                return


def solve_cbc(candidates: Candidates) -> dict:
    """One binary variable an edge, at most one edge a triangle, as large a sum of weights as possible."""
    import pulp

    with Stopwatch() as build:
        problem = pulp.LpProblem("pairs", pulp.LpMaximize)
        chosen = [pulp.LpVariable(f"e{index}", cat="Binary") for index in range(len(candidates.weights))]
        problem += pulp.lpSum(weight * variable for weight, variable in zip(candidates.weights, chosen, strict=True))
        at: list[list] = [[] for _ in candidates.triangles.faces]
        for variable, pair in zip(chosen, candidates.triangles.pairs.tolist(), strict=True):
            for triangle in pair:
                at[triangle].append(variable)
        for variables in at:
            if variables:
                problem += pulp.lpSum(variables) <= 1
    with Stopwatch() as solve:
        problem.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=CBC_GAP, timeLimit=CBC_SECONDS))
    found = problem.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
    value = np.array([variable.varValue or 0 for variable in chosen]) > 0.5 if found else np.zeros(len(chosen), bool)
    return {
        "status": pulp.LpSolution[problem.sol_status],
        "objective": float(candidates.weights[value].sum()),
        "left": len(candidates.triangles.faces) - 2 * int(value.sum()),
        "build_seconds": build.wall,
        "seconds": build.wall + solve.wall,
        "cpu_seconds": build.cpu + solve.cpu,
    }


def solve_exactly(candidates: Candidates) -> float:
    """The optimum by rustworkx (Galil's algorithm on integers), weights rounded to 2**-40."""
    import rustworkx

    graph = rustworkx.PyGraph()
    graph.add_nodes_from(range(len(candidates.triangles.faces)))
    scaled = np.round(candidates.weights * 2.0**40).astype(np.int64).tolist()
    graph.add_edges_from(
        [(*pair, index) for index, pair in enumerate(candidates.triangles.pairs.tolist())]
    )  # fmt: skip
    pairs = rustworkx.max_weight_matching(graph, weight_fn=scaled.__getitem__)
    return float(candidates.weights[[graph.get_edge_data(*pair) for pair in pairs]].sum())


def measure(kind: str, size: int, arguments: argparse.Namespace) -> dict:
    settings = PairingSettings(arguments.objective)
    points, faces = KINDS[kind](size, arguments.seed)
    mesh = Mesh(kind, points, np.full(len(faces), 3, np.int32), faces.astype(np.int32).ravel())
    with PeakMemory() as memory, Stopwatch() as watch:
        _, report = convert_mesh(mesh, settings, seed=arguments.seed, workers=arguments.workers)
    row = {
        "kind": kind,
        "triangles": len(faces),
        "candidates": report.candidates,
        "objective": report.objective,
        "bound": report.bound,
        "ratio": report.ratio,
        "optimal": report.optimal,
        "left": report.triangles_after,
        "seconds": watch.wall,
        "cpu_seconds": watch.cpu,
        "phases": {name: round(seconds, 3) for name, seconds in report.seconds.items()},
        "peak_gb": memory.peak / 1e9,
    }
    if len(faces) <= EXACT_UP_TO and not arguments.skip_exact:
        row["optimum"] = solve_exactly(find_candidates(mesh, settings))
        row["of_optimum"] = report.objective / row["optimum"]
    if len(faces) <= CBC_UP_TO and not arguments.skip_cbc:
        row["cbc"] = solve_cbc(find_candidates(mesh, settings))
        row["faster"] = row["cbc"]["seconds"] / watch.wall
        row["faster_cpu"] = row["cbc"]["cpu_seconds"] / watch.cpu
    return row


def line(row: dict) -> str:
    share = 100 * row["left"] / row["triangles"]
    text = (
        f"{row['kind']:<10}{row['triangles']:>9,}  {row['seconds']:8.2f} s {row['cpu_seconds']:8.2f} s CPU"
        f"  objective {row['objective']:.3f} = {100 * row['ratio']:.4f} % of the bound"
        f"{' (optimum)' if row['optimal'] else ''}"
        f"  left {row['left']} ({share:.3f} %)  {row['peak_gb']:.2f} GB"
    )
    if "optimum" in row:
        text += f"\n{'':<19}  rustworkx: optimum {row['optimum']:.3f}, ratio {row['of_optimum']:.9f}"
    if "cbc" in row:
        cbc = row["cbc"]
        text += (
            f"\n{'':<19}  CBC: {cbc['seconds']:.2f} s {cbc['cpu_seconds']:.2f} s CPU, {cbc['status']},"
            f" objective {cbc['objective']:.3f}, left {cbc['left']}: {row['faster']:.1f}x the time"
            f" ({row['faster_cpu']:.1f}x CPU)"
        )
    return text


def exponent(rows: list[dict], kind: str, key: str) -> str:
    """The slope of seconds over triangles in logarithms, between the smallest mesh from 50 000 on and the largest."""
    sizes = sorted((row["triangles"], row[key]) for row in rows if row["kind"] == kind and row["triangles"] >= 40_000)
    if len(sizes) < 2:
        return ""
    (n0, t0), (n1, t1) = sizes[0], sizes[-1]
    return f"{math.log(t1 / t0) / math.log(n1 / n0):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 200_000, 1_000_000], help="triangles")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--objective", choices=["length", "shape"], default="length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--skip-cbc", action="store_true")
    parser.add_argument("--skip-exact", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object a mesh")
    arguments = parser.parse_args()
    rows = []
    for kind in arguments.kinds:
        for size in arguments.sizes:
            rows.append(measure(kind, size, arguments))
            print(json.dumps(rows[-1]) if arguments.json else line(rows[-1]), flush=True)
        growth = exponent(rows, kind, "seconds"), exponent(rows, kind, "cpu_seconds")
        if all(growth):
            text = {"kind": kind, "exponent": float(growth[0]), "exponent_cpu": float(growth[1])}
            print(
                json.dumps(text)
                if arguments.json
                else f"{kind}: seconds grow with the size to the power {growth[0]} (CPU seconds {growth[1]})"
            )


if __name__ == "__main__":
    main()
