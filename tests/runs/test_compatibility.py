"""Sections of a config that are right by themselves but not together."""

import importlib.util
import pathlib

import pytest

from transformer_jax.config import ConfigError
from transformer_jax.runs.experiment import read_experiment

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


def config_of(name, *variant):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


def changed(config, changes):
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "bert_trec",
            {"model.num_labels": 5},
            "config.objective.labels names 6 classes, but config.model.num_labels=5",
        ),
        (
            "bert_trec",
            {"model.head": "token_classes"},
            "config.objective.name='classification' needs config.model.head='classes', not 'token_classes'",
        ),
        (
            "bert_mlm",
            {"objective.next_sentence": True, "model.head": "pretraining", "model.num_token_types": 1},
            "config.objective.name='masked_lm' marks the parts of an input by token types: set",
        ),
        (
            "bert_trec",
            {"checkpoint.best_metric": "f1"},
            "config.checkpoint.best_metric='f1' is not measured here: it needs config.model.num_labels=2",
        ),
        (
            "bert_mlm",
            {"checkpoint.best_metric": "next_sentence_accuracy", "checkpoint.best_mode": "max"},
            "config.checkpoint.best_metric='next_sentence_accuracy' is not measured here: it needs conf",
        ),
        (
            "bert_mlm",
            {"objective.next_sentence": True},
            "config.objective.name='masked_lm' needs config.model.head='pretraining', not 'masked_tokens'",
        ),
        (
            "gpt2_chars",
            {"model.num_encoder_layers": 2},
            "config.objective.name='causal_lm' needs a model of exactly these parts: decoder. Set",
        ),
        (
            "vit_imagenet",
            {"data.source.features": (("inputs", ""), ("labels", ""))},
            "config.data.source.features has inputs, labels, but the model reads images",
        ),
        (
            "bert_glue",
            {"data.source.features": (("inputs", ""), ("labels", ""), ("images", ""))},
            "config.data.source.features has inputs, labels, images, but the model reads inputs and not ",
        ),
        (
            "number_words",
            {"data.max_length": 100, "model.decoder_changes": (("max_length", 99),)},
            "config.data.max_length=100 is longer than the model's sequences of at most 99 tokens: raise "
            "max_length in config.model.decoder_changes, or lower",
        ),
        (
            "vit_imagenet",
            {"objective.image_size": 160},
            "config.objective.image_size=160 makes images of 160 x 160 pixels, but the model",
        ),
        (
            "t5_multi30k",
            {"evaluate.beam_size": 7000},
            "config.evaluate.beam_size=7000 must be at most config.model.vocab_size=6144",
        ),
        (
            "t5_spans",
            {"data.tokenizer.vocab_size": 7000},
            "config.data.tokenizer.vocab_size=7000 does not fit into config.model.vocab_size=6144",
        ),
        (
            "bert_sst2",
            {"objective.flip": True},
            "config.objective.flip=True has no effect on texts: leave it at False",
        ),
        (
            "bert_trec",
            {"objective.image_size": 32},
            "config.objective.image_size=32 has no effect on texts: leave it at 0",
        ),
        (
            "vit_fashion",
            {"objective.cut_long": True},
            "config.objective.cut_long=True has no effect on images: leave it at False",
        ),
        (
            "vit_fashion",
            {"objective.least_area": 0.5},
            "config.objective: least_area=0.5 is for images that are brought to one size: set image_size",
        ),
        (
            "gpt2_chars",
            {"data.buckets": (16,)},
            "config.data.buckets=(16,) needs data.batching='buckets': packed rows have one length",
        ),
        (
            "bart_denoise",
            {"model.decoder_changes": (("max_length", 16),)},
            "config.data.max_length=64 is longer than the model's sequences of at most 16 tokens",
        ),
        (
            "bart_denoise",
            {"data.max_length": 200},
            "config.data.max_length=200 is longer than the model's sequences of at most 128 tokens: raise",
        ),
    ],
)
def test_what_does_not_go_together_is_named(name, changes, message):
    read_experiment(config_of(name))
    with pytest.raises(ConfigError) as error:
        read_experiment(changed(config_of(name), changes))
    assert str(error.value).startswith(message)


def test_the_tokenizer_of_what_a_run_starts_from_need_not_fit_settings_for_training_one():
    changes = {"data.tokenizer.vocab_size": 40_000, "data.tokenizer.path": ""}
    for name in ("bert_trec", "bert_sst2"):  # both start from MiniLM, which has 30,522
        assert read_experiment(changed(config_of(name), changes))
    with pytest.raises(ConfigError, match="vocab_size=40000 does not fit"):
        read_experiment(changed(config_of("bert_trec"), changes | {"train.init_from": ""}))


def test_metrics_of_two_classes_choose_a_checkpoint_of_two_classes():
    changes = {"checkpoint.best_metric": "matthews", "checkpoint.best_mode": "max"}
    assert read_experiment(changed(config_of("bert_glue", "cola"), changes))
    with pytest.raises(ConfigError, match="num_labels=2"):
        read_experiment(changed(config_of("bert_glue", "mnli"), changes))
