"""Where text pairs come from: TFDS data sets, aligned text files, TSV and JSONL files.

Every source is a sequence of text examples, ``{"inputs": str, "targets": str}``, in the order of
its files: example ``i`` is line ``i + 1``. Nothing is left out here, blank lines included; what
training leaves out, the pipeline counts.

Lines end in a line feed, optionally with a carriage return before it. No other character ends a
line: the Unicode line separators that ``str.splitlines`` obeys occur inside sentences of real
corpora, and would push the two sides out of step.
"""

import codecs
import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import read_only_builder

from transformer_jax.config import check_types, nearest
from transformer_jax.data.datasets import number_words
from transformer_jax.types import SIDES, TextExample

SPLITS = ("train", "validation", "test")
DATA_VARIABLE = "TRANSFORMER_JAX_DATA"

_OUR_BUILDERS = {"number_words": number_words.NumberWords}  # prepared on first use


class DataError(ValueError):
    """The data cannot be used as they are; the message says where, and what would be right."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where a corpus lies and how its pairs are found in it.

    A split names TFDS splits or files in ``folder``; one that is empty is not there:

    * ``tfds``: one TFDS split, such as ``("train",)`` or ``("train[:90%]",)``;
    * ``text``: two files with the same number of lines, inputs first, then targets;
    * ``tsv``: one file with tab-separated columns, no header and no quoting;
    * ``jsonl``: one file with a JSON object on every line.

    File names that end in ``.gz`` are read as gzip.

    Raises:
      ValueError: a split or key that does not suit the kind, or an unknown encoding.
    """

    kind: Literal["tfds", "text", "tsv", "jsonl"] = "tfds"
    name: str = "number_words/de"  # of a TFDS data set; unused by the other kinds
    folder: str = ""  # "" means $TRANSFORMER_JAX_DATA, or data/ where that is not set
    train: tuple[str, ...] = ("train",)
    validation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)
    # Feature names in TFDS ("a/b" for b within a), keys in JSONL, column numbers from 0 in TSV.
    inputs_key: str = "inputs"
    targets_key: str = "targets"
    encoding: str = "utf-8"  # of files

    def __post_init__(self) -> None:
        check_types(self, "data.source")
        names = 2 if self.kind == "text" else 1
        for split in SPLITS:
            found = getattr(self, split)
            if len(found) not in (0, names):
                raise ValueError(
                    f"source.{split}={found!r} must have {names} name(s), or none, "
                    f"for source.kind={self.kind!r}"
                )
        if self.kind == "tsv":
            for name in ("inputs_key", "targets_key"):
                if not getattr(self, name).isdecimal():
                    raise ValueError(
                        f"source.{name}={getattr(self, name)!r} must be a column number from 0, "
                        'such as "0", for a TSV file'
                    )
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"source.encoding={self.encoding!r} is not an encoding") from None


