"""The training loop: evaluate, checkpoint, next batch, update, until the last step or a signal."""

import contextlib
import dataclasses
import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from transformer_jax.checkpoints.checkpointer import Checkpointer
from transformer_jax.config import ConfigError
from transformer_jax.data import (
    Tokenizer,
    TrainingIterator,
    evaluation_batches,
    fingerprint,
    load_source,
    load_sources,
    training_iterator,
)
from transformer_jax.distributed.processes import (
    check_alike,
    check_shared,
)
from transformer_jax.distributed.stopping import stop_is_agreed, stop_signals
from transformer_jax.evaluation import scoring
from transformer_jax.files import write_json
from transformer_jax.objectives.base import Objective, Sums
from transformer_jax.reporting.progress import MetricWriter, ProgressBar, say
from transformer_jax.runs.experiment import Experiment, make_transform, read_experiment
from transformer_jax.runs.folder import (
    CHECKPOINTS_FOLDER,
    SUMMARY_FILE,
    check_workdir,
    has_checkpoints,
    load_config,
    load_or_train_tokenizer,
    load_tokenizer,
    run_folder,
    store_config,
)
from transformer_jax.runs.loading import TrainedRun, check_tokenizer
from transformer_jax.sharding import partitioning
from transformer_jax.training.initialization import check_origin, initial_params
from transformer_jax.training.step import compile_train_step
from transformer_jax.types import Batch


class StepLog:
    """Collects the metrics of the steps since the last record.

    The values of a step are fetched from the device only after the next step has been dispatched, so that
    fetching does not delay the device.
    """

    def __init__(self, objective: Objective, writer: MetricWriter) -> None:
        self._objective, self._writer = objective, writer
        self._waiting: Sums | None = None
        self._latest: dict[str, float] = {}
        self.total: dict[str, float] = {}  # of the steps since the last record; part of a checkpoint

    @property
    def loss(self) -> float:
        """The loss per token of the latest fetched step; NaN if no step has been fetched yet."""
        return self._latest["loss"] / self._latest["tokens"] if self._latest else float("nan")

    def add(self, sums: Sums | None) -> None:
        """Stores the sums of a step that was just dispatched, and fetches those of the step before it."""
        if self._waiting is not None:
            self._latest = {name: float(value) for name, value in jax.device_get(self._waiting).items()}
            for name, value in self._latest.items():
                self.total[name] = self.total.get(name, 0.0) + value
        self._waiting = sums

    def fetch(self, step: int) -> None:
        """Waits for ``step``, the latest one, and checks that its values are finite.

        It is called before metrics are written and before a checkpoint is saved.

        Raises:
          FloatingPointError: the loss or the gradient is not finite.
        """
        self.add(None)
        for name, value in self._latest.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"the {name} became {value} at step {step}; this step is not saved. Lower "
                    "config.optimizer.peak_rate, increase config.optimizer.warmup_steps or set "
                    "config.optimizer.clip_norm, and start again in another --workdir"
                )

    def write(self, step: int, extra: dict[str, float]) -> None:
        """Writes the means over the tokens of all steps since the last call; see ``fetch``."""
        self.fetch(step)
        metrics = self._objective.metrics(self.total)
        metrics |= {name: self._latest[name] for name in ("gradient_norm", "rate")}
        self.total = {}
        self._writer.write(step, metrics | extra, "train")


