"""One update, one run: accumulation, meshes, resuming, and what a run leaves behind."""

import dataclasses
import functools
import json
import shutil
import sys

import jax
import numpy as np
import optax
import pytest

from tests.drawn import drawn_params
from tests.tiny_training import COMPARABLE, SIZES, SMOOTH, assert_equal_training, tiny_experiment
from transformer_jax.data import (
    load_source,
    pad_batch,
    training_iterator,
)
from transformer_jax.data.packing import plan_packed
from transformer_jax.evaluation.scoring import make_evaluate_step
from transformer_jax.models import build
from transformer_jax.objectives import Classification, Seq2Seq, TokenClassification
from transformer_jax.reporting.progress import MetricWriter, read_metrics
from transformer_jax.runs.experiment import make_transform
from transformer_jax.runs.folder import load_or_train_tokenizer, store_config
from transformer_jax.runs.loading import load_run
from transformer_jax.sharding import partitioning
from transformer_jax.training.loop import StepLog, continue_command, train
from transformer_jax.training.step import compile_train_step, make_init, make_train_step
from transformer_jax.types import BATCH_KEYS, SIDES

# What is compared is compiled in the same way.
pytestmark = pytest.mark.usefixtures("quickly_compiled")

ADAM = dataclasses.asdict(COMPARABLE)


def batches_of(experiment, tmp_path):
    tokenizer = load_or_train_tokenizer(tmp_path, experiment)
    source = load_source(experiment.data.source, "train")
    return training_iterator(experiment.data, source, make_transform(experiment, tokenizer, train=True))


def run_steps(experiment, tmp_path, num_steps, devices):
    """Losses and final parameters of a few updates on a mesh of so many devices."""
    mesh = partitioning.make_mesh(experiment.mesh, jax.devices()[:devices])
    _, init, step = compile_train_step(experiment, mesh)
    state = init()
    batches = batches_of(experiment, tmp_path)
    losses = []
    for _ in range(num_steps):
        state, sums = step(state, partitioning.shard_batch(mesh, next(batches)))
        losses.append(float(sums["loss"]) / float(sums["tokens"]))
    batches.close()
    return np.array(losses), jax.device_get(state.params)


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(dict(frozen=("embedding/", "encoder/layer_0/self"), layer_decay=0.9), id="frozen"),
        pytest.param(dict(name="adafactor"), id="adafactor", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.everything), 8])
def test_parameters_of_several_kinds_train_on_a_mesh(corpus, tmp_path, optimizer, devices):
    mesh = dict(data=2, fsdp=2, tensor=2) if devices == 8 else {}
    model = dict(scan_layers=True, num_encoder_layers=2) if "name" in optimizer else {}
    experiment = tiny_experiment(corpus, optimizer=optimizer, mesh=mesh, model=model)
    _, init, _ = compile_train_step(
        experiment, partitioning.make_mesh(experiment.mesh, jax.devices()[:devices])
    )
    before = jax.device_get(init().params)
    _, after = run_steps(experiment, tmp_path, 2, devices)
    for path, leaf in jax.tree_util.tree_leaves_with_path(before):
        name = "/".join(key.key for key in path)
        is_frozen = any(name.startswith(start) for start in optimizer.get("frozen", ()))
        new = functools.reduce(lambda tree, key: tree[key.key], path, after)
        assert np.array_equal(leaf, new) == is_frozen, name


@pytest.mark.smoke
def test_parameters_and_moments_are_split_over_the_mesh(corpus):
    experiment = tiny_experiment(corpus, mesh=dict(data=2, fsdp=2, tensor=2))
    _, init, _ = compile_train_step(experiment, partitioning.make_mesh(experiment.mesh))
    state = init()
    for tree in (state.params, state.optimizer[0].mu, state.optimizer[0].nu):
        kernel = tree["encoder"]["layer_0"]["feedforward"]["hidden"]["kernel"]  # (16, 32)
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(8, 16)}


