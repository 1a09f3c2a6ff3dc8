"""Trains an experiment on one or many devices, or resumes a run that was stopped.

    python -m transformer_jax.train --config=experiments/number_words.py --workdir=runs/numbers
    python -m transformer_jax.train --config=... --workdir=... --config.train.num_steps=500
    python -m transformer_jax.train --workdir=runs/numbers        # resumes with the stored config

Ctrl-C or SIGTERM saves a checkpoint, prints the command that resumes the run, and exits with status 0 or
``--stopped_status``. A second Ctrl-C stops at once. A resumed run ends with the same parameters, to the bit,
as an uninterrupted one on the same machine, devices and versions.
"""

import signal
import sys
from collections.abc import Sequence

from absl import app, flags

from transformer_jax.cli.flags import USER_ERRORS, define_training_flags, parse_flags
from transformer_jax.cli.process import prepare_process
from transformer_jax.config import ConfigError
from transformer_jax.distributed.processes import connect, failures_end_all
from transformer_jax.distributed.rendezvous import ProcessError
from transformer_jax.reporting.progress import say
from transformer_jax.runs.experiment import Experiment, read_experiment
from transformer_jax.runs.folder import flat_config, load_config, run_folder
from transformer_jax.runs.shrinking import shrink
from transformer_jax.training.loop import continue_command, train

ONE_LINE = (*USER_ERRORS, FloatingPointError, ProcessError)  # printed as one line, without a traceback


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: flags begin with --")
    prepare_process()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside train(), which handles it itself
    workdir, experiment = FLAGS.workdir, None
    try:
        workdir = run_folder(workdir)
        experiment = load_config(workdir) if FLAGS.config is None else read_experiment(FLAGS.config)
        _connect(workdir, experiment)
        experiment = shrink(experiment) if FLAGS.shrink else experiment
        with failures_end_all(ONE_LINE):
            summary = train(experiment, workdir)
        if not summary:
            sys.exit(FLAGS.stopped_status)
    except KeyboardInterrupt:
        command = continue_command(workdir, experiment)
        say(f"interrupted; the saved checkpoints are complete. To resume:\n  {command}")
        sys.exit(FLAGS.stopped_status)
    except ONE_LINE as error:
        sys.exit(f"error: {error}")


def _connect(workdir: str, experiment: Experiment) -> None:
    """Connects to the other processes of the run, if there are any; all must have the same config."""
    config = {f"config.{key}": repr(value) for key, value in flat_config(experiment).items()}
    del config["config.data.source.folder"]  # hosts may store the data in different folders
    connect(
        {"--workdir": workdir, "--shrink": str(FLAGS.shrink), **config},
        start_timeout=FLAGS.start_timeout,
        heartbeat_timeout=FLAGS.heartbeat_timeout,
        detect=FLAGS.distributed,
    )


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return parse_flags(argv)
    except ConfigError as error:
        sys.exit(f"error: {error}")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_training_flags()
    app.run(main, flags_parser=_parse_flags)
