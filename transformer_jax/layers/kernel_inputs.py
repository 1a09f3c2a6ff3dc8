"""The inputs of the Pallas attention kernels: heads before tokens, whole blocks of tokens, segment ids."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from transformer_jax.layers.masks import Causal, Mask, Segments

NO_SEGMENT = -1  # id of a key that no query may attend to, not even a query that is padding


class KernelInputs(NamedTuple):
    """Queries, keys, values and segment ids; a query attends to the keys with the same id.

    Without ids a query attends to every key.
    """

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
    """Returns the inputs of the same attention, padded at the end to multiples of a kernel's blocks.

    Args:
      mask: has ``Causal`` and ``Segments`` parts only. The segment ids do not express the causal part.
      scale: whether to multiply the queries by 1 / sqrt(K).
      query_multiple, key_multiple: the numbers of queries and of keys become multiples of these.
    """
    rows, length, _, head_size = query.shape
    num_keys = key.shape[1]
    query = query * head_size**-0.5 if scale else query
    query = _pad(query.swapaxes(1, 2), 2, query_multiple)
    key, value = (_pad(x.swapaxes(1, 2), 2, key_multiple) for x in (key, value))
    # A causal mask hides the padding already if it begins after the last query.
    is_hidden = key.shape[2] == num_keys or (mask.has(Causal) and length <= num_keys)
    segments = segment_ids(mask, rows, length, num_keys, always=not is_hidden)
    if segments is not None:
        of_queries, of_keys = segments
        segments = _pad(of_queries, 1, query_multiple), _pad(of_keys, 1, key_multiple, NO_SEGMENT)
    return KernelInputs(query, key, value, segments)


def segment_ids(
    mask: Mask, rows: int, query_length: int, key_length: int, *, always: bool
) -> tuple[Int[Array, "B L"], Int[Array, "B S"]] | None:
    """Returns ids of queries and keys that are equal where the ``Segments`` of a mask allow a pair.

    They say what ``Segments.to_array`` says, but a query of a row without any real key may attend to nothing.

    Args:
      rows: B.
      query_length: L.
      key_length: S.
      always: whether to return ids that are all equal, instead of None, if the mask has no ``Segments``. A
        caller needs them to tell padding that it appends from keys.
    """
    segments = mask.part(Segments)
    if segments is None:
        if not always:
            return None
        return jnp.ones((rows, query_length), jnp.int32), jnp.ones((rows, key_length), jnp.int32)
    if segments.query is not None:
        return segments.query, segments.key
    is_key = jnp.where(segments.key > 0, 1, NO_SEGMENT)
    return jnp.ones((rows, query_length), jnp.int32), is_key


def _pad(x: Shaped[Array, "..."], axis: int, multiple: int, value: int = 0) -> Shaped[Array, "..."]:
    """Returns ``x`` with ``value`` appended along an axis until its length is a multiple of ``multiple``."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=value) if widths[axis][1] else x
