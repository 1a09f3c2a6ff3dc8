"""Position encodings: fixed sinusoids and learned tables (Vaswani et al. 2017, section 3.5)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer_jax.layers.parameters import parameter


def sinusoidal_table(max_length: int, d_model: int) -> Float[np.ndarray, "L D"]:
    """The paper's table: ``[p, 2i] = sin(p / 10000^(2i / d_model))``, ``[p, 2i + 1] = cos(the same)``."""
    rates = 10_000.0 ** (-np.arange(0, d_model, 2) / d_model)
    angles = np.arange(max_length)[:, None] * rates[None, :]
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(max_length, d_model).astype(np.float32)


class PositionEncoding(nn.Module):
    """Vectors for positions, to be added to embeddings.

    Attributes:
      kind: "sinusoidal" (no parameters) or "learned" (N(0, 0.02), logical axes ``length``, ``embed``).
      max_length: positions known, in tokens; one beyond gives NaN, and callers refuse it first.
    """

    kind: str
    max_length: int
    d_model: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, positions: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        if self.kind == "sinusoidal":
            table = jnp.asarray(sinusoidal_table(self.max_length, self.d_model))
        else:
            shape = (self.max_length, self.d_model)
            table = parameter(self, "embedding", nn.initializers.normal(0.02), shape, ("length", "embed"))
        return table.astype(self.dtype).at[positions].get(mode="fill", fill_value=jnp.nan)
