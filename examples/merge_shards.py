# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Gather step: merge the manifests (items.jsonl) of the shards of one batch into one.

Examples:
  uv run examples/merge_shards.py run1/shard-*
  uv run examples/merge_shards.py run1/shard-* -o run1/items.jsonl --expect 100

For every item its last record counts. Exit code 0: every item is there and finished. 3: some failed or are missing (rerun
those shards with --resume). 65: a folder is not a run folder, or two shards made the same item.
"""

import argparse
import json
import os
import sys
from pathlib import Path


def read_shard(folder: Path) -> dict[int, dict]:
    """The last record of every item of a run folder, by the item's index; output paths made absolute."""
    records = {}
    for line in (folder / "items.jsonl").read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line a killed process did not finish
        outputs = [{**o, "path": str((folder / o["path"]).absolute())} for o in row["outputs"]]
        records[row["index"]] = {**row, "outputs": outputs}
    return records


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__[__doc__.index("Examples:") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", nargs="+", type=Path, help="run folders of the shards")
    parser.add_argument(
        "-o", "--output", type=Path, help="merged manifest (default: items.jsonl beside the first shard)"
    )
    parser.add_argument(
        "--expect", type=int, help="number of items of the whole list; default: the highest index seen, plus one"
    )
    args = parser.parse_args()
    target = args.output or args.shards[0].parent / "items.jsonl"
    merged: dict[int, dict] = {}
    maker: dict[int, Path] = {}
    for shard in args.shards:
        try:
            records = read_shard(shard)
        except (OSError, KeyError, TypeError) as error:
            print(f"error: {shard}: not a run folder ({error})", file=sys.stderr)
            return 65
        for index, record in records.items():
            if index in merged and merged[index]["status"] == "ok" and record["status"] == "ok":
                print(f"error: item {index} was made by {maker[index]} and by {shard}", file=sys.stderr)
                return 65
            if index not in merged or record["status"] == "ok":
                merged[index], maker[index] = record, shard
    base = target.parent.absolute()
    lines = []
    for index in sorted(merged):
        outputs = [{**o, "path": os.path.relpath(o["path"], base)} for o in merged[index]["outputs"]]
        lines.append(json.dumps({**merged[index], "outputs": outputs}, ensure_ascii=False))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, target)
    count = args.expect if args.expect is not None else max(merged, default=-1) + 1
    missing = sorted(set(range(count)) - merged.keys())
    failed = sorted(i for i, record in merged.items() if record["status"] != "ok")
    print(target)
    for words, indices in (("missing", missing), ("failed", failed)):
        if indices:
            print(
                f"error: {len(indices)} of {count} item(s) {words}: {', '.join(map(str, indices[:20]))}",
                file=sys.stderr,
            )
    return 3 if missing or failed else 0


if __name__ == "__main__":
    sys.exit(main())
