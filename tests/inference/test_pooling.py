"""What folders of sentence-transformers say of how tokens are pooled: read, kept, and refused."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.test_fixtures import STORED
from tests.pretrained.test_hub import NAME, Hub
from tests.word_tokenizers import word_tokenizer
from transformer_jax.config import ConfigError
from transformer_jax.inference.pooling import Pooling
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained

TEXTS = ["w5 w9", "w20 w21 w22 w23 w24", "w9"]
OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."


def write(folder, pooling, *, normalize=False, prefix=OLD, sentences=None, modules=(), where="1_Pooling"):
    """Makes a folder of sentence-transformers of one of transformers."""
    kinds = [("Transformer", ""), ("Pooling", where), *modules]
    kinds += [("Normalize", "2_Normalize")] if normalize else []
    content = [
        {"idx": i, "name": str(i), "path": path, "type": prefix + kind}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / where).mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(content))
    (folder / where / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
    if sentences is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(sentences))


@pytest.fixture
def folder(tmp_path):
    copy = pathlib.Path(shutil.copytree(STORED / "bert_base_model", tmp_path / "bert"))
    word_tokenizer("bert_base_model", copy)
    return copy


@functools.cache
def by_hand():
    """The vectors (L, D) of the tokens of each of ``TEXTS``."""
    model, found = from_pretrained(STORED / "bert_base_model"), []
    apply = jax.jit(model.model.apply)
    for text in TEXTS:
        ids = np.array([[2, *(int(word[1:]) for word in text.split()), 3]], np.int32)
        vectors, _ = apply({"params": model.params}, inputs=jnp.asarray(ids))
        found.append(np.asarray(vectors[0]))
    return found


@pytest.mark.parametrize(
    ("pooling", "prefix"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, OLD),
        ({"pooling_mode": "cls", "include_prompt": True}, NEW),
        ({"pooling_mode": ["cls"]}, NEW),
    ],
    ids=["old", "new", "list"],
)
@pytest.mark.parametrize("normalize", [pytest.param(False, marks=pytest.mark.everything), True])
def test_the_first_tokens_vector(folder, pooling, prefix, normalize, tmp_path):
    write(folder, pooling, normalize=normalize, prefix=prefix)
    model = from_pretrained(folder)
    wanted = np.stack([vectors[0] for vectors in by_hand()])
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(TEXTS), unit if normalize else wanted, atol=2e-6)
    np.testing.assert_allclose(model.embed(TEXTS, normalize=False), wanted, atol=2e-6)
    np.testing.assert_allclose(model.embed(TEXTS, normalize=True), unit, atol=2e-6)
    save_pretrained(tmp_path / "again", model)
    again = from_pretrained(tmp_path / "again")
    assert again.pooling == model.pooling == Pooling("cls", normalize)
    np.testing.assert_array_equal(again.embed(TEXTS), model.embed(TEXTS))


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}, {}], ids=str
)
def test_means_are_normalized_where_the_folder_says_so(folder, pooling):
    write(folder, pooling)
    model = from_pretrained(folder)
    wanted = np.stack([vectors.mean(axis=0) for vectors in by_hand()])
    np.testing.assert_allclose(model.embed(TEXTS), wanted, atol=2e-6)
    write(folder, pooling, normalize=True)
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(from_pretrained(folder).embed(TEXTS), unit, atol=2e-6)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_long_text_is_an_error_or_cut_if_it_is_asked_for(folder, elsewhere):
    limit = {"max_seq_length": None if elsewhere else 5, "do_lower_case": False}
    write(folder, {"pooling_mode_mean_tokens": True}, sentences=limit)
    if elsewhere:  # as sentence-transformers 6 writes it
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 5}')
    model = from_pretrained(folder)
    with pytest.raises(ValueError, match=r"text 2 has 7 tokens, the model takes 5: split it.* --cut, takes"):
        model.embed(TEXTS)
    cut = ["w5 w9", "w20 w21 w22", "w9"]  # beside them [CLS] and [SEP]
    np.testing.assert_array_equal(model.embed(TEXTS, cut=True), model.embed(cut))
    plain = dataclasses.replace(model, pooling=None)
    assert not np.allclose(plain.embed(TEXTS, normalize=False)[1], model.embed(cut)[1], atol=1e-3)
    long = "w7 " * 30  # more than the model has room for
    found = plain.embed(long, cut=True)
    np.testing.assert_array_equal(found, plain.embed("w7 " * (model.config.max_length - 2)))


@pytest.mark.parametrize(
    ("pooling", "options", "message"),
    [
        ({"pooling_mode_max_tokens": True}, {}, r"1_Pooling/config.json has the mode max"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            {},
            r"1_Pooling/config.json has the mode cls with mean",
        ),
        ({"pooling_mode": "lasttoken"}, {}, r"has the mode lasttoken"),
        (
            {"pooling_mode": "mean"},
            {"modules": (("Dense", "2_Dense"),)},
            r"has the modules Transformer, Pooling, Dense",
        ),
        ({}, {"sentences": {"do_lower_case": True}}, r"has do_lower_case=true"),
    ],
)
def test_another_way_to_pool_is_refused_when_vectors_are_asked_for(
    folder, pooling, options, message, tmp_path
):
    write(folder, pooling, **options)
    model = from_pretrained(folder)  # which may be trained from
    with pytest.raises(ConfigError, match=message):
        model.embed(TEXTS)
    with pytest.raises(ConfigError, match=message):
        save_pretrained(tmp_path / "again", model)
    save_pretrained(tmp_path / "again", dataclasses.replace(model, pooling=None))


@pytest.mark.parametrize("content", ["{", "{}", "[3]", '[{"type": "a.Pooling", "path": "../x"}]'])
def test_broken_modules_are_an_error(folder, content):
    (folder / "modules.json").write_text(content)
    with pytest.raises(ConfigError, match=r"modules\.json (cannot be read|must)"):
        from_pretrained(folder)


def test_a_missing_pooling_is_an_error(folder):
    write(folder, {})
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"1_Pooling/config\.json cannot be read"):
        from_pretrained(folder)


def test_another_models_pooling_does_not_stay(folder):
    write(folder, {"pooling_mode": "cls"}, sentences={"max_seq_length": 5})
    save_pretrained(folder, from_pretrained(STORED / "bert_base_model"))
    assert from_pretrained(folder).pooling is None


def test_the_pooling_of_a_name_is_fetched(tmp_path, monkeypatch, folder):
    write(folder, {"pooling_mode": "cls"}, where="pooled/here")
    hub = Hub(tmp_path / "cache")
    files = [path for path in folder.rglob("*") if path.is_file()]
    hub.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    hub.files["onnx/config.json"] = b"{}"
    for function in ("hf_hub_download", "snapshot_download", "list_repo_files"):
        monkeypatch.setattr(huggingface_hub, function, getattr(hub, function))
    assert from_pretrained(NAME).pooling == Pooling("cls", normalize=False)
    assert "onnx/config.json" not in hub.fetched


def test_the_program_says_how_many_were_cut(folder, single_device_environment):
    write(folder, {"pooling_mode": "cls"}, sentences={"max_seq_length": 5})
    command = [sys.executable, "-m", "transformer_jax.embed", f"--model={folder}", "--cut"]
    found = subprocess.run(
        command, input="\n".join(TEXTS), env=single_device_environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "1 texts were cut to 5 tokens" in found.stderr
    vectors = np.array([json.loads(line) for line in found.stdout.splitlines()], np.float32)
    np.testing.assert_array_equal(vectors, from_pretrained(folder).embed(TEXTS, cut=True))
