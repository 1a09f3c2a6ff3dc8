"""Trains on a Slurm cluster: writes a batch script and submits it.

    python launch/slurm.py --nodes=2 --gpus_per_node=8 --time=24:00:00 --requeue \\
        --config=experiments/wmt14_en_de.py:big --workdir=/shared/runs/big
    python launch/slurm.py --dry_run ...                  # prints the script and submits nothing
    python launch/slurm.py --sweep ...                    # a job for each member, and one for the table

The flags listed below belong to this launcher; it passes all others to ``transformer_jax.train`` unchanged.
The script is ``WORKDIR/slurm.sh`` and its output ``WORKDIR/slurm-JOB.out``. WORKDIR and the checkout must be
in a file system that all nodes share. JAX finds the coordinator and the ranks in Slurm's environment
variables.

``--warn_before`` seconds before the time limit, Slurm sends the processes SIGTERM, and they save and stop.
With ``--requeue`` the job then returns to the queue and resumes from its checkpoint; the same happens when
Slurm preempts its nodes. The result is bit-identical to that of an uninterrupted run. Without ``--requeue``,
submit the script again to resume.
"""

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from transformer_jax.checkpoints.files import COMMIT_FILE
from transformer_jax.cli.flags import reported_errors
from transformer_jax.files import write_whole
from transformer_jax.launching import sweeps
from transformer_jax.launching.run import LAUNCH_FILE, Run, parse_own_flags, read_run
from transformer_jax.launching.sweep_results import report_results
from transformer_jax.reporting.progress import say
from transformer_jax.runs.folder import CHECKPOINTS_FOLDER, SUMMARY_FILE

SCRIPT_FILE = "slurm.sh"
TABLE_SCRIPT_FILE = "slurm_results.sh"
_TABLE_MINUTES = 15
_SECONDS_TO_SUBMIT = 120
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")  # the formats in man sbatch
_GPUS = re.compile(r"(?:[\w.-]+:)?(\d+)")  # [TYPE:]NUMBER


@dataclasses.dataclass(frozen=True)
class Settings:
    """Describes the resources and options of a job.

    Raises:
      ValueError: Slurm or JAX would not accept a setting.
    """

    nodes: int = 1
    gpus_per_node: str = "0"  # [TYPE:]NUMBER
    tasks_per_node: int | None = None  # processes; default: one per GPU, or one per node without GPUs
    cpus_per_task: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    requeue: bool = False
    warn_before: int = 180  # seconds before the time limit
    sbatch: tuple[str, ...] = ()  # further options of sbatch
    setup: tuple[str, ...] = ()  # lines of the script that run before training

    def __post_init__(self) -> None:
        if not _GPUS.fullmatch(self.gpus_per_node):
            raise ValueError(
                f"--gpus_per_node={self.gpus_per_node} must be a number such as 8, or a GPU type and a "
                "number such as h100:8"
            )
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ValueError(
                f"--time={self.time} must be minutes, [HOURS:]MINUTES:SECONDS or "
                "DAYS-HOURS[:MINUTES[:SECONDS]], such as 24:00:00"
            )
        if self.num_gpus and self.num_tasks not in (1, self.num_gpus):
            raise ValueError(
                f"--tasks_per_node={self.tasks_per_node} must be {self.num_gpus} (one process for each GPU "
                "of a node) or 1 (one process for all of them)"
            )
        own = {line.partition("=")[0] for line in self._options()}
        own |= {"--output", "--job-name", "--chdir", "--open-mode", "--ntasks", "--array", "--dependency"}
        for option in self.sbatch:
            name = option.partition("=")[0]
            if not re.fullmatch(r"--[\w-]+", name) or "\n" in option:
                raise ValueError(
                    f"--sbatch={option} must be a long option of sbatch, as in --sbatch=--mem=64G"
                )
            if name in own:
                raise ValueError(
                    f"--sbatch={option}: this launcher sets {name} itself; use its own flags instead"
                )

    @property
    def num_gpus(self) -> int:
        """Returns the number of GPUs per node."""
        match = _GPUS.fullmatch(self.gpus_per_node)
        return int(match[1]) if match else 0

    @property
    def num_tasks(self) -> int:
        """Returns the number of processes per node."""
        return self.tasks_per_node or self.num_gpus or 1

    def _options(self) -> list[str]:
        """Returns the ``#SBATCH`` options that say what to allocate and for how long."""
        options = [f"--nodes={self.nodes}", f"--ntasks-per-node={self.num_tasks}"]
        if self.num_gpus:
            options.append(f"--gpus-per-node={self.gpus_per_node}")
        if self.cpus_per_task:
            options.append(f"--cpus-per-task={self.cpus_per_task}")
        if self.time:
            options.append(f"--time={self.time}")
        # Without "B:", the signal goes to the processes but not to the script, which records their status.
        options += [f"--signal=TERM@{self.warn_before}", "--requeue" if self.requeue else "--no-requeue"]
        return options + self.queue_options()

    def queue_options(self) -> list[str]:
        """Returns the options for the partition and the account."""
        options = {"partition": self.partition, "account": self.account}
        return [f"--{name}={value}" for name, value in options.items() if value]

    def options(self) -> list[str]:
        """Returns all options of the job."""
        return [*self._options(), *self.sbatch]


