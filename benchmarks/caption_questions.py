"""Measures two baselines without learning on ``caption_questions``, for comparison with a model's scores.

    python -m benchmarks.caption_questions --folder=data

``lexical`` chooses the sentence that shares most words with the question, and in it the span of the type that
the question asks for ("How many": a number). If there are several such spans, it takes the one nearest to the
shared words. ``first sentence`` takes the first span of that type in the context and ignores the rest of the
question; it shows what can be scored without reading the question.

Measured on the test split, 1,419 questions (2026-11-22): exact match 72.16 and F1 85.57 for ``lexical``,
18.11 and 22.99 for ``first sentence``.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformer_jax.data import SQUAD_FEATURES, SourceConfig, load_source
from transformer_jax.objectives.squad import squad_scores

SOURCE = SourceConfig(
    name="caption_questions/multi30k",
    builder_class="experiments.caption_questions:CaptionQuestions",
    features=SQUAD_FEATURES,
)
_SAYS_NOTHING = re.compile(
    r"(what|who|which|where|how|many|is|are|there|the|an?|of|doing|wearing|colour|animal|in|on|at|to|and|with)"
)
_COLOUR = r"(?:black|white|red|blue|green|yellow|orange|pink|brown|purple|gr[ae]y|tan|blond)"
_COLOURS = re.compile(rf"\b{_COLOUR}(?:,? (?:and )?{_COLOUR})*\b")
_NUMBERS = re.compile(r"\b(?:two|three|four|five|six|seven|eight|nine|ten)\b", re.IGNORECASE)
_PLACES = re.compile(r"\b(?:in|on|at|into|through|down|along|across|near|by|behind|over|next to)\b [^.,]*")
_CLOTHES = re.compile(
    r"(?<=\bin )(?:an? )?[^.,]*?(?= is| are| \w+ing\b|[.,])|(?<=wearing )[^.,]*?(?= is| are|[.,])"
)
_ACTIONS = re.compile(r"\b(?!wearing)\w+ing\b [^.]*")
_BEGINNINGS = re.compile(r"^.*?(?= is | are | \w+(?:ing|s) |\.$)")
_THINGS = re.compile(
    r"(?<=ing )(?:an? |the |his |her |their )?[^.,]*?(?= in | on | at | with | while | and |[.,])"
)
_TYPES = {  # words of a question -> pattern of its answers; the first entry found in the question applies
    "What colour": _COLOURS,
    "How many": _NUMBERS,
    "Where": _PLACES,
    "Who": _BEGINNINGS,
    "Which animal": _BEGINNINGS,
    " wearing?": _CLOTHES,
    " doing?": _ACTIONS,
    "What": _THINGS,
}


def lexical_answer(question: str, context: str) -> str:
    """Returns the nearest span of the right type in the sentence that shares most words with the question.

    Returns the whole sentence if it has no such span.
    """
    question_words = _content(question)
    sentence = max(_sentences(context), key=lambda text: len(question_words & _content(text)))
    words = re.finditer(r"[\w'-]+", sentence)
    starts = [match.start() for match in words if _content(match[0]) & question_words]
    spans = list(_TYPES[asked_for(question)].finditer(sentence))
    if not spans:
        return sentence
    middle = sum(starts) / len(starts) if starts else 0
    return min(spans, key=lambda span: abs(span.start() - middle))[0]


def first_sentence_answer(question: str, context: str) -> str:
    """Returns the first span of the right type in the context, or else the first sentence."""
    sentences = _sentences(context)
    pattern = _TYPES[asked_for(question)]
    return next((match[0] for text in sentences for match in pattern.finditer(text)), sentences[0])


def asked_for(question: str) -> str:
    """Returns the words of a question that determine the type of its answer, a key of ``_TYPES``."""
    return next(text for text in _TYPES if text in question)


def scores(answer: Callable[[str, str], str], examples: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns exact match and F1 in per cent.

    Args:
      answer: returns an answer to a question (first argument) from its context (second).
      examples: the examples of ``caption_questions``.
    """
    predictions = [answer(example["inputs"], example["context"]) for example in examples]
    figures = squad_scores(predictions, [example["answers"] for example in examples])
    return figures["exact_match"], figures["f1"]


def _sentences(context: str) -> list[str]:
    return re.split(r"(?<=\.) ", context)


def _content(text: str) -> set[str]:
    """Returns the content words of a text, stemmed so that "sits" and "sitting" are equal."""
    found = re.findall(r"[\w'-]+", text.lower())
    return {
        re.sub(r"(?:'s|ing|es|s|e)$", "", word)[:6] for word in found if not _SAYS_NOTHING.fullmatch(word)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", default="", help="data folder (default: $TRANSFORMER_JAX_DATA, else data)"
    )
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    arguments = parser.parse_args()
    source = load_source(dataclasses.replace(SOURCE, folder=arguments.folder), arguments.split)
    examples = source.read(range(len(source)))
    kinds = {"all": examples}
    for example in examples:
        kinds.setdefault(asked_for(example["inputs"]).strip(" ?"), []).append(example)
    print(f"{'':12} {'':>9}  {'lexical':^14}  {'first sentence':^14}")
    print(f"{'':12} questions  {'exact':>6} {'F1':>7}  {'exact':>6} {'F1':>7}")
    for kind, some in kinds.items():
        (exact, overlap), (first_exact, first_overlap) = (
            scores(answer, some) for answer in (lexical_answer, first_sentence_answer)
        )
        print(
            f"{kind:12} {len(some):9,}  {exact:6.2f} {overlap:7.2f}  {first_exact:6.2f} {first_overlap:7.2f}"
        )


if __name__ == "__main__":
    main()
