"""launch/tpu_vm.py with workers that are folders of this machine: what its commands do there."""

import os
import pathlib
import shutil
import sys
import time

import pytest

from launch import tpu_vm
from tests.launch.recorded_programs import write_program
from tests.tiny_training import write_corpus

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

ROOT = pathlib.Path(__file__).parents[2]
WHERE = ["--name=big", "--zone=us-west4-a"]
RUN = [*WHERE, "--config=experiments/number_words.py", "--workdir=/mnt/runs/numbers"]

# In place of gcloud: each worker is a home folder of this machine, and its programs are first on its path.
WORKERS = """\
#!{python} -SE
import os, pathlib, shutil, subprocess, sys
root, words = pathlib.Path({root!r}), sys.argv[1:]
given = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
numbers = range({workers}) if given["worker"] == "all" else [int(given["worker"])]
for number in numbers:
    home = root / f"worker-{{number}}"
    home.mkdir(exist_ok=True)
    if "scp" in words:
        shutil.copy(words[4], home / words[5].partition(":")[2])
        continue
    environment = os.environ | {{"HOME": str(home), "PATH": f"{{root}}/programs:{{os.environ['PATH']}}"}}
    status = subprocess.run(["bash", "-c", given["command"]], env=environment).returncode
    if status:
        sys.exit(status)
"""
PROGRAMS = {
    # Which worker this is, and which there are, as the metadata server has it.
    "curl": """
case "$*" in
*/worker-network-endpoints) (cd "$HOME/.." && echo worker-* | tr ' ' ,) ;;
*/agent-worker-number) echo "${HOME##*-}" ;;
esac
""",
    "sudo": 'exec "$@"\n',
    "mountpoint": '[ -e "$2/mounted" ]\n',
    "gcsfuse": 'touch "$3/mounted" && echo "$2" >> "$3/mounts"\n',
    # python3 -m uv venv … FOLDER makes an environment, whose Python is the one of this test.
    "python3": """
case "$3" in
venv)
    for folder in "$@"; do :; done
    mkdir -p "$folder/bin"
    printf '#!/bin/bash\nPYTHONPATH="$HOME/transformer_jax" exec {python} "$@"\n' > "$folder/bin/python"
    chmod +x "$folder/bin/python" ;;
*) echo "$@" >> "$HOME/python3-calls" ;;
esac
""",
}


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Two workers of a TPU VM, as far as gcloud is concerned; the folder that they share is shared/."""
    write_program(
        tmp_path / "bin" / "gcloud", WORKERS.format(python=sys.executable, root=str(tmp_path), workers=2)
    )
    for name, text in PROGRAMS.items():
        write_program(
            tmp_path / "programs" / name, "#!/bin/bash\n" + text.replace("{python}", sys.executable)
        )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "shared").mkdir()
    return [tmp_path / "worker-0", tmp_path / "worker-1"]


@pytest.fixture
def installed(launch, workers, tmp_path):
    launch("install", *WHERE, "--bucket=my-bucket", f"--mount_path={tmp_path}/shared")
    return workers


def test_what_is_installed(installed, tmp_path):
    for home in installed:
        assert (home / "transformer_jax" / "launch" / "tpu_worker.py").read_text() == (
            ROOT / "launch" / "tpu_worker.py"
        ).read_text()
        pip, install = (home / "python3-calls").read_text().splitlines()
        assert pip == "-m pip install --quiet --user uv"
        assert f"--constraint={home}/transformer_jax/constraints/newest-py312.txt" in install
        assert f"--editable={home}/transformer_jax[tpu]" in install
    assert (ROOT / tpu_vm.PINS).exists()
    assert (tmp_path / "shared" / "mounts").read_text() == "my-bucket\n"  # once: then it is there


def test_without_an_installation_nothing_starts(launch, workers, capfd):
    with pytest.raises(tpu_vm.GcloudError, match="status 1"):
        launch("run", *RUN)
    assert "nothing is installed: run the step install first" in capfd.readouterr().err
    with pytest.raises(tpu_vm.GcloudError, match="status 1"):
        launch("follow", *WHERE)
    assert "nothing was started here" in capfd.readouterr().err
    launch("stop", *WHERE)
    assert capfd.readouterr().out.count("nothing is running") == 2


# In place of the program of each worker: runs until it is told to stop.
WAITING = """
import os, pathlib, signal, sys, time
file, = [word.partition("=")[2] for word in sys.argv if word.startswith("--status_file")]
def stop(*_):
    print("saved", flush=True)
    pathlib.Path(file).write_text("0\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
print(os.environ["JAX_PLATFORMS"], *sys.argv[1:], flush=True)
time.sleep(60)
"""


def test_run_follow_and_stop(launch, installed, capfd, monkeypatch):
    monkeypatch.setenv(
        "JAX_PLATFORMS", "tpu"
    )  # of the machine: the chips are not for the worker's own program
    for home in installed:
        (home / "transformer_jax" / "launch" / "tpu_worker.py").write_text(WAITING)
    (installed[0].parent / "shared" / "mounted").unlink()  # as after a restart
    launch("run", *RUN, "--env=A=it's")
    logs = [home / "transformer_jax_runs" / "latest" / "log.txt" for home in installed]
    deadline = time.monotonic() + 30
    while not all(log.read_text() for log in logs) and time.monotonic() < deadline:
        time.sleep(0.02)
    for number, log in enumerate(logs):
        status = f"{log.resolve().parent}/status"
        assert log.read_text() == (
            f"cpu --worker_number={number} --workers=worker-0,worker-1 --status_file={status} "
            f"--env=A=it's {' '.join(RUN[2:])}\n"
        )
    assert (installed[0].parent / "shared" / "mounted").exists()
    for step, arguments in (("run", RUN), ("install", WHERE)):
        with pytest.raises(tpu_vm.GcloudError, match="status 1"):
            launch(step, *arguments)
        assert "a run is in progress: follow it, or stop it first" in capfd.readouterr().err
    launch("stop", *WHERE)
    launch("follow", *WHERE, "--worker=1")
    out = capfd.readouterr().out
    assert out.count(": stopped") == 2 and out.endswith("saved\n")
    (logs[1].parent / "status").write_text("5\n")
    with pytest.raises(tpu_vm.GcloudError, match="status 5"):
        launch("follow", *WHERE, "--worker=1")
    (logs[1].parent / "status").unlink()
    with pytest.raises(tpu_vm.GcloudError, match="status 1"):
        launch("follow", *WHERE, "--worker=1")
    assert "the run was killed" in capfd.readouterr().err


SWEEP = """
import pathlib
from tests.tiny_training import tiny_experiment
def get_config():
    return tiny_experiment(pathlib.Path({folder!r}), train=dict(num_steps=2)).to_config_dict()
def sweep():
    yield {{"train.seed": 1}}
    yield {{"train.seed": 2}}
"""


@pytest.mark.slow
def test_a_real_sweep_on_a_worker(launch, installed, tmp_path, capfd, monkeypatch):
    """Trained by what was copied to the worker; the table is in the folder of the sweep."""
    write_corpus(tmp_path / "corpus")
    for folder in (tmp_path, installed[0] / "transformer_jax"):
        (folder / "tiny.py").write_text(SWEEP.format(folder=str(tmp_path / "corpus")))
    monkeypatch.chdir(tmp_path)
    write_program(
        tmp_path / "bin" / "gcloud", WORKERS.format(python=sys.executable, root=str(tmp_path), workers=1)
    )
    shutil.rmtree(installed[1])  # there is one
    workdir = tmp_path / "shared" / "sweep"
    launch("run", *WHERE, "--config=tiny.py", f"--workdir={workdir}", "--sweep")
    launch("follow", *WHERE)
    out = capfd.readouterr().out
    assert out.count("== train.seed=") == 2 and "2 members, 2 finished" in out
    assert out.endswith((workdir / "sweep_results.txt").read_text())