def define_flags() -> None:
    """Defines the flags of this launcher."""
    flags.DEFINE_integer("nodes", 1, "Number of nodes per run.", lower_bound=1)
    flags.DEFINE_string("gpus_per_node", "0", "GPUs per node, such as 8 or h100:8.")
    flags.DEFINE_integer(
        "tasks_per_node",
        None,
        "Processes per node. Default: one per GPU, which is how JAX assigns GPUs under Slurm; with 1, one "
        "process uses all GPUs of a node. Without GPUs the default is 1.",
        lower_bound=1,
    )
    flags.DEFINE_integer("cpus_per_task", None, "CPU cores per process.", lower_bound=1)
    flags.DEFINE_string("time", None, "Time limit in a format of sbatch, such as 24:00:00 for a day.")
    flags.DEFINE_string("partition", None, "Partition of the cluster. Default: the cluster's own default.")
    flags.DEFINE_string("account", None, "Account that the job is charged to.")
    flags.DEFINE_bool("requeue", False, "Requeue the job after the time limit or a preemption.")
    flags.DEFINE_integer(
        "warn_before",
        180,
        "Seconds before the time limit at which the run is asked to save and stop.",
        lower_bound=1,
    )
    flags.DEFINE_multi_string(
        "sbatch", [], "A further option of sbatch, such as --sbatch=--mem=64G; may be given several times."
    )
    flags.DEFINE_multi_string(
        "setup",
        [],
        "A shell line that the script runs before training, such as --setup='module load cuda'; may be given "
        "several times.",
    )
    flags.DEFINE_bool("sweep", False, "Submit one job for each member of the experiment's sweep().")
    flags.DEFINE_bool("dry_run", False, "Print the scripts and submit nothing.")


def directive(option: str) -> str:
    """Returns the ``#SBATCH`` line that gives sbatch an option, quoted if necessary.

    Within double quotes sbatch takes every character literally except the double quote and the backslash,
    which must be escaped with a backslash (``_get_argument`` in Slurm's src/sbatch/opt.c).
    """
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", option):
        return f"#SBATCH {option}"
    escaped = re.sub(r'(["\\])', r"\\\1", option)
    return f'#SBATCH "{escaped}"'


def _header(name: str, workdir: str, options: Sequence[str]) -> list[str]:
    if "\n" in workdir or "\\" in workdir:
        raise ValueError(
            f"the workdir {workdir!r} contains a line break or a backslash, which Slurm cannot use in the "
            "name of an output file; choose another --workdir"
        )
    output = f"{workdir.replace('%', '%%')}/slurm-%j.out"
    own = [f"--job-name={name}", f"--output={output}", "--open-mode=append", f"--chdir={os.getcwd()}"]
    return ["#!/bin/bash", *map(directive, [*own, *options])]


# The body of the batch script. Bash runs a trap only after srun has returned. The script therefore survives
# the signal with which Slurm ends a job, and can record the exit status of the processes.
_BODY = """
workdir={workdir}
log="slurm-$SLURM_JOB_ID.out"
note() {{ printf '{{\\n  "log": "%s",\\n  "exit_status": %s\\n}}\\n' "$log" "$1" > "$workdir/{launch}"; }}
newest_checkpoint() {{ ls "$workdir/{checkpoints}"/*/{commit} 2>/dev/null | sort -V | tail -n 1; }}

ended_by_slurm=  # set if Slurm cancels, preempts or requeues the job, but not by the warning before the limit
trap 'ended_by_slurm=1' TERM
{setup}
note null
before="$(newest_checkpoint)"
status=0
srun {srun} \\
    {command} || status=$?

is_finished=
if [[ "$workdir/{summary}" -nt "$workdir/{launch}" ]]; then is_finished=1; fi
note "$status"
if [[ $status == 0 && ! $is_finished && ! $ended_by_slurm ]]; then
{unfinished}
fi
exit "$status"
"""

_REQUEUE = """\
    if [[ "$(newest_checkpoint)" == "$before" ]]; then
        echo "stopped before it saved a checkpoint, and would do so again: raise --time or --warn_before"
        exit 1
    fi
    echo "stopped before its last step: the job is requeued and will resume"
    scontrol requeue "$SLURM_JOB_ID"\
"""


