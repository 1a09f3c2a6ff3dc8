"""Causal language modelling, as in GPT-2 (Radford et al. 2019)."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from transformer_jax.objectives.cutting import cut_evenly
from transformer_jax.objectives.token_objective import TokenObjective
from transformer_jax.types import Drawing, Encoder, Example, TokenExample


@dataclasses.dataclass(frozen=True)
class CausalLM(TokenObjective):
    """Predict each token of a document from the tokens before it.

    A document ends in eos. Its first token is predicted from an eos, as if another document ended before it:
    GPT-2 separates documents by one <|endoftext|>. Longer documents are cut. The first token of a later piece
    is predicted from the last token of the piece before it, and from nothing else of that piece.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("decoder",)
    ARGUMENTS: ClassVar[tuple[str, ...]] = ("inputs",)
    PROMPT_START: ClassVar[tuple[str, ...]] = ("eos",)

    name: Literal["causal_lm"] = "causal_lm"

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Returns the document's tokens and eos."""
        return {"inputs": np.append(tokenizer.encode(example["inputs"]), np.int32(tokenizer.id_of("eos")))}

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Returns pieces in which every token is a target once; ``cut_evenly`` chooses the borders."""
        targets = tokens["inputs"]
        inputs = np.append(targets[-1:], targets[:-1])  # moves the final eos to the front
        borders = cut_evenly(len(targets), context.max_length, context.rng, context.train)
        return [{"inputs": inputs[i:j], "targets": targets[i:j]} for i, j in borders]
