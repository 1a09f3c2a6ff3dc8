"""What ``classify`` says of classes: their names, and probabilities that sum to 1 or do not."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from tests.parity.test_fixtures import STORED
from tests.word_tokenizers import word_tokenizer
from transformer_jax.config import ConfigError
from transformer_jax.models import build
from transformer_jax.pretrained.config_json import _labels
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained

TEXTS = ["w5 w9", "w20 w21 w22", ("w5", "w9")]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with names of its own, in an order of their own."""
    folder = shutil.copytree(STORED / "bert_sequence", tmp_path / "bert")
    word_tokenizer("bert", folder)
    change(folder, id2label={"2": "sad", "0": "happy", "1": "neither"})
    return folder


def change(folder, **keys):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | keys))


@functools.cache
def compiled(config):
    return jax.jit(build(config).apply)


def logits_of(model, text):
    parts = (text,) if isinstance(text, str) else text
    ids, types = [2], [0]
    for number, part in enumerate(parts):
        own = [*(int(word[1:]) for word in part.split()), 3]
        ids, types = ids + own, types + [number] * len(own)
    arrays = dict(inputs=jnp.array([ids]), inputs_types=jnp.array([types]))
    found = compiled(model.config)({"params": model.params}, **arrays)
    return np.asarray(found)[0].astype(np.float64)


def test_names_are_those_of_the_checkpoint_there_and_back(folder, tmp_path):
    model = from_pretrained(folder)
    assert model.labels == ("happy", "neither", "sad")
    for text in TEXTS:
        best = logits_of(model, text).argmax()
        assert model.classify(text)[0][0] == model.labels[best]
    save_pretrained(tmp_path / "again", model)
    content = json.loads((tmp_path / "again/config.json").read_text())
    assert content["id2label"] == {"0": "happy", "1": "neither", "2": "sad"}
    assert content["label2id"] == {"happy": 0, "neither": 1, "sad": 2}
    assert from_pretrained(folder, num_labels=4).labels == ()  # they were of another head


def test_eleven_names_are_in_the_order_of_their_numbers():
    names = {str(i): f"name {i}" for i in (10, 3, 0, 1, 2, 4, 5, 6, 7, 8, 9)}
    assert _labels({"id2label": names}, pathlib.Path("config.json")) == tuple(f"name {i}" for i in range(11))


def test_classes_that_do_not_exclude_one_another_have_each_a_probability(folder, tmp_path):
    change(folder, problem_type="multi_label_classification")
    model = from_pretrained(folder)
    for text, row in zip(TEXTS, model.classify(TEXTS), strict=True):
        wanted = dict(zip(model.labels, 1 / (1 + np.exp(-logits_of(model, text))), strict=True))
        assert dict(row) == pytest.approx(wanted, abs=1e-5)
        assert [name for name, _ in row] == sorted(wanted, key=lambda name: -wanted[name])
    save_pretrained(tmp_path / "again", model)
    assert from_pretrained(tmp_path / "again").problem_type == "multi_label_classification"
    assert "problem_type" not in json.loads((STORED / "bert_sequence/config.json").read_text())


def test_a_number_is_no_class(folder):
    change(folder, problem_type="regression")
    with pytest.raises(ConfigError, match="gives one number for an input, and no classes"):
        from_pretrained(folder).classify(TEXTS)
    one = from_pretrained(folder, num_labels=1)
    with pytest.raises(ConfigError, match="gives one number for an input, and no classes"):
        one.classify(TEXTS)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_a_text_at_least(folder, batch_size):
    model = from_pretrained(folder)
    bare = dataclasses.replace(model, config=dataclasses.replace(model.config, head="none", num_labels=0))
    for call in (model.classify, bare.embed):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} must be at least 1"):
            call(TEXTS[:2], batch_size=batch_size)


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        (("w5", "w6", "w7"), r"input 1 is \('w5', 'w6', 'w7'\)"),
        (["w5", ["w5"]], r"input 2 is \['w5'\]"),
        ([("w5", None)], r"input 1 is \('w5', None\)"),
        ([None], "input 1 is None"),
        ([b"w" * 100], r"input 1 is b'w{58}\.\.\."),
    ],
)
def test_what_is_neither_a_text_nor_a_pair_is_named(inputs, named, folder, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as with users
    model = from_pretrained(folder)
    with pytest.raises(ValueError, match=rf"^{named}, not a text or a pair of texts$"):
        model.classify(inputs)
