"""A label that is a number beyond the model's classes: one error at the example, before any update."""

import dataclasses
import json
import struct

import numpy as np
import pytest

from tests.training.test_initialization import tiny_bert
from transformer_jax.data import DataError, SourceConfig
from transformer_jax.evaluation.scoring import evaluate_run
from transformer_jax.families import vit
from transformer_jax.objectives import Classification, TokenClassification
from transformer_jax.runs.folder import load_or_train_tokenizer
from transformer_jax.runs.loading import TrainedRun
from transformer_jax.sharding import partitioning
from transformer_jax.training.loop import train

SPLITS = ("train", "validation", "test")
COUNT, PLACE = 24, 16  # examples of a split, and which of them has the wrong label
RIGHT, WRONG = 2, 3


def labels_of(is_wrong):
    return [WRONG if is_wrong and i == PLACE else i % (RIGHT + 1) for i in range(COUNT)]


def write_texts(folder, wrong, as_words):
    """JSONL, in which the wrong label is text, or that of the last word."""
    for split in SPLITS:
        lines = []
        for i, label in enumerate(labels_of(split == wrong)):
            words = ["red", "blue", "green"][: 1 + i % 3]
            of_words = dict(inputs=words, labels=[0] * (len(words) - 1) + [label])
            lines.append(of_words if as_words else dict(inputs=" ".join(words), labels=str(label)))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {split: (f"{split}.jsonl",) for split in SPLITS}
    features = (("inputs", "inputs"), ("labels", "labels"))
    return SourceConfig(kind="jsonl", folder=str(folder), features=features, **files)


def write_images(folder, wrong):
    for split in SPLITS:
        pixels = np.arange(COUNT * 16, dtype=np.uint8).tobytes()
        (folder / f"{split}.images").write_bytes(struct.pack(">IIII", 0x0803, COUNT, 4, 4) + pixels)
        labels = bytes(labels_of(split == wrong))
        (folder / f"{split}.labels").write_bytes(struct.pack(">II", 0x0801, COUNT) + labels)
    files = {split: (f"{split}.images", f"{split}.labels") for split in SPLITS}
    return SourceConfig(kind="idx", folder=str(folder), features=(("images", ""), ("labels", "")), **files)


def experiment_of(kind, corpus, folder, wrong=None):
    """Tells ``RIGHT`` + 1 classes apart, whose labels have no names, on data of which one split is wrong."""
    experiment = tiny_bert(corpus, train=dict(num_steps=1), data=dict(buckets=(), batch_size=8))
    model, num_labels = experiment.model, RIGHT + 1
    if kind == "images":
        source, objective = write_images(folder, wrong), Classification()
        shape = dict(d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=32)
        model = vit.config(
            "Ti/16", image_shape=(4, 4, 1), patch_size=2, num_encoder_layers=1, num_labels=num_labels, **shape
        )
    else:
        source = write_texts(folder, wrong, kind == "words")
        objective = TokenClassification() if kind == "words" else Classification()
        head = "token_classes" if kind == "words" else "classes"
        model = dataclasses.replace(model, head=head, num_labels=num_labels)
    data = dataclasses.replace(experiment.data, source=source)
    return dataclasses.replace(experiment, model=model, objective=objective, data=data)


def message(purpose):
    return (
        f"example {PLACE + 1} of those to {purpose}: the label {WRONG} is beyond config.model.num_labels=3: "
        f"it must be from 0 to {RIGHT}"
    )


@pytest.mark.parametrize("kind", ["texts", "words", "images"])
@pytest.mark.parametrize(
    ("split", "purpose"), [("train", "train on"), ("validation", "evaluate"), ("test", "evaluate")]
)
def test_a_label_beyond_the_models_classes_is_one_error_before_any_update(
    kind, split, purpose, corpus, tmp_path
):
    experiment = experiment_of(kind, corpus, tmp_path, split)
    with pytest.raises(DataError) as caught:
        train(experiment, str(tmp_path / "run"))
    assert str(caught.value) == message(purpose)
    assert not any((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.parametrize("kind", ["texts", "words", "images"])
def test_such_a_label_is_the_same_error_when_a_run_is_evaluated(kind, corpus, tmp_path):
    experiment = experiment_of(kind, corpus, tmp_path, "test")
    run = TrainedRun(experiment, load_or_train_tokenizer(tmp_path, experiment), {}, (1,))
    with pytest.raises(DataError) as caught:
        evaluate_run(run, partitioning.make_mesh(experiment.mesh))
    assert str(caught.value) == message("evaluate")


def test_the_last_class_is_none_too_many(corpus, tmp_path):
    experiment = experiment_of("images", corpus, tmp_path)
    assert train(experiment, str(tmp_path / "run"))["steps"] == 1
