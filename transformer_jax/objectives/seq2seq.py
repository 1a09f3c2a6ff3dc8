"""Sequence to sequence with teacher forcing, as in Vaswani et al. 2017."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from transformer_jax.objectives.token_objective import TokenObjective
from transformer_jax.types import CUT, SIDES, Drawing, Encoder, Example, TokenExample


@dataclasses.dataclass(frozen=True)
class Seq2Seq(TokenObjective):
    """Predict each target token from the source and the target tokens before it.

    Attributes:
      label_smoothing: epsilon_ls of section 5.4.
      cut_long: keep the beginning of inputs that are longer than ``max_length``, and count these inputs, as
        the released BART reads articles. If False, training leaves such pairs out and counts them, and
        evaluation raises an error for inputs that are longer than the model's sequences.
    """

    FEATURES: ClassVar[tuple[str, ...]] = SIDES
    PREDICTOR: ClassVar[str] = "translations"

    name: Literal["seq2seq"] = "seq2seq"
    label_smoothing: float = 0.1
    cut_long: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be in [0, 1)")

    @property
    def may_cut(self) -> bool:
        """Whether inputs that are too long are cut and scored: ``cut_long``."""
        return self.cut_long

    @property
    def smoothing(self) -> float:
        """The label smoothing of the loss: ``label_smoothing``."""
        return self.label_smoothing

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Returns both sides with the special tokens that the tokenizer adds to a text, at least eos."""
        source, target = (example[side] for side in SIDES)
        encoded = (tokenizer.encode_whole(source), tokenizer.targets.encode_whole(target))
        return dict(zip(SIDES, encoded, strict=True))

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Returns the pair; its inputs are cut if ``cut_long`` says so and they are too long."""
        inputs, max_length = tokens["inputs"], context.max_length
        if not self.cut_long or len(inputs) <= max_length:
            return [tokens]
        cut = np.append(inputs[: max_length - 1], inputs[-1:])  # the last token, eos, is kept
        return [{**tokens, "inputs": cut, CUT: np.array(len(inputs) - max_length)}]
