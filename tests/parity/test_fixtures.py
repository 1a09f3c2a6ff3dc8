"""The parity fixtures are whole: every model, every array, a gradient for every tensor. Needs no PyTorch."""

import json
import os
import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

STORED = pathlib.Path(__file__).parent / "fixtures"
FIXTURES = pathlib.Path(os.environ.get("TRANSFORMER_JAX_PARITY_FIXTURES") or STORED)

pytestmark = pytest.mark.parity

TEXT = ("input_ids", "attention_mask")
TYPED = (*TEXT, "token_type_ids")
TEXTS = (*TEXT, "decoder_input_ids", "decoder_attention_mask")
DECODE_ARRAYS = {
    "greedy": ("tokens", "lengths", "logits", "log_probs"),
    "beam": ("tokens", "lengths", "log_probs", "scores"),
    "beam_defaults": ("tokens", "lengths", "log_probs", "scores"),
    "beam_reference": ("tokens", "lengths", "log_probs", "scores"),
    "beam_reference_penalized": ("tokens", "lengths", "log_probs", "scores"),
    "beam_ruled": ("tokens", "lengths"),
    "folder_greedy": ("tokens", "lengths"),
    "folder_beam": ("tokens", "lengths"),
}
# Of which each text has its last token forced.
FORCED = {name: ("beam_ruled",) for name in ("gpt2", "t5", "t5_v1_1")}
FORCED |= {name: ("beam_ruled", "folder_greedy", "folder_beam") for name in ("bart", "marian")}
# Class, arguments, outputs.
MODELS = {
    "bert_base_model": ("BertModel", TYPED, ("last_hidden_state", "pooler_output")),
    "bert_masked_lm": ("BertForMaskedLM", TYPED, ("logits",)),
    "bert_pretraining": ("BertForPreTraining", TYPED, ("prediction_logits", "seq_relationship_logits")),
    "bert_next_sentence": ("BertForNextSentencePrediction", TYPED, ("logits",)),
    "bert_sequence": ("BertForSequenceClassification", TYPED, ("logits",)),
    "bert_tokens": ("BertForTokenClassification", TYPED, ("logits",)),
    "bert_qa": ("BertForQuestionAnswering", TYPED, ("start_logits", "end_logits")),
    "roberta_masked_lm": ("RobertaForMaskedLM", TEXT, ("logits",)),
    "roberta_sequence": ("RobertaForSequenceClassification", TEXT, ("logits",)),
    "distilbert_masked_lm": ("DistilBertForMaskedLM", TEXT, ("logits",)),
    "distilbert_sequence": ("DistilBertForSequenceClassification", TEXT, ("logits",)),
    "gpt2": ("GPT2LMHeadModel", TEXT, ("logits",)),
    "t5": ("T5ForConditionalGeneration", TEXTS, ("logits",)),
    "t5_v1_1": ("T5ForConditionalGeneration", TEXTS, ("logits",)),
    "t5_encoder": ("T5EncoderModel", TEXT, ("last_hidden_state",)),
    "bart": ("BartForConditionalGeneration", TEXTS, ("logits",)),
    "marian": ("MarianMTModel", TEXTS, ("logits",)),
    "vit": ("ViTForImageClassification", ("pixel_values",), ("logits",)),
    "vit_base_model": ("ViTModel", ("pixel_values",), ("last_hidden_state", "pooler_output")),
}
DECODING_MODELS = ("gpt2", "t5", "t5_v1_1", "bart", "marian")
# One of every family: what PyTorch computes beside these is compared for every change.
ONE_OF_EACH_FAMILY = (
    "bert_pretraining",
    "roberta_sequence",
    "distilbert_sequence",
    "gpt2",
    "t5_v1_1",
    "bart",
    "marian",
    "vit",
)
# Under these names a tied tensor would be stored once more.
TIED_NAMES = (
    "embed_tokens.weight",
    "cls.predictions.decoder.weight",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "vocab_projector.weight",
    "lm_head.weight",
)


def each_family_once() -> list[Any]:
    """All models as parameters of a test, of which one of each family runs for every change."""
    rare = pytest.mark.everything
    return [pytest.param(name, marks=[rare] * (name not in ONE_OF_EACH_FAMILY)) for name in MODELS]


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / name / "expected.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_every_family_has_a_model_that_runs_for_every_change() -> None:
    assert {name.split("_")[0] for name in ONE_OF_EACH_FAMILY} == {name.split("_")[0] for name in MODELS}


def test_every_model_is_there_and_no_other() -> None:
    assert sorted(path.name for path in FIXTURES.iterdir()) == sorted(MODELS)


def test_the_stored_set_is_small() -> None:
    assert sum(path.stat().st_size for path in STORED.rglob("*") if path.is_file()) < 1_600_000


