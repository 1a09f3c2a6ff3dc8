"""Slurm's batch scripts as text; real jobs are in test_slurm_jobs.py."""

import os
import shlex
import subprocess

import pytest

from launch import slurm
from tests.tiny_training import tiny_experiment
from transformer_jax.launching.run import Run


def run_in(folder, *arguments):
    return Run(str(folder), arguments, tiny_experiment(folder), "tiny.py", {})


def script_of(tmp_path, settings, *arguments):
    text = slurm.job_script(run_in(tmp_path, *arguments), "name", settings, Run.command)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=20)
    return text


def options_of(text):
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    return dict(line.partition("=")[::2] for line in lines)


def srun_words(text):
    """The words of the command that starts the processes."""
    (line,) = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("srun ")]
    return shlex.split(line.removesuffix("|| status=$?"))


def test_what_is_asked_for_is_in_the_script(tmp_path):
    settings = slurm.Settings(
        nodes=2, gpus_per_node="h100:8", cpus_per_task=6, time="1-12", partition="big", account="us",
        requeue=True, warn_before=300, sbatch=("--mem=64G", "--comment=a b"), setup=("module load cuda",),
    )  # fmt: skip
    text = script_of(tmp_path, settings, "--config=x.py", "--config.a.b=c d")
    assert options_of(text) == {
        "--job-name": "name", "--output": f"{tmp_path}/slurm-%j.out", "--open-mode": "append",
        "--chdir": os.getcwd(), "--nodes": "2", "--ntasks-per-node": "8", "--gpus-per-node": "h100:8",
        "--cpus-per-task": "6", "--time": "1-12", "--signal": "TERM@300", "--requeue": "",
        "--partition": "big", "--account": "us", "--mem": "64G", '"--comment': 'a b"',
    }  # fmt: skip
    words = srun_words(text)
    split = words.index("-m")
    assert words[: split - 1] == [
        "srun", "--nodes=2", "--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=6",
        "--kill-on-bad-exit=1", "--label",
    ]  # fmt: skip
    assert words[split:] == [
        "-m", "transformer_jax.train", "--config=x.py", "--config.a.b=c d", f"--workdir={tmp_path}"
    ]  # fmt: skip
    assert text.index("\nmodule load cuda\n") < text.index("\nsrun ")
    assert "JAX_LOCAL_DEVICE_IDS" not in text and "scontrol requeue" in text


def test_one_process_is_given_all_gpus_of_a_node(tmp_path):
    text = script_of(tmp_path, slurm.Settings(gpus_per_node="4", tasks_per_node=1))
    assert "\nexport JAX_LOCAL_DEVICE_IDS=0,1,2,3\n" in text
    assert options_of(text)["--ntasks-per-node"] == "1" and "--label" not in srun_words(text)


def test_by_default_one_process_a_node_and_no_second_start(tmp_path):
    text = script_of(tmp_path, slurm.Settings())
    found = options_of(text)
    assert "--no-requeue" in found and found["--ntasks-per-node"] == "1" and "--gpus-per-node" not in found
    assert "scontrol requeue" not in text and f"to resume: sbatch {tmp_path}/slurm.sh" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(gpus_per_node="many"), r"--gpus_per_node=many must be a number such as 8"),
        (dict(time="soon"), r"--time=soon must be minutes"),
        (dict(time="1:2:3:4"), r"--time=1:2:3:4 must be"),
        (
            dict(gpus_per_node="8", tasks_per_node=3),
            r"--tasks_per_node=3 must be 8 \(one process for each GPU",
        ),
        (dict(sbatch=("mem=3",)), r"--sbatch=mem=3 must be a long option of sbatch"),
        (dict(sbatch=("-N3",)), r"--sbatch=-N3 must be a long option of sbatch"),
        (dict(sbatch=("--nodes=3",)), r"this launcher sets --nodes itself"),
        (dict(sbatch=("--output=x",)), r"sets --output itself"),
        (dict(sbatch=("--comment=a\nb",)), r"must be a long option of sbatch"),
    ],
)
def test_bad_settings_are_one_error(settings, message):
    with pytest.raises(ValueError, match=message):
        slurm.Settings(**settings)


