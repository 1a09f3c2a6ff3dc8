"""Attention on TPUs by "splash attention", the Pallas kernel that comes with JAX.

The kernel does not store the scores. It computes them block by block in the core's memory, and once more in
the backward pass (Dao et al. 2022, "FlashAttention"). It skips the blocks that a causal mask hides.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, cast

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as kernel_masks
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from transformer_jax.layers.kept import PRODUCTS, keep
from transformer_jax.layers.kernel import Kernel
from transformer_jax.layers.kernel_costs import CallArray, Products, call_operations
from transformer_jax.layers.kernel_inputs import kernel_inputs
from transformer_jax.layers.masks import Causal, Mask, Segments
from transformer_jax.sharding.placement import Placement, current_placement

LANES = 128  # the width of a TPU's vector registers, of which a block is a multiple
_BLOCKS = (512, 384, 256)  # tokens; the scores and gradients of the largest fit into the core's memory
_MOST_FUSED = 4  # blocks of keys up to which one kernel computes all gradients
_CALL = re.compile(r"\bsplash_mha_(fwd|dq|dkv)")
_PRODUCTS = {"fwd": Products(1, 1), "dq": Products(2, 1), "dkv": Products(2, 2)}
_FUSED_PRODUCTS = Products(3, 2)  # of one backward kernel for all gradients


class SplashAttention(Kernel):
    """Runs the kernel on TPUs. Each device of a mesh has its own rows, heads and queries, and all keys."""

    NAME = "splash"
    PLATFORMS = frozenset({"tpu"})
    EXPRESSES = frozenset({Causal, Segments})

    def padded_shape(self, length: int, num_keys: int) -> tuple[int, int]:
        """Returns how many queries and keys the kernel computes scores of."""
        query_block, key_block, parts = _blocks(length, num_keys)
        return length + -length % (query_block * parts), num_keys + -num_keys % key_block

    def read_call(
        self, op_name: str, operands: Sequence[CallArray], results: Sequence[CallArray]
    ) -> tuple[str, int] | None:
        """Returns the element type and the operations of a call of this kernel, or None."""
        call = _CALL.search(op_name)
        large = [array for array in operands if len(array.dims) == 4]
        if call is None or len(large) < 3:
            return None
        kind = call[1]
        query, key, value = map(_tokens_first, large[:3])
        is_fused = any(len(array.dims) == 5 for array in results)  # a gradient for each block of keys
        # With a causal mask there is an operand of the queries' positions, which all rows share.
        is_causal = any(array.dtype == "s32" and len(array.dims) == 2 for array in operands)
        # The first operand has one number for each pair of blocks that is computed.
        blocks = operands[0].dims
        block = key[2] // blocks[-1] if kind == "dkv" else query[2] // blocks[-2]
        return large[0].dtype, call_operations(
            query,
            key[2],
            value[3],
            _FUSED_PRODUCTS if is_fused else _PRODUCTS[kind],
            causal_block=block if is_causal else None,
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
        length, num_keys = query.shape[1], key.shape[1]
        query_block, key_block, parts = _blocks(length, num_keys)
        inputs = kernel_inputs(
            query,
            key,
            value,
            mask=mask,
            scale=scale,
            query_multiple=query_block * parts,
            key_multiple=key_block,
        )
        segments = None if inputs.segments is None else kernels.SegmentIds(*inputs.segments)
        make_kernel = functools.partial(
            kernels.make_splash_mha,
            block_sizes=_block_sizes(
                query_block,
                key_block,
                num_key_blocks=inputs.key.shape[2] // key_block,
                head_sizes=(query.shape[-1], value.shape[-1]),
            ),
            residual_checkpoint_name=PRODUCTS if _keeps_results(value.shape[-1]) else None,
            interpret=interpret,
        )

        def attend(kernel, query, key, value, segments):
            if kernel is None:  # without a causal mask all parts of the queries have the same kernel
                full = kernel_masks.FullMask((query.shape[2], key.shape[2]))
                kernel = make_kernel(_of_heads(full, query), head_shards=1, q_seq_shards=1)
            return jax.vmap(kernel)(keep(query), keep(key), keep(value), segments)

        placement = current_placement()
        batch = heads = sequence = None
        if placement is not None:
            batch, heads, sequence, _ = placement.spec(
                ("batch", "heads", "sequence", None), inputs.query.shape
            )
        kernel = kernel_spec = None
        if mask.has(Causal):
            causal = kernel_masks.CausalMask((inputs.query.shape[2], inputs.key.shape[2]))
            kernel = make_kernel(
                _of_heads(causal, inputs.query),
                head_shards=_parts(placement, heads),
                q_seq_shards=_parts(placement, sequence),
            )
        if placement is not None:
            if kernel is not None:
                where = NamedSharding(placement.mesh, PartitionSpec(heads, sequence))
                kernel_spec = kernel.manual_sharding_spec(where)
            own, gathered = PartitionSpec(batch, heads, sequence), PartitionSpec(batch, heads)
            segment_specs = cast(Any, kernels.SegmentIds)(
                PartitionSpec(batch, sequence), PartitionSpec(batch)
            )
            attend = jax.shard_map(
                attend,
                mesh=placement.mesh,
                in_specs=(kernel_spec, own, gathered, gathered, None if segments is None else segment_specs),
                out_specs=own,
                check_vma=False,  # Pallas does not declare over which mesh axes its results vary
            )
        heads_first = cast(jax.Array, attend(kernel, inputs.query, inputs.key, inputs.value, segments))
        return heads_first[:, :, :length].swapaxes(1, 2)


def block_size(length: int) -> int:
    """Returns how many tokens a block has, for ``length`` tokens: the large size that needs least padding."""
    return LANES if length <= LANES else min(_BLOCKS, key=lambda size: (-length % size, -size))


def _blocks(length: int, num_keys: int) -> tuple[int, int, int]:
    """Returns the tokens of a block of queries, those of a block of keys, and into how many parts a mesh
    splits the queries.
    """
    placement = current_placement()
    parts = 1 if placement is None else placement.parts("sequence")
    return block_size(-(-length // parts)), block_size(num_keys), parts


def _keeps_results(head_size: int) -> bool:
    """Returns whether ``remat_keeps="products"`` saves the kernel's results: for heads of more than 64.

    The results stay in memory as the kernel writes them, with the last axis padded to the lanes. For smaller
    heads that is twice the memory or more, so the backward pass runs the kernel once more instead.
    """
    return head_size + -head_size % LANES < 2 * head_size


def _tokens_first(array: CallArray) -> tuple[int, int, int, int]:
    """Returns (B, H, tokens, size). If the size is no multiple of the lanes, an operand has tokens last."""
    rows, heads, tokens, size = array.dims
    return (rows, heads, size, tokens) if tokens % LANES else (rows, heads, tokens, size)


def _of_heads(mask: kernel_masks.Mask, query: Float[Array, "B H L K"]) -> kernel_masks.MultiHeadMask:
    """Returns a mask that every head shares."""
    return kernel_masks.MultiHeadMask([mask] * query.shape[1])


def _parts(placement: Placement | None, entry: str | tuple[str, ...] | None) -> int:
    """Returns into how many parts an axis with this entry in a PartitionSpec is split."""
    axes = (entry,) if isinstance(entry, str) else entry or ()
    return 1 if placement is None else math.prod(placement.mesh.shape[axis] for axis in axes)


def _block_sizes(
    query: int, key: int, *, num_key_blocks: int, head_sizes: tuple[int, int]
) -> kernels.BlockSizes:
    """Returns the sizes and layouts of blocks.

    Args:
      query, key: tokens of a block.
      num_key_blocks: number of blocks of keys.
      head_sizes: sizes of a key and of a value.
    """
    # One kernel for all three gradients computes the scores once; two kernels compute them twice. But the one
    # stores a gradient of all queries for each block of keys, which are then summed. With few blocks that is
    # no more than a second kernel would read. With many it takes much memory.
    is_fused = num_key_blocks <= _MOST_FUSED
    # The chip's memory pads the last axis to the lanes too, so heads of 64 would take twice the memory.
    layouts = [
        kernels.QKVLayout.SEQ_MINOR if size % LANES else kernels.QKVLayout.HEAD_DIM_MINOR
        for size in head_sizes
    ]
    return kernels.BlockSizes(
        block_q=query,
        block_kv=key,
        block_kv_compute=key,
        block_q_dkv=query,
        block_kv_dkv=key,
        block_kv_dkv_compute=key,
        block_q_dq=None if is_fused else query,
        block_kv_dq=None if is_fused else key,
        use_fused_bwd_kernel=is_fused,
        q_layout=layouts[0],
        k_layout=layouts[0],
        v_layout=layouts[1],
    )
