"""Features of catalogue data sets beyond text: labels, words, answers, images."""

import io
import sys
from typing import ClassVar

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from transformer_jax.data import DataError, SourceConfig, load_source
from transformer_jax.data.catalogue import TfdsSource
from transformer_jax.data.datasets.number_words.number_words import LocalInfo
from transformer_jax.data.image_files import decode_image
from transformer_jax.types import FEATURES, KINDS, Kind

WORDS = [["A", "small", "dog"], [], ["Größe"]]
ANSWERS = [(["a", "bc"], [0, 12]), ([], []), (["d"], [5])]


def pixels(channels):
    return np.random.default_rng(channels).integers(0, 256, (4, 6, channels), np.uint8)


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    PIL.Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, kind)
    return io.BytesIO(buffer.getvalue())


class Mock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features of GLUE, CoNLL, SQuAD and MNIST at once."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="mock")]

    def _info(self):
        features = tfds.features
        return LocalInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "id": np.str_,
                    "idx": np.int32,
                    "score": np.float32,
                    "label": features.ClassLabel(names=["no", "yes"]),
                    "tokens": features.Sequence(features.Text()),
                    "tags": features.Sequence(features.ClassLabel(num_classes=9)),
                    "answers": features.Sequence({"text": features.Text(), "answer_start": np.int32}),
                    "gray": features.Image(shape=(None, None, 1)),
                    "nested": {"color": features.Image(shape=(None, None, 3))},
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, (words, (texts, starts)) in enumerate(zip(WORDS, ANSWERS, strict=True)):
            yield (
                i,
                {
                    "id": f"número {i}",
                    "idx": i,
                    "score": 0.5,
                    "label": i % 2,
                    "tokens": words,
                    "tags": [len(word) for word in words],
                    "answers": {"text": texts, "answer_start": starts},
                    "gray": encoded(pixels(1)),
                    "nested": {"color": encoded(pixels(3))},
                },
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    Mock(config="mock", data_dir=path, file_format="array_record").download_and_prepare()
    return path


def read(folder, *features):
    config = SourceConfig(name="mock/mock", folder=str(folder), features=features)
    source = load_source(config, "train")
    return sorted(source.read(range(3)), key=str)


def test_labels_words_and_answers(folder):
    found = read(folder, ("labels", "idx"), ("inputs", "tokens"))
    assert found == sorted([{"labels": i, "inputs": words} for i, words in enumerate(WORDS)], key=str)
    assert all(type(example["labels"]) is int for example in found)
    tags = read(folder, ("inputs", "tokens"), ("labels", "tags"))
    assert tags == sorted([{"inputs": w, "labels": [len(x) for x in w]} for w in WORDS], key=str)
    plain = read(folder, ("inputs", "id"))
    assert plain == [{"inputs": f"número {i}"} for i in range(3)]
    answers = read(folder, ("answers", "answers/text"), ("answer_starts", "answers/answer_start"))
    assert answers == sorted([{"answers": t, "answer_starts": s} for t, s in ANSWERS], key=str)


def test_a_feature_of_a_kind_from_outside(folder, monkeypatch):
    kind = Kind("a score", lambda value: isinstance(value, float), lambda shape: 0.0, float)
    monkeypatch.setitem(KINDS, "score", kind)
    monkeypatch.setitem(FEATURES, "scores", ("score",))
    assert read(folder, ("scores", "score")) == [{"scores": 0.5}] * 3
    with pytest.raises(DataError, match=r"the feature 'id' must be a score to be scores, not 'n"):
        read(folder, ("scores", "id"))


@pytest.mark.parametrize(("key", "channels"), [("gray", 1), ("nested/color", 3)])
def test_images_are_decoded_without_tensorflow(folder, key, channels):
    for example in read(folder, ("images", key), ("labels", "label")):
        assert example["images"].dtype == np.uint8
        np.testing.assert_array_equal(example["images"], pixels(channels))
    assert "tensorflow" not in sys.modules and "cv2" not in sys.modules


def test_another_feature_may_be_an_image_too(folder, monkeypatch):
    monkeypatch.setitem(FEATURES, "masks", ("image",))
    for example in read(folder, ("images", "nested/color"), ("masks", "gray")):
        np.testing.assert_array_equal(example["images"], pixels(3))
        np.testing.assert_array_equal(example["masks"], pixels(1))


def test_images_get_the_channels_that_are_wanted():
    gray = np.full((2, 3, 1), 77, np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(gray).getvalue(), 3), np.full((2, 3, 3), 77))
    buffer = io.BytesIO()
    PIL.Image.new("CMYK", (3, 2), (0, 0, 0, 0)).save(buffer, "JPEG")  # some catalogue images are such
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), 3), np.full((2, 3, 3), 255))


def test_bytes_that_are_no_image_are_named():
    class Records:
        def __getitems__(self, indices):
            return [{"picture": b"not an image"} for _ in indices]

    source = TfdsSource("some/data, train", Records(), (("images", "picture"),))
    with pytest.raises(DataError, match=r"example 4 of some/data, train: .* 'picture' is not an image"):
        source.read([4])


@pytest.mark.parametrize(
    ("feature", "key", "message"),
    [
        (
            "targets",
            "label",
            r"'label' of mock/mock is ClassLabel.*, which cannot be targets: that must be",
        ),
        ("labels", "score", "'score' .* cannot be labels"),
        ("labels", "gray", "'gray' .* cannot be labels"),
        ("images", "label", "cannot be images: that must be an image"),
        ("answers", "answers", "cannot be answers: that must be a list of texts"),
        ("context", "tokens", "'tokens' of mock/mock is a list of Text.* cannot be context"),
        ("answers", "answers/texts", r"no feature 'answers/texts': did you mean 'text'\?"),
    ],
)
def test_features_of_another_type(folder, feature, key, message):
    with pytest.raises(DataError, match=message):
        read(folder, (feature, key))
