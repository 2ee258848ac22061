"""Baking corrective smoothing into skin weights, against the usual way: per vertex, a loop over poses and bones that fills a matrix, and its SVD.

Examples:
    uv run benchmarks/corrective_smooth.py                       # rate, quality
    uv run benchmarks/corrective_smooth.py rate --vertices 300
    uv run benchmarks/corrective_smooth.py growth --json         # whole bakes as processes; the largest takes minutes

rate: weights per second at 30 bones and 80 poses, both sides on the same vertices, poses and targets in this process, taking turns.
quality: RMS distance to the smoothed target over poses that neither side has seen, at 4 and 8 influences, on built-in limbs and on
the rigged files named with --files (default: those of Debian's assimp-testmodels, where installed). growth: whole runs of the
script on limbs, with their seconds and peak memory.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from meshes.corrective_bake import PosedMesh, deform_bones, improves
from meshes.io import read_scene, write_scene
from meshes.samples import limb
from meshes.scene import Scene
from meshes.skin_bake import skin_points, solve_weights
from meshes.smoothing import SmoothSettings
from meshes.weight_rows import compressed_rows, limit

ROOT = Path(__file__).resolve().parent.parent
TWIST, PRUNE = 45.0, 0.01  # degrees and weight: the script's defaults
POSES, HELD_OUT = 80, 80
MODELS = Path("/usr/share/assimp/models")  # Debian's assimp-testmodels
FILES = [
    MODELS / "FBX/animation_with_skeleton.fbx",
    MODELS / "FBX/huesitos.fbx",
    MODELS / "glTF2/simple_skin/simple_skin.gltf",
]
# Bones, rings and segments of whole bakes: 10 240 points with 60 bones, 100 352 points with 100.
SIZES = [(30, 80, 32), (60, 160, 64), (60, 320, 64), (100, 448, 224)]


def svd_weights(point: np.ndarray, target: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    """Weights [B] of one vertex [3] from its targets [P, 3]: one column a bone, three rows a pose, solved by SVD."""
    poses, bones = transforms.shape[:2]
    homogeneous = np.append(point, 1.0)
    matrix, right = np.zeros((3 * poses, bones)), np.zeros(3 * poses)
    for pose in range(poses):
        for bone in range(bones):
            matrix[3 * pose : 3 * pose + 3, bone] = transforms[pose, bone] @ homogeneous
        right[3 * pose : 3 * pose + 3] = target[pose]
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    inverse = np.divide(1.0, s, out=np.zeros_like(s), where=s > s[0] * np.finfo(float).eps * len(right))
    return vt.T @ (inverse * (u.T @ right))


def baseline(points: np.ndarray, targets: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    """Unconstrained weights [V, B]; the largest are kept, pruned and normalised afterwards (`limit`)."""
    return np.stack([svd_weights(point, targets[:, v], transforms) for v, point in enumerate(points)])


def posed(scene: Scene, number: int) -> PosedMesh:
    mesh = scene.meshes[number]
    moving = deform_bones(mesh.skin.skeleton, scene.meshes)
    return PosedMesh(mesh, scene.skeletons[mesh.skin.skeleton], moving, SmoothSettings())


def rate(arguments: argparse.Namespace) -> list[dict]:
    """Seconds per vertex of both sides, in turns; ours on all vertices, the baseline on some of the same."""
    rig = posed(limb(30, 160, 64), 0)
    poses = rig.draw(np.random.default_rng(arguments.seed), POSES, TWIST)
    some = np.linspace(0, len(rig.points) - 1, arguments.vertices).astype(int)
    rows = []
    for influences in (4, 8):
        theirs, ours = [], []
        for part in np.array_split(some, arguments.turns):
            start = clocks()
            limit(baseline(rig.points[part], poses.smoothed[:, part], poses.transforms), influences, PRUNE)
            theirs.append((clocks() - start) / len(part))
            start = clocks()
            solve_weights(
                rig.points, poses.smoothed, poses.transforms, rig.original, influences=influences, prune=PRUNE
            )
            ours.append((clocks() - start) / len(rig.points))
        faster, faster_cpu = np.median(np.array(theirs) / ours, axis=0)
        rows.append(
            {
                "influences": influences,
                "vertices": len(rig.points),
                "baseline_ms": 1e3 * np.median(theirs, axis=0)[0],
                "ms": 1e3 * np.median(ours, axis=0)[0],
                "faster": faster,
                "faster_cpu": faster_cpu,
            }
        )
    return rows


def clocks() -> np.ndarray:
    """Wall-clock and CPU seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def rms(points: np.ndarray, weights: np.ndarray, transforms: np.ndarray, targets: np.ndarray) -> float:
    distances = skin_points(points, *compressed_rows(weights), transforms) - targets
    return float(np.sqrt((distances**2).sum(-1).mean()))


