"""Defines sources of examples and checks the values of examples."""

import bisect
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from transformer_jax.types import FEATURES, Example

_FINGERPRINTED = 256  # maximum number of examples that a fingerprint hashes


class DataError(ValueError):
    """Reports data that cannot be used; the message says where, and what would be right."""


@runtime_checkable
class Source(Protocol):
    """A sequence of examples with indices from 0."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at ``indices``; reading several at once is much faster in TFDS."""
        ...


def fingerprint(source: Source) -> str:
    """Returns a text that identifies a source: its size, and a hash of evenly spaced examples."""
    places = np.unique(np.linspace(0, len(source) - 1, min(_FINGERPRINTED, len(source)), dtype=int)).tolist()
    digest = hashlib.sha256()
    for example in source.read(places):
        for feature, value in sorted(example.items()):
            digest.update(feature.encode())
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return f"{len(source):,} examples, {digest.hexdigest()[:16]}"


class MemorySource:
    """A source whose values are in memory.

    Args:
      columns: for each feature, its values in all examples.

    Raises:
      DataError: the features have different numbers of values.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any] | np.ndarray]):
        if len(set(map(len, columns.values()))) > 1:
            raise DataError(" but ".join(f"{len(column):,} {name}" for name, column in columns.items()))
        self._columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def read(self, indices: Sequence[int]) -> list[Example]:
        return [{name: column[i] for name, column in self._columns.items()} for i in indices]


class JoinedSource:
    """Concatenates several sources."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._stops = list(itertools.accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._stops[-1]

    def read(self, indices: Sequence[int]) -> list[Example]:
        examples: dict[int, Example] = {}
        for number, (source, stop) in enumerate(zip(self._sources, self._stops, strict=True)):
            start = stop - len(source)
            own = [index for index in indices if bisect.bisect_right(self._stops, index) == number]
            examples |= zip(own, source.read([index - start for index in own]) if own else [], strict=True)
        return [examples[index] for index in indices]


class PrefixedSource:
    """Puts the same prefix before all inputs of a source; blank inputs stay blank."""

    def __init__(self, source: Source, prefix: str):
        self._source, self._prefix = source, prefix

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[Example]:
        return [
            {**example, "inputs": self._prefixed(example["inputs"])} for example in self._source.read(indices)
        ]

    def _prefixed(self, text: Any) -> str:
        if not isinstance(text, str):
            raise DataError(
                f"source.prefix={self._prefix!r} needs inputs that are texts, not lists of words such as "
                f"{text[:4]!r}"
            )
        return self._prefix + text if text.strip() else text


def check_value(feature: str, value: Any, where: str) -> None:
    """Checks that a value has a type that ``FEATURES`` allows for the feature.

    Args:
      feature: one of ``FEATURES``.
      value: a plain Python value, as from JSON.
      where: the location of the value, for the error: file and line, or example, and key.

    Raises:
      DataError: the value has another type, or contains half of a surrogate pair.
    """
    allowed = FEATURES[feature]
    if _kind(value) not in allowed and not (value == [] and any(kind.startswith("list") for kind in allowed)):
        raise DataError(f"{where} must be {described(feature)} to be {feature}, not {value!r:.80}")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and any(0xD800 <= ord(character) < 0xE000 for character in text):
            raise DataError(f"{where} has half of a surrogate pair, which is not a character")


def described(feature: str) -> str:
    """Returns the types that a feature may have in words, such as "a text or a list of texts"."""
    return " or ".join(f"an {kind}" if kind[0] == "i" else f"a {kind}" for kind in FEATURES[feature])


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, int) and not isinstance(value, bool):
        return "integer"
    if isinstance(value, list):
        kinds = set(map(_kind, value))
        if kinds in ({"text"}, {"integer"}):
            return f"list of {kinds.pop()}s"
    return ""