@pytest.mark.parametrize("time", ["90", "90:00", "24:00:00", "2-0", "2-12:30", "2-12:30:00"])
def test_times_as_sbatch_takes_them(time):
    assert slurm.Settings(time=time).options()[2] == f"--time={time}"


@pytest.mark.parametrize("name", ["a\nb", "a\\b"])
def test_a_folder_that_output_cannot_be_named_in_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="line break or a backslash"):
        script_of(tmp_path / name, slurm.Settings())


def test_without_slurm_there_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"sbatch was not found: .*--dry_run"):
        slurm.launch([run_in(tmp_path / "run")], slurm.Settings())
    assert not (tmp_path / "run").exists()


def fake_sbatch(folder, monkeypatch, lines):
    """A stand-in that notes its arguments and does what ``lines`` say."""
    program = folder / "sbatch"
    program.write_text(f'#!/bin/bash\necho "$@" >> {folder}/calls\n{lines}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_members_are_submitted_first_and_the_table_waits_for_them(tmp_path, monkeypatch, capsys):
    fake_sbatch(tmp_path, monkeypatch, f'echo "$((40 + $(wc -l < {tmp_path}/calls)));cluster"')
    base = tmp_path / "sweep"
    runs = [run_in(base / name) for name in ("a=1", "a=2")]
    settings = slurm.Settings(
        gpus_per_node="2", partition="big", sbatch=("--qos=low", "--gres=gpu:2"), setup=("module load x",)
    )
    assert slurm.launch(runs, settings, table_of=str(base)) == ["41", "42", "43"]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [
        f"--parsable {base}/a=1/slurm.sh",
        f"--parsable {base}/a=2/slurm.sh",
        f"--parsable --dependency=afterany:41:42 {base}/slurm_results.sh",
    ]
    assert "submitted job 41" in capsys.readouterr().err
    assert options_of((base / "a=1" / "slurm.sh").read_text())["--job-name"] == "sweep/a=1"
    table = (base / "slurm_results.sh").read_text()
    assert options_of(table) == {
        "--job-name": "sweep/results", "--output": f"{base}/slurm-%j.out", "--open-mode": "append",
        "--chdir": os.getcwd(), "--nodes": "1", "--ntasks": "1", "--time": "15", "--partition": "big",
        "--qos": "low",
    }  # fmt: skip
    assert shlex.split(table.splitlines()[-1])[2:] == [
        "-m",
        "transformer_jax.launching.sweeps",
        f"--workdir={base}",
    ]


def test_where_sbatch_refuses_its_own_words_are_shown_and_the_jobs_before(tmp_path, monkeypatch):
    lines = f'if [[ $(wc -l < {tmp_path}/calls) == 2 ]]; then echo "no such account" >&2; exit 1; fi; echo 7'
    fake_sbatch(tmp_path, monkeypatch, lines)
    runs = [run_in(tmp_path / name) for name in "ab"]
    with pytest.raises(ValueError, match=r"(?s)sbatch refused .*/b/slurm\.sh: no such account.*scancel 7"):
        slurm.launch(runs, slurm.Settings())


def test_a_dry_run_writes_and_submits_nothing(tmp_path, monkeypatch, capsys):
    fake_sbatch(tmp_path, monkeypatch, "echo 7")
    run = run_in(tmp_path / "run", "--config=x.py")
    assert slurm.launch([run], slurm.Settings(), is_dry=True) == []
    assert capsys.readouterr().out == slurm.job_script(run, "run", slurm.Settings(), Run.command) + "\n"
    assert not (tmp_path / "calls").exists() and not (tmp_path / "run").exists()
