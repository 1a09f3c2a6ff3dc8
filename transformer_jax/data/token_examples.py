"""From examples to their tokens: what the pipeline asks of an objective, and a memory of what it gave."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from transformer_jax.data.examples import DataError, Source
from transformer_jax.types import Example, TokenExample

# Token examples kept in memory: of single sentences so many take about 200 MB, of images far more.
CACHED_EXAMPLES = 500_000
CACHED_BYTES = 2**30  # of their arrays

_MOST_DRAWS = 1000  # of another example, before all count as blank


@runtime_checkable
class Transform(Protocol):
    """An objective bound to all it needs but the data."""

    def encode(self, example: Example) -> TokenExample:
        """The tokens of an example: a pure function, called once as long as there is memory to keep them."""
        ...

    def pieces(
        self, tokens: TokenExample, rng: np.random.Generator, draw_other: Callable[[], TokenExample]
    ) -> list[TokenExample]:
        """What is learned from one visit of an example: a pure function of tokens and random numbers.

        Args:
          tokens: as ``encode`` gave them.
          rng: of this visit alone.
          draw_other: the tokens of another example, chosen by ``rng``.
        """
        ...


class TokenCache:
    """The token examples of a source; those read first stay in memory.

    Args:
      source: what is read.
      transform: from examples to tokens.
      purpose: what the examples are for, for messages.
      leave_out_blank: give None for an example with a blank text.
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
        """The token examples at ``indices``; raises DataError where one is not what the objective needs."""
        missing = [index for index in dict.fromkeys(indices) if index not in self._cached]
        read = self._source.read(missing) if missing else []
        fresh = {index: self._tokens(index, example) for index, example in zip(missing, read, strict=True)}
        found = [fresh[i] if i in fresh else self._cached[i] for i in indices]
        for index in missing:
            if len(self._cached) >= CACHED_EXAMPLES or self._bytes >= CACHED_BYTES:
                break
            self._cached[index] = tokens = fresh[index]
            self._bytes += sum(array.nbytes for array in tokens.values()) if tokens else 0
        return found

    def read_other(self, index: int) -> TokenExample | None:
        """The token example at ``index`` for use beside another one: None if a text in it is blank."""
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
    """The tokens of a random example that is not ``index``, nor blank.

    Raises:
      DataError: there is none.
    """
    for _ in range(_MOST_DRAWS if num_examples > 1 else 0):
        other = int(rng.integers(num_examples - 1))
        found = read(other + (other >= index))
        if found is not None:
            return found
    raise DataError(
        f"the objective needs another example beside each, and of {num_examples:,} none was found that is "
        "not blank"
    )
