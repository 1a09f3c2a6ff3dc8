"""Where texts may be cut, and cutting them into pieces that fit."""

import itertools
import re

import numpy as np
from jaxtyping import Bool, Int

from transformer_jax.types import Encoding

_LINE_END = re.compile(r"\s*\n\s*")
# Closing quotes and brackets belong to the sentence that they end.
_SENTENCE_END = re.compile(r"[.!?][\"'”’»)\]]*(?P<space>\s+)|(?P<line>\s*\n\s*)")


def line_starts(text: str, encoding: Encoding) -> Bool[np.ndarray, "n"]:
    """Which tokens begin a line of the text; white space between lines belongs to the later one."""
    return _begins_after([match.start() for match in _LINE_END.finditer(text)], encoding)


def sentence_starts(text: str, encoding: Encoding) -> Bool[np.ndarray, "n"]:
    """Which tokens begin a sentence.

    A sentence ends with its line, and where white space follows one of ``.!?``, perhaps with closing
    quotes or brackets between: so "3.14" is whole, and abbreviations ("e. g. this") are taken for ends.
    """
    borders = [match.start(match.lastgroup or 0) for match in _SENTENCE_END.finditer(text)]
    return _begins_after(borders, encoding)


def _begins_after(borders: list[int], encoding: Encoding) -> np.ndarray:
    part = np.searchsorted(np.array(borders, np.int64), encoding.starts, side="right")
    return np.append(True, part[1:] > part[:-1])[: len(part)]


def word_starts(words: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Which tokens begin a word, from the number of each token's word."""
    return np.append(True, words[1:] != words[:-1])[: len(words)]


def cut_evenly(length: int, most: int, rng: np.random.Generator, train: bool) -> list[tuple[int, int]]:
    """Pieces of ``most`` tokens, but for the first and the last, as (start, stop).

    The first border is drawn from 1 to ``most``, so that borders differ from visit to visit; in
    evaluation it is at ``most``. What fits whole stays whole.
    """
    if length <= most:
        return [(0, length)]
    first = int(rng.integers(1, most + 1)) if train else most
    borders = [0, *range(first, length, most), length]
    return list(itertools.pairwise(borders))


def next_cut(start: int, most: int, *starts: Bool[np.ndarray, "n"]) -> int:
    """The last place up to ``start + most`` where a piece that begins at ``start`` may stop.

    Args:
      start: the piece's first token.
      most: tokens it may have.
      *starts: which tokens begin a unit that is not to be cut, the largest unit first. A unit that is
        too long is cut as the next one says, in the end between any two tokens.
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
    """Pieces of at most ``most`` tokens, each as long as ``next_cut`` lets it be, as (start, stop)."""
    pieces, start = [], 0
    while start < len(starts[0]):
        stop = next_cut(start, most, *starts)
        pieces.append((start, stop))
        start = stop
    return pieces


def check_room(max_length: int, least: int) -> None:
    """Raises ValueError where ``max_length`` has no room for special tokens and one more."""
    if max_length < least:
        raise ValueError(
            f"data.max_length={max_length} must be at least {least}, for the special tokens of this "
            "objective and something between them"
        )
