"""Sequence to sequence with teacher forcing, as in Vaswani et al. 2017."""

import dataclasses
from typing import ClassVar, Literal

import jax
import numpy as np

from transformer_jax.config import check_types
from transformer_jax.objectives.base import Apply, Rngs, Sums
from transformer_jax.objectives.losses import teacher_forced, token_metrics
from transformer_jax.types import CUT, SIDES, Batch, Drawing, Encoder, Example, PyTree, TokenExample


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """Predict each target token from the source and the target tokens before it.

    Attributes:
      label_smoothing: epsilon_ls of section 5.4.
      cut_long: keep the beginning of inputs that are longer than ``max_length``, and count them, as the
        released BART reads articles. Otherwise such pairs are not trained on, which is counted too, and
        evaluation refuses those that are longer than the model takes.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity", "accuracy")
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ("accuracy",)
    FEATURES: ClassVar[tuple[str, ...]] = SIDES

    name: Literal["seq2seq"] = "seq2seq"
    label_smoothing: float = 0.1
    cut_long: bool = False

    def __post_init__(self) -> None:
        check_types(self, "objective")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be in [0, 1)")

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Both sides with the special tokens that the tokenizer's file puts around a text, at least eos."""
        source, target = (example[side] for side in SIDES)
        encoded = (tokenizer.encode_whole(source), tokenizer.targets.encode_whole(target))
        return dict(zip(SIDES, encoded, strict=True))

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """The pair, as it is or with its inputs cut."""
        inputs, most = tokens["inputs"], context.max_length
        if not self.cut_long or len(inputs) <= most:
            return [tokens]
        kept = np.append(inputs[: most - 1], inputs[-1:])  # eos stays
        return [{**tokens, "inputs": kept, CUT: np.array(len(inputs) - most)}]

    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Sums]:
        """Label-smoothed cross-entropy over real target tokens, summed, in nats.

        Returns:
          The sum, and the sums ``loss``, ``nll`` (without smoothing), ``correct`` (tokens whose most
          probable prediction is right), ``tokens``.
        """
        return teacher_forced(apply, params, batch, rngs, self.label_smoothing, train=train)

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Per real target token: ``loss`` (smoothed), ``nll``, ``perplexity`` and ``accuracy``."""
        return token_metrics(sums)
