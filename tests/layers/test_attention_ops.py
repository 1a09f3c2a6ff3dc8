"""Attention against its formula in NumPy, one query at a time."""

import jax.numpy as jnp
import numpy as np

from transformer_jax.layers.attention_ops import dot_product_attention


def by_hand(query, key, value, bias, mask):
    rows, length, heads, size = query.shape
    output = np.zeros((rows, length, heads, value.shape[-1]))
    for row, place, head in np.ndindex(rows, length, heads):
        scores = key[row, :, head] @ query[row, place, head] / size**0.5 + bias[head, place]
        weights = np.where(mask[row, place], np.exp(scores - scores.max()), 0)
        output[row, place, head] = weights / weights.sum() @ value[row, :, head]
    return output


def test_attention_with_bias_and_mask_is_its_formula(rng):
    query, key = rng.normal(size=(2, 3, 2, 4)), rng.normal(size=(2, 5, 2, 4))
    value, bias = rng.normal(size=(2, 5, 2, 6)), rng.normal(size=(2, 3, 5))
    mask = rng.random((2, 3, 5)) < 0.6
    mask[:, :, 0] = True  # every query sees something
    ours = dot_product_attention(
        *(jnp.asarray(array, jnp.float32) for array in (query, key, value)),
        mask=jnp.asarray(mask[:, None]),
        bias=jnp.asarray(bias[None], jnp.float32),
    )
    np.testing.assert_allclose(ours, by_hand(query, key, value, bias, mask), rtol=1e-5, atol=1e-5)
