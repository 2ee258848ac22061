"""Time of `--help` of every script, beyond what Python and cyclopts cost by themselves.

    uv run benchmarks/help_time.py
    uv run benchmarks/help_time.py --repeat 20
    uv run benchmarks/help_time.py kokoro_tts_generation.py

The scripts (files of the repository root with a PEP 723 header) and the baseline, a cyclopts program with one option, run
in turn with the interpreter of this process, so that a change of the machine's load meets all of them alike. Wall time of
the whole process in milliseconds, median of the repetitions; one unmeasured round comes first to fill the caches.
The last line is the largest ratio, script to baseline.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = """
import cyclopts

app = cyclopts.App(name="baseline")


@app.default
def main(*, seed: int = 0) -> None:
    \"\"\"One option.\"\"\"


app()
"""


def scripts() -> list[Path]:
    """Files of the repository root with a PEP 723 header, by name."""
    return [path for path in sorted(ROOT.glob("*.py")) if re.search(r"^# /// script$", path.read_text("utf-8"), re.M)]


def milliseconds(script: Path) -> float:
    """Wall time of one `--help`. Raises `SystemExit` when it fails or shows nothing."""
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, env=os.environ | {"COLUMNS": "80"}, capture_output=True, text=True
    )
    elapsed = 1000 * (time.perf_counter() - start)
    if process.returncode or "--" not in process.stdout:
        raise SystemExit(f"{script.name} --help: exit code {process.returncode}\n{process.stderr}")
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of --help beyond bare Python and cyclopts.")
    parser.add_argument("script", nargs="*", type=Path, help="scripts to time (default: all)")
    parser.add_argument("--repeat", type=int, default=10, help="measurements of each (default: 10)")
    arguments = parser.parse_args()
    if arguments.repeat < 1:
        parser.error(f"--repeat {arguments.repeat}: must be at least 1")
    timed = [path.resolve() for path in arguments.script] or scripts()
    if not timed:
        parser.error(f"no script with a PEP 723 header in {ROOT}")
    with tempfile.TemporaryDirectory() as folder:
        baseline = Path(folder, "baseline.py")
        baseline.write_text(BASELINE, "utf-8")
        rounds = [{path: milliseconds(path) for path in (baseline, *timed)} for _ in range(arguments.repeat + 1)][1:]
    median = {path: statistics.median(times[path] for times in rounds) for path in rounds[0]}
    print(f"{'--help':32} {'ms':>7} {'beyond':>7} {'ratio':>6}")
    for path, value in median.items():
        print(f"{path.name:32} {value:7.0f} {value - median[baseline]:7.0f} {value / median[baseline]:6.2f}")
    print(f"largest ratio: {max(median[path] for path in timed) / median[baseline]:.2f}")


if __name__ == "__main__":
    main()
