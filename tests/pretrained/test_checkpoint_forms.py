"""The forms in which published checkpoints come: tensors left over, stored twice, left out, renamed."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.test_fixtures import STORED
from tests.pretrained.test_reading import change_config, change_tensors, equal
from transformer_jax.families import FAMILIES
from transformer_jax.pretrained import tensor_files
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.tensor_files import SINGLE_FILE, TensorFiles, WeightsError


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


def test_the_class_of_another_model_type_says_so_too(tmp_path, monkeypatch):
    bert = FAMILIES["bert"]
    also = {"otherbert": {head: f"Other{name}" for head, name in bert.checkpoint.architectures.items()}}
    checkpoint = dataclasses.replace(bert.checkpoint, also=also)
    monkeypatch.setitem(FAMILIES, "bert", dataclasses.replace(bert, checkpoint=checkpoint))
    folder = copy_of("bert_sequence", tmp_path)
    for architecture, head in (
        ("OtherBertForSequenceClassification", "classes"),
        ("OtherBertForTokenClassification", "token_classes"),
    ):
        change_config(folder, model_type="otherbert", architectures=[architecture])
        assert from_pretrained(folder).config.head == head


SHARED, WORDS = "model.shared.weight", "bert.embeddings.word_embeddings.weight"
# By fixture: the names under which a tensor is stored once more, and whose it is.
COPIES = {
    "gpt2": {"lm_head.weight": "transformer.wte.weight"},
    "t5": dict.fromkeys(
        ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight"
    ),
    "t5_v1_1": dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight"),
    "bart": dict.fromkeys(
        ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"), SHARED
    ),
    "marian": dict.fromkeys(
        ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"), SHARED
    ),
    "bert_masked_lm": {
        "cls.predictions.decoder.weight": WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "bert_pretraining": {
        "cls.predictions.decoder.weight": WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
}
# By fixture: names and shapes of what holds nothing that is learned, or that the model here does not have.
UNREAD = {
    "gpt2": {
        f"transformer.h.{i}.attn.{name}": shape
        for i in range(2)
        for name, shape in (("bias", (1, 1, 24, 24)), ("masked_bias", (1,)))
    },
    "t5": {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (8, 3)},
    "marian": {f"model.{stack}.embed_positions.weight": (20, 16) for stack in ("encoder", "decoder")},
    "vit": {"vit.pooler.dense.weight": (16, 16), "vit.pooler.dense.bias": (16,)},
    "bert_sequence": {"bert.embeddings.position_ids": (1, 14)},
}
# By fixture: what the model alone, without what stands beside it, does not have; its names have no prefix.
BARE = {
    "gpt2": ("transformer.", ()),
    "bart": ("model.", ("final_logits_bias",)),
    "marian": ("model.", ("final_logits_bias",)),
}


@pytest.mark.parametrize("name", sorted({*COPIES, *UNREAD}))
def test_what_is_stored_twice_or_is_not_read_changes_nothing(name, tmp_path):
    folder, plain = copy_of(name, tmp_path), from_pretrained(STORED / name)

    def add(tensors):
        for copy, original in COPIES.get(name, {}).items():
            tensors[copy] = tensors[original].copy()
        for unread, shape in UNREAD.get(name, {}).items():
            tensors[unread] = np.full(shape, 0.5, np.float32)

    change_tensors(folder, add)
    found = from_pretrained(folder)
    assert found.config == plain.config and equal(found.params, plain.params)


@pytest.mark.parametrize(
    ("name", "copy"), [(name, copy) for name, copies in COPIES.items() for copy in copies]
)
def test_a_copy_that_differs_is_contradictory(name, copy, tmp_path):
    folder, original = copy_of(name, tmp_path), COPIES[name][copy]

    def add(tensors):
        tensors[copy] = tensors[original].copy()
        tensors[copy].flat[-1] += 1  # one number of them

    change_tensors(folder, add)
    message = rf"(?m)^  contradictory: {copy}, which is not what {original} is$"
    with pytest.raises(WeightsError, match=message):
        from_pretrained(folder)


@pytest.mark.parametrize("name", BARE)
def test_a_model_without_a_prefix_is_the_same(name, tmp_path):
    folder, plain = copy_of(name, tmp_path), from_pretrained(STORED / name)
    prefix, absent = BARE[name]

    def strip(tensors):
        for stored in list(tensors):
            array = tensors.pop(stored)
            if stored not in absent:
                tensors[stored.removeprefix(prefix)] = array
        for unread, shape in UNREAD.get(name, {}).items():
            tensors[unread.removeprefix(prefix)] = np.full(shape, 0.5, np.float32)

    change_tensors(folder, strip)
    found = from_pretrained(folder)
    params = plain.params
    if absent:
        params = params | {"logits": {"bias": np.zeros(67, np.float32)}}
    assert found.config == plain.config and equal(found.params, params)


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_a_bias_of_logits_that_is_not_stored_is_zero(name, tmp_path):
    folder, plain = copy_of(name, tmp_path), from_pretrained(STORED / name)
    change_tensors(folder, lambda tensors: tensors.pop("final_logits_bias"))
    assert np.any(plain.params["logits"]["bias"])
    zero = {"logits": {"bias": np.zeros(67, np.float32)}}
    assert equal(from_pretrained(folder).params, plain.params | zero)


@pytest.mark.parametrize("has_pooler", [True, False])
def test_vit_alone_has_no_prefix_and_may_have_a_pooler(has_pooler, tmp_path):
    folder, plain = copy_of("vit", tmp_path), from_pretrained(STORED / "vit", head="none")

    def strip(tensors):
        del tensors["classifier.weight"], tensors["classifier.bias"]
        for stored in list(tensors):
            tensors[stored.removeprefix("vit.")] = tensors.pop(stored)
        for pooler, shape in UNREAD["vit"].items() if has_pooler else ():
            tensors[pooler.removeprefix("vit.")] = np.full(shape, 0.5, np.float32)

    change_tensors(folder, strip)
    alone = from_pretrained(folder, head="none")
    assert alone.config == plain.config and equal(alone.params, plain.params)
    found = from_pretrained(folder)
    head = {"head": {"pooler": {"dense": {"kernel": np.full((16, 16), 0.5), "bias": np.full(16, 0.5)}}}}
    assert found.config.head == ("pooled" if has_pooler else "none")
    assert equal(found.params, plain.params | (head if has_pooler else {}))


# In rows of 100 bytes at most: one row, several, not all the same number of them, numbers without rows.
@pytest.mark.parametrize("shape", [(7, 30), (7, 5), (11, 2, 4), (60,), (1, 3)])
def test_a_tensor_that_is_read_in_pieces_is_the_whole_tensor(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "_BYTES_AT_ONCE", 100)
    numbers = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    save_file({"one": numbers, "other": -numbers}, tmp_path / SINGLE_FILE)
    files, stored = TensorFiles(tmp_path), load_file(tmp_path / SINGLE_FILE)
    for name in ("one", "other"):
        np.testing.assert_array_equal(files.read(name), stored[name], strict=True)


def test_a_model_that_is_read_in_pieces_is_the_whole_model(monkeypatch):
    whole = from_pretrained(STORED / "bart").params
    monkeypatch.setattr(tensor_files, "_BYTES_AT_ONCE", 100)
    assert equal(from_pretrained(STORED / "bart").params, whole)
