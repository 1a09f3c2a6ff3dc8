"""launch/local.py: environments, and sweeps of small programs in place of training."""

import json
import os
import pathlib
import re
import sys

import pytest

from launch import local
from tests.tiny_training import tiny_experiment
from transformer_jax.launching import sweeps
from transformer_jax.launching.run import Run
from transformer_jax.runs.folder import store_config

STAND_IN = str(pathlib.Path(__file__).with_name("stand_in.py"))


def test_each_process_is_told_who_it_is_and_which_devices_and_threads_are_its_own(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    first, second = local.environments(2, None, {"A": "b"}, 1234)
    assert first == {
        "A": "b",
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PJRT_NPROC": "4",
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1234",
        "JAX_COORDINATOR_BIND_ADDRESS": "127.0.0.1:1234",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
        "JAX_LOCAL_DEVICE_IDS": "0",
    }
    assert second == first | {"JAX_PROCESS_ID": "1", "JAX_LOCAL_DEVICE_IDS": "1"}


def test_devices_are_added_to_the_flags_that_are_there_and_those_set_already_stay(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    eight = "--a=b --xla_force_host_platform_device_count=8"
    told = local.environments(2, 3, {"XLA_FLAGS": eight}, 1)
    assert told[1]["XLA_FLAGS"] == f"{eight} --xla_force_host_platform_device_count=3"
    assert told[1]["JAX_LOCAL_DEVICE_IDS"] == "3,4,5"
    assert "PJRT_NPROC" not in told[1]  # several devices in a process need more; it counts them itself
    assert local.environments(20, None, {}, 1)[0]["PJRT_NPROC"] == "1"
    assert local.environments(2, None, {}, 1, parallel=3)[1]["PJRT_NPROC"] == "2"
    assert local.environments(1, None, {}, 1, parallel=4)[0]["PJRT_NPROC"] == "3"
    assert local.environments(2, None, {"PJRT_NPROC": "7"}, 1)[0]["PJRT_NPROC"] == "7"
    assert local.environments(2, None, {"XLA_FLAGS": eight}, 1)[0]["XLA_FLAGS"] == eight
    assert local.environments(1, None, {"A": "b"}, 1) == [{"A": "b", "PYTHONUNBUFFERED": "1"}]
    (alone,) = local.environments(1, 2, {}, 1)
    assert alone["XLA_FLAGS"].endswith("=2") and "JAX_NUM_PROCESSES" not in alone


def members_in(folder, count):
    experiments = [tiny_experiment(folder, train=dict(seed=seed)) for seed in range(count)]
    found = []
    for seed, experiment in enumerate(experiments):
        name = f"train.seed={seed}"
        run = Run(f"{folder}/{name}", (), experiment, "tiny.py", {})
        found.append(sweeps.Member(name, {"train.seed": seed}, run))
    return Run(str(folder), (), experiments[0], "tiny.py", {}), found


def stand_in(run):
    """Six steps, as the experiment has; the one with seed 1 fails at its end."""
    store_config(run.workdir, run.experiment)
    failure = ["7"] if run.experiment.train.seed == 1 else []
    return [sys.executable, STAND_IN, run.workdir, "6", "0.01", *failure]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 3])
def test_a_member_that_fails_is_in_the_table_and_the_others_run(tmp_path, capfd, parallel):
    run, members = members_in(tmp_path, 3)
    for member in members:
        pathlib.Path(member.run.workdir).mkdir()
    settings = dict(num_processes=2, parallel=parallel, command=stand_in)
    assert local.launch_sweep(run, members, **settings)
    out, err = capfd.readouterr()
    assert re.search(r"\[train\.seed=1 [01]\] failed first, with exit status 7", err)
    assert re.search(r"^1 +failed", out, re.MULTILINE)
    assert f"failed with status 7: train.seed=1: see {tmp_path}/train.seed=1/log.txt" in out
    log = (tmp_path / "train.seed=2" / "log.txt").read_text()
    assert "[train.seed=2 1] process 1 is done\n" in log and "train.seed=0" not in log
    rows = json.loads((tmp_path / "sweep_results.json").read_text())["members"]
    states = {row["name"]: row["state"] for row in rows}
    assert states == {"train.seed=0": "finished", "train.seed=1": "failed", "train.seed=2": "finished"}
    # The same command goes on: only what is not finished is started, and does well this time.
    again = []

    def well(run):
        again.append(run.experiment.train.seed)
        return stand_in(run)[:5]

    assert not local.launch_sweep(run, members, **settings | {"command": well})
    assert again == [1]
    assert "train.seed=0 is already finished" in capfd.readouterr().err
