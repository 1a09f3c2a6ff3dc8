"""What ``save_pretrained`` writes is what transformers' own classes and tokenizers read."""

import dataclasses
import functools
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.drawn import drawn_params
from tests.parity.sentences import SENTENCES
from tests.parity.test_fixtures import DECODING_MODELS, FIXTURES, MODELS, each_family_once, expected
from tests.parity.test_parity import (
    LOGITS,
    arguments_of,
    best_of,
    generated,
    is_real,
    loaded,
    outputs_of,
    sequences_of,
)
from transformer_jax.data import Tokenizer, TokenizerConfig, train_tokenizer
from transformer_jax.decoding.beam_rules import TRANSFORMERS_RULE
from transformer_jax.decoding.settings import TextRules
from transformer_jax.inference.defaults import GenerationDefaults
from transformer_jax.objectives.classification import encode_texts
from transformer_jax.pretrained.generation_json import GENERATION_FILE
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.pretrained.tensor_files import INDEX_FILE

pytestmark = pytest.mark.live

PLAIN = TextRules(TRANSFORMERS_RULE)  # and no constraints, which theirs is not told of either
ENCODED = SENTENCES[3:43:2]  # twenty, German and English


@functools.cache
def drawn(name, seed=7):
    """The model of a fixture with other parameters, none of which is 0 or 1."""
    ours = loaded(name)

    @jax.jit  # one operation after the other, it takes seconds
    def with_noise(params):
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        noise = [0.2 * jax.random.normal(one, leaf.shape) for one, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, [leaf + n for leaf, n in zip(leaves, noise, strict=True)])

    return dataclasses.replace(ours, params=with_noise(drawn_params(ours.config, seed)))


def check_outputs(name, ours, theirs):
    """``theirs``: outputs by name for the inputs of the fixture."""
    arrays = expected(name)
    arguments = {key: jnp.asarray(value) for key, value in arguments_of(name, arrays).items()}
    found = outputs_of(name, jax.jit(ours.model.apply)({"params": ours.params}, **arguments))
    for output, mine in found.items():
        real = is_real(arrays, mine)
        other = theirs[output]
        assert np.abs(other - arrays[output]).max() > 0.1, "the parameters are those of the fixture"
        np.testing.assert_allclose(
            np.asarray(mine)[real], other[real], rtol=LOGITS, atol=LOGITS, err_msg=output
        )


@pytest.mark.parametrize("name", each_family_once())
def test_a_written_model_gives_the_same_logits_there(name, tmp_path, load, run):
    architecture, arguments, _ = MODELS[name]
    ours = drawn(name)
    save_pretrained(tmp_path, ours)
    theirs = run(load(tmp_path, architecture), {key: expected(name)[key] for key in arguments})
    check_outputs(name, ours, theirs)


def test_shards_are_read_there(tmp_path, load, run):
    ours = drawn("t5_v1_1")
    save_pretrained(tmp_path, ours, shard_bytes=10_000)
    assert (tmp_path / INDEX_FILE).exists()
    architecture, arguments, _ = MODELS["t5_v1_1"]
    theirs = run(load(tmp_path, architecture), {key: expected("t5_v1_1")[key] for key in arguments})
    check_outputs("t5_v1_1", ours, theirs)


def searches():
    """A decoder alone and an encoder with a decoder, greedily and with beams, run for every change."""
    for name, num_beams in itertools.product(DECODING_MODELS, (1, 4)):
        is_rare = (name, num_beams) not in (("gpt2", 4), ("bart", 1), ("t5_v1_1", 4))
        yield pytest.param(name, num_beams, marks=[pytest.mark.everything] * is_rare)


@pytest.mark.parametrize(("name", "num_beams"), list(searches()))
def test_a_written_model_generates_the_same_there(name, num_beams, tmp_path, load):
    from tests.parity import decode_with_transformers as theirs

    arrays = expected(name)
    save_pretrained(tmp_path, loaded(name))
    model = load(tmp_path, MODELS[name][0])
    side = "left/" if name == "gpt2" else ""
    prompt = {key: arrays[f"{side}{key}"] for key in ("input_ids", "attention_mask")}
    made = theirs.generate(model, prompt, theirs.padding(model.config), num_beams=num_beams)
    result = {
        f"there/{key}": array for key, array in theirs.new_tokens(model, prompt, made.sequences).items()
    }
    again = from_pretrained(tmp_path)
    plain = dataclasses.replace(again, generation=GenerationDefaults(length_penalty=1.0, rules=PLAIN))
    found = generated(plain, sequences_of(name, arrays), beam_size=num_beams, max_new_tokens=theirs.LIMIT)
    assert found == best_of(result, "there")


ASKED = {
    "nothing": {},
    "stops_at_once": {"early_stopping": True, "length_penalty": 2.0},
    "stops_never": {"early_stopping": "never"},
    "short": {"early_stopping": "never", "length_penalty": -1.0},
    "forced_end": {"forced_eos_token_id": 5},
    "long": {"min_length": 7, "max_length": 11},
    "at_least": {"min_new_tokens": 6},
    "pairs_once": {"no_repeat_ngram_size": 2},
    "tokens_once": {"no_repeat_ngram_size": 1, "renormalize_logits": True},
    "banned": {"suppress_tokens": [7, 9, 12, 41]},
}


