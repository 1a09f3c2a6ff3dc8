"""Real trainings in several processes, started by the launchers: stopped, killed, requeued, to the bit."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest

from tests.launch.slurm_cluster import slurm_cluster
from tests.tiny_training import write_corpus
from transformer_jax.reporting.progress import read_metrics
from transformer_jax.runs.loading import load_run

ROOT = pathlib.Path(__file__).parents[2]
NUM_STEPS = 120
MOST_SECONDS = 240
# Compiling is most of what these runs do.
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

CONFIG = """
import pathlib
from tests.tiny_training import tiny_experiment
def get_config():
    return tiny_experiment(
        pathlib.Path({folder!r}),
        train=dict(num_steps={num_steps}, log_every_steps=2, evaluate_every_steps=60),
        checkpoint=dict(every_steps=15, keep_latest=2),
    ).to_config_dict()
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    write_corpus(folder / "corpus")
    path = folder / "tiny.py"
    path.write_text(CONFIG.format(folder=str(folder / "corpus"), num_steps=NUM_STEPS))
    return path


@pytest.fixture
def launch(single_device_environment):
    """Starts a launcher; ends it, at the end, where it is still there."""
    started = []

    def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, f"launch/{program}.py", *arguments],
                env=single_device_environment | QUICKLY | {"PYTHONPATH": str(ROOT), **environment},
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The parameters of a run of two processes that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | QUICKLY
    result = subprocess.run(
        [sys.executable, "launch/local.py", "-n", "2", f"--config={config}", f"--workdir={workdir}"],
        env=environment | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True,
        timeout=MOST_SECONDS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "[0] exact_match" in result.stdout and "[1] exact_match" not in result.stdout
    return parameters(workdir)


def parameters(workdir):
    run = load_run(str(workdir), average_last=1)
    assert run.steps == (NUM_STEPS,)
    return run.params


def wait_for_step(workdir, step, is_alive=lambda: True):
    deadline = time.monotonic() + MOST_SECONDS
    while time.monotonic() < deadline and is_alive():
        if (workdir / "metrics.jsonl").exists():
            steps = [record["step"] for record in read_metrics(workdir) if "train/loss" in record]
            if steps and steps[-1] >= step:
                return
        time.sleep(0.01)
    raise AssertionError(f"never came to step {step}")


def finish(process):
    out, err = process.communicate(timeout=MOST_SECONDS)
    return process.returncode, out, err


@pytest.mark.slow
def test_two_processes_that_are_stopped_end_with_the_same_bits(config, whole, launch, tmp_path):
    workdir = tmp_path / "run"
    arguments = ("local", "-n", "2", f"--config={config}", f"--workdir={workdir}")
    process = launch(*arguments)
    wait_for_step(workdir, 10, lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 0, err
    (saved,) = re.findall(r"everything up to step (\d+) is saved", err)
    status, _, err = finish(launch(*arguments))
    assert status == 0 and f"continuing at step {saved} of" in err, err
    jax.tree.map(np.testing.assert_array_equal, whole, parameters(workdir))


@pytest.mark.slow
def test_what_one_process_raises_ends_all_and_comes_last(config, launch, tmp_path):
    process = launch(
        "local", "-n", "2", f"--config={config}", f"--workdir={tmp_path}/run",
        "--config.optimizer.peak_rate=1e30",
    )  # fmt: skip
    status, _, err = finish(process)
    assert status == 1
    last = err.split("failed first, with exit status 1, and the others were ended; its last output was:\n")[1]
    assert "Lower config.optimizer.peak_rate" in last


@pytest.mark.slurm
def test_a_job_of_two_tasks_that_is_requeued_in_mid_run_ends_with_the_same_bits(
    config, whole, launch, tmp_path
):
    workdir = tmp_path / "run"
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm_cluster(pathlib.Path(folder)) as found:
        arguments = ("--requeue", "--tasks_per_node=2", f"--config={config}", f"--workdir={workdir}")
        status, _, err = finish(launch("slurm", *arguments, **found))
        assert status == 0, err
        (job,) = re.findall(r"submitted job (\d+)", err)
        log = workdir / f"slurm-{job}.out"
        environment = os.environ | found

        def run(*command: str) -> str:
            result = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=60, check=True
            )
            return result.stdout

        def wait_for_state(state: str) -> None:
            deadline = time.monotonic() + MOST_SECONDS
            show = ("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T")
            while run(*show).strip() != state:
                assert time.monotonic() < deadline, f"never {state}: {run('scontrol', 'show', 'job', job)}"
                time.sleep(0.2)

        wait_for_step(workdir, 10)
        run("scontrol", "requeue", job)
        wait_for_state("PENDING")
        text = log.read_text()
        (saved,) = re.findall(r"everything up to step (\d+) is saved", text)
        assert 10 <= int(saved) < NUM_STEPS, text
        time.sleep(3)  # for the credential of its first start to expire
        run("scontrol", "update", f"JobId={job}", "StartTime=now")  # not in two minutes, as Slurm would
        wait_for_state("COMPLETED")
    text = log.read_text()
    assert f"0: continuing at step {saved} of" in text and "0: exact_match" in text
    assert json.loads((workdir / "launch.json").read_text()) == {"log": log.name, "exit_status": 0}
    jax.tree.map(np.testing.assert_array_equal, whole, parameters(workdir))
