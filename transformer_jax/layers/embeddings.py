"""Token embeddings, which may be shared with the output projection (Vaswani et al. 2017, section 3.4)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers.linear import product
from transformer_jax.layers.parameters import parameter
from transformer_jax.sharding.placement import constrain


class Embedding(nn.Module):
    """Looks up rows of a table (vocab_size, d_model), which is initialized from N(0, initial_stddev^2).

    Attributes:
      scale: whether to multiply the rows by sqrt(d_model), as the paper does.
      dtype: type of the result.
      axis: logical name of the first axis of the table.
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
        """Returns the rows of ``tokens``. A token outside the vocabulary gives NaN, not another row."""
        tokens = jnp.where(tokens < 0, self.vocab_size, tokens)  # a negative index would count from the end
        # Every device has whole rows. If it had parts of them, the results would have to be gathered.
        table = constrain(self.embedding.astype(self.dtype), self.axis, None)
        x = table.at[tokens].get(mode="fill", fill_value=jnp.nan)
        return x * jnp.asarray(self.d_model**0.5, self.dtype) if self.scale else x

    def attend(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Returns the inner products of ``x`` with every row: the logits of a shared output projection."""
        # The sums are float32 even if the factors are bfloat16, which rounds logits above 16 to eighths.
        return product(x, self.embedding.astype(self.dtype).T, jnp.dtype(jnp.float32))
