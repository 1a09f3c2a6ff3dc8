"""Answers and reconstructions: beside the right references, from the windows that score best."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_training import tiny_experiment
from transformer_jax.data import MemorySource, SourceConfig, TokenizerConfig, train_tokenizer
from transformer_jax.evaluation import predictions
from transformer_jax.families import bert
from transformer_jax.objectives import Denoising, QuestionAnswering
from transformer_jax.runs.loading import TrainedRun
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh

SPECIAL = TokenizerConfig(kind="byte", special_tokens=("<cls>", "<sep>", "<mask>"))


class RecordingDenoising(Denoising):
    """Remembers whether it was asked for training pieces."""

    asked: ClassVar[set[bool]] = set()

    def pieces(self, tokens, context):
        self.asked.add(context.train)
        return super().pieces(tokens, context)


@pytest.fixture
def tokenizer():
    return train_tokenizer(SPECIAL, [])


def run_of(corpus, tokenizer, objective, **model):
    experiment = tiny_experiment(corpus, data=dict(max_length=24, tokenizer=SPECIAL))
    sizes = dict(d_model=8, num_heads=1, key_size=8, value_size=8, d_feedforward=8, num_encoder_layers=1)
    config = bert.config("tiny", **sizes, vocab_size=300, max_length=48, head="spans") if model else None
    features = tuple((name, name) for name in objective.FEATURES)
    source = SourceConfig(name="made/here", features=features)  # what is predicted comes as an argument
    experiment = dataclasses.replace(
        experiment,
        model=config or experiment.model,
        objective=objective,
        data=dataclasses.replace(experiment.data, source=source),
    )
    return TrainedRun(experiment, tokenizer, {}, (1,))


def test_answers_are_of_the_window_that_scores_best_and_never_of_the_question(corpus, tokenizer, monkeypatch):
    def logits_of_letters(apply, params, arguments, rngs, *, train):
        """Highest for z, then y, then x, as first and as last token."""
        tokens = arguments["inputs"]
        found = jnp.zeros(tokens.shape)
        for score, letter in ((10, "x"), (20, "y"), (90, "z")):
            found = jnp.where(tokens == int(tokenizer.encode(letter)[0]), score, found)
        return jnp.stack([found, found], axis=-1)

    monkeypatch.setattr(predictions, "run_model", logits_of_letters)
    filler = "." * 30
    examples = {
        "inputs": ["z?", "zzz?", "z?", "z?"],
        # In the first window, in a later one, in both kinds of window, and in the only one there is.
        "context": [f"x{filler}", f"{filler}y", f"x{filler}y", "..x"],
        "answers": [["x"], ["."], ["x", "y"], ["x"]],
        "answer_starts": [[0], [0], [0, 31], [2]],
    }
    run = run_of(corpus, tokenizer, QuestionAnswering(stride=5), head="spans")
    settings = dataclasses.replace(run.experiment.evaluate, batch_size=2)
    found = predictions.answers(run, make_mesh(MeshConfig()), settings, MemorySource(examples))
    assert found.texts == ["x", "y", "y", "x"]
    assert found.references == ["x", ".", "x", "x"] and found.name == "answers"
    assert found.sources[1] == f"zzz?  |  {filler}y"
    assert found.figures == {"exact_match": 75.0, "f1": 75.0}


def test_reconstructions_stand_beside_their_texts(corpus, monkeypatch):
    class Writer:
        """Writes the same text whatever it is given."""

        def __init__(self, config, settings, vocab_size, *, output_length, batch_size, mesh):
            assert vocab_size == tokenizer.vocab_size and output_length(10) > 10

        def generate(self, params, sequences):
            return [np.append(tokenizer.encode("a cat sits"), np.int32(2)) for _ in sequences]

    words = TokenizerConfig(kind="bpe", vocab_size=280, special_tokens=SPECIAL.special_tokens)
    tokenizer = train_tokenizer(words, ["a cat sits", "a dog runs", "no one sits"])
    monkeypatch.setattr(predictions, "Generator", Writer)
    run = run_of(corpus, tokenizer, RecordingDenoising(mask_rate=0.5))
    source = MemorySource({"inputs": ["a cat sits", "a dog runs", "a cat sits", "no one sits"]})
    found = predictions.reconstructions(run, make_mesh(MeshConfig()), run.experiment.evaluate, source)
    assert found.texts == ["a cat sits"] * 4 and found.name == "reconstructions"
    assert found.references == ["a cat sits", "a dog runs", "a cat sits", "no one sits"]
    assert found.figures == {"exact_match": 50.0}
    for corrupted, reference in zip(found.sources, found.references, strict=True):
        kept = [word for part in corrupted.split(" _ ") for word in part.split()]
        assert " _ " in corrupted and 0 < len(kept) < 3 and set(kept) < set(reference.split())
    assert RecordingDenoising.asked == {False}  # the corruption of an evaluation, the same every time
    again = predictions.reconstructions(run, make_mesh(MeshConfig()), run.experiment.evaluate, source)
    assert again.sources == found.sources
