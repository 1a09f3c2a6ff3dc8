"""The command-line programs as real processes: killed, interrupted, misused."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import PIL.Image
import pytest

from tests.parity.test_fixtures import STORED
from tests.programs import run_program
from tests.shared import made_once
from tests.tiny_training import write_corpus
from tests.word_tokenizers import word_tokenizer
from transformer_jax.checkpoints.files import CheckpointError
from transformer_jax.reporting.progress import read_metrics
from transformer_jax.runs.loading import load_model, load_run

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 40

CONFIG = """
import pathlib
from tests.tiny_training import tiny_experiment
def get_config():
    return tiny_experiment(
        pathlib.Path({folder!r}),
        train=dict(num_steps={num_steps}, log_every_steps=2, evaluate_every_steps=10),
        checkpoint=dict(every_steps=3, keep_latest=2),
    ).to_config_dict()
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    write_corpus(folder / "corpus")
    path = folder / "tiny.py"
    path.write_text(CONFIG.format(folder=str(folder / "corpus"), num_steps=NUM_STEPS))
    return path


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config, command):
    """The folder of a run of the program that nothing interrupted."""

    def run(folder):
        status, out, err = finish(command("train", f"--config={config}", f"--workdir={folder}/run"))
        assert status == 0, err
        assert "exact_match" in out

    return made_once(tmp_path_factory, "trained_by_command", run) / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills", [(1, 8, 9), pytest.param((1, 7, 1, 11, 6), marks=pytest.mark.everything)], ids=["thrice", "more"]
)
def test_a_run_killed_again_and_again_ends_with_the_same_bits(config, command, trained, tmp_path, kills):
    killed = tmp_path / "killed"
    last = 0
    for steps in kills:
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
    whole, resumed = (load_run(str(workdir), average_last=1) for workdir in (trained, killed))
    assert whole.steps == resumed.steps == (NUM_STEPS,)
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
    losses = [
        [(r["step"], r["train/loss"]) for r in read_metrics(workdir) if "train/loss" in r]
        for workdir in (trained, killed)
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
    process = command("train", f"--workdir={workdir}", "--stopped_status=75")
    wait_for_step(workdir, stopped_at + 3, process)
    process.send_signal(number)
    assert finish(process)[0] == 75


@pytest.mark.slow
def test_evaluate_and_translate(trained, command, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")  # evaluation writes its figures there
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
def test_lines_before_a_bad_one_are_translated(trained, command):
    for bad, message in ((b"\xff\n", "line 3"), (b"x" * 60 + b"\n", "text 3 has 61 tokens")):
        process = command("translate", f"--workdir={trained}", stdin=subprocess.PIPE)
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


def test_mistakes_on_the_command_line_get_one_clear_line(config, tmp_path):
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
        (("train", configured, run, "--config.data.max_length=64"), "at most 48 tokens"),
        (("translate", run), "holds no run"),
        (("evaluate", run), "holds no run"),
    ]
    for arguments, text in cases:
        status, out, err = run_program(*arguments)
        assert status != 0, arguments
        assert text in err + out, (arguments, err, out)
        assert "Traceback" not in err, (arguments, err)
        assert sum(line.startswith("error: ") for line in err.splitlines()) == 1, (arguments, err)
    assert not (workdir / "checkpoints").exists()


@pytest.mark.slow
def test_a_mistake_ends_a_process_as_it_ends_a_program_in_this_one(config, command, tmp_path):
    """Of a program with a parser of its own and of one with absl's."""
    for arguments in (
        ("train", f"--config={config}", f"--workdir={tmp_path}", "--config.train.num_stps=3"),
        ("generate", f"--workdir={tmp_path}/missing"),
    ):
        assert finish(command(*arguments, stdin=subprocess.DEVNULL)) == run_program(*arguments)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models in the format of transformers, with tokenizers."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("gpt2", "bart", "bert_sequence"):
        shutil.copytree(STORED / name, folder / name)
        word_tokenizer(name, folder / name)
    return folder


@pytest.mark.slow
def test_generate_prints_what_comes_after_a_prompt_or_each_line(command, folders):
    model = load_model(str(folders / "gpt2"))
    arguments = ("generate", f"--model={folders}/gpt2", "--max_new_tokens=9")
    status, out, err = finish(command(*arguments, "--prompt=w5 w6"))
    assert status == 0, err
    assert out == model.generate("w5 w6", max_new_tokens=9) + "\n" and len(out.split()) > 4
    status, out, err = finish(command(*arguments, "--prompt=w5 w6", "--beam_size=3"))
    assert out == model.generate("w5 w6", max_new_tokens=9, num_beams=3) + "\n", err
    options = ("--temperature=1.5", "--top_k=9", "--seed=4", "--batch_size=2")
    process = command(*arguments, *options, stdin=subprocess.PIPE)
    status, out, err = finish(process, "w5 w6\n\nw9\n" + "w7 " * 30 + "\nw8\n")
    expected = model.generate(["w5 w6", "", "w9"], max_new_tokens=9, temperature=1.5, top_k=9, seed=4)
    assert out.splitlines() == expected
    assert status == 1 and "error: line 4 of standard input: text 4 has 30 tokens" in err, err


@pytest.mark.slow
def test_generate_from_a_run(trained, command):
    arguments = (f"--workdir={trained}", "--from_checkpoint=best")
    status, out, err = finish(command("generate", *arguments, "--prompt=red blue", "--max_new_tokens=13"))
    assert status == 0, err
    best = load_run(str(trained), "best").steps[0]
    assert f"parameters of step {best}\n" in err
    # The run's own setting is greedy search with 4 tokens more than the 9 of the source.
    process = command("translate", *arguments, stdin=subprocess.PIPE)
    assert finish(process, "red blue\n")[1] == out


@pytest.mark.slow
def test_classify_prints_labels_and_probabilities(command, folders):
    arguments = ("classify", f"--model={folders}/bert_sequence")
    model = load_model(str(folders / "bert_sequence"))
    process = command(*arguments, "--top=2", "--batch_size=2", stdin=subprocess.PIPE)
    status, out, err = finish(process, "w5 w6\nw9\n\n")
    assert status == 0, err
    expected = [
        "\t".join(f"{name}\t{value:.4f}" for name, value in row[:2])
        for row in model.classify(["w5 w6", "w9", ""])
    ]
    assert out.splitlines() == expected
    process = command(*arguments, "--pairs", stdin=subprocess.PIPE)
    status, out, err = finish(process, "w5\tw6\nw9\n")
    ((name, value), *_) = model.classify(("w5", "w6"))
    assert out == f"{name}\t{value:.4f}\n"
    assert status == 1
    assert "line 2 of standard input: with --pairs a line is two texts separated by a tab" in err


@pytest.mark.slow
def test_classify_takes_paths_of_images(command, tmp_path):
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)).save(path)
    process = command("classify", f"--model={STORED}/vit", stdin=subprocess.PIPE)
    status, out, err = finish(process, f"{path}\n{tmp_path}/missing.png\n")
    ((name, value), *_) = load_model(str(STORED / "vit")).classify(path)
    assert out == f"{name}\t{value:.4f}\n", err
    assert status == 1 and f"error: line 2 of standard input: '{tmp_path}/missing.png' cannot be read" in err


