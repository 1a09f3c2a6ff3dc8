"""Checks, before JAX connects the processes of a run, that all are present and run the same experiment.

If a process is missing, JAX times out without naming it, and processes with different configs or code fail
much later or not at all. Therefore every process first sends its host, config and versions to process 0, at
the address where JAX will connect them later, and process 0 replies with the hosts or an error.
"""

import dataclasses
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

_RETRY_SECONDS = 0.2
_REPLY_SECONDS = 10.0  # time for the reply, in addition to the time that process 0 waits


class ProcessError(RuntimeError):
    """A process of the run did not connect, differs from the others, failed, or died."""


@dataclasses.dataclass(frozen=True)
class Participant:
    """Describes one process: its number, its host, and the facts that must be equal in all processes."""

    number: int
    host: str
    facts: Mapping[str, str]


def meet(
    address: str, count: int, participant: Participant, timeout: float, listen_on: str = ""
) -> tuple[str, ...]:
    """Waits for all processes, and compares their facts.

    Args:
      address: ``host:port`` of process 0, where it listens until all have connected.
      count: the number of processes of the run.
      participant: this process.
      timeout: seconds to wait for all processes.
      listen_on: the address of its host on which process 0 listens; by default all addresses.

    Returns:
      The hosts of the processes, in the order of the processes.

    Raises:
      ProcessError: some processes did not connect in time or differ in a fact; the message names them. Every
        process that can be reached raises the same error.
    """
    host, port = address.rsplit(":", 1)
    if participant.number == 0:
        verdict = _receive((listen_on, int(port)), count, participant, timeout)
    else:
        verdict = _tell(host, int(port), count, participant, timeout)
    if verdict["error"]:
        raise ProcessError(verdict["error"])
    return tuple(verdict["hosts"])


def _receive(place: tuple[str, int], count: int, own: Participant, timeout: float) -> dict[str, Any]:
    """Waits for the other processes, compares them and sends the result to all; called in process 0."""
    deadline = time.monotonic() + timeout
    found = {0: own}
    connections: list[socket.socket] = []
    error = ""
    with socket.create_server(place, backlog=count) as server:
        while len(found) < count and not error:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                error = _who_is_missing(found, count, timeout)
                break
            other = _read_participant(connection)
            if other is None:  # not a process of a run; perhaps a port scanner
                connection.close()
                continue
            connections.append(connection)
            if other.number in found or not 0 < other.number < count:
                error = (
                    f"JAX_PROCESS_ID={other.number} was given to a process on {other.host} and to one on "
                    f"{found.get(other.number, own).host}; each of the {count} processes needs a different "
                    f"number from 0 to {count - 1}"
                )
            found[other.number] = other
        error = error or _what_differs([found[number] for number in sorted(found)])
        hosts = [found[number].host for number in sorted(found)]
        verdict = {"error": error, "hosts": hosts}
        for connection in connections:
            with connection:
                connection.sendall(json.dumps(verdict).encode() + b"\n")
    return verdict


def _tell(host: str, port: int, count: int, own: Participant, timeout: float) -> dict[str, Any]:
    """Sends this process's facts to process 0 and returns its reply; called in all other processes."""
    deadline = time.monotonic() + timeout
    message = json.dumps(dataclasses.asdict(own)).encode() + b"\n"
    while True:
        try:
            with socket.create_connection(
                (host, port), timeout=max(deadline - time.monotonic(), 0.01)
            ) as there:
                there.sendall(message)
                there.settimeout(max(deadline - time.monotonic(), 0.01) + _REPLY_SECONDS)
                line = there.makefile("rb").readline()
                if line:
                    return json.loads(line)
        except OSError as error:  # process 0 does not listen yet, or no longer
            reason = error
        else:
            reason = ConnectionError("the connection was closed")
        if time.monotonic() > deadline:
            raise ProcessError(
                f"process {own.number} of {count}, on {own.host}, could not reach process 0 at {host}:{port} "
                f"within {timeout:g} s ({reason}); check the output of process 0, and whether a firewall "
                "blocks the port"
            )
        time.sleep(_RETRY_SECONDS)


def _read_participant(connection: socket.socket) -> Participant | None:
    try:
        connection.settimeout(_REPLY_SECONDS)
        content = json.loads(connection.makefile("rb").readline())
        return Participant(int(content["number"]), str(content["host"]), dict(content["facts"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _who_is_missing(found: Mapping[int, Participant], count: int, timeout: float) -> str:
    missing = ", ".join(str(number) for number in range(count) if number not in found)
    there = ", ".join(f"{number} on {found[number].host}" for number in sorted(found))
    return (
        f"process(es) {missing} of {count} did not connect within {timeout:g} s; connected: {there}. Check "
        "the output of the missing ones, or wait longer with --start_timeout"
    )


def _what_differs(participants: list[Participant]) -> str:
    """Returns an error that lists the facts in which processes differ from process 0, or an empty string."""
    first = participants[0]
    lines = []
    for name in dict.fromkeys(name for each in participants for name in each.facts):
        for other in participants[1:]:
            here, there = (each.facts.get(name, "nothing") for each in (first, other))
            if here != there:
                lines.append(
                    f"  {name}: {here!r} in process 0 on {first.host}, {there!r} in process {other.number} "
                    f"on {other.host}"
                )
    if not lines:
        return ""
    return (
        "the processes of this run differ; start all with the same flags, code and versions:\n"
        + "\n".join(lines)
    )
