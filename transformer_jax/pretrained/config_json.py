"""Converts ``config.json`` of Hugging Face ``transformers`` to a ``TransformerConfig``, and back."""

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
    """A checkpoint's model, by ``config.json`` and the names of the tensors."""

    family: Family
    config: TransformerConfig
    labels: tuple[str, ...]  # names of the classes, in order
    problem_type: str  # of the classes, as transformers names it; "" if it is not given


def family_in(content: Mapping[str, Any], where: str | os.PathLike[str], name: str = "") -> Family:
    """Returns the family of a model, given the ``content`` of its ``config.json``, which is in ``where``.

    Several families may read checkpoints with one ``model_type``. The result is the one called ``name``; or
    else the one whose class ``architectures`` names; or else the first in ``FAMILIES``.

    Raises:
      ConfigError: no family reads such checkpoints, or the one called ``name`` does not.
    """
    known: dict[str, dict[str, set[str]]] = {}  # by model_type: the classes of each family
    for key, family in FAMILIES.items():
        if family.checkpoint is not None:
            for model_type, classes in family.checkpoint.classes.items():
                known.setdefault(model_type, {})[key] = set(classes.values())
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        raise ConfigError(
            f"{where} has model_type={model_type!r}, which is not supported; use one of {', '.join(known)}, "
            "or first add your own family to transformer_jax.families.FAMILIES"
        )
    candidates = known[model_type]
    if name:
        if name not in candidates:
            raise ConfigError(
                f"{where} has model_type={model_type!r}, which family={name!r} does not read; use "
                + " or ".join(map(repr, candidates))
            )
        return FAMILIES[name]
    claimed = content.get("architectures") or ()
    named = [key for key, classes in candidates.items() if not classes.isdisjoint(claimed)]
    return FAMILIES[(named or list(candidates))[0]]


