"""Tokenizers for the tiny models of the parity fixtures: a word "w17" is the token 17."""

import pathlib

import tokenizers
from tokenizers import models, pre_tokenizers, processors

from transformer_jax.data import Tokenizer

VOCAB_SIZE = 67
# The special tokens of each kind of model, with the ids that they have there, and its template of one text.
SPECIAL = {
    "bert": ({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}, "[CLS] $A [SEP]"),
    "bart": ({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}, "$A </s>"),
    "t5": ({"<pad>": 0, "</s>": 1, "<unk>": 2, "<extra_id_0>": 3}, "$A </s>"),
    "marian": ({"</s>": 0, "<unk>": 1, "<pad>": 66}, "$A </s>"),
    "gpt2": ({"<|endoftext|>": 66, "<unk>": 0}, None),
}


def word_tokenizer(name: str, folder: pathlib.Path) -> Tokenizer:
    """Stores the tokenizer of a fixture, such as ``bert_qa``, and reads it."""
    special, template = SPECIAL[name.split("_")[0]]
    vocabulary = {f"w{i}": i for i in range(VOCAB_SIZE) if i not in special.values()} | special
    unknown = next(token for token in special if "unk" in token.lower())
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(special))
    if template is not None:
        used = [(token, id_) for token, id_ in special.items() if token in template]
        pair = f"{template} {template.replace('$A', '$B').removeprefix('[CLS] ')}"
        made.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=used)
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder / "tokenizer.json")


def words(ids, name: str) -> str:
    """The text of ids, without special ones."""
    special = SPECIAL[name.split("_")[0]][0].values()
    return " ".join(f"w{i}" for i in map(int, ids) if i not in special)
