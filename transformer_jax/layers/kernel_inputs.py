"""What attention kernels are given: heads before tokens, whole blocks of tokens, segments for a mask."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from transformer_jax.layers.masks import NO_SEGMENT, Mask


class KernelInputs(NamedTuple):
    """Queries and keys may see each other where their segments are equal; all may where there are none."""

    query: Float[Array, "B H L K"]
    key: Float[Array, "B H S K"]
    value: Float[Array, "B H S W"]
    segments: tuple[Int[Array, "B L"], Int[Array, "B S"]] | None


def kernel_inputs(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H W"],
    *,
    mask: Mask,
    scale: bool,
    query_multiple: int,
    key_multiple: int,
) -> KernelInputs:
    """The same attention with padding behind queries and keys, so that they are multiples of these.

    Args:
      scale: whether to scale the queries by 1 / sqrt(K).
    """
    rows, length, _, head_size = query.shape
    num_keys = key.shape[1]
    query = query * head_size**-0.5 if scale else query
    query = _pad(query.swapaxes(1, 2), 2, query_multiple)
    key, value = (_pad(x.swapaxes(1, 2), 2, key_multiple) for x in (key, value))
    # What is behind the last query is hidden by a causal mask.
    is_hidden = key.shape[2] == num_keys or (mask.causal and length <= num_keys)
    segments = mask.to_segments(rows, length, num_keys, always=not is_hidden)
    if segments is not None:
        of_queries, of_keys = segments
        segments = _pad(of_queries, 1, query_multiple), _pad(of_keys, 1, key_multiple, NO_SEGMENT)
    return KernelInputs(query, key, value, segments)


def _pad(x: Shaped[Array, "..."], axis: int, multiple: int, value: int = 0) -> Shaped[Array, "..."]:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=value) if widths[axis][1] else x
