"""Runs groups of processes on this machine: starts them, forwards their output, and ends them together.

A group is one run: several processes with the same program. If one fails, the others are ended. Output is
forwarded line by line, with the number of the process as a prefix. At the end, the last lines of the process
that failed first are shown again. Groups run one after another, or several at the same time.
"""

import collections
import contextlib
import dataclasses
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, cast

from transformer_jax.distributed.stopping import signals_handled_by

# Each process starts with this code: on Linux it asks to be killed when its parent dies, and then executes
# the program. A function between fork and exec (preexec_fn) is not safe here, because JAX starts threads.
_GUARD = """
import os, signal, sys
parent, *program = sys.argv[1:]
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(parent):
    sys.exit("error: the process that started this one has ended")
try:
    os.execvp(program[0], program)
except OSError as error:
    sys.exit(f"error: {program[0]} cannot be started: {error.strerror}")
"""
_COMPLAINTS = (b"Traceback (most recent call last)", b"error: ")
_KEPT_LINES, _SHOWN_LINES = 200, 20
_SECONDS_TO_DRAIN = 5.0  # wait for the output of an ended process, whose children may keep it open


@dataclasses.dataclass(frozen=True)
class GroupSettings:
    """Describes the processes of one run."""

    command: Sequence[str]
    environments: Callable[[], Sequence[Mapping[str, str]]]  # called at the start; one per process
    label: str = ""  # precedes the number of the process in the prefix of each line
    log: str | None = None  # a file to which the output is appended too


class _Output:
    """Writes lines from many threads without mixing them."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._wake = wake
        self.is_closed = False  # True after the reader of the pipe has closed it

    def write(self, stream: Any, prefix: bytes, line: bytes, log: IO[bytes] | None) -> None:
        text = prefix + line if line.endswith(b"\n") else prefix + line + b"\n"
        with self._lock:
            if log is not None:
                log.write(text)
            if self.is_closed:
                return
            try:
                stream.flush()
                stream.buffer.write(text)
                stream.buffer.flush()
            except BrokenPipeError:
                self.is_closed = True
                # Otherwise Python tries at its end to write what is left, fails, and exits with status 120.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if self.is_closed:
            self._wake()

    def say(self, text: str, log: IO[bytes] | None = None) -> None:
        for line in text.splitlines():
            self.write(sys.stderr, b"", line.encode(), log)


class _Process:
    """One process, the threads that forward its output, and the thread that waits for its end."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        prefix: str,
        output: _Output,
        log: IO[bytes] | None,
        wake: Callable[[], None],
    ) -> None:
        self.prefix = prefix.encode()
        self.returncode: int | None = None
        self.ended_at = self.complained_at = float("inf")
        self.signals: list[int] = []  # all signals sent to the process
        self.last_lines: collections.deque[bytes] = collections.deque(maxlen=_KEPT_LINES)
        self._output, self._log, self._wake = output, log, wake
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C reaches only the launcher, which forwards it
        )
        streams = ((self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in streams]
        for thread in [*self._readers, threading.Thread(target=self._wait, daemon=True)]:
            thread.start()

    def _read(self, source: IO[bytes], stream: Any) -> None:
        for line in iter(source.readline, b""):
            if stream is sys.stderr:
                if line.startswith(_COMPLAINTS):
                    self.complained_at = time.monotonic()
                self.last_lines.append(line)
            self._output.write(stream, self.prefix, line, self._log)
        source.close()
        self._wake()

    def _wait(self) -> None:
        returncode = self._process.wait()
        self.ended_at = time.monotonic()
        self.returncode = returncode
        self._wake()

    def is_drained(self, now: float) -> bool:
        """Returns whether the process has ended and its output was forwarded or the time for this is over."""
        if self.returncode is None:
            return False
        return not any(thread.is_alive() for thread in self._readers) or now >= self.drained_by

    @property
    def drained_by(self) -> float:
        return self.ended_at + _SECONDS_TO_DRAIN

    def send(self, number: int) -> None:
        """Sends a signal to the process; SIGKILL is sent to its child processes too."""
        if self.returncode is None:
            self.signals.append(number)
            self._process.send_signal(number)
        if number == signal.SIGKILL and self._holds_output():
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, number)

    def _holds_output(self) -> bool:
        return self.returncode is None or any(thread.is_alive() for thread in self._readers)

    @property
    def failed(self) -> bool:
        """Whether it failed by itself, or was ended after it had printed an error."""
        return bool(self.returncode) and (not self.was_ended or self.complained_at < self.ended_at)

    @property
    def was_ended(self) -> bool:
        """Whether it died of a signal that ``send`` sent."""
        return self.returncode is not None and -self.returncode in self.signals

    @property
    def failed_at(self) -> float:
        return min(self.complained_at, self.ended_at)


