"""Where a token stands: fixed sinusoids, learned tables, and T5's bias of attention scores."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer_jax.layers.parameters import parameter
from transformer_jax.placement import constrain


def sinusoidal_table(max_length: int, d_model: int) -> Float[np.ndarray, "L D"]:
    """``[p, 2i] = sin(p / 10000^(2i / d_model))``, ``[p, 2i + 1] = cos(the same)``.

    Vaswani et al. 2017, section 3.5.
    """
    rates = 10_000.0 ** (-np.arange(0, d_model, 2) / d_model)
    angles = np.arange(max_length)[:, None] * rates[None, :]
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(max_length, d_model).astype(np.float32)


class PositionEncoding(nn.Module):
    """Vectors for positions, to be added to embeddings.

    Attributes:
      kind: "sinusoidal" (no parameters), "sinusoidal_halves" (the same columns, those of sines first, as in
        Marian), or "learned" (N(0, 0.02), logical axes ``length``, ``embed``).
      max_length: positions known, in tokens; one beyond gives NaN, and callers refuse it first.
    """

    kind: str
    max_length: int
    d_model: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, positions: Int[Array, "#B L"] | int) -> Float[Array, "#B L D"]:
        """The vectors of ``positions``, or of the first so many."""
        if self.kind == "learned":
            shape = (self.max_length, self.d_model)
            table = parameter(self, "embedding", nn.initializers.normal(0.02), shape, ("length", "embed"))
        else:
            fixed = sinusoidal_table(self.max_length, self.d_model)
            if self.kind == "sinusoidal_halves":
                fixed = np.concatenate([fixed[:, ::2], fixed[:, 1::2]], axis=1)
            table = jnp.asarray(fixed)
        table = constrain(table.astype(self.dtype), None, None)  # as in Embedding
        if isinstance(positions, int):
            return table[None, :positions]
        return table.at[positions].get(mode="fill", fill_value=jnp.nan)


def relative_buckets(
    distances: Int[Array, "L S"], *, buckets: int, max_distance: int, both_directions: bool
) -> Int[Array, "L S"]:
    """The bucket of each distance, key place less query place (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the others distances that grow logarithmically up to
    ``max_distance``. With ``both_directions`` keys after the query have buckets of their own, half
    of all; without, they share the bucket of distance 0 (and are masked anyhow).
    """
    count = buckets // 2 if both_directions else buckets
    offset = jnp.where(distances > 0, count, 0) if both_directions else jnp.zeros_like(distances)
    distances = jnp.abs(distances) if both_directions else jnp.maximum(-distances, 0)
    exact = count // 2
    logarithm = jnp.log(jnp.maximum(distances, 1).astype(jnp.float32) / exact)
    steps = logarithm / math.log(max_distance / exact) * (count - exact)
    far = jnp.minimum(exact + steps.astype(jnp.int32), count - 1)
    return offset + jnp.where(distances < exact, distances, far)


class RelativeBias(nn.Module):
    """A number for each head and bucket of distances, to be added to attention scores: T5's positions."""

    num_heads: int
    buckets: int
    max_distance: int

    @nn.compact
    def __call__(
        self,
        query_length: int,
        key_length: int,
        query_offset: Int[Array, ""] | int,
        *,
        both_directions: bool,
    ) -> Float[Array, "1 H L S"]:
        """``query_offset`` is the place of the first query among the keys."""
        init = nn.initializers.normal(0.1)
        table = parameter(self, "embedding", init, (self.buckets, self.num_heads), ("buckets", "heads"))
        query = query_offset + jnp.arange(query_length)[:, None]
        places = relative_buckets(
            jnp.arange(key_length)[None, :] - query,
            buckets=self.buckets,
            max_distance=self.max_distance,
            both_directions=both_directions,
        )
        return table[places].transpose(2, 0, 1)[None]