@pytest.mark.smoke
def test_the_gradient_norm_is_that_of_the_mean_loss(corpus, tmp_path):
    experiments = [
        tiny_experiment(
            corpus, model=dict(dropout=0.0), mesh=dict(data=1), train=dict(gradient_accumulation_steps=parts)
        )
        for parts in (1, 4)
    ]
    experiment = experiments[0]
    mesh = partitioning.make_mesh(experiment.mesh, jax.devices()[:1])
    params = compile_train_step(experiment, mesh)[1]().params
    batch = jax.device_put(next(batches_of(experiment, tmp_path)))

    def mean_loss(params):
        apply = build(experiment.model).apply
        logits = apply({"params": params}, **{key: batch[key] for key in BATCH_KEYS})
        labels = optax.smooth_labels(jax.nn.one_hot(batch["targets"], 260), 0.1)
        losses = optax.softmax_cross_entropy(logits, labels)
        return losses.mean(where=batch["targets_segments"] > 0)

    squares = jax.tree.map(
        lambda leaf: np.sum(np.square(np.asarray(leaf, np.float64))), jax.jit(jax.grad(mean_loss))(params)
    )
    expected = np.sqrt(sum(jax.tree.leaves(squares)))
    for experiment in experiments:
        _, init, step = compile_train_step(experiment, mesh)
        _, sums = step(init(), partitioning.shard_batch(mesh, jax.device_get(batch)))
        np.testing.assert_allclose(sums["gradient_norm"], expected, rtol=1e-5)  # sums of 1e4 float32 squares


def test_accumulation_equals_one_large_batch(corpus, tmp_path):
    settings = dict(model=dict(dropout=0.0), mesh=dict(data=1), optimizer=ADAM)
    plain = tiny_experiment(corpus, **settings)
    parts = tiny_experiment(corpus, **settings, train=dict(gradient_accumulation_steps=4))
    assert_equal_training(run_steps(plain, tmp_path, 5, 1), run_steps(parts, tmp_path, 5, 1))


@pytest.mark.slow
def test_accumulation_on_eight_devices_equals_one_device(corpus, tmp_path):
    micro = dict(train=dict(gradient_accumulation_steps=2), model=dict(dropout=0.0), data=dict(buckets=()))
    micro["optimizer"] = ADAM
    micro["data"]["tokens_per_batch"] = 16 * 40
    one = run_steps(tiny_experiment(corpus, mesh=dict(data=1), **micro), tmp_path, 3, 1)
    eight = run_steps(tiny_experiment(corpus, mesh=dict(data=4, fsdp=2), **micro), tmp_path, 3, 8)
    assert_equal_training(one, eight)


def test_a_packed_pair_has_the_loss_it_has_alone(corpus, tmp_path):
    """One packed batch against the same pairs in rows of their own, under the same parameters."""
    experiment = tiny_experiment(corpus, model=dict(dropout=0.0), mesh=dict(data=1))
    tokenizer = load_or_train_tokenizer(tmp_path, experiment)
    transform = make_transform(experiment, tokenizer, train=True)
    source = load_source(experiment.data.source, "train")
    examples = [transform.encode(text) for text in source.read(range(48))]
    lengths = np.array([[len(example[side]) for side in ("inputs", "targets")] for example in examples])
    plans, _ = plan_packed(lengths, 40, 8 * 40, 0)
    rows = plans[0].rows
    packed = pad_batch([[examples[i] for i in row] for row in rows], 40)
    alone = pad_batch([[examples[i]] for row in rows for i in row], 40)
    assert len(alone["inputs"]) > 2 * len(rows)  # or nothing was packed
    # Larger than at the start, so that seeing a neighbour would make a difference.
    params = jax.tree.map(lambda leaf: 3 * leaf, drawn_params(experiment.model, 3))
    step = make_evaluate_step(experiment)
    sums = [{name: float(value) for name, value in step(params, batch).items()} for batch in (packed, alone)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)  # float32 sums of a few hundred terms
    broken = packed | {f"{side}_segments": np.minimum(packed[f"{side}_segments"], 1) for side in SIDES}
    assert float(step(params, broken)["nll"]) != pytest.approx(sums[1]["nll"], rel=1e-3)


