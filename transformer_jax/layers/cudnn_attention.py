"""Attention on NVIDIA's GPUs by cuDNN, through JAX."""

import functools

import jax
from jaxtyping import Array, Float

from transformer_jax.layers.masks import Mask


def cudnn_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H W"],
    *,
    mask: Mask,
    scale: bool = True,
    interpret: bool = False,
) -> Float[Array, "B L H W"]:
    """As ``splash_attention``, where ``cudnn_obstacle`` has nothing against it; it cannot be interpreted.

    A causal mask alone costs nothing; segments become an array (B, 1, L, S), which all heads share. Rows and
    heads are split over a mesh by JAX itself.
    """
    if interpret:
        raise ValueError("cuDNN runs on GPUs only")
    segments = Mask(mask.query_segments, mask.key_segments).to_array(query.shape[1], key.shape[1])
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=segments,
        scale=None if scale else 1.0,
        is_causal=mask.causal,
        implementation="cudnn",
    )


def cudnn_obstacle(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H W"],
    mask: Mask,
) -> str:
    """Why cuDNN, as this process finds it, does not take these arrays and their gradients, or ""."""

    def with_gradient(query, key, value):
        attend = functools.partial(cudnn_attention, mask=mask)
        output, pullback = jax.vjp(attend, query, key, value)
        return pullback(output)

    try:
        jax.eval_shape(with_gradient, query, key, value)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        return reason if reason.startswith("cuDNN") else f"cuDNN: {reason}"
    return ""
