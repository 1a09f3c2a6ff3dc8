"""Trains on Google Kubernetes Engine: on TPU slices or GPU nodes, as a JobSet.

    python launch/gke.py --name=big --topology=v5e:4x4 --image=IMAGE --bucket=BUCKET \\
        --config=experiments/wmt14_en_de.py:big --workdir=/mnt/runs/big --config.mesh.fsdp=16
    python launch/gke.py --name=big --gpus=h100:8 --nodes=2 ...
    python launch/gke.py --dry_run ...                     # prints the manifests and applies nothing
    python launch/gke.py --sweep --wait ...                # one JobSet a member, and a table at the end

All other flags are those of ``transformer_jax.train``, passed on as they are. Run folders are files, so
``--workdir`` lies in ``--mount_path``, where a bucket (``--bucket``, by the Cloud Storage FUSE driver) or
a volume that all hosts can write (``--claim``) is mounted. The same command again leaves what is there as
it is: with ``--wait`` it waits for what was started before.

A run that is told to stop, because its node is drained or preempted, saves and ends with a status of its
own, whereupon JobSet starts it again, however often. After ``--max_restarts`` other failures it has
failed. JobSet (https://jobset.sigs.k8s.io) must be installed in the cluster; docs/gke.md goes through it
all.
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

from transformer_jax import jobsets, remote_runs
from transformer_jax.command_line import reported_errors
from transformer_jax.config import ConfigError
from transformer_jax.launching import LAUNCH_FILE, Run, parse_own_flags, read_run
from transformer_jax.progress import say
from transformer_jax.sweep_results import SWEEP_FILE
from transformer_jax.sweeps import Member, begin_sweep, read_members
from transformer_jax.tpu_slices import parse_slice

JOBSETS = "jobsets.jobset.x-k8s.io"
POLL_SECONDS = 30.0
MOST_FAILED_POLLS = 10  # one after the other
STATES = {"Completed": 0, "Failed": 1}  # a JobSet's terminal states, as exit statuses

FLAGS = flags.FLAGS


class KubectlError(ValueError):
    """What kubectl said, where it did not do what it was asked for."""


def kubectl_command(*arguments: str) -> list[str]:
    """A command of kubectl for the cluster that the flags choose."""
    chosen = [f"--context={FLAGS.context}"] * bool(FLAGS.context)
    chosen += [f"--namespace={FLAGS.namespace}"] * bool(FLAGS.namespace)
    return ["kubectl", *chosen, *arguments]


def kubectl(*arguments: str, text: str | None = None) -> str:
    """Runs kubectl and returns its output.

    Args:
      text: its standard input.

    Raises:
      KubectlError: it failed, or is not installed.
    """
    command = kubectl_command(*arguments)
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True)
    except FileNotFoundError:
        raise KubectlError(
            "kubectl is not installed (https://kubernetes.io/docs/tasks/tools/), or not on the path; "
            "--dry_run needs none"
        ) from None
    if done.returncode:
        said = done.stderr.strip() or f"it ended with status {done.returncode}"
        raise KubectlError(f"{shlex.join(command)}: {said}")
    return done.stdout


def read_hardware() -> jobsets.Hardware:
    """The machines that the flags ask for.

    Raises:
      ConfigError: there are no such machines, or flags do not go together.
    """
    if bool(FLAGS.topology) == bool(FLAGS.gpus):
        raise ConfigError("name either a --topology of TPUs, such as v5e:4x4, or --gpus, such as h100:8")
    for name in ("nodes",) if FLAGS.topology else ("slices", "chips_per_host"):
        if FLAGS[name].present:
            raise ConfigError(f"--{name} goes with {'--gpus' if FLAGS.topology else '--topology'} alone")
    if FLAGS.topology:
        return jobsets.tpu_hardware(parse_slice(FLAGS.topology), FLAGS.slices, FLAGS.chips_per_host)
    return jobsets.gpu_hardware(FLAGS.gpus, FLAGS.nodes)


def read_cluster() -> jobsets.Cluster:
    """Where the flags say that it runs.

    Raises:
      ConfigError: a value cannot be used.
    """
    names = [field.name for field in dataclasses.fields(jobsets.Cluster) if field.name != "env"]
    values: dict[str, Any] = {name: FLAGS[name].value for name in names}
    return jobsets.Cluster(**values, env=remote_runs.read_environment(FLAGS.env))


def check_workdir(run: Run, mount_path: str) -> None:
    """Makes sure that a run folder is on what outlives a pod.

    Raises:
      ConfigError: it is not.
    """
    workdir = pathlib.PurePosixPath(posixpath.normpath(run.workdir))
    if pathlib.PurePosixPath(mount_path) not in workdir.parents:
        raise ConfigError(
            f"--workdir={run.workdir} would be lost with its pod: it must be a folder in --mount_path="
            f"{mount_path}, such as {mount_path}/{workdir.name or 'run'}"
        )


def training_command(run: Run, hardware: jobsets.Hardware) -> list[str]:
    """What runs on each host; those with TPUs find one another, those with GPUs are told."""
    own = [f"--stopped_status={jobsets.STOPPED_STATUS}"]
    if hardware.resource == jobsets.TPU and hardware.replicas * hardware.hosts > 1:
        own += ["--distributed"]
    return run.command("python", *own)


def results_command(run: Run, members: Sequence[Member], states: Sequence[str]) -> list[str]:
    """What prints the table of a sweep in the cluster, where its folder is.

    Args:
      states: terminal states of the members' JobSets.
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
    table = ["python", "-m", "transformer_jax.sweeps", f"--workdir={run.workdir}"]
    return ["sh", "-c", "\n".join([*lines, f"exec {shlex.join(table)}"])]


