"""``caption_questions``: questions about the captions of Multi30k, each answered by one span of text.

Extractive question answering in the form of SQuAD that needs no download beyond the captions. A context is
three to five captions that follow one another; a question is about one of them, made from its surface by the
patterns of ``templates``: who does something, what someone does, where, with what, in what clothes, and what
has which colour or number. It is asked only where

* no other caption of the context has, or may have, all that the question speaks of, so the answer is one; and
* another caption has something like an answer of its kind, so the kind alone does not tell where it is.

No question is asked twice about a caption. "May have" goes by words alone: a caption that means the same in
other words is not seen. Of 60 questions drawn from the training split and read by their author, none had a
wrong answer (2026-11-22); some are as clumsy as their captions.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from experiments.caption_questions import templates
from transformer_jax.data.datasets.number_words.number_words import LocalInfo
from transformer_jax.data.examples import DataError
from transformer_jax.data.text_files import DATA_VARIABLE, read_lines

CAPTION_FILES = {
    "train": "multi30k/train.en.gz",
    "validation": "multi30k/val.en.gz",
    "test": "multi30k/test_2016_flickr.en.gz",
}
MOST_QUESTIONS = {"train": 60_000, "validation": 2_000, "test": 2_000}
CAPTIONS_OF_CONTEXT = (3, 5)  # the least and the most
MOST_QUESTIONS_OF_CONTEXT = 3
HOMEPAGE = "https://github.com/multi30k/dataset"

_SEED = 2016


@dataclasses.dataclass(frozen=True)
class CaptionQuestion:
    """A question with its context, and the answer's text and first character."""

    id: str
    kind: str
    question: str
    context: str
    answer: str
    start: int


def read_captions(folders: Sequence[str]) -> dict[str, list[str]]:
    """The captions of every split that are sentences with a full stop, in their order.

    One that training has, too, is in no other split.

    Args:
      folders: where ``multi30k/`` may be; the first that has a file counts.

    Raises:
      DataError: a file is in none of them, or broken.
    """
    captions: dict[str, list[str]] = {}
    seen: set[str] = set()
    for split, name in CAPTION_FILES.items():
        paths = [os.path.join(folder, name) for folder in folders]
        path = next((path for path in paths if os.path.exists(path)), None)
        if path is None:
            raise DataError(
                f"caption_questions is made from {name} of Multi30k, which is not in "
                f"{' or '.join(map(os.path.abspath, folders))}: copy data/task1/raw/{os.path.basename(name)} "
                f"of {HOMEPAGE} to {paths[0]}, or set ${DATA_VARIABLE} to the folder that has multi30k/"
            )
        lines = [line.strip() for line in read_lines(path)]
        captions[split] = [line for line in lines if line.endswith(".") and line not in seen]
        seen.update(captions[split])
    return captions


