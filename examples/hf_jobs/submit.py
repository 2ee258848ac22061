# /// script
# requires-python = ">=3.11"
# dependencies = ["huggingface-hub>=2.0"]
# ///
"""Run a batch as N shards on Hugging Face Jobs: each job runs a bundle with `--shard i/N`.

Examples:
  uv run bundle.py zimage_generation.py
  uv run examples/hf_jobs/submit.py dist/zimage_generation.py hf://datasets/me/prompts/prompts.jsonl --shards 8 --results me/pictures
  uv run examples/hf_jobs/submit.py dist/kokoro_tts_generation.py hf://datasets/me/texts/lines.jsonl --shards 2 --flavor cpu-upgrade --results me/speech

The dataset with the list is mounted at /list, the bucket named by --results at /results, where shard i keeps its run folder
shard-i; submitting again goes on where the shards stopped. The library puts the bundle into the bucket jobs-artifacts. HF_TOKEN
(from the environment or the login) goes to the jobs as a secret; flags for the script come after --.
Waits for all jobs. Exit code 0: all completed. 3: some failed. 75: the Hub did not take a job. 77: no token, or refused.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

FINAL = {"COMPLETED", "CANCELED", "ERROR", "DELETED"}
LIST, RESULTS = "/list", "/results"  # /data is where the library mounts the bundle itself


def fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def dataset_file(url: str) -> tuple[str, PurePosixPath]:
    """Split `hf://datasets/OWNER/NAME/path/in/it` into repository and path."""
    parts = PurePosixPath(url.removeprefix("hf://datasets/")).parts
    if not url.startswith("hf://datasets/") or len(parts) < 3:
        raise argparse.ArgumentTypeError(f"{url}: must be hf://datasets/OWNER/NAME/FILE")
    return "/".join(parts[:2]), PurePosixPath(*parts[2:])


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1")
    return int(text)


def submit(api, args: argparse.Namespace, flags: list[str]) -> Iterator[tuple[str, int]]:
    """Start one job a shard; yields its id and the shard's number as soon as the Hub has taken it."""
    from huggingface_hub import Volume

    dataset, path = args.list
    volumes = [
        Volume(type="dataset", source=dataset, mount_path=LIST, read_only=True),
        Volume(type="bucket", source=args.results, mount_path=RESULTS),
    ]
    for index in range(args.shards):
        place = ["--shard", f"{index}/{args.shards}", "--resume", f"{RESULTS}/shard-{index}"]
        with contextlib.redirect_stdout(sys.stderr):  # the library prints where it puts the bundle
            job = api.run_uv_job(
                str(args.bundle),
                script_args=["--inputs-from", f"{LIST}/{path}", *place, "-q", *flags],
                flavor=args.flavor,
                timeout=args.timeout,
                secrets={"HF_TOKEN": api.token},
                labels={"tool": args.bundle.stem, "shard": f"{index}-of-{args.shards}"},
                volumes=volumes,
                namespace=args.namespace,
            )
        yield job.id, index


def wait(api, args: argparse.Namespace, jobs: dict[str, int]) -> list[int]:
    """Wait until every job has its final stage; returns the shards that did not complete. A look that fails is repeated."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    stages: dict[str, str] = {}
    while True:
        for job_id in [job_id for job_id in jobs if job_id not in stages]:
            try:
                stage = str(api.inspect_job(job_id=job_id, namespace=args.namespace).status.stage).upper()
            except (HfHubHTTPError, httpx.TransportError) as error:
                code = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
                if 400 <= code < 500 and code != 429:
                    raise
                print(f"shard {jobs[job_id]}: {error}; looking again", file=sys.stderr)
                continue
            stage = stage.removeprefix("JOBSTAGE.")
            if stage in FINAL:
                stages[job_id] = stage
                print(f"shard {jobs[job_id]}: {stage.lower()}", file=sys.stderr, flush=True)
        if len(stages) == len(jobs):
            return sorted(jobs[job_id] for job_id, stage in stages.items() if stage != "COMPLETED")
        time.sleep(args.poll)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__[__doc__.index("Examples:") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="a file made by bundle.py")
    parser.add_argument("list", type=dataset_file, help="batch file: hf://datasets/OWNER/NAME/FILE")
    parser.add_argument("--shards", type=positive, required=True)
    parser.add_argument("--results", required=True, help="bucket OWNER/NAME that keeps the results")
    parser.add_argument("--flavor", default="l4x1", help="hardware (default l4x1)")
    parser.add_argument("--timeout", default="4h", help="per job, such as 90m or 4h (default 4h)")
    parser.add_argument("--namespace", help="organisation to bill")
    parser.add_argument("--poll", type=float, default=15, help="seconds between looks at the jobs (default 15)")
    parser.add_argument("--no-wait", action="store_true", help="print the job ids and return")
    # Split by hand: argparse gives what follows `--` to no positional when options stand before it.
    argv = [*sys.argv[1:], "--"]
    cut = argv.index("--")
    args, flags = parser.parse_args(argv[:cut]), argv[cut + 1 : -1]
    os.environ.setdefault("HF_HUB_DISABLE_EXPERIMENTAL_WARNING", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import httpx
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    token = get_token()
    if token is None:
        return fail(77, "no token: set HF_TOKEN or run `hf auth login` (https://huggingface.co/settings/tokens)")
    if not args.bundle.is_file():
        return fail(66, f"{args.bundle}: no such file; make it with bundle.py")
    api = HfApi(token=token)
    jobs: dict[str, int] = {}
    try:
        for job_id, index in submit(api, args, flags):
            jobs[job_id] = index
            print(f"{job_id} shard {index}/{args.shards}", flush=True)
        failed = [] if args.no_wait else wait(api, args, jobs)
    except (HfHubHTTPError, httpx.TransportError, OSError) as error:
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 402, 403)
        text = " ".join(str(error).split())
        return fail(77 if refused else 75, f"{len(jobs)} of {args.shards} job(s) submitted, then: {text}")
    if failed:
        shards = ", ".join(map(str, failed))
        return fail(3, f"shard(s) {shards} did not complete; submit again, finished items are skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
