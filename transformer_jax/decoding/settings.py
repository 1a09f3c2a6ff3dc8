"""How a next token is chosen: settings of searching and sampling, and the rules beside them."""

import dataclasses

from transformer_jax.decoding.beam_rules import WU_RULE, BeamRule
from transformer_jax.decoding.constraints import UNCONSTRAINED, Constraints


@dataclasses.dataclass(frozen=True)
class DecodingSettings:
    """How a next token is chosen: beam search, or sampling with a ``temperature`` above 0."""

    beam_size: int = 4  # 1 is greedy search
    length_penalty: float = 0.6  # alpha of Wu et al. 2016, equation 14
    temperature: float = 0.0  # above 0 samples instead of searching
    top_k: int = 0  # sampling: from the so many most probable tokens; 0 is all
    top_p: float = 1.0  # sampling: from the most probable tokens of at least this mass
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ValueError(f"beam_size={self.beam_size} must be at least 1")
        for name in ("temperature", "top_k", "seed"):
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to 2**31 - 1")
        if not -5 <= self.length_penalty <= 5:
            raise ValueError(f"length_penalty={self.length_penalty} must be from -5 to 5")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p are for sampling: set temperature above 0, say 1")


@dataclasses.dataclass(frozen=True)
class TextRules:
    """What ``DecodingSettings`` leave open. Runs have the defaults, checkpoints what comes with them.

    Attributes:
      beams: how beam search ranks and stops.
      constraints: what may come next.
      max_length: tokens of an output with what was given, at most: a prompt, or the one start token of a
        decoder that has an encoder; None is as many as there is room for.
    """

    beams: BeamRule = WU_RULE
    constraints: Constraints = UNCONSTRAINED
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} must be at least 2, for what is given counts")


OWN_RULES = TextRules()  # of runs
