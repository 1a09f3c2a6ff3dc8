"""Makes batches for evaluation: every example once, in the shapes of training and one further shape."""

from collections.abc import Sequence

import numpy as np

from transformer_jax.data.examples import DataError, Source
from transformer_jax.data.packing import own_rows, rows_per_batch, side_lengths
from transformer_jax.data.padding import check_example, pad_batch
from transformer_jax.data.pipeline import DataConfig
from transformer_jax.data.token_examples import TokenCache, Transform, draw_other
from transformer_jax.types import CUT, TokenExample

EXTRA_LENGTH_MULTIPLE = 64  # the further length is a multiple of this

_EXAMPLES_AT_ONCE = 256
_MARK = 1  # part of the seed, so that evaluation and training draw different random numbers


def evaluation_batches(
    config: DataConfig,
    source: Source,
    transform: Transform,
    longest_allowed: int | None = None,
    *,
    limited_by: str = "config.model.max_length",
    process_index: int = 0,
    process_count: int = 1,
    row_multiple: int = 1,
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Returns all of ``source`` once: ``evaluation_pieces`` in the batches of ``batches_of_pieces``.

    Args:
      config: how to batch; its sources and tokenizer are not read here.
      source: the split to evaluate.
      transform: turns examples into tokens.
      longest_allowed: maximum number of tokens per side that the model accepts; None for no limit.
      limited_by: the key of the config that sets this limit, for messages.
      process_index: index of this process.
      process_count: number of processes that share every batch.
      row_multiple: number of parts that a batch is split into, over all processes.

    Returns:
      The batches, each with the index in ``source`` of the example in each of its rows.

    Raises:
      DataError: an example is longer than ``longest_allowed``, or lacks what the objective needs.
      ValueError: ``process_count`` does not divide ``row_multiple``.
    """
    places, pieces = evaluation_pieces(config, source, transform)
    return batches_of_pieces(
        config,
        places,
        pieces,
        longest_allowed,
        limited_by=limited_by,
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
    limited_by: str = "config.model.max_length",
    process_index: int = 0,
    process_count: int = 1,
    row_multiple: int = 1,
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Puts every piece of ``evaluation_pieces`` into a batch once, grouped by length and never packed.

    A batch has as many rows as in training, rounded up to a multiple of ``row_multiple``. Pieces above
    ``max_length`` share one further length: the longest of them, rounded up to a multiple of 64 but not above
    ``longest_allowed``. So there are at most ``len(lengths) + 1`` shapes.

    Args:
      config: how to batch.
      places: for each piece, the index of its example in the source.
      pieces: at least one.
      longest_allowed: maximum number of tokens per side that the model accepts; None for no limit.
      limited_by: the key of the config that sets this limit, for messages.
      process_index: index of this process.
      process_count: number of processes that share every batch.
      row_multiple: number of parts that a batch is split into, over all processes.

    Returns:
      One pair per batch: the index of each row's example (-1 for an empty row, whose segments are all 0), and
      the arrays of the batch. Both contain only this process's rows; every process gets equally many batches.

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
            f"but the model accepts {longest_allowed}: raise {limited_by}, or shorten the example"
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
            chosen = members[start : start + size].tolist()
            filled = [*chosen, *[-1] * (size - len(chosen))][own]
            batch = pad_batch([[pieces[i]] if i >= 0 else [] for i in filled], length, pieces[0])
            batches.append((np.array([places[i] if i >= 0 else -1 for i in filled]), batch))
    return batches


def evaluation_pieces(
    config: DataConfig, source: Source, transform: Transform
) -> tuple[list[int], list[TokenExample]]:
    """Returns the pieces of all examples of a source; they are the same in every evaluation.

    Returns:
      For each piece the index of its example in ``source``, increasing, and the pieces.

    Raises:
      DataError: there are no pieces.
    """
    # The cache is bounded in bytes; without a bound all images would be in memory.
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
    """Returns the number of examples that were truncated.

    Args:
      places: for each piece, the index of its example, as ``evaluation_pieces`` returns it.
      pieces: the pieces.
    """
    return len({place for place, piece in zip(places, pieces, strict=True) if CUT in piece})
