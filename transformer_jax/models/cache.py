"""What decoding step by step carries and is given: explicit pytrees.

Only the attention modules know what is in a cache. All else knows one rule, ``row_axes``: which axis of each
array has the rows, one for each sequence.
"""

from typing import TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from transformer_jax.layers.masks import Mask, Segments
from transformer_jax.models.stack_config import StackConfig
from transformer_jax.types import PyTree

NO_AXIS = -1  # of an array that all rows share


@flax.struct.dataclass
class DecoderCache:
    """Holds what the self-attention of a decoder remembers of earlier positions.

    Attributes:
      layers: a tuple with the cache of each layer; or, if layers are scanned, one cache with the layers on
        the first axis of every array.
      index: number of positions that are filled.
      length: number of positions that there are.
      row_axis: the axis of the rows in every array of ``layers``.
    """

    layers: PyTree
    index: Int[Array, ""]
    length: int = flax.struct.field(pytree_node=False)
    row_axis: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class EncodedContext:
    """Holds what decoding needs besides the cache if there is an encoder.

    Attributes:
      layers: keys and values of the encoder's output for the cross-attention of every decoder layer, laid out
        as ``DecoderCache.layers``.
      segments: 0 on padding of the sources, else 1.
      row_axis: the axis of the rows in every array of ``layers``.
      padding: number of cache places before the decoder's start token in each row, if the rows begin with
        prompts of different lengths. None means that every row begins at place 0.
    """

    layers: PyTree
    segments: Int[Array, "B S"]
    row_axis: int = flax.struct.field(pytree_node=False)
    padding: Int[Array, "B"] | None = None


@flax.struct.dataclass
class PromptContext:
    """Holds what decoding needs of prompts of different lengths, if there is no encoder.

    Attributes:
      padding: number of cache places before the prompt in each row.
    """

    padding: Int[Array, "B"]


Context: TypeAlias = EncodedContext | PromptContext


def empty_cache(config: StackConfig, rows: int, length: int) -> DecoderCache:
    """Returns an empty cache for ``rows`` sequences of up to ``length`` positions; needs no parameters."""
    count = 1 if config.scan_layers else config.num_layers
    caches = []
    for layer in range(count):
        module = config.attention_of(layer).build(config, layer)
        caches.append(module.init_cache(rows, length))
    layers: PyTree = tuple(caches)
    if config.scan_layers:
        layers = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (config.num_layers, *leaf.shape)), caches[0]
        )
    return DecoderCache(layers, jnp.zeros((), jnp.int32), length, row_axis(config))


def is_real(padding: Int[Array, "B 1"], length: int) -> Mask:
    """Returns the mask of the cache places at and after the first ``padding`` ones of each row."""
    return Mask(Segments(None, (jnp.arange(length)[None, :] >= padding).astype(jnp.int32)))


def row_axis(config: StackConfig) -> int:
    """Returns the axis of the rows in the caches of a stack's layers."""
    return 1 if config.scan_layers else 0


def row_axes(state: DecoderCache | EncodedContext | PromptContext) -> list[int]:
    """Returns the axis of the rows of each array of a cache or context, in the order of ``jax.tree.leaves``.

    It is ``NO_AXIS`` for an array that all rows share.
    """
    of_layers = 0 if isinstance(state, PromptContext) else state.row_axis
    return [
        of_layers if path[0] == jax.tree_util.GetAttrKey("layers") else 0 if leaf.ndim else NO_AXIS
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def repeated(state: Context, repeats: int) -> Context:
    """Returns a context in which each row comes ``repeats`` times, one after the other."""
    leaves, tree = jax.tree.flatten(state)
    pairs = zip(leaves, row_axes(state), strict=True)
    return tree.unflatten(
        [leaf if axis == NO_AXIS else jnp.repeat(leaf, repeats, axis) for leaf, axis in pairs]
    )
