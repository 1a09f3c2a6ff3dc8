"""Extractive question answering, as BERT on SQuAD 1.1 (Devlin et al. 2019)."""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from transformer_jax.objectives.base import Apply, Objective, Rngs, Sums
from transformer_jax.objectives.calls import run_model, side_arrays
from transformer_jax.objectives.losses import smoothed_cross_entropy
from transformer_jax.types import CUT, Batch, Drawing, Encoder, Example, PyTree, TokenExample

NO_PLACE = -1  # in _starts and _stops, for tokens that are not in the context
_NO_LOGIT = -1e9


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Objective):
    """Predict the first and the last token of the answer to a question in a context (section 4.2).

    The tokens are "[CLS] question [SEP] context [SEP]", with types 0 and 1. If they exceed ``max_length``,
    the context is split into windows, each with the question. A window without the whole answer is trained
    with [CLS] as its answer, and so is a question without answers (SQuAD 2.0). Evaluation never predicts
    [CLS], so that such a question counts as wrong. If a question has several answers, training uses the first
    one.

    ``_starts`` and ``_stops`` are the characters of the context that each token covers, -1 for tokens outside
    the context. Therefore ``context[_starts[first] : _stops[last]]`` is the text of a span.

    Attributes:
      stride: number of tokens from the beginning of one window to the beginning of the next.
      max_question_length: number of tokens to which longer questions are cut, as in the released BERT; these
        questions are counted.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ("accuracy",)
    FEATURES: ClassVar[tuple[str, ...]] = ("inputs", "context", "answers", "answer_starts")
    HEADS: ClassVar[tuple[str, ...]] = ("spans",)
    PARTS: ClassVar[tuple[str, ...]] = ("encoder",)
    PREDICTOR: ClassVar[str] = "answers"

    name: Literal["question_answering"] = "question_answering"
    stride: int = 128
    max_question_length: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stride", "max_question_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def may_cut(self) -> bool:
        """True: questions that are longer than ``max_question_length`` are cut."""
        return True

    def shrunk(self, max_length: int) -> "QuestionAnswering":
        """Returns the objective with questions of at most a quarter of ``max_length`` tokens.

        The rest of a piece is room for the context.
        """
        length = min(self.max_question_length, max_length // 4)
        return dataclasses.replace(self, max_question_length=length)

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Returns the question with the whole context, the span of the first answer, and tokens' characters.

        Without answers, the span is [CLS]. An answer that ends inside a token gets the whole token.

        Raises:
          ValueError: the answer is not in the context at ``answer_starts``, or the numbers of answers and
            ``answer_starts`` differ.
        """
        whole = tokenizer.encode(example["inputs"])
        question = whole[: self.max_question_length]
        encoding = tokenizer.encode_with_places(example["context"])
        start, middle, end = tokenizer.template(2)
        before = len(start) + len(question) + len(middle)

        def around(places: np.ndarray) -> np.ndarray:
            ends = (np.full(before, NO_PLACE), np.full(len(end), NO_PLACE))
            return np.concatenate([ends[0], places, ends[1]]).astype(np.int32)

        return {
            "inputs": np.concatenate([start, question, middle, encoding.ids, end]).astype(np.int32),
            "inputs_types": np.repeat([0, 1], [before, len(encoding.ids) + len(end)]).astype(np.int32),
            "answer_span": _answer_span(example, encoding.starts, encoding.stops, before),
            "_starts": around(encoding.starts),
            "_stops": around(encoding.stops),
        } | ({CUT: np.array(len(whole) - len(question))} if len(question) < len(whole) else {})

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Returns the example, or its windows from left to right until one reaches the end of the context.

        Raises:
          ValueError: the question and the special tokens leave no room for the context.
        """
        length = len(tokens["inputs"])
        if length <= context.max_length:
            return [tokens]
        before = int((tokens["inputs_types"] == 0).sum())
        template = [len(part) for part in context.tokenizer.template(2)]
        room = context.max_length - before - template[-1]
        if room < 1:
            raise ValueError(
                f"a question of {before - sum(template[:2])} tokens leaves no room for its context in "
                f"data.max_length={context.max_length}: raise that, or lower "
                f"objective.max_question_length={self.max_question_length}"
            )
        found, start, end = [], before, length - template[-1]  # of the context
        while True:
            stop = min(start + room, end)
            kept = np.r_[0:before, start:stop, end:length]
            window = {key: tokens[key][kept] for key in ("inputs", "inputs_types", "_starts", "_stops")}
            first, last = tokens["answer_span"]
            is_whole = start <= first and last < stop
            span = tokens["answer_span"] - (start - before) if is_whole else np.zeros(2)
            found.append({**tokens, **window, "answer_span": span.astype(np.int32)})
            if stop == end:
                return found
            start += min(self.stride, room)  # a larger step would skip tokens

    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Sums]:
        """Returns the mean cross-entropy of the first and the last token, summed over windows, in nats.

        Returns:
          The summed loss, and the sums ``loss``, ``correct`` (windows with both ends right) and ``tokens``,
          which is the number of windows.
        """
        logits = run_model(apply, params, side_arrays(batch, "inputs"), rngs, train=train)
        is_real = jnp.asarray(batch["inputs_segments"]) > 0
        logits = jnp.where(is_real[..., None], logits.astype(jnp.float32), _NO_LOGIT)
        spans = jnp.asarray(batch["answer_span"])
        ends = smoothed_cross_entropy(logits.transpose(0, 2, 1), jnp.maximum(spans, 0), 0.0)
        weights = (spans[:, 0] >= 0).astype(jnp.float32)
        loss = jnp.sum(jnp.mean(ends.loss, axis=1) * weights)
        correct = jnp.sum(jnp.all(ends.is_correct, axis=1) * weights)
        return loss, {"loss": loss, "correct": correct, "tokens": jnp.sum(weights)}

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Returns ``loss`` and ``accuracy`` (both ends right) per window; ``squad_scores`` scores answers."""
        return {"loss": sums["loss"] / sums["tokens"], "accuracy": sums["correct"] / sums["tokens"]}


