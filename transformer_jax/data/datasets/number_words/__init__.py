"""The ``number_words`` TFDS data set; importing this makes its name known to TFDS."""

from transformer_jax.data.datasets.number_words.number_words import NumberWords

__all__ = ["NumberWords"]
