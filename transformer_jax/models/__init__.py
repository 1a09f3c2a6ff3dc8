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
from transformer_jax.models.random_streams import evaluation_keys, training_keys
from transformer_jax.models.transformer import EncoderDecoder
from transformer_jax.types import PyTree

__all__ = [
    "DecoderOnly",
    "EncoderDecoder",
    "EncoderOnly",
    "Model",
    "TransformerConfig",
    "abstract_params",
    "build",
    "evaluation_keys",
    "example_inputs",
    "training_keys",
]

Model: TypeAlias = EncoderDecoder | EncoderOnly | DecoderOnly


def build(config: TransformerConfig) -> Model:
    """Returns the Linen module that ``config`` describes: an encoder, a decoder, or both."""
    if config.is_encoder_only:
        return EncoderOnly(config)
    return DecoderOnly(config) if config.is_decoder_only else EncoderDecoder(config)


def example_inputs(config: TransformerConfig) -> dict[str, Array]:
    """Returns the smallest arguments that ``build(config).init`` and ``.apply`` accept."""
    inputs = config.front_end.example_inputs(config)
    if config.is_encoder_only or config.is_decoder_only:
        return inputs
    return inputs | {"targets": jnp.full((1, min(2, config.targets_max_length)), config.eos_id, jnp.int32)}


def abstract_params(config: TransformerConfig) -> PyTree:
    """Returns the shapes and logical axes of a model's parameters, without computing them."""
    return jax.eval_shape(build(config).init, jax.random.key(0), **example_inputs(config))["params"]
