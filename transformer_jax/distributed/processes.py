"""One run in several processes: how they find and watch one another, and agree.

A launcher tells each process where the first one is, how many there are and which it is, in
``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``; Slurm tells the same of the tasks
of a step. Where neither does, JAX can find out on Cloud TPUs, on GKE and under MPI, if asked to.

A process that does not come, differs from the others, fails or dies ends all of them, in bounded time, with
an error that names it and its host.
"""

import atexit
import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from transformer_jax.distributed.rendezvous import Participant, ProcessError, meet
from transformer_jax.reporting.progress import say

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_POLL_SECONDS = 1.0
_PREFIX = "transformer_jax/"
_DONE = "done"  # the last sign of life of a process that ends well


class Place(NamedTuple):
    """Which of the processes of a run this is, and where the first one is to be met."""

    address: str
    count: int
    number: int


def find_place(environment: Mapping[str, str]) -> Place | None:
    """What a launcher or Slurm says in the environment; None for a process that is alone.

    Raises:
      ProcessError: a launcher's variables are incomplete, or no numbers.
    """
    given = {name: environment[name] for name in VARIABLES if environment.get(name)}
    if given and len(given) < len(VARIABLES):
        missing = ", ".join(name for name in VARIABLES if name not in given)
        raise ProcessError(f"{', '.join(given)} is set, but {missing} is not: set all three, or none")
    if given:
        address, count, number = (given[name] for name in VARIABLES)
        if not (count.isdigit() and number.isdigit() and int(number) < int(count) and ":" in address):
            raise ProcessError(
                f"JAX_COORDINATOR_ADDRESS={address!r} must be host:port, and JAX_PROCESS_ID={number!r} a "
                f"number from 0 to JAX_NUM_PROCESSES={count!r} - 1"
            )
        return Place(address, int(count), int(number))
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    # Not SLURM_NTASKS, which a batch script has as well: a program that it starts without srun is alone.
    if tasks != "1" and "SLURM_PROCID" in environment:
        return Place(_slurm_address(environment), int(tasks), int(environment["SLURM_PROCID"]))
    return None


def _slurm_address(environment: Mapping[str, str]) -> str:
    """The first node of the step, and a port that is the job's own."""
    nodes = environment["SLURM_STEP_NODELIST"]
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise ProcessError(f"scontrol cannot tell the nodes of {nodes!r}: {error}") from error
    # In the range of ports that are handed out to anyone, as JAX itself chooses under Slurm.
    return f"{names[0]}:{61440 + int(environment['SLURM_JOB_ID']) % 4096}"


def connect(
    facts: Mapping[str, str],
    *,
    start_timeout: float = 300,
    heartbeat_timeout: float = 60,
    detect: bool = False,
) -> bool:
    """Makes this one of the processes of a run, if it is; before the first use of a JAX device.

    Args:
      facts: what all processes must share, by name; versions and code of the library are added.
      start_timeout: seconds to wait for all processes.
      heartbeat_timeout: seconds without a sign after which a process is taken for dead.
      detect: let JAX find out where nothing in the environment says it.

    Returns:
      Whether there are several processes.

    Raises:
      ProcessError: some did not come in time, or are not like the others.
    """
    place = find_place(os.environ)
    if place is None and not detect:
        return False
    # JAX's own watch aborts the process without the name of a host, so ours is to come first.
    options: dict[str, Any] = dict(
        initialization_timeout=int(start_timeout) + 30,
        heartbeat_timeout_seconds=int(3 * heartbeat_timeout) + 30,
    )
    if place is None:
        jax.distributed.initialize(**options)
        hosts = tuple(gather("host", socket.gethostname()))
    else:
        own = Participant(place.number, socket.gethostname(), dict(facts) | _own_facts())
        listen_on = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", ":").rsplit(":", 1)[0].strip("[]")
        hosts = meet(place.address, place.count, own, start_timeout, "" if listen_on == "::" else listen_on)
        jax.distributed.initialize(place.address, place.count, place.number, **options)
    if jax.process_index() == 0:
        counted = {host: hosts.count(host) for host in hosts}
        say(f"{len(hosts)} processes: " + ", ".join(f"{count} on {host}" for host, count in counted.items()))
    _watch.start(hosts, start_timeout, heartbeat_timeout)
    return len(hosts) > 1


def _own_facts() -> dict[str, str]:
    """Returns the versions of libraries, and a hash of this library's code."""
    digest = hashlib.sha256()
    library = pathlib.Path(__file__).parents[1]
    for path in sorted(library.rglob("*.py")):
        digest.update(path.relative_to(library).as_posix().encode() + b"\0" + path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        "code of transformer_jax": digest.hexdigest()[:16],
        "Python": platform.python_version(),
        **versions,
    }


def gather(name: str, value: Any) -> list[Any]:
    """The values, JSON ones, that all processes give under a name, which serves once.

    Raises:
      ProcessError: some gave none within the time that ``connect`` waits for processes; it names them.
    """
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    client, timeout = _client(), _watch.start_timeout
    deadline = time.monotonic() + timeout
    client.key_value_set(f"{_PREFIX}{name}/{jax.process_index()}", json.dumps(value))
    found, missing = [], []
    for number in range(jax.process_count()):
        left = max(deadline - time.monotonic(), 0.01)
        try:
            key = f"{_PREFIX}{name}/{number}"
            found.append(json.loads(client.blocking_key_value_get(key, int(1000 * left))))
        except jax.errors.JaxRuntimeError:
            missing.append(number)
    if missing:
        names = ", ".join(_watch.name(number) for number in missing)
        raise ProcessError(f"{names} did not come to the point {name!r} within {timeout:g} s")
    return found


