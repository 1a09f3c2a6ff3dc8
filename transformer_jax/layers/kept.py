"""What a layer keeps for its backward pass where it does not keep everything.

With ``config.remat`` a layer's forward pass is done once more in the backward pass (Chen et al. 2016,
"Training Deep Nets with Sublinear Memory Cost"), from what it kept: its inputs alone, or also what is marked
here, results of products (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer
Models", section 5). Then norms, activations and dropout are done again, and attention where its result is not
kept: plain attention's scores, cuDNN's kernel, and with small heads that of TPUs (``splash_attention``).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Shaped

PRODUCTS = "products"  # also what kernels are told to call what they keep


def keep(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Marks what a layer keeps with ``remat_keeps="products"``; else it is ``x`` and nothing more."""
    return checkpoint_name(x, PRODUCTS)


def policy(remat_keeps: str) -> Callable[..., Any] | None:
    """Of ``jax.checkpoint``, for ``config.remat_keeps``."""
    return jax.checkpoint_policies.save_only_these_names(PRODUCTS) if remat_keeps == PRODUCTS else None
