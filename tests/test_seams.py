"""The library extended from outside: ``tests/outside_model.py`` trains, decodes, resumes, and is planned."""

import dataclasses
import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax as tj
from tests import outside_model
from tests.decoding_model import reference_beam
from tests.drawn import drawn_params
from tests.tiny_training import COMPARABLE
from transformer_jax.checkpoints.checkpointer import CheckpointConfig
from transformer_jax.config import ConfigError
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.decoding import beam_search, greedy_search
from transformer_jax.evaluation.scoring import evaluate_run
from transformer_jax.families import FAMILIES
from transformer_jax.models import abstract_params
from transformer_jax.models.attention import ATTENTIONS
from transformer_jax.models.cache import repeated
from transformer_jax.models.front_ends import FRONT_ENDS
from transformer_jax.models.heads import HEADS
from transformer_jax.objectives import OBJECTIVES
from transformer_jax.planning.hardware import read_topology
from transformer_jax.planning.planner import make_plan
from transformer_jax.reporting.progress import read_metrics
from transformer_jax.runs import EvaluateConfig, Experiment, TrainConfig, from_run, load_run
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh
from transformer_jax.training.loop import train
from transformer_jax.types import FEATURES, KINDS

REGISTRIES = (KINDS, FEATURES, FRONT_ENDS, ATTENTIONS, HEADS, OBJECTIVES, FAMILIES)
ROOT = pathlib.Path(__file__).parent.parent
WORDS = ("small", "deep", "far", "near", "calm")
NUM_FRAMES, NUM_CHANNELS, NUM_PATCHES = 12, 2, 4
MAX_LENGTH = 8  # tokens: bytes of a word, and eos


BEFORE = [dict(registry) for registry in REGISTRIES]


def unregister():
    for registry, content in zip(REGISTRIES, BEFORE, strict=True):
        registry.clear()
        registry.update(content)


@pytest.fixture(autouse=True, scope="module")
def registered():
    """Registers the model for the tests of this module alone."""
    outside_model.register()
    yield
    unregister()


@pytest.fixture
def forgotten(registered):
    """Takes the model out of the registries for one test."""
    unregister()
    yield
    outside_model.register()


