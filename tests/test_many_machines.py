"""The examples for cron, Slurm, Hugging Face Jobs and Ray, run for real as far as one machine goes; merging of shards."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_jobs import FakeJobs
from processes import ECHO, ROOT, environment, everything_in, json_lines, run

EXAMPLES = ROOT / "examples"
MERGE = EXAMPLES / "merge_shards.py"


def words_list(folder: Path, count: int) -> Path:
    path = folder / "words.jsonl"
    path.write_text("".join(json.dumps({"text": f"word {i}"}) + "\n" for i in range(count)))
    return path


# Merging


def test_merged_shards_are_the_whole_list(tmp_path):
    words = words_list(tmp_path, 7)
    for i in range(3):
        assert (
            run(ECHO, "--inputs-from", words, "--shard", f"{i}/3", "--resume", f"shard-{i}", cwd=tmp_path).returncode
            == 0
        )
    done = run(MERGE, *(f"shard-{i}" for i in range(3)), "-o", "all/items.jsonl", "--expect", 7, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    merged = json_lines((tmp_path / "all" / "items.jsonl").read_text())
    assert [row["index"] for row in merged] == list(range(7))
    for row in merged:
        primary = next(o["path"] for o in row["outputs"] if o["role"] == "primary")
        assert (tmp_path / "all" / primary).read_text().startswith(f"WORD {row['index']} ")


def test_merging_names_what_is_missing_failed_or_made_twice(tmp_path):
    words = tmp_path / "words.jsonl"
    words.write_text('{"text": "a"}\n{"text": "invalid"}\n{"text": "b"}\n{"text": "c"}\n')
    assert run(ECHO, "--inputs-from", words, "--shard", "0/2", "--resume", "run/0", cwd=tmp_path).returncode == 0
    done = run(MERGE, "run/0", "--expect", 4, cwd=tmp_path)
    assert done.returncode == 3 and "2 of 4 item(s) missing: 1, 3" in done.stderr
    assert run(ECHO, "--inputs-from", words, "--shard", "1/2", "--resume", "run/1", cwd=tmp_path).returncode == 3
    done = run(MERGE, "run/0", "run/1", cwd=tmp_path)
    assert done.returncode == 3 and "1 of 4 item(s) failed: 1" in done.stderr
    assert len(json_lines((tmp_path / "run" / "items.jsonl").read_text())) == 4
    shutil.copytree(tmp_path / "run" / "0", tmp_path / "run" / "2")
    done = run(MERGE, "run/0", "run/1", "run/2", cwd=tmp_path)
    assert done.returncode == 65 and "was made by run/0 and by run/2" in done.stderr
    assert run(MERGE, "nowhere", cwd=tmp_path).returncode == 65


def test_merging_skips_the_line_a_kill_cut_short(tmp_path):
    words = words_list(tmp_path, 2)
    assert run(ECHO, "--inputs-from", words, "--resume", "run/0", cwd=tmp_path).returncode == 0
    with (tmp_path / "run" / "0" / "items.jsonl").open("a") as stream:
        stream.write('{"index": 2, "status": "o')
    done = run(MERGE, "run/0", "--expect", 3, cwd=tmp_path)
    assert done.returncode == 3 and done.stderr.count("\n") == 1 and "missing: 2" in done.stderr


# Cron


def cron(line: str, home: Path) -> subprocess.Popen:
    """What cron does with the command of a crontab line: /bin/sh, HOME, a short PATH and nothing else."""
    return subprocess.Popen(
        ["env", "-i", f"HOME={home}", "PATH=/usr/bin:/bin", "SHELL=/bin/sh", "/bin/sh", "-c", line],
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def quiet_echo(tmp_path):
    """The smallest script as a bundle, without its library that talks."""
    path = tmp_path / "echo.py"
    assert run("bundle.py", ECHO, "-o", path, cwd=tmp_path).returncode == 0
    path.write_text(path.read_text().replace('    print("a library that talks on stdout")\n', ""))
    return path


def crontab_line(script: str, places: dict[str, str]) -> str:
    """The command of the example line that runs `script`, with its places replaced by ours."""
    (line,) = [x for x in (EXAMPLES / "cron" / "crontab").read_text().splitlines() if script in x and x[0] != "#"]
    command = line.split(maxsplit=5)[5]
    for theirs, ours in places.items():
        assert theirs in command
        command = command.replace(theirs, ours)
    return command


def test_crontab_line_twice_at_once(quiet_echo, tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "one", "nap": 4}\n{"text": "two"}\n')
    places = {
        "uv run -q /opt/toolbox/kokoro_tts_generation.py": f"{sys.executable} {quiet_echo}",
        "/srv/speech/out": f"{tmp_path}/out",
        "/srv/speech": str(tmp_path),
        "/tmp/speech.lock": f"{tmp_path}/lock",
    }
    line = crontab_line("kokoro_tts_generation.py", places)
    first = cron(line, tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    second = cron(line, tmp_path)
    said = second.communicate(timeout=60)
    assert second.returncode == 75 and first.poll() is None
    assert said[0] == "" and said[1].count("\n") == 1 and "lock" in said[1]
    assert first.communicate(timeout=60) == ("", "") and first.returncode == 0
    before = everything_in(tmp_path / "out")
    third = cron(line, tmp_path)
    assert third.communicate(timeout=60) == ("", "") and third.returncode == 0
    assert everything_in(tmp_path / "out") == before and sum(name.startswith("echo_") for name in before) == 2


def test_failure_under_cron_is_one_line(quiet_echo, tmp_path):
    failing = cron(f"{sys.executable} {quiet_echo} invalid -q", tmp_path)
    out, err = failing.communicate(timeout=60)
    assert failing.returncode == 65 and out == "" and err == "error: 'invalid': cannot be written\n"


# Hugging Face Jobs

SUBMIT = EXAMPLES / "hf_jobs" / "submit.py"


def submit(hub: FakeJobs, folder: Path, *args: object, token: str | None = "hf_right") -> subprocess.CompletedProcess:
    login = {"HF_TOKEN": token} if token else {}
    (folder / "box").mkdir(exist_ok=True)
    bundle = shutil.copy(ECHO, folder / "box" / "my script.py")
    source = "hf://datasets/me/words/day 1/words.jsonl"
    return run(
        SUBMIT, bundle, source, "--shards", 3, "--results", "me/speech", "--poll", 0.05, *args,
        cwd=folder, timeout=120, HF_HOME=str(folder / "home"), **hub.environment, **login,
    )  # fmt: skip


def test_jobs_get_their_shard_secret_and_volumes(tmp_path):
    with FakeJobs() as hub:
        done = submit(hub, tmp_path, "--flavor", "cpu-upgrade", "--timeout", "90m", "--", "--times", "3")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "".join(f"job{i} shard {i}/3\n" for i in range(3))
        assert [upload["path"].split("/")[1] for upload in hub.uploads] == ["my_script.py"] * 3
        for i, job in enumerate(hub.jobs):
            batch = ["--inputs-from", "/list/day 1/words.jsonl", "--shard", f"{i}/3", "--resume", f"/results/shard-{i}"]
            assert job["command"] == ["uv", "run", "/data/my_script.py", *batch, "-q", "--times", "3"]
            assert job["secrets"] == {"HF_TOKEN": "hf_right"} and "HF_TOKEN" not in job["environment"]
            assert (job["flavor"], job["timeoutSeconds"]) == ("cpu-upgrade", 5400)
            assert job["labels"].items() >= {"tool": "my script", "shard": f"{i}-of-3"}.items()
            mounts = {volume["mountPath"]: (volume["type"], volume["source"]) for volume in job["volumes"]}
            assert mounts == {
                "/data": ("bucket", "me/jobs-artifacts"),
                "/list": ("dataset", "me/words"),
                "/results": ("bucket", "me/speech"),
            }
        assert set(hub.looks) == {0, 1, 2} and min(hub.looks.values()) >= 2


def test_a_failed_job_is_named_and_a_failed_look_repeated(tmp_path):
    with FakeJobs(stages={1: "ERROR", 2: "CANCELED"}) as hub:
        hub.faults["/api/jobs/me/job0"] = [502]
        done = submit(hub, tmp_path)
        assert done.returncode == 3
        assert "error: shard(s) 1, 2 did not complete" in done.stderr and "looking again" in done.stderr


def test_submitting_without_right_says_so_in_one_line(tmp_path):
    with FakeJobs() as hub:
        done = submit(hub, tmp_path, token=None)
        assert done.returncode == 77 and done.stderr.count("\n") == 1 and "HF_TOKEN" in done.stderr
        done = submit(hub, tmp_path, token="hf_wrong")
        assert done.returncode == 77 and done.stderr.count("\n") == 1
        hub.faults["/api/jobs/me"] = [503]
        done = submit(hub, tmp_path, "--no-wait")
        assert done.returncode == 75 and done.stderr.splitlines()[-1].startswith("error: 0 of 3 job(s) submitted")
        assert not hub.jobs


# Slurm


SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={port_d}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=3
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def until(true, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def slurm(tmp_path):
    """A cluster of one node with four cores; yields the environment its commands need."""
    tools = {
        name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("munged", "slurmctld", "slurmd")
    }
    absent = [name for name, path in tools.items() if path is None]
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed (Debian: slurm-wlm)")
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    port, port_d = free_ports(2)
    conf = folder / "slurm.conf"
    conf.write_text(SLURM_CONF.format(host=socket.gethostname().split(".")[0], folder=folder, port=port, port_d=port_d))
    env = environment(SLURM_CONF=str(conf))
    munge = [
        f"--{x}={folder}/munge.{x.split('-')[0]}" for x in ("key-file", "socket", "pid-file", "log-file", "seed-file")
    ]
    munge[1] = f"--socket={folder}/munge.sock"
    commands = [
        [tools["munged"], "--foreground", "--force", *munge],
        [tools["slurmctld"], "-D", "-f", conf],
        [tools["slurmd"], "-D", "-f", conf],
    ]
    daemons = []
    try:
        for command in commands:
            log = (folder / f"{Path(command[0]).name}.out").open("w")
            daemons.append(subprocess.Popen(list(map(str, command)), env=env, stdout=log, stderr=log))
            if command[0] == tools["munged"]:
                until((folder / "munge.sock").exists, 20, "munged")
        up = lambda: b"idle" in subprocess.run(["sinfo", "-h", "-o", "%T"], env=env, capture_output=True).stdout  # noqa: E731
        until(up, 60, "an idle node")
        yield env
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def uv_in(folder: Path) -> str:
    """A PATH on which `uv run -q script` is this test's own interpreter, which has everything the scripts name."""
    folder.mkdir()
    (folder / "uv").write_text(
        f'#!/bin/sh\n[ "$1" = run ] && shift\n[ "$1" = -q ] && shift\nexec {sys.executable} "$@"\n'
    )
    (folder / "uv").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def grids(folder: Path, count: int) -> Path:
    """A batch of small meshes, all different: bumpy grids of triangles."""
    folder.mkdir()
    n = 8
    ys, xs = np.mgrid[:n, :n]
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel() + 1
    faces = np.concatenate(
        [np.stack([corner, corner + 1, corner + n + 1], 1), np.stack([corner, corner + n + 1, corner + n], 1)]
    )
    for i in range(count):
        zs = np.sin(xs * 0.1 * (i + 1) / count) + np.cos(ys * 0.3)
        lines = [f"v {x} {y} {z:.5f}" for x, y, z in zip(xs.ravel(), ys.ravel(), zs.ravel(), strict=True)]
        (folder / f"grid{i}.obj").write_text("\n".join(lines + [f"f {a} {b} {c}" for a, b, c in faces]) + "\n")
    meshes = folder.parent / "meshes.txt"
    meshes.write_text("".join(f"{folder.name}/grid{i}.obj\n" for i in range(count)))
    return meshes


