"""Translates text with a trained run: lines from standard input to standard output.

    echo "A man sleeps." | python -m transformer_jax.translate --workdir=runs/multi30k

Each input line gives one output line, in order; a blank line stays blank. The run's config has the settings,
by default beam search. ``--beam_size=1`` is greedy search, and ``--temperature=1 --top_p=0.9`` samples.
``--from_checkpoint`` is a step, "latest" or "best". ``--average_last=5`` averages the parameters of the last
five checkpoints.
"""

from collections.abc import Sequence

from absl import app, flags

from transformer_jax.cli.flags import (
    decoding_from_flags,
    define_decoding_flags,
    define_run_flags,
    reported_errors,
    work_on_lines,
)
from transformer_jax.cli.process import prepare_process
from transformer_jax.evaluation.translator import translator
from transformer_jax.reporting.progress import say
from transformer_jax.runs.loading import load_run
from transformer_jax.sharding import partitioning


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"text comes from standard input, not from {argv[1:]}")
    prepare_process()
    with reported_errors():
        mesh = partitioning.make_mesh(partitioning.MeshConfig())
        run = load_run(FLAGS.workdir, FLAGS.from_checkpoint, FLAGS.average_last, mesh)
        say(f"parameters of step {', '.join(map(str, run.steps))}")
        settings = decoding_from_flags(run.experiment.evaluate)
        generator = translator(run.experiment.model, run.tokenizer, settings, mesh)

        def translate(lines: list[str], first_number: int) -> None:
            for translation in generator.generate(run.params, lines, first_number):
                print(translation.replace("\n", " "))

        work_on_lines(generator.tokens, translate)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_run_flags()
    define_decoding_flags()
    app.run(main)
