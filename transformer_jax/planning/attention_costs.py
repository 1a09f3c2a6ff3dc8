"""How many operations an attention kernel does, by its name and operands: its custom call does not say."""

import math
import re
from collections.abc import Sequence

from transformer_jax.planning.hlo import ArrayShape

_LANES = 128  # of which splash attention's tokens are multiples

# Products of every query with every key, as (those over the head size, those over the values' size): scores
# and means; scores, gradients of weights and of queries; and so on.
_PRODUCTS = {
    "fwd": (1, 1),
    "dq": (2, 1),
    "dkv": (2, 2),
    "dkv_fused": (3, 2),
    "forward_kernel": (1, 1),
    "query_kernel": (2, 1),
    "key_kernel": (2, 2),
}
_SPLASH = re.compile(r"\bsplash_mha_(fwd|dq|dkv)")
_TRITON = re.compile(r"\b(causal_)?attention_(forward_kernel|query_kernel|key_kernel)\b")


def kernel_products(
    op_name: str, operands: Sequence[ArrayShape], results: Sequence[ArrayShape]
) -> tuple[str, int] | None:
    """Operations of one call of an attention kernel, on the device of a mesh that has the most.

    Args:
      op_name: where in the traced function the call came from; the kernel's name is part of it.
      operands, results: of the call.

    Returns:
      The type of the operands, and the operations; None where it is no kernel that is known.
    """
    splash, triton = _SPLASH.search(op_name), _TRITON.search(op_name)
    large = [array for array in operands if len(array.dims) == 4]
    if not (splash or triton) or len(large) < 3:
        return None
    if splash:
        query, key, value = large[:3]
        is_fused = any(len(array.dims) == 5 for array in results)  # a gradient for each block of keys
        kind = splash[1] + ("_fused" if is_fused else "")
        # Of causal masks the kernel has the places of the queries, which all rows share.
        is_causal = any(array.dtype == "s32" and len(array.dims) == 2 for array in operands)
        (rows, heads, length, size), (*_, keys, _), (*_, value_size) = map(_tokens_first, (query, key, value))
        block = _splash_block(operands[0].dims, splash[1], length, keys)
    else:
        assert triton is not None
        kind, is_causal = triton[2], bool(triton[1])
        first, second, third = large[:3]
        query, key, value = (third, first, second) if kind == "key_kernel" else (first, *large[-2:])
        (rows, heads, length, size), keys, value_size = query.dims, key.dims[2], value.dims[3]
        block = math.gcd(length, keys, 64)
    over_head, over_value = _PRODUCTS[kind]
    pairs = rows * heads * length * keys
    if is_causal:  # of the last queries: blocks after each one's own are skipped
        pairs -= rows * heads * block * length * (length // block - 1) // 2
    return query.dtype, 2 * pairs * (over_head * size + over_value * value_size)


def _tokens_first(array: ArrayShape) -> tuple[int, ...]:
    """Rows, heads, tokens, size; heads that are no multiple of the lanes have their tokens last."""
    *before, tokens, size = array.dims
    return (*before, size, tokens) if tokens % _LANES else array.dims


def _splash_block(blocks: tuple[int, ...], kind: str, length: int, keys: int) -> int:
    """Tokens of a block, of which the first operand has one number for each pair that is computed."""
    return keys // blocks[-1] if kind == "dkv" else length // blocks[-2]
