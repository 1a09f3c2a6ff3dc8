"""Processes that meet: real sockets, a thread for each."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from transformer_jax.distributed.processes import Place, find_place
from transformer_jax.distributed.rendezvous import Participant, ProcessError, meet

SAME = {"config.model.d_model": "512", "jax": "0.10.2"}


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def outcomes(port, participants, count=None, timeout=5.0):
    """What each of them gets: the hosts, or the text of its error."""

    def run(participant):
        try:
            return meet(f"127.0.0.1:{port}", count or len(participants), participant, timeout)
        except ProcessError as error:
            return str(error)

    with ThreadPoolExecutor(len(participants)) as pool:
        return list(pool.map(run, participants))


def test_all_learn_the_hosts_in_order(port):
    participants = [Participant(number, f"host{number}", SAME) for number in (2, 0, 1)]
    assert outcomes(port, participants) == [("host0", "host1", "host2")] * 3


def test_those_who_do_not_come_are_named_to_those_who_do(port):
    participants = [Participant(0, "a", SAME), Participant(2, "c", SAME)]
    found = outcomes(port, participants, count=4, timeout=0.5)
    text = "process(es) 1, 3 of 4 did not connect within 0.5 s; connected: 0 on a, 2 on c."
    assert all(each.startswith(text) for each in found), found


def test_the_first_that_does_not_come_is_named(port):
    (found,) = outcomes(port, [Participant(1, "b", SAME)], count=2, timeout=0.5)
    assert f"process 1 of 2, on b, could not reach process 0 at 127.0.0.1:{port} within 0.5 s" in found


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"jax": "0.9.0"}, "jax: '0.10.2' in process 0 on a, '0.9.0' in process 1 on b"),
        (
            {"config.model.d_model": "1024"},
            "config.model.d_model: '512' in process 0 on a, '1024' in process 1",
        ),
        ({"config.train.seed": "1"}, "config.train.seed: 'nothing' in process 0 on a, '1' in process 1 on b"),
    ],
)
def test_what_differs_is_named_to_all(port, facts, text):
    participants = [Participant(0, "a", SAME), Participant(1, "b", SAME | facts), Participant(2, "c", SAME)]
    found = outcomes(port, participants)
    assert len(set(found)) == 1 and text in found[0] and "process 2" not in found[0]


def test_two_of_one_number_are_refused(port):
    participants = [Participant(number, host, SAME) for number, host in ((0, "a"), (1, "b"), (1, "c"))]
    found = outcomes(port, participants, count=4)
    assert (
        "JAX_PROCESS_ID=1 was given to a process on" in found[0]
        and "different number from 0 to 3" in found[0]
    )


def test_strangers_are_ignored(port):
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(outcomes, port, [Participant(0, "a", SAME)], 2)
        for message in (b"GET / HTTP/1.1\r\n\r\n", json.dumps({"number": 1}).encode() + b"\n"):
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                        stranger.sendall(message)
                    break
                except ConnectionRefusedError:
                    pass
        second = pool.submit(outcomes, port, [Participant(1, "b", SAME)], 2)
        assert first.result() == second.result() == [("a", "b")]


LAUNCHED = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


def test_a_process_finds_its_place():
    assert find_place(LAUNCHED) == Place("a:1", 2, 1)
    assert find_place({}) is None
    assert find_place({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # a batch script's own process
    assert find_place({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_an_incomplete_or_impossible_place_is_refused():
    for name in LAUNCHED:
        with pytest.raises(ProcessError, match=f"{name} is not; set all three or none"):
            find_place({key: value for key, value in LAUNCHED.items() if key != name})
    for change in ({"JAX_PROCESS_ID": "2"}, {"JAX_NUM_PROCESSES": "two"}, {"JAX_COORDINATOR_ADDRESS": "a"}):
        with pytest.raises(ProcessError, match="must be host:port"):
            find_place(LAUNCHED | change)
