"""Classes of words: which token carries which label, by hand, and the loss in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.toy import ToyTokenizer, draw, floats, log_softmax, padded
from transformer_jax.objectives.token_classification import TokenClassification
from transformer_jax.types import Encoding

LABELS = ("O", "PER", "LOC")
WORDS = ["Johanson", "lives", "in", "Ramat", "Gan", "."]
TAGS = ["PER", "O", "O", "LOC", "LOC", "O"]


def labelled(tokenizer, piece):
    """(token, label) of the tokens with a loss."""
    tokens = tokenizer.tokens(piece["inputs"])
    places = np.flatnonzero(piece["targets_weights"])
    return [(tokens[i], LABELS[piece["targets"][i]]) for i in places]


FIRSTS = [("Joh", "PER"), ("liv", "O"), ("in", "O"), ("Ram", "LOC"), ("Gan", "LOC"), (".", "O")]


def test_the_label_is_at_the_first_token_of_each_word():
    tokenizer, objective = ToyTokenizer(), TokenClassification(labels=LABELS)
    tokens = objective.encode({"inputs": WORDS, "labels": TAGS}, tokenizer)
    (piece,) = objective.pieces(tokens, draw(tokenizer, 12))
    wanted = "<cls> Joh ans on liv es in Ram at Gan . <sep>"
    assert " ".join(tokenizer.tokens(piece["inputs"])) == wanted
    assert labelled(tokenizer, piece) == FIRSTS
    assert not piece["targets"][piece["targets_weights"] == 0].any()


def test_a_long_text_is_cut_between_words_and_every_word_counts_once():
    tokenizer, objective = ToyTokenizer(), TokenClassification(labels=LABELS)
    tokens = objective.encode({"inputs": WORDS, "labels": TAGS}, tokenizer)
    pieces = objective.pieces(tokens, draw(tokenizer, 6))
    written = [" ".join(tokenizer.tokens(piece["inputs"])) for piece in pieces]
    assert written == ["<cls> Joh ans on <sep>", "<cls> liv es in <sep>", "<cls> Ram at Gan . <sep>"]
    assert [pair for piece in pieces for pair in labelled(tokenizer, piece)] == FIRSTS


def test_words_are_those_of_the_example_whatever_the_tokenizer_takes_for_one():
    class SpacesToo(ToyTokenizer):
        """Spaces are in a token or one of their own, and words end at punctuation too."""

        def encode_with_places(self, text):
            assert text == "New York U.S."
            parts = np.array([[0, 3], [3, 8], [8, 9], [9, 10], [10, 11], [11, 12], [12, 13]], np.int32)
            number = np.arange(7, dtype=np.int32)
            return Encoding(number + 7, number, parts[:, 0], parts[:, 1])

    tokens = TokenClassification().encode({"inputs": ["New York", "U.S."], "labels": [1, "2"]}, SpacesToo())
    assert tokens["_words"].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert tokens["targets_weights"].tolist() == [1, 0, 1, 0, 0, 0, 0]
    assert tokens["targets"].tolist() == [1, 0, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        (["a", "b"], ["O"], "2 words have 1 labels: 'a b'"),
        (["a"], ["MISC"], r"the label 'MISC' must be one of objective.labels=\('O', 'PER', 'LOC'\)"),
        (["a", " ", "b"], ["O"] * 3, r"the word ' ' \(number 2 of 3\) has no tokens"),
        (["a", ""], ["O"] * 2, r"the word '' \(number 2 of 2\) has no tokens"),
    ],
)
def test_bad_examples_are_one_error(words, tags, message):
    with pytest.raises(ValueError, match=message):
        TokenClassification(labels=LABELS).encode({"inputs": words, "labels": tags}, ToyTokenizer())


def test_loss_is_that_of_numpy_over_words(rng):
    tokenizer, objective = ToyTokenizer(), TokenClassification(labels=LABELS)
    tokens = objective.encode({"inputs": WORDS, "labels": TAGS}, tokenizer)
    pieces = objective.pieces(tokens, draw(tokenizer, 6))
    logits = rng.normal(size=(4, 6, 3)).astype(np.float32)
    seen = {}

    def apply(variables, **arguments):
        seen.update(arguments)
        return jnp.asarray(logits)

    loss, sums = objective.loss(apply, {}, padded(pieces, 6), {}, train=False)
    assert set(seen) == {"inputs", "inputs_positions", "inputs_segments", "train", "rngs"}
    places = [(0, 1), (1, 1), (1, 3), (2, 1), (2, 3), (2, 4)]
    ids = [LABELS.index(tag) for tag in TAGS]
    each = [-log_softmax(logits)[(*place, i)] for place, i in zip(places, ids, strict=True)]
    np.testing.assert_allclose(loss, sum(each), rtol=1e-5)
    right = [logits[place].argmax() == i for place, i in zip(places, ids, strict=True)]
    metrics = objective.metrics(floats(sums))
    wanted = [np.mean(each), np.mean(right)]
    np.testing.assert_allclose([metrics[n] for n in TokenClassification.METRICS], wanted, rtol=1e-5)


def test_other_classes_than_the_model_tells_are_not_passed_over():
    piece = {
        "inputs": np.array([7], np.int32),
        "targets": np.array([2], np.int32),
        "targets_weights": np.array([1], np.int32),
    }

    def apply(*_, **__):
        return jnp.full((2, 1, 2), -0.5)

    loss, sums = TokenClassification().loss(apply, {}, padded([piece], 1), {}, train=False)
    assert np.isnan(loss) and float(sums["correct"]) == 0
    with pytest.raises(ValueError, match="has 2 classes, but"):
        TokenClassification(labels=LABELS).loss(apply, {}, padded([piece], 1), {}, train=False)
