"""Trains on Google Kubernetes Engine: on TPU slices or GPU nodes, as a JobSet.

    python launch/gke.py --name=big --topology=v5e:4x4 --image=IMAGE --bucket=BUCKET \\
        --config=experiments/wmt14_en_de.py:big --workdir=/mnt/runs/big --config.mesh.fsdp=16
    python launch/gke.py --name=big --gpus=h100:8 --nodes=2 ...
    python launch/gke.py --dry_run ...                     # prints the manifests and applies nothing
    python launch/gke.py --sweep --wait ...                # one JobSet per member, and a table at the end

The flags listed below belong to this launcher; it passes all others to ``transformer_jax.train`` unchanged.
Every pod mounts a bucket (``--bucket``, with the Cloud Storage FUSE driver) or a volume that all hosts can
write (``--claim``) at ``--mount_path``. Run folders are ordinary files, so ``--workdir`` must lie there.
Repeating a command leaves existing JobSets as they are; with ``--wait`` it waits for those that it started
before.

When a node is drained or preempted, the run saves, and exits with a status that makes JobSet restart it; such
restarts are not limited. After ``--max_restarts`` other failures the JobSet fails. JobSet
(https://jobset.sigs.k8s.io) must be installed in the cluster. docs/gke.md explains every step.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import posixpath
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from absl import app, flags

from transformer_jax.cli.flags import reported_errors
from transformer_jax.config import ConfigError
from transformer_jax.launching import jobsets, remote_runs
from transformer_jax.launching.run import LAUNCH_FILE, Run, parse_own_flags, read_run
from transformer_jax.launching.sweep_results import SWEEP_FILE
from transformer_jax.launching.sweeps import Member, begin_sweep, read_members
from transformer_jax.launching.tpu_slices import parse_slice
from transformer_jax.reporting.progress import say

JOBSETS = "jobsets.jobset.x-k8s.io"
POLL_SECONDS = 30.0
MOST_FAILED_POLLS = 10  # consecutive failures of kubectl before waiting is given up
STATES = {"Completed": 0, "Failed": 1}  # a JobSet's terminal states, as exit statuses

FLAGS = flags.FLAGS


class KubectlError(ValueError):
    """Reports a command of kubectl that failed, with kubectl's own message."""


def kubectl_command(*arguments: str) -> list[str]:
    """Returns a kubectl command for the cluster and namespace that the flags select."""
    chosen = [f"--context={FLAGS.context}"] * bool(FLAGS.context)
    chosen += [f"--namespace={FLAGS.namespace}"] * bool(FLAGS.namespace)
    return ["kubectl", *chosen, *arguments]


def kubectl(*arguments: str, text: str | None = None) -> str:
    """Runs kubectl and returns its output.

    Args:
      *arguments: the arguments of kubectl.
      text: the standard input of kubectl.

    Raises:
      KubectlError: kubectl failed or is not installed.
    """
    command = kubectl_command(*arguments)
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True)
    except FileNotFoundError:
        raise KubectlError(
            "kubectl is not on the path: install it (https://kubernetes.io/docs/tasks/tools/), or use "
            "--dry_run, which does not need it"
        ) from None
    if done.returncode:
        reason = done.stderr.strip() or f"it ended with status {done.returncode}"
        raise KubectlError(f"{shlex.join(command)}: {reason}")
    return done.stdout


def read_hardware() -> jobsets.Hardware:
    """Returns the machines that the flags request.

    Raises:
      ConfigError: no such machines exist, or two flags exclude each other.
    """
    if bool(FLAGS.topology) == bool(FLAGS.gpus):
        raise ConfigError("give either --topology, such as v5e:4x4, or --gpus, such as h100:8")
    for name in ("nodes",) if FLAGS.topology else ("slices", "chips_per_host"):
        if FLAGS[name].present:
            raise ConfigError(
                f"--{name} can only be used with {'--gpus' if FLAGS.topology else '--topology'}"
            )
    if FLAGS.topology:
        return jobsets.tpu_hardware(parse_slice(FLAGS.topology), FLAGS.slices, FLAGS.chips_per_host)
    return jobsets.gpu_hardware(FLAGS.gpus, FLAGS.nodes)


def read_cluster() -> jobsets.Cluster:
    """Returns where the flags say that the run executes.

    Raises:
      ConfigError: a flag has an invalid value.
    """
    names = [field.name for field in dataclasses.fields(jobsets.Cluster) if field.name != "env"]
    values: dict[str, Any] = {name: FLAGS[name].value for name in names}
    return jobsets.Cluster(**values, env=remote_runs.read_environment(FLAGS.env))


