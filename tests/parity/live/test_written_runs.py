"""A run that was trained here and written by ``save_pretrained`` is read by transformers' own classes."""

import numpy as np
import pytest

import transformer_jax as tj
from tests.compilations import on_one_device
from tests.test_export import TOKENS, experiment_in, logits_of
from transformer_jax.training.loop import train

pytestmark = pytest.mark.live


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(name, marks=pytest.mark.everything) for name in ("bert", "t5"))]
)
def test_a_written_run_gives_the_same_logits_there(name, tmp_path, transformers, load, run):
    with on_one_device():
        train(experiment_in(name, tmp_path), str(tmp_path / "run"))
    ours = tj.from_run(tmp_path / "run")
    folder = tmp_path / "folder"
    tj.save_pretrained(folder, ours)
    architecture = {
        "bert": "BertForSequenceClassification",
        "gpt2": "GPT2LMHeadModel",
        "t5": "T5ForConditionalGeneration",
    }[name]
    tokens = np.array(TOKENS)  # a copy, for PyTorch wants to be able to write
    mask = (tokens != ours.config.pad_id).astype(np.int32)
    arguments = {"input_ids": tokens, "attention_mask": mask}
    if name == "t5":  # ours shifts by itself
        start = np.full((len(tokens), 1), ours.config.decoder_start_id)
        arguments["decoder_input_ids"] = np.concatenate([start, tokens[:, :-1]], axis=1)
    theirs = run(load(folder, architecture), arguments)["logits"]
    found = logits_of(ours)
    real = slice(None) if name == "bert" else mask == 1
    assert np.abs(found).max() > 0.01
    np.testing.assert_allclose(found[real], theirs[real], rtol=1e-5, atol=1e-5)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == ours.tokenizer.vocab_size
    for text in ("red blue", "plum, né"):
        encoded = tokenizer(text, add_special_tokens=False).input_ids
        assert encoded == ours.tokenizer.encode(text).tolist()
    if name == "bert":
        assert load(folder, architecture).config.id2label == {0: "a", 1: "b", 2: "c"}
