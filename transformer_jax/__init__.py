"""Classic Transformers in JAX: one small set of modules, many configurations."""

import importlib
from typing import TYPE_CHECKING, Any

from transformer_jax import families
from transformer_jax.config import ConfigError
from transformer_jax.models import TransformerConfig, build, example_inputs

if TYPE_CHECKING:
    from transformer_jax.pretrained.reading import from_pretrained
    from transformer_jax.pretrained.saving import save_pretrained
    from transformer_jax.runs import from_run

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "TransformerConfig",
    "build",
    "example_inputs",
    "families",
    "from_pretrained",
    "from_run",
    "save_pretrained",
]


_LAZY = {"from_pretrained": "pretrained", "save_pretrained": "pretrained", "from_run": "runs"}


def __getattr__(name: str) -> Any:
    """Imports the folder of a public name at its first use, so that ``import transformer_jax`` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
