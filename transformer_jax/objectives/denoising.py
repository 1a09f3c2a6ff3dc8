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
    """Give back a text whose sentences were shuffled and whose spans were replaced by [MASK] (section 2.2).

    Text infilling: of n words, ``ceil(mask_rate * n)`` are cut out, in spans whose lengths are Poisson
    numbers (the last one is cut to fit), each replaced by one [MASK]; spans of no words insert one. As in
    the released fairseq code, words are counted, not tokens. Unlike there, spans never overlap, so that
    exactly as many words are cut out, and all places for them are equally likely. Inserted masks
    that would not fit ``max_length`` are left out.

    The inputs are "bos noise eos" and the targets "bos text eos", as in fairseq and Hugging Face, where
    the decoder starts from eos: ``model.decoder_start_id``. Texts that are too long are cut at line
    borders, lines that are too long at words. Where a sentence ends: ``cutting.sentence_starts``.

    Attributes:
      mask_rate: share of the words that are cut out.
      mean_span_length: words in a span, the mean of the Poisson distribution.
      permute_sentences: bring the sentences of a piece into random order before words are cut out.
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
        # The less, the more masks are inserted for a word that is cut out: e^-mean of the spans are empty.
        if not self.mean_span_length >= 1:
            raise ValueError(f"mean_span_length={self.mean_span_length} must be at least 1")

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """The text's tokens, with their words and which of them begin a line or a sentence."""
        text = example["inputs"]
        encoding = tokenizer.encode_with_places(text)
        return {
            "inputs": encoding.ids,
            "_words": encoding.words,
            "_starts_line": line_starts(text, encoding),
            "_starts_sentence": sentence_starts(text, encoding),
        }

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Noisy pieces, whose targets together are the text.

        Raises:
          ValueError: ``max_length`` has no room for bos, a token and eos, or the tokenizer lacks a role.
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
        """The tokens with spans of words replaced by masks: at most ``most`` in all."""
        bounds = np.append(np.flatnonzero(word_starts(words)), len(ids))  # of each word, in tokens
        num_words = len(bounds) - 1
        spans = span_lengths(int(np.ceil(self.mask_rate * num_words)), self.mean_span_length, rng)
        # What is left to arrange: words that stay, and spans, each at any place among them.
        is_span = np.zeros(num_words - spans.sum() + len(spans), bool)
        is_span[rng.choice(len(is_span), len(spans), replace=False)] = True
        lengths = np.ones(len(is_span), int)
        lengths[is_span] = rng.permutation(spans)  # else the one that was cut to fit would be the last
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
    """Poisson numbers, zeros among them, until they add up to ``total``; the last one is cut to fit."""
    lengths, left = [], total
    while left > 0:
        lengths.append(min(int(rng.poisson(mean)), left))
        left -= lengths[-1]
    return np.array(lengths, int)
