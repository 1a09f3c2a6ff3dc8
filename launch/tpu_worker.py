"""What ``launch/tpu_vm.py run`` starts on each worker of a TPU VM: a run, or the members of a sweep in turn.

It goes on without a connection. SIGTERM is passed on, so that the run saves and ends, and nothing more is
started. At the end the exit status is written to ``--status_file``. Of a sweep, the first worker keeps what
there is once: how each member ended, and the table. Other flags are those of ``transformer_jax.train``.
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

from transformer_jax.command_line import reported_errors
from transformer_jax.launching import Run, parse_own_flags, read_run, record_end, record_start
from transformer_jax.remote_runs import read_environment
from transformer_jax.run_folder import run_folder
from transformer_jax.sweep_results import has_failures, report_results
from transformer_jax.sweeps import begin_sweep, is_finished, read_members

FLAGS = flags.FLAGS


class Programs:
    """Starts programs one after the other, until a signal comes: the one that runs gets it as SIGTERM."""

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
        """Waits for a program and returns its exit status, as a shell has it where a signal ended it."""
        self._running = subprocess.Popen(command, env=self._environment)
        if self.stopped:  # while it was being started
            self._running.terminate()
        status = self._running.wait()
        self._running = None
        return status if status >= 0 else 128 - status


def training_command(run: Run, workers: str) -> list[str]:
    """What runs on this worker; several find one another by the same list.

    Args:
      workers: their network endpoints, parted by commas, as the metadata server has it.
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
    """Runs a training, or a sweep, and returns the exit status: that of the first member that failed.

    Args:
      is_first: whether this worker keeps what there is once.
      command: what is started for a run.

    Raises:
      ConfigError: the sweep cannot be used.
      OSError: what is to be kept cannot be written.
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
    """The flags of this program."""
    flags.DEFINE_integer("worker_number", 0, "Which of the workers this is.", flag_values=flag_values)
    flags.DEFINE_string("workers", "", "Network endpoints of all workers.", flag_values=flag_values)
    flags.DEFINE_string("status_file", "", "Gets the exit status.", flag_values=flag_values)
    flags.DEFINE_multi_string("env", [], "KEY=VALUE for what is started.", flag_values=flag_values)
    flags.DEFINE_bool("sweep", False, "The members of the experiment's sweep().", flag_values=flag_values)


def main(argv: Sequence[str]) -> None:
    status = 1
    try:
        with reported_errors():
            # This program itself was kept from the chips.
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
