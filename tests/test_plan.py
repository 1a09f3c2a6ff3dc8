"""The program ``python -m transformer_jax.plan``: its mistakes are one line each, and its output is whole."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests.programs import run_program

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config=experiments/number_words.py"


def run(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "transformer_jax.plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((CONFIG,), "--topology must have a value"),
        ((CONFIG, "--topology=v9:4x4"), "KIND is one of v4, v5e, v5p"),
        ((CONFIG, "--topology=v5e:4x4", "--config.mesh.model=2"), "its axes are data, fsdp, context, tensor"),
        (
            (CONFIG, "--topology=v5e:4x4", "--steps=train,score"),
            "'score' is not a step; choose from train, evaluate, decode",
        ),
        ((CONFIG, "--topology=v5e:4x4", "--config.model.d_modle=2"), "d_modle"),
        ((CONFIG, "--topology=v5e:4x4", "--rows_per_device=0"), "--rows_per_device=0: 0 is not a positive"),
        ((CONFIG, "--topology=h100:8"), "make plan-env"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], wanted: str) -> None:
    found = run_program("plan", *arguments)
    assert (found.status, found.out) == (1, "")
    (line,) = found.err.strip().splitlines()
    assert line.startswith("error: ")
    assert wanted in line


@pytest.mark.plan
def test_the_program_prints_tables_and_json(single_device_environment: dict[str, str]) -> None:
    arguments = (CONFIG, "--topology=v5e:2x2", "--rows_per_device=8", "--config.model.scan_layers=True")
    found = run(*arguments, "--json", environment=single_device_environment)
    said = found.stderr.splitlines()
    assert len(said) == 3  # of each kind of attention why it is plain: its rows are short
    assert all("is plain XLA on this TPU: of so few tokens" in line for line in said)
    plan = json.loads(found.stdout)
    assert list(plan["steps"]) == ["train", "evaluate", "decode"]
    assert plan["config"] == "experiments/number_words.py"
    found = run(*arguments, "--steps=decode", environment=single_device_environment)
    assert found.stderr == ""
    assert "not measurements" in found.stdout