def as_yaml(manifests: Sequence[Mapping[str, Any]]) -> str:
    """Manifests as one text that ``kubectl apply --filename=-`` takes."""
    return "---\n".join(yaml.safe_dump(manifest, sort_keys=False, width=110) for manifest in manifests)


def apply(manifests: Sequence[Mapping[str, Any]]) -> None:
    """Has the cluster make JobSets; those that are there already stay as they are."""
    say(kubectl("apply", "--filename=-", text=as_yaml(manifests)).strip())


def wait_for(names: Sequence[str]) -> list[str]:
    """Waits until JobSets have ended, says what happens meanwhile, and returns their terminal states.

    Raises:
      KubectlError: kubectl failed several times one after the other.
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
                say(f"{name}: started again, for the {now[1]}. time")
            if now[0] and not seen[name][0]:
                say(f"{name}: {now[0]}")
            seen[name] = now
        if all(seen[name][0] for name in names):
            return [seen[name][0] for name in names]
        time.sleep(POLL_SECONDS)


def _logs(name: str) -> list[str]:
    """Of the first process, which says what there is to say."""
    first = f"jobset.sigs.k8s.io/job-index=0,{jobsets.COMPLETION_INDEX}=0"
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name={name},{first}"
    return ["logs", f"--container={jobsets.CONTAINER}", selector]


def launch(arguments: Sequence[str]) -> int:
    """Does what the flags say, and returns the exit status.

    Raises:
      ConfigError: a flag, the config or the sweep cannot be used; nothing was submitted.
      KubectlError: the cluster did not take it.
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
    """The flags of this program."""
    string = functools.partial(flags.DEFINE_string, flag_values=flag_values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=flag_values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=flag_values)
    string("name", None, "Of the JobSet; those of a sweep are NAME-0, NAME-1, …", required=True)
    string("image", "", "Container image with this checkout and what it needs: see docs/gke.md.")
    string("topology", "", "TPU slice, such as v5e:4x4, v5p:2x2x2 or v6e:16x16.")
    integer("slices", 1, "TPU slices, joined over the data centre's network.")
    integer("chips_per_host", None, "Of v5e:2x4 and v6e:2x4, which exist as one host of 8 too.")
    string("gpus", "", "Kind and number of GPUs of a node, such as h100:8.")
    integer("nodes", 1, "Nodes with GPUs; one process each.")
    string("bucket", "", "Cloud Storage bucket to mount; the service account must have access.")
    string("claim", "", "Instead of --bucket: a persistent volume claim that all hosts write.")
    string("mount_path", "/mnt/runs", "Where that is mounted; --workdir lies in it.")
    string("image_folder", "/transformer_jax", "Where the checkout is in the image.")
    string("namespace", "", "Of Kubernetes; by default what kubectl is set to.")
    string("context", "", "Of kubectl: which cluster; by default the one it is set to.")
    string("service_account", "", "Of Kubernetes, with access to the bucket.")
    string("priority_class", "", "Of the pods.")
    string("queue", "", "Of Kueue, where the cluster has it.")
    boolean("spot", False, "On Spot machines, which may be preempted: then it starts again.")
    boolean("host_network", False, "Pods use their host's network: faster between slices of v6e.")
    integer("max_restarts", 3, "Failures after which it is given up; preemptions do not count.")
    integer("grace_seconds", 300, "Time to save in after SIGTERM; Spot machines have less.")
    flags.DEFINE_multi_string(
        "env", [], "KEY=VALUE for all processes; may be given several times.", flag_values=flag_values
    )
    boolean("sweep", False, "One JobSet for each member of the experiment's sweep().")
    boolean("wait", False, "Wait for the end, and print a sweep's table; exit status 1 if it failed.")
    boolean("dry_run", False, "Print the manifests, for kubectl apply, and do nothing else.")


def main(argv: Sequence[str]) -> None:
    with reported_errors():
        sys.exit(launch(argv[1:]))


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_own_flags)
