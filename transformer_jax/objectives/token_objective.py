"""The base class of objectives that predict every target token of a text with a decoder."""

import dataclasses
from typing import ClassVar

import jax

from transformer_jax.objectives.base import Apply, Objective, Rngs, Sums
from transformer_jax.objectives.losses import target_sums, token_metrics
from transformer_jax.types import SIDES, Batch, PyTree


@dataclasses.dataclass(frozen=True)
class TokenObjective(Objective):
    """Cross-entropy of the target tokens, each predicted from the targets before it.

    A subclass says in ``encode`` and ``pieces`` what the inputs and the targets are.

    Class attributes:
      ARGUMENTS: the sides of a batch that the model reads, and other keys, such as "images" for a front end
        that reads these. An encoder-decoder reads targets, of which each token is predicted from those
        before it.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity", "accuracy")
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ("accuracy",)
    FEATURES: ClassVar[tuple[str, ...]] = ("inputs",)
    HEADS: ClassVar[tuple[str, ...]] = ("tokens",)
    PARTS: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    ARGUMENTS: ClassVar[tuple[str, ...]] = SIDES

    @property
    def smoothing(self) -> float:
        """The label smoothing of the loss, see ``losses.smoothed_cross_entropy``."""
        return 0.0

    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Sums]:
        """Returns the (smoothed) cross-entropy over real target tokens, summed, in nats.

        Returns:
          The summed loss, and the sums ``loss``, ``nll`` (without smoothing), ``correct`` (tokens whose most
          probable prediction is right) and ``tokens``.
        """
        return target_sums(apply, params, batch, self.ARGUMENTS, rngs, self.smoothing, train=train)

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Returns ``loss``, ``nll``, ``perplexity`` and ``accuracy`` per real target token."""
        return token_metrics(sums)
