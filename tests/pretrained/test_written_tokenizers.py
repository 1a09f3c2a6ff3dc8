"""What ``save_pretrained`` says of tokenizers, and what ``from_pretrained`` takes for a model's tokenizer."""

import dataclasses
import json
import shutil

import pytest
import tokenizers
from tokenizers import AddedToken, processors

from tests.parity.test_fixtures import STORED
from tests.word_tokenizers import word_tokenizer
from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer, TokenizerConfig, train_tokenizer
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained

SPECIAL = TokenizerConfig(kind="byte", special_tokens=("<cls>", "<sep>"))


def with_tokenizer(name, tokenizer):
    """A model of a fixture beside a tokenizer, whatever its size."""
    return dataclasses.replace(from_pretrained(STORED / name), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("bert_sequence", ["input_ids", "token_type_ids", "attention_mask"]),
        ("gpt2", ["input_ids", "attention_mask"]),
        ("bart", ["input_ids", "attention_mask"]),
    ],
)
def test_it_is_said_which_arrays_the_model_takes(name, inputs, tmp_path):
    save_pretrained(tmp_path, with_tokenizer(name, train_tokenizer(SPECIAL, [])))
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert content["model_input_names"] == inputs


@pytest.mark.parametrize(
    ("name", "one", "two"),
    [
        ("bert_sequence", "<cls> A <sep>", "<cls> A <sep> B <sep>"),
        ("bart", "A <eos>", "A <eos> B <eos>"),
        ("gpt2", "A", "A B"),
    ],
)
def test_a_tokenizer_trained_here_says_what_the_model_is_given(name, one, two, tmp_path):
    ours = train_tokenizer(SPECIAL, [])
    save_pretrained(tmp_path, with_tokenizer(name, ours))
    written = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    single, pair = written.encode("A"), written.encode("A", "B")
    assert (single.tokens, pair.tokens) == (one.split(), two.split())
    if name == "bert_sequence":
        assert pair.type_ids == [0, 0, 0, 1, 1]
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.fingerprint == ours.fingerprint
    assert again.encode("x <eos>").tolist() == ours.encode("x <eos>").tolist()


@pytest.mark.parametrize(
    ("name", "one", "two"),
    [("bert_sequence", "<cls> A <sep>", "<cls> A <sep> B <sep>"), ("bart", "A <eos>", "A <eos> B <eos>")],
)
def test_a_post_processor_that_adds_no_tokens_is_no_template(name, one, two, tmp_path):
    """As in GPT-2's file: training then adds the tokens by their roles, and so must the written file."""
    train_tokenizer(SPECIAL, []).save(tmp_path / "tokenizer.json")
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    made.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path / "tokenizer.json")
    save_pretrained(tmp_path / "new", with_tokenizer(name, ours))
    path = tmp_path / "new/tokenizer.json"
    written = tokenizers.Tokenizer.from_file(str(path))
    assert (written.encode("A").tokens, written.encode("A", "B").tokens) == (one.split(), two.split())
    if name == "bert_sequence":
        trained, found = ours.template(2), Tokenizer.load(path).template(2)
        assert [part.tolist() for part in trained] == [part.tolist() for part in found]
    kinds = [part["type"] for part in json.loads(path.read_text())["post_processor"]["processors"]]
    assert kinds == ["ByteLevel", "TemplateProcessing"]


def test_a_template_that_is_there_stays(tmp_path):
    theirs = word_tokenizer("bart", tmp_path)
    save_pretrained(tmp_path / "new", with_tokenizer("bart", theirs))
    assert json.loads((tmp_path / "new/tokenizer.json").read_text()) == json.loads(
        (tmp_path / "tokenizer.json").read_text()
    )


def test_special_tokens_may_be_more_than_the_model_has_but_not_in_its_texts(tmp_path):
    folder = shutil.copytree(STORED / "bart", tmp_path / "bart")
    word_tokenizer("bart", folder)
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens([AddedToken("<more>", special=True)])
    made.save(str(folder / "tokenizer.json"))
    model = from_pretrained(folder)
    assert model.tokenizer.vocab_size == model.config.vocab_size + 1
    assert model.generate("w5 w9", max_new_tokens=3) == model.generate(["w5 w9"], max_new_tokens=3)[0]
    with pytest.raises(ValueError, match=r"text 2 has the token 67, .* the model, with 67 tokens, does not"):
        model.generate(["w5", "w5 <more>"])
    made.add_tokens(["usual"])
    made.save(str(folder / "tokenizer.json"))
    with pytest.raises(ConfigError, match="has 69 tokens, the model only 67: it is the tokenizer of another"):
        from_pretrained(folder)


def test_another_models_tokenizer_does_not_stay_and_other_files_do(tmp_path):
    save_pretrained(tmp_path, with_tokenizer("bert_sequence", train_tokenizer(SPECIAL, [])))
    (tmp_path / "model_best.safetensors").write_bytes(b"someone's")
    save_pretrained(tmp_path, from_pretrained(STORED / "gpt2"), shard_bytes=10_000)
    assert not list(tmp_path.glob("tokenizer*")) and not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "model_best.safetensors").read_bytes() == b"someone's"
    assert from_pretrained(tmp_path).tokenizer is None
    save_pretrained(tmp_path, from_pretrained(STORED / "gpt2"))
    assert not list(tmp_path.glob("model-*"))
