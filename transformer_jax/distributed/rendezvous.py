"""Where the processes of a run meet before JAX connects them: who is there, and whether all run the same.

JAX waits for every process and then aborts without saying which of them did not come; and processes that
differ in their config or code fail much later, or never. So each first tells the first one what it is, at the
address where JAX will connect them, and is told whether to go on.
"""

import dataclasses
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

_RETRY_SECONDS = 0.2
_REPLY_SECONDS = 10.0  # for the verdict, beyond the time that the first process waits


class ProcessError(RuntimeError):
    """A process of the run did not come, is not like the others, failed, or has died."""


@dataclasses.dataclass(frozen=True)
class Participant:
    """What a process tells of itself: its number, its host, and the facts that all must share."""

    number: int
    host: str
    facts: Mapping[str, str]


def meet(
    address: str, count: int, participant: Participant, timeout: float, listen_on: str = ""
) -> tuple[str, ...]:
    """Waits for all processes, and compares their facts.

    Args:
      address: ``host:port`` of the first process, where it listens until all have come.
      count: processes of the run.
      participant: this one.
      timeout: seconds to wait for all of them.
      listen_on: an address of the first process's host; by default all that it has.

    Returns:
      The hosts of the processes, in their order.

    Raises:
      ProcessError: some did not come in time or differ in a fact; the message names them. Every process
        that can be reached has the same error.
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
    """What the first process does: waits, judges, and tells all that came."""
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
            if other is None:  # somebody else, as a port scanner
                connection.close()
                continue
            connections.append(connection)
            if other.number in found or not 0 < other.number < count:
                error = (
                    f"process {other.number} of {count} came from {other.host}, and so did one from "
                    f"{found.get(other.number, own).host}: each needs a JAX_PROCESS_ID of its own, from 0 to "
                    f"{count - 1}"
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
    """What every other process does: reports, and waits for the verdict."""
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
        except OSError as error:  # not there yet, or no longer
            reason = error
        else:
            reason = ConnectionError("the connection was closed")
        if time.monotonic() > deadline:
            raise ProcessError(
                f"process {own.number} of {count}, on {own.host}, could not reach process 0 at {host}:{port} "
                f"within {timeout:g} s ({reason}): see its output, and whether a firewall is in between"
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
        f"process(es) {missing} of {count} did not come within {timeout:g} s; those that did: {there}. See "
        "what the missing ones print, or wait longer with --start_timeout"
    )


def _what_differs(participants: list[Participant]) -> str:
    """One line for each fact in which processes differ from the first; empty where there is none."""
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
    return "the processes of this run are not alike:\n" + "\n".join(lines)
