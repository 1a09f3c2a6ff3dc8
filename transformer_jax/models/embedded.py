"""What a front end passes on: the input of the first block, and what heads may need beside the last one's."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from transformer_jax.layers.embeddings import Embedding


class Embedded(NamedTuple):
    """Embedded inputs.

    Attributes:
      x: (B, L, D), the input of the first block.
      segments: (B, L), 0 on padding, else the number of the example in its row. None if every position is
        real and every row is one example.
      table: the embedding of the vocabulary, or None if the inputs are not tokens. Heads may share it.
      arguments: the inputs of the model, by name.
    """

    x: Float[Array, "B L D"]
    segments: Int[Array, "B L"] | None
    table: Embedding | None
    arguments: Mapping[str, Array]
