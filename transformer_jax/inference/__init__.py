"""Applies a model with its parameters and tokenizer to texts and images.

It may import decoding/, models/, families/, data/ and objectives/, but not pretrained/, which makes models.
"""

from transformer_jax.inference.defaults import GenerationDefaults
from transformer_jax.inference.model import Pretrained
from transformer_jax.inference.pooling import Pooling

__all__ = ["GenerationDefaults", "Pooling", "Pretrained"]
