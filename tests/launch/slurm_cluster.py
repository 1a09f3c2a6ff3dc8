"""A Slurm cluster of one node on this machine, of its own: munge, slurmctld and slurmd of Debian's packages.

Everything it writes is in one folder, it listens on ports that were free, and it goes when the test does.
It needs no Slurm that is set up here, and disturbs none.
"""

import contextlib
import getpass
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
_SECONDS_TO_START = 60

_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
# cred_expire: a job that is requeued waits for its old credential to expire, two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=3
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MailProg=/bin/true
ReturnToService=2
KillWait=60
MinJobAge=600
# Tests are not to depend on how many cores there are.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
# A job of the second may take the node from one of the first, which is given time to save.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=tests Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10
"""


def check_programs() -> None:
    """Raises RuntimeError where Slurm's or munge's programs are missing, with what installs them."""
    missing = [name for name in PROGRAMS if find_program(name) is None]
    if missing:
        raise RuntimeError(
            f"these tests start a Slurm cluster, and {', '.join(missing)} are missing. On Debian or Ubuntu: "
            "apt-get install --no-install-recommends slurm-wlm munge"
        )


def find_program(name: str) -> str | None:
    """Its path; daemons are in folders that a user's PATH may lack."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")


@contextlib.contextmanager
def slurm_cluster(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """Starts a cluster and yields the environment variables with which Slurm's commands find it.

    Args:
      folder: for all that it writes; must exist. Its path should be short, because a socket is in it.

    Raises:
      RuntimeError: a program is missing, or does not start; the message has the end of its log.
    """
    check_programs()
    host = socket.gethostname().split(".")[0]
    ports = free_ports(2)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            host=host,
            user=getpass.getuser(),
            folder=folder,
            controller_port=ports[0],
            node_port=ports[1],
        )
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = {"SLURM_CONF": str(configuration)}
    munge = [f"--{name}={folder}/munge.{end}" for name, end in MUNGE_FILES.items()]
    commands = {
        "munged": ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
        "slurmctld": ["slurmctld", "-D", "-c", "-f", str(configuration)],
        "slurmd": ["slurmd", "-D", "-c", "-f", str(configuration), "-N", host],
    }
    with contextlib.ExitStack() as stack:
        for name, command in commands.items():
            stack.enter_context(_daemon(name, command, folder, environment))
            if name == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), name, folder)
        _wait(lambda: "idle" in _node_state(environment), "slurmctld", folder)
        try:
            yield environment
        finally:
            _end_jobs(environment)


MUNGE_FILES = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


@contextlib.contextmanager
def _daemon(
    name: str, command: list[str], folder: pathlib.Path, environment: Mapping[str, str]
) -> Iterator[None]:
    program = find_program(command[0])
    assert program is not None
    with open(folder / f"{name}.out", "wb") as output:
        process = subprocess.Popen(
            [program, *command[1:]],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=20)


def _end_jobs(environment: Mapping[str, str]) -> None:
    """Ends what is left of jobs, or it would outlive the daemons."""
    _output_of(["scancel", "--signal=KILL", f"--user={getpass.getuser()}"], environment)
    _output_of(["scancel", f"--user={getpass.getuser()}"], environment)
    deadline = time.monotonic() + 20
    while _output_of(["squeue", "--noheader"], environment) and time.monotonic() < deadline:
        time.sleep(0.2)


def _node_state(environment: Mapping[str, str]) -> str:
    return _output_of(["sinfo", "--noheader", "--format=%T"], environment)


def _output_of(command: list[str], environment: Mapping[str, str]) -> str:
    result = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.stdout


def _wait(condition: Callable[[], object], name: str, folder: pathlib.Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while not condition():
        if time.monotonic() > deadline:
            logs = [path for path in folder.iterdir() if path.suffix in (".out", ".log")]
            ends = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-2000:]}" for path in logs)
            raise RuntimeError(f"{name} did not start within {_SECONDS_TO_START} s:\n{ends}")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
