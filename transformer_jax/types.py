"""The one documented data contract: dimension legend, array aliases and the keys of a batch.

Dimension legend, used by every shape in this project:

    B batch (rows)         L query or target length    S key or source length
    D model width          H heads                     K head size
    F feed-forward width   V vocabulary

How data is called on its way:

* A *text example* is what a source yields: ``{"inputs": str, "targets": str}``.
* A *token example* is what an objective's host transform yields: ``{"inputs": array, "targets": array}``,
  one-dimensional int32 arrays that end in ``EOS_ID``.
* A *batch* is what the pipeline yields: the six int32 arrays named in ``BATCH_KEYS``. ``inputs*`` are
  (B, S) and ``targets*`` are (B, L).

In a batch, ``*_segments`` is 0 on padding and counts the examples of a row from 1 (one unless rows
are packed; example ``i`` of a row has segment ``i`` on both sides). ``*_positions`` restart at 0 in every
segment. Targets are not shifted: the model shifts its decoder inputs itself.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
PyTree: TypeAlias = Any
TextExample: TypeAlias = Mapping[str, Any]  # feature -> str, int, list or array
TokenExample: TypeAlias = Mapping[str, np.ndarray]
Batch: TypeAlias = Mapping[str, Array]

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")  # their ids are their places here

SIDES = ("inputs", "targets")
BATCH_KEYS = tuple(side + part for side in SIDES for part in ("", "_positions", "_segments"))


class Encoding(NamedTuple):
    """The tokens of a text and where they come from: four int32 arrays of one length."""

    ids: np.ndarray
    words: np.ndarray  # number of the word that a token belongs to
    starts: np.ndarray  # first character of the text that a token stands for
    stops: np.ndarray  # and the one after its last


@runtime_checkable
class Encoder(Protocol):
    """The part of a tokenizer that an objective's host side needs."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included."""
        ...

    @property
    def sentinels(self) -> tuple[int, ...]:
        """Ids of <extra_id_0>, <extra_id_1>, …; empty where there are none."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """The int32 ids of a text, without special tokens."""
        ...

    def encode_with_places(self, text: str) -> Encoding:
        """The same ids, with words and characters."""
        ...

    def id_of(self, role: str) -> int:
        """The id of "pad", "bos", "eos", "unk", "cls", "sep" or "mask"; a ValueError where there is none."""
        ...


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What one visit of an example may depend on besides its tokens.

    Attributes:
      rng: of this visit alone, seeded by the seed of the data and the visit's place in the endless order.
      max_length: tokens of a side.
      tokenizer: for the ids of special tokens.
      draw_other: the encoded tokens of another example, chosen by ``rng``.
      train: whether this is for training; evaluation sees whole, unchanged examples where it can.
    """

    rng: np.random.Generator
    max_length: int
    tokenizer: Encoder
    draw_other: Callable[[], TokenExample]
    train: bool = True