def wishes():
    """Every wish runs with beams for every change, every third greedily too, each with one model in turn."""
    for (at, asked), (model, name) in itertools.product(enumerate(ASKED), enumerate(DECODING_MODELS)):
        for num_beams in (1, 4):
            is_rare = model != (at + num_beams) % len(DECODING_MODELS) or (num_beams == 1 and at % 3 > 0)
            yield pytest.param(name, asked, num_beams, marks=[pytest.mark.everything] * is_rare)


@pytest.mark.parametrize(("name", "asked", "num_beams"), list(wishes()))
def test_a_generation_config_is_followed_as_there(name, asked, num_beams, tmp_path, load):
    """From the files of a folder alone, one text at a time, so that no padding counts there."""
    import torch

    arrays = expected(name)
    shutil.copytree(FIXTURES / name, tmp_path, dirs_exist_ok=True)
    config = loaded(name).config
    special = {"eos_token_id": config.eos_id, "decoder_start_token_id": config.decoder_start_id}
    limit = {} if "max_length" in ASKED[asked] else {"max_new_tokens": 12}
    banned = {} if name == "gpt2" else {"bad_words_ids": [[config.pad_id]], "pad_token_id": config.pad_id}
    content = {"num_beams": num_beams} | special | limit | banned | ASKED[asked]
    (tmp_path / GENERATION_FILE).write_text(json.dumps(content))
    model, texts = load(tmp_path, MODELS[name][0]), sequences_of(name, arrays)
    wanted = []
    for text in texts:
        prompt = torch.from_numpy(text)[None].long()
        made = model.generate(prompt, attention_mask=torch.ones_like(prompt))
        wanted.append(made[0, len(text) if name == "gpt2" else 1 :].tolist())
    found = generated(from_pretrained(tmp_path), texts)
    assert found == wanted


@pytest.mark.parametrize("name", DECODING_MODELS)
def test_the_written_config_says_how_texts_begin_and_end(name, tmp_path, load):
    """As above, with no more said to ``generate`` than how much and not to draw."""
    import torch

    # Without what the fixture's config.json has of a generation_config.json.
    ours, arrays = dataclasses.replace(loaded(name), generation=GenerationDefaults()), expected(name)
    save_pretrained(tmp_path, ours)
    model = load(tmp_path, MODELS[name][0])
    side = "left/" if name == "gpt2" else ""
    for row, (ids, mask) in enumerate(
        zip(arrays[f"{side}input_ids"], arrays[f"{side}attention_mask"], strict=True)
    ):
        prompt = torch.from_numpy(ids[mask == 1])[None].long()
        made = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
        )
        new = made[0, prompt.shape[1] if name == "gpt2" else 1 :].tolist()
        assert new == arrays["greedy/tokens"][row, : arrays["greedy/lengths"][row]].tolist()


def word_pieces():
    """As BERT's: lower case, accents stripped, [CLS] text [SEP]."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    ends = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return Tokenizer(made)


def byte_pairs():
    """As GPT-2's: bytes, one special token."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    return Tokenizer(made)


def unigrams():
    """As T5's: pieces that begin with a mark for the space, text </s>, sentinels."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    return Tokenizer(made)


def own(kind):
    return lambda: train_tokenizer(TokenizerConfig(kind=kind, vocab_size=400), SENTENCES)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("bert_masked_lm", word_pieces),
        ("gpt2", byte_pairs),
        ("t5", unigrams),
        ("gpt2", own("bpe")),
        ("bart", own("unigram")),
        ("marian", own("byte")),
    ],
    ids=["word_pieces", "byte_pairs", "unigrams", "own_bpe", "own_unigram", "own_byte"],
)
def test_a_written_tokenizer_encodes_the_same_there(name, make, tmp_path, transformers):
    tokenizer = make()
    config = dataclasses.replace(loaded(name).config, vocab_size=tokenizer.vocab_size)
    ours = dataclasses.replace(loaded(name), config=config, tokenizer=tokenizer)
    params = drawn_params(config)
    save_pretrained(tmp_path, dataclasses.replace(ours, params=params))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.model_max_length == config.max_length
    for text in ENCODED:
        assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text).tolist(), text
        whole = tokenizer.encode if name == "gpt2" else tokenizer.encode_whole
        assert theirs(text).input_ids == whole(text).tolist(), text
        ids = tokenizer.encode(text)
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == tokenizer.decode(ids), text
    if name == "bert_masked_lm":
        for texts in ((ENCODED[0],), tuple(ENCODED[:2])):
            encoded = encode_texts(tokenizer, *texts)
            given = theirs(*texts)
            assert given.input_ids == encoded["inputs"].tolist()
            assert given.token_type_ids == encoded["inputs_types"].tolist()
    for role in ("pad", "bos", "eos", "unk", "cls", "sep", "mask"):
        wanted = tokenizer.id_of(role) if tokenizer.has_role(role) else None
        assert getattr(theirs, f"{role}_token_id") == wanted, role
    batch = theirs(list(ENCODED), padding=tokenizer.has_role("pad"))
    assert len(batch.input_ids) == len(ENCODED)
