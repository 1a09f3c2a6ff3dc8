"""The JAX home of the classic Transformers: one small set of modules, many configurations."""

from typing import TYPE_CHECKING, Any

from transformer_jax import families
from transformer_jax.config import ConfigError, TransformerConfig
from transformer_jax.models import build, example_inputs

if TYPE_CHECKING:
    from transformer_jax.pretrained.reading import from_pretrained, save_pretrained
    from transformer_jax.runs.loading import from_run

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


def __getattr__(name: str) -> Any:
    """What programs are in or import, imported when it is asked for: Python warns where one came first."""
    if name not in ("from_pretrained", "from_run", "save_pretrained"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from transformer_jax import loading, pretrained

    return getattr(loading if name == "from_run" else pretrained, name)
