"""Normalisation of each vector: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_jax.layers.parameters import parameter


class LayerNorm(nn.Module):
    """``scale * (x - mean) / sqrt(variance + epsilon) + bias`` over the last axis.

    Statistics are float32 whatever ``dtype`` is. ``nn.LayerNorm`` computes the same, but multiplies
    ``scale`` by the deviation first, which on a CPU writes and reads one more array as large as ``x``.
    """

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        shape = x.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones_init(), shape, ("embed",))
        bias = parameter(self, "bias", nn.initializers.zeros_init(), shape, ("embed",))
        x = x.astype(jnp.float32)
        row = (1,) * (x.ndim - 1) + shape
        centred = x - x.mean(-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return (centred * inverse * scale.reshape(row) + bias.reshape(row)).astype(self.dtype)


class RMSNorm(nn.Module):
    """``scale * x / sqrt(mean(x^2) + epsilon)`` over the last axis, statistics in float32: T5's norm."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        shape = x.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones_init(), shape, ("embed",))
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return (x * inverse * scale.reshape((1,) * (x.ndim - 1) + shape)).astype(self.dtype)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}
