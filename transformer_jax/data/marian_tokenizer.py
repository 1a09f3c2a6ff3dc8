"""The tokenizers of a MarianMT checkpoint that has ``source.spm``, ``target.spm`` and ``vocab.json``.

SentencePiece (Kudo and Richardson 2018) parts a source by the scores in ``source.spm`` and a translation by
those in ``target.spm``; ``vocab.json`` says which id a piece of either language has. Each becomes a unigram
model of ``tokenizers`` over all of these ids.
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
_LANGUAGE = re.compile(r">>.+<<")  # before a source, where a model translates into several languages
_UNIGRAM = 1  # TrainerSpec.ModelType
_NORMAL, _USER_DEFINED = 1, 4  # ModelProto.SentencePiece.Type
# Pieces of the other language alone. Of one character: instead of an unknown one, as Marian's tokenizer
# has it. Longer: never, for anything else scores higher.
_OTHER_CHARACTER, _OTHER_PIECE = -1e6, -1e9

_Field = descriptor_pb2.FieldDescriptorProto


def load_marian_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Reads ``source.spm``, ``target.spm`` and ``vocab.json``: sources' tokenizer, with that of targets.

    A text is tokenized as by ``transformers.MarianTokenizer``, except that several characters in a row
    that its language lacks are looked up one by one, and that a piece which ``vocab.json`` lacks is
    made of smaller ones: both are one unknown token there. ``>>fra<<`` and the like are special tokens.

    Raises:
      DataError: a file is missing or broken, or the pieces are not those of a unigram model.
    """
    names = _read_vocabulary(pathlib.Path(folder) / VOCABULARY_FILE)
    source, target = (
        _of_one_language(pathlib.Path(folder) / name, names) for name in (SOURCE_FILE, TARGET_FILE)
    )
    return Tokenizer(source, Tokenizer(target))


def _of_one_language(path: pathlib.Path, names: Sequence[str]) -> tokenizers.Tokenizer:
    """By the scores in the file of a language; ``names`` are the tokens of both in the order of their ids."""
    model = _read_model(path)
    kind = model.trainer_spec.model_type
    if kind != _UNIGRAM:
        raise DataError(f"{path} is a model of type {kind}: only unigrams (type {_UNIGRAM}) can be read")
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
    found = _model_class()()
    try:
        found.ParseFromString(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except message.DecodeError as error:
        raise DataError(f"{path} is not a model of SentencePiece: {error}") from error
    if not found.pieces:
        raise DataError(f"{path} is not a model of SentencePiece: there are no pieces in it")
    return found


def _read_vocabulary(path: pathlib.Path) -> list[str]:
    """The tokens in the order of their ids."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise DataError(f"{path} must give each token its id, from 0 to {len(ids) - 1}")
    missing = [name for name in (_EOS, _UNKNOWN, _PAD) if name not in ids]
    if missing:
        raise DataError(f"{path} is not Marian's: there is no {', '.join(missing)}")
    return sorted(ids, key=ids.__getitem__)


def _model_class() -> type[Any]:
    """What is needed here of sentencepiece_model.proto (github.com/google/sentencepiece)."""
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
