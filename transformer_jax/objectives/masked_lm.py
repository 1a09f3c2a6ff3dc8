"""Masked language modelling and next-sentence prediction, as in BERT (Devlin et al. 2019)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from transformer_jax.objectives.base import Apply, ModelFacts, Objective, Rngs, Sums
from transformer_jax.objectives.calls import run_model, side_arrays
from transformer_jax.objectives.cutting import check_room, cut_at_borders, line_starts, next_cut, word_starts
from transformer_jax.objectives.losses import (
    smoothed_cross_entropy,
    target_weights,
    token_metrics,
    token_sums,
)
from transformer_jax.objectives.special_tokens import random_ids, special_ids
from transformer_jax.types import Batch, Drawing, Encoder, Example, PyTree, TokenExample

FOLLOWS, RANDOM = 0, 1  # labels of next-sentence prediction, as in the released BERT


class _Span(NamedTuple):
    ids: np.ndarray
    words: np.ndarray


@dataclasses.dataclass(frozen=True)
class MaskedLM(Objective):
    """Predict randomly chosen tokens of a text, most of which are masked.

    ``max(1, round(mask_rate * n))`` tokens of a piece of n tokens are chosen. As in the released BERT, n
    counts [CLS] and [SEP], but special tokens are never chosen. A chosen token is replaced by a random token
    with probability ``random_rate``, is kept with probability ``keep_rate``, and is replaced by [MASK]
    otherwise (section 3.1 and appendix A.1). Unlike in the release, random tokens are never special ones.

    If ``next_sentence`` is set, a piece is "[CLS] a [SEP] b [SEP]" with types 0 and 1. With probability one
    half, b follows a in the text (label 0). Otherwise b is a span of another example (label 1), and the next
    piece starts in the text after a. If only one token of the text is left, b is always of another example.
    Unlike in the release, pieces are cut and masked anew at every visit, and none are shortened at random.

    The special tokens around texts are those of the tokenizer's template, such as RoBERTa's "<s> a </s>".
    Texts are cut at the ends of lines, and lines that are too long at the ends of words.

    Attributes:
      mask_rate: fraction of the tokens that are chosen.
      random_rate: fraction of the chosen tokens that are replaced by a random token.
      keep_rate: fraction of the chosen tokens that are kept.
      whole_words: choose all tokens of a word or none, see ``choose_words``.
      next_sentence: also predict whether b follows a; needs a model with the head "pretraining".
    """

    METRICS: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity", "accuracy", "next_sentence_accuracy")
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ("accuracy", "next_sentence_accuracy")
    FEATURES: ClassVar[tuple[str, ...]] = ("inputs",)
    HEADS: ClassVar[tuple[str, ...]] = ("masked_tokens", "pretraining")
    PARTS: ClassVar[tuple[str, ...]] = ("encoder",)

    name: Literal["masked_lm"] = "masked_lm"
    mask_rate: float = 0.15
    random_rate: float = 0.1
    keep_rate: float = 0.1
    whole_words: bool = False
    next_sentence: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_rate <= 1:
            raise ValueError(f"mask_rate={self.mask_rate} must be above 0 and at most 1")
        for name in ("random_rate", "keep_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to 1")
        if self.random_rate + self.keep_rate > 1:
            raise ValueError(
                f"random_rate={self.random_rate} and keep_rate={self.keep_rate} must add up to at most 1"
            )

    @property
    def heads(self) -> tuple[str, ...]:
        """The head that can be trained: "pretraining" with ``next_sentence``, else "masked_tokens"."""
        return ("pretraining",) if self.next_sentence else ("masked_tokens",)

    @property
    def num_token_types(self) -> int:
        """2 with ``next_sentence``, whose pieces are pairs of texts; else 0."""
        return 2 if self.next_sentence else 0

    def unmeasured(self, model: ModelFacts) -> Mapping[str, str]:
        """Returns ``next_sentence_accuracy`` unless ``next_sentence`` is set."""
        if self.next_sentence:
            return {}
        return {"next_sentence_accuracy": "it needs config.objective.next_sentence=True"}

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Returns the text's tokens, the number of each one's word, and which of them begin a line."""
        text = example["inputs"]
        encoding = tokenizer.encode_with_places(text)
        lines = line_starts(text, encoding)
        return {"inputs": encoding.ids, "_words": encoding.words, "_starts_line": lines}

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Returns masked pieces in which every token of the text occurs once, see the class.

        Raises:
          ValueError: ``max_length`` has no room for special tokens and a text, or the tokenizer lacks a
            special token.
        """
        num_texts = 2 if self.next_sentence else 1
        template = context.tokenizer.template(num_texts)
        around = np.concatenate(template)
        check_room(context.max_length, len(around) + num_texts)
        room, special = context.max_length - len(around), np.union1d(special_ids(context.tokenizer), around)
        if self.next_sentence:
            return [
                {**self._piece((a, b), template, context, special), "labels": np.array(label, np.int32)}
                for a, b, label in _pairs(tokens, context, room)
            ]
        borders = cut_at_borders(room, *_starts(tokens))
        return [self._piece((_span(tokens, i, j),), template, context, special) for i, j in borders]

    def _piece(
        self,
        spans: tuple[_Span, ...],
        template: tuple[np.ndarray, ...],
        context: Drawing,
        special: np.ndarray,
    ) -> TokenExample:
        before, *after = template
        targets, words, types = [before], [np.full(len(before), -1)], [np.zeros(len(before), np.int32)]
        for number, (span, end) in enumerate(zip(spans, after, strict=True)):
            targets += [span.ids, end]
            # Words of a and b are both counted from 0. Even and odd numbers keep them apart.
            words += [span.words * len(spans) + number, np.full(len(end), -1)]
            types.append(np.full(len(span.ids) + len(end), number, np.int32))
        original = np.concatenate(targets).astype(np.int32)
        may_be_chosen = ~np.isin(original, special)
        count = max(1, round(self.mask_rate * len(original)))
        words = np.concatenate(words) if self.whole_words else np.arange(len(original))
        chosen = choose_words(words, may_be_chosen, count, context.rng)
        found = {
            "inputs": self._corrupt(original, chosen, context, special),
            "targets": original,
            "targets_weights": chosen.astype(np.int32),
        }
        return found | ({"inputs_types": np.concatenate(types)} if len(spans) > 1 else {})

    def _corrupt(
        self, original: np.ndarray, chosen: np.ndarray, context: Drawing, special: np.ndarray
    ) -> np.ndarray:
        inputs = original.copy()
        places = np.flatnonzero(chosen)
        fate = context.rng.random(len(places))
        at_random = fate < self.random_rate
        kept = (fate >= self.random_rate) & (fate < self.random_rate + self.keep_rate)
        others = random_ids(int(at_random.sum()), context.tokenizer.vocab_size, special, context.rng)
        inputs[places[at_random]] = others
        inputs[places[~at_random & ~kept]] = context.tokenizer.id_of("mask")
        return inputs

    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Sums]:
        """Returns the cross-entropy over the chosen tokens plus that of next-sentence prediction, summed.

        The paper adds a mean over tokens and a mean over examples. Here the loss must be one sum that can be
        added over micro-batches, and that is divided by ``tokens``, the number of chosen tokens. Therefore an
        example's next-sentence loss is counted once for each of its chosen tokens. The result is the paper's
        loss if all examples have the same number of chosen tokens, as full pieces do.

        Returns:
          The summed loss, and the sums ``loss``, ``tokens``, ``nll`` and ``correct``, of which the last two
          are of chosen tokens only. Next-sentence prediction adds ``next_sentence_correct`` and ``examples``.
        """
        found = run_model(apply, params, side_arrays(batch, "inputs"), rngs, train=train)
        logits, next_logits = found if self.next_sentence else (found, None)
        weights = target_weights(batch)
        losses = smoothed_cross_entropy(logits, jnp.asarray(batch["targets"]), 0.0)
        loss, sums = token_sums(losses, weights)
        if next_logits is None:
            return loss, sums
        labels = jnp.asarray(batch["labels"])
        is_example = (labels >= 0).astype(jnp.float32)
        following = smoothed_cross_entropy(next_logits[:, None], jnp.maximum(labels, 0)[:, None], 0.0)
        loss += jnp.sum(jnp.sum(weights, axis=1) * is_example * following.loss[:, 0])
        return loss, sums | {
            "loss": loss,
            "next_sentence_correct": jnp.sum(following.is_correct[:, 0] * is_example),
            "examples": jnp.sum(is_example),
        }

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Returns ``loss`` (of both tasks), ``nll``, ``perplexity`` and ``accuracy`` per chosen token.

        Next-sentence prediction adds ``next_sentence_accuracy`` per example.
        """
        found = token_metrics(sums)
        if self.next_sentence:
            found["next_sentence_accuracy"] = sums["next_sentence_correct"] / sums["examples"]
        return found


