"""Examples from data sets that TFDS prepared, read from disk by index and without TensorFlow."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import read_only_builder

from transformer_jax.config import nearest
from transformer_jax.data.datasets import caption_questions, number_words
from transformer_jax.data.examples import DataError, check_value, described
from transformer_jax.data.image_files import decode_image
from transformer_jax.data.text_files import DATA_VARIABLE, Features
from transformer_jax.types import FEATURES, Example

OUR_BUILDERS = {  # prepared on first use
    "number_words": number_words.NumberWords,
    "caption_questions": caption_questions.CaptionQuestions,
}


class TfdsSource:
    """A prepared TFDS split.

    Args:
      name: of data set and split, for messages.
      records: with ``__len__`` and ``__getitems__``; images in them are not decoded.
      features: of an example, and where each is found ("a/b" for b within a).
      channels: of images.
    """

    def __init__(self, name: str, records: Any, features: Features, channels: int = 3):
        self._name, self._records, self._channels = name, records, channels
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
            if feature == "images":
                try:
                    example[feature] = decode_image(value, self._channels)
                except OSError as error:
                    raise DataError(f"{where} is not an image: {error}") from error
                continue
            try:
                example[feature] = _plain(value)
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is not UTF-8: {error}") from error
            check_value(feature, example[feature], where)
        return example


def _plain(value: Any) -> Any:
    """What TFDS gives as text, integers and lists, in Python's own types."""
    if isinstance(value, bytes):
        return value.decode("utf-8")  # as TFDS stores text
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def load_tfds(name: str, split: str, features: Features, folder: str) -> TfdsSource:
    """Opens a split, such as "train" or "train[:90%]", of a prepared data set, or prepares one of ours.

    Raises:
      DataError: the data set, split or a feature is not there, or a feature has another type.
    """
    builder = _prepared_builder(name, folder)
    found = {feature: _find_feature(builder, name, feature, key) for feature, key in features}
    decoders: dict[str, Any] = {}
    channels = 3
    for feature, key in features:
        if feature == "images":  # TFDS would want OpenCV
            *outer, last = key.split("/")
            level = decoders
            for step in outer:
                level = level.setdefault(step, {})
            level[last] = tfds.decode.SkipDecoding()
            channels = found[feature].shape[-1]
    try:
        records = builder.as_data_source(split=split, decoders=decoders or None)
    except NotImplementedError as error:  # stored in a format without random access
        raise DataError(_how_to_prepare(name, folder)) from error
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{name} has no split {split!r}: {nearest(split, list(builder.info.splits))}"
        ) from error
    return TfdsSource(f"{name}, {split}", records, features, channels)


def _find_feature(builder: Any, name: str, wanted: str, key: str) -> Any:
    """The TFDS feature at ``key``, checked to be what the feature ``wanted`` of an example may be."""
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
    if (f"list of {kind}s" if in_list else kind) not in FEATURES[wanted]:
        raise DataError(
            f"the feature {key!r} of {name} is {'a list of ' if in_list else ''}"
            f"{' '.join(str(feature).split())}, which cannot be {wanted}: that must be {described(wanted)}"
        )
    return feature


def _kind(feature: Any) -> str:
    """What it is in the words of ``FEATURES``; "" for something else."""
    dtype, shape = getattr(feature, "np_dtype", None), getattr(feature, "shape", None)
    if isinstance(feature, tfds.features.Text):
        return "text"
    if isinstance(feature, tfds.features.Image):
        return "image" if dtype == np.uint8 and shape is not None and shape[-1] in (1, 3, 4) else ""
    if isinstance(feature, tfds.features.Tensor) and shape == ():
        if dtype == np.object_:  # a plain string, as data sets from elsewhere have them
            return "text"
        return "integer" if np.issubdtype(dtype, np.integer) else ""
    return ""


def _prepared_builder(name: str, folder: str) -> Any:
    """The TFDS builder of a data set on disk, found by its files: its code may be anywhere."""
    find = read_only_builder.builder_from_files
    try:
        return find(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        base_name, _, variant = name.partition("/")
        builder_class = OUR_BUILDERS.get(base_name)
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
