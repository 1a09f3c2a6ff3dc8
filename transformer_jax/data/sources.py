"""Defines the config of a corpus and opens the corpus that it describes."""

import codecs
import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Literal

from transformer_jax.config import check_types, nearest
from transformer_jax.data.catalogue import load_tfds
from transformer_jax.data.examples import DataError, JoinedSource, PrefixedSource, Source
from transformer_jax.data.image_files import read_idx
from transformer_jax.data.text_files import (
    DATA_VARIABLE,
    read_aligned,
    read_columns,
    read_documents,
    read_objects,
    read_pattern,
    split_name,
)
from transformer_jax.types import FEATURES, find_kind

SPLITS = ("train", "validation", "test")
# The features of TFDS's squad, and of data sets in the same format.
SQUAD_FEATURES = (
    ("inputs", "question"),
    ("context", "context"),
    ("answers", "answers/text"),
    ("answer_starts", "answers/answer_start"),
)

# For each kind of source, whether it can hold a feature.
_HOLDS: dict[str, Callable[[str], bool]] = {
    "tfds": lambda feature: True,
    "jsonl": lambda feature: any(find_kind(name).from_plain is not None for name in FEATURES[feature]),
    "document": lambda feature: feature == "inputs",
    "idx": lambda feature: feature in ("images", "labels"),
    **dict.fromkeys(("text", "tsv", "pattern"), lambda feature: "text" in FEATURES[feature]),
}
_FILE_A_FEATURE = ("text", "idx")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Describes where a corpus is and how its examples are read.

    A split names TFDS splits, or files in ``folder``; an empty one does not exist:

    * ``tfds``: one TFDS split, such as ``("train",)``;
    * ``text``: one file per feature, in their order, all with the same number of lines;
    * ``tsv``: one file with tab-separated columns, without header and quoting;
    * ``jsonl``: one file with a JSON object on every line;
    * ``pattern``: one file; the regular expression ``pattern`` matches every line, and its groups are the
      features;
    * ``document``: any number of files; each file is the inputs of one example; the pieces of a document
      are trained on close together, so a document that is most of the data is not mixed with other sources;
    * ``idx``: one file per feature (images, labels), in MNIST's format.

    Any name may end in a slice as in TFDS, ``"train[:90%]"`` or ``"a.txt[-5000:]"``. It selects examples, or
    characters of a document. Files whose names end in ``.gz`` are read as gzip.

    Raises:
      ValueError: a split or feature does not suit the kind, or a feature or the encoding is unknown.
    """

    kind: Literal["tfds", "text", "tsv", "jsonl", "pattern", "document", "idx"] = "tfds"
    name: str = "number_words/de"  # name of a TFDS data set; unused by the other kinds
    # "package.module:Class" of the TFDS builder that prepares the data set on first use. "" if the data set
    # lies prepared in the folder, or is number_words.
    builder_class: str = ""
    folder: str = ""  # "" means $TRANSFORMER_JAX_DATA, or data/ if that is not set
    train: tuple[str, ...] = ("train",)
    validation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)
    # Features of an example (transformer_jax.types.FEATURES) and the place of each: names in TFDS and keys in
    # JSONL ("a/b" for b within a), columns from 0 in TSV, groups of the pattern; unused by the other kinds.
    features: tuple[tuple[str, str], ...] = (("inputs", "inputs"), ("targets", "targets"))
    pattern: str = (
        ""  # a regular expression that matches every line, such as r"(?P<labels>\S+) (?P<inputs>.*)"
    )
    prefix: str = ""  # text that is put before the inputs, such as T5's "translate English to German: "
    encoding: str = "utf-8"  # encoding of files

    def __post_init__(self) -> None:
        check_types(self, "data.source")
        self._check_features()
        number = len(self.features) if self.kind in _FILE_A_FEATURE else 1
        for split in SPLITS:
            names = getattr(self, split)
            if self.kind != "document" and len(names) not in (0, number):
                raise ValueError(
                    f"source.{split}={names!r} must have {number} name(s), or none, "
                    f"for source.kind={self.kind!r}"
                )
            slices = {split_name(name)[1] for name in names}
            if self.kind in _FILE_A_FEATURE and len(slices) > 1:
                raise ValueError(f"source.{split}={names!r} must have the same slice in all its names")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"source.encoding={self.encoding!r} is not an encoding") from None

    def _check_features(self) -> None:
        names = [feature for feature, _ in self.features]
        if not names:
            raise ValueError('source.features is empty: name at least one, such as (("inputs", "inputs"),)')
        for name, where in self.features:
            if name not in FEATURES:
                raise ValueError(f"source.features: there is no feature {name!r}: {nearest(name, FEATURES)}")
            if names.count(name) > 1:
                raise ValueError(f"source.features names {name!r} twice")
            if not _HOLDS[self.kind](name):
                raise ValueError(
                    f"source.features={self.features!r}: a source of kind {self.kind!r} cannot hold "
                    f"{name!r}; it can hold {', '.join(filter(_HOLDS[self.kind], FEATURES))}"
                )
            if self.kind == "tsv" and not where.isdecimal():
                raise ValueError(
                    f"source.features: the column of {name!r} in a TSV file must be a number from 0, such as "
                    f'"0", not {where!r}'
                )
        if self.prefix and "inputs" not in names:
            raise ValueError(
                f"source.prefix={self.prefix!r} needs the feature inputs, which source.features does not name"
            )
        if self.kind == "pattern":
            try:
                groups = list(re.compile(self.pattern).groupindex)
            except re.error as error:
                raise ValueError(
                    f"source.pattern={self.pattern!r} is not a regular expression: {error}"
                ) from None
            for _, where in self.features:
                if where not in groups:
                    raise ValueError(
                        f"source.pattern={self.pattern!r} has no group {where!r}: {nearest(where, groups)}"
                    )


def data_folder(folder: str) -> str:
    """Returns ``folder`` or, if it is empty, ``$TRANSFORMER_JAX_DATA`` or else ``data``."""
    return folder or os.environ.get(DATA_VARIABLE, "") or "data"


def load_source(config: SourceConfig, split: str) -> Source:
    """Opens one split of a corpus.

    Examples are in the order of the files: example ``i`` is line ``i + 1``. No example is left out here, not
    even blank lines; the pipeline counts those that training leaves out.

    A TFDS data set that is not in the data folder yet is prepared there if its builder is known: it is
    ``number_words`` (about half a minute at most), or ``config.builder_class`` names it. Any other must have
    been prepared before.

    Args:
      config: describes the corpus.
      split: "train", "validation" or "test".

    Raises:
      DataError: the split is unknown or empty, a file or data set is missing, files are misaligned, or a line
        or value cannot be read.
    """
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}: {nearest(split, SPLITS)}")
    names = getattr(config, split)
    if not names:
        raise DataError(f"the source has no {split} split: set config.data.source.{split}")
    source = _open(config, names)
    if not len(source):
        raise DataError(f"the {split} split is empty: {', '.join(names)} has no examples")
    return PrefixedSource(source, config.prefix) if config.prefix else source


def load_sources(configs: Sequence[SourceConfig], split: str) -> Source:
    """Opens one split of several corpora and concatenates them.

    Raises:
      DataError: as ``load_source``.
    """
    sources = [load_source(config, split) for config in configs]
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _open(config: SourceConfig, names: Sequence[str]) -> Source:
    folder = data_folder(config.folder)
    if config.kind == "tfds":
        return load_tfds(config.name, names[0], config.features, folder, config.builder_class)
    paths = [os.path.join(folder, name) for name in names]
    if config.kind == "idx":
        return read_idx(paths, config.features)
    if config.kind == "text":
        return read_aligned(paths, config.features, config.encoding)
    if config.kind == "document":
        return read_documents(paths, config.encoding)
    if config.kind == "pattern":
        return read_pattern(paths[0], config.features, config.encoding, config.pattern)
    readers = {"tsv": read_columns, "jsonl": read_objects}
    return readers[config.kind](paths[0], config.features, config.encoding)
