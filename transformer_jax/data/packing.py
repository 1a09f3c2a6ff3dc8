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
from transformer_jax.types import PAD_ID, SIDES, TokenExample

ROWS_MULTIPLE = 8  # so that 8 devices can share every batch

_NOT_SINGLE = ("_", *(f"{side}_" for side in SIDES))  # prefixes of keys that are not one value per example


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


def fill_batch(
    rows: Sequence[Sequence[TokenExample]], length: int, like: TokenExample | None = None
) -> dict[str, np.ndarray]:
    """Writes token examples into the arrays of a batch (``transformer_jax.types`` describes the keys).

    Args:
      rows: the examples of every row; a row may be empty.
      length: tokens per side; every row must fit.
      like: an example with the keys, types and shapes of all; by default the first one in ``rows``.

    Raises:
      DataError: an example has other keys or shapes than ``like``, or a row with several examples has a key
        that cannot be packed.
    """
    if like is None:
        like = next((example for examples in rows for example in examples), None)
        if like is None:
            raise ValueError("the rows have no example to take the keys from: give one as `like`")
    batch: dict[str, np.ndarray] = {}
    for side in _sides_of(like):
        batch |= _fill_side(rows, side, length, like)
    for key in _single_keys(like):
        no_value = 0 if like[key].dtype.kind in "ub" else -1
        batch[key] = np.full((len(rows), *like[key].shape), no_value, like[key].dtype)
    for row, examples in enumerate(rows):
        for example in examples:
            _check_like(example, like)
            for key in _single_keys(example):
                if len(examples) > 1:
                    raise DataError(_unpackable(key))
                batch[key][row] = example[key]
    return batch


def _fill_side(
    rows: Sequence[Sequence[TokenExample]], side: str, length: int, like: TokenExample
) -> dict[str, np.ndarray]:
    """Returns the arrays of one side: tokens, positions, segments, and other keys with values per token."""
    others = [key for key in like if key.startswith(f"{side}_")]
    tokens = np.full((len(rows), length), PAD_ID, np.int32)
    positions = np.zeros((len(rows), length), np.int32)
    segments = np.zeros((len(rows), length), np.int32)
    batch = {side: tokens, f"{side}_positions": positions, f"{side}_segments": segments}
    batch |= {key: np.zeros((len(rows), length), like[key].dtype) for key in others}
    for row, examples in enumerate(rows):
        start = 0
        for segment, example in enumerate(examples, start=1):
            stop = start + len(example[side])
            tokens[row, start:stop] = example[side]
            positions[row, start:stop] = np.arange(stop - start)
            segments[row, start:stop] = segment
            for key in others:
                batch[key][row, start:stop] = example[key]
            start = stop
    return batch


def _shuffled(items: list, seed: int) -> list:
    # Grain's permutation, because it is the same function of the seed in every version and on every machine.
    last, seed = len(items) - 1, seed % 2**32
    return [items[index_shuffle(index, max_index=last, seed=seed, rounds=4)] for index in range(len(items))]


def side_lengths(example: TokenExample) -> tuple[int, ...]:
    """Returns the numbers of tokens of both sides, 0 for a side that the example lacks."""
    return tuple(len(example[side]) if side in example else 0 for side in SIDES)


def check_example(example: TokenExample, *, packed: bool, batch_size: int) -> None:
    """Checks that a token example is consistent and can be put into batches.

    Raises:
      DataError: an array is not as long as its side; a value cannot be packed although ``packed`` is set; or
        the example has no tokens and ``batch_size`` is 0.
    """
    for side in SIDES:
        for key in (key for key in example if key.startswith(f"{side}_")):
            count, num_tokens = len(example[key]), len(example.get(side, ()))
            if count != num_tokens:
                raise DataError(
                    f"the objective gives {count} {key} for {num_tokens} {side}: it must give one per token"
                )
    if packed:
        for key in _single_keys(example):
            raise DataError(_unpackable(key))
    if not _sides_of(example) and not batch_size:
        raise DataError(
            f"examples of {', '.join(_single_keys(example))} have no tokens that determine the rows of a "
            "batch: set config.data.batch_size"
        )


def _sides_of(example: TokenExample) -> list[str]:
    return [side for side in SIDES if side in example]


def _single_keys(example: TokenExample) -> list[str]:
    """Returns the keys with one value per example."""
    return [key for key in example if key not in SIDES and not key.startswith(_NOT_SINGLE)]


def _unpackable(key: str) -> str:
    return f"{key} cannot be packed, because a row has only one: set config.data.batching='buckets'"


def _check_like(example: TokenExample, like: TokenExample) -> None:
    """Raises DataError unless one batch can hold both examples."""
    keys = [sorted(key for key in keys if not key.startswith("_")) for keys in (example, like)]
    if keys[0] != keys[1]:
        raise DataError(f"the objective gives examples with different keys: {keys[0]} and {keys[1]}")
    for key in _single_keys(like):
        if example[key].shape != like[key].shape:
            raise DataError(
                f"{key} of shape {example[key].shape} cannot be in one batch with {key} of shape "
                f"{like[key].shape}: all examples must have the same shape"
            )
