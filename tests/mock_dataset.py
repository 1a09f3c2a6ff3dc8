"""TFDS data sets with the names and features of those that experiments read, and a few examples of our own.

They are prepared without TensorFlow. The features are those of TFDS 4.9.
"""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from tests.mock_files import PAIRS
from transformer_jax.data import SPLITS
from transformer_jax.data.datasets.number_words.number_words import LocalInfo

Text, ClassLabel = tfds.features.Text, tfds.features.ClassLabel
Examples = list[dict[str, Any]]

SIZES = ((300, 200), (60, 90), (230, 224), (8, 400))  # of images, height and width, in pixels
ENTAILMENT = ("entailment", "not_entailment")
GLUE = {  # the texts and the labels of its tasks
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ENTAILMENT),
    "rte": (("sentence1", "sentence2"), ENTAILMENT),
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


def article(number: int) -> str:
    """Several lines, of which the first two have a number that no other article has."""
    english, german = PAIRS[number]
    others = [PAIRS[(number + step) % len(PAIRS)][0] for step in range(number % 7)]
    return "\n".join([f"{english} {german}", *others])


def wikipedia(variant: str) -> tuple[dict[str, Any], Examples]:
    return {"title": Text(), "text": Text()}, [
        {"title": f"Dog {i}", "text": article(i)} for i in range(len(PAIRS))
    ]


def openwebtext(variant: str) -> tuple[dict[str, Any], Examples]:
    return {"text": np.str_}, [{"text": article(i)} for i in range(len(PAIRS))]


def c4(variant: str) -> tuple[dict[str, Any], Examples]:
    names = ("text", "url", "content-type", "content-length", "timestamp")
    return {name: Text() for name in names}, [
        {name: article(i) if name == "text" else name for name in names} for i in range(len(PAIRS))
    ]


def imagenet(variant: str) -> tuple[dict[str, Any], Examples]:
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": ClassLabel(num_classes=1000),
        "file_name": Text(),
    }
    rng = np.random.default_rng(0)
    examples = []
    for i in range(24):
        height, width = SIZES[i % len(SIZES)]
        file = io.BytesIO()
        PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file, "JPEG")
        image = io.BytesIO(file.getvalue())
        examples.append({"image": image, "label": 41 * i, "file_name": f"n{i:08}.JPEG"})
    return features, examples


def glue(variant: str) -> tuple[dict[str, Any], Examples]:
    texts, labels = GLUE[variant]
    features = {name: Text() for name in texts} | {"label": ClassLabel(names=labels), "idx": np.int32}
    return features, [
        {name: pair[side] for side, name in enumerate(texts)} | {"label": i % len(labels), "idx": i}
        for i, pair in enumerate(PAIRS)
    ]


def squad(variant: str) -> tuple[dict[str, Any], Examples]:
    features = {
        "id": np.str_,
        "title": Text(),
        "context": Text(),
        "question": Text(),
        "answers": tfds.features.Sequence({"text": Text(), "answer_start": np.int32}),
    }
    examples = []
    for i in range(len(PAIRS)):
        context = article(i)
        texts = [f"number {i}", f"dog number {i}"][: 1 + i % 2]
        starts = [context.index(text) for text in texts]
        examples.append(
            {
                "id": f"{i:024x}",
                "title": "Dogs",
                "context": context,
                "question": f"Which number has the dog that sees {i % 7} cats?",
                "answers": {"text": texts, "answer_start": starts},
            }
        )
    return features, examples


def cnn_dailymail(variant: str) -> tuple[dict[str, Any], Examples]:
    names = ("article", "highlights", "publisher", "id")
    return {name: Text() for name in names}, [
        {"article": article(i), "highlights": PAIRS[i][0], "publisher": "cnn", "id": str(i)}
        for i in range(len(PAIRS))
    ]


def ted(variant: str) -> tuple[Any, Examples]:
    # Its texts may be longer than training takes.
    long = ("A small dog sees a cat. " * 20, "Ein kleiner Hund sieht eine Katze. " * 20)
    return _translation(("pt", "en"), [*PAIRS, long])


def wmt14(variant: str) -> tuple[Any, Examples]:
    return _translation(("de", "en"), PAIRS)


def _translation(languages: tuple[str, str], pairs: Sequence[tuple[str, str]]) -> tuple[Any, Examples]:
    features = tfds.features.Translation(languages=languages)
    return features, [dict(zip(languages, pair, strict=True)) for pair in pairs]


CATALOGUE: dict[str, Callable[[str], tuple[Any, Examples]]] = {
    "wikipedia": wikipedia,
    "skylion007__openwebtext": openwebtext,
    "c4": c4,
    "imagenet2012": imagenet,
    "glue": glue,
    "squad": squad,
    "cnn_dailymail": cnn_dailymail,
    "ted_hrlr_translate": ted,
    "wmt14_translate": wmt14,
}


def prepare(dataset: str, splits: Sequence[str], folder: str | os.PathLike[str]) -> None:
    """Writes a data set, such as "glue/mrpc", with these splits, which all have the same examples."""
    base, _, variant = dataset.partition("/")
    features, _ = CATALOGUE[base](variant)

    class Mock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name: ClassVar = base
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=variant)] if variant else []

        def _info(self) -> tfds.core.DatasetInfo:
            found = tfds.features.FeaturesDict(features) if isinstance(features, Mapping) else features
            return LocalInfo(builder=self, features=found)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
            # Made anew for each, for the file of an image can be read but once.
            return {split: iter(enumerate(CATALOGUE[base](variant)[1])) for split in splits}

        def _generate_examples(self) -> None:
            raise NotImplementedError("the splits are given")

    Mock(config=variant or None, data_dir=folder, file_format="array_record").download_and_prepare()


def small_slice(name: str) -> str:
    """The name of a split with its slice made to fit: "train[-5000:]" gives "train[-16:]"."""
    return re.sub(r"\d{3,}", "16", name)


def mock_translate(languages: tuple[str, str], pairs: Sequence[tuple[str, str]]):
    """A builder like wmt14_translate's and ted_hrlr_translate's; the same texts are within ``nested``."""

    class MockTranslate(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="mock")]

        def _info(self):
            translation, nested = (tfds.features.Translation(languages=languages) for _ in range(2))
            return LocalInfo(
                builder=self, features=tfds.features.FeaturesDict({**translation, "nested": nested})
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in SPLITS}

        def _generate_examples(self):
            for number, pair in enumerate(pairs):
                texts = dict(zip(languages, pair, strict=True))
                yield number, {**texts, "nested": texts}

    return MockTranslate
