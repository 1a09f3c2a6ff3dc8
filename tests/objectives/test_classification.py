"""Classification: templates and cutting by hand, images pixel by pixel, the loss in NumPy."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.toy import ToyTokenizer, draw, floats, log_softmax, padded
from transformer_jax.models.front_ends.patches import scaled_pixels
from transformer_jax.objectives import ModelFacts
from transformer_jax.objectives.base import BoundTransform
from transformer_jax.objectives.classification import Classification

A = " ".join(f"a{i:02d}" for i in range(30))
B = " ".join(f"b{i:02d}" for i in range(30))


def written(tokenizer, tokens):
    return " ".join(tokenizer.tokens(tokens["inputs"])), tokens["inputs_types"].tolist()


def test_texts_and_pairs_are_written_as_in_the_paper():
    tokenizer, objective = ToyTokenizer(), Classification(labels=("no", "yes"))
    one = objective.encode({"inputs": "ab cd", "labels": "yes"}, tokenizer)
    assert written(tokenizer, one) == ("<cls> ab cd <sep>", [0, 0, 0, 0])
    two = objective.encode({"inputs": "ab cd", "pair": "ef", "labels": 0}, tokenizer)
    assert written(tokenizer, two) == ("<cls> ab cd <sep> ef <sep>", [0, 0, 0, 0, 1, 1])
    assert [int(one["labels"]), int(two["labels"])] == [1, 0]
    assert two["labels"].shape == () and two["labels"].dtype == two["inputs"].dtype == np.int32
    assert objective.pieces(two, draw(tokenizer, 6)) == [two]


def test_long_pairs_are_cut_like_popping_from_the_longer_list():
    tokenizer, objective = ToyTokenizer(), Classification(cut_long=True)
    for first in (1, 4, 9, 10, 30):
        for second in (1, 5, 9, 10, 30):
            a, b = A.split()[:first], B.split()[:second]
            example = {"inputs": " ".join(a), "pair": " ".join(b), "labels": 3}
            tokens = objective.encode(example, tokenizer)
            for room in (2, 7, 10, 19, 60):
                x, y = list(a), list(b)
                while len(x) + len(y) > room:
                    (x if len(x) > len(y) else y).pop()
                (piece,) = objective.pieces(tokens, draw(tokenizer, room + 3))
                types = [0] * (len(x) + 2) + [1] * (len(y) + 1)
                assert written(tokenizer, piece) == (" ".join(["<cls>", *x, "<sep>", *y, "<sep>"]), types)
                assert int(piece["labels"]) == 3


TWO_BETWEEN = {2: [["bos"], ["eos", "eos"], ["eos"]], 1: [[], ["eos"]]}  # RoBERTa's pairs, T5's texts


def test_the_template_of_the_tokenizer_decides_and_stays_when_texts_are_cut():
    tokenizer, objective = ToyTokenizer(parts=TWO_BETWEEN), Classification(cut_long=True)
    pair = objective.encode({"inputs": A, "pair": B, "labels": 0}, tokenizer)
    whole = f"<bos> {A} <eos> <eos> {B} <eos>"
    assert written(tokenizer, pair) == (whole, [0] * 33 + [1] * 31)
    (piece,) = objective.pieces(pair, draw(tokenizer, 9))
    cut = "<bos> a00 a01 a02 <eos> <eos> b00 b01 <eos>"
    assert written(tokenizer, piece) == (cut, [0] * 6 + [1] * 3)
    (one,) = objective.pieces(objective.encode({"inputs": A, "labels": 0}, tokenizer), draw(tokenizer, 3))
    assert written(tokenizer, one) == ("a00 a01 <eos>", [0] * 3)


def test_a_long_text_keeps_its_beginning():
    tokenizer, objective = ToyTokenizer(), Classification(cut_long=True)
    (piece,) = objective.pieces(objective.encode({"inputs": A, "labels": 0}, tokenizer), draw(tokenizer, 5))
    assert written(tokenizer, piece) == ("<cls> a00 a01 a02 <sep>", [0] * 5)


@pytest.mark.parametrize(
    ("labels", "label", "wanted"),
    [((), 7, 7), ((), "7", 7), (("b", "a"), "a", 1), (("b", "a"), 0, 0), (("1", "0"), "0", 1)],
)
def test_labels_are_numbers_or_names(labels, label, wanted):
    encoded = Classification(labels=labels).encode({"inputs": "x", "labels": label}, ToyTokenizer())
    assert int(encoded["labels"]) == wanted


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        (
            ("no", "yes"),
            "maybe",
            r"'maybe' must be one of objective.labels=\('no', 'yes'\), or .* to 1",
        ),
        (("no", "yes"), 2, r"the label 2 must be one of objective.labels=\('no', 'yes'\)"),
        (("no", "yes"), -1, "the label -1 must be one of"),
        ((), "yes", r"'yes' must be a number from 0 on; to use names, list them in objective.labels"),
        ((), -1, "the label -1 must be a number from 0 on"),
        ((), True, "the label True must be a number"),
    ],
)
def test_an_unknown_label_is_one_error(labels, label, message):
    with pytest.raises(ValueError, match=message):
        Classification(labels=labels).encode({"inputs": "x", "labels": label}, ToyTokenizer())


def test_an_example_with_neither_text_nor_image_is_one_error():
    with pytest.raises(ValueError, match="needs the feature 'inputs' or 'images', but has labels"):
        Classification().encode({"labels": 0}, ToyTokenizer())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("a", "b", "a")}, "must be different names, but 'a' occurs more than once"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 must be in \[0, 1\)"),
        ({"crop_padding": -1}, "crop_padding=-1 must not be negative"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Classification(**fields)


def image_example(rng, height=3, width=4):
    return {"images": rng.integers(1, 256, (height, width, 2)).astype(np.uint8), "labels": 1}


def test_training_images_are_all_crops_and_their_mirror_images(rng):
    objective = Classification(crop_padding=1, flip=True)
    example = image_example(rng)
    tokens = objective.encode(example, ToyTokenizer())
    possible = {}
    for top in range(3):
        for left in range(3):
            for mirrored in (False, True):
                crop = np.zeros((3, 4, 2), np.uint8)
                for row in range(3):
                    for column in range(4):
                        y, x = row + top - 1, column + left - 1
                        if 0 <= y < 3 and 0 <= x < 4:
                            crop[row, 3 - column if mirrored else column] = example["images"][y, x]
                possible[crop.tobytes()] = 0
    assert len(possible) == 18
    for seed in range(3600):
        (piece,) = objective.pieces(tokens, draw(ToyTokenizer(), 1, seed))
        assert piece["images"].shape == (3, 4, 2) and piece["images"].dtype == np.uint8
        possible[piece["images"].tobytes()] += 1
    p = 1 / 18
    assert max(abs(n - 200) for n in possible.values()) < 5 * math.sqrt(3600 * p * (1 - p))


def test_images_are_left_alone_in_evaluation_and_without_fields(rng):
    for objective, train in ((Classification(crop_padding=2, flip=True), False), (Classification(), True)):
        example = image_example(rng)
        tokens = objective.encode(example, ToyTokenizer())
        seen = collections.Counter()
        for seed in range(20):
            (piece,) = objective.pieces(tokens, draw(ToyTokenizer(), 1, seed, train=train))
            seen[piece["images"].tobytes()] += 1
        assert seen == {example["images"].tobytes(): 20}


def numpy_loss(logits, labels, smoothing):
    log_p = log_softmax(logits)
    q = np.full(logits.shape, smoothing / logits.shape[1])
    q[np.arange(len(labels)), labels] += 1 - smoothing
    return -(q * log_p).sum()


def test_loss_of_texts_is_that_of_numpy_over_examples(rng):
    objective = Classification(labels=("a", "b", "c"), label_smoothing=0.1)
    tokenizer = ToyTokenizer()
    examples = [objective.encode({"inputs": A[: 8 * i], "labels": i}, tokenizer) for i in (1, 2)]
    logits = rng.normal(size=(3, 3)).astype(np.float32)
    seen = {}

    def apply(variables, **arguments):
        seen.update(arguments)
        return jnp.asarray(logits)

    loss, sums = objective.loss(apply, {}, padded(examples, 9), {"dropout": jax.random.key(0)}, train=True)
    assert set(seen) == {
        "inputs", "inputs_positions", "inputs_segments", "inputs_types", "train", "rngs"
    }  # fmt: skip
    wanted = numpy_loss(logits[:2], [1, 2], 0.1)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    accuracy = np.mean(logits[:2].argmax(-1) == [1, 2])
    metrics = objective.metrics(floats(sums))
    assert set(metrics) == {"loss", "accuracy"}  # the others are of two classes
    np.testing.assert_allclose([metrics["loss"], metrics["accuracy"]], (wanted / 2, accuracy), rtol=1e-5)


def two_class_metrics(logits, labels):
    """Of images, in two batches whose sums are added; a row of label -1 is none."""
    objective, total = Classification(), {}
    for rows in (slice(0, 3), slice(3, None)):
        given = jnp.asarray(logits[rows])
        batch = {"images": np.zeros((len(given), 1, 1, 1), np.uint8), "labels": labels[rows]}
        sums = floats(objective.loss(lambda *_, given=given, **__: given, {}, batch, {}, train=False)[1])
        total = {name: total.get(name, 0.0) + value for name, value in sums.items()}
    return objective.metrics(total)


def test_f1_and_matthews_correlation_of_two_classes(rng):
    labels = rng.integers(0, 2, 40).astype(np.int32)
    logits = rng.normal(size=(40, 2)).astype(np.float32)
    logits[:, 1] += labels  # more right than wrong
    labels[[4, 17]] = -1
    real = labels >= 0
    found, is_one = logits.argmax(1)[real] == 1, labels[real] == 1
    precision, recall = is_one[found].mean(), found[is_one].mean()
    metrics = two_class_metrics(logits, labels)
    assert set(metrics) == set(Classification.METRICS)
    np.testing.assert_allclose(metrics["f1"], 2 / (1 / precision + 1 / recall), rtol=1e-6)
    np.testing.assert_allclose(metrics["matthews"], np.corrcoef(found, is_one)[0, 1], rtol=1e-6)
    assert 0.2 < metrics["matthews"] < 0.9


def test_f1_and_matthews_correlation_where_one_class_is_all_there_is():
    zeros = np.zeros(6, np.int32)
    never = two_class_metrics(np.tile(np.array([[1, 0]], np.float32), (6, 1)), zeros)
    assert (never["accuracy"], never["f1"], never["matthews"]) == (1, 0, 0)
    always = two_class_metrics(np.tile(np.array([[0, 1]], np.float32), (6, 1)), zeros + 1)
    assert (always["accuracy"], always["f1"], always["matthews"]) == (1, 1, 0)


def test_images_reach_the_model_as_they_are_and_become_minus_one_to_one_there():
    images = np.array([[[[0], [51]], [[204], [255]]]], np.uint8)
    seen = {}

    def apply(variables, **arguments):
        seen.update(arguments)
        return jnp.zeros((1, 2))

    loss, _ = Classification().loss(
        apply, {}, {"images": images, "labels": np.array([1], np.int32)}, {}, train=False
    )
    assert set(seen) == {"images", "train", "rngs"} and seen["images"].dtype == jnp.uint8
    np.testing.assert_allclose(scaled_pixels(seen["images"]).ravel(), [-1, -0.6, 0.6, 1], atol=1e-6)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)


def test_other_classes_than_the_model_tells_are_not_passed_over():
    batch = {"images": np.zeros((1, 1, 1, 1), np.uint8), "labels": np.array([2], np.int32)}

    def apply(*_, **__):
        return jnp.full((1, 2), -0.5)

    loss, sums = Classification().loss(apply, {}, batch, {}, train=False)
    assert np.isnan(loss) and float(sums["correct"]) == 0
    with pytest.raises(ValueError, match=r"the model has 2 classes, but objective.labels=\('a',\) names 1"):
        Classification(labels=("a",)).loss(apply, {}, batch, {}, train=False)


@pytest.mark.parametrize("reads_types", [False, True])
def test_a_model_of_fewer_than_two_types_gets_none(reads_types):
    facts = ModelFacts(num_labels=2, reads_types=reads_types)
    transform = BoundTransform(Classification(cut_long=True), ToyTokenizer(), 8, train=True, model=facts)
    tokens = transform.encode({"inputs": A, "pair": B, "labels": 0})
    (piece,) = transform.pieces(tokens, np.random.default_rng(0), lambda: tokens)
    assert len(piece["inputs"]) == 8 and int(piece["labels"]) == 0
    assert ("inputs_types" in piece) == reads_types