def choose_words(
    words: Int[np.ndarray, "n"], may_be_chosen: Bool[np.ndarray, "n"], count: int, rng: np.random.Generator
) -> Bool[np.ndarray, "n"]:
    """Returns about ``count`` chosen tokens, of each word all or none.

    Goes through the words in random order and chooses each word that does not exceed ``count`` tokens in
    total. The first word is chosen even if it is longer. If every word is one token, exactly ``count`` tokens
    are chosen (or all, if there are fewer), and all sets of them are equally likely.
    """
    numbers, word_of = np.unique(words, return_inverse=True)
    sizes = np.bincount(word_of, weights=may_be_chosen, minlength=len(numbers)).astype(int)
    is_chosen = np.zeros(len(numbers), bool)
    total = 0
    for word in rng.permutation(np.flatnonzero(sizes)):
        if total == 0 or total + sizes[word] <= count:
            is_chosen[word] = True
            total += sizes[word]
        if total >= count:
            break
    return is_chosen[word_of] & may_be_chosen


def _starts(tokens: TokenExample) -> tuple[np.ndarray, np.ndarray]:
    """Returns which tokens begin a line, and which begin a word."""
    return tokens["_starts_line"], word_starts(tokens["_words"])


def _span(tokens: TokenExample, start: int, stop: int) -> _Span:
    return _Span(tokens["inputs"][start:stop], tokens["_words"][start:stop])


