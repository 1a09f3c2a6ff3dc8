"""What objectives ask about the kinds of values that the features of examples have (``types.KINDS``)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transformer_jax.config import ConfigError
from transformer_jax.types import FEATURES, LIST_OF, Kind, find_kind


def kinds_of(feature: str, *, as_list: bool) -> list[Kind]:
    """Returns the kinds that a feature may have.

    Args:
      feature: a key of ``types.FEATURES``.
      as_list: whether an objective reads a list if the feature may be a list or a single value. Only one of
        them is accepted, because a text that is taken for a list would be a list of characters.
    """
    lists = [name for name in FEATURES[feature] if name.startswith(LIST_OF)]
    singles = [name for name in FEATURES[feature] if not name.startswith(LIST_OF)]
    return [find_kind(name) for name in (lists if lists and (as_list or not singles) else singles)]


def is_text_feature(feature: str) -> bool:
    """Returns whether a feature may be a text."""
    return "text" in FEATURES[feature]


def is_array_feature(feature: str) -> bool:
    """Returns whether a feature is an array, such as an image, that only some front end can read."""
    return all(find_kind(name).is_array for name in FEATURES[feature])


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