@pytest.mark.parametrize(
    "sections",
    [
        # For every change, those that no whole run of another test or no other test of the parts trains with.
        pytest.param(
            dict(optimizer=dict(name="adamw", weight_decay=0.1, clip_norm=0.5, schedule="cosine")),
            marks=pytest.mark.everything,
        ),
        dict(model=dict(dtype="bfloat16")),
        pytest.param(
            dict(model=dict(scan_layers=True, remat=True, num_encoder_layers=2, num_decoder_layers=2)),
            marks=pytest.mark.everything,
        ),
        pytest.param(
            dict(model=dict(norm_position="pre", positions="learned", share_embeddings="none")),
            marks=pytest.mark.everything,
        ),
        dict(data=dict(batching="packed", buckets=())),
        dict(mesh=dict(data=2, fsdp=2, tensor=2), optimizer=dict(name="adafactor", peak_rate=1e-2)),
    ],
    ids=lambda sections: "-".join(f"{k}" for section in sections.values() for k in section),
)
def test_every_way_of_training_learns(corpus, tmp_path, sections):
    experiment = tiny_experiment(corpus, **({"mesh": dict(data=1), "train": dict(num_steps=25)} | sections))
    losses, params = run_steps(experiment, tmp_path, 25, 8 if "mesh" in sections else 1)
    assert losses[-5:].mean() < losses[:5].mean() - 0.5
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_dropout_differs_from_step_to_step_and_seed_to_seed(corpus, tmp_path):
    """The same parameters and batch: what else differs is dropout."""
    experiment = tiny_experiment(corpus, model=dict(dropout=0.5), mesh=dict(data=1))
    batch, state = next(batches_of(experiment, tmp_path)), jax.jit(make_init(experiment))()
    other = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=1))
    here, there = (jax.jit(make_train_step(one)) for one in (experiment, other))
    again = [float(here(state, batch)[1]["loss"]) for _ in range(2)]
    next_step = float(here(state.replace(step=state.step + 1), batch)[1]["loss"])
    next_seed = float(there(state, batch)[1]["loss"])
    assert again[0] == again[1]
    assert len({again[0], next_step, next_seed}) == 3


def final_params(workdir):
    return load_run(str(workdir), average_last=1).params