class _Group:
    """The running processes of one run."""

    def __init__(
        self,
        settings: GroupSettings,
        output: _Output,
        wake: Callable[[], None],
        stop_timeout: float,
        grace: float,
    ) -> None:
        self._output, self._stop_timeout, self._grace = output, stop_timeout, grace
        self._terminate_at = self._kill_at = float("inf")
        self.log: IO[bytes] | None = None
        if settings.log:
            self.log = open(settings.log, "ab", buffering=0)  # noqa: SIM115  # it outlives this function
        environments = settings.environments()
        self.processes: list[_Process] = []
        width = len(str(len(environments) - 1))
        try:
            for rank, environment in enumerate(environments):
                name = f"{rank:>{width}}" if len(environments) > 1 or not settings.label else ""
                prefix = f"[{' '.join(filter(None, (settings.label, name)))}] "
                self.processes.append(_Process(settings.command, environment, prefix, output, self.log, wake))
        except BaseException:
            self.kill()
            raise

    def terminate(self) -> None:
        """Sends SIGTERM to all processes; further calls have no effect."""
        if self._kill_at == float("inf"):
            self._terminate_at, self._kill_at = float("-inf"), time.monotonic() + self._stop_timeout
            for process in self.processes:
                process.send(signal.SIGTERM)

    def kill(self) -> None:
        self._kill_at = float("-inf")
        for process in self.processes:
            process.send(signal.SIGKILL)

    def look(self, now: float) -> bool:
        """Sends the signals that are due, and returns whether all processes have ended."""
        if any(process.returncode for process in self.processes) and self._terminate_at == float("inf"):
            self._terminate_at = now + self._grace  # gives the others time to print their own error
        if self._terminate_at <= now < self._kill_at:
            self.terminate()
        left = [process for process in self.processes if process.returncode is None]
        if left and self._kill_at <= now and self._kill_at > float("-inf"):
            numbers = ", ".join(process.prefix.decode().strip() for process in left)
            self._output.say(
                f"{numbers} did not end within {self._stop_timeout:g} s of SIGTERM and was killed", self.log
            )
            self.kill()
        return all(process.is_drained(now) for process in self.processes)

    def next_look(self) -> float:
        """Returns the time at which ``look`` must be called again if no event comes before."""
        times = [self._terminate_at if self._kill_at == float("inf") else self._kill_at]
        times += [process.drained_by for process in self.processes]
        return min(time for time in times if time > float("-inf"))

    def finish(self) -> int:
        """Reports a failure, if any, and returns the exit status of the group."""
        for process in self.processes:
            process.send(signal.SIGKILL)  # ends child processes that still hold its output
        bad = sorted((p for p in self.processes if p.failed), key=lambda process: process.failed_at)
        if not bad:
            bad = [process for process in self.processes if process.returncode]
        status = 0
        if bad:
            first = bad[0]
            code = cast(int, first.returncode)
            if first.failed and first.was_ended:
                code = 1
            status = code if code > 0 else 128 - code
            if first.failed and len(self.processes) > 1:
                self._show(first, code)
        if self.log is not None:
            self.log.close()
        return status

    def _show(self, process: _Process, code: int) -> None:
        name = process.prefix.decode().strip()
        how = f"with exit status {code}" if code > 0 else f"by {signal.Signals(-code).name}"
        lines = list(process.last_lines)
        starts = [number for number, line in enumerate(lines) if line.startswith(_COMPLAINTS)]
        shown = lines[starts[0] :] if starts else lines[-_SHOWN_LINES:]
        last = "; its last output was:" if shown else "; it printed nothing to standard error"
        self._output.say(f"\n{name} failed first, {how}, and the others were ended{last}", self.log)
        for line in shown:
            self._output.write(sys.stderr, process.prefix, line, self.log)


def run_groups(
    groups: Sequence[GroupSettings],
    *,
    parallel: int = 1,
    stop_timeout: float = 60.0,
    grace: float = 1.0,
    on_start: Callable[[int], None] = lambda number: None,
    on_end: Callable[[int, int], None] = lambda number, status: None,
) -> list[int | None]:
    """Runs groups of processes until they end.

    The first SIGINT or SIGTERM is forwarded to all processes as SIGTERM; a second SIGINT kills them. It must
    be called in the main thread.

    Args:
      groups: the groups, in the order in which they are started.
      parallel: the number of groups that run at the same time.
      stop_timeout: seconds from SIGTERM until processes that have not ended are killed.
      grace: seconds from the first failure in a group until the others receive SIGTERM. In this time they
        can print their own errors.
      on_start: called with the index of a group before it is started.
      on_end: called with the index of a group and its exit status.

    Returns:
      The exit status of each group: that of the process that failed first, or 128 plus the number of the
      signal that killed it; None for a group that was not started because of a signal.
    """
    # The put of a SimpleQueue is reentrant, so that a signal handler may call it.
    events: queue.SimpleQueue[None] = queue.SimpleQueue()

    def wake() -> None:
        events.put(None)

    output = _Output(wake)
    statuses: list[int | None] = [None] * len(groups)
    waiting = collections.deque(enumerate(groups))
    running: dict[int, _Group] = {}
    is_stopping = False
    with _noted_signals(wake) as received:
        try:
            while running or (waiting and not is_stopping):
                while waiting and len(running) < parallel and not is_stopping:
                    number, settings = waiting.popleft()
                    on_start(number)
                    running[number] = _Group(settings, output, wake, stop_timeout, grace)
                next_look = min(group.next_look() for group in running.values())
                with contextlib.suppress(queue.Empty):
                    # The timeout is bounded, because a signal handler cannot interrupt every kind of wait.
                    events.get(timeout=min(max(next_look - time.monotonic(), 0.0), 60.0))
                if (received or output.is_closed) and not is_stopping:
                    is_stopping = True
                    for group in running.values():
                        group.terminate()
                if received[1:].count(signal.SIGINT):
                    for group in running.values():
                        group.kill()
                for number, group in list(running.items()):
                    if group.look(time.monotonic()):
                        statuses[number] = group.finish()
                        del running[number]
                        on_end(number, cast(int, statuses[number]))
        finally:
            for group in running.values():
                group.kill()
    return statuses


@contextlib.contextmanager
def _noted_signals(wake: Callable[[], None]) -> Iterator[list[int]]:
    """Yields a list that receives the numbers of SIGINT and SIGTERM as they arrive."""
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        received.append(number)
        wake()

    with signals_handled_by(handle):
        yield received
