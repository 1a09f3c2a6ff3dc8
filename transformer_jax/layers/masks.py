"""Attention masks as small structured values; an array of all pairs is made only where one is needed.

A ``Mask`` is a conjunction of parts: a query may attend to a key if every part allows it. A part is a small
pytree, such as ``Causal()``, and not an array (L, S), so that an attention kernel can recognise it and skip
whole blocks. A kernel declares which types of parts it can express (``layers.kernel.Kernel.EXPRESSES``).
Plain attention can express every mask, by ``Mask.to_array``.

Masks and parts are pytrees, so they can be arguments of functions under ``jax.jit``, ``nn.scan`` and
``nn.remat``. Their arrays are leaves. What decides which program is compiled (which parts there are, the
width of a window) is part of the tree's structure.

A new part is a subclass of ``MaskPart`` with a ``to_array``. Plain attention computes it at once; a kernel
computes it after the kernel has declared it.

Throughout, L is the number of queries, S the number of keys, B the rows of a batch and H the heads. Query i
is at position ``i + offset`` of the key array, and key j is at position j. The offset is 0 unless the keys
come from a cache.
"""

from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

Part = TypeVar("Part", bound="MaskPart")


class MaskPart:
    """Base class of the parts of a ``Mask``. A subclass has to be a pytree, as ``flax.struct`` makes one."""

    def to_array(self, query_length: int, key_length: int) -> Bool[Array, "#B #H #L #S"]:
        """Returns an array that is True where this part allows a query to attend to a key.

        Args:
          query_length: L.
          key_length: S.
        """
        raise NotImplementedError(f"{type(self).__name__} must define to_array")


@flax.struct.dataclass
class Causal(MaskPart):
    """Allows a query to attend to the keys at its own position and before: ``j <= i + offset``.

    Attributes:
      offset: position of the first query in the key array. None means 0 and, unlike the number 0, remains
        known when the mask is passed through ``jax.jit``, so that kernels can rely on it.
    """

    offset: Int[Array, ""] | int | None = None

    @property
    def begins_at_zero(self) -> bool:
        """Whether the offset is known to be 0 while the program is traced."""
        return self.offset is None or (isinstance(self.offset, int) and self.offset == 0)

    def to_array(self, query_length: int, key_length: int) -> Bool[Array, "1 1 L S"]:
        """Returns True where ``j <= i + offset``."""
        query, key = _positions(query_length, key_length, self.offset)
        return key <= query


@flax.struct.dataclass
class Segments(MaskPart):
    """Allows a query to attend to the keys of its own segment, so that packed examples stay apart.

    Attributes:
      query: (B, L) segment id of each query, or None: a query may attend to every key whose id is positive.
      key: (B, S) segment id of each key; 0 for padding. A query whose id is 0 attends to the padding.
    """

    query: Int[Array, "B L"] | None
    key: Int[Array, "B S"]

    def to_array(self, query_length: int, key_length: int) -> Bool[Array, "B 1 #L S"]:
        """Returns True where the ids are equal; if ``query`` is None, where the key's id is positive."""
        keys = self.key[:, None, None, :]
        return keys > 0 if self.query is None else self.query[:, None, :, None] == keys


@flax.struct.dataclass
class Window(MaskPart):
    """Allows a query to attend to nearby keys: ``i + offset - left <= j <= i + offset + right``.

    ``Globals`` in the same mask exempt some tokens from the window. That holds for subclasses of ``Window``
    as well, such as a dilated one.

    Attributes:
      left, right: how many keys before and after the query's own position are allowed, at least 0.
      offset: as in ``Causal``.

    Raises:
      ValueError: a negative width.
    """

    left: int = flax.struct.field(pytree_node=False)
    right: int = flax.struct.field(pytree_node=False)
    offset: Int[Array, ""] | int | None = None

    def __post_init__(self) -> None:
        if self.left < 0 or self.right < 0:
            raise ValueError(
                f"Window(left={self.left}, right={self.right}): both count keys on one side of a query, so "
                "they must be at least 0"
            )

    def to_array(self, query_length: int, key_length: int) -> Bool[Array, "1 1 L S"]:
        """Returns True where ``-left <= j - (i + offset) <= right``, whatever ``Globals`` say."""
        query, key = _positions(query_length, key_length, self.offset)
        return (key >= query - self.left) & (key <= query + self.right)


