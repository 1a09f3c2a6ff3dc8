"""Evaluates a run on a split: loss and perplexity, and the scores of the objective.

    python -m transformer_jax.evaluate --workdir=runs/multi30k --split=test

Translations are scored by sacreBLEU, chrF and exact match, answers by exact match and F1, classes by
accuracy. The program prints a table, and writes the same figures to ``evaluation_SPLIT.json`` in the run
folder and translations to ``translations_SPLIT.txt``.
"""

from collections.abc import Sequence

from absl import app, flags

from transformer_jax.cli.flags import (
    decoding_from_flags,
    define_decoding_flags,
    define_run_flags,
    reported_errors,
)
from transformer_jax.cli.process import prepare_process
from transformer_jax.evaluation.scoring import evaluate_run, report
from transformer_jax.runs.folder import run_folder
from transformer_jax.runs.loading import load_run
from transformer_jax.sharding import partitioning


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: flags begin with --")
    prepare_process()
    with reported_errors():
        mesh = partitioning.make_mesh(partitioning.MeshConfig())
        workdir = run_folder(FLAGS.workdir)
        run = load_run(workdir, FLAGS.from_checkpoint, FLAGS.average_last, mesh)
        settings = decoding_from_flags(run.experiment.evaluate, split=FLAGS.split)
        report(evaluate_run(run, mesh, settings), workdir)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_run_flags()
    define_decoding_flags()
    flags.DEFINE_string(
        "split",
        None,
        "train, validation or test. Default: evaluate.split of the run's config.",
    )
    app.run(main)
