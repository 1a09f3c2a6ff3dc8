"""launch/gke.py: its flags, what it has kubectl do, the table of a sweep; manifests: test_jobsets.py."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest
import yaml
from absl import flags

from launch import gke
from tests.jobset_schema import schema_problems
from tests.launch.recorded_programs import stand_in
from transformer_jax.config import ConfigError
from transformer_jax.launching.jobsets import STOPPED_STATUS
from transformer_jax.launching.run import split_flags

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=experiments/number_words.py"
RUN = ["--name=numbers", "--image=image:1", "--bucket=b", CONFIG, "--workdir=/mnt/runs/numbers"]
TPU = [*RUN, "--topology=v5e:4x4"]
SWEEP = ["optimizer.peak_rate=0.0005", "optimizer.peak_rate=0.001", "optimizer.peak_rate=0.002"]


@pytest.fixture
def launch(monkeypatch):
    """The program in this process: a function of its flags that returns its exit status."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gke, "POLL_SECONDS", 0.01)

    def start(*arguments):
        values = flags.FlagValues()
        gke.define_flags(values)
        _, *others = split_flags(["gke", *arguments], values)
        monkeypatch.setattr(gke, "FLAGS", values)
        return gke.launch(others)

    return start


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    return stand_in("kubectl", tmp_path, monkeypatch)


def manifests(text):
    found = list(yaml.safe_load_all(text))
    assert [schema_problems(manifest) for manifest in found] == [[]] * len(found)
    return found


