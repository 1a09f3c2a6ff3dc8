"""Text to token ids and back, through Hugging Face ``tokenizers``.

All kinds work on bytes, so that no text is out of vocabulary and ``decode(encode(text)) == text``
for every text: spaces, case, line ends and the literal text ``<eos>`` included. One vocabulary
serves both languages. Ids 0 to 3 are the special tokens of ``transformer_jax.types``; ``encode``
never yields them.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import tokenizers
from absl import logging
from jaxtyping import Int32
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from transformer_jax.config import check_types
from transformer_jax.data.sources import DataError, Source
from transformer_jax.files import write_whole
from transformer_jax.types import SIDES, SPECIAL_TOKENS, UNK_ID

NUM_BYTES = 256
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + NUM_BYTES

_TEXTS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer to train.

    * ``byte``: a token for each of the 256 bytes and nothing to train (``vocab_size`` is unused);
    * ``bpe``: byte pairs merged within words (Sennrich et al. 2016, over bytes as in Radford et
      al. 2019); the same texts give the same vocabulary;
    * ``unigram``: a unigram language model (Kudo 2018). Hugging Face's trainer adds in no fixed
      order, so that training twice gives slightly different vocabularies: keep the stored one.

    Raises:
      ValueError: a vocabulary too small for the special tokens and the 256 bytes.
    """

    kind: Literal["byte", "bpe", "unigram"] = "bpe"
    vocab_size: int = 8192  # at most; includes the special tokens and the 256 bytes
    max_training_examples: int = 1_000_000  # train on this many pairs, evenly spaced in the corpus
    path: str = ""  # of a tokenizer.json to use instead of training one

    def __post_init__(self) -> None:
        check_types(self, "data.tokenizer")
        if self.kind != "byte" and self.vocab_size <= MIN_VOCAB_SIZE:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} must be above {MIN_VOCAB_SIZE}: "
                f"{len(SPECIAL_TOKENS)} special tokens and {NUM_BYTES} bytes come first"
            )
        if self.max_training_examples < 1:
            raise ValueError(
                f"tokenizer.max_training_examples={self.max_training_examples} must be at least 1"
            )


class Tokenizer:
    """A vocabulary with its rules; see the module for what it promises.

    Raises:
      DataError: the special tokens do not have the ids of ``transformer_jax.types``.
    """

    def __init__(self, implementation: tokenizers.Tokenizer):
        found = tuple(implementation.id_to_token(i) for i in range(len(SPECIAL_TOKENS)))
        if found != SPECIAL_TOKENS:
            raise DataError(f"the tokenizer's first tokens are {found}, but they must be {SPECIAL_TOKENS}")
        # Otherwise "<eos>" within a text would end it. This is not stored in the file.
        implementation.encode_special_tokens = True
        # A file from elsewhere may say that texts are cut or filled up.
        implementation.no_truncation()
        implementation.no_padding()
        self._implementation = implementation

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included; ids are 0 to ``vocab_size - 1``."""
        return self._implementation.get_vocab_size(with_added_tokens=True)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell this vocabulary from any other."""
        # Not the whole serialisation: another version of the library may add keys to it.
        content = json.dumps(json.loads(self._implementation.to_str())["model"], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def encode(self, text: str) -> Int32[np.ndarray, "_"]:
        """The ids of a text, without special tokens."""
        return np.array(self._implementation.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of one-dimensional ids. Special tokens are skipped, wherever they are.

        Bytes that are not UTF-8, which a model may produce, become U+FFFD.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        array = np.asarray(ids)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            raise ValueError(
                f"ids from {array.min()} to {array.max()} do not fit a tokenizer with ids from 0 "
                f"to {self.vocab_size - 1}"
            )
        kept = array[array >= len(SPECIAL_TOKENS)].tolist()
        return self._implementation.decode(kept, skip_special_tokens=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``tokenizer.json``, whole or not at all.

        Raises:
          OSError: as ``files.write_whole``.
        """
        write_whole(path, self._implementation.to_str(pretty=True))  # the binding's errors have no type

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads what ``save`` wrote.

        Raises:
          DataError: the file is missing, broken, or has other special tokens.
        """
        try:
            with open(path, encoding="utf-8") as file:
                content = file.read()
        except OSError as error:
            raise DataError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        try:
            implementation = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the binding raises no more specific type
            raise DataError(f"{path} is not a tokenizer.json: {error}") from error
        return cls(implementation)


def training_texts(config: TokenizerConfig, source: Source) -> Iterator[str]:
    """Both sides of at most ``max_training_examples`` pairs, evenly spaced in ``source``."""
    step = -(-len(source) // config.max_training_examples)
    indices = range(0, len(source), step)
    for start in range(0, len(indices), _TEXTS_AT_ONCE):
        for example in source.read(indices[start : start + _TEXTS_AT_ONCE]):
            yield from (example[side] for side in SIDES)


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains the tokenizer of ``config`` on texts of the training split, or reads ``config.path``.

    A corpus with too few different words gives a smaller vocabulary than asked for, which is
    logged: take the size from the result.

    Raises:
      DataError: ``config.path`` is set and is not a tokenizer of this project.
    """
    if config.path:
        return Tokenizer.load(config.path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = list(SPECIAL_TOKENS)
    if config.kind == "byte":
        vocabulary = {token: i for i, token in enumerate(special + alphabet)}
        implementation = tokenizers.Tokenizer(models.BPE(vocabulary, []))
        implementation.add_special_tokens(special)
        implementation.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        implementation.decoder = decoders.ByteLevel()
        return Tokenizer(implementation)
    if config.kind == "bpe":
        implementation = tokenizers.Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        )
    else:
        implementation = tokenizers.Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=config.vocab_size,
            special_tokens=special,
            unk_token=SPECIAL_TOKENS[UNK_ID],
            initial_alphabet=alphabet,
            show_progress=False,
        )
    # A space before the first word too, so that a word is the same token wherever it stands;
    # decoding takes exactly this one space away again.
    implementation.normalizer = normalizers.Prepend(" ")
    implementation.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    implementation.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    implementation.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(_as_stored(implementation))
    if tokenizer.vocab_size < config.vocab_size:
        logging.warning(
            "The training texts give a vocabulary of %d tokens, not the %d asked for.",
            tokenizer.vocab_size,
            config.vocab_size,
        )
    return tokenizer


def _as_stored(implementation: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer that reading its own file gives.

    Hugging Face reads the scores of a unigram model back with an error in the last digit, which
    could decide a tie: without this, a run would not be the same after a restart.
    """
    while True:
        stored = tokenizers.Tokenizer.from_str(implementation.to_str())
        if stored.to_str() == implementation.to_str():
            return stored
        implementation = stored