@pytest.mark.slow
def test_slurm_array_with_a_task_killed_and_requeued(slurm, tmp_path):
    meshes, env = grids(tmp_path / "grids", 100), {**slurm, "PATH": uv_in(tmp_path / "bin"), "TOOLBOX": str(ROOT)}

    def sbatch(*args: object) -> str:
        command = ["sbatch", "--parsable", *map(str, args)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    converter = ROOT / "tris_to_quads_converter.py"
    array = sbatch(EXAMPLES / "slurm" / "array.sbatch", converter, meshes, "run", "--format", "glb", "--no-preview")
    gather = sbatch(f"--dependency=afterany:{array}", EXAMPLES / "slurm" / "gather.sbatch", "run", "--expect", 100)

    def made(shard: int) -> int:
        manifest = tmp_path / "run" / f"shard-{shard}" / "items.jsonl"
        return manifest.read_text().count("\n") if manifest.exists() else 0

    until(lambda: made(1) >= 3, 180, "three items of shard 1")
    done = subprocess.run(["scontrol", "requeue", f"{array}_1"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert made(1) < 25, "the task was finished before it was killed"

    def ended() -> bool:
        done = subprocess.run(["squeue", "-h", "-o", "%i"], env=env, capture_output=True, text=True)
        return done.returncode == 0 and not done.stdout.strip()

    until(ended, 400, "an empty queue")
    log = (tmp_path / f"slurm-{gather}_gather.log").read_text()
    assert log == "run/items.jsonl\n", log
    rows = json_lines((tmp_path / "run" / "items.jsonl").read_text())
    assert [row["index"] for row in rows] == list(range(100)) and {row["status"] for row in rows} == {"ok"}
    results = [o["path"] for row in rows for o in row["outputs"] if o["role"] == "primary"]
    assert len(set(results)) == 100
    assert {(tmp_path / "run" / path).resolve() for path in results} == set((tmp_path / "run").resolve().rglob("*.glb"))
    assert all(made(shard) == 25 for shard in range(4)), "an item was made twice"
    assert not list((tmp_path / "run").rglob(".*partial*"))


# Ray


@pytest.mark.slow
def test_ray_queue_on_two_nodes(tmp_path):
    if shutil.which("uv") is None:
        pytest.skip("uv is not on PATH")
    uv_run = ["uv", "run", "-q", "--no-project", "--with", "ray>=2.40", "python"]
    probe = subprocess.run(
        [*uv_run, "-c", "import ray, sys; print(sys.executable)"], cwd=tmp_path, capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"ray cannot be installed here: {probe.stderr.strip().splitlines()[-1]}")
    words = words_list(tmp_path, 8)
    done = subprocess.run(
        [*uv_run, "-c", RAY_DRIVER, EXAMPLES / "ray" / "queue_shards.py", ECHO, words, tmp_path / "run",
         "--shards", "4", "--gpus", "0", "--runner", sys.executable, "--", "--times", "2", "--nap", "2"],
        cwd=tmp_path, env=environment(RAY_USAGE_STATS_ENABLED="0"), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stderr.splitlines() if line.startswith("shard ")]
    assert sorted(line[1] for line in told) == ["0:", "1:", "2:", "3:"] and {line[3] for line in told} == {"0"}
    assert len({line[7] for line in told}) == 2, done.stderr
    merged = run(MERGE, *(f"run/shard-{i}" for i in range(4)), "--expect", 8, cwd=tmp_path)
    assert merged.returncode == 0, merged.stderr


# Starts a cluster of two nodes with a core each in one machine and runs the example on it as the program it is.
RAY_DRIVER = """
import subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
sys.exit(subprocess.run([sys.executable, sys.argv[1], "--address", cluster.address, *sys.argv[2:]]).returncode)
"""
