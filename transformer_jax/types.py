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
SIDE_PARTS = ("", "_positions", "_segments")  # what follows the name of a side in the keys of its arrays
BATCH_KEYS = tuple(side + part for side in SIDES for part in SIDE_PARTS)

# The roles of special tokens and their names: this library's first, then those of published vocabularies.
ROLES = {
    "pad": ("<pad>", "[PAD]"),
    "bos": ("<bos>", "<s>", "<|endoftext|>"),
    "eos": ("<eos>", "</s>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("<cls>", "[CLS]", "<s>"),
    "sep": ("<sep>", "[SEP]", "</s>"),
    "mask": ("<mask>", "[MASK]"),
}

LIST_OF = "list of "  # "list of texts" is a list of values of the kind "text", and so on
_TEXT = "One two three four. Five six seven eight."


class Kind(NamedTuple):
    """A kind of value that a feature of an example may have.

    Attributes:
      description: the kind with its article, for error messages.
      accepts: returns whether a value is of this kind.
      stand_in: returns a made-up value. Its argument is the shape of the array that the model reads, which
        matters only to kinds that are arrays.
      from_plain: returns the value, given what JSON or TFDS has for it: a text, a number or a nested list.
        Raises TypeError or ValueError if that is no such value. None if JSON cannot hold the kind.
      is_array: whether only a front end for this kind can read it, as an image. A model with another front
        end refuses a feature of which all kinds are arrays, instead of training as if it were not there.
    """

    description: str
    accepts: Callable[[Any], bool]
    stand_in: Callable[[tuple[int, ...]], Any]
    from_plain: Callable[[Any], Any] | None = None
    is_array: bool = True


def _itself(value: Any) -> Any:
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_image(value: Any) -> bool:
    if not hasattr(value, "__array__"):
        return False
    array = np.asarray(value)
    return array.dtype == np.uint8 and array.ndim == 3


# All kinds that ``FEATURES`` may name. A program may add kinds and features of its own.
KINDS: dict[str, Kind] = {
    "text": Kind("a text", lambda value: isinstance(value, str), lambda _: _TEXT, _itself, is_array=False),
    "integer": Kind("an integer", _is_integer, lambda _: 0, _itself, is_array=False),
    "image": Kind(
        "an image, a uint8 array (height, width, channels),",
        _is_image,
        lambda shape: np.zeros(shape, np.uint8),
    ),
}


def find_kind(name: str) -> Kind:
    """Returns the kind with this name: an entry of ``KINDS``, or a list of the values of one."""
    if not name.startswith(LIST_OF):
        return KINDS[name]
    item = KINDS[name.removeprefix(LIST_OF).removesuffix("s")]

    def accepts(value: Any) -> bool:
        is_list = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
        return is_list and all(map(item.accepts, value))

    def stand_in(shape: tuple[int, ...]) -> list[Any]:
        value = item.stand_in(shape)
        words = _TEXT.split()
        return words if isinstance(value, str) else [value] * len(words)

    def from_plain(value: Any) -> list[Any]:
        if item.from_plain is None or not isinstance(value, list):
            raise ValueError(f"{value!r:.80} is not a {name}")
        return [item.from_plain(element) for element in value]

    return Kind(f"a {name}", accepts, stand_in, from_plain, item.is_array)


# The kinds that the value of each feature of an example may have. Lists may be empty. Images are uint8 arrays
# of shape (height, width, channels); ``answer_starts`` are indices of characters in ``context``.
FEATURES: dict[str, tuple[str, ...]] = {
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

    def template(self, num_texts: int) -> tuple[np.ndarray, ...]: ...

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
