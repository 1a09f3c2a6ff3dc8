"""Families: one file a paper, with its variants as data."""

from transformer_jax.families import transformer

__all__ = ["transformer"]
