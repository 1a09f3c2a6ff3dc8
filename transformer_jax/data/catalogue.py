"""Reads data sets that TFDS prepared, by index and without TensorFlow."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import read_only_builder

from transformer_jax.config import ConfigError, import_callable, nearest
from transformer_jax.data.datasets import number_words
from transformer_jax.data.examples import DataError, described, read_value
from transformer_jax.data.image_files import decode_image
from transformer_jax.data.text_files import DATA_VARIABLE, Features
from transformer_jax.types import FEATURES, Example

OUR_BUILDERS = {"number_words": number_words.NumberWords}  # prepared on first use
# The kinds of values that TFDS declares in a way that ``_kind`` knows.
_KINDS = {"text", "list of texts", "integer", "list of integers", "image"}


class TfdsSource:
    """Reads examples of a prepared TFDS split.

    Args:
      name: name of the data set and the split, for error messages.
      records: has ``__len__`` and ``__getitems__``; images in it are not decoded.
      features: the features of an example and the place of each ("a/b" for b within a).
      channels: channels of the images of each feature that may be one; by default 3.
    """

    def __init__(
        self, name: str, records: Any, features: Features, channels: Mapping[str, int] | None = None
    ):
        self._name, self._records, self._channels = name, records, channels or {}
        self._features = [(feature, key, key.split("/")) for feature, key in features]

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Sequence[int]) -> list[Example]:
        records = self._records.__getitems__(list(indices))
        return [self._example(index, record) for index, record in zip(indices, records, strict=True)]

    def _example(self, index: int, record: Any) -> Example:
        example = {}
        for feature, key, steps in self._features:
            value = record
            for step in steps:
                value = value[step]
            where = f"example {index} of {self._name}: the feature {key!r}"
            if _may_be_image(feature):
                try:
                    example[feature] = decode_image(value, self._channels.get(feature, 3))
                except OSError as error:
                    raise DataError(f"{where} is not an image: {error}") from error
                continue
            try:
                plain = _plain(value)
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is not UTF-8: {error}") from error
            example[feature] = read_value(feature, plain, where)
        return example


def _may_be_image(feature: str) -> bool:
    return "image" in FEATURES[feature]


def _plain(value: Any) -> Any:
    """Converts text, integers and lists from TFDS to Python's own types."""
    if isinstance(value, bytes):
        return value.decode("utf-8")  # as TFDS stores text
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def load_tfds(name: str, split: str, features: Features, folder: str, builder_class: str = "") -> TfdsSource:
    """Opens one split of a TFDS data set, and prepares the data set first if its builder is known.

    Args:
      name: name of the data set, such as "glue/sst2".
      split: such as "train" or "train[:90%]".
      features: features of an example, each with its name in the data set.
      folder: folder of prepared data sets.
      builder_class: "package.module:Class" of the TFDS builder; "" for the library's own data sets and for
        those that lie prepared in ``folder``.

    Raises:
      DataError: the data set, the split or a feature does not exist, or a feature has another type.
    """
    builder = _prepared_builder(name, folder, builder_class)
    tfds_features = {feature: _find_feature(builder, name, feature, key) for feature, key in features}
    decoders: dict[str, Any] = {}
    channels = {}
    for feature, key in features:
        if _may_be_image(feature):  # decoded here, because TFDS would need OpenCV
            *outer, last = key.split("/")
            level = decoders
            for step in outer:
                level = level.setdefault(step, {})
            level[last] = tfds.decode.SkipDecoding()
            channels[feature] = tfds_features[feature].shape[-1]
    try:
        records = builder.as_data_source(split=split, decoders=decoders or None)
    except NotImplementedError as error:  # stored in a format without random access
        raise DataError(_how_to_prepare(name, folder)) from error
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{name} has no split {split!r}: {nearest(split, list(builder.info.splits))}"
        ) from error
    return TfdsSource(f"{name}, {split}", records, features, channels)


