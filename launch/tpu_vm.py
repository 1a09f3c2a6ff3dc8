"""Trains on a Cloud TPU VM of one worker or many: creates it, installs this checkout, runs, follows, deletes.

    python launch/tpu_vm.py create --name=big --zone=us-west4-a --topology=v5e:4x4 --spot
    python launch/tpu_vm.py install --name=big --zone=us-west4-a --bucket=BUCKET
    python launch/tpu_vm.py run --name=big --zone=us-west4-a \\
        --config=experiments/wmt14_en_de.py:big --workdir=/mnt/runs/big --config.mesh.fsdp=16
    python launch/tpu_vm.py follow --name=big --zone=us-west4-a     # its output; Ctrl-C does not stop the run
    python launch/tpu_vm.py stop --name=big --zone=us-west4-a       # the run saves and ends
    python launch/tpu_vm.py delete --name=big --zone=us-west4-a

Each step is one or two commands of ``gcloud``; ``--dry_run`` prints them instead of running them. ``install``
copies the working tree, except the files that git ignores. ``run`` passes the flags that are not listed below
to ``transformer_jax.train`` unchanged. A run continues when the connection breaks and when this program ends;
each worker keeps its output in ``~/transformer_jax_runs``. If there are several workers, all of them must be
able to write to ``--workdir``: Cloud Storage FUSE mounts ``--bucket`` at ``--mount_path``. With ``--sweep``
the members run one after the other in ``WORKDIR/MEMBER``, and a table of their results follows.
docs/tpu_vm.md explains every step.

Source of the syntax: the reference of ``gcloud compute tpus`` in Google Cloud SDK 528.0.0.
"""

import datetime
import functools
import pathlib
import posixpath
import re
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags

from transformer_jax.cli.flags import reported_errors
from transformer_jax.config import ConfigError
from transformer_jax.launching import remote_runs
from transformer_jax.launching.run import parse_own_flags, read_run
from transformer_jax.launching.sweeps import read_members
from transformer_jax.launching.tpu_slices import parse_slice
from transformer_jax.reporting.progress import say

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
ARCHIVE = "transformer_jax.tar.gz"
PYTHON_VERSION, PINS = "3.12", "constraints/newest-py312.txt"
# Paths on the workers. The shell expands $HOME inside double quotes, but not ~.
REMOTE_CHECKOUT, REMOTE_ENVIRONMENT = "$HOME/transformer_jax", "$HOME/transformer_jax_env"
REMOTE_PYTHON = f"{REMOTE_ENVIRONMENT}/bin/python"
REMOTE_RUNS, REMOTE_MOUNT = "$HOME/transformer_jax_runs", "$HOME/transformer_jax_mount.sh"
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes"
STEPS = ("create", "install", "run", "follow", "stop", "delete")

# Checks the process's command too: after a reboot another process may have the same number.
IS_RUNNING = f"""\
is_running() {{
    pid=$(cat "{REMOTE_RUNS}/latest/pid" 2>/dev/null) &&
        grep --quiet tpu_worker "/proc/$pid/cmdline" 2>/dev/null
}}"""
REFUSE_RUNNING = """\
if is_running; then
    echo "error: $(hostname): a run is in progress: follow it, or stop it first" >&2
    exit 1
fi"""

FLAGS = flags.FLAGS


class GcloudError(ValueError):
    """Reports a command of gcloud that failed after it printed its reason."""


def gcloud(*words: str, project: bool = True) -> list[str]:
    """Returns a gcloud command for the zone and, with ``project``, the project that the flags name."""
    command = ["gcloud", "compute", "tpus", *words, f"--zone={FLAGS.zone}"]
    return command + [f"--project={FLAGS.project}"] * bool(FLAGS.project and project)


def ssh(script: str, worker: str) -> list[str]:
    """Returns a command that runs a bash script on one worker, or on all workers (``all``)."""
    words = ["tpu-vm", "ssh", FLAGS.name, *_routing(), f"--worker={worker}"]
    return gcloud(*words, f"--command={script}")


def _routing() -> list[str]:
    return ["--internal-ip"] * FLAGS.internal_ips