@pytest.fixture(scope="module")
def seismograms(tmp_path_factory):
    """A folder with seismograms of several lengths and their bulletins, as JSON objects."""
    folder, rng = tmp_path_factory.mktemp("seismograms"), np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        lines = []
        for number in range(24):
            frames = rng.normal(0, 1, (1 + 5 * number % NUM_FRAMES, NUM_CHANNELS)).round(3)
            lines.append(json.dumps({"frames": frames.tolist(), "text": WORDS[number % len(WORDS)]}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def experiment_of(folder, num_steps=2, **model):
    files = {split: (f"{split}.jsonl",) for split in ("train", "validation", "test")}
    features = (("seismogram", "frames"), ("targets", "text"))
    return Experiment(
        model=outside_model.TREMOR.config("tiny", **model),
        objective=outside_model.Bulletins(),
        data=DataConfig(
            source=SourceConfig(kind="jsonl", folder=str(folder), features=features, **files),
            tokenizer=TokenizerConfig(kind="byte"),
            max_length=MAX_LENGTH,
            batch_size=16,
            window=32,
        ),
        optimizer=COMPARABLE,
        train=TrainConfig(num_steps=num_steps, log_every_steps=1, evaluate_every_steps=num_steps),
        checkpoint=CheckpointConfig(every_steps=1),
        evaluate=EvaluateConfig(batch_size=8, beam_size=2, extra_length=2),
        extensions=("tests.outside_model:register",),
    )


@pytest.fixture(scope="module")
def unbroken(seismograms, tmp_path_factory):
    """The folder of a run of two steps on eight devices."""
    folder = tmp_path_factory.mktemp("run")
    train(experiment_of(seismograms).to_config_dict(), str(folder))
    return folder


def losses(folder):
    """The loss of each step, and the scores of the last one on the validation split."""
    lines = read_metrics(folder)
    trained = [line["train/loss"] for line in lines if "train/loss" in line]
    return np.array([*trained, *(line["validation/loss"] for line in lines if "validation/loss" in line)])


@pytest.mark.slow
def test_one_device_by_the_command_line_trains_as_eight(
    seismograms, unbroken, tmp_path, single_device_environment
):
    (tmp_path / "my_experiment.py").write_text(
        "from tests import outside_model\n"
        "from tests.test_seams import experiment_of\n"
        "def get_config():\n"
        "    outside_model.register()\n"
        f"    return experiment_of({str(seismograms)!r}).to_config_dict()\n"
    )
    flags = [f"--config={tmp_path / 'my_experiment.py'}", f"--workdir={tmp_path / 'run'}"]
    environment = {**single_device_environment, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "transformer_jax.train", *flags]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert len(losses(unbroken)) == 3
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(unbroken), rtol=1e-6)


def test_a_resumed_run_ends_with_the_same_bits(seismograms, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")  # as if it had been stopped after its first step
    before = losses(tmp_path / "run")
    train(experiment_of(seismograms), str(tmp_path / "run"))
    found, expected = (load_run(str(folder)) for folder in (tmp_path / "run", unbroken))
    assert found.steps == expected.steps == (2,)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    np.testing.assert_array_equal(losses(tmp_path / "run"), before)


def test_another_process_can_evaluate_the_run(seismograms, unbroken, forgotten):
    assert "bulletins" not in OBJECTIVES
    mesh = make_mesh(MeshConfig())
    run = load_run(str(unbroken), mesh=mesh)
    assert run.experiment == experiment_of(seismograms)
    result = evaluate_run(run, mesh, dataclasses.replace(run.experiment.evaluate, split="validation"))
    assert result.figures["loss"] == pytest.approx(losses(unbroken)[-1], rel=1e-6)


# Decoding


@dataclasses.dataclass(frozen=True)
class Small:
    """A model with 9 tokens, two seismograms of different lengths, and a search by full forward passes."""

    config: tj.TransformerConfig
    params: Any
    source: dict[str, jax.Array]
    length: int = 6

    def apply(self, *arguments, **keywords):
        return tj.build(self.config).apply({"params": self.params}, *arguments, **keywords)

    @functools.cached_property
    def log_probs(self):
        return jax.jit(lambda targets: jax.nn.log_softmax(self.apply(**self.source, targets=targets)))

    def next_log_probs(self, row, tokens):
        """Log-probabilities of the token after ``tokens`` in one row, without a cache."""
        targets = np.ones((2, self.length), np.int32)
        targets[row, : len(tokens)] = tokens
        return np.asarray(self.log_probs(targets))[row, len(tokens)]


@pytest.fixture(scope="module")
def small(registered):
    config = outside_model.TREMOR.config("tiny", vocab_size=9, dropout=0.0)
    params = jax.tree.map(lambda leaf: 3 * leaf, drawn_params(config))  # so that tokens are not alike
    frames = np.random.default_rng(1).normal(0, 1, (2, NUM_FRAMES, NUM_CHANNELS))
    source = {
        "seismogram": jnp.asarray(frames, jnp.float32),
        "seismogram_length": jnp.array([5, NUM_FRAMES]),
    }
    return Small(config, params, source)


def test_search_with_the_cache_equals_search_by_full_forward_passes(small):
    config, length, beam_size = small.config, small.length, 3
    empty = tj.build(config).init_cache(2, length)
    shapes = {leaf.shape for leaf in jax.tree.leaves(empty.layers)}
    assert (2, 2, 8, 8) in shapes and (2, length, 2, 8) in shapes  # one of each attention
    settings = dict(max_length=length, eos_id=config.eos_id, pad_id=config.pad_id)
    start = jnp.full(2, config.decoder_start_id)

    def step_with(context):
        return lambda tokens, cache: small.apply(tokens, context, cache, method="decode_step")

    @jax.jit
    def decode():
        context = small.apply(**small.source, method="encode_context")
        several = repeated(context, beam_size)
        beam = dict(beam_size=beam_size, length_penalty=0.6)
        return (
            greedy_search(step_with(context), empty, start, **settings),
            beam_search(step_with(several), empty, start, **beam, **settings),
        )

    greedy, beams = decode()
    for row in range(2):
        next_log_probs = functools.partial(small.next_log_probs, row)
        expected = reference_beam(next_log_probs, length, 0.0, 1)
        assert_same(greedy.tokens[row : row + 1], greedy.log_probs[row : row + 1], expected)
        expected = reference_beam(next_log_probs, length, 0.6, beam_size)
        assert_same(beams.tokens[row], beams.log_probs[row], expected)


def assert_same(tokens, log_probs, expected):
    found = [tuple(row[: len(best)]) for row, (best, *_) in zip(tokens, expected, strict=True)]
    assert found == [best for best, *_ in expected]
    np.testing.assert_allclose(log_probs, [total for _, total, _ in expected], rtol=1e-4)


def test_prompts_of_different_lengths_are_continued_as_in_full_forward_passes(small):
    config, prompts = small.config, [[5, 7, 4], [6]]
    start, pad = config.decoder_start_id, config.pad_id
    rows = jnp.array([[start, 5, 7, 4], [pad, pad, start, 6]])

    @jax.jit
    def predict():
        context = small.apply(**small.source, method="encode_context")
        context = context.replace(padding=jnp.array([0, 2]))
        cache = tj.build(config).init_cache(2, small.length)
        cache = small.apply(rows[:, :-1], context, cache, method="read_prompt")
        return jax.nn.log_softmax(small.apply(rows[:, -1], context, cache, method="decode_step")[0])

    expected = [small.next_log_probs(row, prompt) for row, prompt in enumerate(prompts)]
    np.testing.assert_allclose(predict(), expected, rtol=1e-4, atol=1e-4)


# Planning


def test_it_is_planned(seismograms):
    experiment = experiment_of(seismograms)
    devices, steps = jax.devices()[:1], ("train", "decode")
    plan = make_plan(experiment, read_topology("h100:1"), steps=steps, name="tremor", devices=devices)
    train_step, decode = plan.steps
    assert plan.fits and tuple(step.name for step in plan.steps) == steps

    # By hand: 2 operations for each multiplication of a product.
    d, heads, size, ff, vocab = 16, 2, 8, 24, 260
    projections, pair = 4 * d * heads * size, 2 * heads * size

    def block(queries, keys):
        return queries * (projections + keys * pair)

    def cross(queries, keys):
        return queries * (projections // 2 + keys * pair) + keys * projections // 2

    def feedforward(tokens):
        return 2 * tokens * d * ff

    source = NUM_PATCHES
    encoder = NUM_FRAMES * NUM_CHANNELS * d + block(source, source) + feedforward(source)
    decoder = 2 * (block(MAX_LENGTH, MAX_LENGTH) + cross(MAX_LENGTH, source) + feedforward(MAX_LENGTH))
    head = MAX_LENGTH * (d * d // 2 + d // 2 * vocab)
    assert train_step.model_flops == 3 * 2 * 16 * (encoder + decoder + head)
    places = MAX_LENGTH + 2  # of the cache of full attention
    fading = projections + pair + heads * size * size * 2  # reads and writes its state
    per_token = fading + block(1, places) + 2 * (projections // 2 + source * pair + feedforward(1))
    assert decode.rows == 16
    assert decode.model_flops == 2 * 16 * (per_token + d * d // 2 + d // 2 * vocab)
    params = 4 * sum(leaf.size for leaf in jax.tree.leaves(abstract_params(experiment.model)))
    assert train_step.memory.parameters == params
    assert train_step.memory.optimizer == pytest.approx(2 * params, abs=8)  # Adam's means, and the step


# Folders of checkpoints


def test_a_pretrained_folder_is_written_and_read_back(unbroken, tmp_path, monkeypatch):
    run = from_run(unbroken)
    assert run.family is outside_model.TREMOR and run.tokenizer is not None
    tj.save_pretrained(tmp_path, run)
    found = tj.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "tremor"
    assert found.config == run.config and found.family is run.family
    assert found.tokenizer.fingerprint == run.tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, found.params, run.params)
    monkeypatch.delitem(FAMILIES, "tremor")
    with pytest.raises(ConfigError, match=r"'tremor', which is not supported; .* first add .*FAMILIES"):
        tj.from_pretrained(tmp_path)


# The library


def test_no_file_of_the_library_names_any_of_it():
    source = pathlib.Path(outside_model.__file__).read_text()
    names = set(re.findall(r"^class (\w+)", source, re.MULTILINE)) | {"seismogram", "tremor"}
    names |= {name for registry in (FRONT_ENDS, ATTENTIONS, HEADS, OBJECTIVES) for name in registry}
    names -= {name for content in BEFORE for name in content}
    assert names >= {
        "Fading",
        "fading",
        "Seismograms",
        "seismograms",
        "narrow_tokens",
        "bulletins",
        "Bulletins",
    }
    pattern = re.compile(rf"\b({'|'.join(names)})\b")
    for path in (ROOT / "transformer_jax").rglob("*.py"):
        assert not pattern.findall(path.read_text()), path