def compare(name: str, rig: PosedMesh, arguments: argparse.Namespace) -> list[dict]:
    """Held-out RMS of a rig at 4 and 8 influences: original weights (cut to them), the baseline and ours, same vertices and poses."""
    rng = np.random.default_rng(arguments.seed)
    count = max(POSES, len(rig.moving))
    train, choose, test = (rig.draw(rng, n, TWIST) for n in (count, HELD_OUT, HELD_OUT))
    weighted = np.flatnonzero(rig.weighted)
    some = weighted[np.unique(np.linspace(0, len(weighted) - 1, arguments.vertices).astype(int))]
    chosen = np.isin(np.arange(len(rig.points)), some)
    points, targets = rig.points[chosen], train.smoothed[:, chosen]
    unconstrained = baseline(points, targets, train.transforms)
    rows = []
    for influences in (4, 8):
        limited = limit(rig.original, influences)
        solved = solve_weights(
            points, targets, train.transforms, rig.original[chosen], influences=influences, prune=PRUNE
        )
        better = improves(rig, chosen, solved, limited, choose)
        ours = np.where(better[:, None], solved, limited[chosen])
        original, theirs, mine = (
            rms(points, weights, test.transforms, test.smoothed[:, chosen])
            for weights in (limited[chosen], limit(unconstrained, influences, PRUNE), ours)
        )
        rows.append(
            {
                "rig": name,
                "bones": len(rig.bones),
                "vertices": len(points),
                "influences": influences,
                "original": original,
                "baseline": theirs,
                "ours": mine,
                "to_baseline": mine / theirs,
                "to_original": mine / original,
            }
        )
    return rows


def quality(arguments: argparse.Namespace) -> list[dict]:
    rows = []
    for bones, rings in ((12, 64), (30, 160), (60, 160)):
        # Eight influences a point, so that both counts have something to choose from.
        rows += compare(f"limb of {bones}", posed(limb(bones, rings, 32, influences=8), 0), arguments)
    for path in arguments.files:
        if not path.is_file():
            print(f"{path} is not there", file=sys.stderr)
            continue
        scene = read_scene(path)
        for number, mesh in enumerate(scene.meshes):
            if mesh.skin is not None:
                rows += compare(f"{path.stem}/{mesh.name}", posed(scene, number), arguments)
    return rows


def growth(arguments: argparse.Namespace) -> list[dict]:
    """Whole runs of the script, reading and writing included."""
    rows = []
    for bones, rings, segments in SIZES[: arguments.sizes]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "limb.usdc"
            write_scene(limb(bones, rings, segments), path)
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, ROOT / "corrective_smooth_baker.py", path, "--json", "--output-dir", folder, "-q"],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(done.stderr)
            result = json.loads(done.stdout)
        (mesh,) = result["meshes"]
        rows.append(
            {
                "vertices": mesh["points"],
                "bones": mesh["bones"],
                "poses": mesh["poses"],
                "seconds": time.perf_counter() - start,
                "peak_gb": result["peak_memory_bytes"] / 1e9,
                "rms_limited": mesh["rms_limited"],
                "rms_after": mesh["rms_after"],
            }
        )
    for row, before in zip(rows[1:], rows, strict=False):
        work, earlier = (r["vertices"] * r["poses"] for r in (row, before))
        row["exponent"] = math.log(row["seconds"] / before["seconds"]) / math.log(work / earlier)
    return rows


LINES = {
    "rate": "{influences} influences, {vertices:,} vertices, 30 bones, 80 poses: {ms:.4f} ms a vertex, baseline {baseline_ms:.2f} ms: {faster:.0f}x ({faster_cpu:.0f}x CPU)",
    "quality": "{rig:<38}{bones:>3} bones {vertices:>5} vertices {influences} influences  original {original:.4e}  baseline {baseline:.4e}"
    "  ours {ours:.4e}  = {to_baseline:.4f} of the baseline, {to_original:.4f} of the original",
    "growth": "{vertices:>8,} vertices {bones:>3} bones {poses:>3} poses: {seconds:7.1f} s, {peak_gb:.2f} GB, RMS {rms_limited:.3e} -> {rms_after:.3e}",
}
PARTS = {"rate": rate, "quality": quality, "growth": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=["rate", "quality"])
    parser.add_argument("--vertices", type=int, default=400, help="that the baseline solves")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--files", type=Path, nargs="*", default=FILES, help="rigged files for quality")
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="of growth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments = parser.parse_args()
    for part in arguments.parts:
        for row in PARTS[part](arguments):
            print(json.dumps({"part": part} | row) if arguments.json else LINES[part].format(**row), flush=True)


if __name__ == "__main__":
    main()
