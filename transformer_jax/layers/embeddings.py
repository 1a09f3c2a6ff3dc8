"""Token embeddings, which may also be the last, pre-softmax product (Vaswani et al. 2017, section 3.4)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers.linear import product
from transformer_jax.layers.parameters import parameter
from transformer_jax.placement import constrain


class Embedding(nn.Module):
    """A table of ``vocab_size`` rows, drawn from N(0, initial_stddev^2).

    Attributes:
      scale: multiply looked-up rows by sqrt(d_model), as the paper does.
      axis: logical name of the axis of rows.
    """

    vocab_size: int
    d_model: int
    scale: bool
    dtype: jnp.dtype
    initial_stddev: float
    axis: str = "vocab"

    def setup(self) -> None:
        init = nn.initializers.normal(self.initial_stddev)
        shape = (self.vocab_size, self.d_model)
        self.embedding = parameter(self, "embedding", init, shape, (self.axis, "embed"))

    def __call__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """Rows of the table; a token outside the vocabulary gives NaN rather than another token's row."""
        tokens = jnp.where(tokens < 0, self.vocab_size, tokens)  # which would count from the end
        # Whole rows: parts of them, taken for tokens of all devices, would have to be gathered afterwards.
        table = constrain(self.embedding.astype(self.dtype), self.axis, None)
        x = table.at[tokens].get(mode="fill", fill_value=jnp.nan)
        return x * jnp.asarray(self.d_model**0.5, self.dtype) if self.scale else x

    def attend(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Inner products of ``x`` with every row: the logits of a shared pre-softmax product."""
        # Float32 sums even of bfloat16 products: logits of 20 and more would be rounded to eighths.
        return product(x, self.embedding.astype(self.dtype).T, jnp.dtype(jnp.float32))
