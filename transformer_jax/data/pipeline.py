"""Makes the batches for training: endless, and replayable bit-identically.

Batches are made in these steps::

    Grain MapDataset: index -> shuffle (anew every epoch) -> repeat
      -> a window of examples: read, encoded (cached in memory), split into pieces, filtered (counted)
      -> a plan of the window's batches (transformer_jax.data.packing)
      -> batches, which a thread fills ahead of time

Every process makes the same plans and fills in its own rows, so the order of the data does not depend on the
number of processes. The state is the start of the window, the pieces carried over from earlier windows, and
the number of batches handed out; after a restart the window is read and planned again from it. The pieces of
an example may be random, but they are determined by the seed and the example's position in the endless order.
"""

import dataclasses
import weakref
from typing import Any, Literal, NamedTuple

import grain
import numpy as np

from transformer_jax.config import check_types
from transformer_jax.data.examples import DataError, Source
from transformer_jax.data.packing import (
    BatchPlan,
    check_processes,
    own_rows,
    plan_buckets,
    plan_packed,
    side_lengths,
)
from transformer_jax.data.padding import check_example, pad_batch
from transformer_jax.data.sources import SourceConfig
from transformer_jax.data.token_examples import TokenCache, Transform, draw_other
from transformer_jax.data.tokenizers import TokenizerConfig
from transformer_jax.types import CUT, TokenExample

PREFETCHED_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Configures the data of an experiment.

    Batches are (rows, length) on both sides. The length is one of ``lengths``. The number of rows is
    ``batch_size`` or, if that is 0, ``tokens_per_batch // length``, rounded down to a multiple of 8 but at
    least 8. So there are ``len(lengths)`` shapes to compile, or one if batches are packed or have no tokens.

    Raises:
      ValueError: a size is below 1, a bucket exceeds ``max_length`` or batches are packed, the kind of
        batching is unknown, or the sources have different features.
    """

    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    more_sources: tuple[SourceConfig, ...] = ()  # used for training together with source; not evaluated
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    max_length: int = 128  # maximum tokens per side, <eos> included; longer examples are left out of training
    batching: Literal["buckets", "packed"] = "buckets"
    buckets: tuple[int, ...] = ()  # lengths of batches in tokens, in addition to max_length
    tokens_per_batch: int = 4096  # per side, padding included, over all processes
    batch_size: int = 0  # rows of every batch over all processes; 0 to use tokens_per_batch instead
    window: int = 4096  # number of examples or pieces that are grouped into batches together
    seed: int = 0  # seed of the order of the examples

    def __post_init__(self) -> None:
        check_types(self, "data")
        for name in ("max_length", "tokens_per_batch", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1")
        if self.batch_size < 0:
            raise ValueError(f"data.batch_size={self.batch_size} must not be negative")
        features = {name for name, _ in self.source.features}
        for number, source in enumerate(self.more_sources):
            other_features = {name for name, _ in source.features}
            if other_features != features:
                raise ValueError(
                    f"data.more_sources[{number}] has the features {', '.join(sorted(other_features))}, but "
                    f"data.source has {', '.join(sorted(features))}: they must be the same"
                )
        if self.buckets and self.batching == "packed":
            raise ValueError(
                f"data.buckets={self.buckets} needs data.batching='buckets': packed rows have one length"
            )
        for bucket in self.buckets:
            if not 1 <= bucket <= self.max_length:
                raise ValueError(
                    f"data.buckets={self.buckets} must be from 1 to data.max_length="
                    f"{self.max_length}, but {bucket} is not"
                )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"data.seed={self.seed} must be from 0 to 2**32 - 1")

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """Returns all sources that are used for training."""
        return (self.source, *self.more_sources)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Returns the lengths that batches may have, in tokens, increasing."""
        if self.batching == "packed":
            return (self.max_length,)
        return tuple(sorted({*self.buckets, self.max_length}))


