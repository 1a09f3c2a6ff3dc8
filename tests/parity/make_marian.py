"""Writes ``tests/data/marian``: a small tokenizer of MarianMT's kind, and what transformers makes with it.

    python -m tests.parity.make_marian tests/data/marian

Needs transformers and sentencepiece (`make parity` has an environment with them).
"""

import argparse
import json
import pathlib
import warnings
from collections.abc import Sequence

import sentencepiece
import transformers

from tests.parity.sentences import SENTENCES

CODES = (">>deu<<", ">>fra<<")
# Digits and accents that one side alone has, spaces of all kinds, and what is in neither.
MORE_TEXTS = ("", " ", "  a   dog ", "a\tdog\nruns", ">>deu<< A dog.", "Ein ß in a dog", "漢字 dog", "½")
TEXTS = (*SENTENCES, *MORE_TEXTS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a small tokenizer of MarianMT's kind.")
    parser.add_argument("output", type=pathlib.Path)
    folder = parser.parse_args().output
    train(folder, rule="identity")  # the table of another rule has 240 kB
    for name, ids in (("expected", encoded(folder, TEXTS)), ("expected_targets", encoded_targets(folder))):
        (folder / f"{name}.json").write_text(json.dumps(ids, ensure_ascii=False, indent=0) + "\n")


def train(folder: pathlib.Path, rule: str) -> None:
    """``source.spm`` and ``target.spm`` from the halves of the sentences, ``vocab.json`` of both."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces: dict[str, None] = {}
    for side, texts in (("source", SENTENCES[::2]), ("target", SENTENCES[1::2])):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_prefix=str(folder / side), vocab_size=150, minloglevel=2,
            normalization_rule_name=rule, character_coverage=1.0,
        )  # fmt: skip
        (folder / f"{side}.vocab").unlink()
        model = (folder / f"{side}.model").rename(folder / f"{side}.spm")
        read = sentencepiece.SentencePieceProcessor(model_file=str(model))
        pieces |= dict.fromkeys(map(read.id_to_piece, range(3, read.get_piece_size())))
    names = ["</s>", "<unk>", *pieces, *CODES, "<pad>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n")


def encoded(folder: pathlib.Path, texts: Sequence[str]) -> dict[str, list[int]]:
    """The ids of each text as a source, its end included."""
    tokenizer = read(folder)
    return {text: tokenizer(text).input_ids for text in texts}


def encoded_targets(folder: pathlib.Path) -> dict[str, list[int]]:
    """The ids of the sentences as targets."""
    tokenizer = read(folder)
    return {text: tokenizer(text_target=text).input_ids for text in SENTENCES}


def read(folder: pathlib.Path) -> transformers.MarianTokenizer:
    """The tokenizer of transformers."""
    files = [str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")]
    with warnings.catch_warnings():
        # That package would change nothing here.
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        return transformers.MarianTokenizer(*files, source_lang="en", target_lang="de")


if __name__ == "__main__":
    main()