@runtime_checkable
class Source(Protocol):
    """A sequence of text examples, with indices from 0."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[TextExample]:
        """The examples at ``indices``: several at once, because that is much faster in TFDS."""
        ...


class MemorySource:
    """A source whose texts are in memory."""

    def __init__(self, inputs: Sequence[str], targets: Sequence[str]):
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs):,} inputs but {len(targets):,} targets")
        self._inputs, self._targets = inputs, targets

    def __len__(self) -> int:
        return len(self._inputs)

    def read(self, indices: Sequence[int]) -> list[TextExample]:
        return [{"inputs": self._inputs[i], "targets": self._targets[i]} for i in indices]


class TfdsSource:
    """A prepared TFDS split, read from disk by index and without TensorFlow."""

    def __init__(self, name: str, records: Any, inputs_key: str, targets_key: str):
        self._name, self._records = name, records
        self._keys = (inputs_key.split("/"), targets_key.split("/"))

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Sequence[int]) -> list[TextExample]:
        records = self._records.__getitems__(list(indices))
        return [self._example(index, record) for index, record in zip(indices, records, strict=True)]

    def _example(self, index: int, record: Any) -> TextExample:
        example = {}
        for side, keys in zip(SIDES, self._keys, strict=True):
            value = record
            for key in keys:
                value = value[key]
            try:
                example[side] = value.decode("utf-8")  # as TFDS stores text
            except UnicodeDecodeError as error:
                raise DataError(
                    f"example {index} of {self._name}: the feature {'/'.join(keys)!r} is not UTF-8: {error}"
                ) from error
        return example


def data_folder(folder: str) -> str:
    """The folder a config means: itself, or ``$TRANSFORMER_JAX_DATA``, else ``data``, for ""."""
    return folder or os.environ.get(DATA_VARIABLE, "") or "data"


def load_source(config: SourceConfig, split: str) -> Source:
    """Opens one split ("train", "validation" or "test") of a corpus.

    The ``number_words`` data set is prepared in the data folder when it is not there yet (about ten
    seconds); any other TFDS data set must have been prepared before.

    Raises:
      DataError: the split is unknown or empty, a file or data set is missing, the two sides are
        misaligned, or a line cannot be decoded or parsed.
    """
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}: {nearest(split, SPLITS)}")
    names = getattr(config, split)
    if not names:
        raise DataError(f"the source has no {split} split: set config.data.source.{split}")
    if config.kind == "tfds":
        source = _load_tfds(config, names[0])
    else:
        paths = [os.path.join(data_folder(config.folder), name) for name in names]
        readers: dict[str, Callable[[SourceConfig, list[str]], Source]] = {
            "text": _load_text,
            "tsv": _load_tsv,
            "jsonl": _load_jsonl,
        }
        source = readers[config.kind](config, paths)
    if not len(source):
        raise DataError(f"the {split} split is empty: there is no example in {', '.join(names)}")
    return source


def read_lines(path: str, encoding: str = "utf-8") -> list[str]:
    """The lines of a text file (gzip where the name ends in ``.gz``), without their ends.

    Raises:
      DataError: the file is missing, broken, or not in this encoding (says in which line).
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
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, "replace").count("\n") + 1
        raise DataError(
            f"{path}, line {line}: not {encoding} text ({error.reason}); convert the file, or set "
            "config.data.source.encoding to its encoding"
        ) from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # the text after the last line feed
    return [line.removesuffix("\r") for line in lines]


def _load_text(config: SourceConfig, paths: list[str]) -> MemorySource:
    inputs, targets = (read_lines(path, config.encoding) for path in paths)
    if len(inputs) != len(targets):
        raise DataError(
            f"misaligned corpus: {paths[0]} has {len(inputs):,} lines but {paths[1]} has "
            f"{len(targets):,}; line i of one must be the translation of line i of the other"
        )
    return MemorySource(inputs, targets)


def _load_tsv(config: SourceConfig, paths: list[str]) -> MemorySource:
    columns = (int(config.inputs_key), int(config.targets_key))
    rows = [line.split("\t") for line in read_lines(paths[0], config.encoding)]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]) or len(row) <= max(columns):
            wanted = max(len(rows[0]), max(columns) + 1)
            raise DataError(
                f"{paths[0]}, line {number}: {len(row)} tab-separated column(s) where {wanted} "
                f"are needed (texts are read from columns {columns[0]} and {columns[1]})"
            )
    return MemorySource(*([row[column] for row in rows] for column in columns))


def _load_jsonl(config: SourceConfig, paths: list[str]) -> MemorySource:
    keys = (config.inputs_key, config.targets_key)
    texts: tuple[list[str], list[str]] = ([], [])
    for number, line in enumerate(read_lines(paths[0], config.encoding), start=1):
        where = f"{paths[0]}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: broken JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: must be a JSON object, not {line[:50]!r}")
        for key, side in zip(keys, texts, strict=True):
            if key not in record:
                raise DataError(f"{where}: there is no key {key!r}: {nearest(key, list(record))}")
            if not isinstance(record[key], str):
                raise DataError(f"{where}: {key!r} must be a string, not {record[key]!r}")
            if any(0xD800 <= ord(character) < 0xE000 for character in record[key]):
                raise DataError(f"{where}: {key!r} has half of a surrogate pair, which is no character")
            side.append(record[key])
    return MemorySource(*texts)


