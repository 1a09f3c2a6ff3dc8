"""Turns logits of the next token into whole sequences: greedy search, sampling and beam search.

It may import models/, data/ (the padder) and sharding/. Only ``generator`` knows a model; the searches work
with any ``step(tokens, cache)``.
"""

from transformer_jax.decoding.beam_rules import BeamRule
from transformer_jax.decoding.beams import beam_search, repeat_rows
from transformer_jax.decoding.constraints import Constraints
from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.loop import Decoded
from transformer_jax.decoding.search import greedy_search, sample
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
    "repeat_rows",
    "sample",
]
