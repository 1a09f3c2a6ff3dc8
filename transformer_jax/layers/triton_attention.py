"""Attention on GPUs by a Pallas kernel that Triton compiles.

The kernel does not store the scores. It computes them block by block, and once more in the backward pass, for
which the forward pass stores the logarithm of each query's sum (Dao 2024, "FlashAttention-2", algorithms 1
and 2). It can do what cuDNN cannot: float32, segments without an array of all pairs, and queries that are
split over a mesh. It can be compiled on a machine without a GPU.
"""

import functools
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from transformer_jax.layers.attention_ops import MASKED_SCORE
from transformer_jax.layers.kept import keep
from transformer_jax.layers.kernel import Kernel
from transformer_jax.layers.kernel_costs import CallArray, Products, call_operations
from transformer_jax.layers.kernel_inputs import KernelInputs, kernel_inputs
from transformer_jax.layers.masks import Causal, Mask, Segments
from transformer_jax.sharding.placement import current_placement

BLOCK = 64  # queries, and keys, of a block of scores
MOST_HEAD_SIZE = 128
_CALL = re.compile(r"\b(causal_)?attention_(forward_kernel|query_kernel|key_kernel)\b")
_PRODUCTS = {"forward_kernel": Products(1, 1), "query_kernel": Products(2, 1), "key_kernel": Products(2, 2)}


class TritonAttention(Kernel):
    """Runs the kernel on GPUs. Each device of a mesh has its own rows, heads and queries, and all keys."""

    NAME = "triton"
    PLATFORMS = frozenset({"gpu"})
    EXPRESSES = frozenset({Causal, Segments})

    def obstacle(
        self,
        query: Float[Array, "B L H K"],
        key: Float[Array, "B S H K"],
        value: Float[Array, "B S H W"],
        mask: Mask,
        *,
        needs_weights: str,
        bias: Float[Array, "#B #H #L S"] | None,
    ) -> str:
        """As ``Kernel.obstacle``; heads have to have one of four sizes."""
        if reason := super().obstacle(query, key, value, mask, needs_weights=needs_weights, bias=bias):
            return reason
        for size in (query.shape[3], value.shape[3]):
            if size & (size - 1) or not 16 <= size <= MOST_HEAD_SIZE:
                return f"triton has heads of 16, 32, 64 or {MOST_HEAD_SIZE}, not of {size}"
        return ""

    def padded_shape(self, length: int, num_keys: int) -> tuple[int, int]:
        """Returns how many queries and keys the kernel computes scores of."""
        return length + -length % (BLOCK * _parts()), num_keys + -num_keys % BLOCK

    def read_call(
        self, op_name: str, operands: Sequence[CallArray], results: Sequence[CallArray]
    ) -> tuple[str, int] | None:
        """Returns the element type and the operations of a call of this kernel, or None."""
        call = _CALL.search(op_name)
        large = [array for array in operands if len(array.dims) == 4]
        if call is None or len(large) < 3:
            return None
        is_causal, kind = bool(call[1]), call[2]
        first, second, third = large[:3]
        query, key, value = (third, first, second) if kind == "key_kernel" else (first, *large[-2:])
        rows, heads, length, size = query.dims
        return query.dtype, call_operations(
            (rows, heads, length, size),
            key.dims[2],
            value.dims[3],
            _PRODUCTS[kind],
            causal_block=math.gcd(length, key.dims[2], BLOCK) if is_causal else None,
        )

    def attend(
        self,
        query: Float[Array, "B L H K"],
        key: Float[Array, "B S H K"],
        value: Float[Array, "B S H W"],
        *,
        mask: Mask,
        scale: bool,
        interpret: bool,
    ) -> Float[Array, "B L H W"]:
        """Computes the attention for ``__call__``."""
        placement = current_placement()
        length = query.shape[1]
        inputs = kernel_inputs(
            query, key, value, mask=mask, scale=scale, query_multiple=BLOCK * _parts(), key_multiple=BLOCK
        )
        arrays = (inputs.query, inputs.key, inputs.value, *(inputs.segments or _one_segment(inputs)))
        static = (mask.has(Causal), interpret)
        heads_first: jax.Array
        if placement is None:
            heads_first = _attend(static, *arrays, jnp.zeros((1,), jnp.int32))
        else:
            batch, heads, sequence, _ = placement.spec(
                ("batch", "heads", "sequence", None), inputs.query.shape
            )

            def attend_own(query, *others):
                part = jax.lax.axis_index(sequence) if sequence else 0
                return _attend(static, query, *others, jnp.full((1,), part * query.shape[2], jnp.int32))

            own, gathered = PartitionSpec(batch, heads, sequence), PartitionSpec(batch, heads)
            heads_first = jax.shard_map(
                attend_own,
                mesh=placement.mesh,
                in_specs=(own, gathered, gathered, PartitionSpec(batch, sequence), PartitionSpec(batch)),
                out_specs=own,
                check_vma=False,  # Pallas does not declare over which mesh axes its results vary
            )(*arrays)
        return heads_first[:, :, :length].swapaxes(1, 2)


