"""The model of a run as a folder of transformers: with the same logits, read here and there."""

import dataclasses
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax as tj
from tests.experiments.test_experiments import CASES, experiment_of
from tests.shared import made_once
from tests.tiny_training import tiny_experiment, write_corpus, write_run
from tests.training.test_initialization import BPE, classifier, tiny_bert
from transformer_jax import export, families
from transformer_jax.config import ConfigError
from transformer_jax.data import TokenizerConfig
from transformer_jax.families import FAMILIES, family_of
from transformer_jax.objectives import CausalLM
from transformer_jax.pretrained.config_json import content_of
from transformer_jax.runs.experiment import Experiment

# What is compared is compiled in the same way.
pytestmark = pytest.mark.usefixtures("quickly_compiled")

ENDS = dict(pad_id=0, eos_id=2, decoder_start_id=1)
SIZES = dict(d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=32, max_length=48)
TOKENS = jnp.array([[5, 6, 7, 9, 11, 0, 0], [12, 13, 14, 15, 16, 17, 18]])


def tiny_gpt2(corpus) -> Experiment:
    model = families.gpt2.config(
        "small", vocab_size=260, num_decoder_layers=2, dropout=0.0, **SIZES, **ENDS
    )  # fmt: skip
    experiment = tiny_bert(corpus)
    data = dataclasses.replace(experiment.data, tokenizer=TokenizerConfig(kind="byte"))
    return dataclasses.replace(experiment, model=model, objective=CausalLM(), data=data)


def tiny_t5(corpus) -> Experiment:
    layers = dict(num_encoder_layers=1, num_decoder_layers=1)
    model = families.t5.config("1.1-small", vocab_size=260, scan_layers=True, **SIZES, **ENDS, **layers)
    return dataclasses.replace(tiny_experiment(corpus), model=model)


def tiny_classifier(corpus) -> Experiment:
    experiment = classifier(corpus, tiny_bert(corpus).model)
    data = dataclasses.replace(experiment.data, tokenizer=BPE, max_length=40)
    return dataclasses.replace(experiment, data=data)


EXPERIMENTS = {
    "bert": tiny_classifier,
    "gpt2": tiny_gpt2,
    "t5": tiny_t5,
}


def experiment_in(name, folder):
    """A family's experiment, whose corpus is written into the folder."""
    write_corpus(folder / "corpus")
    if name == "bert":
        for path in (folder / "corpus").glob("*.target"):
            count = len(path.read_text().splitlines())
            path.write_text("".join(f"{'abc'[i % 3]}\n" for i in range(count)))
    return EXPERIMENTS[name](folder / "corpus")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns a function from a family's name to the folder of its run, which is written once."""

    def run(name):
        def written(folder):
            write_run(experiment_in(name, folder), folder / "run", (2, 4, 6))

        return made_once(tmp_path_factory, f"exported_{name}", written) / "run"

    return run


def logits_of(model):
    arguments = dict(inputs=TOKENS)
    if not model.config.is_encoder_only and not model.config.is_decoder_only:
        arguments["targets"] = TOKENS
    return np.asarray(jax.jit(model.model.apply)({"params": model.params}, **arguments))


@pytest.mark.parametrize(
    "name",
    ["bert", pytest.param("gpt2", marks=pytest.mark.everything), pytest.param("t5", marks=pytest.mark.slow)],
)
def test_a_written_run_gives_the_same_logits_to_the_bit(name, runs, tmp_path):
    ours = tj.from_run(runs(name))
    tj.save_pretrained(tmp_path / "folder", ours)
    found = tj.from_pretrained(tmp_path / "folder", scan_layers=ours.config.scan_layers)
    assert found.family is ours.family is FAMILIES[name]
    logits = logits_of(ours)
    np.testing.assert_array_equal(logits_of(found), logits)
    assert np.abs(logits).max() > 0.01
    assert found.tokenizer is not None
    assert found.tokenizer.vocab_size == ours.tokenizer.vocab_size
    for text in ("red blue", "plum, né"):
        np.testing.assert_array_equal(found.tokenizer.encode(text), ours.tokenizer.encode(text))
    assert found.labels == ours.labels == (("a", "b", "c") if name == "bert" else ())
    if name == "bert":
        assert found.classify("red blue") == ours.classify("red blue")


def run_export(monkeypatch, workdir, folder, from_checkpoint="latest", average_last=None):
    chosen = types.SimpleNamespace(
        workdir=str(workdir), from_checkpoint=from_checkpoint, average_last=average_last
    )
    monkeypatch.setattr(export, "FLAGS", chosen)
    monkeypatch.setattr(export, "prepare_process", lambda: None)
    export.main(["export", str(folder)])


def test_which_checkpoint_is_written(runs, tmp_path, monkeypatch, capsys):
    workdir, written = runs("gpt2"), {}
    for choice in (dict(from_checkpoint="2"), dict(average_last=1), dict(average_last=3)):
        run_export(monkeypatch, workdir, tmp_path / str(choice), **choice)
        written[str(choice)] = tj.from_pretrained(tmp_path / str(choice)).params
        assert "a gpt2 checkpoint that transformers can load" in capsys.readouterr().err
        wanted = tj.from_run(workdir, **choice).params
        jax.tree.map(np.testing.assert_array_equal, written[str(choice)], wanted)
    kernels = [params["embedding"]["embedding"] for params in written.values()]
    assert not any(np.array_equal(kernels[i], kernels[i - 1]) for i in range(3))


def test_a_run_is_not_overwritten_by_its_own_model(runs, tmp_path, monkeypatch):
    workdir = runs("gpt2")
    before = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    with pytest.raises(SystemExit, match="is not a checkpoint but, for example, a run, and its config"):
        run_export(monkeypatch, workdir, workdir)
    assert {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()} == before
    tj.save_pretrained(tmp_path, tj.from_run(workdir))
    tj.save_pretrained(tmp_path, tj.from_run(workdir))  # a checkpoint is replaced by another


def test_a_run_of_a_model_that_transformers_does_not_have(corpus, tmp_path, monkeypatch):
    write_run(tiny_experiment(corpus), tmp_path / "run", (1,))
    with pytest.raises(SystemExit, match="and differs from marian, the nearest, in positions, activation"):
        run_export(monkeypatch, tmp_path / "run", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_model_of_every_experiment_can_be_written_but_for_the_papers_own(name, variant):
    model = experiment_of(name, variant).model
    # The models of the paper: those with norms before the sub-layers are nearest to T5, others to MarianMT.
    of_the_paper = {"wmt14_en_de.py": "marian, the nearest, in positions, activation, biases, logits_bias$"}
    for before in ("multi30k_en_de.py", "number_words.py", "ted_pt_en.py"):
        of_the_paper[before] = "t5, the nearest, in positions, norm, biases, scale_attention$"
    if nearest := of_the_paper.get(name):
        with pytest.raises(ConfigError, match=f"no model like this one: .* differs from {nearest}"):
            content_of(family_of(model), model, ())
    else:
        content = content_of(family_of(model), model, ())
        assert content["model_type"] == name.split("_")[0].replace("qa", "bert")


@pytest.mark.slow
def test_the_program(runs, tmp_path, single_device_environment):
    command = [sys.executable, "-m", "transformer_jax.export", f"--workdir={runs('bert')}"]
    environment = os.environ | single_device_environment
    found = subprocess.run([*command, str(tmp_path / "new")], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "parameters of step 6" in found.stderr and "Warning" not in found.stderr
    assert tj.from_pretrained(tmp_path / "new").labels == ("a", "b", "c")
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 2 and "--workdir=RUN FOLDER" in found.stderr + found.stdout
