"""Shapes of batches without data: what the real pipeline gives, and what every experiment's loss takes."""

import dataclasses
import importlib.util
import pathlib
from typing import Any

import jax
import pytest

from tests.tiny_training import tiny_experiment
from transformer_jax.data import load_source, training_iterator
from transformer_jax.models import abstract_params, build
from transformer_jax.models.front_ends import Patches
from transformer_jax.planning.batches import batch_template, num_tokens, source_shapes
from transformer_jax.runs.experiment import Experiment, make_transform, read_experiment
from transformer_jax.runs.folder import load_or_train_tokenizer
from transformer_jax.runs.shrinking import shrink
from transformer_jax.sharding import partitioning
from transformer_jax.sharding.partitioning import MeshConfig

EXPERIMENTS = sorted(pathlib.Path(__file__).parents[2].joinpath("experiments").glob("*.py"))


def read(path: pathlib.Path) -> Experiment:
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return read_experiment(module.get_config())


def test_as_the_pipeline_makes_them(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    experiment = tiny_experiment(corpus)
    tokenizer = load_or_train_tokenizer(str(tmp_path), experiment)
    transform = make_transform(experiment, tokenizer, train=True)
    iterator = training_iterator(experiment.data, load_source(experiment.data.source, "train"), transform)
    batch = next(iterator)
    iterator.close()
    mesh = partitioning.make_mesh(experiment.mesh)
    length = batch["targets"].shape[1]
    found = batch_template(experiment, mesh, length)
    assert {key: (leaf.shape, leaf.dtype) for key, leaf in found.items()} == {
        key: (array.shape, array.dtype) for key, array in batch.items()
    }
    real = partitioning.shard_batch(mesh, batch)
    assert {key: leaf.sharding for key, leaf in found.items()} == {
        key: array.sharding for key, array in real.items()
    }
    assert num_tokens(found) == batch["targets"].size


def test_sources_have_the_shapes_that_the_encoder_reads(corpus: pathlib.Path) -> None:
    experiment = tiny_experiment(corpus)
    found = source_shapes(experiment, 6)
    assert {name: leaf.shape for name, leaf in found.items()} == {
        "inputs": (6, 40),
        "inputs_segments": (6, 40),
    }
    images = dataclasses.replace(experiment.model, front_end=Patches(image_shape=(8, 12, 3), patch_size=4))
    # The objective is not asked for these shapes, and none of the library's reads images and has a decoder.
    object.__setattr__(experiment, "model", images)
    assert {name: leaf.shape for name, leaf in source_shapes(experiment, 6).items()} == {
        "images": (6, 8, 12, 3)
    }


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_can_learn_from_them(path: pathlib.Path) -> None:
    whole = read(path)
    experiment = shrink(whole)
    mesh = partitioning.make_mesh(MeshConfig())
    batch = batch_template(experiment, mesh)
    apply: Any = build(experiment.model).apply
    params = partitioning.unbox(abstract_params(experiment.model))
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss, sums = jax.eval_shape(
        lambda *arguments: experiment.objective.loss(apply, *arguments, train=True),
        *(params, batch, {"dropout": key}),
    )
    assert (loss.shape, sums["tokens"].shape) == ((), ())
    whole = dataclasses.replace(whole, data=dataclasses.replace(whole.data, batch_size=16))
    shapes = {leaf.shape[0] for leaf in batch_template(whole, mesh).values()}
    assert shapes == {16}
