"""Reads the initial parameters of a training from another run or from a checkpoint of ``transformers``."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from transformer_jax.config import ConfigError
from transformer_jax.families import Family, family_of
from transformer_jax.models import TransformerConfig
from transformer_jax.models.heads import HEADS
from transformer_jax.pretrained.conversion import MAY_DIFFER, conversion, differing, fields_of
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.pretrained.hub import open_checkpoint
from transformer_jax.pretrained.reading import changed_config, params_template, read_params
from transformer_jax.reporting.progress import say
from transformer_jax.runs.experiment import Experiment
from transformer_jax.runs.folder import CHECKPOINTS_FOLDER, load_config
from transformer_jax.runs.loading import load_run
from transformer_jax.sharding import partitioning
from transformer_jax.types import PyTree

# The fields by which errors state the size of a model.
_SIZES = ("num_encoder_layers", "num_decoder_layers", "d_model")


def check_origin(experiment: Experiment) -> pathlib.Path | CheckpointFolder:
    """Opens ``config.train.init_from`` and compares its model, without parameters, with the trained one.

    Returns:
      The folder of a run, or an opened checkpoint of ``transformers``.

    Raises:
      ConfigError: the config cannot be read; or the model belongs to another family or has another shape. The
        message lists the fields that differ.
      WeightsError: the tensors of a checkpoint cannot be read.
    """
    trained = experiment.model
    path = pathlib.Path(os.path.expanduser(experiment.train.init_from))
    if (path / CHECKPOINTS_FOLDER).is_dir():
        origin: pathlib.Path | CheckpointFolder = path
        stored = load_config(path).model
        _check_family(f"run in {path}", family_of(stored), vars(stored), trained)
    else:
        origin = open_checkpoint(experiment.train.init_from)
        path, fields = origin.path, origin.checkpoint.fields
        # Only config.json is read here, so that another family is reported before broken tensors are.
        known = {ours: origin.content[theirs] for ours, theirs in fields if theirs in origin.content}
        _check_family(f"checkpoint in {path}", origin.family, {**known, **origin.family.fixed}, trained)
        stored = origin.model.config
    there, here = fields_of(stored), fields_of(trained)
    lines = [
        f"config.model.{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in differing(stored, trained)
    ]
    if lines:
        raise ConfigError(
            f"config.train.init_from={str(path)!r} is a model of another shape:\n  " + "\n  ".join(lines)
        )
    return origin


def _check_family(what: str, family: Family, there: Mapping[str, Any], wanted: TransformerConfig) -> None:
    """Raises ConfigError if ``wanted`` is not of ``family``; ``there`` has the fields of the other model."""
    own = family_of(wanted)
    if own is family:
        return
    here = vars(wanted)
    decisive = {**family.fixed, **own.fixed}
    lines = [
        f"config.model.{name}: {there[name]!r} there, {here[name]!r} here"
        for name in here
        if name in decisive and name in there and there[name] != here[name]
    ]
    raise ConfigError(
        f"config.train.init_from: the {what} is a {family.name} ({_sizes(there)}), but this experiment's "
        f"model is a {own.name} ({_sizes(here)}). Start from a {own.name}, or take the model from "
        f"families.{family.name}. They differ in\n  " + "\n  ".join(lines)
    )


def _sizes(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={fields[name]}" for name in _SIZES if fields.get(name))


def initial_params(
    experiment: Experiment,
    drawn: PyTree,
    mesh: Mesh,
    origin: pathlib.Path | CheckpointFolder | None = None,
) -> PyTree:
    """Returns the parameters of ``config.train.init_from``, converted for the model to be trained.

    Args:
      experiment: the experiment to train.
      drawn: the initialized parameters of its model, on the devices of ``mesh``. Parameters of a head that
        the other model does not have are taken from here.
      mesh: the mesh of the training.
      origin: what ``check_origin`` returned; by default it is called here.

    Raises:
      ConfigError: see ``check_origin``.
      WeightsError, CheckpointError: the files are missing or broken.
    """
    if origin is None:
        origin = check_origin(experiment)
    trained, rules = experiment.model, experiment.mesh.rules
    if isinstance(origin, CheckpointFolder):
        free = (*MAY_DIFFER, "front_end", "max_length")
        config = changed_config(origin, {name: getattr(trained, name) for name in free})
        params = read_params(origin, config, mesh=mesh, rules=rules, seed=experiment.train.seed)
        say(f"starting from {origin.path}")
        return params
    run = load_run(str(origin), mesh=mesh, rules=rules)
    say(f"starting from step {', '.join(map(str, run.steps))} of {origin}")
    params = _converted(run.params, run.experiment.model, trained, mesh, rules)
    return _with_head(params, drawn, run.experiment.model, trained)


def _converted(
    params: PyTree,
    found: TransformerConfig,
    wanted: TransformerConfig,
    mesh: Mesh,
    rules: partitioning.Rules,
) -> PyTree:
    """Returns ``params`` with the layers stacked and the positions interpolated as ``wanted`` needs them."""
    convert = conversion(found, wanted)
    if convert is None:
        return params
    own_head = dataclasses.replace(wanted, head=found.head, num_labels=found.num_labels)
    template = params_template(own_head, mesh, rules)
    return jax.jit(convert, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, template))(params)


def _with_head(params: PyTree, drawn: PyTree, found: TransformerConfig, wanted: TransformerConfig) -> PyTree:
    """Returns ``params``, sharded like ``drawn``, and from ``drawn`` the parameters that only its head has.

    Heads share some modules, such as the pooler and the layer before the logits of masked tokens.
    """
    is_same = (found.head, found.num_labels) == (wanted.head, wanted.num_labels)
    labelled = tuple(f"head/{name}/" for name in HEADS[wanted.head].labelled)
    there = flatten_dict(params, sep="/")
    chosen, new = {}, []
    for path, leaf in flatten_dict(drawn, sep="/").items():
        if path in there and (is_same or not path.startswith(labelled)):
            chosen[path] = jax.device_put(there[path], cast(jax.Array, leaf).sharding)
        else:
            chosen[path] = leaf
            new.append(path)
    if new:
        say(f"randomly initialized, because the other model does not have it: {', '.join(sorted(new))}")
    return unflatten_dict(chosen, sep="/")
