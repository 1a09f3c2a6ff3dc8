"""Tokenizers: every text comes back, special tokens keep out, files hold all there is."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from tests.started_processes import run_python
from transformer_jax.config import ConfigError, read_section
from transformer_jax.data import tokenizers as module
from transformer_jax.data.datasets.number_words.number_words import number_words
from transformer_jax.data.examples import DataError, MemorySource
from transformer_jax.data.tokenizers import (
    Tokenizer,
    TokenizerConfig,
    train_tokenizer,
    training_texts,
)
from transformer_jax.types import SPECIAL_TOKENS

KINDS = ("byte", "bpe", "unigram")
TEXTS = [number_words(n, language) for n in range(0, 9_000, 7) for language in ("en", "de")]
TRICKY = ["", " ", "  a  b ", "\n", "a\r\n\tb", "Größe", "日本語", "🙂👩‍👩‍👧", "\0", "\u2028x", "�"]
TRICKY += ["<eos>", " <pad>x", "<unk><bos>", "Ġ", "e\u0301", "DON'T don't", "1,234.5"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return train_tokenizer(TokenizerConfig(kind=request.param, vocab_size=400), TEXTS)


def test_special_tokens_have_the_fixed_ids(tokenizer):
    vocabulary = json.loads(tokenizer._implementation.to_str())["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a unigram model: (token, score) by id
        vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert sorted(vocabulary.values()) == list(range(tokenizer.vocab_size))


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_texts_come_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert (ids >= len(SPECIAL_TOKENS)).all() and (ids < tokenizer.vocab_size).all()


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_skipped_wherever_they_are(tokenizer):
    ids = tokenizer.encode("zwei drei").tolist()
    assert tokenizer.decode([1, *ids[:3], 3, 2, *ids[3:], 2, 0, 0]) == "zwei drei"
    assert tokenizer.decode(np.zeros(4, np.int32)) == ""


def test_ids_outside_the_vocabulary(tokenizer):
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"ids from 0 to {tokenizer.vocab_size - 1}"):
            tokenizer.decode([5, wrong] if wrong > 0 else [wrong, 5])


def test_a_stored_tokenizer_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = Tokenizer.load(path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.vocab_size == tokenizer.vocab_size
    for text in [*TRICKY, *TEXTS[:200]]:
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_byte_is_a_token_a_byte():
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte", vocab_size=1), [])
    assert tokenizer.vocab_size == 260
    for text in TRICKY:
        assert len(tokenizer.encode(text)) == len(text.encode())
    every = "".join(map(chr, range(0x800)))
    assert len(set(tokenizer.encode(every).tolist())) == 128 + 30 + 64  # ASCII, first and further bytes


def test_words_of_bytes_are_parted_and_change_no_id():
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte"), [])
    text = "Größe: 3,5 m.\n  DON'T don't"
    found = tokenizer.encode_with_places(text)
    numbers = range(found.words.max() + 1)
    starts, stops = (
        [int(side[found.words == number][place]) for number in numbers]
        for side, place in ((found.starts, 0), (found.stops, -1))
    )
    words = [text[start:stop] for start, stop in zip(starts, stops, strict=True)]
    # As in GPT-2: letters, digits and other signs apart, each with a space before it.
    wanted = ["Größe", ":", " 3", ",", "5", " m", ".", "\n ", " DON", "'", "T", " don", "'t"]
    assert words == wanted
    # By formula: bytes that can be printed in Latin-1, then the others (Radford et al. 2019).
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = printable + [byte for byte in range(256) if byte not in printable]
    for tricky in [*TRICKY, text, "  \t\n ", "a  b   c", "we'll 12ab", "<mask><eos>", "x\u00a0y \u3000z"]:
        ids = tokenizer.encode(tricky)
        assert ids.tolist() == [4 + order.index(byte) for byte in tricky.encode()]
        assert tokenizer.decode(ids) == tricky


def test_bpe_finds_the_pieces_of_german_number_words():
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=400), TEXTS)
    assert tokenizer.vocab_size == 400
    word = number_words(7_653, "de")
    assert len(word) == 39 and 3 <= len(tokenizer.encode(word)) <= 8


def test_a_word_is_one_token_wherever_it_stands():
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=400), ["Mann Mann"] * 9)
    first, second = tokenizer.encode("Mann Mann").tolist()
    assert first == second


PRINT_FINGERPRINT = """
import sys
from transformer_jax.data.tokenizers import TokenizerConfig, train_tokenizer
print(train_tokenizer(TokenizerConfig("bpe", 300), sys.argv[2:]).fingerprint)
"""


def test_bpe_is_the_same_in_every_process(tmp_path, single_device_environment):
    ended = run_python(PRINT_FINGERPRINT, tmp_path, single_device_environment, *TEXTS[:100])
    assert ended.returncode == 0, ended.stderr
    found = ended.stdout.strip()
    here = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), TEXTS[:100])
    assert found == here.fingerprint
    assert here.fingerprint != train_tokenizer(TokenizerConfig("bpe", 301), TEXTS).fingerprint


def test_a_small_corpus_says_that_the_vocabulary_is_smaller(caplog):
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=500), ["ab"])
    assert tokenizer.vocab_size < 500
    assert f"vocabulary of {tokenizer.vocab_size} tokens, not the 500" in caplog.text


@pytest.mark.parametrize("content", ["", "{}", "[1, 2", '{"model": {"type": "BPE"}}'])
def test_a_broken_file(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer\.json"):
        Tokenizer.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*No such file"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_training_texts_are_evenly_spaced(monkeypatch):
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 3)
    source = MemorySource({side: [f"{side[0]}{n}" for n in range(20)] for side in ("inputs", "targets")})

    def texts(limit):
        return list(training_texts(TokenizerConfig(max_training_examples=limit), source))

    assert texts(20) == texts(50) == [f"{side}{n}" for n in range(20) for side in "it"]
    assert texts(4) == ["i0", "t0", "i5", "t5", "i10", "t10", "i15", "t15"]
    assert texts(19) == [f"{side}{n}" for n in range(0, 20, 2) for side in "it"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "word"}, "kind"),
        ({"vocab_size": 260}, r"vocab_size=260 must be above 260"),
        ({"max_training_examples": 0}, "max_training_examples=0 must be at least 1"),
    ],
)
def test_impossible_configs(changes, message):
    values = {"kind": "bpe", "vocab_size": 300, "max_training_examples": 10, "path": ""}
    values |= {"special_tokens": ()}
    with pytest.raises(ConfigError, match=message):
        read_section(TokenizerConfig, values | changes, "data.tokenizer")


def test_a_file_from_elsewhere_neither_adds_nor_cuts_tokens(tmp_path):
    path = tmp_path / "tokenizer.json"
    plain = train_tokenizer(TokenizerConfig(kind="byte"), [])
    plain.save(path)
    implementation = tokenizers.Tokenizer.from_file(str(path))
    implementation.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    implementation.enable_truncation(4)
    implementation.enable_padding(length=9)
    implementation.save(str(path))
    np.testing.assert_array_equal(Tokenizer.load(path).encode("abcdefgh"), plain.encode("abcdefgh"))
