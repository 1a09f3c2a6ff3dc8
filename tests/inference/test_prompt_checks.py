"""Decoder prompts are checked as such: against the decoder's length, and with the number of their text."""

import dataclasses

import pytest

from tests.parity.test_fixtures import STORED
from tests.word_tokenizers import word_tokenizer
from transformer_jax.decoding.settings import OWN_RULES, TextRules
from transformer_jax.inference.generation import TextGenerator
from transformer_jax.pretrained.reading import from_pretrained

LONG = " ".join(["w6"] * 10)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    config = from_pretrained(STORED / "bart").config
    tokenizer = word_tokenizer("bart", tmp_path_factory.mktemp("bart"))

    def generator(rules=OWN_RULES, **changes):
        return TextGenerator(dataclasses.replace(config, **changes), tokenizer, rules=rules)

    return generator


def test_a_decoder_prompt_has_room_in_the_decoder(make):
    assert len(make(encoder_changes=(("max_length", 8),)).tokens("w5", 1, LONG)) == 2
    short = make(decoder_changes=(("max_length", 8),))
    message = "the decoder prompt of text 7 has 10 tokens, the model takes at most 7"
    with pytest.raises(ValueError, match=message):
        short.generate({}, ["w5", "w5"], 5, ["w5", LONG])
    with pytest.raises(ValueError, match=message):
        short.stream({}, "w5", 6, LONG)
    with pytest.raises(ValueError, match=message):
        short.tokens("w5", 7, LONG)


def test_the_room_for_an_output_is_that_after_the_prompt_that_is_given(make):
    message = r"the decoder prompt of text 7 has .* tokens, and max_length=4 leaves no room"
    with pytest.raises(ValueError, match=message):
        make(TextRules(max_length=4)).generate({}, ["w5"], 6, "w6 w6 w6")
    long_by_default = make(TextRules(max_length=4, decoder_prompt=(6, 6, 6)))
    with pytest.raises(ValueError, match=message):
        long_by_default.tokens("w5", 7)
    assert len(long_by_default.tokens("w5", 7, "w6")) == 2


def test_a_decoder_prompt_has_tokens_of_the_model(make):
    with pytest.raises(ValueError, match="the decoder prompt of text 8 has the token 6, which the tokenizer"):
        make(vocab_size=6).generate({}, ["w5", "w5"], 6, ["w5", "w6"])
