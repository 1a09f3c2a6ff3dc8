"""The forms in which published checkpoints come: tensors left over, stored twice, left out, renamed."""

import pathlib
import shutil

import numpy as np
import pytest

from tests.parity.test_fixtures import STORED
from tests.test_pretrained import change_config, change_tensors, equal
from transformer_jax.pretrained import from_pretrained


def copy_of(name, tmp_path):
    return pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))


def add_pooler(tensors):
    tensors["bert.pooler.dense.weight"] = np.full((16, 16), 0.5, np.float32)
    tensors["bert.pooler.dense.bias"] = np.full(16, 0.5, np.float32)


@pytest.mark.parametrize("name", ["bert_tokens", "bert_qa", "bert_masked_lm"])
def test_a_pooler_that_was_left_over_changes_nothing(name, tmp_path):
    folder, plain = copy_of(name, tmp_path), from_pretrained(STORED / name)
    change_tensors(folder, add_pooler)
    found = from_pretrained(folder)
    assert found.config == plain.config and found.labels == plain.labels
    assert equal(found.params, plain.params)


def test_a_pooler_that_was_left_over_is_there_for_another_head(tmp_path):
    folder = copy_of("bert_tokens", tmp_path)
    change_tensors(folder, add_pooler)
    pooler = from_pretrained(folder, head="pooled").params["head"]["pooler"]["dense"]
    assert np.all(pooler["kernel"] == 0.5) and np.all(pooler["bias"] == 0.5)


@pytest.mark.parametrize("architectures", [None, [], ["BertModel"], ["BertForMaskedLM"]])
def test_a_classifier_beside_a_pooler_is_one_of_texts_unless_it_is_said_to_be_one_of_tokens(
    architectures, tmp_path
):
    folder, plain = copy_of("bert_sequence", tmp_path), from_pretrained(STORED / "bert_sequence")
    change_config(folder, architectures=architectures)
    found = from_pretrained(folder)
    assert found.config == plain.config and equal(found.params, plain.params)
