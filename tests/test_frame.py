"""The contract of the command line, tried on the smallest script there is, as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ECHO, environment, everything_in, json_lines, run, run_record, start


def echo(tmp_path, *args, **kwargs):
    return run(ECHO, *args, cwd=tmp_path, **kwargs)


def results(tmp_path) -> list[str]:
    return [p for p in everything_in(tmp_path) if Path(p).name.startswith("echo_") or p.endswith("o.txt")]


def test_plain_run_prints_only_the_path(tmp_path):
    done = echo(tmp_path, "hello", "--seed", 7)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert done.stdout == f"{path}\n"
    assert path.read_text() == "HELLO 7"
    record = run_record(tmp_path / "output")
    assert record["config"]["text"] == ["hello"] and record["seed"] == 7 and record["status"] == "ok"
    assert {o["role"] for o in record["outputs"]} == {"primary", "report"}
    assert "stdout" in done.stderr, "what libraries print belongs on stderr"
    trace = json.loads((path.parent / "opentelemetry_trace.json").read_text())
    assert "echo.run" in json.dumps(trace)


@pytest.mark.parametrize("args", [["--text", "hello"], ["hello"], ["--text=hello"]])
def test_positional_and_named_are_the_same(tmp_path, args):
    done = echo(tmp_path, *args, "--seed", 0, "-o", "o.txt")
    assert done.returncode == 0
    assert (tmp_path / "o.txt").read_text() == "HELLO 0"


def test_leading_dash_after_double_dash(tmp_path):
    done = echo(tmp_path, "--seed", 1, "-o", "o.txt", "--", "-hello")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.txt").read_text() == "-HELLO 1"


def test_stdin_is_read_for_a_dash_and_for_a_pipe(tmp_path):
    assert echo(tmp_path, "-", "--seed", 1, "-o", "o.txt", stdin="one\ntwo\n").returncode == 0
    assert (tmp_path / "o.txt").read_text() == "ONE\nTWO 1"
    assert echo(tmp_path, "--seed", 1, "-o", "p.txt", stdin="piped").returncode == 0
    assert (tmp_path / "p.txt").read_text() == "PIPED 1"
    (recorded,) = [r for p in (tmp_path / "output").glob("*/run.json") if "piped" in (r := p.read_text())]
    assert json.loads(recorded)["config"]["text"] == ["piped"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["x", "--times", "65"], ["--times", "65", "1", "64"]),
        (["x", "--times", "many"], ["--times", "many"]),
        (["x", "--even", "3"], ["--even", "3", "multiple of 2"]),
        (["x", "--times", "2", "--even", "4"], ["--times", "--even"]),
        (["x", "--nap", "nan"], ["--nap", "nan"]),
        (["x", "--tmies", "2"], ["--tmies"]),
        (["x", "--shard", "0/2"], ["--shard", "--inputs-from"]),
        (["x", "--device", "cpu"], ["--device"]),
        (["x", "--keep-last", "0"], ["--keep-last", "0"]),
        (["x", "y", "-o", "z.txt"], ["--output"]),
        (["x", "-q", "-v"], ["--quiet"]),
        (["x", "--seed", "-1"], ["--seed"]),
        ([], ["--text"]),
    ],
)
def test_usage_errors_are_one_line_and_leave_nothing(tmp_path, args, words):
    done = echo(tmp_path, *args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if not line.startswith("seed ")]
    assert len(errors) == 1, done.stderr
    assert all(word in errors[0] for word in words), errors
    assert everything_in(tmp_path) == []


def test_help_fits_80_columns_and_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, runpy\nsys.argv = [sys.argv[1], '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = {'torch', 'numpy', 'pxr', 'transformers', 'diffusers', 'opentelemetry.sdk', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ECHO)], capture_output=True, text=True, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("echo_script.py") >= 4
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    for word in ("--times", "1 to 64", "default: 1", " Text ", " Run ", "Examples:"):
        assert word in done.stdout


def test_version(tmp_path):
    done = echo(tmp_path, "--version")
    assert done.returncode == 0 and done.stdout.startswith("echo_script ") and done.stdout.count("\n") == 1


def test_existing_output_is_kept_unless_overwrite(tmp_path):
    (tmp_path / "o.txt").write_text("mine")
    done = echo(tmp_path, "x", "-o", "o.txt")
    assert done.returncode == 73 and "--overwrite" in done.stderr
    assert (tmp_path / "o.txt").read_text() == "mine"
    assert echo(tmp_path, "x", "-o", "o.txt", "--overwrite").returncode == 0
    assert (tmp_path / "o.txt").read_text().startswith("X ")


def test_failures_have_their_codes_and_leave_nothing(tmp_path):
    for text, code in [("invalid", 65), ("fails check", 70), ("broken", 1), ("memory", 69)]:
        done = echo(tmp_path, text)
        assert done.returncode == code, (text, done.stderr)
        assert done.stdout == ""
        assert ("Traceback" in done.stderr) == (code == 1)
    assert echo(tmp_path, "x", "--output-dir", "/proc/nowhere").returncode == 74
    assert everything_in(tmp_path) == []


def test_json_result_and_json_error(tmp_path):
    (result,) = json_lines(echo(tmp_path, "hey", "--json", "--seed", 3).stdout)
    assert result["status"] == "ok" and result["seed"] == 3 and result["letters"] == 3 and result["model"] is None
    assert {"schema", "outputs", "seconds", "peak_memory_bytes", "warnings"} <= result.keys()
    assert Path(result["outputs"][0]["path"]).read_text() == "HEY 3"
    done = echo(tmp_path, "invalid", "--json")
    (error,) = json_lines(done.stdout)
    assert (
        done.returncode == 65
        and error["status"] == "error"
        and error["exit_code"] == 65
        and "invalid" in error["error"]
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.05)


def write_batch(tmp_path, *lines):
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_batch_of_lines_and_objects(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tail.txt").write_text("!")
    batch = write_batch(
        tmp_path / "sub",
        "plain line",
        "",
        {"text": "object", "times": 2, "seed": 99, "attachment": "tail.txt"},
        {"text": "named", "output": "mine/n.txt"},
    )
    done = echo(tmp_path, "--inputs-from", batch, "--seed", 10, "--json")
    assert done.returncode == 0, done.stderr
    texts = [Path(line["outputs"][0]["path"]).read_text() for line in json_lines(done.stdout)]
    assert texts == ["PLAIN LINE 10", "OBJECT 99 99!", "NAMED 12"]
    assert any(p.endswith("mine/n.txt") for p in everything_in(tmp_path))


def test_batch_keeps_what_works_and_exits_3(tmp_path):
    batch = write_batch(
        tmp_path,
        "good",
        "invalid",
        {"text": "x", "times": 100},
        "{not json",
        {"txt": "x"},
        {"text": "x", "per_run": "y"},
        {"text": "x", "output": "../../evil.txt"},
        "broken",
        "also good",
    )
    done = echo(tmp_path, "--inputs-from", batch, "--json", "--seed", 0)
    assert done.returncode == 3
    lines = sorted(json_lines(done.stdout), key=lambda line: line["index"])
    assert [line["status"] for line in lines] == ["ok", *["error"] * 7, "ok"]
    assert [line.get("exit_code") for line in lines] == [None, 65, 2, 65, 2, 2, 65, 1, None]
    assert not (tmp_path.parent / "evil.txt").exists() and not (tmp_path / "evil.txt").exists()
    single = echo(tmp_path, "--inputs-from", write_batch(tmp_path, {"text": "x", "times": 100}))
    assert single.returncode == 2, "a single item gives its own code"


def test_batch_file_missing_or_empty(tmp_path):
    assert echo(tmp_path, "--inputs-from", "none.jsonl").returncode == 66
    (tmp_path / "empty").write_text("\n\n")
    assert echo(tmp_path, "--inputs-from", "empty").returncode == 65


def test_shards_share_the_work_with_the_seeds_of_the_whole_list(tmp_path):
    batch = write_batch(tmp_path, *[f"text {i}" for i in range(7)])
    seen = {}
    for shard in range(3):
        done = echo(tmp_path, "--inputs-from", batch, "--shard", f"{shard}/3", "--seed", 100, "--json")
        assert done.returncode == 0, done.stderr
        for line in json_lines(done.stdout):
            assert line["index"] % 3 == shard
            seen[line["index"]] = Path(line["outputs"][0]["path"]).read_text()
    assert seen == {i: f"TEXT {i} {100 + i}" for i in range(7)}
    slurm = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "3"}
    done = echo(tmp_path, "--inputs-from", batch, "--shard", "slurm", "--json", **slurm)
    assert [line["index"] for line in json_lines(done.stdout)] == [1, 4]
    assert echo(tmp_path, "--inputs-from", batch, "--shard", "slurm").returncode == 78
    assert echo(tmp_path, "--inputs-from", batch, "--shard", "3/3").returncode == 2


def test_resume_makes_only_what_is_missing(tmp_path):
    batch = write_batch(tmp_path, "one", "invalid", "three")
    assert echo(tmp_path, "--inputs-from", batch, "--resume", "run").returncode == 3
    before = {p: (tmp_path / p).stat().st_mtime_ns for p in results(tmp_path)}
    assert len(before) == 2
    write_batch(tmp_path, "one", "two", "three")
    done = echo(tmp_path, "--inputs-from", batch, "--resume", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(line["status"] for line in json_lines(done.stdout)) == ["ok", "skipped", "skipped"]
    after = {p: (tmp_path / p).stat().st_mtime_ns for p in results(tmp_path)}
    assert len(after) == 3 and before.items() <= after.items()
    victim = next(iter(before))
    (tmp_path / victim).unlink()
    assert echo(tmp_path, "--inputs-from", batch, "--resume", "run").returncode == 0
    assert (tmp_path / victim).exists(), "a removed result is made again"


def test_replay_is_byte_identical_and_flags_win(tmp_path):
    assert echo(tmp_path, "hello", "--times", 3).returncode == 0
    (record,) = (tmp_path / "output").glob("*/run.json")
    first = next(record.parent.glob("echo_*")).read_bytes()
    assert echo(tmp_path, "--config", record, "-o", "o.txt").returncode == 0
    assert (tmp_path / "o.txt").read_bytes() == first
    assert echo(tmp_path, "--config", record, "--times", 1, "--seed", 1, "-o", "p.txt").returncode == 0
    assert (tmp_path / "p.txt").read_text() == "HELLO 1"


def test_bad_config_files(tmp_path):
    assert echo(tmp_path, "x", "--config", "none.json").returncode == 66
    for content in (
        "{",
        "[]",
        '{"config": {"txet": 1}}',
        '{"config": {"times": "many"}}',
        '{"tool": "other", "config": {}}',
    ):
        (tmp_path / "c.json").write_text(content)
        done = echo(tmp_path, "x", "--config", "c.json")
        assert done.returncode == 78, (content, done.stderr)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_keep_finished_items_only(tmp_path, signum, code):
    batch = write_batch(tmp_path, "done", {"text": "half", "nap": 60})
    process = start(ECHO, "--inputs-from", batch, cwd=tmp_path)
    assert process.stdout.readline().strip().endswith(".txt")
    time.sleep(0.5)
    process.send_signal(signum)
    assert process.wait(20) == code
    names = everything_in(tmp_path / "output")
    assert sum("echo_" in name for name in names) == 1 and not any("partial" in name for name in names)
    assert run_record(tmp_path / "output")["status"] == "interrupted"


def test_kill_leaves_no_half_file_at_the_final_name(tmp_path):
    process = start(ECHO, "half", "--nap", 60, "-o", "o.txt", cwd=tmp_path)
    wait_for(tmp_path / ".o.txt.partial.txt")
    process.kill()
    process.wait()
    assert not (tmp_path / "o.txt").exists()


def test_lock_held_by_another_process(tmp_path):
    process = start(ECHO, "half", "--nap", 60, "-o", "o.txt", "--lock", "my.lock", cwd=tmp_path)
    wait_for(tmp_path / ".o.txt.partial.txt")
    done = echo(tmp_path, "x", "--lock", "my.lock")
    process.terminate()
    process.wait()
    assert done.returncode == 75 and "my.lock" in done.stderr
    assert echo(tmp_path, "x", "--lock", "my.lock").returncode == 0


def test_two_processes_in_one_second_get_two_folders(tmp_path):
    processes = [start(ECHO, f"text {i}", "-q", cwd=tmp_path) for i in range(3)]
    folders = {Path(p.communicate()[0].strip()).parent for p in processes}
    assert all(p.returncode == 0 for p in processes) and len(folders) == 3


def test_keep_last_removes_only_own_folders(tmp_path):
    output = tmp_path / "output"
    for name in ("20200101_00_00_00", "20200101_00_00_01", "notes", "20200102_00_00_00"):
        (output / name).mkdir(parents=True)
    (output / "20200102_00_00_00" / "run.json").write_text(
        '{"tool": "other", "schema": "generation-scripts/run/1", "config": {}}'
    )
    for _ in range(3):
        assert echo(tmp_path, "x", "--keep-last", 2).returncode == 0
    names = {p.name for p in output.iterdir()}
    assert {"20200101_00_00_00", "20200101_00_00_01", "notes", "20200102_00_00_00"} <= names
    assert len(names) == 6


def test_quiet_is_silent_on_success_and_one_line_on_failure(tmp_path):
    code = (
        f"import os,runpy,sys; sys.argv=[{str(ECHO)!r},*sys.argv[1:]]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    env = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [sys.executable, "-c", code, "invalid", "-q"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 65 and [line for line in done.stderr.splitlines() if "library" not in line] == [
        "error: 'invalid': cannot be written"
    ]


def test_smoke_test_dry_run_and_no_telemetry(tmp_path):
    done = echo(tmp_path, "--smoke-test", "--seed", 5, "--disable-telemetry")
    assert done.returncode == 0 and Path(done.stdout.strip()).read_text() == "SMOKE 5 5 5"
    assert not any("trace" in name for name in everything_in(tmp_path))
    replay = echo(tmp_path, "--config", next((tmp_path / "output").glob("*/run.json")), "-o", "o.txt")
    assert replay.returncode == 0 and (tmp_path / "o.txt").read_text() == "SMOKE 5 5 5"
    before = everything_in(tmp_path)
    done = echo(tmp_path, "a", "b", "--dry-run", "--json")
    assert done.returncode == 0 and json_lines(done.stdout)[0]["items"] == 2
    assert everything_in(tmp_path) == before


def test_full_disk_is_74(tmp_path):
    code = (
        "import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n"
        f"sys.argv = [{str(ECHO)!r}, 'x' * 100, '--disable-telemetry']\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 74, done.stderr
    assert everything_in(tmp_path) == []


def test_reader_that_goes_away_is_no_traceback(tmp_path):
    batch = write_batch(tmp_path, *[f"t{i}" for i in range(50)])
    process = start(ECHO, "--inputs-from", batch, cwd=tmp_path)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait() == 141
