"""Jobs on a real Slurm cluster, started for these tests; see slurm_cluster.py."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import pytest

from launch import slurm
from tests.launch.slurm_cluster import slurm_cluster
from tests.tiny_training import tiny_experiment, write_corpus
from transformer_jax.launching.run import Run

pytestmark = pytest.mark.slurm

ROOT = pathlib.Path(__file__).parents[2]
STAND_IN = str(pathlib.Path(__file__).with_name("stand_in.py"))
MOST_SECONDS = 150


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm_cluster(pathlib.Path(folder)) as found:
        yield found


@pytest.fixture(autouse=True)
def on_the_cluster(cluster, monkeypatch):
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)


def run_in(folder: pathlib.Path) -> Run:
    return Run(str(folder), (), tiny_experiment(folder), "tiny.py", {})


def counting(steps: int, seconds: float, *more: str):
    return lambda run: [sys.executable, STAND_IN, run.workdir, str(steps), str(seconds), *more]


def wait_until(condition, what: str, folder: pathlib.Path) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text() for path in folder.rglob("slurm-*.out"))
            raise AssertionError(f"{what}: not within {MOST_SECONDS} s\n{logs}\n{scontrol('show', 'jobs')}")
        time.sleep(0.1)


def scontrol(*arguments: str) -> str:
    result = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=True)
    return result.stdout


def hurry(job: str, folder: pathlib.Path) -> None:
    """Starts a job that was queued again: Slurm would wait for two minutes."""
    wait_until(lambda: "Restarts=0" not in scontrol("show", "job", job), f"job {job} again", folder)
    wait_until(lambda: state_of(job) == "PENDING", f"job {job} queued again", folder)
    time.sleep(3)  # for the credential of its last start to expire
    scontrol("update", f"JobId={job}", "StartTime=now")


def state_of(job: str) -> str:
    result = subprocess.run(
        ["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return result.stdout.strip()


def wait_for_end(job: str, folder: pathlib.Path, state: str = "COMPLETED") -> None:
    wait_until(lambda: state_of(job) == state, f"job {job} {state}", folder)


def test_every_argument_arrives_as_it_was_given(tmp_path):
    workdir = tmp_path / '%j 50% of "a" $HOME\'s `b` #c'
    words = ["--config.a=x y", "--b='", '--c="', "--d=$HOME `e` \\", "--f=#!*?[a]{b,c}~;&|<>()", "", "ä\n2"]
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    settings = slurm.Settings(time="5", sbatch=("--comment=a 'b' \"c\" \\d #e",))
    command = [sys.executable, "-c", program, *words]
    (job,) = slurm.launch([run_in(workdir)], settings, command=lambda run: command)
    wait_for_end(job, tmp_path)
    (line,) = [
        line for line in (workdir / f"slurm-{job}.out").read_text().splitlines() if line.startswith("[")
    ]
    assert json.loads(line) == words
    assert "Comment=a 'b' \"c\" \\d #e" in scontrol("show", "job", job)
    assert json.loads((workdir / "launch.json").read_text()) == {"log": f"slurm-{job}.out", "exit_status": 0}


def test_a_job_that_is_requeued_in_mid_run_saves_and_goes_on(tmp_path):
    settings = slurm.Settings(tasks_per_node=2, requeue=True)
    (job,) = slurm.launch([run_in(tmp_path)], settings, command=counting(60, 0.1))
    wait_until(lambda: (tmp_path / "history-1").exists(), "a step", tmp_path)
    scontrol("requeue", job)
    hurry(job, tmp_path)
    wait_for_end(job, tmp_path)
    for rank in "01":
        steps = (tmp_path / f"history-{rank}").read_text().split()
        assert steps == [str(step) for step in range(1, 61)]  # none twice: it was told in time
    log = (tmp_path / f"slurm-{job}.out").read_text()
    assert "0: process 0 begins at step 0" in log and "1: process 1 is done" in log
    assert log.count("stops at step") == 2 and log.count("begins at step") == 4


def test_a_job_that_is_cancelled_saves_and_does_not_come_back(tmp_path):
    (job,) = slurm.launch([run_in(tmp_path)], slurm.Settings(requeue=True), command=counting(2_000, 0.1))
    wait_until(lambda: (tmp_path / "history-0").exists(), "a step", tmp_path)
    subprocess.run(["scancel", job], check=True, timeout=60)
    wait_for_end(job, tmp_path, "CANCELLED")
    log = (tmp_path / f"slurm-{job}.out").read_text()
    assert "stops at step" in log and "requeued" not in log
    assert json.loads((tmp_path / "launch.json").read_text())["exit_status"] == 0
    assert (tmp_path / "checkpoints").is_dir()


def test_a_job_that_is_preempted_saves_and_goes_on(tmp_path):
    settings = slurm.Settings(cpus_per_task=4, requeue=True)  # the whole node
    runs = [run_in(tmp_path / name) for name in ("first", "urgent")]
    (first,) = slurm.launch(runs[:1], settings, command=counting(2_000, 0.1))
    wait_until(lambda: (tmp_path / "first" / "history-0").exists(), "a step", tmp_path)
    settings = dataclasses.replace(settings, partition="urgent")
    (urgent,) = slurm.launch(runs[1:], settings, command=counting(2, 0.1))
    wait_for_end(urgent, tmp_path)
    hurry(first, tmp_path)
    wait_for_end(first, tmp_path)
    steps = (tmp_path / "first" / "history-0").read_text().split()
    assert steps == [str(step) for step in range(1, 2_001)]


def test_a_job_that_ends_early_is_named(tmp_path):
    (job,) = slurm.launch([run_in(tmp_path)], slurm.Settings(), command=counting(2, 0.1, "3"))
    wait_for_end(job, tmp_path, "FAILED")
    assert json.loads((tmp_path / "launch.json").read_text())["exit_status"] == 3


def test_a_job_whose_time_is_up_saves_and_queues_again_where_it_may(tmp_path):
    # The least limit is a minute, and Slurm looks at the time only twice a minute.
    again = slurm.Settings(time="1", warn_before=50, requeue=True)
    once = dataclasses.replace(again, requeue=False)
    runs = [run_in(tmp_path / name) for name in ("again", "once")]
    ((first,), (second,)) = (
        slurm.launch([run], settings, command=counting(2_000, 0.1))
        for run, settings in zip(runs, (again, once), strict=True)
    )
    hurry(first, tmp_path)
    wait_for_end(first, tmp_path)
    log = (tmp_path / "again" / f"slurm-{first}.out").read_text()
    assert "is requeued" in log and "process 0 is done" in log
    steps = (tmp_path / "again" / "history-0").read_text().split()
    assert steps == [str(step) for step in range(1, 2_001)]
    wait_for_end(second, tmp_path)
    log = (tmp_path / "once" / f"slurm-{second}.out").read_text()
    assert f"to resume: sbatch {tmp_path}/once/slurm.sh" in log and "process 0 is done" not in log
    assert json.loads((tmp_path / "once" / "launch.json").read_text())["exit_status"] == 0


CONFIG = """
import pathlib
from tests.tiny_training import tiny_experiment, write_corpus
def get_config():
    return tiny_experiment(pathlib.Path({folder!r}), train=dict(num_steps=4)).to_config_dict()