def _parts() -> int:
    """Returns how many parts the queries are split into over the mesh."""
    placement = current_placement()
    return 1 if placement is None else placement.parts("sequence")


def _one_segment(inputs: KernelInputs) -> tuple[Int[Array, "B L"], Int[Array, "B S"]]:
    """Returns segment ids by which every query attends to every key."""
    of_queries, of_keys = ((len(x), x.shape[2]) for x in (inputs.query, inputs.key))
    return jnp.ones(of_queries, jnp.int32), jnp.ones(of_keys, jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    static: tuple[bool, bool],
    query: Float[Array, "B H L K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S W"],
    query_segments: Int[Array, "B L"],
    key_segments: Int[Array, "B S"],
    offset: Int[Array, "1"],
) -> Float[Array, "B H L W"]:
    """Computes attention with gradients.

    Args:
      static: whether the mask is causal, and whether to interpret the kernel.
      offset: the position of the first query in the key array.
    """
    return _attend_forward(static, query, key, value, query_segments, key_segments, offset)[0]


def _attend_forward(static, query, key, value, query_segments, key_segments, offset):
    of_queries, of_keys = (query, query_segments), (key, value, key_segments)
    result = jax.ShapeDtypeStruct((*query.shape[:3], value.shape[3]), query.dtype)
    log_sum = jax.ShapeDtypeStruct(query.shape[:3], jnp.float32)
    output, log_sums = _call(_forward_kernel, static, of_queries, of_keys, offset, (result, log_sum))
    output, log_sums = keep(output), keep(log_sums)
    return output, (of_queries, of_keys, offset, output, log_sums)


