"""TFDS data sets with the features of catalogue ones, and a few pairs of our own."""

from collections.abc import Sequence
from typing import ClassVar

import tensorflow_datasets as tfds

from transformer_jax.data import SPLITS
from transformer_jax.data.datasets.number_words.number_words import LocalInfo


def mock_translate(languages: tuple[str, str], pairs: Sequence[tuple[str, str]]):
    """A builder like wmt14_translate's and ted_hrlr_translate's; the same texts are within ``nested``."""

    class MockTranslate(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="mock")]

        def _info(self):
            translation, nested = (tfds.features.Translation(languages=languages) for _ in range(2))
            return LocalInfo(
                builder=self, features=tfds.features.FeaturesDict({**translation, "nested": nested})
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in SPLITS}

        def _generate_examples(self):
            for number, pair in enumerate(pairs):
                texts = dict(zip(languages, pair, strict=True))
                yield number, {**texts, "nested": texts}

    return MockTranslate