def training_iterator(
    config: DataConfig,
    source: Source,
    transform: Transform,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> "TrainingIterator":
    """Returns endless training batches of ``source``; see ``TrainingIterator``.

    Args:
      config: how to batch; its sources and tokenizer are not read here.
      source: the training split.
      transform: turns examples into tokens.
      process_index: index of this process.
      process_count: number of processes that share every batch.

    Raises:
      DataError: the processes cannot share the rows of a batch equally.
    """
    check_processes(config.lengths, config.tokens_per_batch, config.batch_size, process_index, process_count)
    windows = _WindowedBatches(config, source, transform, process_index, process_count)
    return TrainingIterator(windows, len(source))


class TrainingIterator:
    """Iterates over batches for ever: every example once per epoch, in a new order each epoch.

    An example is left out, and counted, if one of its texts is blank (only white space) or if all its pieces
    have more than ``max_length`` tokens on a side. Pieces that do not fill a batch wait for the next window.
    """

    def __init__(self, windows: "_WindowedBatches", num_examples: int):
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            windows, prefetch_buffer_size=PREFETCHED_BATCHES
        )
        self._open = [iter(dataset)]
        # Closes the iterator before the interpreter unloads modules: Grain's own clean-up in __del__ would
        # run after that and fail.
        self._finalizer = weakref.finalize(self, _close_all, self._open)
        self._num_examples = num_examples

    def __iter__(self) -> "TrainingIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns this process's rows of the next batch; ``transformer_jax.types`` describes the keys.

        Raises:
          DataError: no example of the source can be used for training, or one lacks what the objective needs.
        """
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Returns the state after the batch that was handed out last, as JSON values for ``set_state``."""
        state = self._iterator.get_state()
        carried = [list(pair) for pair in state["carried"]]
        return state | {"carried": carried, "settings": dict(state["settings"])}

    def set_state(self, state: dict[str, Any]) -> None:
        """Resumes at the state that ``get_state`` returned, perhaps with another number of processes.

        Raises:
          DataError: the state was saved with other data or other settings of the data.
        """
        self._iterator.set_state(state)

    @property
    def filtered(self) -> int:
        """Returns the number of examples left out as too long, in the part of the first epoch read so far."""
        return self._iterator.get_state()["filtered"]

    @property
    def blank(self) -> int:
        """Returns the number of examples left out as blank, in the part of the first epoch read so far."""
        return self._iterator.get_state()["blank"]

    @property
    def cut(self) -> int:
        """Returns the number of examples that were truncated, in the part of the first epoch read so far."""
        return self._iterator.get_state()["cut"]

    @property
    def examples(self) -> int:
        """Returns the number of examples in all processes' batches so far; one in pieces counts once."""
        return self._iterator.get_state()["examples"]

    @property
    def epoch(self) -> float:
        """Returns the number of passes over the data, for display; 2.5 is half-way through the third."""
        return self.examples / max(1, self._num_examples - self.filtered - self.blank)

    def close(self) -> None:
        """Stops the thread; the iterator cannot be used any more."""
        self._finalizer()

    @property
    def _iterator(self) -> grain.DatasetIterator:
        if not self._open:
            raise ValueError("this data iterator is closed")
        return self._open[0]


class _WindowedBatches(grain.IterDataset):
    """Provides the endless batches of one process, without the thread."""

    def __init__(
        self,
        config: DataConfig,
        source: Source,
        transform: Transform,
        process_index: int,
        process_count: int,
    ):
        super().__init__()
        self.config = config
        self.order: Any = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat()
        self.num_examples = len(source)
        self.transform = transform
        self.tokens = TokenCache(source, transform)
        self.process = (process_index, process_count)
        self.settings = {
            "num_examples": len(source),
            "max_length": config.max_length,
            "batching": config.batching,
            "lengths": list(config.lengths),
            "tokens_per_batch": config.tokens_per_batch,
            "batch_size": config.batch_size,
            "window": config.window,
            "seed": config.seed,
        }

    def __iter__(self) -> "_WindowedIterator":
        return _WindowedIterator(self)

    def pieces(self, place: int, tokens: TokenExample) -> list[TokenExample]:
        """Returns the pieces of the example at ``place`` in the endless order; deterministic."""
        rng = np.random.default_rng((self.config.seed, place))

        def draw() -> TokenExample:
            return draw_other(self.tokens.read_other, self.order[place], self.num_examples, rng)

        return self.transform.pieces(tokens, rng, draw)


class _Piece(NamedTuple):
    place: int  # the position of its example in the endless order
    number: int  # its index among the pieces of that visit
    is_first: bool  # whether it is the first piece of the visit that is not too long
    tokens: TokenExample


