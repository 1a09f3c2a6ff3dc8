"""Parameters to start a training from: another run's, or a checkpoint of ``transformers``."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from transformer_jax.config import ConfigError
from transformer_jax.families import Family, family_of
from transformer_jax.models import TransformerConfig
from transformer_jax.pretrained.config_json import CONFIG_FILE, family_in, read_content
from transformer_jax.pretrained.conversion import MAY_DIFFER, conversion, differing
from transformer_jax.pretrained.hub import find_folder
from transformer_jax.pretrained.reading import from_pretrained, params_template, read_description
from transformer_jax.reporting.progress import say
from transformer_jax.runs.experiment import Experiment
from transformer_jax.runs.folder import CHECKPOINTS_FOLDER, load_config
from transformer_jax.runs.loading import load_run
from transformer_jax.sharding import partitioning
from transformer_jax.types import PyTree

# By which the messages say how large a model is.
_SIZES = ("num_encoder_layers", "num_decoder_layers", "d_model")


def check_origin(experiment: Experiment) -> None:
    """Compares the model to be trained with that of ``config.train.init_from``, of which no weight is read.

    Raises:
      ConfigError: the other model is of another family, which is named, or of another shape; all fields that
        differ are named. Or its config cannot be read.
      WeightsError: it is a checkpoint without tensors that can be read.
    """
    wanted = experiment.model
    folder = find_folder(experiment.train.init_from)
    if _is_run(folder):
        found = load_config(folder).model
        _check_family(f"run in {folder}", family_of(found), dataclasses.asdict(found), wanted)
    else:
        # First of all, and by config.json alone: whoever named the wrong folder should not mend its tensors.
        content = read_content(folder)
        family = family_in(content, folder / CONFIG_FILE)
        assert family.checkpoint is not None  # or it would not have been found
        named = {ours: content[theirs] for ours, theirs in family.checkpoint.fields if theirs in content}
        _check_family(f"checkpoint in {folder}", family, {**named, **family.fixed}, wanted)
        found = read_description(folder)[1].config
    lines = [
        f"config.model.{name}: {getattr(found, name)!r} there, {getattr(wanted, name)!r} here"
        for name in differing(found, wanted)
    ]
    if lines:
        raise ConfigError(
            f"config.train.init_from={str(folder)!r} is a model of another shape:\n  " + "\n  ".join(lines)
        )


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / CHECKPOINTS_FOLDER).is_dir()


def _check_family(what: str, family: Family, there: Mapping[str, Any], wanted: TransformerConfig) -> None:
    """Raises ConfigError unless ``wanted`` is of the same family as a model with the fields ``there``."""
    own = family_of(wanted)
    if own is family:
        return
    here = dataclasses.asdict(wanted)
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


def initial_params(experiment: Experiment, drawn: PyTree, mesh: Mesh) -> PyTree:
    """The parameters of ``config.train.init_from``.

    Args:
      experiment: which model is to be trained, from what.
      drawn: its parameters as they are drawn, on the devices of ``mesh``: of a head that the other model
        does not have, these stay.
      mesh: of the training.

    Raises:
      ConfigError: the other model does not fit, see ``check_origin``.
      WeightsError, CheckpointError: its files are missing or broken.
    """
    check_origin(experiment)
    wanted = experiment.model
    folder = find_folder(experiment.train.init_from)
    if _is_run(folder):
        run = load_run(str(folder), mesh=mesh, rules=experiment.mesh.rules)
        say(f"starting from step {', '.join(map(str, run.steps))} of {folder}")
        params = _converted(run.params, run.experiment.model, wanted, mesh, experiment.mesh.rules)
        return _with_head(params, drawn, run.experiment.model, wanted)
    free = (*MAY_DIFFER, "image_shape", "max_length")
    changes: dict[str, Any] = {name: getattr(wanted, name) for name in free}
    found = from_pretrained(
        folder, mesh=mesh, rules=experiment.mesh.rules, seed=experiment.train.seed, **changes
    )
    say(f"starting from {folder}")
    return found.params


def _converted(
    params: PyTree,
    found: TransformerConfig,
    wanted: TransformerConfig,
    mesh: Mesh,
    rules: partitioning.Rules,
) -> PyTree:
    """``params`` with layers stacked and positions for images as ``wanted`` has them, split over the mesh."""
    convert = conversion(found, wanted)
    if convert is None:
        return params
    own_head = dataclasses.replace(wanted, head=found.head, num_labels=found.num_labels)
    template = params_template(own_head, mesh, rules)
    return jax.jit(convert, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, template))(params)


def _with_head(params: PyTree, drawn: PyTree, found: TransformerConfig, wanted: TransformerConfig) -> PyTree:
    """``params`` where the models are alike, placed as ``drawn``; what a head has of its own as it was drawn.

    A pooler, and what comes before the logits of masked tokens, are the same in every head that has them.
    """
    is_same = (found.head, found.num_labels) == (wanted.head, wanted.num_labels)
    there = flatten_dict(params, sep="/")
    chosen, new = {}, []
    for path, leaf in flatten_dict(drawn, sep="/").items():
        if path in there and (is_same or not path.startswith("head/classes/")):
            chosen[path] = jax.device_put(there[path], cast(jax.Array, leaf).sharding)
        else:
            chosen[path] = leaf
            new.append(path)
    if new:
        say(f"drawn anew, for the other model does not have it: {', '.join(sorted(new))}")
    return unflatten_dict(chosen, sep="/")
