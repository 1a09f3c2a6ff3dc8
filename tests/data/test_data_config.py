"""The data section of a config: what it takes, what it refuses, and that plain values carry all of it."""

import dataclasses
import json

import ml_collections
import pytest

from transformer_jax.config import ConfigError, read_section
from transformer_jax.data import DataConfig, SourceConfig


def test_the_section_is_read_from_plain_values():
    values = {
        "source": {
            "kind": "text",
            "name": "",
            "folder": "",
            "train": ("a", "b"),
            "validation": (),
            "test": (),
            "features": (("inputs", ""), ("targets", "")),
            "pattern": "",
            "prefix": "",
            "builder_class": "",
            "encoding": "utf-8",
        },
        "more_sources": (),
        "tokenizer": {
            "kind": "byte",
            "vocab_size": 1,
            "special_tokens": (),
            "max_training_examples": 1,
            "path": "",
        },
        "max_length": 64,
        "batching": "buckets",
        "buckets": (32, 16, 64),
        "tokens_per_batch": 1024,
        "batch_size": 0,
        "window": 100,
        "seed": 0,
    }
    config = read_section(DataConfig, ml_collections.ConfigDict(values), "data")
    assert config.lengths == (16, 32, 64)
    assert config.source.train == ("a", "b") and config.tokenizer.kind == "byte"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batching": "bucket"}, "config.data.batching must be .*buckets.*packed.* not 'bucket'"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"buckets": (200,)}, r"buckets=\(200,\) must be from 1 to data\.max_length=128"),
        ({"window": 0}, "window=0"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": -1}, "batch_size=-1 must not be negative"),
    ],
)
def test_impossible_configs(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_section(DataConfig, dataclasses.asdict(DataConfig()) | changes, "data")


def test_sources_within_a_tuple_come_back_from_plain_values_and_json():
    plain = SourceConfig(kind="jsonl", train=("a.jsonl",), validation=(), test=())
    more = (dataclasses.replace(plain, prefix="b: "), dataclasses.replace(plain, train=("c.jsonl[:9]",)))
    config = DataConfig(source=plain, more_sources=more)
    assert config.sources == (plain, *more)
    values = dataclasses.asdict(config)
    assert read_section(DataConfig, ml_collections.ConfigDict(values), "data") == config
    assert read_section(DataConfig, json.loads(json.dumps(values)), "data") == config


def test_a_mistake_in_one_of_several_sources_is_found():
    values = dataclasses.asdict(DataConfig(more_sources=(SourceConfig(),)))
    values["more_sources"][0]["kind"] = "csv"
    with pytest.raises(ConfigError, match=r"config\.data\.more_sources\.kind must be .* not 'csv'"):
        read_section(DataConfig, values, "data")


def test_sources_with_other_features_are_refused():
    other = SourceConfig(features=(("inputs", "inputs"), ("labels", "number")))
    with pytest.raises(ValueError, match=r"more_sources\[1\] has the features inputs, labels, but"):
        DataConfig(more_sources=(SourceConfig(), other))
