"""Runs a training, or the members of a sweep in turn, on one worker of a TPU VM.

``launch/tpu_vm.py run`` starts this program on each worker. It continues if the connection breaks. It passes
SIGTERM on to the training, so that the run saves and ends, and then starts nothing more. At the end it writes
the exit status to ``--status_file``. In a sweep only the first worker records how each member ended and
writes the table. All flags that are not listed below belong to ``transformer_jax.train``.
"""

import functools
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from transformer_jax.cli.flags import reported_errors
from transformer_jax.launching.remote_runs import read_environment
from transformer_jax.launching.run import Run, parse_own_flags, read_run, record_end, record_start
from transformer_jax.launching.sweep_results import has_failures, report_results
from transformer_jax.launching.sweeps import begin_sweep, is_finished, read_members
from transformer_jax.runs.folder import run_folder

FLAGS = flags.FLAGS


class Programs:
    """Runs programs one after the other, until SIGTERM or SIGINT; the running program then gets SIGTERM."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._running: subprocess.Popen[bytes] | None = None
        self.stopped = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: Any) -> None:
        self.stopped = True
        if self._running is not None:
            self._running.terminate()

    def run(self, command: Sequence[str]) -> int:
        """Runs a program and returns its exit status, 128 + N if signal N ended it, as in a shell."""
        self._running = subprocess.Popen(command, env=self._environment)
        if self.stopped:  # the signal came while the program was being started
            self._running.terminate()
        status = self._running.wait()
        self._running = None
        return status if status >= 0 else 128 - status


def training_command(run: Run, workers: str) -> list[str]:
    """Returns the command that trains on this worker.

    Args:
      run: the run to train.
      workers: network endpoints of all workers, separated by commas, as the metadata server lists them.
    """
    return run.command(sys.executable, *(["--distributed"] if "," in workers else []))


def run_all(
    run: Run,
    environment: Mapping[str, str],
    *,
    sweep: bool,
    is_first: bool,
    command: Callable[[Run], Sequence[str]],
) -> int:
    """Trains a run, or the members of a sweep in turn.

    Args:
      run: the run that the flags describe.
      environment: the environment variables of the trainings.
      sweep: train the members of the experiment's ``sweep()``.
      is_first: this is the first worker, which alone records how members ended and writes the table.
      command: returns the command that trains a run.

    Returns:
      The exit status: the one of the run, or of the first member that failed.

    Raises:
      ConfigError: the sweep is invalid.
      OSError: a record or the table cannot be written.
    """
    programs = Programs(environment)
    if not sweep:
        return programs.run(command(run))
    members = read_members(run)
    if is_first:
        left = begin_sweep(run, members)
    else:
        left = [member for member in members if not is_finished(member.run)]
    log = os.path.realpath("/proc/self/fd/1")
    failed = 0
    for member in left:
        if programs.stopped:
            break
        print(f"== {member.name}", flush=True)
        if is_first:
            record_start(member.run.workdir, log)
        status = programs.run(command(member.run))
        if is_first:
            record_end(member.run.workdir, log, status)
        failed = failed or status
    if is_first and has_failures(report_results(run_folder(run.workdir))):
        failed = failed or 1
    return failed


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of this program."""
    flags.DEFINE_integer("worker_number", 0, "Number of this worker.", flag_values=flag_values)
    flags.DEFINE_string("workers", "", "Network endpoints of all workers.", flag_values=flag_values)
    flags.DEFINE_string("status_file", "", "File to write the exit status to.", flag_values=flag_values)
    flags.DEFINE_multi_string(
        "env", [], "Environment variable KEY=VALUE of the trainings.", flag_values=flag_values
    )
    flags.DEFINE_bool(
        "sweep", False, "Train the members of the experiment's sweep().", flag_values=flag_values
    )


def main(argv: Sequence[str]) -> None:
    status = 1
    try:
        with reported_errors():
            # JAX_PLATFORMS kept this program off the TPU chips; the trainings need them.
            environment = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
            environment |= {"PYTHONUNBUFFERED": "1"} | read_environment(FLAGS.env)
            status = run_all(
                read_run(argv[1:]),
                environment,
                sweep=FLAGS.sweep,
                is_first=FLAGS.worker_number == 0,
                command=functools.partial(training_command, workers=FLAGS.workers),
            )
    finally:
        if FLAGS.status_file:
            pathlib.Path(FLAGS.status_file).write_text(f"{status}\n")
    sys.exit(status)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_own_flags)
