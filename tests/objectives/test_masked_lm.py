"""BERT's objective: rates against closed forms, structure against the text, the loss in NumPy."""

import itertools
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.toy import ROLES, VOCAB_SIZE, ToyTokenizer, draw, floats, log_softmax, padded
from transformer_jax.data.tokenizers import TokenizerConfig, train_tokenizer
from transformer_jax.objectives.masked_lm import MaskedLM, choose_words
from transformer_jax.objectives.special_tokens import random_ids, special_ids

TEXT = " ".join(f"{i:03d}" for i in range(300))
LINES = "\n".join(" ".join(f"{line}{word}" for word in "abcde"[: 2 + line % 4]) for line in range(40))
OTHER = "\n".join(" ".join(f"{line + 50}{word}" for word in "abcde"[: 2 + line % 4]) for line in range(40))


def visits(objective, text, max_length, number, other=None, tokenizer=None):
    """The pieces of many visits, and the tokenizer."""
    tokenizer = tokenizer or ToyTokenizer()
    tokens = objective.encode({"inputs": text}, tokenizer)
    others = None if other is None else objective.encode({"inputs": other}, tokenizer)
    found = (objective.pieces(tokens, draw(tokenizer, max_length, seed, others)) for seed in range(number))
    return list(found), tokenizer


def test_as_many_tokens_are_chosen_as_the_release_has_it():
    for length in (1, 2, 3, 4, 10, 37, 300):
        (found,), tokenizer = visits(MaskedLM(), " ".join(TEXT.split()[:length]), 400, 1)
        (piece,) = found
        n = length + 2
        assert piece["targets_weights"].sum() == max(1, round(0.15 * n))
        assert tokenizer.tokens(piece["targets"]) == ["<cls>", *TEXT.split()[:length], "<sep>"]
        unchosen = piece["targets_weights"] == 0
        assert (piece["inputs"] == piece["targets"])[unchosen].all()
        assert unchosen[[0, -1]].all()


def test_chosen_tokens_are_masked_random_or_kept_at_the_stated_rates():
    found, _ = visits(MaskedLM(random_rate=0.2, keep_rate=0.1), TEXT, 302, 400)
    inputs, targets, places = [], [], []
    for (piece,) in found:
        chosen = piece["targets_weights"] == 1
        inputs.append(piece["inputs"][chosen])
        targets.append(piece["targets"][chosen])
        places.append(np.flatnonzero(chosen))
    inputs, targets, places = map(np.concatenate, (inputs, targets, places))
    n = len(inputs)
    assert n == 400 * 45
    shares = {
        0.7: np.mean(inputs == ROLES["mask"]),
        # A random token is the original one in a vocabulary of VOCAB_SIZE - 107 others: 1e-4 of all.
        0.1: np.mean(inputs == targets) - 0.2 / (VOCAB_SIZE - 107),
    }
    for wanted, share in shares.items():
        assert abs(share - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / n)
    # Every place is as likely as any other: a binomial count each, 5 standard deviations.
    counts = np.bincount(places, minlength=302)[1:-1]
    p = 45 / 300
    assert np.abs(counts - 400 * p).max() < 5 * math.sqrt(400 * p * (1 - p))


def test_random_tokens_are_uniform_over_all_but_special_ones(rng):
    found = np.bincount(random_ids(70_000, 10, np.array([0, 3, 4, 9]), rng), minlength=10)
    assert (found[[0, 3, 4, 9]] == 0).all()
    p = 1 / 6
    assert np.abs(found[[1, 2, 5, 6, 7, 8]] - 70_000 * p).max() < 5 * math.sqrt(70_000 * p * (1 - p))


def test_special_ids_are_those_of_the_roles_there_are_and_the_sentinels():
    tokenizer = ToyTokenizer(num_sentinels=2, roles=("eos", "mask"))
    assert special_ids(tokenizer).tolist() == [ROLES["eos"], ROLES["mask"], VOCAB_SIZE - 2, VOCAB_SIZE - 1]


def test_special_tokens_in_the_text_are_never_chosen():
    tokenizer = ToyTokenizer()
    tokens = dict(MaskedLM().encode({"inputs": TEXT}, tokenizer))
    tokens["inputs"][::2] = ROLES["unk"]
    (piece,) = MaskedLM(mask_rate=1.0).pieces(tokens, draw(tokenizer, 302))
    assert (piece["targets_weights"] == ~np.isin(piece["targets"], list(ROLES.values()))).all()


def test_whole_words_are_chosen_whole_or_not_at_all():
    text = " ".join("abc" * (1 + i % 3) for i in range(60))  # words of one, two and three tokens
    found, _ = visits(MaskedLM(whole_words=True, keep_rate=0.0, random_rate=0.0), text, 200, 50)
    words = np.array([-1, *(i for i in range(60) for _ in range(1 + i % 3)), -1])
    for (piece,) in found:
        chosen = piece["targets_weights"] == 1
        for word in range(60):
            assert len(set(chosen[words == word].tolist())) == 1
        assert 1 <= chosen.sum() <= round(0.15 * 122)


