"""``number_words``: numbers up to 999,999 written out in English and in another language.

A translation task that needs no download, has one right answer for every input, and is far from
word-for-word: German, for one, says the units before the tens (24 is "four and twenty") and writes
the whole number as a single word.

The words are those of ``num2words`` as it is, its slips included ("veintiuno mil" for 21,000, where
Spanish says "veintiún mil").
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from num2words import num2words

LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish"}  # the first is the default
NUM_NUMBERS = 1_000_000
SPLIT_SIZES = {"train": 200_000, "validation": 1_000, "test": 1_000}

_ALWAYS_TRAINED_BELOW = 1_000  # so that no word and no short number is missing from training
_SEED = 2017
_JOINTS = {"en": ", ", "de": "", "fr": " ", "es": " "}  # between the thousands and the rest


def split_numbers() -> dict[str, np.ndarray]:
    """Which numbers are in which split: the same on every machine and in every language.

    Validation and test are drawn uniformly from all numbers. Training has every number below 1,000
    that is not held out, and is filled up with others drawn uniformly. 200,000 are a fifth of all
    numbers, which is plenty to learn from and seconds to prepare.
    """
    # The legacy generator, because NumPy promises that its streams never change.
    order = np.random.RandomState(_SEED).permutation(NUM_NUMBERS)
    validation, test, rest = np.split(order, np.cumsum([SPLIT_SIZES["validation"], SPLIT_SIZES["test"]]))
    small = rest[rest < _ALWAYS_TRAINED_BELOW]
    large = rest[rest >= _ALWAYS_TRAINED_BELOW][: SPLIT_SIZES["train"] - len(small)]
    return {
        "train": np.concatenate([small, large]),
        "validation": validation,
        "test": test,
    }


def number_words(number: int, language: str) -> str:
    """The words of ``number``, from 0 to 999,999, as ``num2words`` has them, but 15 times as fast.

    Beyond 1,000, ``num2words`` joins the words of the thousands and those of the rest, in these
    four languages at least; the words of each are worth remembering.
    """
    rest = number % 1_000
    if rest == number or not rest:
        return _cached_words(number, language)
    joint = _JOINTS[language]
    if language == "en" and rest < 100:
        joint = " and "
    return _cached_words(number - rest, language) + joint + _cached_words(rest, language)


@functools.cache
def _cached_words(number: int, language: str) -> str:
    return num2words(number, lang=language)


class LocalInfo(tfds.core.DatasetInfo):
    """The description of a data set that is made here."""

    def initialize_from_bucket(self) -> None:
        """Nothing: TFDS would ask the network, and leave an empty folder among the temporary files."""


class NumberWords(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of ``number_words/de`` (the default), ``/fr`` and ``/es``.

    Neither preparing nor reading it needs TensorFlow::

        import tensorflow_datasets as tfds
        import transformer_jax.data.datasets.number_words  # makes the name known to TFDS

        builder = tfds.builder("number_words/de", data_dir="data", file_format="array_record")
        builder.download_and_prepare()
        source = tfds.data_source("number_words/de", split="test", data_dir="data")
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "200,000 training, 1,000 validation and 1,000 test pairs."}
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=code, description=f"English to {language}")
        for code, language in LANGUAGES.items()
    ]

    def __init__(self, *, file_format: Any = "array_record", **kwargs: Any):
        # TFDS's own default format is one that only TensorFlow can write. The other arguments
        # are TFDS's, which passes them by keyword.
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return LocalInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "inputs": tfds.features.Text(),
                    "targets": tfds.features.Text(),
                    "number": np.int64,
                }
            ),
            supervised_keys=("inputs", "targets"),
            homepage="https://pypi.org/project/num2words",
        )

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Any]:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(numbers) for split, numbers in split_numbers().items()}

    def _generate_examples(self, numbers: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        assert self.builder_config is not None  # the class has configs, so TFDS chose one
        language = self.builder_config.name
        for number in numbers.tolist():
            yield (
                number,
                {
                    "inputs": number_words(number, "en"),
                    "targets": number_words(number, language),
                    "number": number,
                },
            )
