"""Dropout of heads: its rate, measured by what a linear map of one component returns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax as tj
from transformer_jax.config import ConfigError
from transformer_jax.models.embedded import Embedded
from transformer_jax.models.heads import HEADS
from transformer_jax.sharding.partitioning import unbox

SIZES = dict(vocab_size=40, d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=24)
CONFIG = tj.families.bert.config("tiny", **SIZES, num_encoder_layers=1, max_length=12, dropout=0.5)


def config_of(head, head_dropout):
    num_labels = 2 if HEADS[head].labelled else 0
    return dataclasses.replace(CONFIG, head=head, num_labels=num_labels, head_dropout=head_dropout)


@pytest.mark.parametrize(
    ("head", "head_dropout", "rate"),
    [
        ("classes", None, 0.5),  # the rate of the model
        ("classes", 0.75, 0.75),
        ("classes", 0.0, 0.0),
        ("token_classes", None, 0.5),
        ("token_classes", 0.75, 0.75),
        ("spans", None, 0.0),
        ("spans", 0.75, 0.75),
    ],
)
def test_the_rate_in_training(head, head_dropout, rate):
    module = HEADS[head].module(config_of(head, head_dropout))
    x = jax.random.normal(jax.random.key(0), (64, 5, 16))
    embedded = Embedded(x, None, None, {})
    params = dict(unbox(module.init(jax.random.key(1), x, embedded, train=False)["params"]))
    name = "spans" if head == "spans" else "classes"
    one_component = jnp.zeros_like(params[name]["kernel"]).at[3].set(1.0)
    params[name] = {"kernel": one_component, "bias": jnp.zeros(2)}

    def logits(train):
        rngs = {"dropout": jax.random.key(2)}
        return np.asarray(module.apply({"params": params}, x, embedded, train=train, rngs=rngs))

    factors = logits(True) / logits(False)
    if rate == 0:
        np.testing.assert_array_equal(factors, 1)
        return
    np.testing.assert_allclose(factors[factors != 0], 1 / (1 - rate), rtol=1e-5)
    assert abs(np.mean(factors == 0) - rate) < 0.15


def test_two_rates_give_two_losses_in_training_alone():
    models = [
        tj.build(dataclasses.replace(config_of("classes", rate), dropout=0.0, attention_dropout=0.0))
        for rate in (0.25, 0.75)
    ]
    tokens, rngs = jnp.array([[5, 6, 7], [8, 9, 4]]), {"dropout": jax.random.key(1)}
    variables = jax.jit(models[0].init)(jax.random.key(0), tokens)
    for train in (False, True):
        losses = [
            -jax.nn.log_softmax(
                jax.jit(functools.partial(model.apply, train=train))(variables, tokens, rngs=rngs)
            )[:, 0].sum()
            for model in models
        ]
        assert (losses[0] == losses[1]) == (not train)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_outside_the_range_is_refused(rate):
    with pytest.raises(ConfigError, match=rf"model.head_dropout={rate} must be in \[0, 1\)"):
        config_of("classes", rate)
