"""Scores a trained run on a split: the metrics of its objective, and the outputs of its predictor."""

import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from transformer_jax.data import Source, batches_of_pieces, count_cut, evaluation_pieces, load_source
from transformer_jax.evaluation.predictions import Outputs
from transformer_jax.evaluation.predictors import predictor_of
from transformer_jax.files import write_json, write_whole
from transformer_jax.models import build, evaluation_keys
from transformer_jax.objectives.base import Apply, Objective, Sums
from transformer_jax.reporting.progress import summary_table
from transformer_jax.runs.experiment import EvaluateConfig, Experiment, make_transform
from transformer_jax.runs.loading import TrainedRun
from transformer_jax.sharding import partitioning
from transformer_jax.types import Batch, PyTree

Metrics = dict[str, float]


class Evaluation(NamedTuple):
    """The scores of a run on a split.

    Attributes:
      figures: the split, the checkpoints, the decoding settings and the scores, as JSON values.
      outputs: the predicted texts of the whole split; None if the objective declares no predictor.
      samples: some of the outputs with their sources and references, for a person to read.
    """

    figures: dict[str, Any]
    outputs: Outputs | None
    samples: str


def make_evaluate_step(experiment: Experiment, mesh: Mesh | None = None) -> Callable[[PyTree, Batch], Sums]:
    """Returns the compiled function from parameters and a batch to the objective's sums, without dropout."""
    apply = cast(Apply, build(experiment.model).apply)

    def step(params: PyTree, batch: Batch) -> Sums:
        rngs = evaluation_keys(experiment.model)
        return experiment.objective.loss(apply, params, batch, rngs, train=False)[1]

    if mesh is not None:
        step = partitioning.on_mesh(step, mesh, experiment.mesh.rules, experiment.mesh.attention)
    return jax.jit(step)


def evaluate_loss(
    step: Callable[[PyTree, Batch], Sums], objective: Objective, params: PyTree, batches: Iterable[Batch]
) -> Metrics:
    """Returns the objective's metrics over all batches; every real token has the same weight.

    Raises:
      ValueError: the loss is NaN or infinite.
    """
    total: dict[str, float] = {}
    for sums in [step(params, batch) for batch in batches]:  # dispatches all batches first
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + float(value)
    if not np.isfinite(total["loss"]):
        raise ValueError(
            f"the loss of the evaluated split is {total['loss']}: the parameters, or what the model computes "
            "with them, are not finite"
        )
    return objective.metrics(total)


def sample_text(outputs: Outputs, count: int) -> str:
    """Returns ``count`` evenly spaced examples as lines of text: source, output and reference."""
    places = np.linspace(0, len(outputs.texts) - 1, min(count, len(outputs.texts)), dtype=int).tolist()
    name = outputs.name.removesuffix("s")
    width = max(len(name), len("reference")) + 2
    parts = []
    for place in places:
        mark = "=" if outputs.texts[place] == outputs.references[place] else "≠"
        parts.append(
            f"  {'source':{width}}{outputs.sources[place]}\n  {name:{width}}{outputs.texts[place]}\n"
            f"  {'reference':{width - 2}}{mark} {outputs.references[place]}"
        )
    return "\n\n".join(parts)


def evaluate_run(run: TrainedRun, mesh: Mesh, settings: EvaluateConfig | None = None) -> Evaluation:
    """Scores a run on ``settings.split``: the objective's metrics, and the outputs that it declares.

    Args:
      run: the run, whose parameters are on the devices of ``mesh``.
      mesh: the mesh; the rows of batches are split over its data axes.
      settings: settings that replace those of the experiment.

    Raises:
      ConfigError: the objective declares a predictor that does not exist.
      DataError: the split cannot be read, or an example is longer than the model's sequences.
      ValueError: the loss is NaN or infinite.
    """
    experiment = run.experiment
    settings = settings or experiment.evaluate
    predict = predictor_of(experiment.objective)
    source = load_source(experiment.data.source, settings.split)
    batches, num_cut = _batches(run, mesh, source)
    figures: dict[str, Any] = {"split": settings.split, "examples": len(source)}
    if experiment.objective.may_cut:
        figures["inputs_cut"] = num_cut
    figures["checkpoint_steps"] = list(run.steps)
    figures |= evaluate_loss(
        make_evaluate_step(experiment, mesh),
        experiment.objective,
        run.params,
        (partitioning.shard_batch(mesh, batch) for batch in batches),
    )
    start = time.monotonic()
    if predict is None:
        return Evaluation(figures, None, "")
    outputs = predict(run, mesh, settings, source)
    figures |= outputs.figures
    figures[f"{outputs.name.removesuffix('s')}_seconds"] = time.monotonic() - start
    return Evaluation(figures, outputs, sample_text(outputs, settings.num_samples))


def _batches(run: TrainedRun, mesh: Mesh, source: Source) -> tuple[list[dict[str, np.ndarray]], int]:
    """Returns this process's rows of a whole split, and the number of examples that were cut to fit."""
    experiment = run.experiment
    transform = make_transform(experiment, run.tokenizer, train=False)
    places, pieces = evaluation_pieces(experiment.data, source, transform)
    part, parts = partitioning.process_slice(mesh)
    batches = batches_of_pieces(
        experiment.data,
        places,
        pieces,
        experiment.model.batch_max_length,
        limited_by=experiment.model.batch_max_length_keys,
        process_index=part,
        process_count=parts,
        row_multiple=partitioning.num_batch_shards(mesh),
    )
    return [batch for _, batch in batches], count_cut(places, pieces)


def report(evaluation: Evaluation, workdir: str, rows: Mapping[str, Any] | None = None) -> None:
    """Prints samples and figures, and writes figures and outputs into the run folder.

    Args:
      evaluation: the scores.
      workdir: the run folder.
      rows: further figures, which are printed first.

    Raises:
      OSError: a file cannot be written; everything has been printed by then.
    """
    if jax.process_index() > 0:
        return
    if evaluation.samples:
        print(evaluation.samples, end="\n\n")
    print(summary_table({**(rows or {}), **evaluation.figures}), flush=True)
    split, folder = evaluation.figures["split"], pathlib.Path(workdir)
    if evaluation.outputs is not None:
        lines = "".join(text.replace("\n", " ") + "\n" for text in evaluation.outputs.texts)
        write_whole(folder / f"{evaluation.outputs.name}_{split}.txt", lines)
    write_json(folder / f"evaluation_{split}.json", evaluation.figures)
