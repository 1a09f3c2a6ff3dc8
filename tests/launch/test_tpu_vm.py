"""launch/tpu_vm.py: the commands of its steps, held against gcloud's reference."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import tarfile

import pytest

from launch import tpu_vm
from tests.launch.recorded_programs import stand_in
from transformer_jax.config import ConfigError
from transformer_jax.launching.tpu_slices import GENERATIONS

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

ROOT = pathlib.Path(__file__).parents[2]
WHERE = ["--name=big", "--zone=us-west4-a"]
RUN = [*WHERE, "--config=experiments/number_words.py", "--workdir=/mnt/runs/numbers"]

# Of the reference of Google Cloud SDK 528.0.0: the positional arguments, what must be given, what may be.
COMMON = {"zone", "project", "quiet"}
REFERENCE = {
    "tpu-vm create": (
        1,
        {"version"},
        {"accelerator-type", "network", "subnetwork", "service-account", "internal-ips", "spot"},
    ),
    "queued-resources create": (
        1,
        {"node-id", "runtime-version", "accelerator-type"},
        {"network", "subnetwork", "service-account", "internal-ips", "spot"},
    ),
    "tpu-vm scp": (2, set(), {"worker", "internal-ip"}),
    "tpu-vm ssh": (1, set(), {"worker", "internal-ip", "command"}),
    "tpu-vm delete": (1, set(), set()),
    "queued-resources delete": (1, set(), {"force"}),
}
WITHOUT_VALUE = {"spot", "internal-ips", "internal-ip", "force", "quiet"}


@pytest.fixture
def printed(launch, capsys):
    """The commands that a step would run, as a shell reads them; each was held against the reference."""

    def dry_run(step, *arguments):
        launch(step, *WHERE, "--dry_run", *arguments)
        words = shlex.split(capsys.readouterr().out)
        starts = [i for i, word in enumerate(words) if word == "gcloud"]
        commands = [words[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        for command in commands:
            check_syntax(command)
        return commands

    return dry_run


def check_syntax(command):
    assert command[:3] == ["gcloud", "compute", "tpus"]
    positional, required, allowed = REFERENCE[" ".join(command[3:5])]
    given = {}
    for word in command[5:]:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            assert name not in given and bool(equals) == (name not in WITHOUT_VALUE), word
            given[name] = value
    assert len(command[5:]) - len(given) == positional
    assert required | {"zone"} <= set(given) <= required | allowed | COMMON


def script_of(command):
    (found,) = [word.partition("=")[2] for word in command if word.startswith("--command=")]
    done = subprocess.run(["bash", "-n"], input=found, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize(
    ("topology", "type_", "version"),
    [
        ("v4:2x2x2", "v4-16", "tpu-ubuntu2204-base"),
        ("v5e:4x4", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p:2x2x1", "v5p-8", "v2-alpha-tpuv5"),
        ("v6e:4x4", "v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_create(printed, topology, type_, version):
    (command,) = printed("create", f"--topology={topology}")
    assert shlex.join(command) == (
        f"gcloud compute tpus tpu-vm create big --version={version} --accelerator-type={type_} "
        "--zone=us-west4-a"
    )


def test_create_as_told(printed):
    told = [
        "--spot",
        "--network=n",
        "--subnetwork=s",
        "--service_account=a@b",
        "--internal_ips",
        "--project=p",
    ]
    (command,) = printed("create", "--topology=v5e:2x2", "--runtime_version=mine", *told)
    assert shlex.join(command) == (
        "gcloud compute tpus tpu-vm create big --version=mine --accelerator-type=v5litepod-4 --network=n "
        "--subnetwork=s --service-account=a@b --internal-ips --spot --zone=us-west4-a --project=p"
    )
    (command,) = printed("create", "--queued", "--topology=v5e:4x4", "--spot")
    assert shlex.join(command) == (
        "gcloud compute tpus queued-resources create big --node-id=big --runtime-version=v2-alpha-tpuv5-lite "
        "--accelerator-type=v5litepod-16 --spot --zone=us-west4-a"
    )


def test_delete(printed):
    assert [
        shlex.join(command) for told in ([], ["--queued"], ["--yes"]) for command in printed("delete", *told)
    ] == [
        "gcloud compute tpus tpu-vm delete big --zone=us-west4-a",
        "gcloud compute tpus queued-resources delete big --force --zone=us-west4-a",
        "gcloud compute tpus tpu-vm delete big --quiet --zone=us-west4-a",
    ]


def test_install_copies_the_checkout_to_all_workers(printed):
    copy, install = printed("install", "--internal_ips")
    assert copy[3:5] == ["tpu-vm", "scp"] and copy[6:] == [
        "big:transformer_jax.tar.gz", "--internal-ip", "--worker=all", "--zone=us-west4-a",
    ]  # fmt: skip
    assert "--worker=all" in install and "--internal-ip" in install
    assert "gcsfuse" not in script_of(install)
    assert "gcsfuse --implicit-dirs b " in script_of(printed("install", "--bucket=b")[1])


def test_run_starts_on_all_workers_with_the_flags_as_they_are(printed):
    flags_given = ["--config.train.num_steps=7", "--config.evaluate.temperature=1.5", "--env=A=it's b"]
    (command,) = printed("run", *RUN[2:], *flags_given)
    assert "--worker=all" in command
    (line,) = [line for line in script_of(command).splitlines() if "tpu_worker.py" in line]
    words = shlex.split(line)
    first, last = words.index("launch/tpu_worker.py") + 1, words.index(">")
    stamp = re.search(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", line)[0]
    assert words[first:last] == [
        "--worker_number=$worker", "--workers=$workers",
        f"--status_file={tpu_vm.REMOTE_RUNS}/{stamp}/status", "--env=A=it's b",
        *RUN[2:], *flags_given[:2],
    ]  # fmt: skip
    assert " --sweep " in script_of(*printed("run", *RUN[2:], "--sweep"))


def test_follow_and_stop(printed):
    (command,) = printed("follow", "--worker=3")
    assert "--worker=3" in command and "tail --pid=" in script_of(command)
    (command,) = printed("stop")
    assert "--worker=all" in command and "kill -TERM" in script_of(command)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["launch/tpu_vm.py"], marks=pytest.mark.everything, id="file"),
        pytest.param(["-m", "launch.tpu_vm"], id="module"),
    ],
)
def test_the_program_itself(how):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *how, "create", *WHERE, "--topology=v5e:4x4", "--dry_run"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    check_syntax(shlex.split(done.stdout))


@pytest.mark.parametrize(
    ("step", "arguments", "problem"),
    [
        ("create", WHERE, "the step create needs --topology, such as --topology=v5e:4x4"),
        ("create", [*WHERE, "--topology=v5e:5x5"], "v5e has no topology '5x5'"),
        (
            "create",
            [*WHERE, "--topology=tpu7x:2x2x1"],
            r"tpu7x is not available as TPU VMs; .* launch/gke.py",
        ),
        ("create", [*WHERE, "--topology=v5e:2x2", "--spott"], "the step create does not accept --spott"),
        ("follow", ["--zone=a", "--name=Big"], "--name=Big is not a valid name of a TPU"),
        ("follow", ["--zone=a", "--name=big-"], "--name=big- is not a valid name of a TPU"),
        ("follow", [*WHERE, "--worker=-1"], "worker"),
        ("run", [*RUN, "--workdir=runs/a"], "must be an absolute path on the workers, such as /mnt/runs/run"),
        ("run", [*RUN, "--workdir=gs://b/a"], "is a URL"),
        ("run", [*RUN, "--config.train.num_stepz=1"], "num_stepz"),
        ("run", [*RUN, "--env=A"], "--env=A must be KEY=VALUE"),
        (
            "run",
            [*RUN, f"--config={ROOT}/experiments/number_words.py"],
            "must be a relative path within the checkout",
        ),
        ("run", [*RUN, "--sweep", "--config=experiments/gpt2_chars.py"], r"has no function sweep\(\)"),
    ],
)
def test_mistakes_are_one_error_before_anything_is_done(
    launch, tmp_path, monkeypatch, step, arguments, problem
):
    gcloud = stand_in("gcloud", tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=problem):
        launch(step, *arguments)
    assert gcloud.calls == []


def test_a_step_that_there_is_not():
    command = [sys.executable, "launch/tpu_vm.py", "start", *WHERE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "one of create, install, run, follow, stop, delete, not 'start'" in done.stderr


def test_gcloud_that_fails_or_is_missing_is_one_error(launch, tmp_path, monkeypatch, capfd):
    gcloud = stand_in("gcloud", tmp_path, monkeypatch)
    gcloud.answer("scp", status=2, error="ERROR: (gcloud) no such node\n")
    with pytest.raises(tpu_vm.GcloudError, match=r"^gcloud compute tpus tpu-vm scp .* ended with status 2"):
        launch("install", *WHERE)
    assert "(gcloud) no such node" in capfd.readouterr().err  # its own words
    assert len(gcloud.calls) == 1  # nothing is installed that was not copied
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        tpu_vm.GcloudError, match=r"gcloud is not on the path: .*--dry_run, which does not need it"
    ):
        launch("delete", *WHERE)


def test_a_queued_request_says_how_to_see_its_state(launch, tmp_path, monkeypatch, capsys):
    gcloud = stand_in("gcloud", tmp_path, monkeypatch)
    launch("create", *WHERE, "--topology=v5e:4x4", "--queued")
    assert gcloud.commands[0][2:4] == ["queued-resources", "create"]
    assert "gcloud compute tpus queued-resources describe big" in capsys.readouterr().err


def test_every_generation_with_tpu_vms_has_a_runtime_version():
    assert {g.name for g in GENERATIONS.values() if g.gcloud_prefix and g.runtime_version} == {
        "v4", "v5e", "v5p", "v6e",
    }  # fmt: skip


def test_the_archive_is_the_checkout_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(tpu_vm, "CHECKOUT", tmp_path)
    with pytest.raises(ConfigError, match="must be a checkout of git"):
        tpu_vm.pack_checkout(str(tmp_path / "a.tar.gz"))
    for command in (["init", "-q"], ["add", "gone", "changed"]):
        for name in ("gone", "changed", "new one", "ignored"):
            (tmp_path / name).write_text(name)
        subprocess.run(["git", *command], cwd=tmp_path, check=True, timeout=20)
    (tmp_path / ".gitignore").write_text("ignored\n*.tar.gz\n")
    (tmp_path / "gone").unlink()
    (tmp_path / "changed").write_text("today")
    assert tpu_vm.pack_checkout(str(tmp_path / "a.tar.gz")) == 3
    with tarfile.open(tmp_path / "a.tar.gz") as file:
        assert sorted(file.getnames()) == [".gitignore", "changed", "new one"]
        assert file.extractfile("changed").read() == b"today"
