"""Scores answers as SQuAD 1.1 and its official script do (Rajpurkar et al. 2016, section 6.1)."""

import collections
import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Returns an answer in lower case, without ASCII punctuation and articles, with single spaces."""
    bare = answer.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, answer: str) -> bool:
    """Returns whether both are the same after normalization."""
    return normalized(prediction) == normalized(answer)


def f1(prediction: str, answer: str) -> float:
    """Returns the harmonic mean of precision and recall of the words as bags; 0 if no word is shared."""
    predicted, wanted = normalized(prediction).split(), normalized(answer).split()
    shared = (collections.Counter(predicted) & collections.Counter(wanted)).total()
    return 2 * shared / (len(predicted) + len(wanted)) if shared else 0.0


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns mean scores in percent; each prediction is compared with the most similar right answer.

    Args:
      predictions: one answer per question.
      answers: the right answers of each question. If there are none, "" is the right one, as in the script of
        SQuAD 2.0.

    Returns:
      ``exact_match`` and ``f1``, from 0 to 100.

    Raises:
      ValueError: there are no questions, or the numbers of predictions and questions differ.
    """
    if len(predictions) != len(answers) or not predictions:
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} questions cannot be scored")
    exact = overlap = 0.0
    for prediction, right in zip(predictions, answers, strict=True):
        matches = max(exact_match(prediction, answer) for answer in right or ("",))
        exact += matches
        overlap += max((f1(prediction, answer) for answer in right), default=matches)
    return {"exact_match": 100 * exact / len(answers), "f1": 100 * overlap / len(answers)}
