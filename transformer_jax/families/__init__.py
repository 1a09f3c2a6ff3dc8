"""Families: one file a paper, with its variants and the names of its checkpoints as data."""

from transformer_jax.families import bart, bert, gpt2, marian, t5, transformer, vit
from transformer_jax.families.base import Checkpoint, Family, Tensor

FAMILIES = {module.FAMILY.name: module.FAMILY for module in (transformer, marian, bert, gpt2, t5, bart, vit)}

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Family",
    "Tensor",
    "bart",
    "bert",
    "gpt2",
    "marian",
    "t5",
    "transformer",
    "vit",
]
