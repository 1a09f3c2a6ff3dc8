"""The special tokens around texts are those of the tokenizer's own template."""

import itertools

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from tests.objectives.toy import ToyTokenizer, draw
from transformer_jax.data import Tokenizer
from transformer_jax.objectives import MaskedLM, TokenClassification

WORDS = [f"w{i}" for i in range(20)]
TEXT = " ".join(WORDS[:12]) + "\n" + " ".join(WORDS[5:])
TEMPLATES = {
    "bert": (("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    "roberta": (("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s> $A </s>", "<s> $A </s> </s> $B </s>"),
}


def tokenizer_of(name, folder, has_template):
    special, single, pair = TEMPLATES[name]
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS])}
    made = tokenizers.Tokenizer(
        models.WordLevel(vocabulary, unk_token=special[3 if "<unk>" in special else 1])
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(special))
    if has_template:
        used = [(token, i) for token, i in vocabulary.items() if token in pair.split()]
        made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    path = folder / f"{name}_{has_template}.json"
    made.save(str(path))
    return Tokenizer.load(path)


def pieces_of(objective, tokenizer, max_length):
    labels = {"labels": [i % 3 for i in range(len(TEXT.split()))]}
    is_masked = isinstance(objective, MaskedLM)
    example = {"inputs": TEXT} if is_masked else {"inputs": TEXT.split(), **labels}
    tokens = objective.encode(example, tokenizer)
    return [
        piece
        for seed in range(5)
        for piece in objective.pieces(tokens, draw(tokenizer, max_length, seed, tokens))
    ]


# Pairs of RoBERTa have two </s> between them, see below.
SINGLE = [MaskedLM(), MaskedLM(whole_words=True), TokenClassification()]
CASES = [("bert", MaskedLM(next_sentence=True)), *itertools.product(TEMPLATES, SINGLE)]


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_the_template_of_bert_and_roberta_is_that_by_roles(name, objective, tmp_path):
    plain, templated = (tokenizer_of(name, tmp_path, has_template) for has_template in (False, True))
    for max_length in (9, 14, 60):
        pairs = zip(
            pieces_of(objective, plain, max_length), pieces_of(objective, templated, max_length), strict=True
        )
        for one, other in pairs:
            assert one.keys() == other.keys()
            for key, array in one.items():
                assert array.dtype == other[key].dtype
                np.testing.assert_array_equal(array, other[key])


def test_pairs_have_all_special_tokens_of_the_template(tmp_path):
    tokenizer = tokenizer_of("roberta", tmp_path, has_template=True)
    for piece in pieces_of(MaskedLM(next_sentence=True), tokenizer, 14):
        targets = piece["targets"]
        special = np.flatnonzero(targets < 5)
        first, end, begin, last = special
        assert targets[special].tolist() == [0, 2, 2, 2]
        assert (first, begin, last) == (0, end + 1, len(targets) - 1) and len(targets) <= 14
        assert piece["inputs_types"].tolist() == [0] * begin + [0] + [1] * (last - begin)
        assert piece["targets_weights"][special].sum() == 0


def test_a_template_of_several_or_of_no_special_tokens():
    parts = {1: [["bos", "cls"], []], 2: [[], ["sep", "eos"], ["eos"]]}
    tokenizer = ToyTokenizer(parts=parts)
    for piece in pieces_of(MaskedLM(), tokenizer, 8):
        written = tokenizer.tokens(piece["targets"])
        assert written[:2] == ["<bos>", "<cls>"] and not any(token.startswith("<") for token in written[2:])
        assert len(written) <= 8 and piece["targets_weights"][:2].sum() == 0
    for piece in pieces_of(TokenClassification(), tokenizer, 8):
        assert tokenizer.tokens(piece["inputs"])[:2] == ["<bos>", "<cls>"] and len(piece["inputs"]) <= 8
        assert piece["targets_weights"].tolist() == [0, 0] + [1] * (len(piece["inputs"]) - 2)
        assert piece["targets"][:2].tolist() == [0, 0]
    for piece in pieces_of(MaskedLM(next_sentence=True), tokenizer, 9):
        written = tokenizer.tokens(piece["targets"])
        assert [token for token in written if token.startswith("<")] == ["<sep>", "<eos>", "<eos>"]
        assert len(piece["inputs_types"]) == len(written) <= 9
    with pytest.raises(ValueError, match=r"data\.max_length=4 must be at least 5"):
        pieces_of(MaskedLM(next_sentence=True), tokenizer, 4)
