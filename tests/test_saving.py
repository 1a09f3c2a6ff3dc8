"""What ``save_pretrained`` refuses to write, because it would be read as another model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.test_fixtures import STORED
from transformer_jax import families
from transformer_jax.config import ConfigError
from transformer_jax.models import abstract_params
from transformer_jax.partitioning import unbox
from transformer_jax.pretrained import from_pretrained, save_pretrained
from transformer_jax.transformers_config import LABELLED_HEADS, content_of


def changed(name, **changes):
    """The model of a fixture with other fields, all parameters 1."""
    ours = from_pretrained(STORED / name)
    config = dataclasses.replace(ours.config, **changes)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), unbox(abstract_params(config)))
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
            r"not share_embeddings='inputs' and embedding_scale='logits'$",
        ),
        ("t5", dict(embedding_scale="none"), r"not share_embeddings='all' and embedding_scale='none'$"),
        ("t5_v1_1", dict(share_embeddings="none"), r"share_embeddings='none' would be read as "),
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
    changes = dict(head=head, num_labels=3) if head in LABELLED_HEADS else dict(head=head)
    content = content_of(family, config(variant, **changes), ())
    assert content["architectures"] == [family.checkpoint.architectures[head]]
