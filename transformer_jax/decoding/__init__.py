"""From the logits of the next token to whole sequences: greedy search, sampling, beam search.

It may import models/ and sharding/; only generator knows a model, search works over any step(tokens, cache).
"""

from transformer_jax.decoding.beam_rules import BeamRule
from transformer_jax.decoding.constraints import Constraints
from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.search import Decoded, beam_search, greedy_search, sample
from transformer_jax.decoding.settings import DecodingSettings, TextRules

__all__ = [
    "BeamRule",
    "Constraints",
    "Decoded",
    "DecodingSettings",
    "Generator",
    "TextRules",
    "beam_search",
    "greedy_search",
    "sample",
]
