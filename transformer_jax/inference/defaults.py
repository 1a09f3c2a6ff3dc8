"""What ``generate`` does where a caller does not say."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformer_jax.decoding.settings import OWN_RULES, DecodingSettings, TextRules

MAX_NEW_TOKENS = 128


class Chosen(NamedTuple):
    """How to generate, complete; see ``inference.generate_texts``."""

    settings: DecodingSettings
    rules: TextRules
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """What ``generate`` does where a caller does not say: as made, what it does for a run of this project.

    Attributes:
      num_beams, length_penalty: of searching.
      rules: what else there is to say of searching, and of what may come.
      max_new_tokens: of an output, eos included.
      do_sample: whether to draw.
      temperature, top_k, top_p: of drawing, whoever asks for it; see ``generation.DecodingSettings``.
      content: keys of ``generation_config.json`` as they were read, to be written again; {} is no file.
    """

    num_beams: int = 1
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
        num_beams: int | None = None,
        length_penalty: float | None = None,
        early_stopping: bool | str | None = None,
        no_repeat_ngram_size: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Chosen:
        """These with what a caller says, who does not say what is None.

        Beams without a temperature search, and a temperature without beams draws, whatever is the default.

        Raises:
          ValueError: a value is outside its range, or one is for sampling and nothing is sampled.
        """
        searches = num_beams is not None and num_beams > 1
        if temperature is None:
            temperature = self.temperature if self.do_sample and not searches else 0.0
        draws = temperature > 0
        if num_beams is None:
            num_beams = 1 if draws else self.num_beams
        settings = DecodingSettings(
            num_beams,
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
        return Chosen(settings, TextRules(beams, constraints, max_length), longest)


RUN_DEFAULTS = GenerationDefaults()
