"""Plain attention: the numerics, without parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED_SCORE = -1e30  # finite, so a query that may attend to no key gets equal weights, not NaN


def attention_weights(
    query: Float[Array, "B H L K"],
    key: Float[Array, "B H S K"],
    *,
    mask: Bool[Array, "#B #H #L #S"] | None = None,
    bias: Float[Array, "#B #H #L S"] | None = None,
    scale: bool = True,
) -> Float[Array, "B H L S"]:
    """Returns ``softmax(Q K^T / sqrt(K) + bias)`` over the keys, equation 1 of Vaswani et al. 2017.

    Args:
      mask: True where a query may attend to a key. Elsewhere the weight is 0, but a query that may attend to
        no key has equal weights.
      bias: is added to the scores.
      scale: whether to divide by sqrt(K); T5 does not.

    Returns:
      Weights of the type of ``query``. The softmax is computed in float32.
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
    mask: Bool[Array, "#B #H #L #S"] | None = None,
    bias: Float[Array, "#B #H #L S"] | None = None,
    scale: bool = True,
    on_weights: Callable[[Float[Array, "B H L S"]], Float[Array, "B H L S"]] = lambda weights: weights,
) -> Float[Array, "B L H W"]:
    """Returns ``softmax(Q K^T / sqrt(K) + bias) V``.

    Args:
      mask, bias, scale: as in ``attention_weights``.
      on_weights: is given the attention weights and returns the weights to use, for dropout and for sowing.
    """
    # The heads are moved before the tokens once. Otherwise a CPU transposes for each of the six products of a
    # training step.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    weights = on_weights(attention_weights(query, key, mask=mask, bias=bias, scale=scale))
    return jnp.einsum("bhls,bhsw->bhlw", weights, value).swapaxes(1, 2)
