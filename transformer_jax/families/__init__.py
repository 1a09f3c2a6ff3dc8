"""Families: one file a paper, with its variants and the names of its checkpoints as data.

It may import models/ (for ``TransformerConfig``).
"""

from transformer_jax.families import bart, bert, gpt2, marian, t5, transformer, vit
from transformer_jax.families.base import Checkpoint, Family, Tensor
from transformer_jax.models import TransformerConfig

FAMILIES = {module.FAMILY.name: module.FAMILY for module in (transformer, marian, bert, gpt2, t5, bart, vit)}


def family_of(config: TransformerConfig) -> Family:
    """The family whose fixed fields a config has; ``transformer``, which fixes none, where no other does."""
    found = [family for family in FAMILIES.values() if family.fixed and family.has(config)]
    return found[0] if found else transformer.FAMILY


__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Family",
    "Tensor",
    "bart",
    "bert",
    "family_of",
    "gpt2",
    "marian",
    "t5",
    "transformer",
    "vit",
]
