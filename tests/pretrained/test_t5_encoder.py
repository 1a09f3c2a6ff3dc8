"""The encoder of T5 alone: which checkpoints it reads, and what they compute."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.test_fixtures import STORED, expected
from tests.pretrained.test_reading import change_config
from transformer_jax.config import ConfigError
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained


@pytest.mark.parametrize("name", ["t5", "t5_v1_1"])
def test_the_encoder_of_a_whole_t5(name, tmp_path):
    ours, arrays = from_pretrained(STORED / name, family="t5_encoder"), expected(name)
    save_pretrained(tmp_path, ours)
    again = from_pretrained(tmp_path)
    assert again.family.name == "t5_encoder" and again.config == ours.config
    tokens, mask = (jnp.asarray(arrays[key]) for key in ("input_ids", "attention_mask"))
    for model in (ours, again):
        found = jax.jit(model.model.apply)({"params": model.params}, inputs=tokens, inputs_segments=mask)
        real = arrays["attention_mask"] == 1
        wanted = arrays["encoder_last_hidden_state"]
        np.testing.assert_allclose(np.asarray(found)[real], wanted[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "family"),
    [
        ("t5", {}, "t5"),
        ("t5_v1_1", dict(architectures=None), "t5"),
        ("t5_v1_1", dict(model_type="mt5", architectures=["MT5ForConditionalGeneration"]), "t5"),
        (
            "t5_v1_1",  # as transformers 5 writes an mT5
            dict(
                model_type="mt5",
                architectures=["MT5ForConditionalGeneration"],
                tie_word_embeddings=True,
                scale_decoder_outputs=None,
            ),
            "t5",
        ),
        ("t5_encoder", {}, "t5_encoder"),
        ("t5_encoder", dict(model_type="mt5", architectures=["MT5EncoderModel"]), "t5_encoder"),
    ],
)
def test_the_class_of_a_checkpoint_decides_between_families(name, changes, family, tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))
    change_config(folder, **changes)
    found, plain = from_pretrained(folder), from_pretrained(STORED / name)
    assert found.family.name == family and found.config == plain.config
    assert jax.tree.all(jax.tree.map(np.array_equal, found.params, plain.params))


@pytest.mark.parametrize("family", ["bert", "t5_decoder"])
def test_a_family_that_does_not_read_a_checkpoint(family):
    with pytest.raises(
        ConfigError, match=rf"which family='{family}' does not read; use 't5' or 't5_encoder'"
    ):
        from_pretrained(STORED / "t5", family=family)
