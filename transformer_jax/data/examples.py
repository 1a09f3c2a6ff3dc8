"""Defines sources of examples and checks the values of examples."""

import bisect
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from transformer_jax.types import FEATURES, Example, find_kind

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


def read_value(feature: str, value: Any, where: str) -> Any:
    """Returns the value of a feature, given a plain value, after checking that it is of an allowed kind.

    Args:
      feature: one of ``FEATURES``.
      value: a plain Python value, as from JSON.
      where: the location of the value, for the error: file and line, or example, and key.

    Raises:
      DataError: the value is of another kind than those of ``FEATURES``, or contains half of a surrogate
        pair.
    """
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and any(0xD800 <= ord(character) < 0xE000 for character in text):
            raise DataError(f"{where} has half of a surrogate pair, which is not a character")
    for kind in map(find_kind, FEATURES[feature]):
        try:
            found = value if kind.from_plain is None else kind.from_plain(value)
        except (TypeError, ValueError):
            continue
        if kind.accepts(found):
            return found
    raise DataError(f"{where} must be {described(feature)} to be {feature}, not {value!r:.80}")


def described(feature: str) -> str:
    """Returns the kinds that a feature may have in words, such as "a text or a list of texts"."""
    return " or ".join(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" for kind in FEATURES[feature])
