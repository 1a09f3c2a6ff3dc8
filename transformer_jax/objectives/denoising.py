"""Denoising, the objective of BART (Lewis et al. 2020)."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int

from transformer_jax.objectives.cutting import (
    check_room,
    cut_at_borders,
    line_starts,
    sentence_starts,
    word_starts,
)
from transformer_jax.objectives.token_objective import TokenObjective
from transformer_jax.types import Drawing, Encoder, Example, TokenExample


@dataclasses.dataclass(frozen=True)
class Denoising(TokenObjective):
    """Restore a text whose sentences were shuffled and whose spans were replaced by [MASK] (section 2.2).

    Text infilling cuts ``ceil(mask_rate * n)`` of n words out, in spans that are each replaced by one [MASK].
    The lengths of spans are Poisson numbers, of which the last is reduced to fit; a span of no words inserts
    a [MASK]. As in the released fairseq code, lengths count words, not tokens. Unlike there, spans never
    overlap, so that exactly this number of words is cut out, and all places for spans are equally likely.
    Inserted masks that would not fit ``max_length`` are omitted.

    The inputs are "bos noise eos" and the targets "bos text eos", as in fairseq and Hugging Face's code.
    There the decoder starts from eos, which ``model.decoder_start_id`` sets. Texts that are too long are cut
    at the ends of lines, and lines that are too long at the ends of words. ``cutting.sentence_starts``
    defines sentences.

    Attributes:
      mask_rate: fraction of the words that are cut out.
      mean_span_length: mean number of words in a span, of the Poisson distribution.
      permute_sentences: shuffle the sentences of a piece before words are cut out.
    """

    PREDICTOR: ClassVar[str] = "reconstructions"

    name: Literal["denoising"] = "denoising"
    mask_rate: float = 0.3
    mean_span_length: float = 3.0
    permute_sentences: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_rate <= 1:
            raise ValueError(f"mask_rate={self.mask_rate} must be from 0 to 1")
        # A fraction e^-mean of the spans is empty; a small mean would insert many masks.
        if not self.mean_span_length >= 1:
            raise ValueError(f"mean_span_length={self.mean_span_length} must be at least 1")

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Returns the text's tokens, the number of each one's word, and which begin a line or a sentence."""
        text = example["inputs"]
        encoding = tokenizer.encode_with_places(text)
        return {
            "inputs": encoding.ids,
            "_words": encoding.words,
            "_starts_line": line_starts(text, encoding),
            "_starts_sentence": sentence_starts(text, encoding),
        }

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Returns noisy pieces whose targets together are the text.

        Raises:
          ValueError: ``max_length`` has no room for bos, a token and eos, or the tokenizer lacks one of bos,
            eos and mask.
        """
        check_room(context.max_length, 3)
        bos, eos, mask = (np.int32(context.tokenizer.id_of(role)) for role in ("bos", "eos", "mask"))
        most, found = context.max_length - 2, []
        words_begin = word_starts(tokens["_words"])
        for start, stop in cut_at_borders(most, tokens["_starts_line"], words_begin):
            ids, words = (tokens[key][start:stop] for key in ("inputs", "_words"))
            order = np.arange(stop - start)
            if self.permute_sentences:
                borders = np.flatnonzero(tokens["_starts_sentence"][start:stop])
                sentences = np.split(order, borders[borders > 0])
                order = np.concatenate([sentences[i] for i in context.rng.permutation(len(sentences))])
            noisy = self._infill(ids[order], words[order], mask, most, context.rng)
            inputs, targets = (np.concatenate([[bos], side, [eos]]) for side in (noisy, ids))
            found.append({"inputs": inputs.astype(np.int32), "targets": targets.astype(np.int32)})
        return found

    def _infill(
        self, ids: np.ndarray, words: np.ndarray, mask: np.int32, most: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the tokens with spans of words replaced by masks; at most ``most`` tokens."""
        bounds = np.append(np.flatnonzero(word_starts(words)), len(ids))  # borders of the words, in tokens
        num_words = len(bounds) - 1
        spans = span_lengths(int(np.ceil(self.mask_rate * num_words)), self.mean_span_length, rng)
        # The remaining words and the spans are arranged in random order.
        is_span = np.zeros(num_words - spans.sum() + len(spans), bool)
        is_span[rng.choice(len(is_span), len(spans), replace=False)] = True
        lengths = np.ones(len(is_span), int)
        lengths[is_span] = rng.permutation(spans)  # otherwise the span that was reduced would come last
        parts, inserted, word = [], [], 0
        for is_cut, length in zip(is_span, lengths, strict=True):
            if length == 0:
                inserted.append(len(parts))
            parts.append([mask] if is_cut else ids[bounds[word] : bounds[word + 1]])
            word += length
        too_many = max(0, sum(map(len, parts)) - most)
        left_out = set(rng.permutation(np.array(inserted, int))[:too_many].tolist())
        return np.concatenate([part for place, part in enumerate(parts) if place not in left_out])


def span_lengths(total: int, mean: float, rng: np.random.Generator) -> Int[np.ndarray, "spans"]:
    """Returns Poisson numbers, which may be 0, that add up to ``total``; the last is reduced to fit."""
    lengths, left = [], total
    while left > 0:
        lengths.append(min(int(rng.poisson(mean)), left))
        left -= lengths[-1]
    return np.array(lengths, int)
