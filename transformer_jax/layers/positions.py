"""Encodings of positions: fixed sinusoids, learned tables, and T5's bias of attention scores."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer_jax.layers.parameters import parameter
from transformer_jax.sharding.placement import constrain


def sinusoidal_table(max_length: int, d_model: int) -> Float[np.ndarray, "L D"]:
    """Returns the sinusoids of Vaswani et al. 2017, section 3.5.

    ``table[p, 2i] = sin(p / 10000^(2i / d_model))`` and ``table[p, 2i + 1] = cos(p / 10000^(2i / d_model))``.
    """
    rates = 10_000.0 ** (-np.arange(0, d_model, 2) / d_model)
    angles = np.arange(max_length)[:, None] * rates[None, :]
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(max_length, d_model).astype(np.float32)


class PositionEncoding(nn.Module):
    """Returns a vector for each position, to be added to the embeddings.

    Raises ValueError if positions of this kind have no vectors, as "relative".

    Attributes:
      kind: "sinusoidal" (no parameters), "sinusoidal_halves" (the same columns, all sines before all cosines,
        as in Marian), or "learned" (initialized from N(0, 0.02^2), logical axes ``length``, ``embed``).
      max_length: number of positions. A larger position gives NaN; callers check for it first.
      dtype: type of the result.
    """

    kind: str
    max_length: int
    d_model: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, positions: Int[Array, "#B L"] | int) -> Float[Array, "#B L D"]:
        """Returns the vectors of an array of positions, or of positions 0, 1, … if given their number."""
        if self.kind == "learned":
            shape = (self.max_length, self.d_model)
            table = parameter(self, "embedding", nn.initializers.normal(0.02), shape, ("length", "embed"))
        elif self.kind not in ("sinusoidal", "sinusoidal_halves"):
            raise ValueError(
                f"kind={self.kind!r} of positions has no vectors; sinusoidal, sinusoidal_halves and "
                "learned have some"
            )
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
    """Returns the bucket of each distance (Raffel et al. 2020, section 2.1).

    Half of the buckets of one direction hold one distance each. The others hold ranges of distances that grow
    logarithmically up to ``max_distance``; the last one holds all larger distances too.

    Args:
      distances: position of the key minus position of the query.
      buckets: number of buckets of both directions together.
      both_directions: whether keys after the query have buckets of their own, half of all. If False, they
        share the bucket of distance 0; a causal mask hides them.
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
    """Returns T5's bias of attention scores: a learned number for each head and bucket of distances."""

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
        """Returns the bias of every pair.

        Args:
          query_length: L.
          key_length: S.
          query_offset: position of the first query in the key array.
          both_directions: as in ``relative_buckets``.
        """
        init = nn.initializers.normal(0.1)
        table = parameter(self, "embedding", init, (self.buckets, self.num_heads), ("buckets", "heads"))
        query = query_offset + jnp.arange(query_length)[:, None]
        buckets = relative_buckets(
            jnp.arange(key_length)[None, :] - query,
            buckets=self.buckets,
            max_distance=self.max_distance,
            both_directions=both_directions,
        )
        return table[buckets].transpose(2, 0, 1)[None]
