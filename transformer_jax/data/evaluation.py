"""Batches for evaluation: every example once, in as few shapes as training has, and one more."""

from collections.abc import Sequence

import numpy as np

from transformer_jax.data.examples import DataError, Source
from transformer_jax.data.packing import check_example, fill_batch, own_rows, rows_per_batch, side_lengths
from transformer_jax.data.pipeline import DataConfig
from transformer_jax.data.token_examples import TokenCache, Transform, draw_other
from transformer_jax.types import CUT, TokenExample

EXTRA_LENGTH_MULTIPLE = 64  # of the one further length

_EXAMPLES_AT_ONCE = 256
_MARK = 1  # keeps the random numbers of evaluation apart from those of training


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
    """All of ``source`` once: ``evaluation_pieces`` in the batches of ``batches_of_pieces``.

    Args:
      config: how to batch; its sources and tokenizer are not read here.
      source: the split to evaluate.
      transform: from examples to tokens.
      longest_allowed: tokens of a side that the model takes; None takes any number.
      process_index: which of the processes this is.
      process_count: processes that share every batch.
      row_multiple: parts that a batch is split into, over all processes.

    Returns:
      The batches, each with the places in ``source`` of the examples in its rows.

    Raises:
      DataError: an example is longer than ``longest_allowed``, or is not what the objective needs.
      ValueError: ``process_count`` does not divide ``row_multiple``.
    """
    places, pieces = evaluation_pieces(config, source, transform)
    return batches_of_pieces(
        config,
        places,
        pieces,
        longest_allowed,
        process_index=process_index,
        process_count=process_count,
        row_multiple=row_multiple,
    )


def batches_of_pieces(
    config: DataConfig,
    places: Sequence[int],
    pieces: Sequence[TokenExample],
    longest_allowed: int | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
    row_multiple: int = 1,
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """What ``evaluation_pieces`` gave, each once, grouped by length, nothing left out and never packed.

    Rows per batch are those of training, rounded up to a multiple of ``row_multiple``. Pieces above
    ``max_length`` share one further length: their longest, rounded up to a multiple of 64 but not above
    ``longest_allowed``. So there are at most ``len(lengths) + 1`` shapes.

    Args:
      config: how to batch.
      places: of the examples that the pieces come from, in their source.
      pieces: at least one.
      longest_allowed: tokens of a side that the model takes; None takes any number.
      process_index: which of the processes this is.
      process_count: processes that share every batch.
      row_multiple: parts that a batch is split into, over all processes.

    Returns:
      For every batch the place of the example in each row (-1: an empty row, with
      segments all 0) and the batch; of this process's rows, as many batches in every process.

    Raises:
      DataError: a piece is longer than ``longest_allowed``.
      ValueError: ``process_count`` does not divide ``row_multiple``.
    """
    if row_multiple % process_count:
        raise ValueError(f"{row_multiple=} must be a multiple of {process_count=}")
    longest = np.array([max(side_lengths(piece)) for piece in pieces])
    lengths = list(config.lengths)
    top = int(longest.max())
    if longest_allowed is not None and top > longest_allowed:
        raise DataError(
            f"example {places[int(longest.argmax())] + 1} of those to evaluate has {top} tokens on a side, "
            f"and the model takes {longest_allowed}: raise config.model.max_length, or shorten the example"
        )
    if top > lengths[-1]:
        rounded = -(-top // EXTRA_LENGTH_MULTIPLE) * EXTRA_LENGTH_MULTIPLE
        lengths.append(rounded if longest_allowed is None else min(rounded, longest_allowed))
    buckets = np.searchsorted(lengths, longest)
    batches = []
    for bucket, length in enumerate(lengths):
        members = np.flatnonzero(buckets == bucket)
        rows = rows_per_batch(config.tokens_per_batch, length, config.batch_size)
        size = -(-rows // row_multiple) * row_multiple
        own = own_rows(size, process_index, process_count)
        for start in range(0, len(members), size):
            found = members[start : start + size].tolist()
            filled = [*found, *[-1] * (size - len(found))][own]
            batch = fill_batch([[pieces[i]] if i >= 0 else [] for i in filled], length, pieces[0])
            batches.append((np.array([places[i] if i >= 0 else -1 for i in filled]), batch))
    return batches


def evaluation_pieces(
    config: DataConfig, source: Source, transform: Transform
) -> tuple[list[int], list[TokenExample]]:
    """What every evaluation sees of a source: always the same.

    Returns:
      The place in ``source`` of the example that each piece comes from, increasing, and the pieces.

    Raises:
      DataError: there is none.
    """
    # Bounded in bytes, or whole images would all be in memory.
    cache = TokenCache(source, transform, purpose="evaluate", leave_out_blank=False)
    places, pieces = [], []
    for start in range(0, len(source), _EXAMPLES_AT_ONCE):
        chunk = range(start, min(start + _EXAMPLES_AT_ONCE, len(source)))
        for place, tokens in zip(chunk, cache.read(chunk), strict=True):
            assert tokens is not None  # blank ones are not left out
            rng = np.random.default_rng((config.seed, place, _MARK))

            def draw(place: int = place, rng: np.random.Generator = rng) -> TokenExample:
                return draw_other(cache.read_other, place, len(source), rng)

            for piece in transform.pieces(tokens, rng, draw):
                check_example(piece, packed=False, batch_size=config.batch_size)
                places.append(place)
                pieces.append(piece)
    if not pieces:
        raise DataError(f"there is nothing to evaluate in {len(source):,} example(s)")
    return places, pieces


def count_cut(places: Sequence[int], pieces: Sequence[TokenExample]) -> int:
    """Of how many examples the pieces, in places as ``evaluation_pieces`` gives them, are cut short."""
    return len({place for place, piece in zip(places, pieces, strict=True) if CUT in piece})
