"""Configs as earlier versions stored them: read as the experiments that they were."""

import json
import pathlib

import pytest

from tests.experiments.test_experiments import experiment_of
from tests.tiny_training import tiny_experiment
from transformer_jax.config import ConfigError
from transformer_jax.runs import load_config
from transformer_jax.runs.folder import (
    CONFIG_FILE,
    TOKENIZER_DATA_FILE,
    TOKENIZER_FILE,
    load_or_train_tokenizer,
)

# Stored by the version of 2026-11-29, before the library was divided into folders.
STORED = pathlib.Path(__file__).parent / "stored"
EXPERIMENTS = {"number_words": "de", "t5_multi30k": "scratch"} | dict.fromkeys(
    ["vit_fashion", "bert_trec", "gpt2_chars", "bart_denoise", "qa_spans"]
)


def store(folder, content):
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_stored_config_is_the_experiment_of_today(tmp_path, name):
    loaded = load_config(store(tmp_path, json.loads((STORED / f"{name}.json").read_text())))
    assert loaded == experiment_of(f"{name}.py", EXPERIMENTS[name])


def test_every_stored_config_is_tried():
    assert {path.stem for path in STORED.glob("*.json")} == set(EXPERIMENTS)


def test_a_key_that_was_always_there_may_not_be_missing(tmp_path):
    content = json.loads((STORED / "bert_trec.json").read_text())
    del content["model"]["dropout"]
    with pytest.raises(ConfigError, match="dropout"):
        load_config(store(tmp_path, content))


def test_an_unknown_key_is_an_error(tmp_path):
    content = json.loads((STORED / "bert_trec.json").read_text())
    content["model"]["dropuot"] = 0.1
    with pytest.raises(ConfigError, match="dropout"):
        load_config(store(tmp_path, content))


def test_the_tokenizer_of_an_untrained_run_of_an_earlier_version_is_not_trained_again(tmp_path, corpus):
    experiment = tiny_experiment(corpus)
    load_or_train_tokenizer(tmp_path, experiment)
    path = tmp_path / TOKENIZER_DATA_FILE
    stored = json.loads(path.read_text())
    for source in (stored["source"], *stored["more_sources"]):
        del source["builder_class"]  # which earlier versions did not have
    path.write_text(json.dumps(stored))
    before = (tmp_path / TOKENIZER_FILE).stat().st_mtime_ns
    load_or_train_tokenizer(tmp_path, experiment)
    assert (tmp_path / TOKENIZER_FILE).stat().st_mtime_ns == before
    stored["max_length"] += 1  # other data still trains another one
    path.write_text(json.dumps(stored))
    load_or_train_tokenizer(tmp_path, experiment)
    assert (tmp_path / TOKENIZER_FILE).stat().st_mtime_ns != before