@pytest.mark.smoke
def test_a_whole_run_and_what_it_leaves_behind(corpus, tmp_path, capsys):
    experiment = tiny_experiment(corpus)
    summary = train(experiment, str(tmp_path / "run"))
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["examples"] == SIZES["test"]
    assert set(summary) >= {
        "bleu",
        "chrf",
        "exact_match",
        "loss",
        "perplexity",
        "training_seconds",
        "bleu_signature",
    }
    records = read_metrics(tmp_path / "run")
    assert [r["step"] for r in records if "train/loss" in r] == [2, 4, 6]
    losses = {r["step"]: r["validation/loss"] for r in records if "validation/loss" in r}
    assert list(losses) == [3, 6]
    assert load_run(str(tmp_path / "run"), "best").steps == (min(losses, key=losses.__getitem__),)
    assert len((tmp_path / "run" / "translations_test.txt").read_text().splitlines()) == SIZES["test"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    printed = capsys.readouterr()
    assert "exact_match" in printed.out and "translation" in printed.out
    assert "tokens/s" in printed.err

    again = train(experiment, str(tmp_path / "run"))  # complete already: only evaluated again
    for name in ("loss", "bleu", "exact_match"):
        assert again[name] == summary[name]


@pytest.mark.slow
def test_a_run_continued_at_every_checkpoint_is_the_same_to_the_bit(corpus, tmp_path):
    experiment = tiny_experiment(corpus, train=dict(num_steps=7))
    train(experiment, str(tmp_path / "whole"))
    for last in (2, 5, 7):
        # inverse_square_root does not look at num_steps, so a shorter run is a beginning of the longer.
        train(tiny_experiment(corpus, train=dict(num_steps=last)), str(tmp_path / "parts"))
    whole, parts = (final_params(tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


@pytest.mark.slow
def test_continuing_on_another_mesh(corpus, tmp_path):
    def parameters(name, first, then):
        for num_steps, mesh in ((2, first), (4, then)):
            sections = dict(model=SMOOTH, optimizer=ADAM, mesh=mesh, train=dict(num_steps=num_steps))
            experiment = tiny_experiment(corpus, **sections)
            train(experiment, str(tmp_path / name))
        return final_params(tmp_path / name)

    same = parameters("same", dict(data=8), dict(data=8))
    other = parameters("other", dict(data=8), dict(data=2, fsdp=2, tensor=2))
    assert_equal_training(([0.0], same), ([0.0], other))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("damage", ["half", "garbled"])
def test_a_damaged_checkpoint_is_said_and_made_again(corpus, tmp_path, damage, caplog):
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    for folder, steps in ((whole, 6), (damaged, 4)):
        train(tiny_experiment(corpus, train=dict(num_steps=steps)), str(folder))
    newest = damaged / "checkpoints" / "4"
    if damage == "half":
        next(newest.rglob("commit_success.txt")).unlink()
    else:
        for path in newest.rglob("*"):
            if path.is_file() and path.stat().st_size > 1000:
                path.write_bytes(path.read_bytes()[:500])
    train(tiny_experiment(corpus), str(damaged))
    assert "checkpoints/4" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, final_params(whole), final_params(damaged))


def test_the_command_that_continues_names_the_config_until_it_is_stored(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--config=mine.py", f"--workdir={tmp_path}"])
    experiment, given = tiny_experiment(corpus), f"--config=mine.py --workdir={tmp_path}"
    assert continue_command(str(tmp_path), experiment).endswith(given)
    store_config(tmp_path, experiment)
    assert continue_command(str(tmp_path), experiment).endswith(f"transformer_jax.train --workdir={tmp_path}")
    other = tiny_experiment(corpus, train=dict(num_steps=9))
    assert continue_command(str(tmp_path), other).endswith(given)


def test_a_run_whose_only_checkpoint_is_incomplete_says_so_and_starts_again(corpus, tmp_path, capsys):
    experiment = tiny_experiment(corpus, train=dict(num_steps=1), checkpoint=dict(keep_latest=2))
    load_or_train_tokenizer(tmp_path, experiment)
    store_config(tmp_path, experiment)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    assert train(experiment, str(tmp_path))["steps"] == 1
    assert "checkpoint of step 1 is incomplete and is the only one" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_pairs_left_out_are_counted_to_the_end(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    for side in ("source", "target"):
        with open(tmp_path / "corpus" / f"train.{side}", "a") as file:
            file.write("x" * 60 + "\n" + "\n")
    experiment = tiny_experiment(tmp_path / "corpus", data=dict(window=98))
    summary = train(experiment, str(tmp_path / "run"))
    assert summary["pairs_too_long"] == 1 and summary["pairs_blank"] == 1


def test_logged_loss_is_the_mean_over_the_tokens_of_several_steps(tmp_path):
    with MetricWriter(tmp_path) as writer:
        log = StepLog(Seq2Seq(), writer)
        for loss, tokens in ((10.0, 1.0), (2.0, 3.0)):
            sums = dict(loss=loss, nll=loss, correct=0.0, tokens=tokens, gradient_norm=5.0, rate=7.0)
            log.add({name: jax.numpy.float32(value) for name, value in sums.items()})
        log.write(9, {"speed": 1.0})
    record = read_metrics(tmp_path)[0]
    assert record["step"] == 9 and record["train/loss"] == 3.0 and record["train/speed"] == 1.0
    assert record["train/gradient_norm"] == 5.0 and record["train/rate"] == 7.0
    assert log.loss == pytest.approx(2 / 3) and log.total == {}


def test_a_loss_that_is_no_number_is_not_saved(tmp_path):
    for objective in (Seq2Seq(), Classification(), TokenClassification()):
        log = StepLog(objective, MetricWriter(tmp_path, active=False))
        log.add({"loss": jax.numpy.float32(np.nan), "tokens": jax.numpy.float32(1)})
        with pytest.raises(FloatingPointError, match=r"the loss became nan at step 3; .* another --workdir$"):
            log.fetch(3)
