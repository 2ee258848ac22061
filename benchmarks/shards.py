# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""What sharding gives on this machine, and what starting a shard costs.

Examples:
  uv run benchmarks/shards.py
  uv run benchmarks/shards.py --items 24 --rounds 3 --shards 1 2 4

Converts the same list of meshes with `tris_to_quads_converter.py` as 1, 2 and 4 shards at once, each a process on one thread.
Efficiency is the throughput of N shards to N times that of one (to the number of cores where N is more than there are).
Start-up is the wall time of a shard with no item to make: Python, imports and records.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import ONE_THREAD, ROOT

SCRIPT = ROOT / "tris_to_quads_converter.py"


def grid(path: Path, number: int, side: int) -> None:
    """A bumpy square of 2 (side - 1)^2 triangles, different for every number."""
    points = [(x, y, math.sin(0.3 * x + number) + math.cos(0.2 * y)) for y in range(side) for x in range(side)]
    corners = [y * side + x + 1 for y in range(side - 1) for x in range(side - 1)]
    faces = [f for c in corners for f in ((c, c + 1, c + side + 1), (c, c + side + 1, c + side))]
    lines = [f"v {x} {y} {z:.5f}" for x, y, z in points] + [f"f {a} {b} {c}" for a, b, c in faces]
    path.write_text("\n".join(lines) + "\n")


def seconds(count: int, meshes: Path) -> float:
    """Wall time of a whole list, made by `count` shards that start together."""
    with tempfile.TemporaryDirectory() as folder:
        batch = [sys.executable, str(SCRIPT), "--inputs-from", str(meshes), "--format", "glb", "--no-preview", "-q"]
        start = time.perf_counter()
        running = [
            subprocess.Popen(
                [*batch, "--shard", f"{i}/{count}", "--resume", f"{folder}/{i}"],
                env=os.environ | ONE_THREAD,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            for i in range(count)
        ]
        codes = [process.wait() for process in running]
        taken = time.perf_counter() - start
    if any(codes):
        sys.exit(f"{count} shard(s) ended with {codes}")
    return taken


def startup(meshes: Path) -> float:
    """Wall time of a shard that finds all its items finished."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SCRIPT), "--inputs-from", str(meshes), "--shard", "0/1", "--resume", folder]
        command += ["--format", "glb", "--no-preview", "-q"]
        options = {"env": os.environ | ONE_THREAD, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.run(command, check=True, **options)
        start = time.perf_counter()
        subprocess.run(command, check=True, **options)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__[__doc__.index("Examples:") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--side", type=int, default=40, help="points along an edge of a mesh (default 40)")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.items):
            grid(Path(folder) / f"{i}.obj", i, args.side)
        meshes = Path(folder) / "meshes.txt"
        meshes.write_text("".join(f"{i}.obj\n" for i in range(args.items)))
        first = Path(folder) / "first.txt"
        first.write_text("0.obj\n")
        start = statistics.median(startup(first) for _ in range(args.rounds))
        # In turn, so that a change of the machine's load meets all alike.
        rounds = [{count: seconds(count, meshes) for count in args.shards} for _ in range(args.rounds)]
    print(f"{args.items} meshes of {2 * (args.side - 1) ** 2} triangles, {cores} cores, median of {args.rounds} rounds")
    print(f"start-up of a shard: {start:.2f} s")
    print("shards  seconds  speed-up  efficiency  start-up share")
    base = args.shards[0]
    for count in args.shards:
        taken = statistics.median(r[count] for r in rounds)
        gain = statistics.median(r[base] / r[count] for r in rounds)
        print(f"{count:6d}  {taken:7.2f}  {gain:8.2f}  {gain * base / min(count, cores):10.2f}  {start / taken:14.2f}")


if __name__ == "__main__":
    main()
