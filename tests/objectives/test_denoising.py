"""BART's objective: noise against closed forms, and putting texts together again."""

import collections
import itertools
import math
import re

import numpy as np
import pytest

from tests.objectives.toy import ROLES, ToyTokenizer, draw
from transformer_jax.data.tokenizers import TokenizerConfig, train_tokenizer
from transformer_jax.objectives.denoising import Denoising, span_lengths

TEXT = " ".join(f"{i:03d}" * (1 + i % 4) for i in range(200))  # words of one to four tokens
SENTENCES = [" ".join(f"{i}{word}" for word in "abcd"[: 1 + i % 4]) + "." for i in range(12)]


def pieces_of(objective, text, max_length, seed=0):
    tokenizer = ToyTokenizer()
    tokens = objective.encode({"inputs": text}, tokenizer)
    return objective.pieces(tokens, draw(tokenizer, max_length, seed)), tokens, tokenizer


@pytest.mark.parametrize(("rate", "mean"), [(0.3, 3.0), (1.0, 1.0), (0.05, 20.0), (0.0, 3.0)])
def test_masks_can_be_filled_in_so_that_the_text_is_back(rate, mean):
    objective = Denoising(mask_rate=rate, mean_span_length=mean, permute_sentences=False)
    for seed in range(20):
        pieces, tokens, _ = pieces_of(objective, TEXT, 100, seed)
        text = []
        for piece in pieces:
            noisy, whole = piece["inputs"].tolist(), piece["targets"].tolist()
            assert max(len(noisy), len(whole)) <= 100
            assert [noisy[0], noisy[-1], whole[0], whole[-1]] == [ROLES["bos"], ROLES["eos"]] * 2
            # Every mask is any number of tokens, everything else is itself.
            letters = {token: chr(0x100 + token) for token in {*noisy, *whole}}
            pattern = "".join(".*" if token == ROLES["mask"] else letters[token] for token in noisy)
            assert re.fullmatch(pattern, "".join(letters[token] for token in whole))
            text += whole[1:-1]
        assert text == tokens["inputs"].tolist()


def test_exactly_the_stated_share_of_the_words_is_cut_out_whole():
    objective = Denoising(mask_rate=0.298, permute_sentences=False)
    for seed in range(30):
        (piece,), tokens, _ = pieces_of(objective, TEXT, 1000, seed)
        remaining = set(piece["inputs"].tolist())
        words = tokens["_words"]
        own = [tokens["inputs"][words == word][-1] for word in range(200)]
        kept = [word for word in range(200) if own[word] in remaining]
        assert len(kept) == 200 - 60  # 0.298 * 200, rounded up
        without = [t for t in piece["inputs"].tolist()[1:-1] if t != ROLES["mask"]]
        assert without == tokens["inputs"][np.isin(words, kept)].tolist()


def test_bytes_are_cut_out_by_words_at_the_stated_rate():
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte", special_tokens=("<mask>",)), [])
    text = " ".join(f"{i}größe" for i in range(100, 200))  # parted into digits and letters
    objective = Denoising(mask_rate=0.3, permute_sentences=False)
    tokens = objective.encode({"inputs": text}, tokenizer)
    for seed in range(10):
        (piece,) = objective.pieces(tokens, draw(tokenizer, 2000, seed))
        kept = tokenizer.decode(piece["inputs"])
        assert len(re.findall("größe", kept)) + len(re.findall(r"\d{3}", kept)) == 200 - 60


def test_span_lengths_are_poisson_numbers(rng):
    total = 60_000
    found = span_lengths(total, 3.0, rng)
    assert found.sum() == total
    n = len(found)
    counts = collections.Counter(found.tolist())
    for length in range(8):
        p = math.exp(-3.0) * 3.0**length / math.factorial(length)
        assert abs(counts[length] - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_all_places_of_a_span_are_equally_likely(monkeypatch):
    monkeypatch.setattr("transformer_jax.objectives.denoising.span_lengths", lambda *_: np.array([2, 0]))
    objective = Denoising(mask_rate=0.4, permute_sentences=False)
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(4000):
        (piece,), _, tokenizer = pieces_of(objective, "a b c d e", 20, seed)
        counts[" ".join(tokenizer.tokens(piece["inputs"][1:-1])).replace("<mask>", "_")] += 1
    # By hand: the span takes one of four places, the inserted mask goes into one of the gaps. With both
    # side by side it cannot be seen which is which, so such an outcome is twice as likely.
    possible: collections.Counter[str] = collections.Counter()
    for kept in itertools.permutations("SI..."):
        words = iter("abcde")
        written = []
        for item in kept:
            taken = [next(words) for _ in range({"S": 2, "I": 0, ".": 1}[item])]
            written.append("_" if item in "SI" else taken[0])
        possible[" ".join(written)] += 1
    assert set(counts) == set(possible)
    for outcome, ways in possible.items():
        p = ways / 120
        assert abs(counts[outcome] - 4000 * p) < 5 * math.sqrt(4000 * p * (1 - p))


def test_inserted_masks_never_make_a_piece_too_long(monkeypatch):
    lengths = np.array([1, *[0] * 30])
    monkeypatch.setattr("transformer_jax.objectives.denoising.span_lengths", lambda *_: lengths)
    for most, masks in ((9, 5), (12, 8), (100, 31)):
        (piece,), _, _ = pieces_of(Denoising(), "a b c", most)
        assert (piece["inputs"] == ROLES["mask"]).sum() == masks
        assert len(piece["inputs"]) == 2 + 2 + masks


def test_sentences_come_in_every_order_and_stay_whole():
    objective = Denoising(mask_rate=0.0)
    text = "one two. three! four\nfive"
    parts = [["<bos>"], ["one", "two", "."], ["thr", "ee!"], ["fou", "r"], ["fiv", "e"], ["<eos>"]]
    orders = collections.Counter()
    for seed in range(2400):
        (piece,), tokens, tokenizer = pieces_of(objective, text, 30, seed)
        orders[tuple(tokenizer.tokens(piece["inputs"]))] += 1
        assert piece["targets"].tolist()[1:-1] == tokens["inputs"].tolist()
    wanted = {
        tuple(itertools.chain(parts[0], *middle, parts[5])) for middle in itertools.permutations(parts[1:5])
    }
    assert set(orders) == wanted
    assert max(abs(n - 100) for n in orders.values()) < 5 * math.sqrt(100)


def test_sentences_keep_their_order_when_asked_to():
    for seed in range(5):
        objective = Denoising(mask_rate=0.0, permute_sentences=False)
        (piece,), _, _ = pieces_of(objective, " ".join(SENTENCES), 200, seed)
        assert piece["inputs"].tolist() == piece["targets"].tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_rate": 1.5}, "mask_rate=1.5 must be from 0 to 1"),
        ({"mean_span_length": 0.0}, "mean_span_length=0.0 must be at least 1"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Denoising(**fields)