def create_commands() -> list[list[str]]:
    """Returns the command that creates the TPU or requests it from the queue."""
    if not FLAGS.topology:
        raise ConfigError("the step create needs --topology, such as --topology=v5e:4x4")
    tpus = parse_slice(FLAGS.topology)
    version = FLAGS.runtime_version or tpus.generation.runtime_version
    words = [f"--accelerator-type={tpus.accelerator_type}"]
    words += [f"--{name}={FLAGS[name].value}" for name in ("network", "subnetwork") if FLAGS[name].value]
    words += [f"--service-account={FLAGS.service_account}"] * bool(FLAGS.service_account)
    words += ["--internal-ips"] * FLAGS.internal_ips + ["--spot"] * FLAGS.spot
    if FLAGS.queued:
        node = [f"--node-id={FLAGS.name}", f"--runtime-version={version}"]
        return [gcloud("queued-resources", "create", FLAGS.name, *node, *words)]
    return [gcloud("tpu-vm", "create", FLAGS.name, f"--version={version}", *words)]


def delete_commands() -> list[list[str]]:
    """Returns the command that deletes the TPU and, if it came from the queue, its request."""
    quiet = ["--quiet"] * FLAGS.yes
    if FLAGS.queued:
        return [gcloud("queued-resources", "delete", FLAGS.name, "--force", *quiet)]
    return [gcloud("tpu-vm", "delete", FLAGS.name, *quiet)]


def install_commands(archive: str) -> list[list[str]]:
    """Returns the commands that copy the checkout to all workers and install it there with pinned versions.

    Args:
      archive: path of the archive of the checkout, on this machine.
    """
    lines = ["set -e", IS_RUNNING, REFUSE_RUNNING]
    if FLAGS.bucket:
        mount = _mount_script(FLAGS.bucket, FLAGS.mount_path)
        lines += [f'printf %s {shlex.quote(mount)} > "{REMOTE_MOUNT}"', f'bash "{REMOTE_MOUNT}"']
    lines += [
        f'rm -rf "{REMOTE_CHECKOUT}"',
        f'mkdir "{REMOTE_CHECKOUT}"',
        f'tar --extract --gzip --file="$HOME/{ARCHIVE}" --directory="{REMOTE_CHECKOUT}"',
        "python3 -m pip install --quiet --user uv",  # for Python 3.12: the images' own is older than 3.11
        f'python3 -m uv venv --quiet --allow-existing --python={PYTHON_VERSION} "{REMOTE_ENVIRONMENT}"',
        f'python3 -m uv pip install --quiet --python="{REMOTE_PYTHON}" '
        f'--constraint="{REMOTE_CHECKOUT}/{PINS}" --editable="{REMOTE_CHECKOUT}[tpu]"',
        'echo "$(hostname): installed"',
    ]
    copy = gcloud("tpu-vm", "scp", archive, f"{FLAGS.name}:{ARCHIVE}", *_routing(), "--worker=all")
    return [copy, ssh("\n".join(lines), "all")]


def _mount_script(bucket: str, mount_path: str) -> str:
    path = shlex.quote(mount_path)
    return f"""\
set -e
if ! mountpoint --quiet {path}; then
    if ! command -v gcsfuse >/dev/null; then
        echo "error: Cloud Storage FUSE is missing: https://cloud.google.com/storage/docs/gcsfuse-install" >&2
        exit 1
    fi
    sudo mkdir -p {path}
    sudo chown "$(id -u):$(id -g)" {path}
    gcsfuse --implicit-dirs {shlex.quote(bucket)} {path}
fi
"""


