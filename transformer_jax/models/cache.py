"""What decoding step by step keeps: an explicit pytree, in and out."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Int

from transformer_jax.layers.attention import KeyValue
from transformer_jax.models.config import TransformerConfig
from transformer_jax.models.stack import LayerKeyValues


@flax.struct.dataclass
class DecoderCache:
    """Self-attention keys and values so far, and how many places of them are filled."""

    layers: LayerKeyValues
    index: Int[Array, ""]


@flax.struct.dataclass
class EncodedContext:
    """Holds what decoding needs besides the cache if there is an encoder.

    Attributes:
      layers: keys and values of the encoder's output for the cross-attention of every decoder layer.
      segments: 0 on padding of the sources, else 1.
      padding: number of cache places before the decoder's start token in each row, if the rows begin with
        prompts of different lengths. None means that every row begins at place 0.
    """

    layers: LayerKeyValues
    segments: Int[Array, "B S"]
    padding: Int[Array, "B"] | None = None


@flax.struct.dataclass
class PromptContext:
    """What decoding needs of prompts of several lengths: how many places before each are not filled."""

    padding: Int[Array, "B"]


def empty_cache(config: TransformerConfig, batch_size: int, max_length: int) -> DecoderCache:
    """A cache for ``batch_size`` rows of up to ``max_length`` tokens; needs no parameters."""
    places = (batch_size, max_length, config.num_heads)
    dtype = jnp.dtype(config.dtype)

    def empty(*layers: int) -> KeyValue:
        key, value = (*layers, *places, config.key_size), (*layers, *places, config.value_size)
        return KeyValue(jnp.zeros(key, dtype), jnp.zeros(value, dtype))

    count = config.num_decoder_layers
    layers = empty(count) if config.scan_layers else tuple(empty() for _ in range(count))
    return DecoderCache(layers, jnp.zeros((), jnp.int32))
