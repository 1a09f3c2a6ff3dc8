"""Span corruption, the objective of T5 (Raffel et al. 2020)."""

import dataclasses
import functools
from typing import Literal

import numpy as np
from jaxtyping import Bool

from transformer_jax.objectives.cutting import check_room, cut_evenly
from transformer_jax.objectives.token_objective import TokenObjective
from transformer_jax.types import Drawing, Encoder, Example, TokenExample


@dataclasses.dataclass(frozen=True)
class SpanCorruption(TokenObjective):
    """Predict the spans that were cut out of a text (section 3.1.4).

    Each span is replaced by a sentinel of its own, and the targets are the spans, each after its sentinel.
    For example, the targets of "Thank you <X> me to your party <Y> week" are "<X> for inviting <Y> last". The
    paper's Table 3 has one more sentinel before eos, but the released preprocessing does not write it, and
    neither does this class. Both sides end in eos.

    A text is cut into pieces that are as long as their inputs fit ``max_length``: with the defaults, 568
    tokens become 512. The first border is drawn anew at every visit. Unlike in the release, short texts are
    not joined; packed batches do that.

    Attributes:
      noise_density: fraction of the tokens that are cut out.
      mean_span_length: mean number of tokens in a span.
    """

    name: Literal["span_corruption"] = "span_corruption"
    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise_density < 1:
            raise ValueError(f"noise_density={self.noise_density} must be above 0 and below 1")
        if not self.mean_span_length >= 1:
            raise ValueError(f"mean_span_length={self.mean_span_length} must be at least 1")

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Returns the text's tokens."""
        return {"inputs": tokenizer.encode(example["inputs"])}

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Returns corrupted pieces that together contain every token of the text once.

        Raises:
          ValueError: the tokenizer has fewer sentinels than a full piece has spans, or ``max_length``
            has no room for a sentinel, a token and eos.
        """
        check_room(context.max_length, 3)
        sentinels = np.array(context.tokenizer.sentinels, np.int32)
        most = raw_length(context.max_length, self.noise_density, self.mean_span_length)
        spans = noise_counts(most, self.noise_density, self.mean_span_length)[1]
        if spans > len(sentinels):
            raise ValueError(
                f"the tokenizer has {len(sentinels)} sentinels (<extra_id_0>, …), but pieces of "
                f"data.max_length={context.max_length} tokens have up to {spans} spans: lower "
                "data.max_length, raise objective.mean_span_length or use another tokenizer"
            )
        ids, found = tokens["inputs"], []
        eos = np.int32(context.tokenizer.id_of("eos"))
        for start, stop in cut_evenly(len(ids), most, context.rng, context.train):
            is_noise = noise_mask(stop - start, self.noise_density, self.mean_span_length, context.rng)
            inputs, targets = (
                _with_sentinels(ids[start:stop], is_cut, sentinels) for is_cut in (is_noise, ~is_noise)
            )
            found.append({"inputs": np.append(inputs, eos), "targets": np.append(targets, eos)})
        return found


def noise_counts(length: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """Returns how many of ``length`` tokens (at least two) are noise, and how many spans they form.

    Both numbers are rounded and at least 1. At least one token is text, and there is text before every span.
    """
    tokens = min(max(round(length * noise_density), 1), length - 1)
    spans = max(round(tokens / mean_span_length), 1)
    return tokens, min(spans, tokens, length - tokens)


def noise_mask(
    length: int, noise_density: float, mean_span_length: float, rng: np.random.Generator
) -> Bool[np.ndarray, "n"]:
    """Returns which tokens are noise: text and spans alternate, text first, with random lengths.

    All divisions into as many parts are equally likely. A single token is text, as in the released code.
    """
    if length < 2:
        return np.zeros(length, bool)
    tokens, spans = noise_counts(length, noise_density, mean_span_length)
    lengths = np.empty(2 * spans, int)
    lengths[0::2] = _split(length - tokens, spans, rng)
    lengths[1::2] = _split(tokens, spans, rng)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


@functools.cache
def raw_length(max_length: int, noise_density: float, mean_span_length: float) -> int:
    """Returns the largest length of a text whose sides, with sentinels and eos, fit ``max_length``."""
    length = 2
    while True:
        tokens, spans = noise_counts(length + 1, noise_density, mean_span_length)
        if max(length + 1 - tokens, tokens) + spans + 1 > max_length:
            return length
        length += 1


def _split(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Returns random positive integers that add up to ``total``; all such lists are equally likely."""
    borders = 1 + np.sort(rng.choice(total - 1, parts - 1, replace=False))
    return np.diff(borders, prepend=0, append=total)


def _with_sentinels(ids: np.ndarray, is_cut: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Returns the tokens with the n-th run of cut tokens replaced by the n-th sentinel."""
    begins = is_cut & ~np.append(False, is_cut[:-1])
    found = ids.copy()
    found[begins] = sentinels[: begins.sum()]
    return found[~is_cut | begins]
