"""Layer normalisation (Ba et al. 2016)."""

import flax.linen as nn
import jax.numpy as jnp


def layer_norm(epsilon: float, dtype: jnp.dtype, name: str | None = None) -> nn.LayerNorm:
    """``scale * (x - mean) / sqrt(variance + epsilon) + bias`` over the last axis.

    Statistics are float32 whatever ``dtype`` is; scale and bias carry the logical axis ``embed``.
    """
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed",)),
        name=name,
    )