def sweep():
    yield {{"train.seed": 1}}
    yield {{"optimizer.peak_rate": 1e30}}
"""


def test_a_sweep_is_a_job_a_member_and_one_for_the_table(tmp_path, single_device_environment):
    write_corpus(tmp_path / "corpus")
    config, workdir = tmp_path / "tiny.py", tmp_path / "sweep"
    config.write_text(CONFIG.format(folder=str(tmp_path / "corpus")))
    names = ("SLURM_CONF", "PATH")
    environment = single_device_environment | {name: os.environ[name] for name in names}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of programs that run four times
    result = subprocess.run(
        [sys.executable, "launch/slurm.py", "--sweep", f"--config={config}", f"--workdir={workdir}"],
        env=environment | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    jobs = re.findall(r"submitted job (\d+)", result.stderr)
    assert len(jobs) == 3
    wait_for_end(jobs[0], workdir)
    wait_for_end(jobs[1], workdir, "FAILED")
    wait_for_end(jobs[2], workdir, "FAILED")  # its table says that one did
    results = json.loads((workdir / "sweep_results.json").read_text())
    assert [(row["name"], row["state"]) for row in results["members"]] == [
        ("train.seed=1", "finished"),
        ("optimizer.peak_rate=1e+30", "failed"),
    ]
    log = pathlib.Path(results["members"][1]["log"])
    assert log == workdir / "optimizer.peak_rate=1e+30" / f"slurm-{jobs[1]}.out"
    assert "error: the " in log.read_text() and "Lower config.optimizer.peak_rate" in log.read_text()
    assert (workdir / f"slurm-{jobs[2]}.out").read_text() == (workdir / "sweep_results.txt").read_text()
