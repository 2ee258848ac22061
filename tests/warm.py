"""Run model scripts as processes without paying for their imports each time.

A server process imports the heavy libraries once; each run is a child that it forks, with its own folder, environment,
standard streams and signals, in which the script's file runs as `__main__`. What a library reads from the environment while
it is imported is that of the server: tests of such things, and of the imports themselves, start real processes.

    with Warm("torch", "diffusers") as warm:
        done = warm.run("zimage_generation.py", "a red fox", cwd=tmp_path)
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Warm:
    """The server and its client. `imports` are statements or module names to run before the first child is forked."""

    def __init__(self, *imports: str):
        from processes import environment

        self.server = subprocess.Popen(
            [sys.executable, __file__, *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.stdin.close()
        self.server.wait(timeout=60)

    def run(self, script: Path | str, *args: object, cwd: Path, stdin: str | None = None, **env: str):
        """As `processes.run`."""
        return self.start(script, *args, cwd=cwd, stdin=stdin, **env).wait()

    def start(self, script: Path | str, *args: object, cwd: Path, stdin: str | None = None, **env: str) -> "Child":
        """Start a run; one at a time. Its output can be read while it runs."""
        folder = Path(tempfile.mkdtemp(prefix="warm-"))
        if stdin is not None:
            (folder / "in").write_text(stdin, encoding="utf-8")
        request = {
            "script": str(ROOT / script),
            "args": [str(a) for a in args],
            "cwd": str(cwd),
            "env": env,
            "folder": str(folder),
        }
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return Child(self, int(self.server.stdout.readline()), folder, list(request["args"]))


class Child:
    """One run."""

    def __init__(self, warm: Warm, pid: int, folder: Path, args: list[str]):
        self.warm, self.pid, self.folder, self.args = warm, pid, folder, args

    def stderr(self) -> str:
        """What it has written so far."""
        path = self.folder / "err"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> subprocess.CompletedProcess:
        code = int(self.warm.server.stdout.readline())
        return subprocess.CompletedProcess(
            self.args, code, (self.folder / "out").read_text(encoding="utf-8"), self.stderr()
        )


def _serve(imports: list[str]) -> None:
    for statement in imports:
        exec(statement if " " in statement else f"import {statement}", {})
    # The pipes to the client must not leak into what a child prints.
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in requests:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(request)
        print(pid, file=replies, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=replies, flush=True)


def _child(request: dict) -> None:
    code = 1
    try:
        folder = Path(request["folder"])
        given = folder / "in"
        os.dup2(os.open(given if given.exists() else os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(folder / "out", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(folder / "err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(n, m, encoding="utf-8") for n, m in ((0, "r"), (1, "w"), (2, "w"))
        )
        sys.stderr.reconfigure(line_buffering=True)
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = [request["script"], *request["args"]]
        sys.path[0] = str(Path(request["script"]).parent)
        runpy.run_path(request["script"], run_name="__main__")
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1:])
