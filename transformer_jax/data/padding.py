"""Pads token examples of many lengths to batches of few shapes, for training, inference and generation
alike."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from transformer_jax.data.examples import DataError
from transformer_jax.types import PAD_ID, SIDES, TokenExample

SHORTEST_LENGTH = 16  # tokens; sequences are padded to this times a power of two

_NOT_SINGLE = ("_", *(f"{side}_" for side in SIDES))  # prefixes of keys that are not one value per example


def pad_batch(
    rows: Sequence[Sequence[TokenExample]],
    length: int,
    like: TokenExample | None = None,
    *,
    pad_id: int = PAD_ID,
    on_the_left: bool = False,
) -> dict[str, np.ndarray]:
    """Writes token examples into the arrays of a batch (``transformer_jax.types`` describes the keys).

    Args:
      rows: the examples of every row; a row may be empty.
      length: tokens per side; every row must fit.
      like: an example with the keys, types and shapes of all; by default the first one in ``rows``.
      pad_id: the token to pad with.
      on_the_left: whether rows end in the last column, as the prompts of a decoder must, instead of beginning
        in the first one.

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
        batch |= _pad_side(rows, side, length, like, pad_id, on_the_left)
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


def _pad_side(
    rows: Sequence[Sequence[TokenExample]],
    side: str,
    length: int,
    like: TokenExample,
    pad_id: int,
    on_the_left: bool,
) -> dict[str, np.ndarray]:
    """Returns the arrays of one side: tokens, positions, segments, and other keys with values per token."""
    others = [key for key in like if key.startswith(f"{side}_")]
    tokens = np.full((len(rows), length), pad_id, np.int32)
    positions = np.zeros((len(rows), length), np.int32)
    segments = np.zeros((len(rows), length), np.int32)
    batch = {side: tokens, f"{side}_positions": positions, f"{side}_segments": segments}
    batch |= {key: np.zeros((len(rows), length), like[key].dtype) for key in others}
    for row, examples in enumerate(rows):
        start = length - sum(len(example[side]) for example in examples) if on_the_left else 0
        for segment, example in enumerate(examples, start=1):
            stop = start + len(example[side])
            tokens[row, start:stop] = example[side]
            positions[row, start:stop] = np.arange(stop - start)
            segments[row, start:stop] = segment
            for key in others:
                batch[key][row, start:stop] = example[key]
            start = stop
    return batch


def batches_by_length(
    lengths: Sequence[int], batch_size: int, max_length: int
) -> Iterator[tuple[int, int, list[int]]]:
    """Groups sequences of similar length into batches of few different shapes.

    Args:
      lengths: of the sequences, in tokens.
      batch_size: maximum number of sequences of a batch.
      max_length: the greatest length of a batch.

    Yields:
      The number of rows (1, 2, 4, ...) and the length (16, 32, 64, ... up to ``max_length``) of a batch, and
      the indices of the sequences in it. Shorter sequences come first.

    Raises:
      ValueError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"{batch_size=} must be at least 1")
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for length, group in itertools.groupby(order, key=lambda i: padded_length(lengths[i], max_length)):
        members = list(group)
        for start in range(0, len(members), batch_size):
            chunk = members[start : start + batch_size]
            yield power_of_two(len(chunk)), length, chunk


def padded_length(length: int, max_length: int) -> int:
    """Returns the length that a sequence is padded to: 16, 32, 64, ..., but at most ``max_length``."""
    return min(power_of_two(max(length, SHORTEST_LENGTH)), max_length)


def power_of_two(number: int) -> int:
    """Returns the smallest power of two that is not below ``number``, which is at least 1."""
    return 1 << (number - 1).bit_length()


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
