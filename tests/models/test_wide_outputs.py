"""Heads of an encoder whose residual strategy returns vectors twice as wide as the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax as tj
from tests.drawn import drawn_params
from tests.models.test_stacks import TwoStreams
from transformer_jax.data import TokenizerConfig, train_tokenizer
from transformer_jax.inference.vectors import embed_texts
from transformer_jax.models import abstract_params
from transformer_jax.models.front_ends import Patches
from transformer_jax.models.heads import HEADS
from transformer_jax.models.residual import RESIDUALS
from transformer_jax.planning.model_flops import model_flops
from transformer_jax.sharding.partitioning import unbox

LENGTH = 7
TOKENS = jnp.array([[5, 9, 7, 30, 2, 3, 1], [8, 39, 2, 1, 1, 9, 22]])
ENCODER_HEADS = [name for name, head in HEADS.items() if head.part == "encoder"]


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(RESIDUALS, "two_streams", TwoStreams)
    return tj.families.bert.config(
        "tiny", vocab_size=300, d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=24,
        num_encoder_layers=1, max_length=12, head="none", residual="two_streams", num_token_types=0,
    )  # fmt: skip


def with_head(config, head):
    return dataclasses.replace(config, head=head, num_labels=3 if HEADS[head].labelled else 0)


def product_operations(params, length):
    """Two operations for each weight of a kernel and each vector that it is applied to."""
    count = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[-1] == "kernel":
            is_of_one = "pooler" in names or "next_sentence" in names or "pooler" in params
            count += 2 * leaf.size * (1 if is_of_one and "masked_tokens" not in names else length)
    return count


@pytest.mark.parametrize("head", ENCODER_HEADS)
def test_heads_read_vectors_of_the_size_that_the_encoder_returns(config, head):
    config = with_head(config, head)
    params = unbox(abstract_params(config))
    apply = tj.build(config).apply
    results = jax.eval_shape(lambda params: HEADS[head].arrays(apply({"params": params}, TOKENS)), params)
    assert [len(array) for array in results] == [2] * len(HEADS[head].outputs)
    batch = {"inputs": jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)}
    bare = dataclasses.replace(config, head="none", num_labels=0)
    operations = model_flops(config, batch, train=False) - model_flops(bare, batch, train=False)
    expected = product_operations(params.get("head", {}), LENGTH)
    if "masked_tokens" in params.get("head", {}):
        expected += 2 * LENGTH * 16 * 300  # with the embedding of the vocabulary
    assert operations == expected


def test_classes_without_a_pooler_read_such_vectors_too(config):
    config = dataclasses.replace(
        with_head(config, "classes"), front_end=Patches((8, 8, 1), 4), vocab_size=0, max_length=5
    )
    params = unbox(abstract_params(config))
    assert params["head"]["classes"]["kernel"].shape == (32, 3)
    apply, images = tj.build(config).apply, jnp.zeros((2, 8, 8, 1))
    assert jax.eval_shape(apply, {"params": params}, images=images).shape == (2, 3)
    batch = {"images": jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)}
    bare = dataclasses.replace(config, head="none", num_labels=0)
    assert model_flops(config, batch, train=False) - model_flops(bare, batch, train=False) == 2 * 32 * 3


def test_the_vectors_of_texts_are_as_wide(config):
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte", special_tokens=("<cls>", "<sep>")), ())
    vectors = embed_texts(config, drawn_params(config), tokenizer, ["one two", "three"])
    assert vectors.shape == (2, 32) and np.abs(vectors).min() > 0
