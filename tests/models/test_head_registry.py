"""The registry of heads: a head from outside the package is one entry, and configs are checked against it."""

import dataclasses
import importlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax as tj
from transformer_jax.config import ConfigError
from transformer_jax.models.heads import HEADS, Head, Output
from transformer_jax.planning.model_flops import model_flops
from transformer_jax.runs.experiment import read_experiment

SIZES = dict(
    vocab_size=40, d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=24, num_encoder_layers=1
)
BERT = tj.families.bert.config("tiny", **SIZES, max_length=12, head="none")
TOKENS = jnp.array([[5, 9, 7, 30, 2, 0, 0], [8, 39, 2, 1, 1, 9, 22]])


class AtLargestToken(nn.Module):
    """Scores of labels, and of nothing else, where the token with the largest id is; as CLIP pools texts."""

    config: tj.TransformerConfig

    @nn.compact
    def __call__(self, x, embedded, *, train):
        place = embedded.arguments["inputs"].argmax(-1)
        vector = jnp.take_along_axis(x, place[:, None, None], 1)[:, 0]
        return nn.Dense(self.config.num_labels, name="scores")(vector), embedded.segments.sum(-1)


ENTRY = Head(
    AtLargestToken,
    (Output("logits", False), Output("lengths", False)),
    lambda config, length: 2 * config.d_model * config.num_labels,
    task="classes",
    labelled=("scores",),
)


@pytest.fixture
def entry(monkeypatch):
    monkeypatch.setitem(HEADS, "at_largest_token", ENTRY)


def test_a_head_from_outside_sees_the_vectors_the_segments_and_the_inputs(entry):
    config = dataclasses.replace(BERT, head="at_largest_token", num_labels=3)
    model, bare = tj.build(config), tj.build(BERT)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    scores = variables["params"]["head"]["scores"]
    logits, lengths = jax.jit(model.apply)(variables, TOKENS)
    vectors = jax.jit(bare.apply)({"params": {**variables["params"]}}, TOKENS)
    expected = vectors[jnp.arange(2), jnp.array([3, 1])] @ scores["kernel"] + scores["bias"][None]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert lengths.tolist() == [5, 7]
    batch = {"inputs": jax.ShapeDtypeStruct(TOKENS.shape, TOKENS.dtype)}
    more = model_flops(config, batch, train=False) - model_flops(BERT, batch, train=False)
    assert more == 2 * (2 * 16 * 3)


def test_an_objective_accepts_a_head_that_stands_in_for_the_one_that_it_names(entry):
    config = importlib.import_module("experiments.bert_trec").get_config()
    config.model.head = "at_largest_token"
    assert read_experiment(config).model.head == "at_largest_token"
    config.model.head = "pooled"
    config.model.num_labels = 0
    with pytest.raises(ConfigError, match="head='classes', not 'pooled'"):
        read_experiment(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(head="clases"), "no head: did you mean 'classes'?"),
        (dict(head="tokens"), "this model ends with its encoder, whose heads are masked_tokens, pretraining"),
        (dict(head="spans", num_labels=2), "'classes' and 'token_classes' need at least 1"),
        (dict(head="classes"), "model.num_labels=0 does not go with model.head='classes'"),
    ],
    ids=str,
)
def test_a_head_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        dataclasses.replace(BERT, **changes)


def test_a_decoder_takes_no_head_of_an_encoder():
    with pytest.raises(ConfigError, match="ends with its decoder, whose heads are tokens"):
        tj.families.gpt2.config("small", head="pooled")
