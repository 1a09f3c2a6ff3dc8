"""Front ends: what a model reads and how it is embedded.

A front end from outside the package is one more entry of ``FRONT_ENDS``, under its ``kind``.
"""

from transformer_jax.models.front_ends.base import Embedder, FrontEnd
from transformer_jax.models.front_ends.patches import Patches
from transformer_jax.models.front_ends.tokens import Tokens

FRONT_ENDS: dict[str, type[FrontEnd]] = {"tokens": Tokens, "patches": Patches}

__all__ = ["FRONT_ENDS", "Embedder", "FrontEnd", "Patches", "Tokens"]
