"""RoBERTa as its folders have it: where positions begin, whose models are read, what is refused."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import models, pre_tokenizers, processors

import transformer_jax as tj
from tests.drawn import drawn_params
from tests.parity.test_fixtures import STORED
from transformer_jax.config import ConfigError
from transformer_jax.data import pad_batch
from transformer_jax.families import FAMILIES, family_of, roberta
from transformer_jax.inference.model import Pretrained
from transformer_jax.objectives import MaskedLM

SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
SIZES = dict(vocab_size=20, d_model=8, num_heads=2, key_size=4, value_size=4, d_feedforward=12)


@pytest.fixture
def folder(tmp_path):
    """Returns the fixture with a tokenizer whose pairs have two tokens between the texts."""
    folder = shutil.copytree(STORED / "roberta_sequence", tmp_path / "roberta")
    vocabulary = SPECIAL | {f"w{i}": i for i in range(5, 20)}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(SPECIAL))
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made.save(str(folder / "tokenizer.json"))
    return folder


def change(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_pair_is_read_as_the_tokenizer_has_it_and_without_types(folder):
    model = tj.from_pretrained(folder)
    ids = jnp.array([[0, 5, 6, 2, 2, 7, 2]])
    logits = jax.jit(model.model.apply)({"params": model.params}, ids)[0]
    found = dict(model.classify(("w5 w6", "w7")))
    np.testing.assert_allclose([found[f"LABEL_{i}"] for i in range(3)], jax.nn.softmax(logits), rtol=1e-4)


def test_the_longest_text_is_two_shorter_than_the_table(folder):
    model = tj.from_pretrained(folder)
    assert model.config.max_length == 12 and model.params["embed_inputs"]["positions"]["embedding"].shape == (
        14,
        8,
    )
    longest = " ".join(["w7"] * 10)
    assert np.isfinite(model.embed(longest)).all()
    with pytest.raises(ValueError, match="text 1 has 13 tokens, the model takes 12"):
        model.embed(longest + " w8")


@pytest.mark.parametrize("model_type", ["xlm-roberta", "camembert"])
def test_models_that_compute_the_same_are_read_and_written_as_roberta(folder, model_type, tmp_path):
    wanted = tj.from_pretrained(folder)
    change(folder, model_type=model_type, architectures=["OfAnotherName"])
    found = tj.from_pretrained(folder)
    assert found.config == wanted.config and found.labels == wanted.labels
    tj.save_pretrained(tmp_path / "again", found)
    content = json.loads((tmp_path / "again/config.json").read_text())
    assert (content["model_type"], content["architectures"]) == (
        "roberta",
        ["RobertaForSequenceClassification"],
    )
    assert content["max_position_embeddings"] == 14 and content["pad_token_id"] == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("type_vocab_size", 2),
        ("hidden_act", "relu"),
    ],
)
def test_other_models_are_refused(folder, key, value):
    change(folder, **{key: value})
    with pytest.raises(
        ConfigError, match=f"has {key}={value!r}, but this library supports only .* for the family roberta"
    ):
        tj.from_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("max_position_embeddings", "514"), ("layer_norm_eps", "1e-5"), ("pad_token_id", [1])]
)
def test_a_value_of_another_type_is_named(folder, key, value):
    change(folder, **{key: value})
    with pytest.raises(ConfigError, match=re.escape(f"has {key}={value!r}, which must be one number")):
        tj.from_pretrained(folder)


def test_names_without_the_prefix_and_an_unused_pooler(tmp_path):
    """As in the folders of sentence-transformers, and of the released models, which have the pooler too."""
    folder = shutil.copytree(STORED / "roberta_masked_lm", tmp_path / "roberta")
    tensors = load_file(folder / "model.safetensors")
    pooler = {"weight": np.full((8, 8), 0.5, np.float32), "bias": np.ones(8, np.float32)}
    save_file(
        tensors | {f"roberta.pooler.dense.{k}": v for k, v in pooler.items()}, folder / "model.safetensors"
    )
    model = tj.from_pretrained(folder)
    assert model.config.head == "masked_tokens"
    bare = {k.removeprefix("roberta."): v for k, v in tensors.items() if k.startswith("roberta.")}
    save_file(bare | {f"pooler.dense.{k}": v for k, v in pooler.items()}, folder / "model.safetensors")
    again = tj.from_pretrained(folder)
    assert again.config.head == "pooled"
    assert (np.asarray(again.params["head"]["pooler"]["dense"]["kernel"]) == 0.5).all()
    for part in ("embedding", "embed_inputs", "encoder"):
        assert jax.tree.all(jax.tree.map(np.array_equal, again.params[part], model.params[part]))


# That of RoBERTa is the one of its family; another one is read and written for every change.
@pytest.mark.parametrize("pad_id", [*(pytest.param(i, marks=pytest.mark.everything) for i in (0, 1)), 3])
def test_positions_begin_after_the_id_of_padding(pad_id, tmp_path):
    config = roberta.config("tiny", **SIZES, num_encoder_layers=1, max_length=9, pad_id=pad_id, eos_id=2)
    assert config.front_end.position_offset == pad_id + 1 and family_of(config) is roberta.FAMILY
    model = Pretrained(FAMILIES["roberta"], config, drawn_params(config))
    tj.save_pretrained(tmp_path, model)
    assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == 9 + pad_id + 1
    again = tj.from_pretrained(tmp_path)
    assert again.config == config
    ids = jnp.array([[5, 6, 7, pad_id, pad_id]])  # found to be padding by its id alone
    apply = jax.jit(model.model.apply)
    alone = apply({"params": model.params}, ids[:, :3])
    np.testing.assert_allclose(apply({"params": model.params}, ids)[:, :3], alone, atol=1e-5)


def test_another_start_of_positions_cannot_be_written(tmp_path):
    config = roberta.config("tiny", **SIZES, num_encoder_layers=1, max_length=9, position_offset=5)
    model = Pretrained(FAMILIES["roberta"], config, drawn_params(config))
    with pytest.raises(ConfigError, match=r"position_offset=5.* would be read as .*position_offset=2"):
        tj.save_pretrained(tmp_path, model)


def test_training_does_not_depend_on_padding():
    """Batches are padded with id 0, which is <s> here: segments say what is padding."""
    config = roberta.config("tiny", **SIZES, num_encoder_layers=1, dropout=0.0, attention_dropout=0.0)
    params, apply, objective = drawn_params(config), tj.build(config).apply, MaskedLM()
    rows = [np.array([0, 4, 7, 2]), np.array([0, 9, 5, 4, 8, 2])]
    examples = [
        {"inputs": row, "targets": row[::-1], "targets_weights": (row == 4).astype(int)} for row in rows
    ]

    def loss(own, arrays):
        return objective.loss(apply, own, arrays, {}, train=True)[0]

    compiled = jax.jit(jax.grad(loss))

    def gradient(length, pad_id):
        batch = pad_batch([[example] for example in examples], length, pad_id=pad_id)
        return compiled(params, jax.tree.map(jnp.asarray, batch))

    wanted = gradient(6, 1)
    used = np.abs(wanted["embed_inputs"]["positions"]["embedding"]).max(axis=1) > 0
    assert np.flatnonzero(used).tolist() == [2, 3, 4, 5, 6, 7]  # of the longer text
    for length, pad_id in ((6, 0), (9, 0), (9, 1)):
        found = gradient(length, pad_id)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)
