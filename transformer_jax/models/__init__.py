"""Models: the blocks, stacks and whole networks that a ``TransformerConfig`` describes."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from transformer_jax.config import TransformerConfig
from transformer_jax.models.transformer import EncoderDecoder


def build(config: TransformerConfig) -> EncoderDecoder:
    """The Linen module that ``config`` describes."""
    return EncoderDecoder(config)


def example_inputs(config: TransformerConfig) -> dict[str, Int[Array, "1 2"]]:
    """The smallest arguments that ``build(config).init`` and ``.apply`` take."""
    tokens = jnp.full((1, min(2, config.max_length)), config.eos_id, jnp.int32)
    return {"inputs": tokens, "targets": tokens}
