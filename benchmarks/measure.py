"""Measurements that several benchmarks share: CPU seconds of processes that take turns, one thread each.

ours, theirs = interleaved([[sys.executable, "ours.py"], [sys.executable, "theirs.py"]], pairs=7)
print(ratio(ours, theirs))
"""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# One thread everywhere, so that CPU seconds count work and not threads that wait for each other.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
# Modules compiled once, as on a user's machine; the unmeasured round writes what is missing.
KEEP_BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}


def cpu_seconds(command: list[str], cwd: Path | None = None, **env: str) -> float:
    """User and system CPU seconds of one process and its children, on one thread. Raises `SystemExit` when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | ONE_THREAD | KEEP_BYTECODE | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{process.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def interleaved(commands: list[list[str]], pairs: int = 7, cwd: Path | None = None, **env: str) -> list[list[float]]:
    """CPU seconds of each command, `pairs` times. They run in turn, so that a change of the machine's load meets all alike;
    the order turns round every time, and one unmeasured round comes first to fill the caches."""
    seconds: list[list[float]] = [[] for _ in commands]
    for number in range(pairs + 1):
        order = range(len(commands)) if number % 2 else reversed(range(len(commands)))
        for index in order:
            value = cpu_seconds(commands[index], cwd, **env)
            if number:
                seconds[index].append(value)
        if number:
            latest = ", ".join(f"{values[-1]:.2f}" for values in seconds)
            print(f"round {number} of {pairs}: {latest} CPU seconds", file=sys.stderr, flush=True)
    return seconds


def ratio(ours: list[float], baseline: list[float]) -> float:
    """Median over the pairs of ours to baseline."""
    return statistics.median(a / b for a, b in zip(ours, baseline, strict=True))
