"""Finds the places where texts may be cut, and cuts them into pieces that fit."""

import itertools
import re

import numpy as np
from jaxtyping import Bool, Int

from transformer_jax.types import Encoding

_LINE_END = re.compile(r"\s*\n\s*")
# Closing quotes and brackets belong to the sentence that they end.
_SENTENCE_END = re.compile(r"[.!?][\"'”’»)\]]*(?P<space>\s+)|(?P<line>\s*\n\s*)")


def line_starts(text: str, encoding: Encoding) -> Bool[np.ndarray, "n"]:
    """Returns which tokens begin a line of the text; white space between lines belongs to the later line."""
    return _begins_after([match.start() for match in _LINE_END.finditer(text)], encoding)


def sentence_starts(text: str, encoding: Encoding) -> Bool[np.ndarray, "n"]:
    """Returns which tokens begin a sentence.

    A sentence ends at the end of a line. It also ends after one of ``.!?`` and any closing quotes or
    brackets, if white space follows. Therefore "3.14" is not split, but an abbreviation such as "e. g." ends
    a sentence.
    """
    borders = [match.start(match.lastgroup or 0) for match in _SENTENCE_END.finditer(text)]
    return _begins_after(borders, encoding)


def _begins_after(borders: list[int], encoding: Encoding) -> np.ndarray:
    part = np.searchsorted(np.array(borders, np.int64), encoding.starts, side="right")
    return np.append(True, part[1:] > part[:-1])[: len(part)]


def word_starts(words: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Returns which tokens begin a word, given the number of each token's word."""
    return np.append(True, words[1:] != words[:-1])[: len(words)]


def cut_evenly(length: int, most: int, rng: np.random.Generator, train: bool) -> list[tuple[int, int]]:
    """Returns pieces of ``most`` tokens as (start, stop); the first and the last may be shorter.

    In training, the first border is drawn from 1 to ``most``, so that borders differ from visit to visit. In
    evaluation it is ``most``. A text of at most ``most`` tokens is not cut.
    """
    if length <= most:
        return [(0, length)]
    first = int(rng.integers(1, most + 1)) if train else most
    borders = [0, *range(first, length, most), length]
    return list(itertools.pairwise(borders))


def next_cut(start: int, most: int, *starts: Bool[np.ndarray, "n"]) -> int:
    """Returns the last place up to ``start + most`` where a piece that begins at ``start`` may stop.

    Args:
      start: index of the piece's first token.
      most: the largest number of its tokens.
      *starts: for each kind of unit that should not be cut, which tokens begin one; the largest kind first. A
        unit that is too long is cut at the borders of the next kind, and as a last resort between any two
        tokens.
    """
    stop = start + most
    if stop >= len(starts[0]):
        return len(starts[0])
    for begins in starts:
        places = np.flatnonzero(begins[start + 1 : stop + 1])
        if len(places):
            return start + 1 + int(places[-1])
    return stop


def cut_at_borders(most: int, *starts: Bool[np.ndarray, "n"]) -> list[tuple[int, int]]:
    """Returns pieces of at most ``most`` tokens as (start, stop), each as long as ``next_cut`` allows."""
    pieces, start = [], 0
    while start < len(starts[0]):
        stop = next_cut(start, most, *starts)
        pieces.append((start, stop))
        start = stop
    return pieces


def check_room(max_length: int, least: int) -> None:
    """Raises ValueError if ``max_length`` has no room for the special tokens and one more token."""
    if max_length < least:
        raise ValueError(
            f"data.max_length={max_length} must be at least {least}: this objective adds special tokens, and "
            "at least one token of the text must fit between them"
        )
