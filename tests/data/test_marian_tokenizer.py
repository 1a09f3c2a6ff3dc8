"""SentencePiece files of a MarianMT checkpoint give the tokens that transformers gives."""

import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.parity.test_fixtures import STORED
from transformer_jax.data import DataError, Tokenizer, TokenizerConfig, train_tokenizer
from transformer_jax.data.marian_tokenizer import _read_model, load_marian_tokenizer
from transformer_jax.objectives import Seq2Seq
from transformer_jax.pretrained.reading import from_pretrained

FOLDER = pathlib.Path(__file__).parent / "marian"  # tests/parity/make_marian.py
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
EXPECTED_TARGETS = json.loads((FOLDER / "expected_targets.json").read_text())
VOCABULARY = json.loads((FOLDER / "vocab.json").read_text())
# The source's 150 pieces, three of them special, stand before the target's.
TARGET_ALONE = range(2 + 147, VOCABULARY[">>deu<<"])
OF_TARGET = {piece.piece for piece in _read_model(FOLDER / "target.spm").pieces}
SOURCE_ALONE = {id_ for name, id_ in VOCABULARY.items() if name not in OF_TARGET}


@pytest.fixture
def files(tmp_path):
    return pathlib.Path(shutil.copytree(FOLDER, tmp_path / "marian"))


def with_one_unknown_for_several(ids, lacking=TARGET_ALONE):
    """Transformers looks a run of characters up as a whole where the text's language lacks them."""
    found = []
    for is_run, run in itertools.groupby(ids, key=lacking.__contains__):
        run = list(run)
        found += [1] if is_run and len(run) > 1 else run
    return found


def test_ids_are_those_of_transformers():
    tokenizer = load_marian_tokenizer(FOLDER)
    assert tokenizer.vocab_size == len(VOCABULARY)
    assert tokenizer.role_tokens == {"pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>"}
    same = 0
    for text, wanted in EXPECTED.items():
        found = tokenizer.encode_whole(text, parse_special=text.startswith(">>")).tolist()
        assert wanted in (found, with_one_unknown_for_several(found)), text
        same += wanted == found
    assert same == len(EXPECTED) - 4  # of four texts a run of characters is in the target's language alone


def test_targets_are_parted_by_the_scores_of_their_own_language():
    tokenizer = load_marian_tokenizer(FOLDER)
    same = unlike_sources = 0
    for text, wanted in EXPECTED_TARGETS.items():
        found = tokenizer.targets.encode_whole(text).tolist()
        assert wanted in (found, with_one_unknown_for_several(found, SOURCE_ALONE)), text
        same += wanted == found
        unlike_sources += found != tokenizer.encode_whole(text).tolist()
    assert same == len(EXPECTED_TARGETS) - 3  # a run of characters in three texts is in sources alone
    assert unlike_sources > 40  # the scores are others, not the tokens
    text = "The cat sleeps on the warm stove."
    tokens = Seq2Seq().encode({"inputs": text, "targets": text}, tokenizer)
    assert tokens["targets"].tolist() == EXPECTED_TARGETS[text] != tokens["inputs"].tolist()
    assert tokenizer.decode(tokens["targets"]) == text


def test_a_code_is_read_where_that_is_asked_for_and_nowhere_else():
    tokenizer = load_marian_tokenizer(FOLDER)
    code = VOCABULARY[">>deu<<"]
    assert tokenizer.encode_whole(">>deu<< A dog.", parse_special=True)[0] == code
    assert code not in tokenizer.encode_whole(">>deu<< A dog.")


def test_texts_come_back():
    tokenizer = load_marian_tokenizer(FOLDER)
    for text in ("The cat sleeps on the warm stove.", "Stop! Don't touch that; it's still hot."):
        assert tokenizer.decode(tokenizer.encode_whole(text)) == text


def test_a_checkpoint_with_them_has_a_tokenizer_that_can_be_stored(files, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(STORED / "marian" / name, files)
    with pytest.raises(ValueError, match=f"has {len(VOCABULARY)} tokens, the model only 67"):
        from_pretrained(files)
    # A vocabulary of as many tokens as that model has.
    kept = [name for name, number in VOCABULARY.items() if number < 66] + ["<pad>"]
    (files / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(kept)}))
    tokenizer = from_pretrained(files).tokenizer
    assert tokenizer is not None and tokenizer.vocab_size == 67
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    for text in EXPECTED:
        np.testing.assert_array_equal(again.encode_whole(text), tokenizer.encode_whole(text))
        np.testing.assert_array_equal(again.targets.encode_whole(text), tokenizer.targets.encode_whole(text))
    train_tokenizer(TokenizerConfig(kind="byte"), ()).save(tmp_path / "tokenizer.json")  # in its place
    plain = Tokenizer.load(tmp_path / "tokenizer.json")
    assert plain.targets is plain


def test_what_cannot_be_read_is_one_error(files):
    content = (files / "source.spm").read_bytes()
    for broken, message in (
        (b"", "it has no pieces"),
        (content[:-7], "is not a SentencePiece model"),
        (
            content + b"\x12\x02\x18\x02",
            "a SentencePiece model of type 2: only unigram models",
        ),  # trainer_spec {model_type: BPE}
    ):
        (files / "source.spm").write_bytes(broken)
        with pytest.raises(DataError, match=message):
            load_marian_tokenizer(files)
    (files / "source.spm").write_bytes(content)
    (files / "target.spm").rename(files / "elsewhere")
    with pytest.raises(DataError, match=r"cannot read .*target\.spm: No such file"):
        load_marian_tokenizer(files)
    (files / "elsewhere").rename(files / "target.spm")
    for broken, message in (
        ("{", "is not JSON"),
        ('{"a": 0, "b": 2}', "each token to its own id, from 0 to 1"),
        ('["a"]', "each token to its own id"),
        ('{"</s>": 0, "<unk>": 1}', "it lacks <pad>"),
    ):
        (files / "vocab.json").write_text(broken)
        with pytest.raises(DataError, match=message):
            load_marian_tokenizer(files)
    (files / "vocab.json").unlink()
    with pytest.raises(DataError, match=r"cannot read .*vocab\.json: No such file"):
        load_marian_tokenizer(files)