@pytest.mark.slow
def test_embed_prints_or_stores_vectors(command, folders, tmp_path):
    arguments = ("embed", f"--model={folders}/bert_sequence")
    expected = load_model(str(folders / "bert_sequence")).embed(["w5 w6", "w9"])
    status, out, err = finish(command(*arguments, stdin=subprocess.PIPE), "w5 w6\nw9\n")
    assert status == 0, err
    printed = np.array([json.loads(line) for line in out.splitlines()])
    np.testing.assert_allclose(printed, expected, atol=1e-6)
    stored = tmp_path / "vectors.npy"
    process = command(*arguments, f"--output={stored}", "--nonormalize", stdin=subprocess.PIPE)
    status, out, err = finish(process, "w5 w6\nw9\n")
    assert (status, out) == (0, "") and "2 vectors of 16 numbers" in err, err
    found = np.load(stored)
    assert found.dtype == np.float32 and found.shape == (2, 16)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    assert (abs(lengths - 1) > 0.01).all()
    np.testing.assert_allclose(found / lengths, expected, atol=1e-6)


def test_mistakes_in_using_models_get_one_clear_line(folders, tmp_path):
    gpt2, bart, bert = (f"--model={folders}/{name}" for name in ("gpt2", "bart", "bert_sequence"))
    cases = [
        (("generate",), "give one of --model"),
        (("generate", gpt2, f"--workdir={tmp_path}"), "give one of --model"),
        (("generate", f"--workdir={tmp_path}/missing"), "holds no run"),
        (("generate", f"--model={tmp_path}/missing"), "is not a folder, and could not be fetched"),
        (("generate", gpt2, "--average_last=3"), "can only be used with --workdir"),
        (("generate", gpt2, "--prompt=" + "w7 " * 30), "text 1 has 30 tokens, the model takes 24"),
        (("generate", gpt2, "--top_p=0.5"), "set temperature above 0"),
        (("generate", bert), "it has no decoder"),
        (("generate", f"--model={STORED}/gpt2"), "has no tokenizer"),
        (("classify", bart), "telling classes needs the head 'classes'"),
        (
            ("classify", f"--model={STORED}/vit", "--pairs"),
            "--pairs is for texts, but this is a model of images",
        ),
        (("embed", bart), "an encoder with a decoder: vectors of texts need"),
        (("embed", bert, "--output=vectors.txt"), "must end in .npy"),
        (
            ("embed", f"--model={tmp_path}/missing", f"--output={tmp_path}/nowhere/v.npy"),
            f"cannot be written: the folder {tmp_path}/nowhere does not exist; create it first",
        ),
    ]
    for arguments, text in cases:
        status, out, err = run_program(*arguments)
        assert status == 1 and out == "", (arguments, err, out)
        assert text in err and "Traceback" not in err, (arguments, err)
        assert sum(line.startswith("error: ") for line in err.splitlines()) == 1, (arguments, err)


DECODING = ["beam_size", "temperature"]
OWN_FLAGS = {
    "train": ["config", "shrink"],
    "evaluate": ["from_checkpoint", "split", *DECODING],
    "translate": ["from_checkpoint", *DECODING],
    "generate": ["from_checkpoint", "model", "prompt", "early_stopping", *DECODING],
    "classify": ["from_checkpoint", "model", "top", "pairs"],
    "embed": ["from_checkpoint", "model", "output", "normalize"],
    "export": ["from_checkpoint", "average_last"],
}


@pytest.mark.slow
@pytest.mark.parametrize("module", OWN_FLAGS)
def test_help_explains_itself(command, module):
    _, out, _ = finish(command(module, "--help"))
    assert f"python -m transformer_jax.{module}" in out
    for name in ["workdir", *OWN_FLAGS[module]]:
        assert re.search(rf"^  --(\[no\])?{name}: (<.+>: )?\w", out, re.MULTILINE), name