def _load_tfds(config: SourceConfig, split: str) -> TfdsSource:
    builder = _prepared_builder(config.name, data_folder(config.folder))
    for key in (config.inputs_key, config.targets_key):
        feature: Any = builder.info.features
        for part in key.split("/"):
            known = list(feature) if isinstance(feature, tfds.features.FeaturesDict) else []
            if part not in known:
                raise DataError(
                    f"{config.name} has no feature {key!r}: {nearest(part, known)}; set "
                    "config.data.source.inputs_key and targets_key to its text features"
                )
            feature = feature[part]
        if not isinstance(feature, tfds.features.Text):
            raise DataError(f"the feature {key!r} of {config.name} is not text but {feature}")
    try:
        records = builder.as_data_source(split=split)
    except NotImplementedError as error:  # stored in a format without random access
        raise DataError(_how_to_prepare(config.name, data_folder(config.folder))) from error
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{config.name} has no split {split!r}: {nearest(split, list(builder.info.splits))}"
        ) from error
    return TfdsSource(f"{config.name}, {split}", records, config.inputs_key, config.targets_key)


def _prepared_builder(name: str, folder: str) -> Any:
    """The TFDS builder of a data set on disk, found by its files: its code may be anywhere."""
    find = read_only_builder.builder_from_files
    try:
        return find(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        base_name, _, variant = name.partition("/")
        builder_class = _OUR_BUILDERS.get(base_name)
        if builder_class is None:
            raise DataError(_how_to_prepare(name, folder)) from error
    variants = list(builder_class.builder_configs)
    variant = variant or variants[0]
    if variant not in variants:
        known = [f"{base_name}/{known}" for known in variants]
        raise DataError(f"there is no data set {name!r}: {nearest(name, known)}")
    # Root may write everywhere, but a folder that nobody may write to was made so on purpose.
    if os.path.isdir(folder) and not os.stat(folder).st_mode & 0o222:
        raise DataError(_cannot_prepare(name, folder, "the folder is read-only"))
    logging.info("Preparing %s in %s.", name, os.path.abspath(folder))
    try:
        builder_class(config=variant, data_dir=folder).download_and_prepare()
    except (OSError, RuntimeError) as error:
        # A plain RuntimeError is array_record's, for what the system refuses; its kinds are mistakes here.
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        # TFDS writes beside the final place and renames: losing the race against another process
        # that prepares the same leaves a whole data set, any other failure leaves none.
        try:
            return find(name, data_dir=folder)
        except tfds.core.DatasetNotFoundError:
            raise DataError(_cannot_prepare(name, folder, str(error))) from error
    return find(name, data_dir=folder)


def _cannot_prepare(name: str, folder: str, reason: str) -> str:
    return (
        f"cannot prepare {name} in {os.path.abspath(folder)}: {reason}; set "
        f"config.data.source.folder or ${DATA_VARIABLE} to a folder with room for it"
    )


def _how_to_prepare(name: str, folder: str) -> str:
    return (
        f"the TFDS data set {name} is not in {os.path.abspath(folder)} in the array_record format "
        f"(${DATA_VARIABLE} or config.data.source.folder sets the folder). Prepare it once, which "
        'needs TensorFlow: pip install -e ".[tfds]", then in Python: '
        f'import tensorflow_datasets as tfds; tfds.builder("{name}", data_dir="{folder}", '
        'file_format="array_record").download_and_prepare()'
    )


def _cannot_open(path: str, error: OSError) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    if not isinstance(error, FileNotFoundError):
        return f"cannot read {path}: {error.strerror}"
    what = f"there is no folder {folder}, where {name!r} should be"
    if os.path.isdir(folder):
        there = sorted(os.listdir(folder))
        if f"{name}.gz" in there:  # nearer than any other name
            there = [f"{name}.gz"]
        what = f"there is no file {name!r} in {folder}: {nearest(name, there)}"
    return f"{what} (the data folder is config.data.source.folder, else ${DATA_VARIABLE}, else data/)"
