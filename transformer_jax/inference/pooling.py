"""How the vectors of a text's tokens become one of the text."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from transformer_jax.config import ConfigError

MODULES_FILE = "modules.json"  # of a folder of sentence-transformers
POOLING_MODES = ("mean", "cls")


@dataclasses.dataclass(frozen=True)
class Pooling:
    """What is done with an encoder's vectors; by default as where no folder says it.

    Attributes:
      mode: "mean" over all tokens, special ones included, or "cls", the first one.
      normalize: to the length 1.
      max_length: tokens of a text, special ones included, where it is less than the model takes; or 0.
      unknown: what the folder asks for that is not known here, so that there are no vectors; or "".
    """

    mode: str = "mean"
    normalize: bool = True
    max_length: int = 0
    unknown: str = ""


def pooled(vectors: Float[Array, "B L D"], is_real: Bool[Array, "B L"], mode: str) -> Float[Array, "B D"]:
    """One vector for each text, float32: ``mode`` of those of its tokens."""
    vectors = vectors.astype(jnp.float32)
    if mode == "cls":
        return vectors[:, 0]
    total = jnp.sum(jnp.where(is_real[..., None], vectors, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(is_real, axis=1, keepdims=True), 1)


def check_known(pooling: Pooling) -> None:
    """Raises ConfigError for one of which there are no vectors here."""
    if pooling.unknown:
        raise ConfigError(
            "this model's vectors are made by sentence-transformers in a way that is not known here, where "
            f"tokens are pooled by {' or '.join(POOLING_MODES)} and may be normalized: {pooling.unknown}. "
            f"Its folder without {MODULES_FILE} gives means, which are other vectors"
        )