def _on_first_process(action: Callable[[], Any]) -> None:
    """Runs an action that writes to the run folder in the first process; the others wait for it."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("run folder written")


def continue_command(workdir: str, experiment: Experiment | None) -> str:
    """Returns the command that continues a run.

    It is ``--workdir`` alone if the run folder already stores this experiment, and otherwise the command line
    of this program. If there are several processes, only their launcher knows the command.
    """
    if jax.process_count() > 1:
        return "the launcher that started these processes, with the same flags; their number may differ"
    try:
        is_stored = load_config(workdir) == experiment
    except (ValueError, OSError):
        is_stored = False
    arguments = [f"--workdir={workdir}"] if is_stored else sys.argv[1:]
    return shlex.join([sys.executable, "-m", "transformer_jax.train", *arguments])


def _data_metrics(iterator: TrainingIterator) -> dict[str, float]:
    return {
        "epoch": iterator.epoch,
        "pairs_too_long": float(iterator.filtered),
        "pairs_blank": float(iterator.blank),
        "pairs_cut": float(iterator.cut),
    }


def train(config: Experiment | ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains until ``config.train.num_steps``, from the last checkpoint of the run folder if it has one.

    Args:
      config: an ``Experiment``, or the ``ConfigDict`` that ``get_config`` of an experiment's file returns.
      workdir: the run folder; created if it does not exist.

    Returns:
      The figures of the summary; ``{}`` if a signal stopped the run before its last step.

    Raises:
      KeyboardInterrupt: a signal came after the last step; the model is saved, but not evaluated.
      ConfigError: the folder holds another experiment, or values of the config contradict each other.
      DataError: the data or the tokenizer cannot be used.
      CheckpointError: a checkpoint cannot be written, or the folder has checkpoints and none can be read.
      FloatingPointError: the loss or its gradient became NaN or infinite.
      ValueError: the loss of the evaluation became NaN or infinite.
    """
    experiment = config if isinstance(config, Experiment) else read_experiment(config)
    settings = experiment.train
    workdir = run_folder(workdir)
    check_workdir(workdir, experiment)
    origin = None
    if settings.init_from and not has_checkpoints(workdir):  # a resumed run does not need the other model
        origin = check_origin(experiment)
    is_first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        stopped_by = stack.enter_context(stop_signals())
        mesh = partitioning.make_mesh(experiment.mesh)
        template, init, train_step = compile_train_step(experiment, mesh)
        evaluate_step = scoring.make_evaluate_step(experiment, mesh)
        check_shared(workdir)
        tokenizer = _prepare_folder(workdir, experiment)
        iterator, validation = _open_data(experiment, tokenizer, mesh)
        stack.callback(iterator.close)
        checkpointer = stack.enter_context(
            Checkpointer(f"{workdir}/{CHECKPOINTS_FOLDER}", experiment.checkpoint)
        )
        writer = stack.enter_context(MetricWriter(workdir, active=is_first))
        log = StepLog(experiment.objective, writer)
        step, seconds = 0, 0.0
        check_alike("the newest checkpoint", str(checkpointer.latest_step()))
        if checkpointer.latest_step() is None:
            for half in checkpointer.half_written_steps():
                say(f"the checkpoint of step {half} is incomplete and is the only one; starting from step 0")
            state = init()
            if settings.init_from:
                params = initial_params(experiment, state.params, mesh, origin)
                state = dataclasses.replace(state, params=params)
        else:
            restored = checkpointer.restore(template)
            check_tokenizer(tokenizer, restored.data_state, workdir)
            iterator.set_state(restored.data_state["iterator"])
            step, state, seconds = restored.step, restored.state, restored.data_state["seconds"]
            log.total = restored.data_state["log"]
            _warn_of_new_schedule(workdir, experiment)
            say(f"continuing at step {step:,} of {settings.num_steps:,}")
        if step > settings.num_steps:
            raise ConfigError(
                f"{workdir} is already at step {step}, beyond config.train.num_steps={settings.num_steps}; "
                f"set it to {step} or more"
            )
        writer.resume(step)
        _on_first_process(lambda: store_config(workdir, experiment))
        unit = "tokens" if experiment.model.has_vocabulary else experiment.model.front_end.UNIT
        bar = stack.enter_context(ProgressBar(settings.num_steps, step, active=is_first, unit=unit))
        first, began = step, time.monotonic() - seconds
        while True:
            done = step == settings.num_steps
            if stop_is_agreed(step):
                stopped_by.append("SIGTERM")
            # Both saving and leaving use this value: a signal between them must not end the loop unsaved.
            is_last = done or bool(stopped_by)
            is_scored = step > first and (done or step % settings.evaluate_every_steps == 0)
            is_saved = step > first and (is_scored or is_last or checkpointer.is_due(step))
            scores = None
            if is_saved:
                log.fetch(step)
            if is_scored:
                batches = (partitioning.shard_batch(mesh, batch) for batch in validation)
                scores = scoring.evaluate_loss(evaluate_step, experiment.objective, state.params, batches)
                writer.write(step, scores, "validation")
                bar.print(_validation_line(step, scores))
            if is_saved:
                data_state = {
                    "log": log.total,
                    "iterator": iterator.get_state(),
                    "tokenizer": tokenizer.fingerprint,
                    "seconds": time.monotonic() - began,
                }
                checkpointer.save(step, state, data_state, scores)
            if is_last:
                break
            batch = next(iterator)
            state, sums = train_step(state, partitioning.shard_batch(mesh, batch))
            step += 1
            log.add(sums)
            bar.update(step, log.loss, _count(batch, mesh))
            if step % settings.log_every_steps == 0 or step == settings.num_steps:
                speed = {f"{unit}_per_second": bar.units_per_second}
                log.write(step, speed | _data_metrics(iterator))
        checkpointer.wait()
        if not done:
            saved = f"everything up to step {step} is saved" if step else "no step was trained yet"
            command = continue_command(workdir, experiment)
            bar.print(f"{stopped_by[0]}: {saved}. Continue the run with:\n  {command}")
            return {}
        rows = {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(template.params)),
            "steps": step,
            "training_seconds": time.monotonic() - began,
            **_data_metrics(iterator),
        }
        averaged = checkpointer.average(template.params, experiment.evaluate.average_last, or_fewer=True)
    if stopped_by:
        raise KeyboardInterrupt  # trained but not evaluated; the same command evaluates it
    run = TrainedRun(experiment, tokenizer, averaged.params, averaged.steps)
    evaluation = scoring.evaluate_run(run, mesh)
    summary = rows | evaluation.figures
    scoring.report(evaluation, workdir, rows)
    if is_first:
        write_json(pathlib.Path(workdir) / SUMMARY_FILE, summary)
    return summary


