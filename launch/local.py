"""Trains on several processes of this machine, which form one mesh over jax.distributed.

    python launch/local.py -n 4 --config=experiments/number_words.py --workdir=runs/numbers
    python launch/local.py -n 2 --devices_per_process=2 --config=... --workdir=...
    python launch/local.py --sweep --parallel=2 --config=experiments/number_words.py --workdir=runs/rates

All other flags are those of ``transformer_jax.train``, passed on as they are. Each line of output begins
with the number of the process that wrote it. When one fails, the others are ended, and what it said last is
shown once more at the end; the exit status is its own. Ctrl-C or SIGTERM is passed on once, as SIGTERM, so
that the run saves and stops; a second Ctrl-C kills it. Where this program is killed itself, Linux kills
what it started.

With ``--sweep`` each member of the experiment's ``sweep()`` is a run of its own in ``WORKDIR/MEMBER``, its
output also in ``log.txt`` there, and a table of the results comes last. The same command goes on where a
sweep was stopped.
"""

import os
import pathlib
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from transformer_jax import launching, sweeps
from transformer_jax.command_line import reported_errors
from transformer_jax.process_groups import GroupSettings, run_groups
from transformer_jax.runtime import CPU_THREADS_VARIABLE
from transformer_jax.sweep_results import has_failures, report_results

_DEVICES_FLAG = "--xla_force_host_platform_device_count"
Command = Callable[[launching.Run], Sequence[str]]  # what is started for a run


def define_flags() -> None:
    """The launcher's own flags."""
    flags.DEFINE_integer("num_processes", 1, "Processes of a run.", lower_bound=1, short_name="n")
    flags.DEFINE_integer(
        "devices_per_process",
        None,
        "Devices of each process: so many virtual ones of the CPU, or the next so many GPUs. "
        "By default 1 for several processes, and for one process whatever there is.",
        lower_bound=1,
    )
    flags.DEFINE_bool("sweep", False, "One run a member of the experiment's sweep().")
    flags.DEFINE_integer("parallel", 1, "Members of a sweep at once.", lower_bound=1)
    flags.DEFINE_float(
        "stop_timeout",
        60.0,
        "Seconds that a process may take to save and end, before it is killed.",
        lower_bound=0.0,
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
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
    """The environment of each process of a run: ``base``, with who it is and which devices are its own.

    Args:
      num_processes: of the run.
      devices_per_process: see the flag.
      base: the environment that they share.
      port: where the first of them will wait for the others.
      parallel: runs at once, which share the cores.
    """
    common = {"PYTHONUNBUFFERED": "1", **base}  # or a pipe would keep back what they print
    is_set = _DEVICES_FLAG in base.get("XLA_FLAGS", "")
    devices = devices_per_process or 1
    if devices_per_process or (num_processes > 1 and not is_set):
        # The last of two counts.
        common["XLA_FLAGS"] = f"{base.get('XLA_FLAGS', '')} {_DEVICES_FLAG}={devices}".strip()
    if num_processes * parallel > 1 and devices == 1 and not is_set:
        # Each would otherwise have a thread for every core, and they would take the cores from one another.
        threads = (os.cpu_count() or 1) // (num_processes * parallel)
        common.setdefault(CPU_THREADS_VARIABLE, str(max(1, threads)))
    if num_processes == 1:
        return [common]
    address = f"127.0.0.1:{port}"
    common |= {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,  # not for other machines
        "JAX_NUM_PROCESSES": str(num_processes),
    }
    return [
        {
            **common,
            "JAX_PROCESS_ID": str(rank),
            # Of GPUs; a CPU has no use for it.
            "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, range(rank * devices, (rank + 1) * devices))),
        }
        for rank in range(num_processes)
    ]


def launch(
    runs: Sequence[launching.Run],
    labels: Sequence[str],
    *,
    num_processes: int = 1,
    devices_per_process: int | None = None,
    parallel: int = 1,
    stop_timeout: float = 60.0,
    command: Command = launching.Run.command,
) -> list[int | None]:
    """Trains each run on processes of its own.

    Args:
      runs: what to train, in this order.
      labels: what stands before the numbers of each run's processes; a run with one writes a log as well.
      num_processes: of each run.
      devices_per_process: see the flag.
      parallel: runs at once.
      stop_timeout: seconds to save and end in.
      command: what each process of a run is.

    Returns:
      The exit status of each run; None for one that was not started, because a signal came before.
    """

    def make_environments() -> list[dict[str, str]]:
        return environments(num_processes, devices_per_process, os.environ, free_port(), parallel)

    logs = [
        str(pathlib.Path(run.workdir) / launching.LOG_FILE) if label else None
        for run, label in zip(runs, labels, strict=True)
    ]
    groups = [
        GroupSettings(command(run), make_environments, label, log)
        for run, label, log in zip(runs, labels, logs, strict=True)
    ]

    def on_start(number: int) -> None:
        if logs[number]:
            launching.record_start(runs[number].workdir, launching.LOG_FILE)

    def on_end(number: int, status: int) -> None:
        if logs[number]:
            launching.record_end(runs[number].workdir, launching.LOG_FILE, status)

    return run_groups(groups, parallel=parallel, stop_timeout=stop_timeout, on_start=on_start, on_end=on_end)


def launch_sweep(run: launching.Run, members: Sequence[sweeps.Member], **settings: Any) -> bool:
    """Trains the members that are not finished yet, and prints the table; see ``launch`` for the settings.

    Returns:
      Whether a member failed.
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
            raise ValueError("--parallel is how many members of a --sweep run at once: add --sweep")
        run = launching.read_run(argv[1:])
        if FLAGS.sweep:
            status = int(launch_sweep(run, sweeps.read_members(run), **settings))
        else:
            status = launch([run], [""], **settings)[0] or 0
    sys.exit(status)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=launching.parse_own_flags)
