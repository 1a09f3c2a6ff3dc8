"""The command-line programs as real processes: killed, interrupted, misused."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.training import write_corpus
from transformer_jax.checkpoint import CheckpointError
from transformer_jax.progress import read_metrics
from transformer_jax.translate import load_run

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 40

CONFIG = """
import pathlib
from tests.training import tiny_experiment
def get_config():
    return tiny_experiment(
        pathlib.Path({folder!r}),
        train=dict(num_steps={num_steps}, log_every_steps=2, evaluate_every_steps=10),
        checkpoint=dict(every_steps=3, keep_latest=2),
    ).to_config_dict()
"""


@pytest.fixture
def config(tmp_path):
    write_corpus(tmp_path / "corpus")
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(folder=str(tmp_path / "corpus"), num_steps=NUM_STEPS))
    return path


@pytest.fixture
def command(single_device_environment):
    environment = single_device_environment | {"PYTHONPATH": str(ROOT)}

    def start(module, *arguments, largest_file="unlimited", **options):
        program = [sys.executable, "-m", f"transformer_jax.{module}", *map(str, arguments)]
        return subprocess.Popen(
            ["bash", "-c", f'ulimit -f {largest_file}; exec "$@"', "bash", *program],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options,
        )  # fmt: skip

    return start


def finish(process, text=None):
    out, err = process.communicate(text, timeout=300)
    return process.returncode, out, err


def wait_for_step(workdir, step, process):
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (workdir / "metrics.jsonl").exists():
            steps = [r["step"] for r in read_metrics(workdir) if "train/loss" in r]
            if steps and steps[-1] >= step:
                return
        time.sleep(0.005)
    raise AssertionError(f"never came to step {step}: {finish(process)}")


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(config, command, tmp_path):
    status, _, err = finish(command("train", f"--config={config}", f"--workdir={tmp_path}/whole"))
    assert status == 0, err
    killed = tmp_path / "killed"
    last = 0
    for steps in (1, 7, 1, 11, 6):
        checkpointed = any(killed.glob("checkpoints/*/commit_success.txt"))
        process = command("train", f"--config={config}", f"--workdir={killed}")
        wait_for_step(killed, last + steps, process)  # beyond what the process before has written
        process.send_signal(signal.SIGKILL)
        status, _, err = finish(process)
        assert status == -signal.SIGKILL
        assert ("continuing at step" in err) == checkpointed, err
        last = max(r["step"] for r in read_metrics(killed))
    assert last < NUM_STEPS
    status, _, err = finish(command("train", f"--workdir={killed}"))
    assert status == 0, err
    whole, resumed = (load_run(str(tmp_path / name), average_last=1) for name in ("whole", "killed"))
    assert whole.steps == resumed.steps == (NUM_STEPS,)
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
    losses = [
        [(r["step"], r["train/loss"]) for r in read_metrics(tmp_path / name) if "train/loss" in r]
        for name in ("whole", "killed")
    ]
    # Also of a line that is the mean over a step before the kill and one after it.
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(2, NUM_STEPS + 1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(config, command, tmp_path, number):
    workdir = tmp_path / "run"
    process = command(
        "train", f"--config={config}", f"--workdir={workdir}", "--config.train.num_steps=100000"
    )
    wait_for_step(workdir, 5, process)
    process.send_signal(number)
    status, _, err = finish(process)
    assert status == 0, err
    continuing = f"{sys.executable} -m transformer_jax.train --workdir={workdir}"
    assert continuing in err
    (stopped_at,) = load_run(str(workdir), average_last=1).steps
    assert max(r["step"] for r in read_metrics(workdir)) == stopped_at - stopped_at % 2  # every line is there
    assert f"{number.name}: everything up to step {stopped_at} is saved" in err
    process = command("train", f"--workdir={workdir}")
    wait_for_step(workdir, stopped_at + 3, process)
    process.send_signal(number)
    assert finish(process)[0] == 0


@pytest.mark.slow
def test_train_evaluate_translate(config, command, tmp_path):
    workdir = tmp_path / "run"
    status, out, err = finish(command("train", f"--config={config}", f"--workdir={workdir}"))
    assert status == 0, err
    assert "exact_match" in out
    status, out, err = finish(
        command(
            "evaluate", f"--workdir={workdir}", "--split=validation", "--beam_size=3", "--length_penalty=1.5"
        )
    )
    assert status == 0, err
    assert "bleu_signature" in out and "validation" in out
    figures = json.loads((workdir / "evaluation_validation.json").read_text())
    assert (figures["beam_size"], figures["length_penalty"]) == (3, 1.5)
    best = load_run(str(workdir), "best").steps[0]
    process = command("translate", f"--workdir={workdir}", "--from_checkpoint=best", stdin=subprocess.PIPE)
    status, out, err = finish(process, "red blue\n\ngreen\n")
    assert status == 0, err
    lines = out.split("\n")
    assert len(lines) == 4 and lines[1] == "" and lines[3] == ""
    assert f"parameters of step {best}\n" in err


@pytest.mark.slow
def test_lines_before_a_bad_one_are_translated(config, command, tmp_path):
    workdir = tmp_path / "run"
    status, _, err = finish(command("train", f"--config={config}", f"--workdir={workdir}"))
    assert status == 0, err
    for bad, message in ((b"\xff\n", "line 3"), (b"x" * 60 + b"\n", "text 3 has 61 tokens")):
        process = command("translate", f"--workdir={workdir}", stdin=subprocess.PIPE)
        process.stdin.buffer.write(b"red\nblue\n" + bad + b"green\n")
        status, out, err = finish(process)
        assert status != 0 and message in err and "Traceback" not in err, err
        assert len(out.splitlines()) == 2


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_later(config, command, tmp_path):
    workdir = tmp_path / "run"
    arguments = ("train", f"--config={config}", f"--workdir={workdir}")
    # KiB, beyond which writing fails: tokenizer.json has 6, the largest file of a checkpoint 80.
    for largest_file, message in ((3, "tokenizer.json"), (20, "the disk is full")):
        status, _, err = finish(command(*arguments, largest_file=largest_file))
        assert status == 1 and message in err and err.count("error: ") == 1, err
        assert "Traceback" not in err, err
    assert read_metrics(workdir)  # it had trained, and has no checkpoint
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_run(str(workdir))
    status, _, err = finish(command(*arguments))
    assert status == 0, err
    assert load_run(str(workdir), average_last=1).steps == (NUM_STEPS,)


@pytest.mark.slow
def test_mistakes_on_the_command_line_get_one_clear_line(config, command, tmp_path):
    workdir = tmp_path / "run"
    run, configured = f"--workdir={workdir}", f"--config={config}"
    cases = [
        (("train", configured), "--workdir"),
        (("train", run), "holds no run"),
        (("train", f"{configured}.missing", run), "missing"),
        (("train", f"{configured}.missing", run, "--config.train.num_steps=3"), "missing"),
        (("train", "--config=experiments/wmt14_en_de.py:huge", run), "no variant 'huge'"),
        (("train", "--config=experiments/multi30k_en_de.py:big", run), "get_config"),
        (("train", configured, run, "--config.train.num_stps=3"), "mean 'num_steps'"),
        (
            ("train", configured, run, "--config.train.num_steps=many"),
            "num_steps=many: invalid literal for int()",
        ),
        (("train", configured, run, "--config.data.max_length=64"), "model.max_length=48"),
        (("translate", run), "holds no run"),
        (("evaluate", run), "holds no run"),
    ]
    processes = [
        (command(*arguments, stdin=subprocess.DEVNULL), arguments, text) for arguments, text in cases
    ]
    for process, arguments, text in processes:
        status, out, err = finish(process)
        assert status != 0, arguments
        assert text in err + out, (arguments, err, out)
        assert "Traceback" not in err, (arguments, err)
        assert sum(line.startswith("error: ") for line in err.splitlines()) == 1, (arguments, err)
    assert not (workdir / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train", "evaluate", "translate"])
def test_help_explains_itself(command, module):
    _, out, _ = finish(command(module, "--help"))
    assert f"python -m transformer_jax.{module}" in out
    own = ["config", "shrink"] if module == "train" else ["from_checkpoint", "beam_size", "temperature"]
    for name in ["workdir", *own]:
        assert re.search(rf"^  --(\[no\])?{name}: \w", out, re.MULTILINE), name
