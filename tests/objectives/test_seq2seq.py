"""Losses against their definitions, in NumPy and float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.toy import ToyTokenizer, draw
from transformer_jax.objectives import Seq2Seq
from transformer_jax.objectives.losses import smoothed_cross_entropy
from transformer_jax.types import BATCH_KEYS


def definition(logits, target, smoothing):
    """``-sum(q log p)`` of one token, term by term."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    size = len(logits)
    q = np.full(size, smoothing / size)
    q[target] += 1 - smoothing
    return -(q * log_p).sum(), -log_p[target]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_equals_its_definition(rng, smoothing):
    logits = rng.normal(size=(2, 3, 11)).astype(np.float32) * 5
    targets = rng.integers(0, 11, (2, 3))
    targets[0, 0] = logits[0, 0].argmax()
    losses = smoothed_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), smoothing)
    for place in np.ndindex(2, 3):
        loss, nll = definition(logits[place], targets[place], smoothing)
        np.testing.assert_allclose([losses.loss[place], losses.nll[place]], [loss, nll], rtol=1e-5)
        assert losses.is_correct[place] == (logits[place].argmax() == targets[place])


def test_gradient_is_softmax_minus_the_smoothed_target(rng):
    logits = rng.normal(size=(1, 1, 7)).astype(np.float32)
    gradient = jax.grad(lambda x: smoothed_cross_entropy(x, jnp.array([[2]]), 0.1).loss.sum())(logits)[0, 0]
    target = np.full(7, 0.1 / 7)
    target[2] += 0.9
    np.testing.assert_allclose(gradient, np.exp(logits[0, 0]) / np.exp(logits).sum() - target, atol=1e-6)


def test_huge_logits_stay_finite():
    losses = smoothed_cross_entropy(jnp.array([[[1e4, -1e4, 0.0]]]), jnp.array([[1]]), 0.0)
    np.testing.assert_allclose(losses.nll, 2e4)


def test_only_real_tokens_count(rng):
    objective = Seq2Seq(label_smoothing=0.1)
    logits = rng.normal(size=(2, 4, 9)).astype(np.float32)
    batch = {key: np.zeros((2, 4), np.int32) for key in BATCH_KEYS}
    batch["targets"] = rng.integers(0, 9, (2, 4)).astype(np.int32)
    batch["targets_segments"] = np.array([[1, 1, 2, 0], [0, 0, 0, 0]], np.int32)

    def apply(*_, per_token, **__):
        parts = [per_token(jnp.asarray(logits[:, part]), part) for part in (slice(0, 1), slice(1, 4))]
        return jax.tree.map(lambda *both: jnp.concatenate(both, 1), *parts)

    loss, sums = objective.loss(apply, {}, batch, {}, train=False)
    pairs = [definition(logits[0, i], batch["targets"][0, i], 0.1) for i in range(3)]
    np.testing.assert_allclose(loss, sum(pair[0] for pair in pairs), rtol=1e-5)
    assert float(sums["tokens"]) == 3
    metrics = objective.metrics({name: float(value) for name, value in sums.items()})
    nll = np.mean([pair[1] for pair in pairs])
    np.testing.assert_allclose([metrics["nll"], metrics["perplexity"]], [nll, np.exp(nll)], rtol=1e-5)


def test_random_streams_reach_the_model_by_name_and_train_alone_turns_dropout_on():
    seen = []

    def apply(variables, per_token, **arguments):
        seen.append((arguments["train"], arguments["rngs"]))
        return per_token(jnp.zeros((1, 1, 5)), slice(0, 1))

    batch = {key: np.ones((1, 1), np.int32) for key in BATCH_KEYS}
    keys = {"dropout": jax.random.key(0), "hashes": jax.random.key(1)}
    Seq2Seq().loss(apply, {}, batch, {"hashes": keys["hashes"]}, train=False)
    Seq2Seq().loss(apply, {}, batch, keys, train=True)
    assert seen == [(False, {"hashes": keys["hashes"]}), (True, keys)]


class WordLengths:
    """A tokenizer of which the token of a word is its length and ten."""

    vocab_size, sentinels = 30, ()

    @property
    def targets(self):
        return self

    def encode(self, text):
        return np.array([len(word) + 10 for word in text.split()], np.int32)

    def encode_whole(self, text):
        return np.array([8, *self.encode(text), 7], np.int32)

    def encode_with_places(self, text):
        raise NotImplementedError

    def template(self, num_texts):
        raise NotImplementedError

    def id_of(self, role):
        raise NotImplementedError


def test_both_sides_are_whole_texts():
    example = Seq2Seq().encode({"inputs": "a bc", "targets": "def"}, WordLengths())
    assert [example[side].tolist() for side in ("inputs", "targets")] == [[8, 11, 12, 7], [8, 13, 7]]


def test_bad_smoothing_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing=1.0 must be in \[0, 1\)"):
        Seq2Seq(label_smoothing=1.0)


def test_a_loss_that_is_no_number_has_no_perplexity():
    sums = {"loss": 1.0, "correct": 0.0, "tokens": 1.0}
    perplexity = {nll: Seq2Seq().metrics(sums | {"nll": nll})["perplexity"] for nll in (math.nan, 800.0, 0.0)}
    assert [str(value) for value in perplexity.values()] == ["nan", "inf", "1.0"]


def test_long_inputs_are_cut_only_where_they_are_to_be():
    tokenizer = ToyTokenizer()
    example = {"inputs": "a b c d e f", "targets": "g h i j k l m"}
    plain, cutting = Seq2Seq(), Seq2Seq(cut_long=True)
    tokens = plain.encode(example, tokenizer)
    assert cutting.encode(example, tokenizer).keys() == tokens.keys()
    assert plain.pieces(tokens, draw(tokenizer, 4)) == [tokens]
    assert cutting.pieces(tokens, draw(tokenizer, 7)) == [tokens]  # six tokens and eos
    (piece,) = cutting.pieces(tokens, draw(tokenizer, 4))
    assert piece["inputs"].tolist() == [*tokens["inputs"][:3].tolist(), tokens["inputs"][-1]]
    assert piece["inputs"].dtype == np.int32 and int(piece["_cut"]) == 3
    np.testing.assert_array_equal(piece["targets"], tokens["targets"])  # never cut
