"""Turns examples into token examples: the interface of an objective's transform, and a cache."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from transformer_jax.data.examples import DataError, Source
from transformer_jax.types import Example, TokenExample

# Limits of the cache. So many token examples take about 200 MB if they are sentences; images take far more.
CACHED_EXAMPLES = 500_000
CACHED_BYTES = 2**30  # of the examples' arrays

_MOST_DRAWS = 1000  # draws of another example before all are considered blank


@runtime_checkable
class Transform(Protocol):
    """An objective with everything it needs except the data."""

    def encode(self, example: Example) -> TokenExample:
        """Returns the tokens of an example.

        Must be a pure function: it is called once per example as long as the cache has room.
        """
        ...

    def pieces(
        self, tokens: TokenExample, rng: np.random.Generator, draw_other: Callable[[], TokenExample]
    ) -> list[TokenExample]:
        """Returns what is learned from one visit of an example.

        Must be a pure function of the tokens and the random numbers.

        Args:
          tokens: the result of ``encode``.
          rng: a generator for this visit alone.
          draw_other: returns the tokens of another example, chosen with ``rng``.
        """
        ...


class TokenCache:
    """Reads the token examples of a source and keeps those that are read first in memory.

    Args:
      source: the examples.
      transform: turns examples into tokens.
      purpose: what the examples are for, in error messages.
      leave_out_blank: return None for an example with a blank text.
    """

    def __init__(
        self, source: Source, transform: Transform, *, purpose: str = "train on", leave_out_blank: bool = True
    ):
        self._source, self._transform, self._leave_out_blank = source, transform, leave_out_blank
        self._purpose = purpose
        self._cached: dict[int, TokenExample | None] = {}
        self._blank: set[int] = set()  # of the indices read so far
        self._bytes = 0

    def read(self, indices: Sequence[int]) -> list[TokenExample | None]:
        """Returns the token examples at ``indices``.

        Raises:
          DataError: an example lacks what the objective needs.
        """
        missing = [index for index in dict.fromkeys(indices) if index not in self._cached]
        read = self._source.read(missing) if missing else []
        fresh = {index: self._tokens(index, example) for index, example in zip(missing, read, strict=True)}
        examples = [fresh[i] if i in fresh else self._cached[i] for i in indices]
        for index in missing:
            if len(self._cached) >= CACHED_EXAMPLES or self._bytes >= CACHED_BYTES:
                break
            self._cached[index] = tokens = fresh[index]
            self._bytes += sum(array.nbytes for array in tokens.values()) if tokens else 0
        return examples

    def read_other(self, index: int) -> TokenExample | None:
        """Returns the token example at ``index`` to combine with another; None if a text in it is blank."""
        (tokens,) = self.read([index])
        return None if index in self._blank else tokens

    def _tokens(self, index: int, example: Example) -> TokenExample | None:
        if any(map(_is_blank, example.values())):
            self._blank.add(index)
            if self._leave_out_blank:
                return None
        try:
            return self._transform.encode(example)
        except ValueError as error:
            raise DataError(f"example {index + 1} of those to {self._purpose}: {error}") from error


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def draw_other(
    read: Callable[[int], TokenExample | None], index: int, num_examples: int, rng: np.random.Generator
) -> TokenExample:
    """Returns the tokens of a random example that is neither ``index`` nor blank.

    Args:
      read: returns a token example, or None if it is blank.
      index: the example to exclude.
      num_examples: the size of the source.
      rng: chooses the example.

    Raises:
      DataError: no such example was found.
    """
    for _ in range(_MOST_DRAWS if num_examples > 1 else 0):
        other = int(rng.integers(num_examples - 1))
        tokens = read(other + (other >= index))
        if tokens is not None:
            return tokens
    raise DataError(
        f"the objective combines each example with another one, but no other of the {num_examples:,} "
        "examples was found that is not blank"
    )
