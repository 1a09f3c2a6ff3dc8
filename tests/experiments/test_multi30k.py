"""The Multi30k experiment on the real corpus, in ``$TRANSFORMER_JAX_DATA`` (docs/data.md says from where)."""

import dataclasses
import math

import pytest

from tests.experiments.test_experiments import experiment_of
from transformer_jax.data import load_source, train_tokenizer, training_texts
from transformer_jax.reporting.progress import read_metrics
from transformer_jax.training.loop import train

pytestmark = pytest.mark.slow
SIZES = {"train": 29_000, "validation": 1_014, "test": 1_000}


@pytest.fixture(scope="module")
def experiment():
    return experiment_of("multi30k_en_de.py", None)


@pytest.mark.parametrize("split", SIZES)
def test_every_line_is_there_and_comes_back_from_the_tokenizer(experiment, split):
    source = load_source(experiment.data.source, split)
    assert len(source) == SIZES[split]
    section, train_source = experiment.data.tokenizer, load_source(experiment.data.source, "train")
    tokenizer = train_tokenizer(section, training_texts(section, train_source))
    for example in source.read(range(0, len(source), 10)):
        for text in example.values():
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.usefixtures("one_device")
def test_training_learns_and_leaves_nothing_out(experiment, tmp_path):
    experiment = dataclasses.replace(
        experiment,
        train=dataclasses.replace(experiment.train, num_steps=40, log_every_steps=5, evaluate_every_steps=40),
        optimizer=dataclasses.replace(experiment.optimizer, warmup_steps=20),
        checkpoint=dataclasses.replace(experiment.checkpoint, every_steps=40),
        # So early, nothing says where an output ends.
        evaluate=dataclasses.replace(experiment.evaluate, beam_size=1, extra_length=1, average_last=1),
        mesh=dataclasses.replace(experiment.mesh, data=1),
    )
    summary = train(experiment, str(tmp_path))
    losses = [record["train/nll"] for record in read_metrics(tmp_path) if "train/nll" in record]
    assert losses[0] > 0.9 * math.log(experiment.model.vocab_size)  # it starts from next to nothing
    assert losses[-1] < losses[0] - 2
    assert summary["pairs_too_long"] == summary["pairs_blank"] == 0
    assert summary["examples"] == 1_000 and summary["chrf"] > 5
