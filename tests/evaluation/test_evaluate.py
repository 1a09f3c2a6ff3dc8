"""Scores against their definitions, and the right references beside the right translations."""

import dataclasses
import json
from typing import ClassVar

import jax
import numpy as np
import pytest

from tests.drawn import drawn_params
from tests.models import reference
from tests.tiny_training import OWN_WORDS, SIZES, tiny_experiment, write_corpus
from transformer_jax.config import ConfigError
from transformer_jax.data import count_cut, evaluation_batches, load_source, training_iterator
from transformer_jax.evaluation import PREDICTORS, score_texts, scoring, translations
from transformer_jax.evaluation.predictions import Outputs
from transformer_jax.inference.generation import TextGenerator
from transformer_jax.objectives import Classification, Seq2Seq, TokenClassification
from transformer_jax.runs.experiment import make_transform
from transformer_jax.runs.folder import load_or_train_tokenizer
from transformer_jax.runs.loading import TrainedRun
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh
from transformer_jax.training import loop
from transformer_jax.types import CUT


def test_scores_of_known_translations():
    references = ["the cat sat on the mat .", "a dog runs in the park ."]
    perfect = score_texts(references, references)
    assert perfect["bleu"] == pytest.approx(100) and perfect["chrf"] == pytest.approx(100)
    assert perfect["exact_match"] == 100
    half = score_texts(["the cat sat on the mat .", "A dog runs in the park ."], references)
    assert half["exact_match"] == 50 and half["bleu_lowercase"] == pytest.approx(100) and half["bleu"] < 100
    assert "tok:13a" in half["bleu_signature"] and "case:lc" in half["bleu_lowercase_signature"]


def test_bleu_by_hand():
    # Matches of 1- to 4-grams: 6/7, 4/6, 3/5, 2/4; both texts have seven tokens, so no brevity penalty.
    score = score_texts(["the cat sat on the red mat"], ["the cat sat on the big mat"])["bleu"]
    assert score == pytest.approx(100 * (6 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25)


def test_chrf_by_hand():
    # "abc" for "abd": 2 of 3 characters and 1 of 2 pairs agree, and no triple; there are no longer ones. chrF
    # averages precision and recall over these orders, and both are alike.
    score = score_texts(["abc"], ["abd"])["chrf"]
    assert score == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


def test_nothing_or_misaligned_texts_are_refused():
    for hypotheses, references in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="cannot be scored"):
            score_texts(hypotheses, references)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("setting")
    write_corpus(folder)
    experiment = tiny_experiment(folder)
    tokenizer = load_or_train_tokenizer(folder, experiment)
    return experiment, tokenizer, drawn_params(experiment.model), folder


def test_loss_is_the_mean_over_all_real_tokens_however_batched(setting):
    experiment, tokenizer, params, _ = setting
    transform = make_transform(experiment, tokenizer, train=True)
    source = load_source(experiment.data.source, "test")
    batches = [batch for _, batch in evaluation_batches(experiment.data, source, transform)]
    metrics = scoring.evaluate_loss(
        scoring.make_evaluate_step(experiment), experiment.objective, params, batches
    )
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    total = count = 0
    for i in range(len(source)):
        (text,) = source.read([i])
        example = transform.encode(text)
        inputs, targets = (example[side].tolist() for side in ("inputs", "targets"))
        logits = reference.logits(exact, experiment.model, inputs, targets)
        log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        total -= log_probs[np.arange(len(targets)), targets].sum()
        count += len(targets)
    assert metrics["nll"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-4)


@pytest.mark.parametrize("objective", [Seq2Seq(), Classification(), TokenClassification()])
@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_no_number_is_one_error(objective, loss):
    sums = {"loss": loss, "nll": 1.0, "correct": 1.0, "tokens": 1.0}
    with pytest.raises(ValueError, match=rf"^the loss of the evaluated split is {loss}: .* are not finite$"):
        scoring.evaluate_loss(lambda *_: sums, objective, {}, [{}, {}])


class Oracle(TextGenerator):
    """Translates by reversing the words, as the corpus does."""

    def __init__(self, *settings):
        pass

    def generate(self, params, texts, first_number=0, decoder_prompt=None):
        return [" ".join(text.split()[::-1]) for text in texts]


def test_translations_meet_their_own_references(setting, tmp_path, monkeypatch, capsys):
    experiment, tokenizer, params, _ = setting
    monkeypatch.setattr(translations, "translator", Oracle)
    run = TrainedRun(experiment, tokenizer, params, (6, 4))
    evaluation = scoring.evaluate_run(run, make_mesh(MeshConfig()))
    scoring.report(evaluation, str(tmp_path))
    figures = evaluation.figures
    assert figures["exact_match"] == 100 and figures["examples"] == 37
    assert figures["checkpoint_steps"] == [6, 4]
    assert json.loads((tmp_path / "evaluation_test.json").read_text()) == figures
    references = [
        example["targets"] for example in load_source(experiment.data.source, "test").read(range(37))
    ]
    assert (tmp_path / "translations_test.txt").read_text().splitlines() == references
    assert "reference  =" in evaluation.samples
    capsys.readouterr()
    with pytest.raises(OSError):
        scoring.report(evaluation, str(tmp_path / "missing"))
    assert "exact_match" in capsys.readouterr().out  # what took minutes is not lost with the file


