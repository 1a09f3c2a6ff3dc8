"""The pooler of the head "classes": its activation by hand, and dropout before it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax as tj
from tests.drawn import drawn_params

SIZES = dict(
    vocab_size=40, d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=24, num_encoder_layers=1
)
CONFIG = tj.families.bert.config("tiny", **SIZES, max_length=12, head="classes", num_labels=3, dropout=0.5)
TOKENS = jnp.array([[5, 6, 7], [8, 9, 4]])
params_of_config = functools.cache(functools.partial(drawn_params, CONFIG))


@pytest.mark.parametrize(("pooler", "function"), [("tanh", np.tanh), ("relu", lambda x: np.maximum(x, 0))])
def test_classes_of_the_pooled_vector_by_hand(pooler, function):
    params = params_of_config()
    bare = dataclasses.replace(CONFIG, head="none", num_labels=0)
    shared = {name: part for name, part in params.items() if name != "head"}
    vectors = jax.jit(tj.build(bare).apply)({"params": shared}, TOKENS)[:, 0]
    head = jax.device_get(params["head"])
    dense, classes = head["pooler"]["dense"], head["classes"]
    hidden = function(np.asarray(vectors) @ dense["kernel"] + dense["bias"])
    config = dataclasses.replace(CONFIG, pooler=pooler)
    found = jax.jit(tj.build(config).apply)({"params": params}, TOKENS)
    np.testing.assert_allclose(found, hidden @ classes["kernel"] + classes["bias"], rtol=1e-4, atol=1e-5)


def test_dropout_before_the_pooler_is_in_training_alone():
    params, rngs = params_of_config(), {"dropout": jax.random.key(1)}
    once, twice = (tj.build(dataclasses.replace(CONFIG, pooler_dropout=value)) for value in (False, True))

    def found(model, train):
        apply = jax.jit(functools.partial(model.apply, train=train))
        return apply({"params": params}, TOKENS, rngs=rngs)

    np.testing.assert_array_equal(found(once, False), found(twice, False))
    assert np.abs(found(once, True) - found(twice, True)).max() > 1e-4
