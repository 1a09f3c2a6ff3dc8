"""Span corruption against the paper's example, enumeration, and putting the text together again."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.toy import ROLES, ToyTokenizer, draw, floats, log_softmax, padded
from transformer_jax.objectives import span_corruption
from transformer_jax.objectives.span_corruption import SpanCorruption, noise_counts, noise_mask, raw_length

TEXT = " ".join(f"{i:03d}" for i in range(400))


def restored(piece, sentinels):
    """The text of a corrupted piece, by hand: each sentinel stands for what follows it in the targets."""
    inputs, targets = piece["inputs"].tolist(), piece["targets"].tolist()
    assert inputs.pop() == targets.pop() == ROLES["eos"]
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token in sentinels:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    return [t for token in inputs for t in (spans.pop(token) if token in spans else [token])]


def test_the_papers_example(monkeypatch):
    words = "Thank you for inviting me to your party last week"
    tokenizer = ToyTokenizer()
    vocabulary = {word: 10 + i for i, word in enumerate(words.split())}
    tokenizer.encode = lambda text: np.array([vocabulary[word] for word in text.split()], np.int32)
    mask = np.array([0, 0, 1, 1, 0, 0, 0, 0, 1, 0], bool)
    monkeypatch.setattr(span_corruption, "noise_mask", lambda *_: mask)
    tokens = SpanCorruption().encode({"inputs": words}, tokenizer)
    (piece,) = SpanCorruption().pieces(tokens, draw(tokenizer, 32))
    names = {i: word for word, i in vocabulary.items()} | dict(zip(tokenizer.sentinels, "XYZ", strict=False))
    names |= {ROLES["eos"]: "$"}
    written = {side: " ".join(names[i] for i in piece[side].tolist()) for side in piece}
    # Text at the end of a piece gets a sentinel in the targets, as in the paper; masks that are drawn
    # have none there, which the next test shows.
    assert written == {
        "inputs": "Thank you X me to your party Y week $",
        "targets": "X for inviting Y last Z $",
    }


@pytest.mark.parametrize("length", [1, 2, 3, 7, 40, 400])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.9, 1.5), (0.01, 10.0)])
def test_the_targets_put_the_inputs_together_again(length, density, mean):
    tokenizer = ToyTokenizer(num_sentinels=200)
    objective = SpanCorruption(noise_density=density, mean_span_length=mean)
    tokens = objective.encode({"inputs": " ".join(TEXT.split()[:length])}, tokenizer)
    for seed in range(20):
        pieces = objective.pieces(tokens, draw(tokenizer, 64, seed))
        assert all(len(piece[side]) <= 64 for piece in pieces for side in piece)
        text = [token for piece in pieces for token in restored(piece, tokenizer.sentinels)]
        assert text == tokens["inputs"].tolist()


def test_in_evaluation_the_borders_are_always_the_same_and_the_first_piece_is_full():
    tokenizer = ToyTokenizer()
    tokens = SpanCorruption().encode({"inputs": TEXT}, tokenizer)
    full = raw_length(64, 0.15, 3.0)
    for seed in range(20):
        pieces = SpanCorruption().pieces(tokens, draw(tokenizer, 64, seed, train=False))
        lengths = [len(restored(piece, tokenizer.sentinels)) for piece in pieces]
        assert lengths == [full] * (400 // full) + [400 % full]


def test_the_longest_pieces_are_those_of_the_released_helper():
    # 568 tokens make 512 of inputs and 114 of targets in T5 (its random_spans_helper).
    assert raw_length(512, 0.15, 3.0) == 568
    assert noise_counts(568, 0.15, 3.0) == (85, 28)
    for density, mean, most in itertools.product((0.15, 0.5, 0.8), (1.0, 3.0), (3, 10, 65)):
        fits = [
            n
            for n in range(2, 10 * most)
            if max(n - noise_counts(n, density, mean)[0], noise_counts(n, density, mean)[0])
            + noise_counts(n, density, mean)[1]
            < most
        ]
        assert raw_length(most, density, mean) == max(fits)


def test_as_many_tokens_and_spans_as_the_paper_says(rng):
    for length in (10, 73, 100, 568):
        mask = noise_mask(length, 0.15, 3.0, rng)
        tokens = round(0.15 * length)
        assert mask.sum() == tokens
        assert (np.diff(mask.astype(int)) == 1).sum() == max(1, round(tokens / 3))
        assert not mask[0] and mask[-1]  # so the targets end with a span, and need no last sentinel


def test_all_masks_are_equally_likely(rng):
    length, tokens, spans = 9, 4, 2
    assert noise_counts(length, 0.45, 2.0) == (tokens, spans)
    possible = set()
    for mask in itertools.product((0, 1), repeat=length):
        runs = [value for value, _ in itertools.groupby(mask)]
        if sum(mask) == tokens and runs == [0, 1] * spans:
            possible.add(mask)
    assert len(possible) == 12  # C(3, 1) ways to cut the noise, C(4, 1) to cut the text
    counts = dict.fromkeys(possible, 0)
    for _ in range(6000):
        counts[tuple(noise_mask(length, 0.45, 2.0, rng).astype(int).tolist())] += 1
    p = 1 / 12
    assert max(abs(n - 6000 * p) for n in counts.values()) < 5 * math.sqrt(6000 * p * (1 - p))


def test_too_few_sentinels_are_one_error():
    tokenizer = ToyTokenizer(num_sentinels=27)
    tokens = SpanCorruption().encode({"inputs": "a short text"}, tokenizer)
    message = r"has 27 sentinels .* data\.max_length=512 tokens have up to 28 spans"
    with pytest.raises(ValueError, match=message):
        SpanCorruption().pieces(tokens, draw(tokenizer, 512))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise_density": 1.0}, "noise_density=1.0 must be above 0 and below 1"),
        ({"mean_span_length": 0.5}, "mean_span_length=0.5 must be at least 1"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SpanCorruption(**fields)


def test_loss_is_over_all_targets(rng):
    example = {"inputs": np.array([8, 9, 2], np.int32), "targets": np.array([11, 7, 2], np.int32)}
    logits = rng.normal(size=(2, 4, 12)).astype(np.float32)

    def apply(*_, per_token, **__):
        return per_token(jnp.asarray(logits), slice(0, 4))

    loss, sums = SpanCorruption().loss(apply, {}, padded([example], 4), {}, train=False)
    wanted = -sum(log_softmax(logits)[0, i, t] for i, t in enumerate([11, 7, 2]))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    metrics = SpanCorruption().metrics(floats(sums))
    np.testing.assert_allclose(metrics["perplexity"], np.exp(wanted / 3), rtol=1e-5)
