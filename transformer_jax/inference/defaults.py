"""Default settings of ``generate``, which apply to the arguments that a caller leaves out."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformer_jax.decoding.settings import OWN_RULES, DecodingSettings, TextRules

MAX_NEW_TOKENS = 128


class Chosen(NamedTuple):
    """Complete settings of ``TextGenerator``."""

    settings: DecodingSettings
    rules: TextRules
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """Default settings of ``generate``; the values below are those of this library's own runs.

    Attributes:
      beam_size: number of beams; 1 is greedy search. ``transformers`` calls it ``num_beams``.
      length_penalty: exponent of the length penalty of beam search.
      rules: further rules of search, and which tokens are forbidden or forced.
      max_new_tokens: maximum number of tokens of an output, eos included.
      do_sample: whether to sample.
      temperature, top_k, top_p: of sampling, also if only the caller asks for it; see ``DecodingSettings``.
      content: the keys that were read from ``generation_config.json``, to be written again; {} if there was
        no file.
    """

    beam_size: int = 1
    length_penalty: float = 0.6
    rules: TextRules = OWN_RULES
    max_new_tokens: int = MAX_NEW_TOKENS
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def chosen(
        self,
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        beam_size: int | None = None,
        length_penalty: float | None = None,
        early_stopping: bool | str | None = None,
        no_repeat_ngram_size: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Chosen:
        """Returns these settings with those of a caller that are not None.

        If the caller gives a beam size above 1 and no temperature, the result is a search; if a temperature
        and no beam size, the result samples; whatever the defaults are.

        Raises:
          ValueError: a value is outside its range, or it is for sampling and the result does not sample.
        """
        searches = beam_size is not None and beam_size > 1
        if temperature is None:
            temperature = self.temperature if self.do_sample and not searches else 0.0
        draws = temperature > 0
        if beam_size is None:
            beam_size = 1 if draws else self.beam_size
        settings = DecodingSettings(
            beam_size,
            self.length_penalty if length_penalty is None else length_penalty,
            temperature,
            (self.top_k if draws else 0) if top_k is None else top_k,
            (self.top_p if draws else 1.0) if top_p is None else top_p,
            0 if seed is None else seed,
        )
        beams, constraints = self.rules.beams, self.rules.constraints
        if early_stopping is not None:
            beams = dataclasses.replace(beams, early_stopping=early_stopping)
        if min_new_tokens is not None:
            constraints = dataclasses.replace(constraints, min_new_tokens=min_new_tokens, min_length=0)
        if no_repeat_ngram_size is not None:
            constraints = dataclasses.replace(constraints, no_repeat_ngram_size=no_repeat_ngram_size)
        max_length = self.rules.max_length if max_new_tokens is None else None
        longest = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        rules = dataclasses.replace(self.rules, beams=beams, constraints=constraints, max_length=max_length)
        return Chosen(settings, rules, longest)


RUN_DEFAULTS = GenerationDefaults()
