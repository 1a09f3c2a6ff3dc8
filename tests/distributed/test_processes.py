"""Runs of several processes, on this machine: stopped, continued by another number, killed, and at odds."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_training import assert_equal_training
from transformer_jax.reporting.progress import METRICS_FILE, read_metrics
from transformer_jax.runs.loading import load_run

ROOT = Path(__file__).parents[2]
STEPS = 300
EXPERIMENT = f'''
import dataclasses, pathlib
from tests.tiny_training import COMPARABLE, SMOOTH, tiny_experiment

def get_config(num_steps="{STEPS}"):
    return tiny_experiment(
        pathlib.Path(__file__).parent / "corpus",
        model=SMOOTH,
        mesh=dict(data=-1),
        optimizer=dataclasses.asdict(COMPARABLE),
        train=dict(num_steps=int(num_steps), log_every_steps=1, evaluate_every_steps=1000),
        checkpoint=dict(every_steps=1000, keep_latest=2),
        evaluate=dict(num_samples=0),
    ).to_config_dict()
'''

pytestmark = pytest.mark.slow


@pytest.fixture
def config(corpus, tmp_path):
    (tmp_path / "corpus").symlink_to(corpus)
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    return path


class Run:
    """The processes of a run, each with one CPU device."""

    def __init__(self, environment, count, *arguments, own=((),) * 9, numbers=None):
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        self.processes = {
            number: subprocess.Popen(
                [sys.executable, "-m", "transformer_jax.train", *arguments, *own[number]],
                env=environment
                | {
                    "PYTHONPATH": str(ROOT),
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(number),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
            )
            for number in (range(count) if numbers is None else numbers)
        }

    def finish(self, timeout=240):
        """Exit status and output of each process."""
        try:
            outputs = {
                number: each.communicate(timeout=timeout)[0] for number, each in self.processes.items()
            }
        finally:
            for each in self.processes.values():
                each.kill()
        return {number: (each.returncode, outputs[number]) for number, each in self.processes.items()}

    def wait_for_step(self, workdir, step):
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and all(each.poll() is None for each in self.processes.values()):
            is_begun = (workdir / METRICS_FILE).exists()
            if is_begun and any(record["step"] >= step for record in read_metrics(workdir)):
                return
            time.sleep(0.2)
        raise AssertionError(f"never came to step {step}: {self.finish(1)}")


def losses(workdir):
    return {int(r["step"]): r["train/loss"] for r in read_metrics(workdir) if "train/loss" in r}


def test_stopped_by_one_and_continued_by_another_number(config, tmp_path, single_device_environment):
    """A signal to one process stops all after the same step, and others go on there: two, and then one."""
    environment, workdir = single_device_environment, tmp_path / "run"
    arguments = (f"--config={config}", f"--workdir={workdir}")
    run = Run(environment, 2, *arguments)
    run.wait_for_step(workdir, 3)
    run.processes[1].send_signal(signal.SIGTERM)
    found = run.finish()
    assert [status for status, _ in found.values()] == [0, 0], found
    first = max(losses(workdir))
    assert f"everything up to step {first} is saved" in found[0][1], found
    (path,) = (workdir / "checkpoints").glob("[0-9]*")
    places = json.loads((path / "data" / "data.json").read_text())["processes"]
    assert int(path.name) == first < STEPS and places[0]["iterator"] == places[1]["iterator"]

    last = first + 4
    ended = Run(environment, 2, f"--config={config}:{first + 2}", f"--workdir={workdir}").finish()
    assert [status for status, _ in ended.values()] == [0, 0], ended
    alone = Run(environment, 1, f"--config={config}:{last}", f"--workdir={workdir}").finish()
    assert alone[0][0] == 0 and f"continuing at step {first + 2} of {last}" in alone[0][1], alone

    whole = Run(environment, 1, f"--config={config}:{last}", f"--workdir={tmp_path / 'whole'}").finish()
    assert whole[0][0] == 0, whole
    parts, wanted = losses(workdir), losses(tmp_path / "whole")
    assert sorted(parts) == sorted(wanted) == list(range(1, last + 1))
    pairs = [
        (list(each.values()), load_run(str(folder), average_last=1).params)
        for each, folder in ((parts, workdir), (wanted, tmp_path / "whole"))
    ]
    assert_equal_training(*pairs, num_steps=last)


def test_a_process_that_is_killed_is_named_and_all_can_start_again(
    config, tmp_path, single_device_environment
):
    workdir = tmp_path / "run"
    arguments = (
        f"--config={config}", f"--workdir={workdir}", "--heartbeat_timeout=5",
        "--config.checkpoint.every_steps=5", f"--config.train.num_steps={STEPS * 10}",
    )  # fmt: skip
    run = Run(single_device_environment, 2, *arguments)
    run.wait_for_step(workdir, 12)
    run.processes[1].kill()
    killed = time.monotonic()
    found = run.finish()
    assert time.monotonic() - killed < 40
    said = f"process 1 of 2, on {socket.gethostname()} or its host died: no heartbeat for 5 s"
    assert found[0][0] == 1 and said in found[0][1], found
    assert load_run(str(workdir), average_last=1).steps[0] >= 5
    again = Run(single_device_environment, 2, *arguments[:-1], "--config.train.num_steps=30").finish()
    assert [status for status, _ in again.values()] == [0, 0], again


def test_a_failing_process_ends_all_and_is_named(config, corpus, tmp_path, single_device_environment):
    """Other data on one host: found by comparing. No data on one host: its own error, shown by all."""
    other = tmp_path / "other"
    other.mkdir()
    for path in corpus.iterdir():
        (other / path.name).write_text(path.read_text().replace("red", "rot"))
    arguments = (f"--config={config}", f"--workdir={tmp_path / 'run'}")
    for folder, text in ((other, "the training data is '96 examples"), (tmp_path / "none", "there is no")):
        own = ((), (f"--config.data.source.folder={folder}",))
        found = Run(single_device_environment, 2, *arguments, own=own).finish()
        assert [status for status, _ in found.values()] == [1, 1], found
        assert all(text in output for _, output in found.values()), found
        assert f"process 1 of 2, on {socket.gethostname()}" in found[0][1], found
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_processes_that_cannot_begin_say_why(config, tmp_path, single_device_environment):
    arguments = (f"--config={config}", f"--workdir={tmp_path / 'run'}", "--start_timeout=10")
    differing = Run(single_device_environment, 2, *arguments, own=((), ("--config.train.seed=7",))).finish()
    missing = Run(single_device_environment, 3, *arguments, numbers=(0, 2)).finish()
    for found, text in (
        (differing, "config.train.seed: '0' in process 0 on"),
        (missing, "process(es) 1 of 3 did not connect within 10 s"),
    ):
        for status, output in found.values():
            assert status == 1 and text in output, found
            assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
