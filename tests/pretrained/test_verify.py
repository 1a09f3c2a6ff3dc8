"""Comparing with transformers: its input, its table, and its mistakes. What it finds: tests/parity/live."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.test_fixtures import MODELS, STORED
from tests.pretrained.test_reading import change_config
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


class Tensor:
    """A stand-in for a PyTorch tensor, with the operations that the comparison uses."""

    def __init__(self, values, dtype=None):
        self.values, self.dtype = np.array(values), dtype

    def __getitem__(self, places):
        return Tensor(self.values[places])

    def long(self):
        return self

    def numpy(self):
        return self.values

    def log_softmax(self, axis):
        return self  # the stand-in model returns log-probabilities


class TheirModel:
    """A stand-in for a model of ``transformers``.

    Args:
      vocab_size: number of its logits.
      greedy: logits (tokens, vocab_size) of its greedy search, for each text in turn.
      beams: tokens that its beam search appends to every text, with the score -1.
      score: log-probability of every token that its beam search does not choose.
    """

    def __init__(self, vocab_size, greedy, beams, score):
        self.vocab_size, self.greedy, self.beams, self.score = vocab_size, iter(greedy), beams, score

    def eval(self):
        return self

    def __call__(self, *, input_ids, return_dict=False, **_):
        logits = np.full((*input_ids.values.shape, self.vocab_size), self.score, np.float32)
        return {"logits": Tensor(logits)} if return_dict else types.SimpleNamespace(logits=Tensor(logits))

    def generate(self, *, input_ids, generation_config, **_):
        if generation_config.num_beams == 1:
            return types.SimpleNamespace(logits=[Tensor(row[None]) for row in next(self.greedy)])
        sequences = Tensor([[*input_ids.values[0], *self.beams]])
        return types.SimpleNamespace(sequences=sequences, sequences_scores=[-1.0])


class OurModel:
    """A stand-in for a model of this library."""

    def __init__(self, config):
        self.vocab_size = config.vocab_size

    def apply(self, variables, inputs, inputs_segments, **_):
        return jnp.zeros((*inputs.shape, self.vocab_size))


@pytest.fixture
def compare(monkeypatch):
    """Compares stand-ins for both models of one GPT-2, and returns the last two comparisons.

    Each search returns three texts; the stand-in for PyTorch is installed whether PyTorch is or not.
    """
    ours = from_pretrained(STORED / "gpt2")

    def compared(our_greedy, our_beams, their_greedy, their_beams, their_score):
        theirs = TheirModel(ours.config.vocab_size, their_greedy, their_beams, their_score)
        torch, transformers = types.ModuleType("torch"), types.ModuleType("transformers")
        torch.float32, torch.int32, torch.tensor = "float32", "int32", Tensor
        torch.no_grad = contextlib.nullcontext
        torch.ones_like = lambda tensor: Tensor(np.ones_like(tensor.values))
        torch.cat = lambda tensors: Tensor(np.concatenate([tensor.values for tensor in tensors]))
        transformers.logging = types.SimpleNamespace(
            set_verbosity_error=lambda: None, disable_progress_bar=lambda: None
        )
        transformers.GenerationConfig = types.SimpleNamespace
        transformers.GPT2LMHeadModel = types.SimpleNamespace(from_pretrained=lambda *_, **__: theirs)

        class OurGenerator:
            def __init__(self, config, settings, *_, **__):
                self.texts = our_greedy if settings.beam_size == 1 else our_beams

            def generate(self, params, texts):
                return [np.array(text) for text in self.texts]

        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setitem(sys.modules, "transformers", transformers)
        monkeypatch.setattr(verify, "Generator", OurGenerator)
        monkeypatch.setattr(verify, "build", OurModel)
        return verify.compare(CheckpointFolder(STORED / "gpt2"), ours.config, ours.params)[-2:]

    compared.vocab_size = ours.config.vocab_size
    return compared


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


@pytest.mark.parametrize(
    ("name", "model_type", "family", "architecture"),
    [
        ("t5", "t5", "", "T5ForConditionalGeneration"),
        ("t5_v1_1", "mt5", "", "MT5ForConditionalGeneration"),
        ("t5_v1_1", "mt5", "t5_encoder", "MT5EncoderModel"),
        ("roberta_sequence", "xlm-roberta", "", "XLMRobertaForSequenceClassification"),
        ("roberta_masked_lm", "camembert", "", "CamembertForMaskedLM"),
    ],
)
def test_the_class_is_that_of_the_model_type(name, model_type, family, architecture, tmp_path, monkeypatch):
    class Refusing:
        def __init__(self, name):
            self.__name__ = name

        def from_pretrained(self, *_, **__):
            raise OSError("no")

    transformers = types.ModuleType("transformers")
    transformers.__getattr__ = Refusing
    transformers.logging = types.SimpleNamespace(
        set_verbosity_error=lambda: None, disable_progress_bar=lambda: None
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(float32="float32"))
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    path = pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))
    change_config(path, model_type=model_type)
    folder = CheckpointFolder(path, family=family)
    with pytest.raises(VerifyError, match=rf"cannot read .* as {architecture}: no"):
        verify.compare(folder, folder.model.config, {})


def chosen(vocab_size, *tokens):
    """Returns logits (tokens, vocab_size) that are 2 for these tokens and 0 otherwise."""
    logits = np.zeros((len(tokens), vocab_size), np.float32)
    logits[np.arange(len(tokens)), tokens] = 2.0
    return logits


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    ("other", "their_score", "difference"),
    [([5, 6], -1.5, 0.5), ([5, 6], np.nan, np.nan), ([], -1.5, np.inf), ([7, 8], np.nan, 0.0)],
    ids=str,
)
def test_beams_whose_difference_is_no_number_differ(other, their_score, difference, number, compare):
    """Of three texts, one has such a difference; the texts before and after it do not hide it."""
    beams = [other if i == number else [7, 8] for i in range(3)]
    greedy = [chosen(compare.vocab_size, 9)] * 3
    same, compared = compare([[9]] * 3, beams, greedy, [7, 8], their_score)
    assert same.name == "greedy, 8 tokens" and same.is_same
    assert compared.name == "4 beams, 8 tokens"
    np.testing.assert_equal(compared.difference, difference)
    assert compared.is_same == (difference == 0) and compared.largest == 1.0


@pytest.mark.parametrize("number", range(3))
def test_a_greedy_search_whose_difference_is_no_number_differs(number, compare):
    logits = [chosen(compare.vocab_size, 9, 9) for _ in range(3)]
    for i, found in enumerate(logits):
        found[:, 7] = np.nan if i == number else 1.0
    compared, same = compare([[9, 9]] * 3, [[7, 8]] * 3, logits, [7, 8], -1.0)
    assert same.is_same
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
