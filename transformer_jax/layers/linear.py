"""The linear layer of every projection, computed as one product of two matrices."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_jax.layers.parameters import parameter
from transformer_jax.sharding.placement import current_placement


def product(
    x: Float[Array, "*B D"], matrix: Float[Array, "D F"], output_dtype: jnp.dtype | None
) -> Float[Array, "*B F"]:
    """Returns ``x @ matrix``, computed with all axes of ``x`` but the last flattened to one.

    The axes are not flattened if sequences are split over a mesh. A flattened axis cannot be split over rows
    and over tokens at the same time, so every device would gather the whole of ``x``.

    Args:
      output_dtype: type of the sums and of the result; None means the type of the factors.
    """
    placement = current_placement()
    if placement is not None and placement.parts("sequence") > 1:
        return jnp.matmul(x, matrix, preferred_element_type=output_dtype)
    flat = jnp.matmul(x.reshape(-1, matrix.shape[0]), matrix, preferred_element_type=output_dtype)
    return flat.reshape(*x.shape[:-1], matrix.shape[1])


class Linear(nn.Module):
    """Computes ``x W + b`` over the last ``len(inputs)`` axes of ``x``; W has shape ``inputs + outputs``.

    ``nn.DenseGeneral`` computes the same. Here the other axes of ``x`` are flattened to one first. XLA then
    contracts one axis in the gradient of W as well, which on a CPU saves two transposed copies of every
    activation.

    Attributes:
      inputs, outputs: sizes of the contracted axes and of the new axes.
      axes: logical axis names of W, one for each of ``inputs + outputs``.
      use_bias: whether there is a ``b``.
      dtype: type of the factors.
      output_dtype: type of the sums and of the result; None means ``dtype``.
      initial_stddev: standard deviation of the normal initializer of W. If 0, the initializer is Xavier
        uniform, with the whole matrix as its fans.
      initial_scale: factor of the initial W, with either initializer.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]
    use_bias: bool
    dtype: jnp.dtype
    output_dtype: jnp.dtype | None = None
    initial_stddev: float = 0.0
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        num_inputs = len(self.inputs)
        rows = x.shape[: x.ndim - num_inputs]
        kernel = parameter(self, "kernel", self._initializer(), self.inputs + self.outputs, self.axes)
        matrix = kernel.astype(self.dtype).reshape(math.prod(self.inputs), math.prod(self.outputs))
        y = product(x.reshape(*rows, matrix.shape[0]), matrix, self.output_dtype).reshape(
            *rows, *self.outputs
        )
        if self.use_bias:
            zeros = nn.initializers.zeros_init()
            bias = parameter(self, "bias", zeros, self.outputs, self.axes[num_inputs:]).astype(self.dtype)
            y = y + bias.reshape((1,) * len(rows) + self.outputs)
        return y

    def _initializer(self) -> Callable:
        if self.initial_stddev:
            return nn.initializers.normal(self.initial_stddev * self.initial_scale)
        num_inputs = len(self.inputs)
        axes = tuple(range(-num_inputs - len(self.outputs), 0))
        return nn.initializers.variance_scaling(
            self.initial_scale**2, "fan_avg", "uniform", in_axis=axes[:num_inputs], out_axis=axes[num_inputs:]
        )
