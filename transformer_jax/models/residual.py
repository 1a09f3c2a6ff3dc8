"""Residual strategies: how the sub-layers of a stack are combined with what comes before them.

A new strategy is one entry of ``RESIDUALS``, whose key is a value of ``config.residual``.
"""

from collections.abc import Callable
from typing import ClassVar, Literal, TypeAlias

from jaxtyping import Array, Float

from transformer_jax.layers.kept import keep
from transformer_jax.sharding.placement import constrain
from transformer_jax.types import PyTree

Function: TypeAlias = Callable[[Float[Array, "B L D"]], Float[Array, "B L D"]]


class Residual:
    """One residual stream: ``Norm(x + Dropout(sublayer(x)))`` or ``x + Dropout(sublayer(Norm(x)))``.

    A strategy may carry another state than ``x`` from sub-layer to sub-layer, such as two streams. Then it
    overrides all three methods, and ``WIDTH``.

    Attributes:
      WIDTH: size of the output of ``end``, as a multiple of d_model.
      norm_position: "post" (Vaswani et al. 2017, section 3.1) or "pre" (Xiong et al. 2020).
    """

    WIDTH: ClassVar[int] = 1

    def __init__(self, norm_position: Literal["post", "pre"]) -> None:
        self.norm_position = norm_position

    def begin(self, x: Float[Array, "B L D"]) -> PyTree:
        """Returns the state before the first sub-layer, given the input of the stack."""
        return x

    def add(self, state: PyTree, sublayer: Function, norm: Function, dropout: Function) -> PyTree:
        """Returns the state after a sub-layer.

        Args:
          state: the state before the sub-layer.
          sublayer: attention or feed-forward network. It must be called exactly once.
          norm: the norm of the sub-layer.
          dropout: dropout for the output of the sub-layer.
        """
        if self.norm_position == "pre":
            state = keep(state + dropout(sublayer(norm(state))))
        else:
            state = norm(keep(state + dropout(sublayer(state))))
        return constrain(state, "batch", "sequence", None)

    def end(self, state: PyTree) -> Float[Array, "B L E"]:
        """Returns the output of the stack, before its last norm, given the state after the last sub-layer."""
        return state


RESIDUALS: dict[str, type[Residual]] = {"plain": Residual}
