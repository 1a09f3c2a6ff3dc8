"""Causal language modelling, as in GPT-2 (Radford et al. 2019)."""

import dataclasses
from typing import ClassVar, Literal

import jax
import numpy as np

from transformer_jax.config import check_types
from transformer_jax.objectives.base import Apply, Rngs, Sums
from transformer_jax.objectives.cutting import cut_evenly
from transformer_jax.objectives.losses import target_sums, token_metrics
from transformer_jax.types import Batch, Drawing, Encoder, Example, PyTree, TokenExample


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Predict each token of a document from those before it.

    A document ends in eos, and its first token is predicted from an eos, as if from the end of the
    document before: GPT-2 puts one <|endoftext|> between documents. Longer documents are cut; a piece
    after the first one is predicted from the token before it, but sees no more of what was cut off.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity", "accuracy")
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ("accuracy",)
    FEATURES: ClassVar[tuple[str, ...]] = ("inputs",)

    name: Literal["causal_lm"] = "causal_lm"

    def __post_init__(self) -> None:
        check_types(self, "objective")

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """The document's tokens and eos."""
        return {"inputs": np.append(tokenizer.encode(example["inputs"]), np.int32(tokenizer.id_of("eos")))}

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Pieces in which every token is a target once; where they begin, see ``cut_evenly``."""
        targets = tokens["inputs"]
        inputs = np.append(targets[-1:], targets[:-1])  # the eos at the end goes first
        borders = cut_evenly(len(targets), context.max_length, context.rng, context.train)
        return [{"inputs": inputs[i:j], "targets": targets[i:j]} for i, j in borders]

    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Sums]:
        """Cross-entropy over real targets, summed, in nats, and the sums of ``losses.token_sums``."""
        return target_sums(apply, params, batch, ("inputs",), rngs, 0.0, train=train)

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Per token: ``loss`` and ``nll`` (the same), ``perplexity`` and ``accuracy``."""
        return token_metrics(sums)