def check_workdir(run: Run, mount_path: str) -> None:
    """Checks that a run folder is on storage that outlives a pod.

    Raises:
      ConfigError: the folder does not lie in ``mount_path``.
    """
    workdir = pathlib.PurePosixPath(posixpath.normpath(run.workdir))
    if pathlib.PurePosixPath(mount_path) not in workdir.parents:
        raise ConfigError(
            f"--workdir={run.workdir} would be lost with its pod: it must be a folder in --mount_path="
            f"{mount_path}, such as {mount_path}/{workdir.name or 'run'}"
        )


def training_command(run: Run, hardware: jobsets.Hardware) -> list[str]:
    """Returns the command that runs on each host.

    On TPUs the processes find one another with ``--distributed``; on GPUs the JobSet sets the variables that
    JAX reads.
    """
    own = [f"--stopped_status={jobsets.STOPPED_STATUS}"]
    if hardware.resource == jobsets.TPU and hardware.replicas * hardware.hosts > 1:
        own += ["--distributed"]
    return run.command("python", *own)


def results_command(run: Run, members: Sequence[Member], states: Sequence[str]) -> list[str]:
    """Returns the command that prints the table of a sweep, executed in the cluster, where its folder is.

    Args:
      run: the run whose folder holds the sweep.
      members: the members of the sweep.
      states: terminal states of the members' JobSets, in the same order.
    """
    with tempfile.TemporaryDirectory() as folder:
        begin_sweep(dataclasses.replace(run, workdir=folder), members)
        sweep = json.loads((pathlib.Path(folder) / SWEEP_FILE).read_text(encoding="utf-8"))
    files = {f"{run.workdir}/{SWEEP_FILE}": sweep}
    for member, state in zip(members, states, strict=True):
        files[f"{member.run.workdir}/{LAUNCH_FILE}"] = {"exit_status": STATES.get(state, 1)}
    lines = ["set -e"]
    for path, content in files.items():
        lines += [f"mkdir -p {shlex.quote(posixpath.dirname(path))}"]
        lines += [f"printf '%s\\n' {shlex.quote(json.dumps(content))} > {shlex.quote(path)}"]
    table = ["python", "-m", "transformer_jax.launching.sweeps", f"--workdir={run.workdir}"]
    return ["sh", "-c", "\n".join([*lines, f"exec {shlex.join(table)}"])]


def as_yaml(manifests: Sequence[Mapping[str, Any]]) -> str:
    """Returns manifests as one YAML text for ``kubectl apply --filename=-``."""
    return "---\n".join(yaml.safe_dump(manifest, sort_keys=False, width=110) for manifest in manifests)


def apply(manifests: Sequence[Mapping[str, Any]]) -> None:
    """Creates JobSets in the cluster; existing ones stay as they are."""
    say(kubectl("apply", "--filename=-", text=as_yaml(manifests)).strip())


def wait_for(names: Sequence[str]) -> list[str]:
    """Waits until JobSets have ended, and prints restarts and ends meanwhile.

    Returns:
      The terminal state of each JobSet.

    Raises:
      KubectlError: kubectl failed ``MOST_FAILED_POLLS`` times in a row.
    """
    seen: dict[str, tuple[str, int]] = collections.defaultdict(lambda: ("", 0))
    failed_polls = 0
    while True:
        try:
            found = json.loads(kubectl("get", JOBSETS, *names, "--output=json"))
            failed_polls = 0
        except KubectlError as error:
            failed_polls += 1
            if failed_polls == MOST_FAILED_POLLS:
                raise
            say(f"{error}; trying again")
            time.sleep(POLL_SECONDS)
            continue
        for item in found.get("items", [found]):
            name, status = item["metadata"]["name"], item.get("status", {})
            now = status.get("terminalState", ""), status.get("restarts", 0)
            if now[1] > seen[name][1]:
                say(f"{name}: restarted ({now[1]} restarts so far)")
            if now[0] and not seen[name][0]:
                say(f"{name}: {now[0]}")
            seen[name] = now
        if all(seen[name][0] for name in names):
            return [seen[name][0] for name in names]
        time.sleep(POLL_SECONDS)


def _logs(name: str) -> list[str]:
    """Returns kubectl's arguments for the output of process 0, which prints the progress of the run."""
    first = f"jobset.sigs.k8s.io/job-index=0,{jobsets.COMPLETION_INDEX}=0"
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name={name},{first}"
    return ["logs", f"--container={jobsets.CONTAINER}", selector]


