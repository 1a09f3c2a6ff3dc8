"""Pieces of a streamed text: characters come whole, and together they are the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.data import TokenizerConfig, train_tokenizer
from transformer_jax.inference.generation import text_pieces


@pytest.fixture(scope="module", params=["byte", "bpe", "unigram"])
def own(request):
    texts = ["a small dog sees the old cat", "Größe und 日本語 🙂"] * 9
    return train_tokenizer(TokenizerConfig(kind=request.param, vocab_size=300), texts)


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")


@settings(max_examples=60, deadline=None)
@given(text=st.text(CHARACTERS, max_size=12), before=st.sampled_from(["", "a", "ü "]))
def test_a_character_is_never_cut(own, text, before):
    ids = own.encode(before + text)
    start = next(n for n in range(len(ids) + 1) if len(own.decode(ids[:n])) >= len(before))
    pieces = list(text_pieces(own, ids[:start].tolist(), iter(ids[start:].tolist())))
    assert "".join(pieces) == own.decode(ids)[len(own.decode(ids[:start])) :]
    assert "\ufffd" not in "".join(pieces) and "" not in pieces


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 259), max_size=20))
def test_bytes_that_are_no_text_come_as_decoding_gives_them(own, ids):
    assert "".join(text_pieces(own, [], iter(ids))) == own.decode(ids)
