"""Processes of a run that have other code of the library are named before anything is computed."""

import pathlib
import shutil
import socket
import subprocess
import sys

import transformer_jax

LIBRARY = pathlib.Path(transformer_jax.__file__).parent
PROGRAM = """
from transformer_jax.distributed import ProcessError, connect

try:
    connect({}, start_timeout=60)
except ProcessError as error:
    print(error)
"""


def test_a_change_anywhere_in_the_library_is_a_difference(tmp_path, single_device_environment):
    other = tmp_path / "other"
    shutil.copytree(LIBRARY, other / "transformer_jax", ignore=shutil.ignore_patterns("__pycache__"))
    with open(other / "transformer_jax" / "layers" / "norms.py", "a") as file:
        file.write("# changed\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=single_device_environment
            | {
                "PYTHONPATH": str(folder),
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
            },
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, folder in enumerate((LIBRARY.parent, other))
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all("code of transformer_jax" in output for output in outputs), outputs