def _pairs(tokens: TokenExample, context: Drawing, room: int) -> list[tuple[_Span, _Span, int]]:
    """Returns pairs (a, b, label), of at most ``room`` tokens each, that together cover the whole text."""
    starts = (*_starts(tokens), np.ones(len(tokens["inputs"]), bool))
    found, start = [], 0
    while start < len(tokens["inputs"]):
        stop = next_cut(start, room, *starts)
        borders = _borders(start, stop, *starts)
        if len(borders) and context.rng.random() < 0.5:
            middle = int(context.rng.choice(borders))
            found.append((_span(tokens, start, middle), _span(tokens, middle, stop), FOLLOWS))
            start = stop
            continue
        middle = int(context.rng.choice(borders)) if len(borders) else stop
        b = _random_span(context, room - (middle - start))
        found.append((_span(tokens, start, middle), b, RANDOM))
        start = middle  # the text after a is used by the next pairs
    return found


def _borders(start: int, stop: int, *starts: np.ndarray) -> np.ndarray:
    """Returns the places within a piece where a unit begins, for the largest kind of unit that has any."""
    for begins in starts:
        places = np.flatnonzero(begins[start + 1 : stop])
        if len(places):
            return start + 1 + places
    return np.array([], int)


def _random_span(context: Drawing, most: int) -> _Span:
    """Returns at most ``most`` tokens of another example, starting at one of its lines or words."""
    other = context.draw_other()
    starts = _starts(other)
    borders = np.append(0, _borders(0, len(other["inputs"]), *starts))
    start = int(context.rng.choice(borders))
    return _span(other, start, next_cut(start, most, *starts))