def make_questions(
    captions: list[str], most: int, name: str = ""
) -> tuple[list[CaptionQuestion], collections.Counter[str]]:
    """Questions about contexts of consecutive captions, one context from every caption on.

    The same captions give the same questions, on every machine.

    Args:
      captions: a sentence each.
      most: questions; where there are more, this number of them drawn uniformly.
      name: of the split; questions' ids begin with it.

    Returns:
      The questions in the order of the captions, and how many were left out, by the reason.
    """
    # The legacy generator, because NumPy promises that its streams never change.
    rng = np.random.RandomState(_SEED)
    least, longest = CAPTIONS_OF_CONTEXT
    asked: set[tuple[int, str]] = set()
    left_out: collections.Counter[str] = collections.Counter()
    found = []
    for first in range(len(captions) - least + 1):
        context = captions[first : first + rng.randint(least, longest + 1)]
        chosen: dict[str, tuple[int, templates.Candidate, str]] = {}
        everything = [
            (place, candidate) for place, caption in enumerate(context) for candidate in _candidates(caption)
        ]
        everything = [everything[i] for i in rng.permutation(len(everything)).tolist()]
        # The most frequent kind comes last, or most questions would be of it.
        for place, candidate in sorted(everything, key=lambda found: found[1].kind == "who"):
            others = [caption for n, caption in enumerate(context) if n != place]
            forms = [form for form in candidate.questions if (first + place, form) not in asked]
            only = [form for form in forms if is_only_answer(candidate, form, context[place], others)]
            if not forms:
                left_out["asked in another context"] += 1
            elif not any(templates.could_mislead(caption, candidate.kind) for caption in others):
                left_out["nothing else looks like an answer"] += 1
            elif not only:
                left_out["not the only answer"] += 1
            elif candidate.kind in chosen or len(chosen) == MOST_QUESTIONS_OF_CONTEXT:
                left_out["enough questions in its context"] += 1
            else:
                form = only[rng.randint(len(only))]
                chosen[candidate.kind] = (place, candidate, form)
                asked.add((first + place, form))
        for place, candidate, question in chosen.values():
            start = sum(len(caption) + 1 for caption in context[:place]) + candidate.start
            text = " ".join(context)
            answer = text[start : start + candidate.stop - candidate.start]
            number = f"{name}-{first}-{candidate.kind}"
            found.append(CaptionQuestion(number, candidate.kind, question, text, answer, start))
    kept = np.sort(rng.permutation(len(found))[:most]).tolist()
    left_out["beyond the most"] = len(found) - len(kept)
    return [found[i] for i in kept], left_out


@functools.lru_cache(maxsize=100)
def _candidates(caption: str) -> list[templates.Candidate]:
    return templates.candidates(caption)


def is_only_answer(
    candidate: templates.Candidate, question: str, caption: str, others: Sequence[str]
) -> bool:
    """Whether no other caption, and nothing else in its own, can be what the question is about."""
    if candidate.subject and templates.times(caption, candidate.subject) != 1:
        return False
    return not any(templates.fits(other, question) for other in others)


class CaptionQuestions(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of ``caption_questions/multi30k``, with the features of TFDS's ``squad``.

    The captions are read from ``multi30k/`` in the data folder, else in ``$TRANSFORMER_JAX_DATA``. Neither
    preparing nor reading it needs TensorFlow::

        from transformer_jax.data import SQUAD_FEATURES, SourceConfig, load_source

        config = SourceConfig(
            name="caption_questions/multi30k",
            builder_class="experiments.caption_questions:CaptionQuestions",
            features=SQUAD_FEATURES,
        )
        load_source(config, "test")
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "37,878 training, 1,403 validation and 1,419 test questions."}
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="multi30k", description="English captions of Multi30k, task 1")
    ]

    def __init__(self, *, file_format: Any = "array_record", **kwargs: Any):
        # As in number_words: TFDS's own default format is one that only TensorFlow can write.
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return LocalInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "question": tfds.features.Text(),
                    "context": tfds.features.Text(),
                    "answers": tfds.features.Sequence(
                        {"text": tfds.features.Text(), "answer_start": np.int32}
                    ),
                }
            ),
            homepage=HOMEPAGE,
        )

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Any]:
        del dl_manager  # nothing to download
        folders = [os.fspath(self._data_dir_root), os.environ.get(DATA_VARIABLE, "")]
        captions = read_captions([folder for folder in folders if folder])
        return {split: self._generate_examples(split, lines) for split, lines in captions.items()}

    def _generate_examples(self, split: str, captions: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        questions, left_out = make_questions(captions, MOST_QUESTIONS[split], split)
        logging.info("%s: %d questions; left out: %s", split, len(questions), dict(left_out))
        for question in questions:
            yield (
                question.id,
                {
                    "id": question.id,
                    "question": question.question,
                    "context": question.context,
                    "answers": {"text": [question.answer], "answer_start": [question.start]},
                },
            )
