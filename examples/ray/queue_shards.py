# /// script
# requires-python = ">=3.11"
# dependencies = ["ray>=2.40"]
# ///
"""Run the shards of a batch on a Ray cluster: a queue of `uv run script.py --shard i/N` processes.

Examples:
  uv run examples/ray/queue_shards.py dist/zimage_generation.py prompts.jsonl run1 --shards 8 --gpus 1
  uv run examples/ray/queue_shards.py dist/tris_to_quads_converter.py meshes.txt run1 --shards 4 --gpus 0 -- --format glb

Each shard is a process of its own, started by uv on the node Ray picks: the script's dependencies travel in its header, which
an actor inside Ray's own process would not see. The script (a bundle), the list and the run folder must lie on a disk that all
nodes see. A shard that ends with 75 is tried again; finished items are skipped. Flags for the script come after --.
Exit code: the highest of the shards'.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

RETRY = 75


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__[__doc__.index("Examples:") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", type=Path)
    parser.add_argument("list", type=Path, help="batch file for --inputs-from")
    parser.add_argument("run", type=Path, help="folder for the shards' run folders")
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--gpus", type=float, default=1, help="GPUs a shard takes (default 1)")
    parser.add_argument("--cpus", type=float, default=1, help="cores a shard takes (default 1)")
    parser.add_argument("--address", default="auto", help="Ray cluster (default: the running one)")
    parser.add_argument("--runner", default="uv run -q", help="what starts the script on a node (default: uv run -q)")
    # Split by hand: argparse gives what follows `--` to no positional when options stand before it.
    argv = [*sys.argv[1:], "--"]
    cut = argv.index("--")
    args, flags = parser.parse_args(argv[:cut]), argv[cut + 1 : -1]
    # Ray would copy this program's `uv run` and its working directory to every node; a shard brings its own uv and needs neither.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray

    ray.init(address=args.address, log_to_driver=False)

    @ray.remote(num_cpus=args.cpus, num_gpus=args.gpus, max_retries=3, retry_exceptions=[ConnectionError])
    def shard(index: int, command: list[str]) -> tuple[int, str, str]:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == RETRY:
            raise ConnectionError(done.stderr.strip())
        # A process that a signal ended has its number as a negative code; shells, and exit codes, say 128 more.
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        node = ray.get_runtime_context().get_node_id()[:8]
        return code, done.stderr.strip(), f"{ray.util.get_node_ip_address()} node {node}"

    def command(index: int) -> list[str]:
        place = args.run.absolute() / f"shard-{index}"
        batch = [
            "--inputs-from",
            str(args.list.absolute()),
            "--shard",
            f"{index}/{args.shards}",
            "--resume",
            str(place),
        ]
        return [*shlex.split(args.runner), str(args.script.absolute()), *batch, "-q", *flags]

    waiting = {shard.remote(i, command(i)): i for i in range(args.shards)}
    worst = 0
    while waiting:
        (finished,), _ = ray.wait(list(waiting))
        index = waiting.pop(finished)
        try:
            code, message, node = ray.get(finished)
        except ConnectionError as error:
            code, message, node = RETRY, str(error), "?"
        print(f"shard {index}: exit {code} on {node} {message}".rstrip(), file=sys.stderr)
        worst = max(worst, code)
    return worst


if __name__ == "__main__":
    sys.exit(main())
