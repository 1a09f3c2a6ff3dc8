"""Normalisation over the last axis: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_jax.layers.parameters import parameter


class LayerNorm(nn.Module):
    """Computes ``scale * (x - mean) / sqrt(variance + epsilon) + bias`` over the last axis.

    Mean and variance are float32 whatever ``dtype`` is. ``nn.LayerNorm`` computes the same, but multiplies
    ``scale`` by the reciprocal of the standard deviation first. On a CPU that writes and reads one more array
    as large as ``x``.

    Attributes:
      dtype: type of the result.
    """

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        shape = x.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones_init(), shape, ("embed",))
        bias = parameter(self, "bias", nn.initializers.zeros_init(), shape, ("embed",))
        return _normalise(x, scale, bias, self.epsilon, self.dtype)


class RMSNorm(nn.Module):
    """Computes ``scale * x / sqrt(mean(x^2) + epsilon)`` over the last axis, with a float32 mean, as in T5.

    Attributes:
      dtype: type of the result.
    """

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = parameter(self, "scale", nn.initializers.ones_init(), x.shape[-1:], ("embed",))
        return _normalise(x, scale, None, self.epsilon, self.dtype)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}

# The gradient is written by hand because it saves memory: it needs x itself and two numbers for each vector.
# The gradient that JAX derives needs three float32 arrays as large as x, six times a bfloat16 x.


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(
    x: Float[Array, "*B D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"] | None,
    epsilon: float,
    dtype: jnp.dtype,
) -> Float[Array, "*B D"]:
    """Computes LayerNorm, or RMSNorm if ``bias`` is None."""
    return _normalise_forward(x, scale, bias, epsilon, dtype)[0]


def _normalise_forward(x, scale, bias, epsilon, dtype):
    mean = None if bias is None else x.astype(jnp.float32).mean(-1, keepdims=True)
    centred = _centred(x, mean)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    y = centred * inverse * _row(scale, x)
    y = y if bias is None else y + _row(bias, x)
    return y.astype(dtype), (x, scale, mean, inverse)


def _normalise_backward(epsilon, dtype, kept, gradient):
    x, scale, mean, inverse = kept
    gradient = gradient.astype(jnp.float32)
    normal = _centred(x, mean) * inverse
    rows = tuple(range(x.ndim - 1))
    of_normal = gradient * _row(scale, x)
    of_x = of_normal - normal * (of_normal * normal).mean(-1, keepdims=True)
    if mean is None:
        of_bias = None
    else:
        of_x, of_bias = of_x - of_normal.mean(-1, keepdims=True), gradient.sum(rows)
    return (of_x * inverse).astype(x.dtype), (gradient * normal).sum(rows), of_bias


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _centred(x, mean):
    """Returns ``x - mean`` in float32, or ``x`` if ``mean`` is None."""
    x = x.astype(jnp.float32)
    return x if mean is None else x - mean


def _row(vector, x):
    """Returns the vector with as many axes as ``x``."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)
