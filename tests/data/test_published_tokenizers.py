"""Tokenizers as published models have them, small and made here with the library itself."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from transformer_jax.data import DataError, Tokenizer, TokenizerConfig, train_tokenizer

TEXTS = ["A small dog sees the old cat.", "The cat, who is not small, sees a dog!", "Größe und 日本"] * 4


def bert():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made


def byte_level(special, template):
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    made.post_processor = template
    return made


def gpt2():
    return byte_level(["<|endoftext|>"], processors.ByteLevel(trim_offsets=True))


def bart():
    template = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], template)


def t5():
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"]
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        [*TEXTS, "< / > _ e x t r a _ i d _ 0 1 p s"],
        trainers.UnigramTrainer(
            vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return made


MADE = {"bert": bert, "gpt2": gpt2, "bart": bart, "t5": t5}
# Ids as they were given above, in the order of the special tokens.
ROLES = {
    "bert": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    "gpt2": {"bos": 0, "eos": 0},
    "bart": {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 4, "cls": 0, "sep": 2},
    "t5": {"pad": 0, "eos": 1, "unk": 2, "sep": 1},
}
SPECIAL = {"bert": 5, "gpt2": 1, "bart": 5, "t5": 5}
EVERY = pytest.mark.parametrize("name", MADE)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    for name, make in MADE.items():
        make().save(str(folder / f"{name}.json"))
    return {name: Tokenizer.load(folder / f"{name}.json") for name in MADE}, folder


@EVERY
def test_roles_are_found_by_name(loaded, name):
    tokenizer = loaded[0][name]
    for role in ("pad", "bos", "eos", "unk", "cls", "sep", "mask"):
        if role in ROLES[name]:
            assert tokenizer.has_role(role) and tokenizer.id_of(role) == ROLES[name][role]
        else:
            with pytest.raises(DataError, match=f"the tokenizer has no {role} token, .*special_tokens"):
                tokenizer.id_of(role)
            assert not tokenizer.has_role(role)
    with pytest.raises(DataError, match=r"no role 'end': "):
        tokenizer.id_of("end")


@EVERY
def test_ordinary_text_has_the_ids_that_the_library_gives_it(loaded, name):
    tokenizer, folder = loaded[0][name], loaded[1]
    plain = tokenizers.Tokenizer.from_file(str(folder / f"{name}.json"))
    for text in [*TEXTS[:3], "dogs", " 1 < 2 / 3 > [x]", "A\tsmall\ndog"]:
        expected = plain.encode(text, add_special_tokens=False)
        np.testing.assert_array_equal(tokenizer.encode(text), expected.ids)
        found = tokenizer.encode_with_places(text)
        assert all(array.dtype == np.int32 and array.shape == found.ids.shape for array in found)
        np.testing.assert_array_equal(found.ids, expected.ids)
        assert list(zip(found.starts.tolist(), found.stops.tolist(), strict=True)) == expected.offsets
        assert found.words.tolist() == expected.word_ids


@EVERY
def test_text_that_reads_like_a_special_token_is_text(loaded, name):
    tokenizer = loaded[0][name]
    names = {"bert": "[MASK]", "gpt2": "<|endoftext|>", "bart": "</s>", "t5": "</s>"}
    allowed = {ROLES[name]["unk"]} if "unk" in ROLES[name] else set()
    for text in (names[name], f"a {names[name]} dog", f"x{names[name]}y", f"{names[name]}{names[name]}"):
        found = set(tokenizer.encode(text).tolist())
        assert not {i for i in found if i < SPECIAL[name]} - allowed, text
    if name in ("gpt2", "bart", "t5"):
        assert tokenizer.decode(tokenizer.encode(f"a {names[name]} dog")) == f"a {names[name]} dog"


@EVERY
def test_special_tokens_are_skipped_whatever_their_ids(loaded, name):
    tokenizer = loaded[0][name]
    ids = tokenizer.encode("the old cat").tolist()
    special = list(range(SPECIAL[name]))
    assert tokenizer.decode([*special, *ids[:2], *special, *ids[2:], *special]) == "the old cat"


@EVERY
def test_a_copy_in_a_run_folder_is_the_same(loaded, name, tmp_path):
    tokenizer = loaded[0][name]
    tokenizer.save(tmp_path / "1.json")
    again = Tokenizer.load(tmp_path / "1.json")
    again.save(tmp_path / "2.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert again.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(again.encode("x</s>[SEP] dog"), tokenizer.encode("x</s>[SEP] dog"))


def test_whole_texts_have_the_template_of_the_file_or_eos(loaded):
    text = "the cat </s> [SEP] <|endoftext|>"
    for name, (before, after) in {
        "bert": ([2], [3]),
        "gpt2": ([], [0]),
        "bart": ([0], [2]),
        "t5": ([], [1]),
    }.items():
        tokenizer = loaded[0][name]
        for example in (text, ""):
            ids = tokenizer.encode_whole(example)
            assert ids.tolist() == [*before, *tokenizer.encode(example).tolist(), *after]
            assert ids.dtype == np.int32
    for special in ((), ("<cls>", "<sep>", "<mask>")):
        ours = train_tokenizer(TokenizerConfig(kind="byte", special_tokens=special), [])
        assert ours.encode_whole("a <eos>").tolist() == [*ours.encode("a <eos>").tolist(), 2]


def test_templates_of_one_text_and_of_two(loaded):
    """BART's and RoBERTa's pairs have two tokens between the texts; without a template the roles decide."""
    ours = train_tokenizer(TokenizerConfig(kind="byte", special_tokens=("<cls>", "<sep>")), [])
    wanted = {
        "bert": ([[2], [3]], [[2], [3], [3]]),
        "bart": ([[0], [2]], [[0], [2, 2], [2]]),
        "t5": ([[], [1]], [[], [1], [1]]),
    }
    for tokenizer, parts in [
        *((loaded[0][name], parts) for name, parts in wanted.items()),
        (ours, ([[4], [5]], [[4], [5], [5]])),
    ]:
        for count, expected in enumerate(parts, 1):
            assert [part.tolist() for part in tokenizer.template(count)] == expected
    with pytest.raises(DataError, match="the tokenizer has no cls token"):
        loaded[0]["gpt2"].template(1)


@pytest.mark.parametrize(
    ("single", "pair", "given", "other"),
    [
        ("<cls> $A <sep>", "$A $B", "one text", "a pair of texts"),
        ("$A", "$A <sep> $B", "a pair of texts", "one text"),
    ],
)
def test_half_a_template_is_not_completed(single, pair, given, other, tmp_path):
    config = TokenizerConfig(kind="byte", special_tokens=("<cls>", "<sep>"))
    train_tokenizer(config, []).save(tmp_path / "tokenizer.json")
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    used = [(name, made.token_to_id(name)) for name in ("<cls>", "<sep>")]
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    known, missing = (1, 2) if given == "one text" else (2, 1)
    assert len(tokenizer.template(known)) == known + 1
    with pytest.raises(DataError, match=f"adds special tokens to {given}, but none to {other}"):
        tokenizer.template(missing)
    assert tokenizer.with_template("<cls> $A", "<cls> $A $B") is tokenizer


@EVERY
def test_special_tokens_in_a_text_are_parsed_as_the_library_does_where_that_is_asked_for(loaded, name):
    tokenizer, folder = loaded[0][name], loaded[1]
    plain = tokenizers.Tokenizer.from_file(str(folder / f"{name}.json"))
    names = {"bert": "[MASK]", "gpt2": "<|endoftext|>", "bart": "<mask>", "t5": "<extra_id_0>"}
    ids = {"bert": 4, "gpt2": 0, "bart": 4, "t5": 3}
    for text in (f"the {names[name]} cat", names[name], f"{names[name]}{names[name]} dog", "the cat"):
        found = tokenizer.encode(text, parse_special=True)
        assert found.tolist() == plain.encode(text, add_special_tokens=False).ids
        assert found.tolist().count(ids[name]) == text.count(names[name])
        if name != "gpt2":
            whole = tokenizer.encode_whole(text, parse_special=True)
            assert whole.tolist() == plain.encode(text, add_special_tokens=True).ids
        assert tokenizer.encode(text).tolist().count(ids[name]) == 0


def test_places_and_words_by_hand(loaded):
    text = "The small, DOG"
    found = loaded[0]["bert"].encode_with_places(text)
    parts = [text[a:b] for a, b in zip(found.starts, found.stops, strict=True)]
    words = ["".join(p for p, w in zip(parts, found.words, strict=True) if w == n) for n in range(4)]
    assert words == ["The", "small", ",", "DOG"] and found.words.max() == 3
    assert [len(array) for array in loaded[0]["bert"].encode_with_places("")] == [0, 0, 0, 0]


def test_sentinels_in_order(loaded):
    tokenizers_, _ = loaded
    assert tokenizers_["t5"].sentinels == (3, 4)
    assert tokenizers_["bert"].sentinels == ()


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    made = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "[PAD]": 2}, unk_token="[UNK]"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"no token that ends a text: one of <eos>, </s>, .*\[SEP\] must be"):
        Tokenizer.load(tmp_path / "tokenizer.json")


# Ours


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
def test_further_special_tokens_have_the_ids_from_four_on(kind, tmp_path):
    names = ("<mask>", "<cls>", "<sep>", "<extra_id_0>", "<extra_id_1>")
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=300, special_tokens=names), TEXTS)
    assert [tokenizer.id_of(role) for role in ("pad", "bos", "eos", "unk")] == [0, 1, 2, 3]
    assert [tokenizer.id_of(role) for role in ("mask", "cls", "sep")] == [4, 5, 6]
    assert tokenizer.sentinels == (7, 8)
    text = "the <mask> of <extra_id_1> <eos>"
    ids = tokenizer.encode(text)
    assert (ids > 8).all() and tokenizer.decode([4, *ids.tolist(), 8, 2]) == text
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").id_of("mask") == 4


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_parsed_mask_stands_where_a_masked_word_stood(kind):
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=300, special_tokens=("<mask>",)), TEXTS)
    assert tokenizer.id_of("mask") == 4
    words = [tokenizer.encode(word).tolist() for word in ("the", "old", "cat")]
    assert tokenizer.encode("the old cat").tolist() == [i for word in words for i in word]
    for text, expected in (
        ("the <mask> cat", [*words[0], 4, *words[2]]),
        ("<mask> old cat", [4, *words[1], *words[2]]),
        ("the old <mask>", [*words[0], *words[1], 4]),
    ):
        assert tokenizer.encode(text, parse_special=True).tolist() == expected
        assert tokenizer.encode_whole(text, parse_special=True).tolist() == [*expected, 2]


def test_words_and_places_of_our_own():
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), TEXTS)
    text = "dog 日本 cat"
    found = tokenizer.encode_with_places(text)
    np.testing.assert_array_equal(found.ids, tokenizer.encode(text))
    words = [
        text[found.starts[found.words == n].min() : found.stops[found.words == n].max()] for n in range(3)
    ]
    assert [word.strip() for word in words] == ["dog", "日本", "cat"] and found.words.max() == 2


@pytest.mark.parametrize("special", [("<pad>",), ("<a>", "<a>"), ("",)])
def test_special_tokens_that_cannot_be(special):
    with pytest.raises(
        ValueError, match=r"special_tokens=.* must be different names, and none of <pad> <bos>"
    ):
        TokenizerConfig(special_tokens=special)


def test_a_vocabulary_has_room_for_all_special_tokens():
    with pytest.raises(ValueError, match="vocab_size=261 must be above 261: 5 special tokens"):
        TokenizerConfig(vocab_size=261, special_tokens=("<mask>",))