@flax.struct.dataclass
class Globals(MaskPart):
    """Exempts some tokens from the windows of the same mask, in both directions (Longformer's global tokens).

    A global query may attend to every key, and every query may attend to a global key, as far as the parts
    other than windows allow. Globals only widen windows: in a mask without a ``Window`` they change nothing.

    Attributes:
      query_is_global: (B, L).
      key_is_global: (B, S).
    """

    query_is_global: Bool[Array, "B L"]
    key_is_global: Bool[Array, "B S"]

    def to_array(self, query_length: int, key_length: int) -> Bool[Array, "1 1 1 1"]:
        """Returns True everywhere: globals exclude no pair themselves."""
        return jnp.ones((1, 1, 1, 1), bool)

    def exempt(self) -> Bool[Array, "B 1 L S"]:
        """Returns True for the pairs that windows do not exclude: the query or the key is global."""
        return self.query_is_global[:, None, :, None] | self.key_is_global[:, None, None, :]


@flax.struct.dataclass
class Explicit(MaskPart):
    """Allows the pairs that an array says, for masks that no other part describes.

    Attributes:
      array: (B, H, L, S), True where a query may attend to a key; any of the axes may be 1.
    """

    array: Bool[Array, "#B #H #L #S"]

    def to_array(self, query_length: int, key_length: int) -> Bool[Array, "#B #H #L #S"]:
        """Returns the array.

        Raises:
          ValueError: its last two axes do not broadcast to (L, S).
        """
        shape = self.array.shape
        if len(shape) != 4 or shape[2] not in (1, query_length) or shape[3] not in (1, key_length):
            raise ValueError(
                f"Explicit has an array of shape {shape}, but there are {query_length} queries and "
                f"{key_length} keys: give it (B or 1, H or 1, {query_length} or 1, {key_length} or 1)"
            )
        return self.array


@jax.tree_util.register_pytree_node_class
class Mask:
    """A conjunction of parts: ``Mask(Causal(), Segments(query_ids, key_ids))``.

    A query may attend to a key if all parts allow it. Windows are exempt where ``Globals`` say so::

        allowed = (all parts but windows) and (all windows or a global query or a global key)

    ``Mask()`` allows every pair. ``mask & part`` and ``mask & other_mask`` are conjunctions too.

    Attributes:
      parts: the parts, in the order in which they were given. There may be several of one type.
    """

    parts: tuple[MaskPart, ...]

    def __init__(self, *parts: MaskPart) -> None:
        self.parts = parts

    def __repr__(self) -> str:
        return f"Mask({', '.join(map(repr, self.parts))})"

    def __and__(self, other: "Mask | MaskPart") -> "Mask":
        return Mask(*self.parts, *(other.parts if isinstance(other, Mask) else (other,)))

    def has(self, kind: type[MaskPart]) -> bool:
        """Returns whether some part is an instance of ``kind``."""
        return any(isinstance(part, kind) for part in self.parts)

    def part(self, kind: type[Part]) -> Part | None:
        """Returns the part that is an instance of ``kind``, or None.

        Raises:
          ValueError: there are several. A caller that took one of them would ignore the others.
        """
        matching = [part for part in self.parts if isinstance(part, kind)]
        if len(matching) > 1:
            raise ValueError(
                f"the mask has {len(matching)} parts of type {kind.__name__}; at most 1 is allowed"
            )
        return matching[0] if matching else None

    def to_array(self, query_length: int, key_length: int) -> Bool[Array, "#B #H #L #S"] | None:
        """Returns an array that is True where a query may attend to a key, or None if the mask has no parts.

        Args:
          query_length: L.
          key_length: S.
        """
        exempt = [part.exempt() for part in self.parts if isinstance(part, Globals)]
        allowed = None
        for part in self.parts:
            array = part.to_array(query_length, key_length)
            if isinstance(part, Window):
                for pairs in exempt:
                    array = array | pairs
            allowed = array if allowed is None else allowed & array
        return allowed

    def tree_flatten(self) -> tuple[tuple[MaskPart, ...], None]:
        """Returns the parts as the children of this pytree, for JAX."""
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, _: None, parts: tuple[Any, ...]) -> "Mask":
        """Returns a mask of any children, for JAX, which puts placeholders there too."""
        mask = object.__new__(cls)
        mask.parts = tuple(parts)
        return mask


def _positions(
    query_length: int, key_length: int, offset: Int[Array, ""] | int | None
) -> tuple[Int[Array, "1 1 L S"], Int[Array, "1 1 L S"]]:
    """Returns the position of the query and that of the key, of each pair, in the key array."""
    shape = (1, 1, query_length, key_length)
    query = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
    return query if offset is None else query + offset, jax.lax.broadcasted_iota(jnp.int32, shape, 3)
