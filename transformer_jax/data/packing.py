"""From token examples of many lengths to batches of few shapes: length buckets, or packed rows.

A plan says which examples make up which rows of which batch. Planning sees lengths only, so every
process can plan the whole batch and fill in its own rows.
"""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int

from transformer_jax.data.sources import DataError
from transformer_jax.types import PAD_ID, SIDES, TokenExample

ROWS_MULTIPLE = 8  # so that 8 devices divide every batch


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """One batch: its length (tokens, of both sides) and the examples in each of its rows."""

    length: int
    rows: tuple[tuple[int, ...], ...]


def rows_per_batch(tokens_per_batch: int, length: int) -> int:
    """Rows of a batch of this length: the most that fit, as a multiple of 8, but at least 8."""
    fitting = tokens_per_batch // length // ROWS_MULTIPLE * ROWS_MULTIPLE
    return max(fitting, ROWS_MULTIPLE)


def own_rows(rows: int, process_index: int, process_count: int) -> slice:
    """The rows of a batch of ``rows`` that are this process's."""
    share = rows // process_count
    return slice(process_index * share, (process_index + 1) * share)


def check_processes(
    lengths: Sequence[int], tokens_per_batch: int, process_index: int, process_count: int
) -> None:
    """Checks that the processes can share the rows of batches of all ``lengths``.

    Raises:
      DataError: they cannot, or ``process_index`` is not that of one of them.
    """
    if not 0 <= process_index < process_count:
        raise DataError(f"{process_index=} must be from 0 to {process_count=} - 1")
    for length in lengths:
        rows = rows_per_batch(tokens_per_batch, length)
        if rows % process_count:
            raise DataError(
                f"data.tokens_per_batch={tokens_per_batch} makes {rows} rows of {length} tokens, "
                f"which {process_count} processes cannot share equally; change tokens_per_batch "
                "or data.buckets"
            )


def plan_buckets(
    lengths: Int[np.ndarray, "examples 2"],
    bucket_lengths: Sequence[int],
    tokens_per_batch: int,
    seed: int,
) -> tuple[list[BatchPlan], list[int]]:
    """Puts every example into the shortest bucket that holds both its sides, one to a row.

    Args:
      lengths: tokens of the inputs and the targets of each example.
      bucket_lengths: increasing; no example is longer than the last.
      tokens_per_batch: padding included, per side.
      seed: of the order of the batches.

    Returns:
      The full batches, in random order, and the examples that did not fill one, oldest first.
    """
    buckets: dict[int, list[int]] = {length: [] for length in bucket_lengths}
    for example, longest in enumerate(lengths.max(axis=1).tolist()):
        buckets[bucket_lengths[bisect.bisect_left(bucket_lengths, longest)]].append(example)
    plans, carried = [], []
    for length, members in buckets.items():
        size = rows_per_batch(tokens_per_batch, length)
        full = len(members) // size * size
        for start in range(0, full, size):
            rows = tuple((example,) for example in members[start : start + size])
            plans.append(BatchPlan(length, rows))
        carried += members[full:]
    return _shuffled(plans, seed), sorted(carried)


def plan_packed(
    lengths: Int[np.ndarray, "examples 2"], max_length: int, tokens_per_batch: int, seed: int
) -> tuple[list[BatchPlan], list[int]]:
    """Packs several examples into each row so that both sides fit, longest first, first fit.

    First-fit decreasing on the longer side; both sides of an example are in the same row.

    Args:
      lengths: tokens of the inputs and the targets of each example, at most ``max_length``.
      max_length: tokens in a row, per side.
      tokens_per_batch: padding included, per side.
      seed: of the order of the rows.

    Returns:
      The full batches and the examples of the rows that did not fill one, oldest first.
    """
    space = np.full((len(lengths), 2), max_length)  # in every row that may be opened
    rows: list[list[int]] = []
    for example in np.argsort(-lengths.max(axis=1), kind="stable").tolist():
        # One row more than is open is looked at, and it is empty: something always fits.
        fits = (space[: len(rows) + 1] >= lengths[example]).all(axis=1)
        row = int(fits.argmax())
        if row == len(rows):
            rows.append([])
        rows[row].append(example)
        space[row] -= lengths[example]
    # The rows to carry over are drawn by lot: always the emptiest would starve short examples.
    shuffled = _shuffled(rows, seed)
    size = rows_per_batch(tokens_per_batch, max_length)
    full = len(rows) // size * size
    plans = [
        BatchPlan(max_length, tuple(tuple(row) for row in shuffled[start : start + size]))
        for start in range(0, full, size)
    ]
    return plans, sorted(example for row in shuffled[full:] for example in row)


def fill_batch(rows: Sequence[Sequence[TokenExample]], length: int) -> dict[str, np.ndarray]:
    """Writes token examples into the six arrays of a batch, each (rows, ``length``) int32.

    Args:
      rows: the examples of every row; a row may be empty.
      length: tokens, of both sides; every row must fit.
    """
    batch = {}
    for side in SIDES:
        tokens = np.full((len(rows), length), PAD_ID, np.int32)
        positions = np.zeros((len(rows), length), np.int32)
        segments = np.zeros((len(rows), length), np.int32)
        for row, examples in enumerate(rows):
            start = 0
            for segment, example in enumerate(examples, start=1):
                stop = start + len(example[side])
                tokens[row, start:stop] = example[side]
                positions[row, start:stop] = np.arange(stop - start)
                segments[row, start:stop] = segment
                start = stop
        batch[side] = tokens
        batch[f"{side}_positions"] = positions
        batch[f"{side}_segments"] = segments
    return batch


def _shuffled(items: list, seed: int) -> list:
    # Grain's permutation, because it is a fixed function of the seed in every version and place.
    last, seed = len(items) - 1, seed % 2**32
    return [items[index_shuffle(index, max_index=last, seed=seed, rounds=4)] for index in range(len(items))]


def longest_side(example: TokenExample) -> int:
    """Tokens of the longer side."""
    return max(len(example[side]) for side in SIDES)
