"""Models: ``TransformerConfig``, and the blocks, stacks and whole networks that it describes.

It may import layers/ and sharding/.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from transformer_jax.models.config import TransformerConfig
from transformer_jax.models.decoder import DecoderOnly
from transformer_jax.models.encoder import EncoderOnly
from transformer_jax.models.transformer import EncoderDecoder
from transformer_jax.types import PyTree

Model: TypeAlias = EncoderDecoder | EncoderOnly | DecoderOnly


def build(config: TransformerConfig) -> Model:
    """The Linen module that ``config`` describes: encoder and decoder, or one of them alone."""
    if config.is_encoder_only:
        return EncoderOnly(config)
    return DecoderOnly(config) if config.is_decoder_only else EncoderDecoder(config)


def example_inputs(config: TransformerConfig) -> dict[str, Array]:
    """The smallest arguments that ``build(config).init`` and ``.apply`` take."""
    inputs = config.front_end.example_inputs(config)
    if config.is_encoder_only or config.is_decoder_only:
        return inputs
    return inputs | {"targets": jnp.full((1, min(2, config.max_length)), config.eos_id, jnp.int32)}


def abstract_params(config: TransformerConfig) -> PyTree:
    """Shapes and logical axes of a model's parameters, without making any."""
    return jax.eval_shape(build(config).init, jax.random.key(0), **example_inputs(config))["params"]
