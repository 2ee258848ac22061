# /// script
# requires-python = ">=3.11"
# dependencies = ["huggingface-hub>=2.0"]
# ///
"""Run a batch as N shards on Hugging Face Jobs: each job runs a bundle with `--shard i/N`.

Examples:
  uv run bundle.py zimage_generation.py
  uv run examples/hf_jobs/submit.py dist/zimage_generation.py hf://datasets/me/prompts/prompts.jsonl --shards 8 --results me/pictures
  uv run examples/hf_jobs/submit.py dist/kokoro_tts_generation.py hf://datasets/me/texts/lines.jsonl --shards 2 --flavor cpu-upgrade --results me/speech

The dataset with the list is mounted at /data, the bucket or dataset named by --results at /results, where shard i keeps its
run folder shard-i; submitting again goes on where the shards stopped. HF_TOKEN (from the environment or the login) goes to the
jobs as a secret. Waits for all jobs; exit code 0 when all completed, 3 when any failed, 77 without a token.
"""

import argparse
import sys
import time
from pathlib import Path, PurePosixPath

FINAL = {"COMPLETED", "CANCELED", "ERROR", "DELETED"}


def list_source(url: str) -> tuple[str, PurePosixPath]:
    """Split `hf://datasets/OWNER/NAME/path/in/it` into repository and path."""
    parts = PurePosixPath(url.removeprefix("hf://datasets/"))
    if not url.startswith("hf://datasets/") or len(parts.parts) < 3:
        raise SystemExit(f"error: {url}: must be hf://datasets/OWNER/NAME/FILE")
    return "/".join(parts.parts[:2]), PurePosixPath(*parts.parts[2:])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__[__doc__.index("Examples:") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="a file made by bundle.py")
    parser.add_argument("list", help="batch file: hf://datasets/OWNER/NAME/FILE")
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--results", required=True, help="bucket OWNER/NAME that keeps the results")
    parser.add_argument("--flavor", default="l4x1", help="hardware (default l4x1)")
    parser.add_argument("--timeout", default="4h", help="per job, such as 90m or 4h (default 4h)")
    parser.add_argument("--namespace", help="organisation to bill")
    parser.add_argument("--poll", type=float, default=15, help="seconds between looks at the jobs (default 15)")
    parser.add_argument("--no-wait", action="store_true", help="print the job ids and return")
    parser.add_argument("flags", nargs="*", help="flags for the script, after --")
    args = parser.parse_args()
    from huggingface_hub import HfApi, Volume, get_token

    token = get_token()
    if token is None:
        print(
            "error: no token: set HF_TOKEN or run `hf auth login` (https://huggingface.co/settings/tokens)",
            file=sys.stderr,
        )
        return 77
    if not args.bundle.is_file():
        print(f"error: {args.bundle}: no such file; make it with bundle.py", file=sys.stderr)
        return 66
    dataset, path = list_source(args.list)
    volumes = [
        Volume(type="dataset", source=dataset, mount_path="/data", read_only=True),
        Volume(type="bucket", source=args.results, mount_path="/results"),
    ]
    api = HfApi(token=token)
    jobs = {}
    for index in range(args.shards):
        batch = [
            "--inputs-from",
            f"/data/{path}",
            "--shard",
            f"{index}/{args.shards}",
            "--resume",
            f"/results/shard-{index}",
            "-q",
        ]
        job = api.run_uv_job(
            str(args.bundle),
            script_args=[*batch, *args.flags],
            flavor=args.flavor,
            timeout=args.timeout,
            secrets={"HF_TOKEN": token},
            labels={"tool": args.bundle.stem, "shard": f"{index}-of-{args.shards}"},
            volumes=volumes,
            namespace=args.namespace,
        )
        jobs[job.id] = index
        print(f"{job.id} shard {index}/{args.shards}", flush=True)
    if args.no_wait:
        return 0
    stages: dict[str, str] = {}
    while len(stages) < len(jobs):
        for job_id in jobs.keys() - stages.keys():
            stage = str(
                getattr(api.inspect_job(job_id=job_id, namespace=args.namespace).status.stage, "value", "")
            ).upper()
            if stage in FINAL:
                stages[job_id] = stage
                print(f"shard {jobs[job_id]}: {stage.lower()}", file=sys.stderr, flush=True)
        if len(stages) < len(jobs):
            time.sleep(args.poll)
    failed = sorted(jobs[job_id] for job_id, stage in stages.items() if stage != "COMPLETED")
    if failed:
        print(
            f"error: shard(s) {', '.join(map(str, failed))} did not complete; submit again, finished items are skipped",
            file=sys.stderr,
        )
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