def run_commands(arguments: Sequence[str], stamp: str) -> list[list[str]]:
    """Returns the command that starts a run, or the members of a sweep in turn, on all workers.

    Args:
      arguments: flags of the train program.
      stamp: name of the folder on each worker that receives the output.
    """
    folder = f"{REMOTE_RUNS}/{stamp}"
    own = [f"--env={text}" for text in FLAGS.env] + ["--sweep"] * FLAGS.sweep
    script = [
        "set -e",
        IS_RUNNING,
        REFUSE_RUNNING,
        f'if ! [ -x "{REMOTE_PYTHON}" ]; then',
        '    echo "error: $(hostname): nothing is installed: run the step install first" >&2',
        "    exit 1",
        "fi",
        f'if [ -e "{REMOTE_MOUNT}" ]; then bash "{REMOTE_MOUNT}"; fi',
        f'mkdir -p "{folder}"',
        f'ln -sfn {stamp} "{REMOTE_RUNS}/latest"',
        f'cd "{REMOTE_CHECKOUT}"',
        f"ask() {{ curl --silent --fail --header 'Metadata-Flavor: Google' {METADATA}/$1; }}",
        "worker=$(ask agent-worker-number) && workers=$(ask worker-network-endpoints) || {",
        '    echo "error: $(hostname): the metadata server does not say which worker this is" >&2',
        "    exit 1",
        "}",
        # JAX_PLATFORMS=cpu leaves the TPU chips to the trainings that the worker program starts.
        f'JAX_PLATFORMS=cpu nohup setsid "{REMOTE_PYTHON}" launch/tpu_worker.py '
        f'--worker_number="$worker" --workers="$workers" --status_file="{folder}/status" '
        f"{shlex.join([*own, *arguments])} "
        f'> "{folder}/log.txt" 2>&1 < /dev/null &',
        f'echo $! > "{folder}/pid"',
        f'echo "$(hostname): started; its output is in {folder}/log.txt"',
    ]
    return [ssh("\n".join(script), "all")]


def follow_commands() -> list[list[str]]:
    """Returns the command that prints a worker's output until the run ends; its exit status is the run's."""
    latest = f"{REMOTE_RUNS}/latest"
    script = [
        f'if ! [ -e "{latest}/pid" ]; then echo "error: nothing was started here" >&2; exit 1; fi',
        f'tail --pid="$(cat "{latest}/pid")" --lines=+1 --follow "{latest}/log.txt"',
        f'if ! [ -e "{latest}/status" ]; then echo "error: the run was killed" >&2; exit 1; fi',
        f'exit "$(cat "{latest}/status")"',
    ]
    return [ssh("\n".join(script), str(FLAGS.worker))]


def stop_commands() -> list[list[str]]:
    """Returns the command that asks the run on all workers to save and end, and waits until it has."""
    script = [
        IS_RUNNING,
        'if ! is_running; then echo "$(hostname): nothing is running"; exit 0; fi',
        'kill -TERM "$pid"',
        'tail --pid="$pid" --follow /dev/null',
        'echo "$(hostname): stopped"',
    ]
    return [ssh("\n".join(script), "all")]


def pack_checkout(archive: str) -> int:
    """Writes an archive of the working tree, except the files that git ignores.

    Returns:
      The number of files in the archive.

    Raises:
      ConfigError: the folder is not a git checkout.
    """
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{CHECKOUT} must be a checkout of git: {done.stderr.strip()}")
    names = sorted({name for name in done.stdout.split("\0") if name and (CHECKOUT / name).is_file()})
    with tarfile.open(archive, "w:gz") as file:
        for name in names:
            file.add(CHECKOUT / name, name)
    return len(names)


def execute(commands: Sequence[Sequence[str]]) -> None:
    """Runs commands one after the other without capturing their output, or prints them with ``--dry_run``.

    Raises:
      GcloudError: a command failed, or gcloud is not installed.
    """
    for command in commands:
        if FLAGS.dry_run:
            print(shlex.join(command))
            continue
        try:
            status = subprocess.run(command).returncode
        except FileNotFoundError:
            raise GcloudError(
                "gcloud is not on the path: install it (https://cloud.google.com/sdk/docs/install), or use "
                "--dry_run, which does not need it"
            ) from None
        if status:
            short = shlex.join(word for word in command if not word.startswith("--command="))
            raise GcloudError(f"{short} ended with status {status}; its message is above")


