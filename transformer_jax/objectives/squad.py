"""Scores of answers as SQuAD 1.1 and its official script define them (Rajpurkar et al. 2016, section 6.1)."""

import collections
import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Lower case without ASCII punctuation, then without articles, with single spaces."""
    bare = answer.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same once normalized."""
    return normalized(prediction) == normalized(answer)


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words, as bags; 0 where none is shared, or none there."""
    predicted, wanted = normalized(prediction).split(), normalized(answer).split()
    shared = (collections.Counter(predicted) & collections.Counter(wanted)).total()
    return 2 * shared / (len(predicted) + len(wanted)) if shared else 0.0


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean scores in per cent, each question by the best of its answers.

    Args:
      predictions: one answer a question.
      answers: the right answers of each question, one at least.

    Returns:
      ``exact_match`` and ``f1``, from 0 to 100.

    Raises:
      ValueError: there are no questions, not as many predictions, or a question has no answer.
    """
    if len(predictions) != len(answers) or not predictions:
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} questions cannot be scored")
    for number, right in enumerate(answers):
        if not right:
            raise ValueError(f"question number {number + 1} has no answer to compare with")
    pairs = list(zip(predictions, answers, strict=True))
    exact = sum(max(exact_match(prediction, answer) for answer in right) for prediction, right in pairs)
    overlap = sum(max(f1(prediction, answer) for answer in right) for prediction, right in pairs)
    return {"exact_match": 100 * exact / len(pairs), "f1": 100 * overlap / len(pairs)}
