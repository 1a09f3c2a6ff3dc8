"""Registers the TFDS data set ``number_words`` when it is imported."""

from transformer_jax.data.datasets.number_words.number_words import NumberWords

__all__ = ["NumberWords"]
