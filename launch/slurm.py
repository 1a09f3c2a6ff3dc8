"""Trains on a Slurm cluster: writes the batch script and submits it.

    python launch/slurm.py --nodes=2 --gpus_per_node=8 --time=24:00:00 --requeue \\
        --config=experiments/wmt14_en_de.py:big --workdir=/shared/runs/big
    python launch/slurm.py --dry_run ...                  # prints the script, and submits nothing
    python launch/slurm.py --sweep ...                    # a job for each member, and one for the table

All other flags are those of ``transformer_jax.train``, passed on as they are. The script is
``WORKDIR/slurm.sh``, its output ``WORKDIR/slurm-JOB.out``; WORKDIR and the checkout must be where all nodes
see them. The processes find each other through what Slurm tells them.

Before the time limit (``--warn_before``) the processes are told to save and stop. With ``--requeue`` the
job then queues again and goes on where it was, as it does when Slurm takes its nodes away; it ends with the
same bits as one that was left alone. Without, submitting it again does the same.
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

from transformer_jax import launching, sweeps
from transformer_jax.checkpoint_files import COMMIT_FILE
from transformer_jax.command_line import reported_errors
from transformer_jax.files import write_whole
from transformer_jax.progress import say
from transformer_jax.run_folder import CHECKPOINTS_FOLDER, SUMMARY_FILE
from transformer_jax.sweep_results import report_results

SCRIPT_FILE = "slurm.sh"
TABLE_SCRIPT_FILE = "slurm_results.sh"
_TABLE_MINUTES = 15
_SECONDS_TO_SUBMIT = 120
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")  # as man sbatch has it
_GPUS = re.compile(r"(?:[\w.-]+:)?(\d+)")  # [TYPE:]NUMBER


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a job asks for.

    Raises:
      ValueError: a setting that Slurm or JAX would not understand.
    """

    nodes: int = 1
    gpus_per_node: str = "0"  # [TYPE:]NUMBER
    tasks_per_node: int | None = None  # processes; by default one a GPU, or one a node without GPUs
    cpus_per_task: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    requeue: bool = False
    warn_before: int = 180  # seconds before the time limit
    sbatch: tuple[str, ...] = ()  # more options of sbatch
    setup: tuple[str, ...] = ()  # lines of the script before training

    def __post_init__(self) -> None:
        if not _GPUS.fullmatch(self.gpus_per_node):
            raise ValueError(
                f"--gpus_per_node={self.gpus_per_node} must be a number such as 8, or a kind and a number "
                "such as h100:8"
            )
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ValueError(
                f"--time={self.time} must be minutes, [HOURS:]MINUTES:SECONDS or "
                "DAYS-HOURS[:MINUTES[:SECONDS]], such as 24:00:00"
            )
        if self.num_gpus and self.num_tasks not in (1, self.num_gpus):
            raise ValueError(
                f"--tasks_per_node={self.tasks_per_node} must be {self.num_gpus}, a process for each GPU "
                "of a node, or 1, for all of them"
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
                raise ValueError(f"--sbatch={option}: {name} is set by this launcher's own flags")

    @property
    def num_gpus(self) -> int:
        """GPUs of a node."""
        match = _GPUS.fullmatch(self.gpus_per_node)
        return int(match[1]) if match else 0

    @property
    def num_tasks(self) -> int:
        """Processes of a node."""
        return self.tasks_per_node or self.num_gpus or 1

    def _options(self) -> list[str]:
        """Those of ``#SBATCH`` lines that say what to allocate, and for how long."""
        options = [f"--nodes={self.nodes}", f"--ntasks-per-node={self.num_tasks}"]
        if self.num_gpus:
            options.append(f"--gpus-per-node={self.gpus_per_node}")
        if self.cpus_per_task:
            options.append(f"--cpus-per-task={self.cpus_per_task}")
        if self.time:
            options.append(f"--time={self.time}")
        # Without "B:" it goes to the processes, not to the script, which notes how they ended.
        options += [f"--signal=TERM@{self.warn_before}", "--requeue" if self.requeue else "--no-requeue"]
        return options + self.queue_options()

    def queue_options(self) -> list[str]:
        """Where to queue, and on whose account."""
        options = {"partition": self.partition, "account": self.account}
        return [f"--{name}={value}" for name, value in options.items() if value]

    def options(self) -> list[str]:
        """All of them."""
        return [*self._options(), *self.sbatch]


def define_flags() -> None:
    """The launcher's own flags."""
    flags.DEFINE_integer("nodes", 1, "Nodes of a run.", lower_bound=1)
    flags.DEFINE_string("gpus_per_node", "0", "GPUs of each node, such as 8 or h100:8.")
    flags.DEFINE_integer(
        "tasks_per_node",
        None,
        "Processes of each node. By default one for each GPU, which is how JAX shares them out under Slurm; "
        "1 gives all of a node to one process. Without GPUs 1 by default.",
        lower_bound=1,
    )
    flags.DEFINE_integer("cpus_per_task", None, "Cores of each process.", lower_bound=1)
    flags.DEFINE_string("time", None, "Time limit, as sbatch takes it: 24:00:00 is a day.")
    flags.DEFINE_string("partition", None, "Where to queue; by default the cluster's own choice.")
    flags.DEFINE_string("account", None, "On whose account.")
    flags.DEFINE_bool("requeue", False, "Queue again when the time is up or the nodes are taken.")
    flags.DEFINE_integer(
        "warn_before", 180, "Seconds before the time limit, to save and stop in.", lower_bound=1
    )
    flags.DEFINE_multi_string(
        "sbatch", [], "One more option of sbatch, such as --sbatch=--mem=64G; as often as needed."
    )
    flags.DEFINE_multi_string(
        "setup",
        [],
        "A line of the script before training, such as --setup='module load cuda'; as often as needed.",
    )
    flags.DEFINE_bool("sweep", False, "One job a member of the experiment's sweep().")
    flags.DEFINE_bool("dry_run", False, "Print what would be submitted, and do nothing.")


def directive(option: str) -> str:
    """A line of the script that gives sbatch an option, whatever is in it.

    Within double quotes sbatch takes every character as it is, but for these quotes and the backslash,
    before which there must be a backslash (``_get_argument`` in Slurm's src/sbatch/opt.c).
    """
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", option):
        return f"#SBATCH {option}"
    escaped = re.sub(r'(["\\])', r"\\\1", option)
    return f'#SBATCH "{escaped}"'


def _header(name: str, workdir: str, options: Sequence[str]) -> list[str]:
    if "\n" in workdir or "\\" in workdir:
        raise ValueError(
            f"the workdir {workdir!r} has a line break or a backslash: Slurm could not name its output there"
        )
    output = f"{workdir.replace('%', '%%')}/slurm-%j.out"
    own = [f"--job-name={name}", f"--output={output}", "--open-mode=append", f"--chdir={os.getcwd()}"]
    return ["#!/bin/bash", *map(directive, [*own, *options])]


# What the script does beside starting the processes. Bash waits for srun before it runs a trap: so it
# outlives the signal by which Slurm ends a job, and notes how the processes ended.
_BODY = """
workdir={workdir}
log="slurm-$SLURM_JOB_ID.out"
note() {{ printf '{{\\n  "log": "%s",\\n  "exit_status": %s\\n}}\\n' "$log" "$1" > "$workdir/{launch}"; }}
newest_checkpoint() {{ ls "$workdir/{checkpoints}"/*/{commit} 2>/dev/null | sort -V | tail -n 1; }}

ended_by_slurm=  # cancelled, preempted or requeued, rather than warned of the time limit
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
        echo "stopped before it saved a step, and would only do so again: raise --time or --warn_before"
        exit 1
    fi
    echo "stopped before its last step: the job is queued again, and goes on"
    scontrol requeue "$SLURM_JOB_ID"\
"""


def job_script(
    run: launching.Run, name: str, settings: Settings, command: Callable[[launching.Run], Sequence[str]]
) -> str:
    """The batch script of a run.

    Args:
      run: what to train; its folder must be an absolute path.
      name: of the job.
      settings: what it asks for.
      command: what each process is.
    """
    tasks = settings.num_tasks * settings.nodes
    srun = [f"--nodes={settings.nodes}", f"--ntasks={tasks}", f"--ntasks-per-node={settings.num_tasks}"]
    if settings.cpus_per_task:  # srun does not take it over from the job
        srun.append(f"--cpus-per-task={settings.cpus_per_task}")
    srun.append("--kill-on-bad-exit=1")
    if tasks > 1:
        srun.append("--label")
    setup = list(settings.setup)
    if settings.num_gpus > settings.num_tasks:  # or JAX would take the one with the number of the process
        setup.append(f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(settings.num_gpus)))}")
    again = shlex.join(["sbatch", f"{run.workdir}/{SCRIPT_FILE}"])
    unfinished = f"    echo {shlex.quote(f'stopped before its last step; to go on: {again}')}"
    body = _BODY.format(
        workdir=shlex.quote(run.workdir),
        launch=launching.LAUNCH_FILE,
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
    """The batch script that prints and writes the results of a sweep, for when all members have ended."""
    gpus = ("--gres", "--gpus", "-G")
    more = [option for option in settings.sbatch if not option.startswith(gpus)]
    options = ["--nodes=1", "--ntasks=1", f"--time={_TABLE_MINUTES}", *settings.queue_options(), *more]
    command = [sys.executable, "-m", "transformer_jax.sweeps", f"--workdir={workdir}"]
    lines = [*_header(name, workdir, options), "", *settings.setup, f"exec {shlex.join(command)}", ""]
    return "\n".join(lines)


def submit(script: str, path: pathlib.Path, after: Sequence[str] = ()) -> str:
    """Writes a script and submits it.

    Args:
      script: its text.
      path: where to keep it.
      after: jobs that must have ended before it starts, however they ended.

    Returns:
      The number of the job.

    Raises:
      ValueError: there is no ``sbatch`` here, or it refuses; the message is its own.
      OSError: the script cannot be written.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise ValueError(
            "there is no sbatch here: submit from a node of the cluster, or see the script with --dry_run"
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
    return result.stdout.strip().partition(";")[0]  # a cluster's name may follow


def launch(
    runs: Sequence[launching.Run],
    settings: Settings,
    *,
    table_of: str | None = None,
    is_dry: bool = False,
    command: Callable[[launching.Run], Sequence[str]] = launching.Run.command,
) -> list[str]:
    """Submits a job for each run.

    Args:
      runs: what to train.
      settings: what each job asks for.
      table_of: the folder of a sweep, whose table a further job prints when the others have ended.
      is_dry: print the scripts instead.
      command: what each process of a run is.

    Returns:
      The numbers of the jobs.

    Raises:
      ValueError: as ``submit``; jobs submitted before are named.
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
            already = f"{' '.join(jobs)} are submitted: scancel {' '.join(jobs)} takes them back"
            raise ValueError(f"{error}\njobs {already}") from error
        say(f"submitted job {jobs[-1]}: {path.parent}/slurm-{jobs[-1]}.out")
    return jobs


def main(argv: Sequence[str]) -> None:
    names = [field.name for field in dataclasses.fields(Settings)]
    with reported_errors():
        values = {name: getattr(FLAGS, name) for name in names}
        values |= {name: tuple(values[name]) for name in ("sbatch", "setup")}
        settings = Settings(**values)
        run = launching.read_run(argv[1:])
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
    app.run(main, flags_parser=launching.parse_own_flags)
