"""Converts texts to token ids and back, with Hugging Face ``tokenizers``.

All kinds of tokenizers that are trained here work on bytes. No text is out of vocabulary, and
``decode(encode(text)) == text`` holds for every text, including spaces, case, line ends and the literal text
``<eos>``. One vocabulary serves both languages. Ids 0 to 3 are the special tokens of
``transformer_jax.types``. A tokenizer.json from elsewhere (BERT's WordPiece, GPT-2's byte pairs, T5's
unigrams) keeps its own ids; its special tokens are found by name.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import tokenizers
from absl import logging
from jaxtyping import Int32
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from transformer_jax.config import check_types, nearest
from transformer_jax.data.examples import DataError, Source
from transformer_jax.data.special_tokens import find_roles, has_template, keep_out, stored_template
from transformer_jax.files import write_whole
from transformer_jax.types import ROLES, SPECIAL_TOKENS, TEXT_FEATURES, UNK_ID, Encoding

NUM_BYTES = 256

_TEXTS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Describes the tokenizer to train.

    * ``byte``: one token for each of the 256 bytes; nothing is trained (``vocab_size`` is unused);
    * ``bpe``: byte pairs merged within words (Sennrich et al. 2016, over bytes as in Radford et al. 2019);
      the same texts give the same vocabulary;
    * ``unigram``: a unigram language model (Kudo 2018). Hugging Face's trainer adds in no fixed order, so
      training twice gives slightly different vocabularies: keep the stored one.

    Raises:
      ValueError: the vocabulary is too small for the special tokens and the 256 bytes, or a special token
        repeats.
    """

    kind: Literal["byte", "bpe", "unigram"] = "bpe"
    vocab_size: int = 8192  # upper limit; includes the special tokens and the 256 bytes
    special_tokens: tuple[str, ...] = ()  # in addition to <pad> <bos> <eos> <unk>; their ids start at 4
    max_training_examples: int = 1_000_000  # train on this many examples, evenly spaced in the corpus
    # A tokenizer.json to use instead of training one, or the folder or name of a checkpoint that has one; the
    # other fields are then unused. If empty, a run with config.train.init_from uses that one's tokenizer.
    path: str = ""

    def __post_init__(self) -> None:
        check_types(self, "data.tokenizer")
        special = (*SPECIAL_TOKENS, *self.special_tokens)
        if len(set(special)) < len(special) or "" in special:
            raise ValueError(
                f"tokenizer.special_tokens={self.special_tokens!r} must be different names, and none of "
                + " ".join(SPECIAL_TOKENS)
            )
        if self.kind != "byte" and self.vocab_size <= len(special) + NUM_BYTES:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} must be above {len(special) + NUM_BYTES}: "
                f"{len(special)} special tokens and {NUM_BYTES} bytes come first"
            )
        if self.max_training_examples < 1:
            raise ValueError(
                f"tokenizer.max_training_examples={self.max_training_examples} must be at least 1"
            )


