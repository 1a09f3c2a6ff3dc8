"""Signals, and what a run carries over a stop beside its state; real processes are in test_commands.py."""

import importlib
import json
import signal

import pytest

from tests.tiny_training import tiny_experiment, write_corpus
from transformer_jax.checkpoints.checkpointer import Checkpointer
from transformer_jax.runs.loading import load_run

# What is compared is compiled in the same way.
pytestmark = pytest.mark.usefixtures("quickly_compiled")

train_module = importlib.import_module("transformer_jax.training.loop")
train = train_module.train


@pytest.fixture
def experiment(tmp_path):
    write_corpus(tmp_path / "corpus")
    return tiny_experiment(tmp_path / "corpus")


def after(signal_number, function):
    """The function, called as soon as the signal was sent to this process."""

    def send_and_call(*arguments, **options):
        signal.raise_signal(signal_number)
        return function(*arguments, **options)

    return send_and_call


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_a_second_interrupt_interrupts(number, capfd):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with train_module.stop_signals() as received:
        assert received == []
        signal.raise_signal(number)
        assert received == [number.name]
        signal.raise_signal(signal.SIGTERM)  # as a scheduler repeats it
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert f"{number.name}: stopping" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_signal_before_the_first_step_leaves_a_run_to_begin(experiment, tmp_path, monkeypatch, capsys):
    workdir = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        iterator = after(signal.SIGTERM, train_module.training_iterator)
        patch.setattr(train_module, "training_iterator", iterator)
        assert train(experiment, workdir) == {}
    assert "SIGTERM: no step was trained yet. Continue the run with:" in capsys.readouterr().err
    assert train(experiment, workdir)["steps"] == 6


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_signal_after_the_last_step_leaves_the_scores_to_the_next_start(experiment, tmp_path, monkeypatch):
    workdir = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "average", after(signal.SIGTERM, Checkpointer.average))
        with pytest.raises(KeyboardInterrupt):
            train(experiment, workdir)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert load_run(workdir, average_last=1).steps == (6,)
    assert train(experiment, workdir)["steps"] == 6


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_seconds_of_training_are_those_of_all_its_parts(experiment, tmp_path):
    first = tiny_experiment(tmp_path / "corpus", train=dict(num_steps=2))
    assert train(first, str(tmp_path / "run"))["training_seconds"] < 5000
    path = tmp_path / "run" / "checkpoints" / "2" / "data" / "data.json"
    data = json.loads(path.read_text())
    data["processes"][0]["seconds"] = 5000.0
    path.write_text(json.dumps(data))
    assert train(experiment, str(tmp_path / "run"))["training_seconds"] > 5000
