"""Connects the processes of a run, watches them, and exchanges values between them.

A launcher gives each process the address of process 0, the number of processes and its own number in
``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. Slurm gives the same to the tasks
of a step. On Cloud TPUs, on GKE and under MPI, JAX can detect them if requested.

If a process does not connect, differs from the others, fails or dies, all processes end in bounded time with
an error that names that process and its host.
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
_DONE = "done"  # the last heartbeat of a process that ends successfully


class Place(NamedTuple):
    """The address of process 0, the number of processes, and the number of this process."""

    address: str
    count: int
    number: int


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Returns the place that a launcher or Slurm set in the environment; None for a single process.

    Raises:
      ProcessError: the variables of a launcher are incomplete or malformed.
    """
    given = {name: environment[name] for name in VARIABLES if environment.get(name)}
    if given and len(given) < len(VARIABLES):
        missing = ", ".join(name for name in VARIABLES if name not in given)
        raise ProcessError(f"{', '.join(given)} is set, but {missing} is not; set all three or none")
    if given:
        address, count, number = (given[name] for name in VARIABLES)
        if not (count.isdigit() and number.isdigit() and int(number) < int(count) and ":" in address):
            raise ProcessError(
                f"JAX_COORDINATOR_ADDRESS={address!r} must be host:port, and JAX_PROCESS_ID={number!r} a "
                f"number from 0 to JAX_NUM_PROCESSES={count!r} - 1"
            )
        return Place(address, int(count), int(number))
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    # SLURM_NTASKS is also set in a batch script, where a program started without srun is a single process.
    if tasks != "1" and "SLURM_PROCID" in environment:
        return Place(_slurm_address(environment), int(tasks), int(environment["SLURM_PROCID"]))
    return None


def _slurm_address(environment: Mapping[str, str]) -> str:
    """Returns the first node of the step, with a port derived from the job id."""
    nodes = environment["SLURM_STEP_NODELIST"]
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise ProcessError(
            f"`scontrol show hostnames {nodes}` failed, so the address of process 0 is unknown: {error}; set "
            f"{', '.join(VARIABLES)} instead"
        ) from error
    # A port in the dynamic range; JAX itself chooses its port in the same way under Slurm.
    return f"{names[0]}:{61440 + int(environment['SLURM_JOB_ID']) % 4096}"


def connect(
    facts: Mapping[str, str],
    *,
    start_timeout: float = 300,
    heartbeat_timeout: float = 60,
    detect: bool = False,
) -> bool:
    """Connects this process to the others of its run, if there are any.

    It must be called before the first use of a JAX device.

    Args:
      facts: values, by name, that must be equal in all processes. The versions of libraries and a hash of the
        code of this library are added.
      start_timeout: seconds to wait for all processes.
      heartbeat_timeout: seconds without a heartbeat after which a process is considered dead.
      detect: let JAX detect the processes if the environment does not define them.

    Returns:
      Whether there are several processes.

    Raises:
      ProcessError: some processes did not connect in time or differ from the others.
    """
    place = find_place(os.environ)
    if place is None and not detect:
        return False
    # JAX's own watchdog aborts without naming a host. Its timeouts are longer, so that ours reports first.
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
    """Returns the values that all processes pass for ``name``, in the order of the processes.

    Args:
      name: identifies the exchange; each name can be used only once.
      value: a value that JSON can represent.

    Raises:
      ProcessError: some processes did not pass a value within ``start_timeout`` of ``connect``; the message
        names them.
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
        raise ProcessError(
            f"{names} did not reach the exchange of {name!r} within {timeout:g} s; check the output of these "
            "processes, or wait longer with --start_timeout"
        )
    return found


def check_alike(name: str, value: str) -> None:
    """Raises ProcessError if processes pass different values; the message names them and their values."""
    first, *others = gather(name, value)
    differing = [
        f"{other!r} in {_watch.name(number)}" for number, other in enumerate(others, 1) if other != first
    ]
    if differing:
        raise ProcessError(
            f"{name} is {first!r} in {_watch.name(0)}, but {', '.join(differing)}; it must be the same in all"
        )


def check_shared(folder: str) -> None:
    """Raises ProcessError, with their names, if some processes do not see the same folder as process 0."""
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
            f"{folder} is not the same folder in {', '.join(others)} as in {_watch.name(0)}; choose a "
            "--workdir on a file system that all hosts share"
        )


@contextlib.contextmanager
def failures_end_all(of_users: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Ends all processes of the run if an exception is raised inside the context in this one.

    Every process prints a line that names the process that failed. Without this context, the other processes
    would wait in a collective, and the failing one would wait for them to disconnect, until the heartbeat
    timeout. It has no effect in a run with a single process.

    Args:
      of_users: exceptions that are reported by their message alone, without a traceback.
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
            # A collective fails if another process has died; the watch thread will report which one.
            _watch.wait_for_its_word()
        _watch.tell(text)
        _leave()


def _leave() -> None:
    """Ends this process at once, even if its threads wait in a collective."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class _Watch:
    """Runs a thread in every process that sends heartbeats and checks for failures and missing heartbeats."""

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
            # JAX's own exit handler closes the key-value store, which the thread must not use after that.
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
        """Waits until the watch thread has had time to detect a dead process, which ends this process too."""
        sys.stderr.flush()
        time.sleep(self._timeout + 5 * _POLL_SECONDS)

    def tell(self, text: str) -> None:
        """Publishes a failure of this process, which ends all processes."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(f"{_PREFIX}failed/{jax.process_index()}", text)
            if jax.process_index() == 0:  # the store ends with process 0, so the others need time to read it
                time.sleep(3 * _POLL_SECONDS)

    def _run(self) -> None:
        client, own = _client(), jax.process_index()
        seen: dict[int, tuple[str, float]] = {}  # process -> its latest heartbeat and the time of arrival
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
                    self._end(f"{self.name(0)} could not be reached for {self._timeout:g} s ({error})")
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
                    text = f"{self.name(number)} or its host died: no heartbeat for {self._timeout:g} s"
                    self.tell(text)
                    self._end(text)

    def _end(self, text: str) -> None:
        with self._lock:
            sys.stderr.write(
                f"\nerror: {text}. The last checkpoint is complete; start all processes again to continue\n"
            )
            _leave()


_watch = _Watch()


# JAX has no public API for this; the private name is the same in all supported versions.


def _client() -> Any:
    """Returns the client of the key-value store of JAX's coordination service, which all processes share."""
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None  # there are several processes
    return client