def check_training(arguments: Sequence[str]) -> None:
    """Checks the flags of ``run`` here, as the workers will read them.

    Raises:
      ConfigError: a flag, the config or the sweep is invalid, or the run folder would not outlive an install.
    """
    remote_runs.read_environment(FLAGS.env)
    run = read_run(arguments)
    remote_runs.check_config_file(run)
    if not posixpath.isabs(run.workdir):
        raise ConfigError(
            f"--workdir={run.workdir} must be an absolute path on the workers, such as "
            f"{FLAGS.mount_path}/run: a relative one lies in the checkout, which the next install deletes"
        )
    if FLAGS.sweep:
        read_members(run)


def launch(step: str, arguments: Sequence[str]) -> None:
    """Executes one step.

    Args:
      step: one of ``STEPS``.
      arguments: flags of ``transformer_jax.train``; only the step ``run`` accepts any.

    Raises:
      ConfigError: a flag is invalid; nothing was done.
      GcloudError: a command failed.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", FLAGS.name):
        raise ConfigError(
            f"--name={FLAGS.name} is not a valid name of a TPU: use up to 63 lower-case letters, digits and "
            "hyphens, beginning with a letter and not ending with a hyphen"
        )
    if step != "run" and arguments:
        raise ConfigError(f"the step {step} does not accept {' '.join(arguments)}: --help lists its flags")
    if step == "install":
        with tempfile.TemporaryDirectory() as folder:
            archive = f"{folder}/{ARCHIVE}"
            count = pack_checkout(archive)
            say(f"# packed the {count} files of the checkout into {archive}")
            execute(install_commands(archive))
    elif step == "run":
        check_training(arguments)
        now = datetime.datetime.now(datetime.UTC)
        execute(run_commands(arguments, f"{now:%Y-%m-%d_%H-%M-%S}"))
    else:
        execute(COMMANDS[step]())
    if step == "create" and FLAGS.queued and not FLAGS.dry_run:
        state = gcloud("queued-resources", "describe", FLAGS.name, "--format=value(state.state)")
        say(f"run the step install when this command prints ACTIVE:\n  {shlex.join(state)}")


COMMANDS: Mapping[str, Callable[[], list[list[str]]]] = {
    "create": create_commands,
    "follow": follow_commands,
    "stop": stop_commands,
    "delete": delete_commands,
}


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of this program."""
    string = functools.partial(flags.DEFINE_string, flag_values=flag_values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=flag_values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=flag_values)
    string("name", None, "Name of the TPU VM.", required=True)
    string("zone", None, "Zone of Google Cloud, such as us-west4-a.", required=True)
    string("project", "", "Project of Google Cloud. Default: gcloud's current one.")
    boolean("dry_run", False, "Print the commands and run none.")
    boolean("internal_ips", False, "Create and reach the VM without external IP addresses.")
    boolean("queued", False, "create, delete: use a request that waits in the queue for a TPU.")
    string("topology", "", "create: the TPU slice, such as v5e:4x4, v4:2x2x2 or v6e:16x16.")
    boolean("spot", False, "create: a Spot VM, which is cheaper and may be preempted at any time.")
    string("runtime_version", "", "create: the software image. Default: the one for JAX.")
    string("network", "", "create: the network, if not the default one.")
    string("subnetwork", "", "create: the subnetwork, if not the default one.")
    string("service_account", "", "create: address of a service account with access to the bucket.")
    string("bucket", "", "install: Cloud Storage bucket to mount on all workers.")
    string("mount_path", "/mnt/runs", "install: where the bucket is mounted.")
    flags.DEFINE_multi_string(
        "env",
        [],
        "run: environment variable KEY=VALUE of all processes; may be given several times.",
        flag_values=flag_values,
    )
    boolean("sweep", False, "run: train the members of the experiment's sweep(), one after the other.")
    integer("worker", 0, "follow: number of the worker whose output is printed.", lower_bound=0)
    boolean("yes", False, "delete: do not ask for confirmation.")


def main(argv: Sequence[str]) -> None:
    step, *arguments = argv[1:] or [""]
    with reported_errors():
        if step not in STEPS:
            raise ConfigError(f"the first argument must be one of {', '.join(STEPS)}, not {step!r}")
        launch(step, arguments)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_own_flags)
