"""The number_words TFDS data set: the words, the splits, and preparing it through TFDS itself."""

import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from num2words import num2words

from transformer_jax.data.datasets.number_words import number_words as module

KNOWN = [  # from grammar books, not from num2words
    ("en", 0, "zero"),
    ("en", 24, "twenty-four"),
    ("en", 1_001, "one thousand and one"),
    ("en", 324_185, "three hundred and twenty-four thousand, one hundred and eighty-five"),
    ("de", 24, "vierundzwanzig"),
    ("de", 1_001, "eintausendeins"),
    ("de", 324_185, "dreihundertvierundzwanzigtausendeinhundertfünfundachtzig"),
    ("fr", 80, "quatre-vingts"),
    ("fr", 80_071, "quatre-vingt mille soixante et onze"),
    ("fr", 2_200, "deux mille deux cents"),
    ("es", 22_000, "veintidós mil"),
    ("es", 102_016, "ciento dos mil dieciséis"),
]


@pytest.mark.parametrize(("language", "number", "words"), KNOWN)
def test_known_words(language, number, words):
    assert module.number_words(number, language) == words


@pytest.mark.parametrize("language", ["en", *module.LANGUAGES])
def test_words_are_those_of_num2words(language, rng):
    edges = [0, 99, 100, 999, 1_000, 1_001, 1_099, 1_100, 100_000, 100_001, 999_000, 999_999]
    for number in [*edges, *rng.integers(0, module.NUM_NUMBERS, 500).tolist()]:
        assert module.number_words(number, language) == num2words(number, lang=language)


def test_splits_are_disjoint_and_always_the_same():
    splits = module.split_numbers()
    together = np.concatenate(list(splits.values()))
    assert {split: len(numbers) for split, numbers in splits.items()} == module.SPLIT_SIZES
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0 and together.max() < module.NUM_NUMBERS
    for split, numbers in module.split_numbers().items():
        np.testing.assert_array_equal(numbers, splits[split])
    # What is stored under version 1.0.0 must not change.
    assert splits["test"][:3].tolist() == [227896, 346494, 652891]


def test_every_small_number_is_in_some_split():
    together = np.concatenate(list(module.split_numbers().values()))
    assert set(range(1_000)) <= set(together.tolist())


def test_held_out_numbers_are_uniform():
    splits = module.split_numbers()
    for split in ("validation", "test"):
        counts, _ = np.histogram(splits[split], bins=10, range=(0, module.NUM_NUMBERS))
        assert abs(counts - 100).max() < 40  # 100 expected, standard deviation 9.5


@pytest.mark.parametrize("language", list(module.LANGUAGES))
def test_plain_tfds_prepares_and_reads_it(language, tmp_path, monkeypatch):
    sizes = {"train": 1_200, "validation": 20, "test": 20}
    monkeypatch.setattr(module, "SPLIT_SIZES", sizes)
    builder = tfds.builder(f"number_words/{language}", data_dir=tmp_path)
    builder.download_and_prepare()
    records = dict(tfds.data_source(f"number_words/{language}", data_dir=tmp_path))
    seen = []
    for split, size in sizes.items():
        assert len(records[split]) == size
        for record in records[split].__getitems__(range(size)):
            number = int(record["number"])
            seen.append(number)
            assert record["inputs"].decode() == num2words(number, lang="en")
            assert record["targets"].decode() == num2words(number, lang=language)
    assert len(set(seen)) == len(seen)


def test_a_builder_leaves_nothing_among_the_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module.NumberWords(config="de", data_dir=tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_german_is_the_default_config():
    assert next(iter(module.NumberWords.builder_configs)) == "de"
