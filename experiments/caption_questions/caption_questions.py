"""Generates ``caption_questions``: questions about captions of Multi30k, each answered by one span of text.

The data set has the form of SQuAD (extractive question answering) and needs no download except the captions.
A context consists of three to five consecutive captions. A question is about one caption and is generated
from its words with the patterns of ``templates``. It asks who does something, what someone does, where, with
what or in which clothes, or for a colour or a number. A question is used only if

* no other caption of the context contains, or could contain, everything that the question mentions, so that
  the answer is unique; and
* another caption contains a possible answer of the same kind, so that the kind alone does not reveal the
answer.

No question is asked twice about the same caption. The check for uniqueness compares words only; it misses a
caption with the same meaning in other words. The author read 60 random questions of the training split
(2026-11-22): no answer was wrong, but some questions are clumsy, like their captions.
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
CAPTIONS_OF_CONTEXT = (3, 5)  # minimum and maximum
MOST_QUESTIONS_OF_CONTEXT = 3
HOMEPAGE = "https://github.com/multi30k/dataset"

_SEED = 2016


@dataclasses.dataclass(frozen=True)
class CaptionQuestion:
    """A question, its context, and its answer; ``start`` is the answer's first character in the context."""

    id: str
    kind: str
    question: str
    context: str
    answer: str
    start: int


def read_captions(folders: Sequence[str]) -> dict[str, list[str]]:
    """Returns the captions of each split that end with a full stop, in their order.

    Captions that also occur in an earlier split, such as the training split, are left out.

    Args:
      folders: folders that may contain ``multi30k/``; each file is read from the first one that has it.

    Raises:
      DataError: a file is missing from all folders, or is broken.
    """
    captions: dict[str, list[str]] = {}
    seen: set[str] = set()
    for split, name in CAPTION_FILES.items():
        paths = [os.path.join(folder, name) for folder in folders]
        path = next((path for path in paths if os.path.exists(path)), None)
        if path is None:
            raise DataError(
                f"caption_questions is generated from {name} of Multi30k, which is not in "
                f"{' or '.join(map(os.path.abspath, folders))}; copy data/task1/raw/{os.path.basename(name)} "
                f"of {HOMEPAGE} to {paths[0]}, or set ${DATA_VARIABLE} to the folder that contains multi30k/"
            )
        lines = [line.strip() for line in read_lines(path)]
        captions[split] = [line for line in lines if line.endswith(".") and line not in seen]
        seen.update(captions[split])
    return captions


def make_questions(
    captions: list[str], most: int, name: str = ""
) -> tuple[list[CaptionQuestion], collections.Counter[str]]:
    """Returns questions about contexts of consecutive captions; one context begins at each caption.

    The result is deterministic and the same on every machine.

    Args:
      captions: one sentence each.
      most: maximum number of questions; if there are more, a uniform random sample is returned.
      name: name of the split, with which the ids of the questions begin.

    Returns:
      The questions in the order of the captions, and the number of rejected questions by reason.
    """
    # NumPy guarantees that the streams of this legacy generator never change.
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
        # The most frequent kind, "who", comes last. Otherwise most questions would be of this kind.
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
    """Returns whether nothing else in the caption, and no other caption, can be meant by the question."""
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
        # As in number_words; the default format of TFDS can be written only with TensorFlow.
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
