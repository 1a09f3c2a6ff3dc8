"""Sequence to sequence with teacher forcing, as in Vaswani et al. 2017."""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import check_types
from transformer_jax.objectives.base import Apply, Drawing, Encoder, Sums
from transformer_jax.objectives.losses import smoothed_cross_entropy
from transformer_jax.types import BATCH_KEYS, SIDES, Batch, Example, PyTree, TokenExample


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """Predict each target token from the source and the target tokens before it.

    Attributes:
      label_smoothing: epsilon_ls of section 5.4.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity", "accuracy")
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ("accuracy",)
    FEATURES: ClassVar[tuple[str, ...]] = SIDES

    name: Literal["seq2seq"] = "seq2seq"
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_types(self, "objective")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be in [0, 1)")

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Both sides as tokens that end in eos."""
        eos = np.int32(tokenizer.id_of("eos"))
        return {side: np.append(tokenizer.encode(example[side]), eos) for side in SIDES}

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """The pair as it is."""
        return [tokens]

    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        """Label-smoothed cross-entropy over real target tokens, summed, in nats.

        Returns:
          The sum, and the sums ``loss``, ``nll`` (without smoothing), ``correct`` (tokens whose most
          probable prediction is right), ``tokens``.
        """
        rngs = None if rng is None else {"dropout": rng}
        logits = apply(
            {"params": params}, **{key: batch[key] for key in BATCH_KEYS}, train=rng is not None, rngs=rngs
        )
        targets = jnp.asarray(batch["targets"])
        losses = smoothed_cross_entropy(logits, targets, self.label_smoothing)
        weights = (jnp.asarray(batch["targets_segments"]) > 0).astype(jnp.float32)
        loss = jnp.sum(losses.loss * weights)
        sums = {
            "loss": loss,
            "nll": jnp.sum(losses.nll * weights),
            "correct": jnp.sum(losses.is_correct * weights),
        }
        return loss, sums | {"tokens": jnp.sum(weights)}

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Per real target token: ``loss`` (smoothed), ``nll``, ``perplexity`` and ``accuracy``."""
        tokens = sums["tokens"]
        nll = sums["nll"] / tokens
        return {
            "loss": sums["loss"] / tokens,
            "nll": nll,
            "perplexity": math.inf if nll >= 700 else math.exp(nll),  # e^700 ends float64; NaN stays
            "accuracy": sums["correct"] / tokens,
        }
