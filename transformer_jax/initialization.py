"""Parameters to start a training from: another run's, or a checkpoint of ``transformers``."""

import dataclasses
from typing import Any, cast

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from transformer_jax.config import ConfigError, TransformerConfig
from transformer_jax.experiment import Experiment
from transformer_jax.loading import load_run
from transformer_jax.pretrained import find_folder, from_pretrained
from transformer_jax.progress import say
from transformer_jax.run_folder import CHECKPOINTS_FOLDER
from transformer_jax.types import PyTree

# What a training may have otherwise than the model that it starts from.
MAY_DIFFER = (
    "head",
    "num_labels",
    "image_shape",
    "dropout",
    "attention_dropout",
    "feedforward_dropout",
    "initial_stddev",
    "dtype",
    "scan_layers",
    "remat",
)


def initial_params(experiment: Experiment, drawn: PyTree, mesh: Mesh) -> PyTree:
    """The parameters of ``config.train.init_from``.

    Args:
      experiment: which model is to be trained, from what.
      drawn: its parameters as they are drawn, on the devices of ``mesh``: of a head that the other model
        does not have, these stay.
      mesh: of the training.

    Raises:
      ConfigError: the other model is of another shape; all fields that differ are named.
      WeightsError, CheckpointError: its files are missing or broken.
    """
    wanted = experiment.model
    folder = find_folder(experiment.train.init_from)
    if (folder / CHECKPOINTS_FOLDER).is_dir():
        run = load_run(str(folder), mesh=mesh)
        same = {
            name: getattr(wanted, name) for name in MAY_DIFFER if name not in ("scan_layers", "image_shape")
        }
        _check_same(dataclasses.replace(run.experiment.model, **same), wanted, str(folder))
        say(f"starting from step {', '.join(map(str, run.steps))} of {folder}")
        return _with_head(run.params, drawn, run.experiment.model, wanted)
    changes: dict[str, Any] = {name: getattr(wanted, name) for name in MAY_DIFFER}
    found = from_pretrained(
        folder, mesh=mesh, rules=experiment.mesh.rules, seed=experiment.train.seed, **changes
    )
    _check_same(found.config, wanted, str(folder))
    say(f"starting from {folder}")
    return found.params


def _check_same(found: TransformerConfig, wanted: TransformerConfig, where: str) -> None:
    differing = [
        f"config.model.{name}: {getattr(found, name)!r} there, {getattr(wanted, name)!r} here"
        for name in (field.name for field in dataclasses.fields(wanted))
        if getattr(found, name) != getattr(wanted, name)
    ]
    if differing:
        raise ConfigError(
            f"config.train.init_from={where!r} is a model of another shape:\n  " + "\n  ".join(differing)
        )


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
