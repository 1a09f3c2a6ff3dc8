"""Kinds of values that the features of examples have: which values each accepts, and a made-up one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.config import ConfigError
from transformer_jax.types import FEATURES

_LIST = "list of "
_TEXT = "One two three four. Five six seven eight."


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
      description: the kind with its article, for error messages.
      accepts: returns whether a value is of this kind.
      stand_in: returns a made-up value. Its argument is the shape of the array that the model reads, which
        matters only to kinds that are arrays.
    """

    description: str
    accepts: Callable[[Any], bool]
    stand_in: Callable[[tuple[int, ...]], Any]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_image(value: Any) -> bool:
    if not hasattr(value, "__array__"):
        return False
    array = np.asarray(value)
    return array.dtype == np.uint8 and array.ndim == 3


# All kinds that ``types.FEATURES`` may name. "list of texts" is a list of the kind "text", and so on.
KINDS: dict[str, Kind] = {
    "text": Kind("a text", lambda value: isinstance(value, str), lambda _: _TEXT),
    "integer": Kind("an integer", _is_integer, lambda _: 0),
    "image": Kind(
        "an image, a uint8 array (height, width, channels),",
        _is_image,
        lambda shape: np.zeros(shape, np.uint8),
    ),
}


def find_kind(name: str) -> Kind:
    """Returns the kind with this name: an entry of ``KINDS``, or a list of the values of one."""
    if not name.startswith(_LIST):
        return KINDS[name]
    item = KINDS[name.removeprefix(_LIST).removesuffix("s")]

    def accepts(value: Any) -> bool:
        is_list = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
        return is_list and all(map(item.accepts, value))

    def stand_in(shape: tuple[int, ...]) -> list[Any]:
        value = item.stand_in(shape)
        words = _TEXT.split()
        return words if isinstance(value, str) else [value] * len(words)

    return Kind(f"a {name}", accepts, stand_in)


def kinds_of(feature: str, *, as_list: bool) -> list[Kind]:
    """Returns the kinds that a feature may have.

    Args:
      feature: a key of ``types.FEATURES``.
      as_list: whether an objective reads a list if the feature may be a list or a single value. Only one of
        them is accepted, because a text that is taken for a list would be a list of characters.
    """
    lists = [name for name in FEATURES[feature] if name.startswith(_LIST)]
    singles = [name for name in FEATURES[feature] if not name.startswith(_LIST)]
    return [find_kind(name) for name in (lists if lists and (as_list or not singles) else singles)]


def is_text_feature(feature: str) -> bool:
    """Returns whether a feature may be a text."""
    return "text" in FEATURES[feature]


def is_array_feature(feature: str) -> bool:
    """Returns whether a feature is an array, such as an image, that only some front end can read."""
    return not any("text" in name or "integer" in name for name in FEATURES[feature])


def check_kinds(
    objective: str, example: Mapping[str, Any], features: Sequence[str], lists: Sequence[str]
) -> None:
    """Checks the values of an example.

    Args:
      objective: the objective's name, for the message.
      example: the features of one example.
      features: the features that the objective reads; those that the example lacks are not checked.
      lists: the features that it reads as lists if they may be lists or single values.

    Raises:
      ConfigError: a value is not of a kind that the objective reads.
    """
    for feature in features:
        if feature not in example:
            continue
        kinds, value = kinds_of(feature, as_list=feature in lists), example[feature]
        if not any(kind.accepts(value) for kind in kinds):
            allowed = " or ".join(kind.description for kind in kinds)
            raise ConfigError(
                f"{objective} needs {allowed} as {feature}, not {_described(value)}: "
                f"config.data.source.features determines what is read as {feature}"
            )


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim > 1:
        return f"an array of {value.dtype} of shape {value.shape}"
    return " ".join(repr(value).split())[:80]