def container(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    (found,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    return found


def jobsets(**states):
    items = [
        {"metadata": {"name": name}, "status": {"terminalState": state} if state else {}}
        for name, state in states.items()
    ]
    return json.dumps(items[0] if len(items) == 1 else {"items": items})


def test_a_dry_run_prints_the_manifest_and_calls_nothing(launch, kubectl, capsys):
    assert launch("--dry_run", *TPU, "--config.train.num_steps=7", "--env=A=1=2") == 0
    (manifest,) = manifests(capsys.readouterr().out)
    assert kubectl.calls == []
    assert manifest["metadata"]["name"] == "numbers"
    found = container(manifest)
    assert found["command"] == [
        "python", "-m", "transformer_jax.train", f"--stopped_status={STOPPED_STATUS}", "--distributed",
        CONFIG, "--config.train.num_steps=7", "--workdir=/mnt/runs/numbers",
    ]  # fmt: skip
    assert {"name": "A", "value": "1=2"} in found["env"]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["launch/gke.py"], marks=pytest.mark.everything, id="file"),
        pytest.param(["-m", "launch.gke"], id="module"),
    ],
)
def test_the_program_itself(how, tmp_path):
    command = [sys.executable, *how, *RUN, "--gpus=h100:8", "--nodes=2", "--dry_run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (manifest,) = manifests(done.stdout)
    assert "--config.train" not in done.stdout and CONFIG in container(manifest)["command"]


def test_tpu_hosts_find_one_another_where_there_are_several(launch, capsys):
    for machines, is_told in (
        (["--topology=v5e:2x2"], False),
        (["--topology=v5e:2x4"], True),
        (["--topology=v5e:2x4", "--chips_per_host=8"], False),
        (["--gpus=h100:8", "--nodes=2"], False),  # these are told by the manifest
    ):
        launch("--dry_run", *RUN, *machines)
        (manifest,) = manifests(capsys.readouterr().out)
        assert ("--distributed" in container(manifest)["command"]) == is_told


def test_it_is_applied_to_the_cluster_that_the_flags_name(launch, kubectl, capsys):
    kubectl.answer("apply", "jobset.jobset.x-k8s.io/numbers created\n")
    assert launch(*TPU, "--namespace=team", "--context=far") == 0
    (call,) = kubectl.calls
    assert call["words"] == ["--context=far", "--namespace=team", "apply", "--filename=-"]
    (manifest,) = manifests(call["text"])
    assert manifest["metadata"]["namespace"] == "team"
    said = capsys.readouterr().err
    assert "numbers created" in said and "add --wait to this command" in said
    command = shlex.split(said[said.index("  kubectl ") :].splitlines()[0])
    assert command[:4] == ["kubectl", "--context=far", "--namespace=team", "logs"]
    assert any(word.startswith("--selector=jobset.sigs.k8s.io/jobset-name=numbers,") for word in command)


def test_it_waits_for_the_end_and_says_what_happens(launch, kubectl, capsys):
    again = json.dumps({"metadata": {"name": "numbers"}, "status": {"restarts": 2}})
    kubectl.answer("get", jobsets(numbers=""), again, again, jobsets(numbers="Completed"))
    assert launch(*TPU, "--wait") == 0
    said = capsys.readouterr().err
    assert said.count("restarted (2 restarts so far)") == 1
    assert said.count("numbers: Completed") == 1
    assert [words[:2] for words in kubectl.commands[1:]] == [["get", "jobsets.jobset.x-k8s.io"]] * 4


def test_a_jobset_that_failed_is_status_1(launch, kubectl):
    kubectl.answer("get", jobsets(numbers="Failed"))
    assert launch(*TPU, "--wait") == 1


def test_a_connection_that_breaks_is_waited_for_but_not_for_ever(launch, kubectl, monkeypatch, capsys):
    monkeypatch.setattr(gke, "MOST_FAILED_POLLS", 3)
    kubectl.answer("get", "", status=1, error="Unable to connect to the server\n")
    with pytest.raises(gke.KubectlError, match="Unable to connect"):
        launch(*TPU, "--wait")
    assert capsys.readouterr().err.count("trying again") == 2


def test_a_sweep_is_a_jobset_a_member_and_a_table(launch, kubectl, capsys):
    ends = {
        "numbers-0": "Completed",
        "numbers-1": "Failed",
        "numbers-2": "Completed",
        "numbers-3": "Completed",
    }
    kubectl.answer(
        "get", jobsets(**dict.fromkeys(ends, "")), jobsets(**ends), jobsets(**{"numbers-results": "Failed"})
    )
    kubectl.answer("logs", "the table\n")
    assert launch(*TPU, "--sweep", "--wait") == 1
    applied = [manifests(call["text"]) for call in kubectl.calls if "apply" in call["words"]]
    assert [manifest["metadata"]["name"] for manifest in applied[0]] == list(ends)
    for manifest, name in zip(applied[0], SWEEP, strict=False):
        assert f"--workdir=/mnt/runs/numbers/{name}" in container(manifest)["command"]
        assert f"--config.{name}" in container(manifest)["command"]
    out, err = capsys.readouterr()
    assert out == "the table\n"
    assert f"numbers-0: {SWEEP[0]}\n" in err and "numbers-1: Failed" in err
    ((results,),) = applied[1:]
    assert results["metadata"]["name"] == "numbers-results"
    assert results["spec"]["failurePolicy"]["maxRestarts"] == 0
    assert "resources" not in container(results)
    verbs = [words[0] for words in kubectl.commands]
    assert verbs == ["apply", "get", "get", "delete", "apply", "get", "logs"]
    assert kubectl.commands[3][1:] == ["jobsets.jobset.x-k8s.io", "numbers-results", "--ignore-not-found"]


def test_the_table_is_made_in_the_cluster_of_what_is_known_here(launch, kubectl, monkeypatch, tmp_path):
    """The command of the results' pod, in a real shell, but for the last program."""
    ends = dict.fromkeys(("numbers-0", "numbers-1", "numbers-2", "numbers-3"), "Completed")
    ends["numbers-1"] = "Failed"
    kubectl.answer("get", jobsets(**ends), jobsets(**{"numbers-results": "Completed"}))
    folder = tmp_path / "it's here"
    launch(*TPU, "--sweep", "--wait", f"--mount_path={tmp_path}", f"--workdir={folder}")
    text = [call["text"] for call in kubectl.calls if "apply" in call["words"]][-1]
    (manifest,) = manifests(text)
    command = [word.replace("$$", "$") for word in container(manifest)["command"]]
    python = stand_in("python", tmp_path, monkeypatch)
    subprocess.run(command, check=True, timeout=20)
    assert python.commands == [["-m", "transformer_jax.launching.sweeps", f"--workdir={folder}"]]
    sweep = json.loads((folder / "sweep.json").read_text())
    names = [member["name"] for member in sweep["members"]]
    assert names[:3] == SWEEP and len(names) == 4
    statuses = [json.loads((folder / name / "launch.json").read_text())["exit_status"] for name in names]
    assert statuses == [0, 1, 0, 0]


def test_kubectl_that_fails_or_is_missing_is_one_error(launch, kubectl, monkeypatch, tmp_path):
    kubectl.answer("apply", status=1, error='error: no matches for kind "JobSet"\n')
    with pytest.raises(
        gke.KubectlError, match=r'^kubectl apply --filename=-: error: no matches for kind "JobSet"$'
    ):
        launch(*TPU)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        gke.KubectlError, match=r"kubectl is not on the path: .*--dry_run, which does not need it"
    ):
        launch(*TPU)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (RUN, "give either --topology, such as v5e:4x4, or --gpus, such as h100:8"),
        ([*TPU, "--gpus=h100:8"], "give either --topology"),
        ([*TPU, "--topology=v5e:3x3"], "v5e has no topology '3x3'"),
        ([*TPU, "--nodes=4"], "--nodes can only be used with --gpus"),
        ([*RUN, "--gpus=h100:8", "--slices=2"], "--slices can only be used with --topology"),
        ([*TPU, "--chips_per_host=8"], "the hosts of v5e:4x4 have 4 chips"),
        ([*TPU, "--name=Big"], "--name=Big is not a valid Kubernetes name"),
        ([*TPU, "--name=" + "a" * 47], "has 47 characters"),
        ([*TPU, "--claim=c"], "give exactly one of --bucket and --claim"),
        ([*TPU, "--env=A"], "--env=A must be KEY=VALUE"),
        ([*TPU, "--env=1A=2"], "--env=1A=2 must be KEY=VALUE, where KEY has only letters"),
        ([*TPU, "--workdir=runs/a"], "would be lost with its pod: .* such as /mnt/runs/a"),
        ([*TPU, "--workdir=/mnt/runs"], "would be lost with its pod"),
        ([*TPU, "--workdir=/mnt/runs/../a"], "would be lost with its pod"),
        ([*TPU, "--workdir=gs://b/a"], "is a URL"),
        (
            [*TPU, f"--config={ROOT}/experiments/number_words.py"],
            "must be a relative path within the checkout",
        ),
        ([*TPU, "--config.train.num_stepz=1"], "num_stepz"),
        ([*TPU, "--slice=2"], "slice"),
        ([*TPU, "more"], r"unexpected arguments \['more'\]"),
        ([*TPU, "--sweep", "--config=experiments/gpt2_chars.py"], r"has no function sweep\(\)"),
        ([*TPU, "--sweep", "--config.optimizer.peak_rate=1.0"], "sets config.optimizer.peak_rate too"),
    ],
)
def test_mistakes_are_one_error_before_anything_is_submitted(arguments, problem, launch, kubectl):
    with pytest.raises(ConfigError, match=problem):
        launch(*arguments)
    assert kubectl.calls == []


def test_without_a_config_there_is_nothing_to_go_on_with(launch, kubectl, tmp_path):
    arguments = [argument for argument in TPU if argument != CONFIG]
    with pytest.raises(ConfigError, match=r"--config is not set|holds no run"):
        launch(*arguments)
    assert kubectl.calls == []
