"""Puts token examples of many lengths into batches of few shapes: length buckets, or packed rows.

A plan says which examples are in which rows of which batch. Planning needs only the lengths, so every process
can plan the whole batch and fill in its own rows.
"""

import bisect
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int

from transformer_jax.data.examples import DataError
from transformer_jax.types import SIDES, TokenExample

ROWS_MULTIPLE = 8  # so that 8 devices can share every batch


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Describes one batch: its length (tokens per side) and the examples in each of its rows."""

    length: int
    rows: tuple[tuple[int, ...], ...]


def rows_per_batch(tokens_per_batch: int, length: int, batch_size: int = 0) -> int:
    """Returns the number of rows of a batch.

    It is ``batch_size`` or, if that is 0, the largest multiple of 8 that fits ``tokens_per_batch``, but at
    least 8.
    """
    if batch_size:
        return batch_size
    fitting = tokens_per_batch // length // ROWS_MULTIPLE * ROWS_MULTIPLE
    return max(fitting, ROWS_MULTIPLE)


_MOST_TIMES = 8  # nearest_sizes does not look beyond 8 times the given size


def nearest_sizes(size: int, lengths: Sequence[int], batch_size: int, parts: int) -> list[int]:
    """Returns the nearest sizes with which ``parts`` divides the rows of batches of every length.

    Args:
      size: ``batch_size`` or, if that is 0, ``tokens_per_batch``; batches of this size cannot be divided.
      lengths: the lengths of batches, in tokens.
      batch_size: rows of every batch, or 0.
      parts: the number of parts that must divide the rows.

    Returns:
      The nearest size below and the nearest above ``size``, if they exist; none above eight times ``size``.
    """
    if batch_size:
        below = size // parts * parts
        return [value for value in (below, below + parts) if value]
    step = ROWS_MULTIPLE * math.gcd(*lengths)  # the numbers of rows change only at multiples of this
    first = size // step * step

    def divides(tokens: int) -> bool:
        return all(rows_per_batch(tokens, length) % parts == 0 for length in lengths)

    below = next(filter(divides, range(first, 0, -step)), 0)
    above = next(filter(divides, range(first + step, _MOST_TIMES * size, step)), 0)
    return [value for value in (below, above) if value]


def own_rows(rows: int, process_index: int, process_count: int) -> slice:
    """Returns the slice of the rows of a batch that belongs to this process."""
    share = rows // process_count
    return slice(process_index * share, (process_index + 1) * share)


def check_processes(
    lengths: Sequence[int], tokens_per_batch: int, batch_size: int, process_index: int, process_count: int
) -> None:
    """Checks that the processes can share the rows of batches of all ``lengths`` equally.

    Raises:
      DataError: they cannot, or ``process_index`` is not below ``process_count``.
    """
    if not 0 <= process_index < process_count:
        raise DataError(f"{process_index=} must be from 0 to {process_count=} - 1")
    for length in lengths:
        rows = rows_per_batch(tokens_per_batch, length, batch_size)
        if rows % process_count:
            what = f"data.batch_size={batch_size} makes {rows} rows"
            mend = "make it a multiple of them"
            if not batch_size:
                what = f"data.tokens_per_batch={tokens_per_batch} makes {rows} rows of {length} tokens"
                mend = "change tokens_per_batch or data.buckets"
            raise DataError(f"{what}, which {process_count} processes cannot share equally; {mend}")


def plan_buckets(
    lengths: Int[np.ndarray, "examples 2"],
    bucket_lengths: Sequence[int],
    tokens_per_batch: int,
    seed: int,
    batch_size: int = 0,
) -> tuple[list[BatchPlan], list[int]]:
    """Puts every example into the shortest bucket that holds both its sides, one example per row.

    Args:
      lengths: tokens of the inputs and the targets of each example, 0 for a side that it lacks.
      bucket_lengths: increasing; no example is longer than the last.
      tokens_per_batch: per side, padding included.
      seed: seed of the order of the batches.
      batch_size: rows of every batch; 0 to use ``tokens_per_batch`` instead.

    Returns:
      The full batches in random order, and the examples that did not fill a batch, oldest first.
    """
    buckets: dict[int, list[int]] = {length: [] for length in bucket_lengths}
    for example, longest in enumerate(lengths.max(axis=1).tolist()):
        buckets[bucket_lengths[bisect.bisect_left(bucket_lengths, longest)]].append(example)
    plans, carried = [], []
    for length, members in buckets.items():
        size = rows_per_batch(tokens_per_batch, length, batch_size)
        full = len(members) // size * size
        for start in range(0, full, size):
            rows = tuple((example,) for example in members[start : start + size])
            plans.append(BatchPlan(length, rows))
        carried += members[full:]
    return _shuffled(plans, seed), sorted(carried)


def plan_packed(
    lengths: Int[np.ndarray, "examples 2"],
    max_length: int,
    tokens_per_batch: int,
    seed: int,
    batch_size: int = 0,
) -> tuple[list[BatchPlan], list[int]]:
    """Packs several examples into each row so that both sides fit (first-fit decreasing on the longer side).

    Both sides of an example are in the same row.

    Args:
      lengths: tokens of the inputs and the targets of each example, at most ``max_length``.
      max_length: tokens in a row, per side.
      tokens_per_batch: per side, padding included.
      seed: seed of the order of the rows.
      batch_size: as in ``plan_buckets``.

    Returns:
      The full batches, and the examples of the rows that did not fill a batch, oldest first.
    """
    space = np.full((len(lengths), 2), max_length)  # free tokens in every row that may be opened
    rows: list[list[int]] = []
    for example in np.argsort(-lengths.max(axis=1), kind="stable").tolist():
        # The search includes one empty row after the open ones, so a row that fits always exists.
        fits = (space[: len(rows) + 1] >= lengths[example]).all(axis=1)
        row = int(fits.argmax())
        if row == len(rows):
            rows.append([])
        rows[row].append(example)
        space[row] -= lengths[example]
    # The rows to carry over are random: always carrying the emptiest would starve short examples.
    shuffled = _shuffled(rows, seed)
    size = rows_per_batch(tokens_per_batch, max_length, batch_size)
    full = len(rows) // size * size
    plans = [
        BatchPlan(max_length, tuple(tuple(row) for row in shuffled[start : start + size]))
        for start in range(0, full, size)
    ]
    return plans, sorted(example for row in shuffled[full:] for example in row)


def _shuffled(items: list, seed: int) -> list:
    # Grain's permutation, because it is the same function of the seed in every version and on every machine.
    last, seed = len(items) - 1, seed % 2**32
    return [items[index_shuffle(index, max_index=last, seed=seed, rounds=4)] for index in range(len(items))]


def side_lengths(example: TokenExample) -> tuple[int, ...]:
    """Returns the numbers of tokens of both sides, 0 for a side that the example lacks."""
    return tuple(len(example[side]) if side in example else 0 for side in SIDES)
