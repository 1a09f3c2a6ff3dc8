"""What tests of several launchers share."""

import pathlib

import pytest
from absl import flags

from launch import tpu_vm
from transformer_jax.launching.run import split_flags

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def launch(monkeypatch):
    """The program in this process: a function of its step and flags."""
    monkeypatch.chdir(ROOT)

    def start(step, *arguments):
        values = flags.FlagValues()
        tpu_vm.define_flags(values)
        _, *others = split_flags(["tpu_vm", *arguments], values)
        monkeypatch.setattr(tpu_vm, "FLAGS", values)
        tpu_vm.launch(step, others)

    return start
