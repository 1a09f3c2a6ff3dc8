"""Batches for training, endless and replayable to the bit.

How training batches come about::

    Grain MapDataset: index -> shuffle (anew every epoch) -> repeat
      -> a window of examples: read, encoded (kept in memory), taken to pieces, filtered (counted)
      -> a plan of the window's batches (transformer_jax.data.packing)
      -> batches, filled in ahead of time by a thread

Every process goes through the same plans and fills in its own rows, so the order of the data does not
depend on how many processes there are. The state is where the window starts, what it carried over from
earlier ones, and how many of its batches were handed out; from this it is read and planned again. The
pieces of an example may be random, but follow from the seed and its place in the endless order.
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
    check_example,
    check_processes,
    fill_batch,
    own_rows,
    plan_buckets,
    plan_packed,
    side_lengths,
)
from transformer_jax.data.sources import SourceConfig
from transformer_jax.data.token_examples import TokenCache, Transform, draw_other
from transformer_jax.data.tokenizers import TokenizerConfig
from transformer_jax.types import CUT, TokenExample

PREFETCHED_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data section of an experiment.

    Batches are (rows, length) on both sides, where length is one of ``lengths`` and rows is
    ``batch_size`` or, where that is 0, ``tokens_per_batch // length``, rounded down to a multiple of 8 but
    at least 8. So there are ``len(lengths)`` shapes to compile, or one when packed or without tokens.

    Raises:
      ValueError: a size below 1, a bucket above ``max_length`` or of packed batches, an unknown kind of
        batching, or sources with different features.
    """

    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    more_sources: tuple[SourceConfig, ...] = ()  # trained on together with source; not evaluated
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    max_length: int = 128  # tokens of one side, <eos> included; longer examples are not trained on
    batching: Literal["buckets", "packed"] = "buckets"
    buckets: tuple[int, ...] = ()  # lengths, tokens, besides max_length
    tokens_per_batch: int = 4096  # of one side, padding included, over all processes
    batch_size: int = 0  # rows of every batch over all processes; 0: as tokens_per_batch says
    window: int = 4096  # examples, or pieces of them, that are grouped into batches together
    seed: int = 0  # of the order of the examples

    def __post_init__(self) -> None:
        check_types(self, "data")
        for name in ("max_length", "tokens_per_batch", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1")
        if self.batch_size < 0:
            raise ValueError(f"data.batch_size={self.batch_size} must not be negative")
        wanted = {name for name, _ in self.source.features}
        for number, source in enumerate(self.more_sources):
            found = {name for name, _ in source.features}
            if found != wanted:
                raise ValueError(
                    f"data.more_sources[{number}] has the features {', '.join(sorted(found))}, but "
                    f"data.source {', '.join(sorted(wanted))}: they must be the same"
                )
        if self.buckets and self.batching == "packed":
            raise ValueError(
                f"data.buckets={self.buckets} is for data.batching='buckets': packed rows have one length"
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
        """All that is trained on."""
        return (self.source, *self.more_sources)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that batches may have, in tokens, increasing."""
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
    """Endless training batches of ``source``; see ``TrainingIterator``.

    Args:
      config: how to batch; its sources and tokenizer are not read here.
      source: the training split.
      transform: from examples to tokens.
      process_index: which of the processes this is.
      process_count: processes that share every batch.

    Raises:
      DataError: the rows of a batch cannot be shared equally among the processes.
    """
    check_processes(config.lengths, config.tokens_per_batch, config.batch_size, process_index, process_count)
    windows = _WindowedBatches(config, source, transform, process_index, process_count)
    return TrainingIterator(windows, len(source))


class TrainingIterator:
    """Batches for ever: every example once an epoch, in a new order each epoch.

    An example is left out, and counted, if a text in it is blank (nothing but white space) or if none of its
    pieces has at most ``max_length`` tokens a side. Pieces that do not fill a batch wait for the next window.
    """

    def __init__(self, windows: "_WindowedBatches", num_examples: int):
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            windows, prefetch_buffer_size=PREFETCHED_BATCHES
        )
        self._open = [iter(dataset)]
        # Closed and let go of before the interpreter takes modules apart: Grain's own clean-up,
        # in __del__, would come after that and fail.
        self._finalizer = weakref.finalize(self, _close_all, self._open)
        self._num_examples = num_examples

    def __iter__(self) -> "TrainingIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """This process's rows of the next batch; ``transformer_jax.types`` says what is in it.

        Raises:
          DataError: no example of the source can be trained on, or one is not what the objective needs.
        """
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """What ``set_state`` needs to go on after the batch that was handed out last, for JSON."""
        state = self._iterator.get_state()
        carried = [list(pair) for pair in state["carried"]]
        return state | {"carried": carried, "settings": dict(state["settings"])}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where ``get_state`` was called, perhaps with another number of processes.

        Raises:
          DataError: the state was saved with other data or settings of the data.
        """
        self._iterator.set_state(state)

    @property
    def filtered(self) -> int:
        """Examples left out for their length, in what was read of the first epoch; the others are alike."""
        return self._iterator.get_state()["filtered"]

    @property
    def blank(self) -> int:
        """Examples left out for a blank text, in what was read of the first epoch; the others are alike."""
        return self._iterator.get_state()["blank"]

    @property
    def cut(self) -> int:
        """Examples that were cut short, in what was read of the first epoch; the others are alike."""
        return self._iterator.get_state()["cut"]

    @property
    def examples(self) -> int:
        """Examples in the batches handed out so far, by all processes; one in pieces counts once."""
        return self._iterator.get_state()["examples"]

    @property
    def epoch(self) -> float:
        """How many times the data were gone through, for display: 2.5 is half-way the third."""
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
    """The endless batches of one process, without the thread."""

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
        """What the visit of an example at a place of the endless order gives, however often it is asked."""
        rng = np.random.default_rng((self.config.seed, place))

        def draw() -> TokenExample:
            return draw_other(self.tokens.read_other, self.order[place], self.num_examples, rng)

        return self.transform.pieces(tokens, rng, draw)


class _Piece(NamedTuple):
    place: int  # of its example, in the endless order
    number: int  # among the pieces of that visit
    is_first: bool  # of those that are not too long
    tokens: TokenExample


class _WindowedIterator(grain.DatasetIterator):
    """Reads and plans a window at a time; see the module for the state."""

    def __init__(self, dataset: _WindowedBatches):
        super().__init__()
        self._dataset = dataset
        self._state: dict[str, Any] = {
            "start": 0,  # of the window, in the endless order of examples
            "carried": [],  # [place in that order, number of the piece] of what waits since earlier windows
            "batch": 0,  # of the window, to be handed out next
            "examples": 0,
            "filtered": 0,  # counted when a window is read
            "blank": 0,
            "cut": 0,
            "settings": dataset.settings,
        }
        self._plans: list[BatchPlan] | None = None  # of the window; None: not read yet
        self._pieces: list[_Piece] = []  # of the window, carried ones first
        self._visits = 0  # places of the order that the window takes
        self._next_carried: list[list[int]] = []
        self._counted = False  # the window's filtered and blank pairs

    def __next__(self) -> dict[str, np.ndarray]:
        barren = 0
        while True:
            if self._plans is None:
                self._read_window()
            assert self._plans is not None
            if self._state["batch"] < len(self._plans):
                break
            barren = 0 if self._pieces else barren + self._dataset.config.window
            if barren >= 2 * self._dataset.num_examples:  # there is a whole epoch in these
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
        return fill_batch([[self._pieces[i].tokens for i in row] for row in own], plan.length)

    def get_state(self) -> dict[str, Any]:
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        if set(state) != set(self._state):
            raise DataError(
                f"a data iterator's state has the keys {sorted(self._state)}, not {sorted(state)}"
            )
        now = self._dataset.settings
        saved = state["settings"]
        if set(saved) != set(now):
            raise DataError(f"a data iterator's settings are {sorted(now)}, not {sorted(saved)}")
        differing = [f"{name} {saved[name]}, now {now[name]}" for name in now if saved[name] != now[name]]
        if differing:
            raise DataError(
                f"the data iterator was saved with other data: {'; '.join(differing)}. Continue "
                "with the data of the saved run, or start a new one"
            )
        self._state = dict(state)
        self._plans = None
        # A window is counted when its first batch is handed out.
        self._counted = state["batch"] > 0

    def _read_window(self) -> None:
        config, state = self._dataset.config, self._state
        window = range(state["start"], state["start"] + config.window)
        carried: dict[int, list[int]] = {}  # pieces of each place
        for place, number in state["carried"]:
            carried.setdefault(place, []).append(number)
        places = [*carried, *window]
        found = self._dataset.tokens.read([self._dataset.order[place] for place in places])
        self._pieces, self._visits = [], 0
        filtered = blank = cut = size = 0
        for place, tokens in zip(places, found, strict=True):
            # Texts of thousands of pieces would otherwise be thousands of times the memory.
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
        """The pieces of one visit that are not too long."""
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