def job_script(run: Run, name: str, settings: Settings, command: Callable[[Run], Sequence[str]]) -> str:
    """Returns the batch script of a run.

    Args:
      run: the run to train; its folder must be an absolute path.
      name: the job's name.
      settings: the job's resources and options.
      command: returns the command that each process executes.
    """
    tasks = settings.num_tasks * settings.nodes
    srun = [f"--nodes={settings.nodes}", f"--ntasks={tasks}", f"--ntasks-per-node={settings.num_tasks}"]
    if settings.cpus_per_task:  # srun does not inherit it from the job
        srun.append(f"--cpus-per-task={settings.cpus_per_task}")
    srun.append("--kill-on-bad-exit=1")
    if tasks > 1:
        srun.append("--label")
    setup = list(settings.setup)
    if settings.num_gpus > settings.num_tasks:  # by default JAX uses only the GPU with the process's rank
        setup.append(f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(settings.num_gpus)))}")
    again = shlex.join(["sbatch", f"{run.workdir}/{SCRIPT_FILE}"])
    unfinished = f"    echo {shlex.quote(f'stopped before its last step; to resume: {again}')}"
    body = _BODY.format(
        workdir=shlex.quote(run.workdir),
        launch=LAUNCH_FILE,
        checkpoints=CHECKPOINTS_FOLDER,
        commit=COMMIT_FILE,
        summary=SUMMARY_FILE,
        setup="".join(f"\n{line}" for line in setup),
        srun=shlex.join(srun),
        command=shlex.join(command(run)),
        unfinished=_REQUEUE if settings.requeue else unfinished,
    )
    return "\n".join(_header(name, run.workdir, settings.options())) + "\n" + body


def table_script(workdir: str, name: str, settings: Settings) -> str:
    """Returns the batch script that prints and writes the results of a sweep after all members have ended."""
    gpus = ("--gres", "--gpus", "-G")
    more = [option for option in settings.sbatch if not option.startswith(gpus)]
    options = ["--nodes=1", "--ntasks=1", f"--time={_TABLE_MINUTES}", *settings.queue_options(), *more]
    command = [sys.executable, "-m", "transformer_jax.launching.sweeps", f"--workdir={workdir}"]
    lines = [*_header(name, workdir, options), "", *settings.setup, f"exec {shlex.join(command)}", ""]
    return "\n".join(lines)


def submit(script: str, path: pathlib.Path, after: Sequence[str] = ()) -> str:
    """Writes a batch script and submits it.

    Args:
      script: the text of the script.
      path: the file to write it to.
      after: numbers of the jobs that must end, successfully or not, before this one starts.

    Returns:
      The number of the job.

    Raises:
      ValueError: sbatch is not installed, or refuses the script; the message includes sbatch's own.
      OSError: the script cannot be written.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise ValueError(
            "sbatch was not found: run this on a node of the cluster, or print the script with --dry_run"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, script)
    dependency = [f"--dependency=afterany:{':'.join(after)}"] if after else []
    result = subprocess.run(
        [program, "--parsable", *dependency, os.fspath(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS_TO_SUBMIT,
    )
    if result.returncode:
        raise ValueError(f"sbatch refused {path}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout.strip().partition(";")[0]  # the name of the cluster may follow


def launch(
    runs: Sequence[Run],
    settings: Settings,
    *,
    table_of: str | None = None,
    is_dry: bool = False,
    command: Callable[[Run], Sequence[str]] = Run.command,
) -> list[str]:
    """Submits a job for each run.

    Args:
      runs: the runs to train.
      settings: the resources and options of each job.
      table_of: folder of a sweep; if given, a further job prints its table after the others have ended.
      is_dry: print the scripts instead of submitting them.
      command: returns the command that each process of a run executes.

    Returns:
      The numbers of the jobs.

    Raises:
      ValueError: see ``submit``; the message names the jobs that were already submitted.
    """
    jobs: list[str] = []
    runs = [dataclasses.replace(run, workdir=os.path.abspath(run.workdir)) for run in runs]
    base = pathlib.Path(os.path.abspath(table_of)) if table_of else None
    scripts = []
    for run in runs:
        path = pathlib.Path(run.workdir)
        name = f"{base.name}/{path.name}" if base else path.name
        scripts.append((path / SCRIPT_FILE, job_script(run, name, settings, command)))
    if base:
        scripts.append((base / TABLE_SCRIPT_FILE, table_script(str(base), f"{base.name}/results", settings)))
    for number, (path, script) in enumerate(scripts):
        after = jobs if number == len(runs) else []
        if is_dry:
            print(script if len(scripts) == 1 else f"# {path}\n{script}")
            continue
        try:
            jobs.append(submit(script, path, after))
        except (ValueError, OSError) as error:
            if not jobs:
                raise
            submitted = " ".join(jobs)
            raise ValueError(
                f"{error}\njobs already submitted: {submitted}; to cancel them: scancel {submitted}"
            ) from error
        say(f"submitted job {jobs[-1]}: {path.parent}/slurm-{jobs[-1]}.out")
    return jobs


def main(argv: Sequence[str]) -> None:
    names = [field.name for field in dataclasses.fields(Settings)]
    with reported_errors():
        values = {name: getattr(FLAGS, name) for name in names}
        values |= {name: tuple(values[name]) for name in ("sbatch", "setup")}
        settings = Settings(**values)
        run = read_run(argv[1:])
        if not FLAGS.sweep:
            launch([run], settings, is_dry=FLAGS.dry_run)
            return
        members = sweeps.read_members(run)
        if FLAGS.dry_run:
            launch([member.run for member in members], settings, table_of=run.workdir, is_dry=True)
        elif left := sweeps.begin_sweep(run, members):
            launch([member.run for member in left], settings, table_of=run.workdir)
        else:
            report_results(run.workdir)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_own_flags)
