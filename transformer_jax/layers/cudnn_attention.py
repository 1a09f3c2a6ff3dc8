"""Attention on NVIDIA GPUs by cuDNN, through JAX."""

import functools

import jax
from jaxtyping import Array, Float

from transformer_jax.layers.kernel import Kernel
from transformer_jax.layers.masks import Causal, Mask, Segments
from transformer_jax.sharding.placement import current_placement


class CudnnAttention(Kernel):
    """Runs cuDNN's attention.

    A causal mask costs nothing. Segments become an array (B, 1, L, S), which all heads share. JAX itself
    splits rows and heads over a mesh.
    """

    NAME = "cudnn"
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
        """As ``Kernel.obstacle``; the cuDNN of this process has to accept the arrays and their gradients."""
        if reason := super().obstacle(query, key, value, mask, needs_weights=needs_weights, bias=bias):
            return reason
        placement = current_placement()
        if placement is not None and placement.parts("sequence") > 1:
            return "cuDNN: queries are split over the mesh"

        def with_gradient(query, key, value):
            output, pullback = jax.vjp(functools.partial(self, mask=mask), query, key, value)
            return pullback(output)

        try:
            jax.eval_shape(with_gradient, query, key, value)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            return reason if reason.startswith("cuDNN") else f"cuDNN: {reason}"
        return ""

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
        """Computes the attention for ``__call__``.

        Raises:
          ValueError: ``interpret`` is True.
        """
        if interpret:
            raise ValueError("cuDNN runs on GPUs only; on a CPU use mesh.attention='auto' or 'plain'")
        segments = mask.part(Segments)
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=None if segments is None else segments.to_array(query.shape[1], key.shape[1]),
            scale=None if scale else 1.0,
            is_causal=mask.has(Causal),
            implementation="cudnn",
        )
