"""Logits in stretches of tokens: the same losses and gradients as of whole logits, and how many there are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import transformer_jax as tj
from transformer_jax.models import heads
from transformer_jax.sharding.placement import Placement, placed

CONFIGS = {
    "encoder-decoder": tj.families.transformer.config(
        "tiny", vocab_size=23, max_length=12, num_encoder_layers=1, num_decoder_layers=1
    ),
    "decoder": tj.families.gpt2.config(
        "small",
        vocab_size=23,
        max_length=12,
        d_model=16,
        num_heads=2,
        key_size=8,
        value_size=8,
        d_feedforward=24,
        num_decoder_layers=1,
    ),
}
TOKENS = jnp.array([[5, 9, 7, 11, 2, 3, 4], [8, 6, 2, 1, 1, 9, 22]])


def loss_and_gradient(config, variables, stretches):
    model, seen = tj.build(config), []
    sides = {"inputs": TOKENS} if config.is_decoder_only else {"inputs": TOKENS, "targets": TOKENS}

    def per_token(logits, tokens):
        seen.append((tokens.start, tokens.stop, logits.shape))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[:, tokens, None], -1)[..., 0]
        return {"chosen": chosen, "best": logits.argmax(-1)}

    def loss(variables):
        apply = functools.partial(
            model.apply, variables, **sides, train=True, rngs={"dropout": jax.random.key(3)}
        )
        found = per_token(apply(), slice(0, 7)) if stretches == 1 else apply(per_token=per_token)
        return (found["chosen"] * jnp.arange(1.0, 8.0)[None]).sum(), found["best"]

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables), seen


# What is cut into stretches comes after the stack, whichever it is.
@pytest.mark.parametrize("name", ["encoder-decoder", pytest.param("decoder", marks=pytest.mark.everything)])
def test_stretches_have_the_losses_and_gradients_of_whole_logits(name, monkeypatch):
    config = CONFIGS[name]
    sides = {"inputs": TOKENS} if config.is_decoder_only else {"inputs": TOKENS, "targets": TOKENS}
    variables = jax.jit(tj.build(config).init)(jax.random.key(0), **sides)
    whole, _ = loss_and_gradient(config, variables, 1)
    monkeypatch.setattr(heads, "STRETCH_BYTES", 2 * 7 * 23 * 4 // 3)
    parts, seen = loss_and_gradient(config, variables, 3)
    assert seen == [(0, 2, (2, 2, 23)), (2, 4, (2, 2, 23)), (4, 7, (2, 3, 23))]
    # Sums of some hundred terms of order 1, in another order.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), parts, whole)


def test_evaluation_makes_the_logits_whole(monkeypatch):
    config, seen = CONFIGS["decoder"], []
    model = tj.build(config)
    variables = jax.jit(model.init)(jax.random.key(0), inputs=TOKENS)
    monkeypatch.setattr(heads, "STRETCH_BYTES", 8)
    cut = functools.partial(model.apply, per_token=lambda logits, tokens: seen.append(tokens) or logits)
    jax.eval_shape(cut, variables, inputs=TOKENS)
    assert seen == [slice(0, 7)]


def test_the_number_of_stretches_follows_from_what_a_device_has_of_the_logits():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "context", "tensor"))
    assert heads.num_stretches(32, 256, 1000) == 1  # 31 MiB
    assert heads.num_stretches(32, 512, 8192) == 2  # 512 MiB
    assert heads.num_stretches(1024, 256, 50_000) == 4
    assert heads.num_stretches(2**14, 2, 50_000) == 2  # tokens
    with placed(Placement(mesh, {"batch": ("data",), "vocab": ("tensor",)})):
        assert heads.num_stretches(64, 1024, 8192) == 2
    with placed(Placement(mesh, {"batch": ("data",), "sequence": ("context",)})):
        assert heads.num_stretches(1024, 256, 50_000) == 1
