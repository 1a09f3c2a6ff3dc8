"""Comparing with transformers: its input, its table, and its mistakes. What it finds: tests/parity/live."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest

from tests.parity.test_fixtures import MODELS, STORED
from tests.programs import run_program
from transformer_jax.models.heads import HEADS
from transformer_jax.pretrained import verify
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.verify import Comparison, VerifyError

# The program where PyTorch is not installed, whether it is or not.
WITHOUT_PYTORCH = """
import runpy, sys
sys.modules["torch"] = None
runpy.run_module("transformer_jax.pretrained", run_name="__main__", alter_sys=True)
"""


class Sequences:
    """Tokens of one text as PyTorch holds them."""

    def __init__(self, tokens):
        self.tokens = np.array(tokens)

    def __getitem__(self, places):
        return Sequences(self.tokens[places[1]])

    def numpy(self):
        return self.tokens


def test_every_head_has_outputs_to_compare_and_is_in_a_fixture():
    assert all(head.outputs for head in HEADS.values())
    assert {from_pretrained(STORED / name).config.head for name in MODELS} == {*HEADS}


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
        verify.compare(CheckpointFolder(STORED / "gpt2"), ours.config, ours.params)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    ("other", "their_score", "difference"),
    [([5, 6], -1.5, 0.5), ([5, 6], np.nan, np.nan), ([], -1.5, np.inf), ([7, 8], np.nan, 0.0)],
    ids=str,
)
def test_beams_whose_difference_is_no_number_differ(other, their_score, difference, number, monkeypatch, rng):
    """Of three texts, of which one has it: what comes before or after does not hide it."""
    ours = from_pretrained(STORED / "gpt2")
    found = [np.array(other if i == number else [7, 8]) for i in range(3)]
    monkeypatch.setattr(verify, "_our_texts", lambda *_: found)
    monkeypatch.setattr(verify, "_their_score", lambda *_: their_score)

    def generated(theirs, config, text, **_):
        return types.SimpleNamespace(sequences=Sequences([*text, 7, 8]), sequences_scores=[-1.0])

    monkeypatch.setattr(verify, "_generated", generated)
    inputs = verify.draw_inputs(ours.config, rng)
    compared = verify._compare_beams(None, ours.config, ours.params, inputs, 1e-4)
    np.testing.assert_equal(compared.difference, difference)
    assert compared.is_same == (difference == 0) and compared.largest == 1.0


@pytest.mark.parametrize("number", range(3))
def test_a_greedy_search_whose_difference_is_no_number_differs(number, monkeypatch, rng):
    ours, texts = from_pretrained(STORED / "gpt2"), iter(range(3))

    def logits(*_):
        found = np.zeros((2, ours.config.vocab_size), np.float32)
        found[:, 7] = np.nan if next(texts) == number else 1.0
        found[:, 9] = 2.0
        return found

    monkeypatch.setattr(verify, "_our_texts", lambda *_: [np.array([9, 9])] * 3)
    monkeypatch.setattr(verify, "_their_greedy_logits", logits)
    inputs = verify.draw_inputs(ours.config, rng)
    compared = verify._compare_greedy(None, ours.config, ours.params, inputs, 1e-4)
    assert np.isnan(compared.difference) and np.isnan(compared.largest) and not compared.is_same


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["verify", STORED / "gpt2"], 2, "error: the comparison needs PyTorch and transformers"),
        (["verify", STORED], 2, f"error: {STORED} is not a checkpoint: it has no config.json\n"),
        (["verify"], 2, "usage: python -m transformer_jax.pretrained verify FOLDER"),
        (["compare", STORED / "gpt2"], 2, "usage: python -m transformer_jax.pretrained verify FOLDER"),
        (["verify", STORED / "gpt2", "--tolerance=-1"], 1, "--tolerance=-1: -1.0 is not a non-negative"),
    ],
)
def test_mistakes_are_one_line(arguments, status, message, monkeypatch):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    found = run_program("pretrained", *arguments)
    assert found.status == status
    assert message in found.err + found.out
    if message.startswith("error"):
        (line,) = found.err.splitlines()
        assert line.startswith(message.rstrip("\n")) and not found.out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["verify", STORED / "gpt2"], 2, "error: the comparison needs PyTorch and transformers"),
        (["--help"], 1, "--tolerance: Largest absolute difference"),
    ],
)
def test_the_program_itself(arguments, status, message, single_device_environment):
    command = [sys.executable, "-c", WITHOUT_PYTORCH, *map(str, arguments)]
    environment = os.environ | single_device_environment
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == status
    assert message in found.stderr + found.stdout
    if message.startswith("error"):
        # Grain says of older versions of jaxlib what it cannot measure with them.
        said = [line for line in found.stderr.splitlines() if not line.startswith("WARNING:absl:Grain ")]
        assert len(said) == 1 and said[0].startswith(message.rstrip("\n")) and not found.stdout