def check_alike(name: str, value: str) -> None:
    """Raises ProcessError, naming them, where processes give other values than the first."""
    first, *others = gather(name, value)
    differing = [
        f"{other!r} in {_watch.name(number)}" for number, other in enumerate(others, 1) if other != first
    ]
    if differing:
        raise ProcessError(f"{name} is {first!r} in {_watch.name(0)}, but {', '.join(differing)}")


def check_shared(folder: str) -> None:
    """Raises ProcessError, naming them, where a folder of the first process is not that of others."""
    if jax.process_count() == 1:
        return
    mark = pathlib.Path(folder) / f".seen-{os.getpid()}-{time.time_ns()}"
    if jax.process_index() == 0:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    name = gather(f"mark in {folder}", mark.name)[0]
    is_seen = gather(f"folder {folder}", mark.with_name(name).exists())
    if jax.process_index() == 0:
        mark.unlink()
    others = [_watch.name(number) for number, seen in enumerate(is_seen) if not seen]
    if others:
        raise ProcessError(
            f"{folder} is another folder in {', '.join(others)} than in {_watch.name(0)}: let --workdir be "
            "on a file system that all hosts share"
        )


@contextlib.contextmanager
def failures_end_all(of_users: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What is raised within it ends all processes of the run, each with a line that says whose it was.

    Without it the others would wait in a collective until the failing one, which would wait for them to say
    goodbye, is taken for dead. A process that is alone is not affected.

    Args:
      of_users: errors whose message says all: of these the process that fails prints one line, too.
    """
    try:
        yield
    except BaseException as error:
        is_success = isinstance(error, SystemExit) and error.code in (None, 0)
        if is_success or jax.process_count() == 1:
            raise
        if isinstance(error, SystemExit):
            text = str(error.code)
            print(text, file=sys.stderr)
        elif isinstance(error, of_users):
            text = str(error)
            print(f"error: {text}", file=sys.stderr)
        else:
            text = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text:
            # A collective fails when another process is gone: which one, the watch will say.
            _watch.wait_for_its_word()
        _watch.tell(text)
        _leave()


def _leave() -> None:
    """Ends this process at once, though its threads may wait for ever in a collective."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class _Watch:
    """A thread in every process that gives signs of life, and looks for failures and for missing signs."""

    def __init__(self) -> None:
        self.start_timeout = 300.0
        self._hosts: tuple[str, ...] = ()
        self._timeout = 0.0
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    def start(self, hosts: tuple[str, ...], start_timeout: float, timeout: float) -> None:
        self._hosts, self.start_timeout, self._timeout = hosts, start_timeout, timeout
        if len(hosts) > 1:
            thread = threading.Thread(target=self._run, name="watch", daemon=True)
            thread.start()
            # Before JAX takes its store away, under the hands of a thread that uses it.
            atexit.register(self._finish, thread)

    def _finish(self, thread: threading.Thread) -> None:
        self._is_over.set()
        thread.join(timeout=5 * _POLL_SECONDS)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(f"{_PREFIX}alive/{jax.process_index()}", _DONE, allow_overwrite=True)

    def name(self, number: int) -> str:
        host = f", on {self._hosts[number]}" if number < len(self._hosts) else ""
        return f"process {number} of {jax.process_count()}{host}"

    def wait_for_its_word(self) -> None:
        """Gives it time to notice that another process has died, and to end this one."""
        sys.stderr.flush()
        time.sleep(self._timeout + 5 * _POLL_SECONDS)

    def tell(self, text: str) -> None:
        """Lets all processes end with a failure of this one."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(f"{_PREFIX}failed/{jax.process_index()}", text)
            if jax.process_index() == 0:  # with it go all who have not read it yet
                time.sleep(3 * _POLL_SECONDS)

    def _run(self) -> None:
        client, own = _client(), jax.process_index()
        seen: dict[int, tuple[str, float]] = {}  # of each process the latest sign, and when it came
        beats, reached = 0, time.monotonic()
        while not self._is_over.wait(_POLL_SECONDS):
            try:
                beats += 1
                client.key_value_set(f"{_PREFIX}alive/{own}", str(beats), allow_overwrite=True)
                failed = client.key_value_dir_get(f"{_PREFIX}failed/")
                signs = client.key_value_dir_get(f"{_PREFIX}alive/") if own == 0 else []
                reached = time.monotonic()
            except jax.errors.JaxRuntimeError as error:
                if time.monotonic() - reached > self._timeout:
                    self._end(f"{self.name(0)} cannot be reached for {self._timeout:g} s ({error})")
                continue
            for key, text in failed:
                number = int(key.rsplit("/", 1)[1])
                if number != own:
                    self._end(f"{self.name(number)} failed: {text}")
            for key, sign in signs:
                number, now = int(key.rsplit("/", 1)[1]), time.monotonic()
                if seen.get(number, ("", 0.0))[0] != sign:
                    seen[number] = (sign, now)
                elif sign != _DONE and now - seen[number][1] > self._timeout:
                    text = (
                        f"{self.name(number)} has given no sign for {self._timeout:g} s: it or its host died"
                    )
                    self.tell(text)
                    self._end(text)

    def _end(self, text: str) -> None:
        with self._lock:
            sys.stderr.write(f"\nerror: {text}. The last checkpoint is whole: start all processes again\n")
            _leave()


_watch = _Watch()


# What has no public name in JAX, and is the same in all versions that are supported.


def _client() -> Any:
    """The store of keys and values that JAX's coordination service keeps for all processes."""
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None  # there are several processes
    return client