def describe(
    content: Mapping[str, Any],
    names: frozenset[str],
    folder: pathlib.Path,
    family: Family | None = None,
) -> Description:
    """Returns the model of a checkpoint.

    Args:
      content: of ``config.json``.
      names: of all tensors; they determine the head, or else ``architectures`` does.
      folder: for errors.
      family: of the model; by default the result of ``family_in``.

    Raises:
      ConfigError: the family is unknown, the model differs from the family of this library, or a key is
        missing or broken.
    """
    where = folder / CONFIG_FILE
    content = {key: value for key, value in content.items() if value is not None}
    family = family_in(content, where) if family is None else family
    checkpoint = family.checkpoint
    assert checkpoint is not None
    for key, value in checkpoint.required.items():
        if content.get(key, value) != value:
            raise ConfigError(
                f"{where} has {key}={content[key]!r}, but this library supports only {value!r} for the "
                f"family {family.name}"
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
            raise ConfigError(
                f"{where} has {values}; these must be equal, because this library has only {ours}"
            )
        fields[ours] = next(iter(values.values()))
    try:
        fields |= checkpoint.read(content, names)
    except KeyError as error:
        raise ConfigError(f"{where} lacks the key {error}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    fields["head"] = _head(checkpoint, content, names)
    fields["head_dropout"] = head_dropout(checkpoint, content, fields["head"], where)
    labels = _labels(content, where) if HEADS[fields["head"]].labelled else ()
    try:
        config = make_config({**fields, "num_labels": len(labels)})
    except TypeError as error:
        raise ConfigError(f"{where} lacks a size of the model: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where} describes a model that cannot exist: {error}") from error
    return Description(family, config, labels, str(content.get("problem_type") or ""))


def _head(checkpoint: Checkpoint, content: Mapping[str, Any], names: frozenset[str]) -> str:
    """Returns the head by the tensors; ``architectures`` may be that of the model before fine-tuning."""
    bare = {name.removeprefix(checkpoint.prefix) for name in names}
    found = [head for head, needed in checkpoint.heads if bare.issuperset(needed)]
    if not HEADS[found[0]].labelled:
        return found[0]
    # A classifier and a pooler may be the head "classes", or "token_classes" with an unused pooler.
    claimed = content.get("architectures", [])
    classes = checkpoint.classes[content["model_type"]]
    named = [head for head in found if HEADS[head].labelled and classes[head] in claimed]
    return (named or found)[0]


def head_dropout(
    checkpoint: Checkpoint, content: Mapping[str, Any], head: str, where: str | os.PathLike[str]
) -> float | None:
    """Returns the field ``head_dropout`` of the models of a checkpoint that have this head.

    Args:
      checkpoint: how the family's checkpoints are read.
      content: of ``config.json``.
      head: of the model; it may differ from the checkpoint's.
      where: the file, for errors.

    Raises:
      ConfigError: the rate is not a number.
    """
    if head not in checkpoint.head_dropouts:
        return None
    key, default = checkpoint.head_dropouts[head]
    rate = content.get(key)
    rate = default if rate is None else rate
    if rate is not None and not isinstance(rate, int | float):
        raise ConfigError(f"{where} has {key}={rate!r}, which must be one number")
    return None if rate is None else float(rate)


def _labels(content: Mapping[str, Any], where: pathlib.Path) -> tuple[str, ...]:
    # transformers does not write these default names.
    names = content.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{where} has id2label={names!r}, which must be an object with a name for each class number"
        ) from error


def content_of(family: Family, config: TransformerConfig, labels: tuple[str, ...]) -> dict[str, Any]:
    """Returns the keys of ``config.json`` for a model.

    Args:
      family: of the model.
      config: of the model.
      labels: names of its classes; if (), they get the default names of ``transformers``.

    Raises:
      ConfigError: ``transformers`` has no such model, or ``config.json`` has no key for one of its fields.
    """
    checkpoint = family.checkpoint
    if checkpoint is None:
        there = [other for other in FAMILIES.values() if other.checkpoint is not None]
        nearest = min(there, key=lambda other: len(other.differing(config)))
        raise ConfigError(
            "transformers has no model like this one: it belongs to none of the families "
            f"{', '.join(other.name for other in there)}, and differs from {nearest.name}, the nearest, in "
            + ", ".join(nearest.differing(config))
        )
    if differing := family.differing(config):
        raise ConfigError(
            f"transformers has no model like this one of the family {family.name}: it differs in "
            + ", ".join(differing)
        )
    if config.head not in checkpoint.architectures:
        raise ConfigError(
            f"transformers has no model like this one of the family {family.name} with the head "
            f"{config.head!r}; its models have the heads {', '.join(checkpoint.architectures)}"
        )
    content: dict[str, Any] = {
        "model_type": checkpoint.model_type,
        "architectures": [checkpoint.architectures[config.head]],
        "dtype": "float32",
    }
    content |= dict(checkpoint.required) | {
        theirs: getattr(config, ours) for ours, theirs in checkpoint.fields
    }
    if config.head in checkpoint.head_dropouts:
        content[checkpoint.head_dropouts[config.head][0]] = config.head_dropout
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
    """Raises ConfigError if ``content`` would be read as a model with another config."""
    checkpoint = family.checkpoint
    assert checkpoint is not None
    names = {
        tensor.theirs
        for tensor in checkpoint.tensors
        if not tensor.ours.startswith("head/") and tensor.applies(config)
    }
    names.update(dict(checkpoint.heads)[config.head])
    where = f"transformers has no model like this one of the family {family.name}"
    try:
        found = describe(content, frozenset(names), pathlib.Path(), family).config
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
    """Returns the fields that do not change the outputs of such a model."""
    found = {"dtype", "scan_layers", "remat", "remat_keeps", "initial_stddev"}
    found |= {"dropout", "attention_dropout", "feedforward_dropout"}
    found |= {"head_dropout", "pooler_dropout", "output_dropout"}
    if config.is_encoder_only:
        found |= {"eos_id", "decoder_start_id"}
    if config.is_decoder_only:
        found |= {"pad_id", "decoder_start_id"}  # padding is found by segments
    if not config.has_vocabulary:
        found.add("pad_id")
    if config.positions != "relative":
        found |= {"relative_buckets", "relative_max_distance"}
    return found
