"""Comparing with transformers: its input, its table, and its mistakes. What it finds: tests/parity/live."""

import os
import subprocess
import sys
import typing

import numpy as np
import pytest

from tests.parity.test_fixtures import MODELS, STORED
from transformer_jax import verify
from transformer_jax.config import TransformerConfig
from transformer_jax.pretrained import from_pretrained
from transformer_jax.verify import Comparison, VerifyError

# The program where PyTorch is not installed, whether it is or not.
WITHOUT_PYTORCH = """
import runpy, sys
sys.modules["torch"] = None
runpy.run_module("transformer_jax.pretrained", run_name="__main__", alter_sys=True)
"""


def test_every_head_has_outputs_to_compare_and_is_in_a_fixture():
    heads = typing.get_args(typing.get_type_hints(TransformerConfig)["head"])
    assert set(verify._OUTPUTS) == set(heads)
    # But for vectors alone, which are a part of what is pooled.
    assert {from_pretrained(STORED / name).config.head for name in MODELS} == {*heads} - {"none"}


@pytest.mark.parametrize("name", MODELS)
def test_inputs_are_padded_and_plain(name, rng):
    config = from_pretrained(STORED / name).config
    inputs = verify.draw_inputs(config, rng)
    if name.startswith("vit"):
        side = {"vit": 32, "vit_base_model": 12}[name]
        assert inputs["images"].shape == (3, side, side, 3) and inputs["images"].std() > 0.5
        return
    both = name in ("t5", "t5_v1_1", "bart", "marian")
    assert ("inputs_types" in inputs) == name.startswith("bert") and ("targets" in inputs) == both
    for side in ("inputs", "targets") if both else ("inputs",):
        tokens, segments = inputs[side], inputs[f"{side}_segments"]
        lengths = segments.sum(1)
        longest = min(140, config.max_length) - (8 if name == "gpt2" else 0)
        assert tokens.shape == (3, longest) and lengths.max() == longest and len(set(lengths.tolist())) == 3
        assert (np.diff(segments, axis=1) <= 0).all()
        assert (tokens[segments == 0] == config.pad_id).all()
        assert not np.isin(tokens[segments == 1], (config.pad_id, config.eos_id)).any()
        assert len(np.unique(tokens)) > 10 and tokens.max() < config.vocab_size


def test_the_table():
    found = [
        Comparison("logits", (3, 7, 50257), 123.456, 9.9e-5, 1e-4),
        Comparison("seq_relationship_logits", (3, 2), 0.5, 1.1e-4, 1e-4),
        Comparison("greedy, 8 tokens", (3, 8), 2.0, float("nan"), 2e-4),
    ]
    assert [one.is_same for one in found] == [True, False, False]
    assert verify.table(found).splitlines() == [
        "output                   shape      largest number  largest difference  tolerance",
        "logits                   3x7x50257           123.5             9.9e-05     0.0001  ok",
        "seq_relationship_logits  3x2                   0.5             0.00011     0.0001  DIFFERS",
        "greedy, 8 tokens         3x8                     2                 nan     0.0002  DIFFERS",
    ]


def test_without_pytorch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    ours = from_pretrained(STORED / "gpt2")
    with pytest.raises(VerifyError, match=r"needs PyTorch and transformers .*: pip install '\.\[parity\]'"):
        verify.compare(STORED / "gpt2", ours.family, ours.config, ours.params)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["verify", STORED / "gpt2"], 2, "error: the comparison needs PyTorch and transformers"),
        (["verify", STORED], 2, f"error: {STORED} is no checkpoint: there is no config.json in it\n"),
        (["verify"], 2, "say: python -m transformer_jax.pretrained verify FOLDER"),
        (["compare", STORED / "gpt2"], 2, "say: python -m transformer_jax.pretrained verify FOLDER"),
        (["verify", STORED / "gpt2", "--tolerance=-1"], 1, "--tolerance=-1: -1.0 is not a non-negative"),
        (["--help"], 1, "--tolerance: Largest absolute difference"),
    ],
)
def test_mistakes_are_one_line(arguments, status, message, single_device_environment):
    command = [sys.executable, "-c", WITHOUT_PYTORCH, *map(str, arguments)]
    environment = os.environ | single_device_environment
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == status
    assert message in found.stderr + found.stdout
    if message.startswith("error"):
        # Grain says of older versions of jaxlib what it cannot measure with them.
        said = [line for line in found.stderr.splitlines() if not line.startswith("WARNING:absl:Grain ")]
        assert len(said) == 1 and said[0].startswith(message.rstrip("\n")) and not found.stdout
