"""The one documented data contract: dimension legend, array aliases, features of examples, keys of a batch.

Dimension legend, used by every shape in this project:

    B batch (rows)         L query or target length    S key or source length
    D model width          H heads                     K head size
    F feed-forward width   V vocabulary

How data is called on its way:

* An *example* is what a source yields: a mapping from some of ``FEATURES`` to their values.
* A *token example* is what an objective makes of it on the host: a mapping from keys to arrays.
* A *batch* is what the pipeline makes of token examples, by the names of their keys:

  - ``inputs`` and ``targets`` are sides: one-dimensional int32, padded to (B, length), (B, S) and (B, L) in a
    model. Each brings ``*_positions`` and ``*_segments`` of the same shape.
  - a key that begins with ``inputs_`` or ``targets_`` is as long as that side, and padded with 0:
    ``inputs_types`` (0 for the first text, 1 for the second), ``targets_weights`` (1 where there is a loss).
  - any other key is one value an example, stacked: ``labels`` () to (B,), ``answer_span`` (2,) to (B, 2),
    ``images`` (h, w, c) to (B, h, w, c). A row without an example has -1, or 0 where the type has no sign.
    Rows that have such values hold one example each: they cannot be packed.
  - a key that begins with ``_`` stays on the host. ``_cut``, where it is there, says that an example was
    cut short, and by how many tokens.

In a batch, ``*_segments`` is 0 on padding and counts the examples of a row from 1 (one unless rows
are packed; example ``i`` of a row has segment ``i`` on both sides). ``*_positions`` restart at 0 in every
segment. Targets are not shifted: an encoder-decoder shifts its decoder inputs itself.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
PyTree: TypeAlias = Any
Example: TypeAlias = Mapping[str, Any]
TokenExample: TypeAlias = Mapping[str, np.ndarray]
Batch: TypeAlias = Mapping[str, Array]

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
SPECIAL_TOKENS = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
)  # of our own tokenizers; their ids are their places here

SIDES = ("inputs", "targets")
CUT = "_cut"
BATCH_KEYS = tuple(side + part for side in SIDES for part in ("", "_positions", "_segments"))

# What the value of each feature of an example may be; a list may be empty. Images are (height, width,
# channels) uint8 arrays; ``answer_starts`` are characters of ``context``.
FEATURES = {
    "inputs": ("text", "list of texts"),  # a list is of words
    "pair": ("text",),  # a second text beside the inputs
    "targets": ("text",),
    "labels": ("integer", "text", "list of integers", "list of texts"),  # a list is of one a word
    "context": ("text",),  # where the answers stand; the inputs are the question
    "answers": ("list of texts",),
    "answer_starts": ("list of integers",),
    "images": ("image",),
}
TEXT_FEATURES = ("inputs", "pair", "targets", "context")  # what a tokenizer is trained on


class Encoding(NamedTuple):
    """The tokens of a text and where they stand in it, four int32 arrays of one length."""

    ids: np.ndarray
    words: np.ndarray  # number of the word, as the tokenizer parts them before it looks for tokens
    starts: np.ndarray  # first character of the text
    stops: np.ndarray  # the character after the last


@runtime_checkable
class Encoder(Protocol):
    """The part of a tokenizer that an objective needs; see ``data.tokenizers.Tokenizer``."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def sentinels(self) -> tuple[int, ...]: ...

    @property
    def targets(self) -> "Encoder": ...

    def encode(self, text: str) -> np.ndarray: ...

    def encode_whole(self, text: str) -> np.ndarray: ...

    def encode_with_places(self, text: str) -> Encoding: ...

    def id_of(self, role: str) -> int: ...


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What an objective may use when it makes the pieces that one visit of an example gives.

    Attributes:
      rng: of this visit alone.
      max_length: tokens of a side that a piece may have.
      tokenizer: that the example was encoded with.
      draw_other: the tokens of another example than this one, chosen by ``rng``.
      train: whether this is for training; in evaluation, examples are changed as little as can be.
    """

    rng: np.random.Generator
    max_length: int
    tokenizer: Encoder
    draw_other: Callable[[], TokenExample]
    train: bool
