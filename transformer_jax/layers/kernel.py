"""The interface of an attention kernel: a program that computes attention without storing the scores."""

import abc
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Array, Float

from transformer_jax.layers.kernel_costs import CallArray
from transformer_jax.layers.masks import Causal, Mask, MaskPart


class Kernel(abc.ABC):
    """A way to compute ``attention_ops.dot_product_attention`` without storing the scores.

    A kernel says by itself what it can compute. What it does not declare it is never given: ``obstacle``
    rejects a mask with a part that is not in ``EXPRESSES``, and so does a call.

    Attributes:
      NAME: how messages and ``mesh.attention`` call it.
      PLATFORMS: where it runs, of "gpu" and "tpu". On a CPU it is interpreted, for tests.
      EXPRESSES: the types of mask parts that it computes. A subclass of one of them is another type.
    """

    NAME: ClassVar[str]
    PLATFORMS: ClassVar[frozenset[str]]
    EXPRESSES: ClassVar[frozenset[type[MaskPart]]]

    @abc.abstractmethod
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
        """Computes the attention for ``__call__``, which has checked the mask."""

    def __call__(
        self,
        query: Float[Array, "B L H K"],
        key: Float[Array, "B S H K"],
        value: Float[Array, "B S H W"],
        *,
        mask: Mask,
        scale: bool = True,
        interpret: bool = False,
    ) -> Float[Array, "B L H W"]:
        """Returns what ``attention_ops.dot_product_attention`` returns, up to rounding.

        Within ``placement.placed`` each device computes its own rows, heads and queries. A query that may
        attend to no key gets a mean of values, which need not be the mean that plain attention returns.

        Args:
          scale: whether to multiply the scores by 1 / sqrt(K).
          interpret: whether to run the kernel as ordinary operations on a CPU, which is slow. Tests do.

        Raises:
          ValueError: the kernel cannot express the mask.
        """
        if reason := self.mask_reason(mask):
            raise ValueError(f"{reason}; use plain attention for this mask")
        return self.attend(query, key, value, mask=mask, scale=scale, interpret=interpret)

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
        """Returns the reason why the kernel cannot compute an attention, or an empty string if it can.

        Kernels add reasons of their own: they call this method first.

        Args:
          needs_weights: what needs the array of attention weights, such as "attention_dropout=0.1"; "" if
            nothing does.
          bias: is added to the scores, or None.
        """
        if needs_weights:
            return f"{needs_weights} needs the attention weights, which a kernel does not store"
        if bias is not None:
            return "a bias is added to the scores"
        return self.mask_reason(mask)

    def mask_reason(self, mask: Mask) -> str:
        """Returns the reason why the kernel cannot express a mask, or an empty string if it can."""
        kinds = [type(part) for part in mask.parts]
        for part, kind in zip(mask.parts, kinds, strict=True):
            if kind not in self.EXPRESSES:
                return f"{self.NAME} cannot express the mask part {kind.__name__}"
            if kinds.count(kind) > 1:
                return f"{self.NAME} can express one mask part {kind.__name__}, not {kinds.count(kind)}"
            if reason := self.part_reason(part):
                return reason
        return ""

    def part_reason(self, part: MaskPart) -> str:
        """Returns the reason why a part of a type that the kernel expresses is impossible, or "".

        Here, an offset of a causal mask: kernels assume that queries and keys begin at the same position.
        """
        if isinstance(part, Causal) and not part.begins_at_zero:
            return f"{self.NAME} cannot express the mask part Causal with an offset"
        return ""

    def padded_shape(self, length: int, num_keys: int) -> tuple[int, int]:
        """Returns how many queries and keys the kernel computes scores of, with the padding of its blocks."""
        return length, num_keys

    def read_call(
        self, op_name: str, operands: Sequence[CallArray], results: Sequence[CallArray]
    ) -> tuple[str, int] | None:
        """Returns the element type and the operations of a call of this kernel in a compiled program.

        ``plan`` asks every kernel about every custom call that does not state its operations itself.

        Args:
          op_name: the path of the call in the traced function. The name of a Pallas kernel is part of it.
          operands, results: of the call.

        Returns:
          None if the call is not one of this kernel, or if calls of this kernel state their operations.
        """
        return None
