"""Tensors of nothing but zeros: refused where they show a file that is not whole, read where they may be."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.drawn import drawn_params
from tests.parity.test_fixtures import MODELS, STORED
from tests.pretrained.test_reading import change_tensors
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.pretrained.tensor_files import SINGLE_FILE, WeightsError

# By the end of its name: what a model that was trained may have as zeros.
MAY_BE_ZERO = (
    "bias", "final_logits_bias", "cls_token", "position_embeddings", "token_type_embeddings.weight",
    "classifier.weight", "qa_outputs.weight", "seq_relationship.weight",
)  # fmt: skip


def may_be_zero(tensor):
    return tensor.endswith(MAY_BE_ZERO) and tensor != "pre_classifier.weight"  # a hidden layer


@pytest.mark.parametrize("name", MODELS)
def test_a_file_whose_second_half_never_came(name, tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))
    path = folder / SINGLE_FILE
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half:] = bytes(len(content) - half)
    path.write_bytes(content)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    lost = {tensor for tensor, entry in header.items() if start + entry["data_offsets"][0] >= half}
    wanted = {tensor for tensor in lost if not may_be_zero(tensor)}
    assert len(wanted) > 3
    with pytest.raises(WeightsError, match=r"have only zeros, .* download it again\. ") as error:
        from_pretrained(folder)
    assert str(error.value).split("again. ")[1].split(", ") == sorted(wanted)


@pytest.mark.parametrize("name", MODELS)
def test_zeros_that_may_be(name, tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))
    zeroed = []

    def zero(tensors):
        for tensor in tensors:
            if may_be_zero(tensor):
                tensors[tensor] = np.zeros_like(tensors[tensor])
                zeroed.append(tensor)

    change_tensors(folder, zero)
    assert bool(zeroed) == (not name.startswith("t5"))
    save_pretrained(tmp_path / "again", from_pretrained(folder))
    stored = load_file(tmp_path / "again" / SINGLE_FILE)
    assert not any(np.any(stored[tensor]) for tensor in zeroed)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_one_layer_of_several_is_named(scan_layers, tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / "gpt2", tmp_path / "gpt2"))
    lost = "transformer.h.1.mlp.c_fc.weight"
    change_tensors(folder, lambda tensors: tensors.update({lost: np.zeros_like(tensors[lost])}))
    with pytest.raises(WeightsError, match=rf"download it again\. {lost}$"):
        from_pretrained(folder, scan_layers=scan_layers)


DRAWN = ("bert_pretraining", "bert_qa", "gpt2", "t5", "bart", "vit")  # for every change


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.everything] * (name not in DRAWN)) for name in MODELS]
)
def test_a_model_that_was_just_drawn_is_read(name, tmp_path):
    ours = from_pretrained(STORED / name)
    save_pretrained(tmp_path, dataclasses.replace(ours, params=drawn_params(ours.config)))
    from_pretrained(tmp_path)