def test_samples_are_spread_out_and_marked():
    text = scoring.sample_text(Outputs("translations", list("ABXDE"), list("abcde"), list("ABCDE"), {}), 3)
    assert [line.split()[-1] for line in text.splitlines() if "source" in line] == ["a", "c", "e"]
    assert text.count("≠") == 1


class Recording(Seq2Seq):
    """Keeps every text that is asked for, and whether it is for training."""

    asked: ClassVar[list[tuple[bool, str]]] = []

    def pieces(self, tokens, context):
        self.asked.append((context.train, context.tokenizer.decode(tokens["inputs"])))
        return super().pieces(tokens, context)


class FirstBatch(Exception):
    """Ends a training before its first step."""


def first_batch(*arguments, **options):
    """Reads one training batch, with the data already opened, and ends the training."""
    iterator = training_iterator(*arguments, **options)
    next(iterator)
    iterator.close()
    raise FirstBatch


def test_only_what_is_trained_on_is_changed_at_random(setting, tmp_path, monkeypatch):
    experiment, tokenizer, params, _ = setting
    experiment = dataclasses.replace(experiment, objective=Recording())
    mesh = make_mesh(MeshConfig())
    monkeypatch.setattr(Recording, "asked", asked := [])
    monkeypatch.setattr(loop, "training_iterator", first_batch)
    with pytest.raises(FirstBatch):
        loop.train(experiment, str(tmp_path))
    evaluated = [text for is_training, text in asked if not is_training]
    trained = [text for is_training, text in asked if is_training]
    assert len(evaluated) == SIZES["validation"] + SIZES["test"] and len(trained) >= 32  # a window
    for split, own in OWN_WORDS.items():
        assert any(own in text for text in (trained if split == "train" else evaluated))
        assert not any(own in text for text in (evaluated if split == "train" else trained))

    monkeypatch.setattr(Recording, "asked", asked := [])
    monkeypatch.setattr(translations, "translator", Oracle)
    scoring.evaluate_run(TrainedRun(experiment, tokenizer, params, (6,)), mesh)
    assert [is_training for is_training, _ in asked] == [False] * SIZES["test"]


@pytest.mark.parametrize("cut_long", [False, True])
def test_what_is_cut_before_it_is_scored_is_counted(setting, monkeypatch, cut_long):
    experiment, tokenizer, params, _ = setting
    data = dataclasses.replace(experiment.data, max_length=10, buckets=())
    experiment = dataclasses.replace(experiment, data=data, objective=Seq2Seq(cut_long=cut_long))
    monkeypatch.setattr(Seq2Seq, "PREDICTOR", "")  # translating counts for itself
    run = TrainedRun(experiment, tokenizer, params, (6,))
    figures = scoring.evaluate_run(run, make_mesh(MeshConfig())).figures
    texts = [example["inputs"] for example in load_source(data.source, "test").read(range(SIZES["test"]))]
    too_long = sum(len(text) + 1 > 10 for text in texts)  # bytes and eos
    assert 0 < too_long < len(texts)
    assert figures.get("inputs_cut") == (too_long if cut_long else None)


def test_an_example_in_several_pieces_is_cut_once():
    pieces = [{}, {CUT: np.array(3)}, {CUT: np.array(3)}, {}, {CUT: np.array(1)}]
    assert count_cut([0, 1, 1, 2, 5], pieces) == 2


class Reversal(Seq2Seq):
    """An objective from outside the library, with a predictor of its own."""

    PREDICTOR = "reversals"


def reversals(run, mesh, settings, source):
    texts = [example["inputs"][::-1] for example in source.read(range(len(source)))]
    return Outputs("reversals", texts, texts, texts, {"reversed": len(texts)})


def test_an_objective_from_outside_has_its_own_predictor(setting, monkeypatch):
    experiment, tokenizer, params, _ = setting
    run = TrainedRun(dataclasses.replace(experiment, objective=Reversal()), tokenizer, params, (6,))
    with pytest.raises(
        ConfigError, match=r"^Reversal\.PREDICTOR='reversals' is not a key of evaluation\.PREDICT"
    ):
        scoring.evaluate_run(run, make_mesh(MeshConfig()))
    monkeypatch.setitem(PREDICTORS, "reversals", reversals)
    evaluation = scoring.evaluate_run(run, make_mesh(MeshConfig()))
    assert evaluation.figures["reversed"] == SIZES["test"] and "reversal_seconds" in evaluation.figures
    assert evaluation.outputs is not None and len(evaluation.outputs.texts) == SIZES["test"]
