"""Dropout whose mask is a hash of each element's index: fast on every backend, equal on every mesh."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32


def hashed_uniform_bits(seed: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns uniform 32-bit words; word ``i`` depends on ``seed`` and ``i`` alone.

    A word is two rounds of Wellons' ``lowbias32`` mixer (nullprogram.com/blog/2018/07/31), one for each word
    of the seed. Threefry's words too depend on seed and index alone, but XLA stores them in memory before
    they are used; these are computed where they are used. They are good enough for dropout. Do not sample
    with them.

    Args:
      seed: two random words. Different seeds give unrelated streams.
      shape: of at most 2**32 elements; a longer stream repeats itself.
    """
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return _lowbias32(_lowbias32(index ^ seed[0]) + seed[1])


def _lowbias32(word: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def keep_mask(seed: UInt32[Array, "2"], rate: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Returns booleans that are True with probability ``1 - rate``, to within 2**-32."""
    return hashed_uniform_bits(seed, shape) >= jnp.uint32(round(rate * 2**32))


class Dropout(nn.Module):
    """Computes dropout (Srivastava et al. 2014), scaled while training: ``x * keep / (1 - rate)``.

    The mask of an element depends on the ``dropout`` random stream and on the element's index in the whole
    (unsharded) array. So a run on eight devices drops the same elements as the run on one device.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], *, train: bool) -> Float[Array, "*shape"]:
        if not train or self.rate == 0:
            return x
        seed = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        return _drop(x, seed, self.rate)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x: Float[Array, "*shape"], seed: UInt32[Array, "2"], rate: float) -> Float[Array, "*shape"]:
    keep = keep_mask(seed, rate, x.shape)
    return x * jnp.where(keep, jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def _drop_forward(x, seed, rate):
    return _drop(x, seed, rate), seed


def _drop_backward(rate, seed, gradient):
    return jax.lax.optimization_barrier(_drop(gradient, seed, rate)), None


_drop.defvjp(_drop_forward, _drop_backward)
