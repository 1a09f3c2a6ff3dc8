"""The operations of attention kernels, which their custom calls in a compiled program do not state."""

from typing import NamedTuple, Protocol, runtime_checkable


@runtime_checkable
class CallArray(Protocol):
    """An operand or a result of a call in a compiled program."""

    @property
    def dtype(self) -> str:
        """Returns the element type as XLA spells it."""
        ...

    @property
    def dims(self) -> tuple[int, ...]:
        """Returns the shape."""
        ...


class Products(NamedTuple):
    """How many times a call multiplies every query with every key.

    A forward pass has one product over the head size (scores) and one over the value size (means). Backward
    passes compute the scores again, and gradients of weights, queries, keys and values.
    """

    over_head_size: int
    over_value_size: int


def call_operations(
    query: tuple[int, int, int, int],
    num_keys: int,
    value_size: int,
    products: Products,
    *,
    causal_block: int | None,
) -> int:
    """Returns the operations of a call on the device of a mesh that has the most.

    Args:
      query: B, H, L, K: the shape of the queries.
      num_keys: S.
      value_size: W.
      products: of the call.
      causal_block: the tokens of a block, if a causal mask makes the kernel skip the blocks after each
        query's own. The device that has the most then has the last queries.
    """
    rows, heads, length, head_size = query
    pairs = rows * heads * length * num_keys
    if causal_block is not None:
        pairs -= rows * heads * causal_block * length * (length // causal_block - 1) // 2
    return 2 * pairs * (products.over_head_size * head_size + products.over_value_size * value_size)
