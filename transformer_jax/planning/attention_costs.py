"""Counts the operations of attention kernels in a compiled program, whose custom calls do not state them."""

from collections.abc import Sequence

from transformer_jax.layers.attention_kernels import KERNELS
from transformer_jax.planning.hlo import ArrayShape


def kernel_products(
    op_name: str, operands: Sequence[ArrayShape], results: Sequence[ArrayShape]
) -> tuple[str, int] | None:
    """Returns the operations of one call of an attention kernel, on the device of a mesh that has the most.

    Args:
      op_name: the path of the call in the traced function.
      operands, results: of the call.

    Returns:
      The element type of the operands, and the operations; None if the call is of no kernel in ``KERNELS``.
    """
    readings = (kernel.read_call(op_name, operands, results) for kernel in KERNELS.values())
    return next((reading for reading in readings if reading is not None), None)
