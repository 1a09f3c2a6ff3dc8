"""Pools an encoder's outputs for the tokens of a text into one embedding of the text."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from transformer_jax.config import ConfigError

MODULES_FILE = "modules.json"  # of a folder of sentence-transformers
POOLING_MODES = ("mean", "cls")


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Configures pooling; the default values are for models whose folder does not configure it.

    Attributes:
      mode: "mean" over all tokens, special tokens included, or "cls", the first token.
      normalize: whether to scale embeddings to length 1.
      max_length: maximum number of tokens of a text, special tokens included; 0 means as the model.
      unknown: a setting of the folder that is not supported, so that embedding texts is an error; else "".
    """

    mode: str = "mean"
    normalize: bool = True
    max_length: int = 0
    unknown: str = ""


def pooled(vectors: Float[Array, "B L D"], is_real: Bool[Array, "B L"], mode: str) -> Float[Array, "B D"]:
    """Returns one float32 embedding for each text, pooled from those of its tokens by ``mode``."""
    vectors = vectors.astype(jnp.float32)
    if mode == "cls":
        return vectors[:, 0]
    total = jnp.sum(jnp.where(is_real[..., None], vectors, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(is_real, axis=1, keepdims=True), 1)


def check_known(pooling: Pooling) -> None:
    """Raises ConfigError if the pooling is not supported."""
    if pooling.unknown:
        raise ConfigError(
            "this model's vectors are made by sentence-transformers in a way that is not known here, where "
            f"tokens are pooled by {' or '.join(POOLING_MODES)} and may be normalized: {pooling.unknown}. "
            f"Its folder without {MODULES_FILE} gives means, which are other vectors"
        )