def _warn_of_new_schedule(workdir: str, experiment: Experiment) -> None:
    before, now = load_config(workdir).train.num_steps, experiment.train.num_steps
    if before != now and experiment.optimizer.schedule in ("cosine", "linear"):
        say(
            f"config.train.num_steps was {before:,} and is now {now:,}, which changes the "
            f"{experiment.optimizer.schedule} schedule from this step on. The result will differ from that "
            f"of a run with {now:,} steps from the start"
        )


def _prepare_folder(workdir: str, experiment: Experiment) -> Tokenizer:
    """Lets the first process train the tokenizer if the run folder has none; every process then reads it."""
    _on_first_process(lambda: load_or_train_tokenizer(workdir, experiment))
    return load_tokenizer(workdir, experiment)


def _open_data(
    experiment: Experiment, tokenizer: Tokenizer, mesh: Mesh
) -> tuple[TrainingIterator, list[dict[str, np.ndarray]]]:
    """Returns the iterator of training batches and the validation batches, with the rows of this process.

    The split that is evaluated at the end is opened too, so that mistakes in it are reported before training.
    """
    evaluated, trained = (make_transform(experiment, tokenizer, train=train) for train in (False, True))
    part, parts = partitioning.process_slice(mesh)
    split = dict(process_index=part, process_count=parts)
    shards = partitioning.num_batch_shards(mesh)
    batches = {}
    for name in {experiment.evaluate.split, "validation"}:
        source = load_source(experiment.data.source, name)
        limit, limited_by = experiment.model.batch_max_length, experiment.model.batch_max_length_keys
        batches[name] = evaluation_batches(
            experiment.data,
            source,
            evaluated,
            limit,
            limited_by=limited_by,
            row_multiple=shards,
            **split,
        )
    source = load_sources(experiment.data.sources, "train")
    check_alike("the training data", fingerprint(source))
    iterator = training_iterator(experiment.data, source, trained, **split)
    return iterator, [batch for _, batch in batches["validation"]]


def _count(batch: Batch, mesh: Mesh) -> int:
    """Returns the number of tokens of a batch without padding, or its number of images.

    If there are targets, their tokens are counted. The result is the number in this process, multiplied by
    the number of processes that hold different rows.
    """
    segments = batch.get("targets_segments", batch.get("inputs_segments"))
    own = len(next(iter(batch.values()))) if segments is None else np.count_nonzero(segments)
    return partitioning.process_slice(mesh)[1] * int(own)


def _validation_line(step: int, scores: dict[str, float]) -> str:
    return f"step {step:,}  validation  " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
