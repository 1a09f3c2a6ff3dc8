"""Trains on one machine, in one or several processes that form one mesh over jax.distributed.

    python launch/local.py -n 4 --config=experiments/number_words.py --workdir=runs/numbers
    python launch/local.py -n 2 --devices_per_process=2 --config=... --workdir=...
    python launch/local.py --sweep --parallel=2 --config=experiments/number_words.py --workdir=runs/rates

The flags listed below belong to this launcher; it passes all others to ``transformer_jax.train`` unchanged.
Each line of output begins with the number of the process that wrote it. If a process fails, the launcher ends
the others, repeats the last output of the failed one, and exits with its status. The launcher passes Ctrl-C
or SIGTERM on once, as SIGTERM, so that the run saves and stops; a second Ctrl-C kills the run. If the
launcher itself is killed, Linux kills the processes that it started.

With ``--sweep``, each member of the experiment's ``sweep()`` is a run of its own in ``WORKDIR/MEMBER``. Its
output is also in ``log.txt`` there, and the launcher prints a table of the results at the end. The same
command continues a sweep that was stopped.
"""

import os
import pathlib
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from transformer_jax.cli.flags import reported_errors
from transformer_jax.cli.process import CPU_THREADS_VARIABLE
from transformer_jax.distributed.process_groups import GroupSettings, run_groups
from transformer_jax.launching import sweeps
from transformer_jax.launching.run import LOG_FILE, Run, parse_own_flags, read_run, record_end, record_start
from transformer_jax.launching.sweep_results import has_failures, report_results

_DEVICES_FLAG = "--xla_force_host_platform_device_count"
Command = Callable[[Run], Sequence[str]]  # returns the command that each process of a run executes


def define_flags() -> None:
    """Defines the flags of this launcher."""
    flags.DEFINE_integer("num_processes", 1, "Number of processes per run.", lower_bound=1, short_name="n")
    flags.DEFINE_integer(
        "devices_per_process",
        None,
        "Devices per process: virtual CPU devices, or consecutive GPUs. Default: 1 if there are several "
        "processes; a single process uses all devices.",
        lower_bound=1,
    )
    flags.DEFINE_bool("sweep", False, "Train each member of the experiment's sweep() as a run of its own.")
    flags.DEFINE_integer("parallel", 1, "Number of sweep members to train at the same time.", lower_bound=1)
    flags.DEFINE_float(
        "stop_timeout",
        60.0,
        "Seconds that a process has to save and exit before it is killed.",
        lower_bound=0.0,
    )


def free_port() -> int:
    """Returns a TCP port of this machine that no program listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environments(
    num_processes: int,
    devices_per_process: int | None,
    base: Mapping[str, str],
    port: int,
    parallel: int = 1,
) -> list[dict[str, str]]:
    """Returns the environment variables of each process of a run.

    They are ``base`` with the process's rank, the coordinator's address and the process's own devices.

    Args:
      num_processes: number of processes of the run.
      devices_per_process: see the flag.
      base: the environment that all processes share.
      port: where process 0 waits for the others.
      parallel: number of runs at the same time, which share the cores.
    """
    common = {"PYTHONUNBUFFERED": "1", **base}  # otherwise Python buffers output that goes to a pipe
    is_set = _DEVICES_FLAG in base.get("XLA_FLAGS", "")
    devices = devices_per_process or 1
    if devices_per_process or (num_processes > 1 and not is_set):
        # XLA uses the last of two equal flags, so this one overrides the user's.
        common["XLA_FLAGS"] = f"{base.get('XLA_FLAGS', '')} {_DEVICES_FLAG}={devices}".strip()
    if num_processes * parallel > 1 and devices == 1 and not is_set:
        # Otherwise each process would start one thread per core and they would compete for the cores.
        threads = (os.cpu_count() or 1) // (num_processes * parallel)
        common.setdefault(CPU_THREADS_VARIABLE, str(max(1, threads)))
    if num_processes == 1:
        return [common]
    address = f"127.0.0.1:{port}"
    common |= {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,  # other machines cannot connect
        "JAX_NUM_PROCESSES": str(num_processes),
    }
    return [
        {
            **common,
            "JAX_PROCESS_ID": str(rank),
            # Selects GPUs; JAX ignores it on a CPU.
            "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, range(rank * devices, (rank + 1) * devices))),
        }
        for rank in range(num_processes)
    ]


def launch(
    runs: Sequence[Run],
    labels: Sequence[str],
    *,
    num_processes: int = 1,
    devices_per_process: int | None = None,
    parallel: int = 1,
    stop_timeout: float = 60.0,
    command: Command = Run.command,
) -> list[int | None]:
    """Trains each run in processes of its own.

    Args:
      runs: the runs, in the order in which they start.
      labels: one per run; printed before the process number on each line of output. A run with a non-empty
        label also writes its output to a log file.
      num_processes: number of processes per run.
      devices_per_process: see the flag.
      parallel: number of runs at the same time.
      stop_timeout: seconds that a process has to save and exit before it is killed.
      command: returns the command that each process of a run executes.

    Returns:
      The exit status of each run; None for a run that was not started because a signal came first.
    """

    def make_environments() -> list[dict[str, str]]:
        return environments(num_processes, devices_per_process, os.environ, free_port(), parallel)

    logs = [
        str(pathlib.Path(run.workdir) / LOG_FILE) if label else None
        for run, label in zip(runs, labels, strict=True)
    ]
    groups = [
        GroupSettings(command(run), make_environments, label, log)
        for run, label, log in zip(runs, labels, logs, strict=True)
    ]

    def on_start(number: int) -> None:
        if logs[number]:
            record_start(runs[number].workdir, LOG_FILE)

    def on_end(number: int, status: int) -> None:
        if logs[number]:
            record_end(runs[number].workdir, LOG_FILE, status)

    return run_groups(groups, parallel=parallel, stop_timeout=stop_timeout, on_start=on_start, on_end=on_end)


def launch_sweep(run: Run, members: Sequence[sweeps.Member], **settings: Any) -> bool:
    """Trains the unfinished members of a sweep and prints the table of results.

    Args:
      run: the run that the flags describe.
      members: all members of the sweep.
      **settings: keyword arguments of ``launch``.

    Returns:
      True if a member failed.
    """
    left = sweeps.begin_sweep(run, members)
    launch([member.run for member in left], [member.name for member in left], **settings)
    return has_failures(report_results(run.workdir))


def main(argv: Sequence[str]) -> None:
    settings = {
        name: getattr(FLAGS, name)
        for name in ("num_processes", "devices_per_process", "parallel", "stop_timeout")
    }
    with reported_errors():
        if FLAGS.parallel > 1 and not FLAGS.sweep:
            raise ValueError(
                f"--parallel={FLAGS.parallel} sets how many members of a sweep run at once: add --sweep"
            )
        run = read_run(argv[1:])
        if FLAGS.sweep:
            status = int(launch_sweep(run, sweeps.read_members(run), **settings))
        else:
            status = launch([run], [""], **settings)[0] or 0
    sys.exit(status)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_own_flags)
