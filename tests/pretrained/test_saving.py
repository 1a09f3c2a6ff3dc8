"""What ``save_pretrained`` refuses to write, and what it leaves of an older checkpoint in a folder."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.parity.test_fixtures import STORED
from transformer_jax import families
from transformer_jax.config import ConfigError
from transformer_jax.models import abstract_params
from transformer_jax.models.heads import HEADS
from transformer_jax.pretrained import saving
from transformer_jax.pretrained.config_json import content_of
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.pretrained.tensor_files import WeightsError
from transformer_jax.sharding.partitioning import unbox


def changed(name, **changes):
    """The model of a fixture with other fields, all parameters 1."""
    ours = from_pretrained(STORED / name)
    config = dataclasses.replace(ours.config, **changes)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), unbox(abstract_params(config)))
    return dataclasses.replace(ours, config=config, params=ones)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "bert_masked_lm",
            dict(key_size=5, value_size=6),
            r"family bert: key_size=5 would be read as 8, value_size=6 would be read as 8$",
        ),
        ("bert_masked_lm", dict(num_heads=3), r"family bert: .*3 heads cannot share a width of 16"),
        ("gpt2", dict(value_size=7), r"family gpt2: value_size=7 would be read as 8$"),
        ("vit", dict(key_size=4), r"family vit: key_size=4 would be read as 8$"),
        ("bart", dict(norm_epsilon=1e-6), r"family bart: norm_epsilon=1e-06 would be read as 1e-05$"),
        ("marian", dict(norm_epsilon=1e-3), r"family marian: norm_epsilon=0.001 would be read as 1e-05$"),
        ("t5", dict(value_size=9), r"family t5: value_size=9 would be read as 10$"),
        ("t5", dict(activation="swish"), r"family t5: activation='swish' would be read as 'relu'$"),
        (
            "t5",
            dict(share_embeddings="inputs"),
            r"has share_embeddings='inputs' and embedding_scale='logits'$",
        ),
        ("t5", dict(embedding_scale="none"), r"has share_embeddings='all' and embedding_scale='none'$"),
        ("t5_v1_1", dict(share_embeddings="none"), r"share_embeddings='none' would be read as "),
        (
            "distilbert_masked_lm",
            dict(head="pooled"),
            r"distilbert with the head 'pooled'; its models have the heads masked_tokens, ",
        ),
    ],
)
def test_what_config_json_cannot_say_is_not_written(name, changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        save_pretrained(tmp_path / "new", changed(name, **changes))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert_sequence", dict(dtype="bfloat16", eos_id=5, relative_buckets=8)),
        ("gpt2", dict(pad_id=0, decoder_start_id=3, scan_layers=True, remat=True)),
        ("t5", dict(dropout=0.5, attention_dropout=0.4, feedforward_dropout=0.3)),
        ("vit", dict(initial_stddev=0.5)),
    ],
)
def test_what_decides_nothing_of_the_outputs_is_written(name, changes, tmp_path):
    ours = changed(name, **changes)
    save_pretrained(tmp_path, ours)
    found = from_pretrained(tmp_path, scan_layers=ours.config.scan_layers)
    assert jax.tree.all(jax.tree.map(np.array_equal, found.params, ours.params))


@pytest.mark.parametrize(
    ("family", "variant", "head"),
    [
        (family, variant, head)
        for family in families.FAMILIES.values()
        if family.checkpoint is not None
        for variant in family.variants
        for head in family.checkpoint.architectures
    ],
    ids=lambda case: getattr(case, "name", case),
)
def test_config_json_can_say_every_variant_with_every_head(family, variant, head):
    config = getattr(families, family.name).config
    changes = dict(head=head, num_labels=3) if HEADS[head].labelled else dict(head=head)
    content = content_of(family, config(variant, **changes), ())
    assert content["architectures"] == [family.checkpoint.architectures[head]]


@pytest.fixture
def older(tmp_path):
    """A folder with a checkpoint, which is to stay or to be replaced."""
    return pathlib.Path(shutil.copytree(STORED / "bert_base_model", tmp_path / "older"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", lambda params: {"params": params}, r"missing: .*not known: params/decoder/"),
        ("gpt2", lambda params: {}, r"missing: decoder/final_norm/bias \(32,\), "),
        (
            "gpt2",
            lambda params: params | {"embedding": {"embedding": np.zeros((3, 16))}},
            r"of another shape: embedding/embedding: \(3, 16\) instead of \(67, 32\)$",
        ),
    ],
)
def test_parameters_of_another_model_are_not_written(name, change, message, older):
    ours, before = from_pretrained(STORED / name), contents(older)
    with pytest.raises(WeightsError, match=r"(?s)not those of the model's config:\n  " + message):
        save_pretrained(older, dataclasses.replace(ours, params=change(ours.params)))
    assert contents(older) == before


def test_parameters_without_the_head_of_the_config_are_not_written(older):
    ours, before = from_pretrained(STORED / "bert_base_model"), contents(older)
    config = dataclasses.replace(ours.config, head="classes", num_labels=3)
    message = r"config:\n  missing: head/classes/bias \(3,\), head/classes/kernel \(16, 3\)$"
    with pytest.raises(WeightsError, match=message):
        save_pretrained(older, dataclasses.replace(ours, config=config))
    assert contents(older) == before


@pytest.mark.parametrize("shard_bytes", [20_000, 5_000_000])
def test_a_disk_that_is_full_leaves_the_checkpoint_that_was_there(shard_bytes, older, monkeypatch):
    before, write = contents(older), safetensors.numpy.save_file
    room = 2 if shard_bytes == 20_000 else 0

    def full_disk(*arguments, **options):
        nonlocal room
        room -= 1
        if room < 0:
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        write(*arguments, **options)

    monkeypatch.setattr(safetensors.numpy, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_pretrained(older, from_pretrained(STORED / "gpt2"), shard_bytes=shard_bytes)
    assert contents(older) == before


def test_writing_that_ends_after_the_weights_leaves_no_checkpoint_of_two_models(older, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(saving, "write_pooling", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_pretrained(older, from_pretrained(STORED / "gpt2"))
    with pytest.raises(ConfigError, match=r"it has no config\.json"):
        from_pretrained(older)


def test_the_tokenizer_of_another_model_does_not_stay(older):
    for name in (
        "tokenizer.json",
        "target_tokenizer.json",
        "tokenizer_config.json",
        "source.spm",
        "README.md",
    ):
        (older / name).write_text("another model's")
    ours = from_pretrained(STORED / "marian")
    save_pretrained(older, dataclasses.replace(ours, tokenizer=None))
    assert sorted(set(contents(older)) - {"expected.npz", "generation_config.json"}) == [
        *("README.md", "config.json", "model.safetensors")
    ]
    assert from_pretrained(older).tokenizer is None


def test_images_that_are_not_square_are_written_with_both_sides(tmp_path):
    ours = from_pretrained(STORED / "vit", image_shape=(32, 16, 3))
    save_pretrained(tmp_path, ours)
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == [32, 16]
    found = from_pretrained(tmp_path)
    assert found.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, found.params, ours.params)
    save_pretrained(tmp_path, from_pretrained(STORED / "vit"))
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == 32
