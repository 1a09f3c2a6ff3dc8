"""Cutting texts, against what a reader would do."""

import numpy as np
import pytest

from tests.objectives.toy import ToyTokenizer
from transformer_jax.objectives.cutting import (
    check_room,
    cut_at_borders,
    cut_evenly,
    line_starts,
    sentence_starts,
    word_starts,
)
from transformer_jax.types import Encoding


def starting(flags, text, tokenizer):
    encoding = tokenizer.encode_with_places(text)
    assert len(flags) == len(encoding.ids)
    return [text[encoding.starts[i] : encoding.stops[i]] for i in np.flatnonzero(flags)]


@pytest.mark.parametrize(
    ("text", "lines", "sentences"),
    [
        ("a b\nc d", ["a", "c"], ["a", "c"]),
        ("a b. c d? e!\n\nf", ["a", "f"], ["a", "c", "e!", "f"]),
        ('say "no." go (ha!) on', ["say"], ["say", "go", "on"]),
        ("pi is 3.14 or so. yes", ["pi"], ["pi", "yes"]),
        ("\n a\n", ["a"], ["a"]),
        ("", [], []),
    ],
)
def test_lines_and_sentences_begin_where_a_reader_says(text, lines, sentences):
    tokenizer = ToyTokenizer()
    encoding = tokenizer.encode_with_places(text)
    assert starting(line_starts(text, encoding), text, tokenizer) == lines
    assert starting(sentence_starts(text, encoding), text, tokenizer) == sentences


def test_white_space_belongs_to_what_it_stands_before():
    # Tokens "a.", "\n", "b.", " c": as byte-level tokenizers have them.
    bounds = np.array([0, 2, 3, 5, 7], np.int32)
    encoding = Encoding(np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32), bounds[:-1], bounds[1:])
    assert line_starts("a.\nb. c", encoding).tolist() == [True, True, False, False]
    assert sentence_starts("a.\nb. c", encoding).tolist() == [True, True, False, True]


def test_even_pieces_cover_everything_once_and_begin_anywhere():
    first = set()
    for seed in range(200):
        pieces = cut_evenly(23, 5, np.random.default_rng(seed), True)
        assert [place for start, stop in pieces for place in range(start, stop)] == list(range(23))
        assert all(1 <= stop - start <= 5 for start, stop in pieces)
        first.add(pieces[0][1])
    assert first == {1, 2, 3, 4, 5}


def test_even_pieces_leave_alone_what_fits_and_are_fixed_in_evaluation(rng):
    assert cut_evenly(5, 5, rng, True) == [(0, 5)]
    for _ in range(5):
        assert cut_evenly(12, 5, rng, False) == [(0, 5), (5, 10), (10, 12)]


def test_pieces_end_at_lines_then_words_then_anywhere():
    #                 0  1  2  3  4  5  6  7  8  9 10 11 12 13
    words = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 5])
    lines = np.zeros(14, bool)
    lines[[0, 2, 3]] = True
    # 0-3 ends before the line at 3; the rest is one line, cut before words; word 4 is too long for 5.
    assert cut_at_borders(5, lines, word_starts(words)) == [(0, 3), (3, 7), (7, 12), (12, 14)]
    assert cut_at_borders(14, lines, word_starts(words)) == [(0, 14)]
    assert cut_at_borders(4, np.ones(10, bool)) == [(0, 4), (4, 8), (8, 10)]


def test_no_room_is_an_error_that_says_how_much_is_needed():
    check_room(3, 3)
    with pytest.raises(ValueError, match=r"data\.max_length=2 must be at least 3"):
        check_room(2, 3)
