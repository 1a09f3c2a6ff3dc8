"""Creates parameters with logical axis names."""

from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax


def parameter(
    module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: tuple[str, ...]
) -> jax.Array:
    """Creates or reads the float32 parameter ``name`` of ``module``.

    ``model.init`` returns the parameter in a box with the names of its axes, which ``flax.linen.meta.unbox``
    removes. This function returns the array itself.

    Args:
      init: the initializer, a function of a random key and the shape.
      axes: a logical name for each axis, for sharding: a name in the rules of ``MeshConfig``.
    """
    return cast(jax.Array, module.param(name, nn.with_logical_partitioning(init, axes), shape))
