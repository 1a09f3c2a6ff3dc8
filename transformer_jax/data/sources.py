"""Where examples come from: the section of a config that says so, and the one function that opens it."""

import codecs
import dataclasses
import os
import re
from collections.abc import Sequence
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
from transformer_jax.types import FEATURES

SPLITS = ("train", "validation", "test")
# Questions and answers as TFDS's squad has them, and whatever was made in its likeness.
SQUAD_FEATURES = (
    ("inputs", "question"),
    ("context", "context"),
    ("answers", "answers/text"),
    ("answer_starts", "answers/answer_start"),
)

_TEXTS = tuple(name for name, kinds in FEATURES.items() if "text" in kinds)
# The features that a source of each kind can hold.
_HELD = {
    "tfds": tuple(FEATURES),
    "jsonl": tuple(name for name in FEATURES if name != "images"),
    "text": _TEXTS,
    "tsv": _TEXTS,
    "pattern": _TEXTS,
    "document": ("inputs",),
    "idx": ("images", "labels"),
}
_FILE_A_FEATURE = ("text", "idx")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where a corpus lies and how its examples are found in it.

    A split names TFDS splits or files in ``folder``; one that is empty is not there:

    * ``tfds``: one TFDS split, such as ``("train",)``;
    * ``text``: a file for each feature, in their order, all with the same number of lines;
    * ``tsv``: one file with tab-separated columns, no header and no quoting;
    * ``jsonl``: one file with a JSON object on every line;
    * ``pattern``: one file, on every line of which ``pattern`` finds the features;
    * ``document``: any number of files, each the inputs of one example as it stands; its pieces are trained
      on close together, so one that is most of the data does not mix with other sources;
    * ``idx``: a file for each feature (images, labels), in the format of MNIST.

    Any name may end in a slice as TFDS has them, ``"train[:90%]"`` or ``"a.txt[-5000:]"``: of the examples,
    of a document its characters. File names that end in ``.gz`` are read as gzip.

    Raises:
      ValueError: a split or feature that does not suit the kind, an unknown feature or encoding.
    """

    kind: Literal["tfds", "text", "tsv", "jsonl", "pattern", "document", "idx"] = "tfds"
    name: str = "number_words/de"  # of a TFDS data set; unused by the other kinds
    folder: str = ""  # "" means $TRANSFORMER_JAX_DATA, or data/ where that is not set
    train: tuple[str, ...] = ("train",)
    validation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)
    # Features of an example (transformer_jax.types.FEATURES) and where each is found: names in TFDS and keys
    # in JSONL ("a/b" for b within a), columns from 0 in TSV, groups of the pattern; of no use elsewhere.
    features: tuple[tuple[str, str], ...] = (("inputs", "inputs"), ("targets", "targets"))
    pattern: str = (
        ""  # a regular expression that matches every line, such as r"(?P<labels>\S+) (?P<inputs>.*)"
    )
    prefix: str = ""  # put before the inputs, such as T5's "translate English to German: "
    encoding: str = "utf-8"  # of files

    def __post_init__(self) -> None:
        check_types(self, "data.source")
        self._check_features()
        number = len(self.features) if self.kind in _FILE_A_FEATURE else 1
        for split in SPLITS:
            found = getattr(self, split)
            if self.kind != "document" and len(found) not in (0, number):
                raise ValueError(
                    f"source.{split}={found!r} must have {number} name(s), or none, "
                    f"for source.kind={self.kind!r}"
                )
            slices = {split_name(name)[1] for name in found}
            if self.kind in _FILE_A_FEATURE and len(slices) > 1:
                raise ValueError(f"source.{split}={found!r} must have the same slice in all its names")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"source.encoding={self.encoding!r} is not an encoding") from None

    def _check_features(self) -> None:
        names = [feature for feature, _ in self.features]
        if not names:
            raise ValueError('source.features is empty: it must name some, such as (("inputs", "inputs"),)')
        for name, where in self.features:
            if name not in FEATURES:
                raise ValueError(f"source.features: there is no feature {name!r}: {nearest(name, FEATURES)}")
            if names.count(name) > 1:
                raise ValueError(f"source.features names {name!r} twice")
            if name not in _HELD[self.kind]:
                raise ValueError(
                    f"source.features={self.features!r}: a source of kind {self.kind!r} cannot hold "
                    f"{name!r}, but {', '.join(_HELD[self.kind])}"
                )
            if self.kind == "tsv" and not where.isdecimal():
                raise ValueError(
                    f"source.features: {name!r} is in column {where!r}, which must be a number from 0, "
                    'such as "0", for a TSV file'
                )
        if self.prefix and "inputs" not in names:
            raise ValueError(
                f"source.prefix={self.prefix!r} stands before inputs, which source.features has not"
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
    """The folder a config means: itself, or ``$TRANSFORMER_JAX_DATA``, else ``data``, for ""."""
    return folder or os.environ.get(DATA_VARIABLE, "") or "data"


def load_source(config: SourceConfig, split: str) -> Source:
    """Opens one split ("train", "validation" or "test") of a corpus.

    Examples are in the order of the files: example ``i`` is line ``i + 1``. Nothing is left out here, blank
    lines included; what training leaves out, the pipeline counts.

    The project's own data sets, ``number_words`` and ``caption_questions``, are prepared in the data folder
    when they are not there yet (about half a minute at most); any other TFDS data set must have been
    prepared before.

    Raises:
      DataError: the split is unknown or empty, a file or data set is missing, files are
        misaligned, or a line or value cannot be read.
    """
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}: {nearest(split, SPLITS)}")
    names = getattr(config, split)
    if not names:
        raise DataError(f"the source has no {split} split: set config.data.source.{split}")
    source = _open(config, names)
    if not len(source):
        raise DataError(f"the {split} split is empty: there is no example in {', '.join(names)}")
    return PrefixedSource(source, config.prefix) if config.prefix else source


def load_sources(configs: Sequence[SourceConfig], split: str) -> Source:
    """Opens one split of several corpora, one after the other; raises DataError as ``load_source``."""
    sources = [load_source(config, split) for config in configs]
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _open(config: SourceConfig, names: Sequence[str]) -> Source:
    folder = data_folder(config.folder)
    if config.kind == "tfds":
        return load_tfds(config.name, names[0], config.features, folder)
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
