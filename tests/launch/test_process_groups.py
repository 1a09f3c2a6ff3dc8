"""Groups of real processes, small programs in place of training: output, failures, signals, no orphans."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from launch import local
from tests.tiny_training import tiny_experiment
from transformer_jax.launching.run import Run

ROOT = pathlib.Path(__file__).parents[2]

# Runs N processes of a program, as launch/local.py does; arguments: N, seconds to stop in, the program.
LAUNCHER = """
import os, sys
from launch import local
from transformer_jax.distributed.process_groups import GroupSettings, run_groups
count, stop_timeout, program = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
group = GroupSettings(
    [sys.executable, "-c", program], lambda: local.environments(count, None, os.environ, local.free_port())
)
(status,) = run_groups([group], stop_timeout=stop_timeout)
sys.exit(status)
"""
# With PYTHONUNBUFFERED nothing that could not be written is left when a launcher ends.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
# Of every program: its rank, and what it does.
BEGIN = "import os, signal, sys, time\nrank = int(os.environ.get('JAX_PROCESS_ID', 0))\n"


@pytest.fixture
def start():
    """Starts the launcher on a program; kills it, at the end, where it is still there."""
    started = []

    def start_launcher(program: str, count: int = 2, stop_timeout: float = 30.0) -> subprocess.Popen[str]:
        whole = BEGIN + textwrap.dedent(program)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, str(count), str(stop_timeout), whole],
                env=BUFFERED | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start_launcher
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def wait_for(path: pathlib.Path) -> str:
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)
    return path.read_text()


def is_alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_lines_of_both_streams_come_whole_behind_the_number_of_their_process(capfdbinary, tmp_path):
    program = BEGIN + textwrap.dedent(
        """
        for number in range(200):
            print("out", rank, number, "x" * 500)
            print("err", rank, number, file=sys.stderr)
        sys.stdout.write(f"no end {rank}")
        sys.stderr.buffer.write(b"\\xff\\r" + str(rank).encode())
        """
    )
    run = Run(str(tmp_path), (), tiny_experiment(tmp_path), "tiny.py", {})
    command = [sys.executable, "-c", program]
    assert local.launch([run], [""], num_processes=3, command=lambda run: command) == [0]
    out, err = capfdbinary.readouterr()
    for rank in range(3):
        start = f"[{rank}] ".encode()
        lines = [line for line in out.split(b"\n") if line.startswith(start)]
        expected = [f"[{rank}] out {rank} {number} {'x' * 500}".encode() for number in range(200)]
        assert lines == [*expected, start + f"no end {rank}".encode()]
        lines = [line for line in err.split(b"\n") if line.startswith(start)]
        expected = [f"[{rank}] err {rank} {number}".encode() for number in range(200)]
        assert lines == [*expected, start + b"\xff\r" + str(rank).encode()]
    assert len(out.splitlines()) == 3 * 201


@pytest.mark.slow
def test_the_traceback_of_the_one_that_failed_first_comes_last(start):
    # 2 fails; 0 sees it and fails in a way of its own, sooner than 2 ends; 1 has to be told.
    process = start(
        """
        if rank == 2:
            try:
                raise RuntimeError("the cause")
            except RuntimeError:
                import traceback
                traceback.print_exc()
            sys.stderr.flush()
            time.sleep(0.5)
            sys.exit(7)
        if rank == 0:
            time.sleep(0.3)
            raise ValueError("a consequence")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
        time.sleep(60)
        """,
        count=3,
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 7
    before, last = err.split("[2] failed first, with exit status 7, and the others were ended")
    assert "[0] ValueError: a consequence" in before and "[1] told to end" in before
    assert last.splitlines()[1] == "[2] Traceback (most recent call last):"
    assert last.splitlines()[-1] == "[2] RuntimeError: the cause" and "[0]" not in last and "[1]" not in last


@pytest.mark.slow
def test_one_that_is_killed_is_named_with_its_signal(start):
    process = start("time.sleep(0.3 if rank else 60)\nif rank: os.kill(os.getpid(), signal.SIGKILL)")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert (
        "[1] failed first, by SIGKILL, and the others were ended; it printed nothing to standard error" in err
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_as_sigterm(start, tmp_path, number):
    process = start(
        f"""
        received = []
        signal.signal(signal.SIGINT, lambda *_: received.append("SIGINT"))
        signal.signal(signal.SIGTERM, lambda *_: received.append("SIGTERM"))
        open(f"{tmp_path}/ready-{{rank}}", "w").write("yes")
        while not received:
            time.sleep(0.01)
        time.sleep(0.5)
        print("saved", received)
        """
    )
    for rank in range(2):
        wait_for(tmp_path / f"ready-{rank}")
    os.killpg(process.pid, number)  # as a terminal sends it, to all that are in its foreground
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # as a scheduler repeats it
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(out.splitlines()) == ["[0] saved ['SIGTERM']", "[1] saved ['SIGTERM']"]


STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(f"{folder}/ready-{{rank}}", "w").write(str(os.getpid()))
time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 100.0])
def test_who_ignores_sigterm_is_killed_after_a_time_or_by_a_second_ctrl_c(start, tmp_path, seconds):
    process = start(STUBBORN.format(folder=tmp_path), stop_timeout=seconds)
    pids = [int(wait_for(tmp_path / f"ready-{rank}")) for rank in range(2)]
    process.send_signal(signal.SIGINT)
    if seconds > 50:
        time.sleep(0.3)
        assert all(map(is_alive, pids))
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL
    assert ("[0], [1] did not end within 1 s of SIGTERM and was killed" in err) == (seconds < 50)
    assert not any(map(is_alive, pids))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_a_launcher_that_is_killed_leaves_nobody_behind(start, tmp_path):
    process = start(STUBBORN.format(folder=tmp_path))
    pids = [int(wait_for(tmp_path / f"ready-{rank}")) for rank in range(2)]
    process.kill()
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "processes outlived their launcher"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_ends_the_run(start):
    process = start("while True:\n    print('more')\n    time.sleep(0.01)")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    process.stdout = None  # communicate() would read it


@pytest.mark.slow
def test_a_program_that_is_not_there_is_one_line(start):
    program = LAUNCHER.replace('[sys.executable, "-c", program]', '["/no/such/program"]')
    result = subprocess.run(
        [sys.executable, "-c", program, "1", "1", ""],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == "[0] error: /no/such/program cannot be started: No such file or directory\n"
