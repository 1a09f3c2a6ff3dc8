"""The numerics of attention, without parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED_SCORE = -1e30  # finite: a query that may see nothing gets equal weights, not NaN


def attention_weights(
    query: Float[Array, "B H L K"],
    key: Float[Array, "B H S K"],
    *,
    mask: Bool[Array, "#B 1 #L S"] | None = None,
    bias: Float[Array, "#B #H #L S"] | None = None,
    scale: bool = True,
) -> Float[Array, "B H L S"]:
    """``softmax(Q K^T / sqrt(K) + bias)`` over keys, equation 1 of Vaswani et al. 2017.

    Without ``scale`` the root is left out (T5). The softmax is float32; the result has the type of
    ``query``. Where ``mask`` is False the weight is 0, unless it is so in the whole row.
    """
    query = query * query.shape[-1] ** -0.5 if scale else query
    scores = jnp.einsum("bhlk,bhsk->bhls", query, key)
    scores = scores.astype(jnp.float32)
    if bias is not None:
        scores += bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED_SCORE)
    return jax.nn.softmax(scores, axis=-1).astype(query.dtype)


def dot_product_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H W"],
    *,
    mask: Bool[Array, "#B 1 #L S"] | None = None,
    bias: Float[Array, "#B #H #L S"] | None = None,
    scale: bool = True,
    on_weights: Callable[[Float[Array, "B H L S"]], Float[Array, "B H L S"]] = lambda weights: weights,
) -> Float[Array, "B L H W"]:
    """``softmax(Q K^T / sqrt(K)) V``; ``on_weights`` sees and may change the weights (dropout, sowing)."""
    # Heads before positions, once: a CPU would transpose again for each of the six products of a train step.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    weights = on_weights(attention_weights(query, key, mask=mask, bias=bias, scale=scale))
    return jnp.einsum("bhls,bhsw->bhlw", weights, value).swapaxes(1, 2)