def test_whole_words_of_bytes_are_chosen_at_the_stated_rate():
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte", special_tokens=("<cls>", "<sep>", "<mask>")), [])
    text = " ".join(["word"] * 100)  # of five bytes each, but for the first, which has no space
    found, _ = visits(MaskedLM(whole_words=True), text, 600, 20, tokenizer=tokenizer)
    for (piece,) in found:
        assert 70 <= piece["targets_weights"].sum() <= round(0.15 * 501)


def test_a_word_too_long_for_the_number_is_chosen_all_the_same():
    ((piece,),), _ = visits(MaskedLM(whole_words=True), "abcdefghi", 20, 1)
    assert piece["targets_weights"].tolist() == [0, 1, 1, 1, 0]


def test_words_are_chosen_as_in_an_enumeration_of_all_orders(rng):
    words = np.array([-1, 0, 0, 1, 2, 3, 3, 3, -1])
    allowed = words >= 0
    exact: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(4)):
        chosen: list[int] = []
        for word in order:
            size = sum((words == w).sum() for w in chosen)
            if size < 3 and (not chosen or size + (words == word).sum() <= 3):
                chosen.append(word)
        exact[tuple(sorted(chosen))] = exact.get(tuple(sorted(chosen)), 0) + 1 / 24
    counts = dict.fromkeys(exact, 0)
    for _ in range(4000):
        flags = choose_words(words, allowed, 3, rng)
        counts[tuple(sorted(set(words[flags].tolist())))] += 1
    for key, p in exact.items():
        assert abs(counts[key] - 4000 * p) < 5 * math.sqrt(4000 * p * (1 - p))


def test_pieces_end_at_lines_and_hold_every_token_once():
    ((*pieces,),), tokenizer = visits(MaskedLM(), LINES, 20, 1)
    held = [tokenizer.tokens(piece["targets"])[1:-1] for piece in pieces]
    assert list(itertools.chain(*held)) == LINES.split()
    assert all(len(piece["targets"]) <= 20 for piece in pieces)
    ends = {line.split()[-1] for line in LINES.splitlines()}
    assert all(part[-1] in ends for part in held)
    assert set(pieces[0]) == {"inputs", "targets", "targets_weights"}


def test_the_second_text_follows_or_is_of_another_example():
    objective = MaskedLM(next_sentence=True)
    found, tokenizer = visits(objective, LINES, 24, 120, OTHER)
    labels = []
    for pieces in found:
        text = []
        for piece in pieces:
            written = " ".join(tokenizer.tokens(piece["targets"]))
            match = re.fullmatch(r"<cls> (.+) <sep> (.+) <sep>", written)
            assert match and len(piece["targets"]) <= 24
            a, b = match[1].split(), match[2].split()
            assert piece["inputs_types"].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
            label = int(piece["labels"])
            labels.append(label)
            text += a if label else a + b
            # A space in front and behind, so that words are whole.
            assert f" {' '.join(b)} " in f" {' '.join((OTHER if label else LINES).split())} "
            specials = [0, len(a) + 1, len(a) + len(b) + 2]
            assert not piece["targets_weights"][specials].any()
        assert text == LINES.split()
    n = len(labels)
    assert n > 1000
    assert abs(np.mean(labels) - 0.5) < 5 * math.sqrt(0.25 / n)


def test_where_both_texts_of_a_pair_begin_is_drawn_anew():
    found, tokenizer = visits(MaskedLM(next_sentence=True), LINES, 24, 200, OTHER)
    lengths, firsts = {0: set(), 1: set()}, set()
    for pieces in found:
        lengths[int(pieces[0]["labels"])].add(int((pieces[0]["inputs_types"] == 0).sum()) - 2)
        for piece in pieces:
            if piece["labels"]:
                place = np.flatnonzero(piece["inputs_types"])[0]
                firsts.add(tokenizer.tokens(piece["targets"])[place])
    # The lines of LINES have 2, 3, 4, 5, 2, 3 words: 19 of these, whole lines, fit beside three special ones.
    assert lengths == {label: {2, 5, 9, 14, 16} for label in (0, 1)}
    assert firsts == {line.split()[0] for line in OTHER.splitlines()}


def test_words_of_both_texts_with_the_same_number_are_not_one_word():
    objective = MaskedLM(next_sentence=True, whole_words=True, mask_rate=0.01)
    found, _ = visits(objective, "abcdef ghijkl", 24, 50, "mnopqr stuvwx")
    for pieces in found:
        assert all(piece["targets_weights"].sum() in (1, 2) for piece in pieces)


