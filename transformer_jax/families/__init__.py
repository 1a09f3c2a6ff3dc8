"""Families: one file for each paper, with its variants and the format of its checkpoints as data.

To add a family, write its file and add a line to ``FAMILIES``.
This folder may import models/ (for ``TransformerConfig``).
"""

from transformer_jax.families import (
    bart,
    bert,
    distilbert,
    gpt2,
    marian,
    roberta,
    t5,
    t5_encoder,
    transformer,
    vit,
)
from transformer_jax.families.base import Checkpoint, Family, Tensor
from transformer_jax.models import TransformerConfig

FAMILIES: dict[str, Family] = {
    "transformer": transformer.FAMILY,
    "marian": marian.FAMILY,
    "bert": bert.FAMILY,
    "roberta": roberta.FAMILY,
    "distilbert": distilbert.FAMILY,
    "gpt2": gpt2.FAMILY,
    "t5": t5.FAMILY,
    "t5_encoder": t5_encoder.FAMILY,
    "bart": bart.FAMILY,
    "vit": vit.FAMILY,
}


def family_of(config: TransformerConfig) -> Family:
    """Returns the family whose fixed fields ``config`` has, or else ``transformer``, which fixes none."""
    matching = (family for family in FAMILIES.values() if family.fixed and family.has(config))
    return next(matching, transformer.FAMILY)


__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Family",
    "Tensor",
    "bart",
    "bert",
    "distilbert",
    "family_of",
    "gpt2",
    "marian",
    "roberta",
    "t5",
    "t5_encoder",
    "transformer",
    "vit",
]
