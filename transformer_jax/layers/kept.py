"""Names the activations that gradient checkpointing (remat) saves for the backward pass.

With ``config.remat`` the backward pass computes a layer's activations once more (Chen et al. 2016, "Training
Deep Nets with Sublinear Memory Cost"). With ``config.remat_keeps="inputs"`` a layer saves its inputs only.
With ``"products"`` it also saves the results of matrix products (Korthikanti et al. 2022, "Reducing
Activation Recomputation in Large Transformer Models", section 5). Norms, activation functions and dropout are
then computed twice, and so is attention if its result is not saved: the scores of plain attention, cuDNN's
kernel, and the TPU kernel for small heads (``splash_attention``).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Shaped

PRODUCTS = "products"  # the checkpoint name, which attention kernels use too


def keep(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Returns ``x`` under the name by which ``remat_keeps="products"`` saves it; changes no value."""
    return checkpoint_name(x, PRODUCTS)


def policy(remat_keeps: str) -> Callable[..., Any] | None:
    """Returns the policy of ``jax.checkpoint`` for ``config.remat_keeps``; None saves only the inputs."""
    return jax.checkpoint_policies.save_only_these_names(PRODUCTS) if remat_keeps == PRODUCTS else None
