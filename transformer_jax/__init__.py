"""The JAX home of the classic Transformers: one small set of modules, many configurations."""

from transformer_jax import families
from transformer_jax.config import ConfigError, TransformerConfig
from transformer_jax.models import build, example_inputs
from transformer_jax.pretrained import from_pretrained, save_pretrained

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "TransformerConfig",
    "build",
    "example_inputs",
    "families",
    "from_pretrained",
    "save_pretrained",
]
