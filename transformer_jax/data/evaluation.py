"""Batches for evaluation: every example once, in as few shapes as training has, and one more."""

import numpy as np

from transformer_jax.data.packing import fill_batch, longest_side, own_rows, rows_per_batch
from transformer_jax.data.pipeline import DataConfig, Transform
from transformer_jax.data.sources import DataError, Source

EXTRA_LENGTH_MULTIPLE = 64  # of the one further length


def evaluation_batches(
    config: DataConfig,
    source: Source,
    transform: Transform,
    longest_allowed: int | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
    row_multiple: int = 1,
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """All of ``source`` once, grouped by length, nothing left out and never packed.

    Rows per batch are those of training, rounded up to a multiple of ``row_multiple``. Pairs above
    ``max_length`` share one further length: their longest, rounded up to a multiple of 64 but not
    above ``longest_allowed``. So there are at most ``len(lengths) + 1`` shapes.

    Args:
      config: how to batch; its ``source`` and ``tokenizer`` sections are not read here.
      source: the split to evaluate.
      transform: a pure function from a text example to a token example.
      longest_allowed: tokens of a side that the model takes; None takes any number.
      process_index: which of the processes this is.
      process_count: processes that share every batch.
      row_multiple: parts that a batch is split into, over all processes.

    Returns:
      For every batch the place in ``source`` of the example in each row (-1: an empty row, with
      segments all 0) and the batch; of this process's rows, as many batches in every process.

    Raises:
      DataError: a pair is longer than ``longest_allowed``.
      ValueError: ``process_count`` does not divide ``row_multiple``.
    """
    if row_multiple % process_count:
        raise ValueError(f"{row_multiple=} must be a multiple of {process_count=}")
    examples = [transform(text) for text in source.read(range(len(source)))]
    longest = np.array([longest_side(example) for example in examples])
    lengths = list(config.lengths)
    top = int(longest.max())
    if longest_allowed is not None and top > longest_allowed:
        raise DataError(
            f"pair {int(longest.argmax()) + 1} of those to evaluate has {top} tokens on a side, and the "
            f"model takes {longest_allowed}: raise config.model.max_length, or shorten the pair"
        )
    if top > lengths[-1]:
        rounded = -(-top // EXTRA_LENGTH_MULTIPLE) * EXTRA_LENGTH_MULTIPLE
        lengths.append(rounded if longest_allowed is None else min(rounded, longest_allowed))
    buckets = np.searchsorted(lengths, longest)
    batches = []
    for bucket, length in enumerate(lengths):
        members = np.flatnonzero(buckets == bucket)
        size = -(-rows_per_batch(config.tokens_per_batch, length) // row_multiple) * row_multiple
        own = own_rows(size, process_index, process_count)
        for start in range(0, len(members), size):
            indices = np.full(size, -1)
            found = members[start : start + size]
            indices[: len(found)] = found
            rows = [[examples[i]] if i >= 0 else [] for i in indices[own].tolist()]
            batches.append((indices[own], fill_batch(rows, length)))
    return batches
