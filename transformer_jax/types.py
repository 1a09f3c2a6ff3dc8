"""Shapes, features of examples and keys of batches: the conventions that the whole library shares.

Letters of the dimensions in shapes:

    B batch (rows)         L query or target length    S key or source length
    D model width          H heads                     K head size
    F feed-forward width   V vocabulary

Names of the data on its way to the model:

* An *example* is what a source yields: a mapping from some of ``FEATURES`` to their values.
* A *token example* is what an objective's host transform returns: a mapping from keys to arrays.
* A *batch* is what the pipeline builds from token examples. The name of a key decides how its arrays are
  combined:

  - ``inputs`` and ``targets`` are the *sides*: one-dimensional int32 arrays, padded to (B, S) and (B, L).
    The pipeline adds ``*_positions`` and ``*_segments`` of the same shape for each side.
  - An array whose key begins with ``inputs_`` or ``targets_`` has the length of that side and is padded with
    0: ``inputs_types`` (0 for the first text, 1 for the second), ``targets_weights`` (1 where a token counts
    in the loss).
  - Any other key holds one value per example, and the values are stacked: ``labels`` () to (B,),
    ``answer_span`` (2,) to (B, 2), ``images`` (h, w, c) to (B, h, w, c). A row without an example has -1, or
    0 if the dtype is unsigned. Examples with such keys are not packed: each row holds one.
  - A key that begins with ``_`` stays on the host. ``_cut`` is the number of tokens by which an example was
    truncated.

``*_segments`` is 0 on padding and counts the examples of a row from 1. Without packing a row has one example;
with packing, example ``i`` of a row has segment ``i`` on both sides. ``*_positions`` restart at 0 in every
segment. Targets are not shifted: the model shifts its decoder inputs itself.
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
)  # of the tokenizers that the library trains; the index in this tuple is the id

SIDES = ("inputs", "targets")
CUT = "_cut"
BATCH_KEYS = tuple(side + part for side in SIDES for part in ("", "_positions", "_segments"))

# The types that the value of each feature of an example may have. Lists may be empty. Images are uint8 arrays
# of shape (height, width, channels); ``answer_starts`` are indices of characters in ``context``.
FEATURES = {
    "inputs": ("text", "list of texts"),  # a list contains words
    "pair": ("text",),  # the second text of a pair; the first are the inputs
    "targets": ("text",),
    "labels": ("integer", "text", "list of integers", "list of texts"),  # a list has one per word
    "context": ("text",),  # contains the answers; the inputs are the question
    "answers": ("list of texts",),
    "answer_starts": ("list of integers",),
    "images": ("image",),
}
TEXT_FEATURES = ("inputs", "pair", "targets", "context")  # tokenizers are trained on these


class Encoding(NamedTuple):
    """The tokens of a text and their places in it: four int32 arrays of the same length."""

    ids: np.ndarray
    words: np.ndarray  # index of the word; the tokenizer splits a text into words first
    starts: np.ndarray  # index of the first character in the text
    stops: np.ndarray  # index after the last character


@runtime_checkable
class Encoder(Protocol):
    """The methods of a tokenizer that objectives use; see ``data.tokenizers.Tokenizer``."""

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
    """The sampling context that ``Objective.pieces`` gets for one visit of an example.

    Attributes:
      rng: random numbers of this visit only, so that a visit can be repeated exactly.
      max_length: maximum number of tokens per side of a piece.
      tokenizer: the tokenizer that the example was encoded with.
      draw_other: returns the token example of another, randomly chosen example.
      train: whether the pieces are for training; evaluation changes examples as little as possible.
    """

    rng: np.random.Generator
    max_length: int
    tokenizer: Encoder
    draw_other: Callable[[], TokenExample]
    train: bool
