"""Norms and their gradients, beside Flax's and what JAX derives from the formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.layers.norms import LayerNorm, RMSNorm

pytestmark = pytest.mark.smoke

PAIRS = {"layer": (LayerNorm, nn.LayerNorm), "rms": (RMSNorm, nn.RMSNorm)}


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 8)])
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_are_flax_s(name, shape, rng):
    ours, theirs = (norm(epsilon=1e-6, dtype=jnp.dtype("float32")) for norm in PAIRS[name])
    x = jnp.asarray(3 * rng.standard_normal(shape) + 1, jnp.float32)
    weights = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    params = {"scale": jnp.asarray(rng.standard_normal(8), jnp.float32)}
    if name == "layer":
        params["bias"] = jnp.asarray(rng.standard_normal(8), jnp.float32)

    def value(norm, params, x):
        with jax.numpy_rank_promotion("allow"):  # Flax's own
            y = norm.apply({"params": params}, x)
        return jnp.sum(weights * jnp.sin(y)), y

    found, wanted = (
        jax.jit(
            jax.value_and_grad(lambda params, x, norm=norm: value(norm, params, x), (0, 1), has_aux=True)
        )(params, x)
        for norm in (ours, theirs)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)  # sums of eight float32 terms


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_kept_for_the_backward_pass_is_the_input_and_numbers_of_vectors(name):
    norm = PAIRS[name][0](epsilon=1e-6, dtype=jnp.dtype("bfloat16"))
    x = jnp.ones((4, 6, 8), jnp.bfloat16)
    params = nn.unbox(norm.init(jax.random.key(0), x))
    _, pullback = jax.vjp(lambda params, x: norm.apply(params, x), params, x)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "shape") and leaf.size >= x.size]
    assert {leaf.dtype.name for leaf in kept} == {"bfloat16"}, kept