def _attend_backward(static, residuals, gradient):
    of_queries, of_keys, offset, output, log_sums = residuals
    # The sum over keys of weights times their gradients, for each query. It follows from the output.
    products = jnp.sum(output.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1)
    of_queries = (*of_queries, gradient, log_sums, products)
    query, (key, value, _) = of_queries[0], of_keys
    (query_gradient,) = _call(_query_kernel, static, of_queries, of_keys, offset, (_like(query),))
    key_gradient, value_gradient = _call(
        _key_kernel, static, of_keys, of_queries, offset, (_like(key), _like(value))
    )
    return query_gradient, key_gradient, value_gradient, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _call(kernel, static, own, others, offset, results):
    """Runs a kernel for each block of tokens of ``own`` and ``results``. Each reads all of ``others``."""
    causal, interpret = static
    rows, heads, length, size = own[0].shape
    call = pl.pallas_call(
        functools.partial(kernel, causal),
        grid=(length // BLOCK, heads, rows),
        in_specs=[
            *(_block(x, is_whole=False) for x in own),
            *(_block(x, is_whole=True) for x in others),
            pl.BlockSpec((1,), lambda i, head, row: (0,)),
        ],
        out_specs=[_block(x, is_whole=False) for x in results],
        out_shape=list(results),
        compiler_params=pallas_triton.CompilerParams(num_warps=4 if size <= BLOCK else 8, num_stages=2),
        interpret=interpret,
        name=f"{'causal_' if causal else ''}attention{kernel.__name__}",
    )
    return call(*own, *others, offset)


def _block(x, *, is_whole: bool) -> pl.BlockSpec:
    """Returns the spec of a block of tokens of one row and head, or of all of its tokens.

    Args:
      x: (B, L), (B, H, L) or (B, H, L, K).
      is_whole: whether the block has all tokens.
    """
    axis = min(x.ndim - 1, 2)
    rest = x.shape[axis + 1 :]

    def index(i, head, row):
        return (*(row, head)[:axis], 0 if is_whole else i, *(0 for _ in rest))

    return pl.BlockSpec((*(None,) * axis, x.shape[axis] if is_whole else BLOCK, *rest), index)


def _product(x, y):
    return jax.lax.dot_general(x, y, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _scores(causal, query, key, query_segments, key_segments, first_query, first_key):
    """Returns the masked scores of a block of queries (rows) and a block of keys (columns).

    Args:
      first_query, first_key: positions of the first query and of the first key of the blocks.
    """
    scores = _product(query, key.T)
    is_allowed = query_segments[:, None] == key_segments[None, :]
    if causal:
        query_positions = first_query + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        key_positions = first_key + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        is_allowed &= key_positions <= query_positions
    return jnp.where(is_allowed, scores, MASKED_SCORE)


def _visible_blocks(causal, first_query, num_keys):
    """Returns how many blocks of keys are not wholly hidden from a block of queries."""
    count = num_keys // BLOCK
    return jnp.minimum(count, first_query // BLOCK + 1) if causal else count


def _forward_kernel(causal, query, query_segments, key, value, key_segments, offset, output, log_sums):
    first_query = offset[0] + pl.program_id(0) * BLOCK
    queries, segments = query[...], query_segments[...]

    def step(i, carry):
        largest, total, mean = carry
        keys = pl.ds(i * BLOCK, BLOCK)
        scores = _scores(causal, queries, key[keys, :], segments, key_segments[keys], first_query, i * BLOCK)
        larger = jnp.maximum(largest, jnp.max(scores, axis=1))
        weights, correction = jnp.exp(scores - larger[:, None]), jnp.exp(largest - larger)
        mean = mean * correction[:, None] + _product(weights.astype(value.dtype), value[keys, :])
        return larger, total * correction + jnp.sum(weights, axis=1), mean

    start = (
        jnp.full((BLOCK,), MASKED_SCORE, jnp.float32),
        jnp.zeros((BLOCK,), jnp.float32),
        jnp.zeros((BLOCK, value.shape[1]), jnp.float32),
    )
    count = _visible_blocks(causal, first_query, key.shape[0])
    largest, total, mean = jax.lax.fori_loop(0, count, step, start)
    output[...] = (mean / total[:, None]).astype(output.dtype)
    log_sums[...] = largest + jnp.log(total)


def _score_gradients(weights, value, gradient, products):
    """Returns the gradients of the scores, of which ``products`` are sums of weights times gradients."""
    return weights * (_product(gradient, value.T) - products[:, None])


def _query_kernel(
    causal,
    query,
    query_segments,
    gradient,
    log_sums,
    products,
    key,
    value,
    key_segments,
    offset,
    query_gradient,
):
    first_query = offset[0] + pl.program_id(0) * BLOCK
    queries, segments, gradients = query[...], query_segments[...], gradient[...]
    log_sums, products = log_sums[...], products[...]

    def step(i, total):
        keys = pl.ds(i * BLOCK, BLOCK)
        some = key[keys, :]
        scores = _scores(causal, queries, some, segments, key_segments[keys], first_query, i * BLOCK)
        weights = jnp.exp(scores - log_sums[:, None])
        of_scores = _score_gradients(weights, value[keys, :], gradients, products)
        return total + _product(of_scores.astype(some.dtype), some)

    count = _visible_blocks(causal, first_query, key.shape[0])
    total = jax.lax.fori_loop(0, count, step, jnp.zeros(queries.shape, jnp.float32))
    query_gradient[...] = total.astype(query_gradient.dtype)


def _key_kernel(
    causal,
    key,
    value,
    key_segments,
    query,
    query_segments,
    gradient,
    log_sums,
    products,
    offset,
    key_gradient,
    value_gradient,
):
    first_key = pl.program_id(0) * BLOCK
    keys, values, segments = key[...], value[...], key_segments[...]

    def step(i, totals):
        of_keys, of_values = totals
        queries = pl.ds(i * BLOCK, BLOCK)
        some, gradients = query[queries, :], gradient[queries, :]
        scores = _scores(
            causal, some, keys, query_segments[queries], segments, offset[0] + i * BLOCK, first_key
        )
        weights = jnp.exp(scores - log_sums[queries][:, None])
        of_scores = _score_gradients(weights, values, gradients, products[queries])
        of_keys += _product(of_scores.T.astype(some.dtype), some)
        return of_keys, of_values + _product(weights.T.astype(gradients.dtype), gradients)

    start = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    # A causal mask hides this block from the queries before its first key.
    first = jnp.maximum(first_key - offset[0], 0) // BLOCK if causal else 0
    of_keys, of_values = jax.lax.fori_loop(first, query.shape[0] // BLOCK, step, start)
    key_gradient[...] = of_keys.astype(key_gradient.dtype)
    value_gradient[...] = of_values.astype(value_gradient.dtype)