def test_a_text_of_one_token_is_paired_with_another_example():
    found, tokenizer = visits(MaskedLM(next_sentence=True), "abc", 5, 5, "one")
    for (piece,) in found:
        assert tokenizer.tokens(piece["targets"]) == ["<cls>", "abc", "<sep>", "one", "<sep>"]
        assert piece["labels"] == 1


def test_noise_is_the_rngs_alone():
    first, _ = visits(MaskedLM(), TEXT, 302, 2)
    second, _ = visits(MaskedLM(), TEXT, 302, 2)
    for (one,), (other,) in zip(first, second, strict=True):
        assert one["inputs"].tolist() == other["inputs"].tolist()
    assert first[0][0]["inputs"].tolist() != first[1][0]["inputs"].tolist()


def pair_batch(rng):
    found, _ = visits(MaskedLM(next_sentence=True, mask_rate=0.4), LINES, 12, 1, OTHER)
    batch = padded(found[0][:4], 12)
    logits = rng.normal(size=(5, 12, 2000)).astype(np.float32)
    following = rng.normal(size=(5, 2)).astype(np.float32)
    following[4] = [1, 0]  # of the row without an example: not to be counted as a right guess
    return batch, logits, following


def test_loss_is_the_sum_over_examples_in_numpy(rng):
    objective = MaskedLM(next_sentence=True)
    batch, logits, following = pair_batch(rng)
    seen = {}

    def apply(variables, **arguments):
        seen.update(arguments)
        return jnp.asarray(logits), jnp.asarray(following)

    loss, sums = objective.loss(apply, {}, batch, {}, train=False)
    assert set(seen) == {
        "inputs", "inputs_positions", "inputs_segments", "inputs_types", "train", "rngs"
    }  # fmt: skip
    tokens_p, pairs_p = log_softmax(logits), log_softmax(following)
    nll, whole = [], 0.0
    for row in range(4):
        chosen = np.flatnonzero(batch["targets_weights"][row])
        own = [-tokens_p[row, i, batch["targets"][row, i]] for i in chosen]
        nll += own
        whole += sum(own) - len(chosen) * pairs_p[row, batch["labels"][row]]
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    metrics = objective.metrics(floats(sums))
    accuracy = np.mean(following[:4].argmax(-1) == batch["labels"][:4])
    wanted = [whole / len(nll), np.mean(nll), accuracy]
    names = ("loss", "nll", "next_sentence_accuracy")
    np.testing.assert_allclose([metrics[name] for name in names], wanted, rtol=1e-5)
    assert set(metrics) == set(MaskedLM.METRICS)


def test_sums_of_two_halves_are_those_of_the_whole(rng):
    objective = MaskedLM(next_sentence=True)
    batch, logits, following = pair_batch(rng)

    def sums(rows):
        part = {key: value[rows] for key, value in batch.items()}

        def apply(*_, **__):
            return jnp.asarray(logits[rows]), jnp.asarray(following[rows])

        return floats(objective.loss(apply, {}, part, {}, train=False)[1])

    halves, whole = (sums(slice(0, 2)), sums(slice(2, 5))), sums(slice(0, 5))
    for name, value in whole.items():
        np.testing.assert_allclose(halves[0][name] + halves[1][name], value, rtol=1e-5)


def test_without_pairs_the_loss_is_over_chosen_tokens_alone(rng):
    (((piece, *_),), _) = visits(MaskedLM(), LINES, 12, 1)
    logits = rng.normal(size=(2, 12, 2000)).astype(np.float32)
    loss, sums = MaskedLM().loss(
        lambda *_, **__: jnp.asarray(logits), {}, padded([piece], 12), {}, train=False
    )
    chosen = np.flatnonzero(piece["targets_weights"])
    wanted = -sum(log_softmax(logits)[0, i, piece["targets"][i]] for i in chosen)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert float(sums["tokens"]) == len(chosen)
    assert set(MaskedLM().metrics(floats(sums))) == {"loss", "nll", "perplexity", "accuracy"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_rate": 1.5}, r"mask_rate=1.5 must be above 0 and at most 1"),
        ({"mask_rate": 0.0}, r"mask_rate=0.0 must be above 0 and at most 1"),
        ({"keep_rate": -0.1}, r"keep_rate=-0.1 must be from 0 to 1"),
        ({"keep_rate": 0.6, "random_rate": 0.6}, "must add up to at most 1"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskedLM(**fields)


@pytest.mark.parametrize(("next_sentence", "least"), [(False, 3), (True, 5)])
def test_too_little_room_is_refused(next_sentence, least):
    with pytest.raises(ValueError, match=f"must be at least {least}"):
        visits(MaskedLM(next_sentence=next_sentence), LINES, least - 1, 1, OTHER)
