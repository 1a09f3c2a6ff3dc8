"""Reads the tokenizers of a MarianMT checkpoint that has ``source.spm``, ``target.spm`` and ``vocab.json``.

SentencePiece (Kudo and Richardson 2018) tokenizes a source with the scores in ``source.spm`` and a
translation with those in ``target.spm``; ``vocab.json`` has the ids of the pieces of both languages. Each
language becomes a unigram model of ``tokenizers`` over all these ids.
"""

import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import tokenizers
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from transformer_jax.data.examples import DataError
from transformer_jax.data.tokenizers import Tokenizer

SOURCE_FILE = "source.spm"
TARGET_FILE = "target.spm"
VOCABULARY_FILE = "vocab.json"

_EOS, _UNKNOWN, _PAD = "</s>", "<unk>", "<pad>"
_LANGUAGE = re.compile(r">>.+<<")  # stands before a source and names the target language
_UNIGRAM = 1  # TrainerSpec.ModelType
_NORMAL, _USER_DEFINED = 1, 4  # ModelProto.SentencePiece.Type
# Scores of pieces that only the other language has. A single character is used instead of the unknown token,
# as in Marian's tokenizer. A longer piece is never used, because every alternative scores higher.
_OTHER_CHARACTER, _OTHER_PIECE = -1e6, -1e9

_Field = descriptor_pb2.FieldDescriptorProto


def load_marian_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Reads ``source.spm``, ``target.spm`` and ``vocab.json`` of a folder.

    A text is tokenized as by ``transformers.MarianTokenizer``, with two exceptions, which are one unknown
    token there: consecutive characters that the text's language lacks are looked up one by one, and a piece
    that ``vocab.json`` lacks is split into smaller ones. ``>>fra<<`` and similar tokens are special tokens.

    Returns:
      The tokenizer of the sources; its ``targets`` is the tokenizer of the targets.

    Raises:
      DataError: a file is missing or broken, or a SentencePiece model is not a unigram model.
    """
    names = _read_vocabulary(pathlib.Path(folder) / VOCABULARY_FILE)
    source, target = (
        _of_one_language(pathlib.Path(folder) / name, names) for name in (SOURCE_FILE, TARGET_FILE)
    )
    return Tokenizer(source, Tokenizer(target))


def _of_one_language(path: pathlib.Path, names: Sequence[str]) -> tokenizers.Tokenizer:
    """Returns the tokenizer of one language.

    Args:
      path: the language's SentencePiece file, with the scores.
      names: the tokens of both languages, in the order of their ids.
    """
    model = _read_model(path)
    kind = model.trainer_spec.model_type
    if kind != _UNIGRAM:
        raise DataError(
            f"{path} is a SentencePiece model of type {kind}: only unigram models (type {_UNIGRAM}) can be "
            "read"
        )
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type in (_NORMAL, _USER_DEFINED)}
    special = [name for name in names if name in (_EOS, _UNKNOWN, _PAD) or _LANGUAGE.fullmatch(name)]
    vocabulary = []
    for name in names:
        other = _OTHER_CHARACTER if len(name) == 1 else _OTHER_PIECE
        vocabulary.append((name, 0.0 if name in special else scores.get(name, other)))
    made = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=names.index(_UNKNOWN), byte_fallback=False))
    rules: list[Any] = []
    if model.normalizer_spec.precompiled_charsmap:
        rules.append(normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    if model.normalizer_spec.remove_extra_whitespaces:
        rules += [normalizers.Replace(tokenizers.Regex(" {2,}"), " "), normalizers.Strip()]
    made.normalizer = normalizers.Sequence(rules)
    scheme = "always" if model.normalizer_spec.add_dummy_prefix else "never"
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {_EOS}", pair=f"$A $B {_EOS}", special_tokens=[(_EOS, names.index(_EOS))]
    )
    return made


def _read_model(path: pathlib.Path) -> Any:
    model = _model_class()()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except message.DecodeError as error:
        raise DataError(f"{path} is not a SentencePiece model: {error}") from error
    if not model.pieces:
        raise DataError(f"{path} is not a SentencePiece model: it has no pieces")
    return model


def _read_vocabulary(path: pathlib.Path) -> list[str]:
    """Returns the tokens in the order of their ids."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise DataError(f"{path} must map each token to its own id, from 0 to {len(ids) - 1}")
    missing = [name for name in (_EOS, _UNKNOWN, _PAD) if name not in ids]
    if missing:
        raise DataError(f"{path} is not a vocabulary of Marian: it lacks {', '.join(missing)}")
    return sorted(ids, key=ids.__getitem__)


def _model_class() -> type[Any]:
    """Returns the message class for the needed part of SentencePiece's sentencepiece_model.proto.

    Source: github.com/google/sentencepiece.
    """
    file = descriptor_pb2.FileDescriptorProto(name="pieces.proto", package="pieces", syntax="proto2")

    def add(name: str, *fields: tuple[str, int, int, Any]) -> None:
        made = file.message_type.add(name=name)
        for field, number, kind, more in fields:
            made.field.add(name=field, number=number, type=kind, **{"label": _Field.LABEL_OPTIONAL, **more})

    add(
        "Piece",
        ("piece", 1, _Field.TYPE_STRING, {}),
        ("score", 2, _Field.TYPE_FLOAT, {}),
        ("type", 3, _Field.TYPE_INT32, {"default_value": str(_NORMAL)}),
    )
    add("Trainer", ("model_type", 3, _Field.TYPE_INT32, {"default_value": str(_UNIGRAM)}))
    add(
        "Normalizer",
        ("precompiled_charsmap", 2, _Field.TYPE_BYTES, {}),
        ("add_dummy_prefix", 3, _Field.TYPE_BOOL, {"default_value": "true"}),
        ("remove_extra_whitespaces", 4, _Field.TYPE_BOOL, {"default_value": "true"}),
    )
    several = {"label": _Field.LABEL_REPEATED}
    add(
        "Model",
        ("pieces", 1, _Field.TYPE_MESSAGE, {"type_name": ".pieces.Piece", **several}),
        ("trainer_spec", 2, _Field.TYPE_MESSAGE, {"type_name": ".pieces.Trainer"}),
        ("normalizer_spec", 3, _Field.TYPE_MESSAGE, {"type_name": ".pieces.Normalizer"}),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("pieces.Model"))
