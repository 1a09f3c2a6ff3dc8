"""Folders in the format of Hugging Face transformers, read and written without PyTorch.

It may import inference/, cli/ and what they import. ``python -m transformer_jax.pretrained verify`` compares
the outputs of a checkpoint in both libraries.
"""

from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.pretrained.tensor_files import WeightsError

__all__ = ["WeightsError", "from_pretrained", "save_pretrained"]
