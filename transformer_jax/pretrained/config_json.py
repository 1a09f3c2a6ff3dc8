"""``config.json`` of Hugging Face ``transformers``, from and to a ``TransformerConfig``."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformer_jax.config import ConfigError
from transformer_jax.families import FAMILIES, Checkpoint, Family
from transformer_jax.families.base import make_config
from transformer_jax.models import TransformerConfig
from transformer_jax.models.heads import HEADS

CONFIG_FILE = "config.json"


class Description(NamedTuple):
    """What ``config.json`` says, with what the names of the tensors say."""

    family: Family
    config: TransformerConfig
    labels: tuple[str, ...]  # names of the classes, in order
    problem_type: str  # what they are; "" where it is not said


def family_in(content: Mapping[str, Any], where: str | os.PathLike[str]) -> Family:
    """The family of a model by the ``content`` of its ``config.json``, which is in ``where``.

    Raises:
      ConfigError: it is none of those here.
    """
    known = {f.checkpoint.model_type: f for f in FAMILIES.values() if f.checkpoint is not None}
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        raise ConfigError(f"{where} has model_type={model_type!r}, which is none of {', '.join(known)}")
    return known[model_type]


def describe(content: Mapping[str, Any], names: frozenset[str], folder: pathlib.Path) -> Description:
    """The model that a folder holds.

    Args:
      content: of ``config.json``.
      names: of all its tensors: they say which head it has, and ``architectures`` only what they leave open.
      folder: for messages.

    Raises:
      ConfigError: an unknown family, a model that differs from what the family is here, or a missing key.
    """
    where = folder / CONFIG_FILE
    content = {key: value for key, value in content.items() if value is not None}
    family = family_in(content, where)
    checkpoint = family.checkpoint
    assert checkpoint is not None
    for key, value in checkpoint.required.items():
        if content.get(key, value) != value:
            raise ConfigError(
                f"{where} has {key}={content[key]!r}, but here the family {family.name} has {value!r}"
            )
    fields: dict[str, Any] = {**family.fixed, **family.defaults}
    found: dict[str, dict[str, Any]] = {}
    for ours, theirs in checkpoint.fields:
        if theirs in content:
            if not isinstance(content[theirs], int | float):
                raise ConfigError(f"{where} has {theirs}={content[theirs]!r}, which must be one number")
            found.setdefault(ours, {})[theirs] = content[theirs]
    for ours, values in found.items():
        if len(set(values.values())) > 1:
            raise ConfigError(f"{where} has {values}, which must be the same: {ours} is one number here")
        fields[ours] = next(iter(values.values()))
    try:
        fields |= checkpoint.read(content, names)
    except KeyError as error:
        raise ConfigError(f"{where} lacks the key {error}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    fields["head"] = _head(checkpoint, content, names)
    labels = _labels(content, where) if HEADS[fields["head"]].labelled else ()
    try:
        config = make_config({**fields, "num_labels": len(labels)})
    except TypeError as error:
        raise ConfigError(f"{where} lacks a size of the model: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where} is of no model that there can be: {error}") from error
    return Description(family, config, labels, str(content.get("problem_type") or ""))


def _head(checkpoint: Checkpoint, content: Mapping[str, Any], names: frozenset[str]) -> str:
    """The head that the tensors show; ``architectures`` is often that of the model it was tuned from."""
    bare = {name.removeprefix(checkpoint.prefix) for name in names}
    found = [head for head, needed in checkpoint.heads if bare.issuperset(needed)]
    if not HEADS[found[0]].labelled:
        return found[0]
    # A classifier beside a pooler may be one of tokens that kept the pooler: the tensors are the same.
    claimed = content.get("architectures", [])
    named = [head for head in found if HEADS[head].labelled and checkpoint.architectures[head] in claimed]
    return (named or found)[0]


def _labels(content: Mapping[str, Any], where: pathlib.Path) -> tuple[str, ...]:
    names = content.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # what transformers leaves out
    try:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where} has id2label={names!r}, not a name for each number of a class") from error


def content_of(family: Family, config: TransformerConfig, labels: tuple[str, ...]) -> dict[str, Any]:
    """The keys of ``config.json`` for a model.

    Args:
      family: whose model it is.
      config: of the model.
      labels: names of its classes; () names them as ``transformers`` does.

    Raises:
      ConfigError: ``transformers`` has no such model, or ``config.json`` has no key for what it differs in.
    """
    checkpoint = family.checkpoint
    if checkpoint is None:
        there = [other for other in FAMILIES.values() if other.checkpoint is not None]
        nearest = min(there, key=lambda other: len(other.differing(config)))
        raise ConfigError(
            "transformers has no model like this one: it is of none of the families "
            f"{', '.join(other.name for other in there)}, and differs from {nearest.name}, the nearest, in "
            + ", ".join(nearest.differing(config))
        )
    if differing := family.differing(config):
        raise ConfigError(
            f"transformers has no model like this one of the family {family.name}: it differs in "
            + ", ".join(differing)
        )
    content: dict[str, Any] = {
        "model_type": checkpoint.model_type,
        "architectures": [checkpoint.architectures[config.head]],
        "dtype": "float32",
    }
    content |= dict(checkpoint.required) | {
        theirs: getattr(config, ours) for ours, theirs in checkpoint.fields
    }
    try:
        content |= checkpoint.write(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if HEADS[config.head].labelled:
        names = labels or tuple(f"LABEL_{i}" for i in range(config.num_labels))
        content["id2label"] = {str(i): name for i, name in enumerate(names)}
        content["label2id"] = {name: i for i, name in enumerate(names)}
    _check_read_back(family, config, content)
    return content


def _check_read_back(family: Family, config: TransformerConfig, content: Mapping[str, Any]) -> None:
    """Raises ConfigError where ``content`` would be read as another model than ``config``."""
    checkpoint = family.checkpoint
    assert checkpoint is not None
    names = {
        tensor.theirs
        for tensor in checkpoint.tensors
        if not tensor.ours.startswith("head/")
        and (tensor.when is None or getattr(config, tensor.when[0]) == tensor.when[1])
    }
    names.update(dict(checkpoint.heads)[config.head])
    where = f"transformers has no model like this one of the family {family.name}"
    try:
        found = describe(content, frozenset(names), pathlib.Path()).config
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    differing = [
        f"{field.name}={getattr(config, field.name)!r} would be read as {getattr(found, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in _undecided(config) and getattr(config, field.name) != getattr(found, field.name)
    ]
    if differing:
        raise ConfigError(f"{where}: {', '.join(differing)}")


def _undecided(config: TransformerConfig) -> set[str]:
    """Fields on which what such a model computes from its inputs does not depend."""
    found = {"dtype", "scan_layers", "remat", "remat_keeps", "initial_stddev"}
    found |= {"dropout", "attention_dropout", "feedforward_dropout"}
    if config.is_encoder_only:
        found |= {"eos_id", "decoder_start_id"}
    if config.is_decoder_only:
        found |= {"pad_id", "decoder_start_id"}  # segments say what is padding
    if config.image_shape:
        found.add("pad_id")
    if config.positions != "relative":
        found |= {"relative_buckets", "relative_max_distance"}
    return found
