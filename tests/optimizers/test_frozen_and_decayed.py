"""Parameters that stay as they are, and layers that move the less the further they are from the output."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.optimizers.optimizers import OptimizerConfig, make_optimizer


def tree_of_layers():
    """Parameters of two stacks, one unrolled and one scanned, with a head."""
    ones = jnp.ones(())
    return {
        "embedding": {"embedding": ones},
        "embed_inputs": {"positions": {"embedding": ones}},
        "encoder": {"layer_0": {"kernel": ones}, "layer_1": {"kernel": ones}, "final_norm": {"scale": ones}},
        "decoder": {"layers": {"kernel": jnp.ones((3, 2))}, "relative_bias": {"embedding": ones}},
        "head": {"classes": {"kernel": ones}},
    }


def test_layers_further_from_the_output_move_less() -> None:
    params = tree_of_layers()
    config = OptimizerConfig(schedule="constant", warmup_steps=0, peak_rate=1.0, layer_decay=0.5)
    optimizer = make_optimizer(config, 10)
    gradient = jax.tree.map(lambda leaf: 7 * jnp.ones_like(leaf), params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    moved = jax.tree.map(lambda leaf: np.round(-np.asarray(leaf), 5).tolist(), updates)
    assert moved["encoder"] == {
        "layer_0": {"kernel": 0.25},
        "layer_1": {"kernel": 0.5},
        "final_norm": {"scale": 1.0},
    }
    assert moved["decoder"]["layers"]["kernel"] == [[0.125] * 2, [0.25] * 2, [0.5] * 2]
    assert moved["decoder"]["relative_bias"]["embedding"] == 0.0625
    assert moved["head"]["classes"]["kernel"] == 1.0
    # Of two stacks the deeper one counts for embeddings.
    assert moved["embedding"]["embedding"] == moved["embed_inputs"]["positions"]["embedding"] == 0.0625


def test_layers_that_are_frozen_count() -> None:
    params = tree_of_layers()
    frozen = ("decoder/", "encoder/layer_1/")
    config = OptimizerConfig(
        schedule="constant", warmup_steps=0, peak_rate=1.0, layer_decay=0.5, frozen=frozen
    )
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    moved = jax.tree.map(lambda leaf: np.round(-np.asarray(leaf), 5).tolist(), updates)
    assert moved["encoder"] == {
        "layer_0": {"kernel": 0.25},
        "layer_1": {"kernel": 0.0},
        "final_norm": {"scale": 1.0},
    }
    assert moved["embedding"]["embedding"] == 0.0625  # of the decoder's three layers
    assert moved["decoder"]["layers"]["kernel"] == [[0.0] * 2] * 3


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_frozen_parameters_stay_to_the_bit_and_have_no_statistics(name) -> None:
    params = tree_of_layers()
    decay = dict(weight_decay=0.5) if name == "adamw" else {}
    config = OptimizerConfig(
        name=name, schedule="constant", warmup_steps=0, frozen=("embed", r"encoder/layer_[0]/"), **decay
    )
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    is_moved = jax.tree.map(lambda leaf: bool((leaf != 0).all()), updates)
    assert not is_moved["embedding"]["embedding"] and not is_moved["embed_inputs"]["positions"]["embedding"]
    assert is_moved["encoder"] == {
        "layer_0": {"kernel": False},
        "layer_1": {"kernel": True},
        "final_norm": {"scale": True},
    }
    assert is_moved["head"]["classes"]["kernel"] and is_moved["decoder"]["layers"]["kernel"]
    free = make_optimizer(dataclasses.replace(config, frozen=()), 10)
    assert len(jax.tree.leaves(state)) < len(jax.tree.leaves(free.init(params)))


def test_clipping_looks_at_trained_parameters_alone() -> None:
    params = {"embedding": jnp.zeros(1), "head": jnp.zeros(1)}
    config = OptimizerConfig(schedule="constant", warmup_steps=0, b1=0.0, b2=0.0, epsilon=1.0, clip_norm=1.0)
    gradient = {"embedding": jnp.full(1, 1e6), "head": jnp.full(1, 0.5)}
    found = {}
    for frozen in ((), ("embedding",)):
        optimizer = make_optimizer(dataclasses.replace(config, frozen=frozen), 10)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        found[frozen] = abs(float(updates["head"][0]))
    assert found[("embedding",)] == pytest.approx(1e-3 * 0.5 / 1.5)  # rate * g / (|g| + epsilon), not clipped
    assert found[()] < 1e-8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(frozen=("encoder/(",)), r"frozen has 'encoder/\(', which is not a regular expression"),
        (dict(layer_decay=0.0), r"layer_decay=0.0 must be above 0"),
    ],
)
def test_bad_freezing_and_decay_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (("encodr",), r"'encodr', which matches no parameter; the parameters are .*encoder/layer_0/kernel"),
        ((".*",), "freezes all"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_all_is_refused(frozen, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(OptimizerConfig(frozen=frozen), 10).init(tree_of_layers())
