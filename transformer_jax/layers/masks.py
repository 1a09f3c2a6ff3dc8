"""The attention mask as a small structured value, an array only where one is needed."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

NO_SEGMENT = -1  # of a key that nobody may see, not even padding


@flax.struct.dataclass
class Mask:
    """Which keys each query may see.

    Attributes:
      query_segments: (B, L) segment of each query, or None: every query is a real token.
      key_segments: (B, S) segment of each key, 0 for padding, or None: every key is a real token.
      causal: a query sees keys at its own place and before.
      query_offset: the place of the first query among the keys; not 0 only when keys come from a cache.
    """

    query_segments: Int[Array, "B L"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    query_offset: Int[Array, ""] | int = 0

    def to_array(self, query_length: int, key_length: int) -> Bool[Array, "#B 1 L S"] | None:
        """True where a query may see a key, or None when every query sees every key.

        With both segments given a query sees the keys of its own segment, so packed examples do not see
        one another; with ``key_segments`` alone it sees every key that is not padding.
        """
        allowed = None
        if self.key_segments is not None:
            keys = self.key_segments[:, None, None, :]
            if self.query_segments is None:
                allowed = keys > 0
            else:
                allowed = self.query_segments[:, None, :, None] == keys
        if self.causal:
            query = jax.lax.broadcasted_iota(jnp.int32, (1, 1, query_length, key_length), 2)
            key = jax.lax.broadcasted_iota(jnp.int32, (1, 1, query_length, key_length), 3)
            past = key <= query + self.query_offset
            allowed = past if allowed is None else allowed & past
        return allowed

    def to_segments(
        self, rows: int, query_length: int, key_length: int, *, always: bool
    ) -> tuple[Int[Array, "B L"], Int[Array, "B S"]] | None:
        """Numbers of queries and keys of which equal ones may see each other, for kernels without an array.

        Together with ``causal`` they say what ``to_array`` says, but that nothing at all may be seen by a
        query of a row without keys.

        Args:
          rows: B.
          always: whether to give them where all are equal, instead of None: for what pads keys.
        """
        if self.key_segments is None:
            if not always:
                return None
            return jnp.ones((rows, query_length), jnp.int32), jnp.ones((rows, key_length), jnp.int32)
        if self.query_segments is not None:
            return self.query_segments, self.key_segments
        is_key = jnp.where(self.key_segments > 0, 1, NO_SEGMENT)
        return jnp.ones((rows, query_length), jnp.int32), is_key
