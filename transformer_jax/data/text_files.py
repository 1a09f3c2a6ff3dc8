"""Reads examples from text files: aligned lines, columns, JSON objects, a pattern, whole documents.

Lines end in a line feed, optionally after a carriage return. No other character ends a line: the Unicode line
separators at which ``str.splitlines`` splits occur inside sentences of real corpora, and splitting there
would misalign files.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Sequence
from typing import Any

from transformer_jax.config import nearest
from transformer_jax.data.examples import DataError, MemorySource, read_value

DATA_VARIABLE = "TRANSFORMER_JAX_DATA"

_SLICE = re.compile(r"(?P<path>.+)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]", re.DOTALL)

Features = Sequence[tuple[str, str]]  # the features of an example and the place of each in a file


def split_name(name: str) -> tuple[str, str]:
    """Splits a name into the name itself and its slice, which is "" or for example "[:90%]"."""
    match = _SLICE.fullmatch(name)
    return (match["path"], name[len(match["path"]) :]) if match else (name, "")


def slice_of(name: str, count: int) -> slice:
    """Returns the slice that ``name`` ends in, applied to ``count`` items as TFDS applies it to its splits.

    ``"a.txt[:90%]"`` is the first 90 %, rounded to the nearest whole number, ``"a.txt[-50:]"`` the last 50,
    ``"a.txt"`` everything.

    Raises:
      DataError: the slice goes beyond ``count`` items.
    """
    match = _SLICE.fullmatch(name)
    places = [0, count]
    for i, text in enumerate((match["start"], match["stop"]) if match else ()):
        if text is None:
            continue
        number, most = int(text.rstrip("%")), 100 if text.endswith("%") else count
        if abs(number) > most:
            raise DataError(f"the slice of {name} goes beyond its {count:,} items")
        place = round(number * count / 100) if text.endswith("%") else number
        places[i] = place + count if text.startswith("-") else place
    return slice(*places)


def read_file(path: str) -> bytes:
    """Returns the content of a file, decompressed if the name ends in ``.gz``.

    Raises:
      DataError: the file is missing or broken.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(_cannot_open(path, error)) from error
    if path.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is not a whole gzip file: {error}") from error
    return content


def read_text(path: str, encoding: str = "utf-8") -> str:
    """Returns the text of a file (gzip if the name ends in ``.gz``).

    Raises:
      DataError: the file is missing, broken, or not in this encoding; the message says in which line.
    """
    content = read_file(path)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, "replace").count("\n") + 1
        raise DataError(
            f"{path}, line {line}: not {encoding} text ({error.reason}); convert the file, or set "
            "config.data.source.encoding to its encoding"
        ) from error


def read_lines(path: str, encoding: str = "utf-8") -> list[str]:
    """Returns the lines of a text file without their ends.

    Raises:
      DataError: as ``read_text``.
    """
    lines = read_text(path, encoding).split("\n")
    if not lines[-1]:
        lines.pop()  # the empty text after the last line feed
    return [line.removesuffix("\r") for line in lines]


def read_aligned(names: Sequence[str], features: Features, encoding: str) -> MemorySource:
    """Reads one file per feature; line i of each file belongs to example i."""
    paths = [split_name(name)[0] for name in names]
    columns = [read_lines(path, encoding) for path in paths]
    for path, column in zip(paths, columns, strict=True):
        if len(column) != len(columns[0]):
            raise DataError(
                f"misaligned corpus: {paths[0]} has {len(columns[0]):,} lines but {path} has "
                f"{len(column):,}; line i of every file must belong to the same example"
            )
    parts = [column[slice_of(name, len(column))] for name, column in zip(names, columns, strict=True)]
    return MemorySource({feature: part for (feature, _), part in zip(features, parts, strict=True)})


def read_columns(name: str, features: Features, encoding: str) -> MemorySource:
    """Reads a file of tab-separated columns, which ``features`` numbers from 0."""
    path, _ = split_name(name)
    columns = {feature: int(column) for feature, column in features}
    rows = [line.split("\t") for line in read_lines(path, encoding)]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]) or len(row) <= max(columns.values()):
            num_columns = max(len(rows[0]), max(columns.values()) + 1)
            raise DataError(
                f"{path}, line {number}: {len(row)} tab-separated column(s) where {num_columns} "
                f"are needed (texts are read from columns {' and '.join(map(str, columns.values()))})"
            )
    rows = rows[slice_of(name, len(rows))]
    return MemorySource({feature: [row[column] for row in rows] for feature, column in columns.items()})


def read_objects(name: str, features: Features, encoding: str) -> MemorySource:
    """Reads a file with one JSON object per line; "a/b" in ``features`` is the key b of the object at a."""
    path, _ = split_name(name)
    lines = read_lines(path, encoding)
    part = slice_of(name, len(lines))
    columns: dict[str, list[Any]] = {feature: [] for feature, _ in features}
    for number, line in enumerate(lines[part], start=part.start + 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: broken JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: must be a JSON object, not {line[:50]!r}")
        for feature, key in features:
            value: Any = record
            for step in key.split("/"):
                known = list(value) if isinstance(value, dict) else []
                if step not in known:
                    raise DataError(f"{where}: there is no key {key!r}: {nearest(step, known)}")
                value = value[step]
            columns[feature].append(read_value(feature, value, f"{where}: {key!r}"))
    return MemorySource(columns)


def read_pattern(name: str, features: Features, encoding: str, pattern: str) -> MemorySource:
    """Reads a file of lines that the regular expression ``pattern`` matches; its groups are the features."""
    path, _ = split_name(name)
    lines = read_lines(path, encoding)
    part = slice_of(name, len(lines))
    expression = re.compile(pattern)
    columns: dict[str, list[str]] = {feature: [] for feature, _ in features}
    for number, line in enumerate(lines[part], start=part.start + 1):
        match = expression.fullmatch(line)
        for feature, group in features:
            if match is None or match[group] is None:
                raise DataError(
                    f"{path}, line {number}: does not match config.data.source.pattern={pattern!r}"
                    + (f", whose group {group!r} matched nothing" if match else "")
                    + f": {line[:60]!r}"
                )
            columns[feature].append(match[group])
    return MemorySource(columns)


def read_documents(names: Sequence[str], encoding: str) -> MemorySource:
    """Reads each file as one example, its text unchanged; a slice selects characters."""
    texts = [read_text(split_name(name)[0], encoding) for name in names]
    return MemorySource(
        {"inputs": [text[slice_of(name, len(text))] for name, text in zip(names, texts, strict=True)]}
    )


def _cannot_open(path: str, error: OSError) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    if not isinstance(error, FileNotFoundError):
        return f"cannot read {path}: {error.strerror}"
    what = f"there is no folder {folder}, where {name!r} should be"
    if os.path.isdir(folder):
        names = sorted(os.listdir(folder))
        if f"{name}.gz" in names:  # nearer than any other name
            names = [f"{name}.gz"]
        what = f"there is no file {name!r} in {folder}: {nearest(name, names)}"
    return f"{what} (the data folder is config.data.source.folder, else ${DATA_VARIABLE}, else data/)"