class Tokenizer:
    """Converts texts to ids and back; see the module for its guarantees.

    Args:
      implementation: tokenizes texts, but not targets if ``targets`` is given.
      targets: the tokenizer of a decoder's texts over the same ids, if it is a different one, as MarianMT's
        is.

    Raises:
      DataError: the vocabulary has no token that ends a text.
    """

    def __init__(self, implementation: tokenizers.Tokenizer, targets: "Tokenizer | None" = None):
        self._targets = targets
        self._content = implementation.to_str(pretty=True)
        self._roles = find_roles(implementation)
        if not {"eos", "sep"} & set(self._roles):
            raise DataError(
                "the tokenizer has no token that ends a text: one of "
                f"{', '.join(dict.fromkeys((*ROLES['eos'], *ROLES['sep'])))} must be in its vocabulary"
            )
        added = implementation.get_added_tokens_decoder()
        special = {id_: token.content for id_, token in added.items() if token.special}
        self._special_ids = np.array(sorted(special), np.int32)
        # Otherwise "<eos>" within a text would end it. The file does not store this setting.
        implementation.encode_special_tokens = True
        keep_out(implementation, list(special.values()))
        # A file from elsewhere may enable truncation or padding.
        implementation.no_truncation()
        implementation.no_padding()
        self._implementation = implementation
        self._templates: dict[int, tuple[np.ndarray, ...]] = {}

    @property
    def targets(self) -> "Tokenizer":
        """Returns the tokenizer of a decoder's targets: this one, unless there are two."""
        return self if self._targets is None else self._targets

    @property
    def vocab_size(self) -> int:
        """Returns the number of tokens, special ones included; ids are 0 to ``vocab_size - 1``."""
        return self._implementation.get_vocab_size(with_added_tokens=True)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Returns the ids of the special tokens, in order."""
        return tuple(self._special_ids.tolist())

    @property
    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits that identify this vocabulary."""
        # Not the whole serialisation: another version of the library may add keys to it.
        content = json.dumps(json.loads(self._content)["model"], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def sentinels(self) -> tuple[int, ...]:
        """Returns the ids of ``<extra_id_0>``, ``<extra_id_1>``, ...; there may be none.

        Source: Raffel et al. 2020, section 3.1.4.
        """
        ids: list[int] = []
        while (id_ := self._implementation.token_to_id(f"<extra_id_{len(ids)}>")) is not None:
            ids.append(id_)
        return tuple(ids)

    @property
    def role_tokens(self) -> dict[str, str]:
        """Returns the token for each role that has one, such as ``{"pad": "<pad>"}``."""
        tokens = {role: self._implementation.id_to_token(id_) for role, id_ in self._roles.items()}
        return {role: token for role, token in tokens.items() if token is not None}

    def has_role(self, role: str) -> bool:
        """Returns whether the vocabulary has a token for ``role``, one of ``ROLES``."""
        return role in self._roles

    def id_of(self, role: str) -> int:
        """Returns the id of the token for ``role``, one of ``ROLES``.

        Raises:
          DataError: the vocabulary has no such token.
        """
        if role not in ROLES:
            raise DataError(f"a tokenizer has no role {role!r}: {nearest(role, ROLES)}")
        if role not in self._roles:
            raise DataError(
                f"the tokenizer has no {role} token, {' or '.join(ROLES[role])}: use a tokenizer that has "
                "one or, if it is trained here, name the token in config.data.tokenizer.special_tokens"
            )
        return self._roles[role]

    def encode(self, text: str, *, parse_special: bool = False) -> Int32[np.ndarray, "_"]:
        """Returns the ids of a text, without special tokens around it.

        With ``parse_special`` the names of special tokens in the text become these tokens, as ``<mask>`` in
        "My friends are <mask>". Use it for what a user writes on purpose, never for data.
        """
        implementation = self._parsing if parse_special else self._implementation
        return np.array(implementation.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_whole(self, text: str, *, parse_special: bool = False) -> Int32[np.ndarray, "_"]:
        """Returns the ids of a whole text as an encoder or decoder receives them.

        Special tokens are added as the tokenizer's file says: ``<s> text </s>`` (BART), ``text </s>`` (T5) or
        ``[CLS] text [SEP]`` (BERT). If the file does not say (GPT-2's, and this library's own), eos is
        appended.

        Args:
          text: any text.
          parse_special: as for ``encode``.

        Raises:
          DataError: the file does not say, and there is no eos.
        """
        implementation = self._parsing if parse_special else self._implementation
        if implementation.num_special_tokens_to_add(is_pair=False):
            return np.array(implementation.encode(text, add_special_tokens=True).ids, np.int32)
        return np.append(self.encode(text, parse_special=parse_special), np.int32(self.id_of("eos")))

    def template(self, num_texts: int) -> tuple[Int32[np.ndarray, "_"], ...]:
        """Returns the special tokens of an encoder's input: before the first text, between texts, at the end.

        They are those that the tokenizer's file adds: "<s> a </s> </s> b </s>" for RoBERTa's. If it adds
        none, they are "[CLS] a [SEP] b [SEP]".

        Args:
          num_texts: 1, or 2 for a pair.

        Raises:
          DataError: the file adds none, and there is no cls or sep token. Or it adds some only to one text or
            only to a pair, and ``num_texts`` is the other number.
        """
        if num_texts not in self._templates:
            self._templates[num_texts] = stored_template(self._implementation, num_texts) or (
                np.array([self.id_of("cls")], np.int32),
                *[np.array([self.id_of("sep")], np.int32)] * num_texts,
            )
        return self._templates[num_texts]

    def with_template(self, single: str, pair: str) -> "Tokenizer":
        """Returns this tokenizer with special tokens around texts, unless its file already adds some.

        Programs that know nothing of the model use this to prepare its inputs.

        Args:
          single: a text and its special tokens, such as "<cls> $A <sep>".
          pair: the same for two texts, ``$A`` and ``$B``.
        """
        if has_template(self._implementation):
            return self
        implementation = tokenizers.Tokenizer.from_str(self._content)
        special = [(name, implementation.token_to_id(name)) for name in single.split() if name != "$A"]
        template = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
        first = implementation.post_processor
        implementation.post_processor = (
            template if first is None else processors.Sequence([first, template])  # pyright: ignore[reportArgumentType]
        )
        return Tokenizer(implementation, self._targets)

    @functools.cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """Returns a copy of ``_implementation`` that recognizes special tokens in texts."""
        content = json.loads(self._content)
        if (content["normalizer"] or {}).get("type") == "Prepend":
            # This normalizer puts a space before each part of a text. With the written spaces stripped,
            # "a <mask> c" has the ids of "a b c" with b masked.
            for token in content["added_tokens"]:
                token["lstrip"] = token["rstrip"] = True
        implementation = tokenizers.Tokenizer.from_str(json.dumps(content))
        implementation.no_truncation()
        implementation.no_padding()
        return implementation

    def encode_with_places(self, text: str) -> Encoding:
        """Returns the ids of ``encode``, the word of each token, and its start and end in ``text``."""
        encoding = self._implementation.encode(text, add_special_tokens=False)
        ids, offsets = np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int32).reshape(-1, 2)
        words = [-1 if word is None else word for word in encoding.word_ids]
        return Encoding(ids, np.array(words, np.int32), offsets[:, 0], offsets[:, 1])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of one-dimensional ids. Special tokens are skipped, wherever they are.

        Bytes that are not UTF-8, which a model may generate, become U+FFFD.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        array = np.asarray(ids)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            raise ValueError(
                f"ids from {array.min()} to {array.max()} do not fit a tokenizer with ids from 0 "
                f"to {self.vocab_size - 1}"
            )
        kept = array[~np.isin(array, self._special_ids)].tolist()
        return self._implementation.decode(kept, skip_special_tokens=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``tokenizer.json`` atomically, and the tokenizer of the targets, if there is one, beside it.

        Raises:
          OSError: as ``files.write_whole``.
        """
        beside = targets_path(path)
        if self._targets is not None:
            write_whole(beside, self._targets._content)
        else:
            beside.unlink(missing_ok=True)  # left by another tokenizer
        write_whole(path, self._content)  # not the binding's own save, whose errors have no type

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads what ``save`` wrote, or any tokenizer.json of Hugging Face.

        Raises:
          DataError: the file is missing or broken, or its vocabulary has no token that ends a text.
        """
        beside = targets_path(path)
        return cls(_read(path), cls(_read(beside)) if beside.exists() else None)


def targets_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of the targets' tokenizer: ``target_tokenizer.json`` beside ``tokenizer.json``."""
    return pathlib.Path(path).with_name(f"target_{pathlib.Path(path).name}")


def _read(path: str | os.PathLike[str]) -> tokenizers.Tokenizer:
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the binding raises no more specific type
        raise DataError(f"{path} is not a tokenizer.json: {error}") from error


def training_texts(config: TokenizerConfig, source: Source) -> Iterator[str]:
    """Yields the texts, not the labels, of at most ``max_training_examples`` evenly spaced examples."""
    step = -(-len(source) // config.max_training_examples)
    indices = range(0, len(source), step)
    for start in range(0, len(indices), _TEXTS_AT_ONCE):
        for example in source.read(indices[start : start + _TEXTS_AT_ONCE]):
            for feature in TEXT_FEATURES:
                if feature in example:
                    value = example[feature]
                    yield value if isinstance(value, str) else " ".join(value)


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains the tokenizer that ``config`` describes on texts of the training split.

    A corpus with too few different words gives a smaller vocabulary than ``vocab_size`` and a warning is
    logged: take the size from the result.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [*SPECIAL_TOKENS, *config.special_tokens]
    if config.kind == "byte":
        vocabulary = {token: i for i, token in enumerate(special + alphabet)}
        implementation = tokenizers.Tokenizer(models.BPE(vocabulary, []))
        implementation.add_special_tokens(special)
        # Splitting into words does not change the ids, but some objectives mask or remove whole words.
        implementation.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
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
    # The first word gets a space too, so that a word is the same token wherever it stands. Decoding removes
    # exactly this space.
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
    """Returns the tokenizer that reading its own file gives.

    Hugging Face reads the scores of a unigram model back with an error in the last digit, which could decide
    a tie. Without this step, a run could differ after a restart.
    """
    while True:
        stored = tokenizers.Tokenizer.from_str(implementation.to_str())
        if stored.to_str() == implementation.to_str():
            return stored
        implementation = stored
