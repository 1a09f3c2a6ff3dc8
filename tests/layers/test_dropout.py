"""Dropout: right rate, right gradient, no pattern, and the same mask on every mesh."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from transformer_jax.layers.dropout import Dropout, hashed_uniform_bits, keep_mask

pytestmark = pytest.mark.smoke


def _lowbias32(word: int) -> int:
    word = ((word ^ (word >> 16)) * 0x7FEB352D) % 2**32
    word = ((word ^ (word >> 15)) * 0x846CA68B) % 2**32
    return word ^ (word >> 16)


def test_bits_are_the_published_hash_of_the_flat_index():
    seed = np.array([123456789, 4000000000], np.uint32)
    expected = [
        _lowbias32((_lowbias32(index ^ 123456789) + 4000000000) % 2**32) for index in range(2 * 3 * 5)
    ]
    np.testing.assert_array_equal(hashed_uniform_bits(jnp.asarray(seed), (2, 3, 5)).ravel(), expected)


@pytest.mark.parametrize("seed", [(0, 0), (1, 0), (0, 1), (7, 2**32 - 1)])
def test_bits_are_uniform_and_each_bit_is_fair(seed):
    bits = np.asarray(hashed_uniform_bits(jnp.array(seed, jnp.uint32), (1 << 16,)))
    counts = np.bincount(bits >> 24, minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    ones = np.array([((bits >> bit) & 1).sum() for bit in range(32)], np.int64)
    deviations = (ones - 2**15) / np.sqrt(2**14)  # standard deviations of a fair coin
    assert np.abs(deviations).max() < 5


def test_neighbours_rows_and_seeds_are_uncorrelated():
    shape = (512, 512)
    masks = [
        np.asarray(keep_mask(jnp.array(seed, jnp.uint32), 0.5, shape)) for seed in ((5, 9), (5, 10), (6, 9))
    ]
    signs = [2.0 * mask - 1 for mask in masks]
    first = signs[0]
    pairs = [(first[:, 1:], first[:, :-1]), (first[1:], first[:-1]), (first, signs[1]), (first, signs[2])]
    for one, other in pairs:
        assert abs((one * other).mean()) * np.sqrt(one.size) < 5  # standard deviations


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_value_and_gradient_are_the_same_scaled_mask(rate):
    x = jnp.ones((300, 400))
    module = Dropout(rate)

    def apply(x):
        return module.apply({}, x, train=True, rngs={"dropout": jax.random.key(3)})

    y, pullback = jax.vjp(apply, x)
    assert set(np.unique(np.asarray(y))) == {np.float32(0), np.float32(1 / (1 - rate))}
    kept = float((y > 0).mean())
    assert abs(kept - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_array_equal(pullback(x)[0], y)


def test_off_when_not_training_or_rate_zero():
    x = jnp.ones((3, 4))
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)


def test_two_dropouts_of_one_model_differ():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dropout(0.5)(x, train=True), Dropout(0.5)(x, train=True)

    one, other = Two().apply({}, jnp.ones((64, 64)), rngs={"dropout": jax.random.key(0)})
    assert 0.4 < float((one == other).mean()) < 0.6


def test_the_mask_does_not_depend_on_the_mesh():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = jnp.ones((8, 6, 10))
    apply = jax.jit(lambda x: Dropout(0.3).apply({}, x, train=True, rngs={"dropout": jax.random.key(1)}))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", None, "tensor")))
    np.testing.assert_array_equal(apply(x), apply(sharded))