@pytest.mark.parametrize("name", MODELS)
def test_the_arrays_are_there(name: str) -> None:
    architecture, arguments, outputs = MODELS[name]
    config = json.loads((FIXTURES / name / "config.json").read_text())
    assert config["architectures"] == [architecture]
    arrays = expected(name)
    needed = {*arguments, *outputs, *(f"weights/{output}" for output in outputs)}
    if "decoder_input_ids" in arguments:
        needed.add("encoder_last_hidden_state")
    if name == "gpt2":
        needed |= {f"left/{key}" for key in (*TEXT, "position_ids", "logits")}
    if name in DECODING_MODELS:
        needed |= {f"{kind}/{key}" for kind, keys in DECODE_ARRAYS.items() for key in keys} | {"decoding"}
    assert {key for key in arrays if not key.startswith("grad/")} == needed
    for key, array in arrays.items():
        if array.dtype.kind == "f":
            assert array.dtype == np.float32, key
            assert np.isfinite(array).all(), key
        else:
            assert array.dtype == np.int32 or key == "decoding", key


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_random_and_has_a_gradient(name: str) -> None:
    tensors = load_file(FIXTURES / name / "model.safetensors")
    arrays = expected(name)
    assert {key.removeprefix("grad/") for key in arrays if key.startswith("grad/")} == set(tensors)
    for key, tensor in tensors.items():
        assert tensor.dtype == np.float32
        assert tensor.std() > 0.01, f"{key} is nearly constant"
        assert (tensor != 0).all(), f"{key} has zeros"
        gradient = arrays[f"grad/{key}"]
        assert gradient.shape == tensor.shape
        # What is added to every key changes no attention weight.
        if not key.endswith(("key.bias", "k_proj.bias", "k_lin.bias")):
            assert np.abs(gradient).max() > 1e-3, f"{key} has no part in the outputs"


@pytest.mark.parametrize("name", MODELS)
def test_a_tied_tensor_is_stored_once(name: str) -> None:
    tied = [key for key in load_file(FIXTURES / name / "model.safetensors") if key.endswith(TIED_NAMES)]
    assert tied == (["lm_head.weight"] if name == "t5_v1_1" else [])


@pytest.mark.parametrize("name", MODELS)
def test_outputs_vary_and_weights_leave_out_padding(name: str) -> None:
    arrays = expected(name)
    for output in MODELS[name][2]:
        values, weights = arrays[output], arrays[f"weights/{output}"]
        assert values.shape == weights.shape
        assert values.reshape(len(values), -1).std(axis=0).min() > 1e-4, "rows are alike"
        mask = arrays.get("decoder_attention_mask", arrays.get("attention_mask"))
        if mask is not None and values.shape[:2] == mask.shape:
            assert (weights[mask == 0] == 0).all()
            assert (weights[mask == 1] != 0).all()


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("vit")])
def test_texts_are_padded_on_the_right_and_gpt2_on_both_sides(name: str) -> None:
    arrays = expected(name)
    masks = [arrays[key] for key in ("attention_mask", "decoder_attention_mask") if key in arrays]
    for mask in masks:
        assert len(np.unique(mask.sum(1))) == len(mask)
        assert (np.diff(mask, axis=1) <= 0).all()
    if name == "gpt2":
        assert (np.diff(arrays["left/attention_mask"], axis=1) >= 0).all()
        np.testing.assert_array_equal(arrays["left/attention_mask"].sum(1), masks[0].sum(1))
        for row, length in enumerate(masks[0].sum(1)):
            left, right = arrays["left/logits"][row, -length:], arrays["logits"][row, :length]
            np.testing.assert_allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("name", DECODING_MODELS)
def test_decoded_texts_differ_in_length_and_end_as_they_must(name: str) -> None:
    arrays = expected(name)
    settings = json.loads(str(arrays["decoding"]))
    eos_id, limit = settings["eos_token_id"], settings["max_new_tokens"]
    for kind in DECODE_ARRAYS:
        tokens, lengths = arrays[f"{kind}/tokens"], arrays[f"{kind}/lengths"]
        assert tokens.shape == (*lengths.shape, limit)
        last = np.take_along_axis(tokens, lengths[..., None] - 1, axis=-1)[..., 0]
        assert ((last == eos_id) | (lengths == limit)).all()
        assert (np.arange(limit) >= lengths[..., None])[tokens == settings["pad_token_id"]].all()
        if kind in FORCED[name]:
            assert (last == eos_id).all()
        elif kind not in ("beam_defaults", "folder_beam"):  # long ones are best there, up to the limit
            assert len(np.unique(lengths)) >= 3
            assert (last == eos_id).any()
            assert (last != eos_id).any()
    chosen = arrays["greedy/logits"].argmax(-1)
    real = np.arange(limit) < arrays["greedy/lengths"][:, None]
    np.testing.assert_array_equal(chosen[real], arrays["greedy/tokens"][real])


def test_every_rule_changes_some_beams() -> None:
    sets = [expected(name) for name in DECODING_MODELS]
    for kind in ("beam", "beam_defaults", "beam_reference_penalized", "beam_ruled"):
        differ = [(arrays[f"{kind}/tokens"] != arrays["beam_reference/tokens"]).any() for arrays in sets]
        assert any(differ), kind


def test_both_ways_to_say_that_t5_is_not_tied_are_there() -> None:
    folder = FIXTURES / "t5_v1_1"
    written = json.loads((folder / "config.json").read_text())
    published = json.loads((folder / "config_published.json").read_text())
    assert written["scale_decoder_outputs"] is False
    assert published.pop("tie_word_embeddings") is False
    assert "scale_decoder_outputs" not in published
