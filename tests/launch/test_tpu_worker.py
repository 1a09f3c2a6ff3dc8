"""launch/tpu_worker.py: what runs on each worker of a TPU VM, with a stand-in for training."""

import json
import pathlib
import signal
import sys

import pytest

from launch import tpu_worker
from tests.started_processes import run_python
from tests.tiny_training import tiny_experiment
from transformer_jax.launching.run import Run, read_run
from transformer_jax.launching.sweep_results import RESULTS_TEXT
from transformer_jax.launching.sweeps import read_members

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

ROOT = pathlib.Path(__file__).parents[2]
# Notes its variables beside the run folder, and ends with the status that its peak rate says.
TRAINING = """
import json, os, pathlib, sys
workdir = pathlib.Path(sys.argv[1])
with open(workdir.parent / "started", "a") as file:
    file.write(json.dumps([workdir.name, os.environ.get("A"), os.environ.get("JAX_PLATFORMS")]) + "\\n")
sys.exit(3 if workdir.name.endswith("=0.002") else 0)
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.chdir(ROOT)
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def training(run):
    return [sys.executable, "-SE", "-c", TRAINING, run.workdir]


def started(folder):
    return [json.loads(line) for line in (folder / "started").read_text().splitlines()]


def sweep_run(folder):
    return read_run(["--config=experiments/number_words.py", f"--workdir={folder}"])


@pytest.mark.parametrize(("name", "status"), [("a", 0), ("rate=0.002", 3)])
def test_a_run_and_its_exit_status(tmp_path, name, status):
    run = Run(str(tmp_path / name), (), tiny_experiment(tmp_path), "tiny.py", {})
    found = tpu_worker.run_all(run, {"A": "b"}, sweep=False, is_first=True, command=training)
    assert found == status
    assert started(tmp_path) == [[name, "b", None]]


def test_the_first_worker_keeps_how_the_members_of_a_sweep_ended(tmp_path, capfd):
    run = sweep_run(tmp_path / "sweep")
    status = tpu_worker.run_all(run, {}, sweep=True, is_first=True, command=training)
    assert status == 3
    names = [member.name for member in read_members(run)]
    assert [name for name, *_ in started(tmp_path / "sweep")] == names
    ends = {
        name: json.loads((tmp_path / "sweep" / name / "launch.json").read_text())["exit_status"]
        for name in names
    }
    assert ends == {name: 3 if name.endswith("=0.002") else 0 for name in names}
    out = capfd.readouterr().out
    table = (tmp_path / "sweep" / RESULTS_TEXT).read_text()
    assert out.endswith(table) and "1 failed" in table
    assert [line[3:] for line in out.splitlines() if line.startswith("== ")] == names


def test_other_workers_write_nothing_of_their_own(tmp_path):
    run = sweep_run(tmp_path / "sweep")
    (tmp_path / "sweep").mkdir()
    assert tpu_worker.run_all(run, {}, sweep=True, is_first=False, command=training) == 3
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["started"]
    assert len(started(tmp_path / "sweep")) == len(read_members(run))


# Has the worker stopped as soon as it can be stopped itself.
STOPPING = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), os._exit(0)))
print("training", flush=True)
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""


def test_a_signal_is_passed_on_and_is_the_end_of_a_sweep(tmp_path, single_device_environment):
    program = """
        import os, sys
        from launch import tpu_worker
        from transformer_jax.launching.run import read_run
        folder, child = sys.argv[1:]
        run = read_run(["--config=experiments/number_words.py", f"--workdir={folder}"])
        command = lambda run: [sys.executable, "-SE", "-c", child]
        sys.exit(tpu_worker.run_all(run, dict(os.environ), sweep=True, is_first=True, command=command))
    """
    done = run_python(program, tmp_path / "sweep", single_device_environment, STOPPING)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("training") == lines.count("saved") == 1
    assert [line for line in lines if line.startswith("== ")] == ["== optimizer.peak_rate=0.0005"]
    assert "1 failed" not in done.stdout


def test_several_workers_find_one_another(tmp_path):
    run = Run(str(tmp_path / "a"), ("--nodistributed",), tiny_experiment(tmp_path), "tiny.py", {})
    assert "--distributed" not in tpu_worker.training_command(run, "x:0:10.0.0.1")
    several = tpu_worker.training_command(run, "x:0:10.0.0.1,y:1:10.0.0.2")
    assert several.index("--distributed") < several.index("--nodistributed")  # what is given counts


def test_a_status_is_that_of_a_shell_where_a_signal_ended_it():
    programs = tpu_worker.Programs({})
    assert programs.run([sys.executable, "-SE", "-c", "import os; os.kill(os.getpid(), 9)"]) == 137
    assert programs.run([sys.executable, "-SE", "-c", ""]) == 0
    assert not programs.stopped
