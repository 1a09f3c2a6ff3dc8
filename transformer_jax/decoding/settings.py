"""How the next token is chosen: the settings of search and sampling, and the rules that go with them."""

import dataclasses

from transformer_jax.decoding.beam_rules import WU_RULE, BeamRule
from transformer_jax.decoding.constraints import UNCONSTRAINED, Constraints


@dataclasses.dataclass(frozen=True)
class DecodingSettings:
    """Chooses beam search, or sampling if ``temperature`` is above 0."""

    beam_size: int = 4  # 1 is greedy search
    length_penalty: float = 0.6  # alpha of Wu et al. 2016, equation 14
    temperature: float = 0.0  # above 0 samples instead of searching
    top_k: int = 0  # sampling: draw from this number of most probable tokens; 0 is all
    top_p: float = 1.0  # sampling: draw from the most probable tokens with at least this probability mass
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
            raise ValueError("top_k and top_p are for sampling: set temperature above 0, such as 1")

    @property
    def decoding(self) -> "DecodingSettings":
        """These settings alone, without what a subclass adds."""
        return DecodingSettings(**{name: getattr(self, name) for name in DECODING_FIELDS})


DECODING_FIELDS = tuple(field.name for field in dataclasses.fields(DecodingSettings))


@dataclasses.dataclass(frozen=True)
class TextRules:
    """What ``DecodingSettings`` leave open. Runs have the defaults; checkpoints bring their own.

    Attributes:
      beams: how beam search ranks hypotheses, and when it stops.
      constraints: which tokens are forbidden or forced.
      max_length: maximum number of tokens of an output together with what precedes it: a prompt, or the start
        token of a decoder with an encoder and its prompt. None means as many as the model has room for.
      decoder_prompt: tokens that every output of an encoder-decoder continues, after the start token. Whisper
        names its task with such tokens, and mBART its language.
    """

    beams: BeamRule = WU_RULE
    constraints: Constraints = UNCONSTRAINED
    max_length: int | None = None
    decoder_prompt: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"max_length={self.max_length} must be at least 2, because the prompt or start token counts"
            )

    def check(self, vocab_size: int) -> None:
        """Raises ValueError if the rules name a token that a model with ``vocab_size`` tokens does not
        have."""
        self.constraints.check(vocab_size)
        for token in self.decoder_prompt:
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"decoder_prompt has the token {token}, the model those from 0 to {vocab_size - 1}"
                )


OWN_RULES = TextRules()  # of runs