def launch(arguments: Sequence[str]) -> int:
    """Does what the flags request and returns the exit status.

    Args:
      arguments: the flags of ``transformer_jax.train``.

    Raises:
      ConfigError: a flag, the config or the sweep is invalid; nothing was submitted.
      KubectlError: the cluster refused the JobSets.
    """
    cluster, hardware, run = read_cluster(), read_hardware(), read_run(arguments)
    remote_runs.check_config_file(run)
    check_workdir(run, cluster.mount_path)
    members = read_members(run) if FLAGS.sweep else ()
    runs = {f"{FLAGS.name}-{i}": member.run for i, member in enumerate(members)} or {FLAGS.name: run}
    manifests = [
        jobsets.jobset(name, training_command(run, hardware), hardware, cluster) for name, run in runs.items()
    ]
    table_name = f"{FLAGS.name}-results"
    jobsets.check_job_name(table_name, jobsets.Hardware())
    names = list(runs)
    if FLAGS.dry_run:
        print(as_yaml(manifests), end="")
        return 0
    apply(manifests)
    for name, member in zip(names, members, strict=bool(members)):
        say(f"{name}: {member.name}")
    if not FLAGS.wait:
        follow = kubectl_command(*_logs(names[0]), "--follow")
        say(f"the output of {names[0]}:\n  {shlex.join(follow)}")
        say("to wait for the end" + (" and the table" if members else "") + ", add --wait to this command")
        return 0
    states = wait_for(names)
    if members:
        command = results_command(run, members, states)
        cluster = dataclasses.replace(cluster, spot=False, max_restarts=0, host_network=False)
        kubectl("delete", JOBSETS, table_name, "--ignore-not-found")
        apply([jobsets.jobset(table_name, command, jobsets.Hardware(), cluster)])
        wait_for([table_name])
        print(kubectl(*_logs(table_name), "--tail=-1"), end="")
    return max(STATES.get(state, 1) for state in states)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of this launcher."""
    string = functools.partial(flags.DEFINE_string, flag_values=flag_values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=flag_values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=flag_values)
    string("name", None, "Name of the JobSet; a sweep has JobSets NAME-0, NAME-1, …", required=True)
    string("image", "", "Container image with this checkout and its dependencies; see docs/gke.md.")
    string("topology", "", "TPU slice, such as v5e:4x4, v5p:2x2x2 or v6e:16x16.")
    integer("slices", 1, "Number of TPU slices, which communicate over the data centre's network.")
    integer("chips_per_host", None, "TPU chips per host; v5e:2x4 and v6e:2x4 also exist as one host of 8.")
    string("gpus", "", "Type and number of GPUs per node, such as h100:8.")
    integer("nodes", 1, "Number of GPU nodes, with one process each.")
    string("bucket", "", "Cloud Storage bucket to mount; the service account must have access to it.")
    string("claim", "", "Persistent volume claim to mount instead of --bucket; all hosts must write to it.")
    string("mount_path", "/mnt/runs", "Where the bucket or the claim is mounted; --workdir must lie in it.")
    string("image_folder", "/transformer_jax", "Folder of the checkout in the image.")
    string("namespace", "", "Namespace of Kubernetes. Default: kubectl's current one.")
    string("context", "", "Context of kubectl, which selects the cluster. Default: kubectl's current one.")
    string("service_account", "", "Service account of Kubernetes with access to the bucket.")
    string("priority_class", "", "Priority class of the pods.")
    string("queue", "", "Queue of Kueue, if the cluster uses Kueue.")
    boolean("spot", False, "Use Spot machines; a run that is preempted restarts.")
    boolean("host_network", False, "Pods use their host's network, which is faster between slices of v6e.")
    integer("max_restarts", 3, "Number of failures after which the JobSet fails; preemptions do not count.")
    integer("grace_seconds", 300, "Seconds to save in after SIGTERM; Spot machines allow less.")
    flags.DEFINE_multi_string(
        "env",
        [],
        "Environment variable KEY=VALUE of all processes; may be given several times.",
        flag_values=flag_values,
    )
    boolean("sweep", False, "Start one JobSet for each member of the experiment's sweep().")
    boolean(
        "wait", False, "Wait for the end and print a sweep's table; the exit status is 1 if a run failed."
    )
    boolean("dry_run", False, "Print the manifests for kubectl apply, and apply nothing.")


def main(argv: Sequence[str]) -> None:
    with reported_errors():
        sys.exit(launch(argv[1:]))


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_own_flags)
