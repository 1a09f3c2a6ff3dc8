"""DistilBERT as its folders have it."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import transformer_jax as tj
from tests.parity.test_fixtures import STORED
from transformer_jax.pretrained.tensor_files import WeightsError


def test_token_types_which_bert_has_are_refused(tmp_path):
    folder = shutil.copytree(STORED / "distilbert_masked_lm", tmp_path / "distilbert")
    name = "distilbert.embeddings.token_type_embeddings.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: np.ones((2, 8), np.float32)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"not known: {name} \(2, 8\)"):
        tj.from_pretrained(folder)
