"""Folders in the format of Hugging Face transformers, read and written without PyTorch.

It may import inference/, cli/ and all below. ``python -m transformer_jax.pretrained verify`` compares both.
"""

from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.pretrained.tensor_files import WeightsError

__all__ = ["WeightsError", "from_pretrained", "save_pretrained"]