def _find_feature(builder: Any, name: str, target: str, key: str) -> Any:
    """Returns the TFDS feature at ``key`` after checking that its type is allowed for ``target``.

    Args:
      builder: the data set's builder.
      name: the data set's name, for errors.
      target: the feature of an example that it will become.
      key: its name in the data set.
    """
    feature: Any = builder.info.features
    in_list = False
    for step in key.split("/"):
        if isinstance(feature, tfds.features.Sequence):
            feature, in_list = feature.feature, True
        known = list(feature) if isinstance(feature, tfds.features.FeaturesDict) else []
        if step not in known:
            raise DataError(
                f"{name} has no feature {key!r}: {nearest(step, known)}; set config.data.source.features to "
                "pairs of a feature of an example and the data set's name for it"
            )
        feature = feature[step]
    if isinstance(feature, tfds.features.Sequence):
        feature, in_list = feature.feature, True
    kind = _kind(feature)
    kinds = FEATURES[target]
    # Values of kinds that a program has added are checked when they are read.
    if (f"list of {kind}s" if in_list else kind) not in kinds and _KINDS.issuperset(kinds):
        raise DataError(
            f"the feature {key!r} of {name} is {'a list of ' if in_list else ''}"
            f"{' '.join(str(feature).split())}, which cannot be {target}: that must be {described(target)}"
        )
    return feature


def _kind(feature: Any) -> str:
    """Returns the type of a TFDS feature in the words of ``FEATURES``, or "" for any other type."""
    dtype, shape = getattr(feature, "np_dtype", None), getattr(feature, "shape", None)
    if isinstance(feature, tfds.features.Text):
        return "text"
    if isinstance(feature, tfds.features.Image):
        return "image" if dtype == np.uint8 and shape is not None and shape[-1] in (1, 3, 4) else ""
    if isinstance(feature, tfds.features.Tensor) and shape == ():
        if dtype == np.object_:  # a plain string, as in data sets converted from other libraries
            return "text"
        return "integer" if np.issubdtype(dtype, np.integer) else ""
    return ""


def _prepared_builder(name: str, folder: str, class_path: str) -> Any:
    """Returns the TFDS builder of a data set, found by its files on disk and independent of its code.

    Prepares the data set first if it is not there and its builder is known.
    """
    find = read_only_builder.builder_from_files
    try:
        return find(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        base_name, _, variant = name.partition("/")
        builder_class = _import_builder(class_path) if class_path else OUR_BUILDERS.get(base_name)
        if builder_class is None:
            raise DataError(_how_to_prepare(name, folder)) from error
    variants = list(builder_class.builder_configs)
    variant = variant or variants[0]
    if variant not in variants:
        known = [f"{base_name}/{known}" for known in variants]
        raise DataError(f"there is no data set {name!r}: {nearest(name, known)}")
    # Root can write anywhere, but a folder without any write permission is read-only on purpose.
    if os.path.isdir(folder) and not os.stat(folder).st_mode & 0o222:
        raise DataError(_cannot_prepare(name, folder, "the folder is read-only"))
    logging.info("Preparing %s in %s.", name, os.path.abspath(folder))
    try:
        builder_class(config=variant, data_dir=folder).download_and_prepare()
    except (OSError, RuntimeError) as error:
        # array_record raises a plain RuntimeError if the system refuses something; a subclass is a bug.
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        # TFDS writes to a temporary folder and renames it. If another process prepared the same data set
        # first, the rename fails but a complete data set exists; after any other failure none exists.
        try:
            return find(name, data_dir=folder)
        except tfds.core.DatasetNotFoundError:
            raise DataError(_cannot_prepare(name, folder, str(error))) from error
    return find(name, data_dir=folder)


def _import_builder(class_path: str) -> Any:
    """Imports the TFDS builder class that ``SourceConfig.builder_class`` names."""
    try:
        return import_callable(class_path, "config.data.source.builder_class", "the class of a TFDS builder")
    except ConfigError as error:
        raise DataError(str(error)) from error


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
