"""How a layer makes a parameter with logical axis names."""

from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax


def parameter(
    module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: tuple[str, ...]
) -> jax.Array:
    """The float32 parameter ``name`` of ``module``; ``axes`` names each of its axes for sharding.

    The names are of ``transformer_jax.partitioning``'s table. ``model.init`` returns the array in a box with
    its names, which ``flax.linen.meta.unbox`` takes away; here it is the array.
    """
    return cast(jax.Array, module.param(name, nn.with_logical_partitioning(init, axes), shape))