class Span(NamedTuple):
    """A span of tokens, from ``first`` to ``last`` inclusive, and its score."""

    first: int
    last: int
    score: float


def best_span(
    start_logits: Float[np.ndarray, "L"],
    end_logits: Float[np.ndarray, "L"],
    allowed: Bool[np.ndarray, "L"],
    max_answer_tokens: int,
) -> Span:
    """Returns the span with the highest sum of its first token's start logit and its last token's end logit.

    Args:
      start_logits: for each token, the logit of being the first.
      end_logits: for each token, the logit of being the last.
      allowed: which tokens may begin or end a span: those of the context.
      max_answer_tokens: the largest number of tokens in a span; 30 in the released BERT.

    Raises:
      ValueError: no token is allowed, or ``max_answer_tokens`` is below 1.
    """
    if not allowed.any() or max_answer_tokens < 1:
        raise ValueError(f"no span can be chosen: {int(allowed.sum())} tokens allowed, {max_answer_tokens=}")
    scores = start_logits.astype(np.float64)[:, None] + end_logits.astype(np.float64)[None, :]
    places = np.arange(len(allowed))
    tokens = places[None, :] - places[:, None] + 1
    is_span = (tokens >= 1) & (tokens <= max_answer_tokens) & allowed[:, None] & allowed[None, :]
    scores = np.where(is_span, scores, -np.inf)
    first, last = divmod(int(scores.argmax()), len(allowed))
    return Span(first, last, float(scores[first, last]))


def _answer_span(example: Example, starts: np.ndarray, stops: np.ndarray, before: int) -> np.ndarray:
    """Returns the first and the last token of the first answer; the context starts at token ``before``."""
    if len(example["answers"]) != len(example["answer_starts"]):
        raise ValueError(
            "question_answering needs the place of each answer in its context: "
            f"{len(example['answers'])} answers have {len(example['answer_starts'])} answer_starts"
        )
    if not len(example["answers"]):
        return np.zeros(2, np.int32)
    answer, start = example["answers"][0], int(example["answer_starts"][0])
    stop = start + len(answer)
    if not answer or start < 0 or example["context"][start:stop] != answer:
        raise ValueError(
            f"the answer {answer!r} is not at character {start} of its context, where there is "
            f"{example['context'][max(start, 0) : max(stop, 0)]!r}"
        )
    within = np.flatnonzero((stops > start) & (starts < stop))
    if not len(within):
        raise ValueError(f"the answer {answer!r} has no tokens")
    return np.array([before + within[0], before + within[-1]], np.int32)
