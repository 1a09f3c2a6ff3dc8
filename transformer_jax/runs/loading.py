"""Loads models for use: from a run folder, or from a folder in Hugging Face's format."""

import dataclasses
import os
from typing import Any

from jax.sharding import Mesh

from transformer_jax.checkpoints.checkpointer import Checkpointer
from transformer_jax.checkpoints.files import CheckpointError
from transformer_jax.config import ConfigError
from transformer_jax.data import DataError, Tokenizer
from transformer_jax.families import family_of
from transformer_jax.inference.model import Pretrained
from transformer_jax.pretrained.reading import from_pretrained, params_template
from transformer_jax.reporting.progress import say
from transformer_jax.runs.experiment import Experiment
from transformer_jax.runs.folder import CHECKPOINTS_FOLDER, load_config, load_tokenizer, run_folder
from transformer_jax.sharding import partitioning
from transformer_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run with its parameters in memory.

    Attributes:
      experiment: the experiment that was trained.
      tokenizer: its tokenizer.
      params: its parameters, of one checkpoint or averaged over several.
      steps: the steps of these checkpoints.
    """

    experiment: Experiment
    tokenizer: Tokenizer
    params: PyTree
    steps: tuple[int, ...]


def load_run(
    workdir: str,
    from_checkpoint: str = "latest",
    average_last: int | None = None,
    mesh: Mesh | None = None,
    rules: partitioning.Rules = partitioning.WHOLE_RULES,
) -> TrainedRun:
    """Reads a run's config, tokenizer and parameters.

    Args:
      workdir: the run folder.
      from_checkpoint: "latest", "best" or a step.
      average_last: number of last checkpoints whose parameters are averaged; requires "latest". None uses
        the number in the run's config, or as many checkpoints as can be read if there are fewer.
      mesh: the mesh that the parameters are placed on; by default this process's first device.
      rules: how the parameters are split over the mesh; each device reads only its shards. By default each
        device gets a copy.

    Raises:
      ConfigError: the config is missing, broken or does not fit; the message names the setting.
      DataError: the tokenizer is missing or broken, or not the one of the checkpoint.
      CheckpointError: the checkpoint is missing or broken.
    """
    workdir = run_folder(workdir)
    experiment = load_config(workdir)
    template = params_template(experiment.model, mesh, rules)
    with Checkpointer(f"{workdir}/{CHECKPOINTS_FOLDER}", experiment.checkpoint) as checkpointer:
        if not checkpointer.steps():
            raise CheckpointError(
                f"{workdir} has no checkpoint yet: training writes one every "
                f"{experiment.checkpoint.every_steps} steps and at its end"
            )
        if from_checkpoint == "latest":
            last = experiment.evaluate.average_last if average_last is None else average_last
            restored = checkpointer.average(template, last, or_fewer=average_last is None)
        elif average_last is not None and average_last > 1:
            raise ConfigError(f"--average_last={average_last} requires --from_checkpoint=latest")
        else:
            restored = checkpointer.restore_params(template, _step(checkpointer, from_checkpoint))
    tokenizer = load_tokenizer(workdir, experiment)
    check_tokenizer(tokenizer, restored.data_state, workdir)
    return TrainedRun(experiment, tokenizer, restored.params, restored.steps)


def check_tokenizer(tokenizer: Tokenizer, data_state: dict[str, Any], workdir: str) -> None:
    """Raises DataError unless the checkpoint was trained with exactly this vocabulary."""
    trained_with = data_state["tokenizer"]
    if tokenizer.fingerprint != trained_with:
        raise DataError(
            f"{workdir}/tokenizer.json is not the tokenizer that the checkpoint was trained with "
            f"(fingerprint {tokenizer.fingerprint}, not {trained_with}): put the original back"
        )


def _step(checkpointer: Checkpointer, name: str) -> int:
    if name == "best":
        best = checkpointer.best_step()
        if best is None:
            raise CheckpointError(
                f"{checkpointer.directory} has no checkpoint with a validation score, so there is no 'best' "
                "one; use --from_checkpoint=latest"
            )
        return best
    if not name.isdecimal():
        raise ConfigError(f"--from_checkpoint={name!r} must be 'latest', 'best' or a step")
    return int(name)


def load_model(
    model: str | None = None,
    workdir: str | None = None,
    from_checkpoint: str = "latest",
    average_last: int | None = None,
) -> Pretrained:
    """Loads a model from a folder in Hugging Face's format, or from a run folder.

    Args:
      model: the folder or the name on the hub, see ``from_pretrained``; or None.
      workdir: the run folder; or None. Exactly one of the two must be given.
      from_checkpoint, average_last: the checkpoints of a run, see ``load_run``.

    Raises:
      ConfigError: both or none of ``model`` and ``workdir`` are given, or a config does not fit.
      DataError, CheckpointError, WeightsError: a file is missing or broken; the message names it.
    """
    if (model is None) == (workdir is None):
        raise ConfigError(
            "give one of --model (a folder in Hugging Face's format, or a name on the hub) and --workdir (a "
            "run folder)"
        )
    if workdir is None:
        assert model is not None
        if from_checkpoint != "latest" or average_last is not None:
            raise ConfigError("--from_checkpoint and --average_last can only be used with --workdir")
        return from_pretrained(model)
    return from_run(workdir, from_checkpoint, average_last)


def from_run(
    workdir: str | os.PathLike[str], from_checkpoint: str = "latest", average_last: int | None = None
) -> Pretrained:
    """Loads the model that a run trained, with its tokenizer and the names of its classes.

    ``save_pretrained`` writes it in Hugging Face's format, if its family exists in ``transformers``.

    Args:
      workdir: the run folder.
      from_checkpoint, average_last: the checkpoints of the run, see ``load_run``.

    Raises:
      ConfigError, DataError, CheckpointError: see ``load_run``.
    """
    run = load_run(os.fspath(workdir), from_checkpoint, average_last)
    say(f"parameters of step {', '.join(map(str, run.steps))}")
    config, objective = run.experiment.model, run.experiment.objective
    return Pretrained(
        family_of(config),
        config,
        run.params,
        run.tokenizer if config.has_vocabulary else None,
        objective.label_names,
        prompt_start=tuple(run.tokenizer.id_of(role) for role in objective.PROMPT_START),
        sizing=objective.sizing,
    )