class _WindowedIterator(grain.DatasetIterator):
    """Reads and plans one window at a time; the module docstring describes the state."""

    def __init__(self, dataset: _WindowedBatches):
        super().__init__()
        self._dataset = dataset
        self._state: dict[str, Any] = {
            "start": 0,  # start of the window in the endless order of examples
            "carried": [],  # [place in that order, number] of each piece carried over from earlier windows
            "batch": 0,  # index of the window's batch that is handed out next
            "examples": 0,
            "filtered": 0,  # this and the next two are counted when a window is read
            "blank": 0,
            "cut": 0,
            "settings": dataset.settings,
        }
        self._plans: list[BatchPlan] | None = None  # the window's plans; None if it is not read yet
        self._pieces: list[_Piece] = []  # the window's pieces, carried ones first
        self._visits = 0  # number of positions in the endless order that the window covers
        self._next_carried: list[list[int]] = []
        self._counted = False  # whether the window's filtered, blank and truncated examples are counted

    def __next__(self) -> dict[str, np.ndarray]:
        unusable = 0  # consecutive examples without a usable piece
        while True:
            if self._plans is None:
                self._read_window()
            assert self._plans is not None
            if self._state["batch"] < len(self._plans):
                break
            unusable = 0 if self._pieces else unusable + self._dataset.config.window
            if unusable >= 2 * self._dataset.num_examples:  # these contain a whole epoch
                raise DataError(
                    f"none of the {self._dataset.num_examples:,} examples can be trained on: each is "
                    f"longer than data.max_length={self._dataset.config.max_length} tokens or has "
                    "a blank text"
                )
            self._go_to_next_window()
        plan = self._plans[self._state["batch"]]
        self._state = self._state | {
            "batch": self._state["batch"] + 1,
            "examples": self._state["examples"]
            + sum(self._pieces[i].is_first for row in plan.rows for i in row),
        }
        own = plan.rows[own_rows(len(plan.rows), *self._dataset.process)]
        return pad_batch([[self._pieces[i].tokens for i in row] for row in own], plan.length)

    def get_state(self) -> dict[str, Any]:
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        if set(state) != set(self._state):
            raise DataError(
                f"a data iterator's state has the keys {sorted(self._state)}, not {sorted(state)}"
            )
        current, saved = self._dataset.settings, state["settings"]
        if set(saved) != set(current):
            raise DataError(f"a data iterator's settings are {sorted(current)}, not {sorted(saved)}")
        differing = [
            f"{name} {saved[name]}, now {value}" for name, value in current.items() if saved[name] != value
        ]
        if differing:
            raise DataError(
                f"the data iterator was saved with other data: {'; '.join(differing)}. Continue "
                "with the data of the saved run, or start a new one"
            )
        self._state = dict(state)
        self._plans = None
        # A window has been counted if one of its batches was handed out.
        self._counted = state["batch"] > 0

    def _read_window(self) -> None:
        config, state = self._dataset.config, self._state
        window = range(state["start"], state["start"] + config.window)
        carried: dict[int, list[int]] = {}  # numbers of the carried pieces of each place
        for place, number in state["carried"]:
            carried.setdefault(place, []).append(number)
        places = [*carried, *window]
        examples = self._dataset.tokens.read([self._dataset.order[place] for place in places])
        self._pieces, self._visits = [], 0
        filtered = blank = cut = size = 0
        for place, tokens in zip(places, examples, strict=True):
            # Without this limit, texts of thousands of pieces would take thousands of times the memory.
            if size >= config.window:
                break
            pieces = [] if tokens is None else self._fitting_pieces(place, tokens)
            if place in carried:
                pieces = [piece for piece in pieces if piece.number in carried[place]]
            else:
                self._visits += 1
                size += max(1, len(pieces))
                is_first_epoch = place < self._dataset.num_examples
                blank += is_first_epoch and tokens is None
                filtered += is_first_epoch and tokens is not None and not pieces
                cut += is_first_epoch and any(CUT in piece.tokens for piece in pieces)
            self._pieces += pieces
        if not self._counted:
            self._state = state | {
                "filtered": state["filtered"] + filtered,
                "blank": state["blank"] + blank,
                "cut": state["cut"] + cut,
            }
            self._counted = True
        lengths = np.array([side_lengths(piece.tokens) for piece in self._pieces], np.int64)
        sizes = (config.tokens_per_batch, config.seed + state["start"], config.batch_size)
        if config.batching == "packed":
            self._plans, waiting = plan_packed(lengths.reshape(-1, 2), config.max_length, *sizes)
        else:
            self._plans, waiting = plan_buckets(lengths.reshape(-1, 2), config.lengths, *sizes)
        self._next_carried = [[self._pieces[i].place, self._pieces[i].number] for i in waiting]

    def _fitting_pieces(self, place: int, tokens: TokenExample) -> list[_Piece]:
        """Returns the pieces of one visit that are not too long."""
        config = self._dataset.config
        fitting: list[_Piece] = []
        for number, piece in enumerate(self._dataset.pieces(place, tokens)):
            check_example(piece, packed=config.batching == "packed", batch_size=config.batch_size)
            if max(side_lengths(piece)) <= config.max_length:
                fitting.append(_Piece(place, number, not fitting, piece))
        return fitting

    def _go_to_next_window(self) -> None:
        self._state = self._state | {
            "start": self._state["start"] + self._visits,
            "carried": self._next_carried,
            "batch": 0,
        }
        self._plans = None
        self._counted = False


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
    while iterators:
        iterators.pop().close()
