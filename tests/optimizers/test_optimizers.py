"""Schedules and optimizers against formulas written here, in NumPy and float64."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax.config import ConfigError, read_section
from transformer_jax.optimizers.optimizers import (
    OptimizerConfig,
    decay_mask,
    make_optimizer,
    make_schedule,
    paper_peak_rate,
)

pytestmark = pytest.mark.smoke

NUM_STEPS = 50


def rates(config: OptimizerConfig, num_steps: int, count: int) -> np.ndarray:
    schedule = make_schedule(config, num_steps)
    found = [schedule(jnp.asarray(step, jnp.int32)) for step in range(count)]
    return np.asarray(found, np.float64)


def run(config: OptimizerConfig, params: dict, gradients: list[dict]) -> dict:
    """Updates float32 parameters with each gradient, compiled, and returns float64 ones."""
    optimizer = make_optimizer(config, NUM_STEPS)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        gradient = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradient)
        params, state = step(params, state, gradient)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def random_tree(rng: np.random.Generator) -> dict:
    return {
        "kernel": rng.normal(size=(4, 3)),
        "attention": {"bias": rng.normal(size=(2, 3)), "scale": rng.normal(size=3)},
    }


def test_inverse_square_root_is_equation_3_of_the_paper() -> None:
    d_model, warmup = 512, 4000
    config = OptimizerConfig(
        peak_rate=paper_peak_rate(d_model, warmup),
        warmup_steps=warmup,
        schedule="inverse_square_root",
    )
    schedule = make_schedule(config, 100_000)
    for n in (1, 2, 100, 3999, 4000, 4001, 8000, 100_000):
        expected = d_model**-0.5 * min(n**-0.5, n * warmup**-1.5)
        np.testing.assert_allclose(schedule(n - 1), expected, rtol=1e-6)


def test_paper_peak_rate_is_the_highest_rate() -> None:
    config = OptimizerConfig(peak_rate=paper_peak_rate(64, 10), warmup_steps=10)
    found = rates(config, NUM_STEPS, NUM_STEPS)
    assert found.argmax() == 9  # update number 10
    assert found.max() == pytest.approx(1 / math.sqrt(64 * 10))


@pytest.mark.parametrize("schedule", ["inverse_square_root", "cosine", "linear", "constant"])
def test_warmup_rises_in_equal_steps_to_the_peak(schedule: str) -> None:
    config = OptimizerConfig(schedule=schedule, peak_rate=0.3, warmup_steps=6)
    np.testing.assert_allclose(rates(config, NUM_STEPS, 6), 0.3 * np.arange(1, 7) / 6, rtol=1e-6)


def test_the_rate_of_t5_is_constant_until_it_falls() -> None:
    """Raffel et al. 2020, section 3.1.2: 1 / sqrt(max(n, k))."""
    config = OptimizerConfig(peak_rate=1e-2, warmup_steps=10_000, warmup_start_factor=1.0)
    schedule = make_schedule(config, 2**19)
    for n in (1, 2, 5_000, 9_999, 10_000, 10_001, 40_000, 2**19):
        np.testing.assert_allclose(schedule(n - 1), 1 / math.sqrt(max(n, 10_000)), rtol=1e-6)


def test_a_warmup_may_start_above_zero() -> None:
    config = OptimizerConfig(schedule="constant", peak_rate=2.0, warmup_steps=4, warmup_start_factor=0.2)
    np.testing.assert_allclose(rates(config, 10, 6), [0.8, 1.2, 1.6, 2.0, 2.0, 2.0], rtol=1e-6)


def test_cosine_and_linear_end_where_they_should() -> None:
    for schedule in ("cosine", "linear"):
        config = OptimizerConfig(schedule=schedule, peak_rate=2.0, warmup_steps=10, end_rate_factor=0.1)
        found = rates(config, NUM_STEPS, NUM_STEPS + 5)
        n = np.arange(11, NUM_STEPS + 1)
        done = (n - 10) / 40
        left = (1 + np.cos(np.pi * done)) / 2 if schedule == "cosine" else 1 - done
        np.testing.assert_allclose(found[10:NUM_STEPS], 0.2 + 1.8 * left, rtol=1e-5)
        np.testing.assert_allclose(found[NUM_STEPS - 1 :], 0.2, rtol=1e-5)  # and stays there


def test_no_warmup_starts_at_the_peak() -> None:
    for schedule in ("inverse_square_root", "constant"):
        config = OptimizerConfig(schedule=schedule, peak_rate=0.5, warmup_steps=0)
        found = rates(config, NUM_STEPS, 9)
        expected = np.arange(1, 10) ** -0.5 if schedule == "inverse_square_root" else np.ones(9)
        np.testing.assert_allclose(found, 0.5 * expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "weight_decay"), [("adam", 0.0), ("adamw", 0.1)])
def test_adam_and_adamw_for_seven_steps(name: str, weight_decay: float, rng: np.random.Generator) -> None:
    config = OptimizerConfig(
        name=name,
        peak_rate=0.05,
        warmup_steps=3,
        weight_decay=weight_decay,
    )
    params, gradients = random_tree(rng), [random_tree(rng) for _ in range(7)]
    found = run(config, params, gradients)

    decayed = {"kernel": weight_decay, "attention": {"bias": 0.0, "scale": 0.0}}
    mean = jax.tree.map(np.zeros_like, params)
    square = jax.tree.map(np.zeros_like, params)
    for n, gradient in enumerate(gradients, start=1):
        rate = 0.05 * min(n / 3, math.sqrt(3 / n))
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
        square = jax.tree.map(lambda v, g: 0.98 * v + 0.02 * g * g, square, gradient)

        def update(p, m, v, decay, n=n, rate=rate):
            step = (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.98**n)) + 1e-9)
            return p - rate * (step + decay * p)

        params = jax.tree.map(update, params, mean, square, decayed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, params)


def test_adafactor_factored_and_not(rng: np.random.Generator) -> None:
    """Shazeer and Stern 2018, algorithms 4 and 5, with the relative step size given."""
    shapes = {"kernel": (128, 130), "bias": (5,)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    gradients = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(5)]
    config = OptimizerConfig(name="adafactor", peak_rate=0.05, schedule="constant", warmup_steps=2)
    found = run(config, params, gradients)

    rows, columns, whole = np.zeros(128), np.zeros(130), np.zeros(5)
    for n, gradient in enumerate(gradients, start=1):
        decay = 1 - n**-0.8
        squares = {name: value**2 + 1e-30 for name, value in gradient.items()}
        rows = decay * rows + (1 - decay) * squares["kernel"].mean(axis=1)
        columns = decay * columns + (1 - decay) * squares["kernel"].mean(axis=0)
        whole = decay * whole + (1 - decay) * squares["bias"]
        second = {"kernel": np.outer(rows, columns) / rows.mean(), "bias": whole}
        for name in params:
            update = gradient[name] / np.sqrt(second[name])
            update /= max(1.0, np.sqrt(np.mean(update**2)))
            scale = max(1e-3, np.sqrt(np.mean(params[name] ** 2)))
            params[name] = params[name] - 0.05 * min(n / 2, 1) * scale * update
    for name in params:
        np.testing.assert_allclose(found[name], params[name], rtol=5e-5, atol=1e-5)


def test_clipping_scales_all_gradients_by_one_factor(rng: np.random.Generator) -> None:
    optimizer = make_optimizer(OptimizerConfig(clip_norm=0.5), NUM_STEPS)
    unclipped = make_optimizer(OptimizerConfig(), NUM_STEPS)
    gradient = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), random_tree(rng))
    norm = math.sqrt(sum(float(np.sum(np.square(x))) for x in jax.tree.leaves(gradient)))
    assert norm > 0.5
    # Adam is blind to the scale of a first gradient, so look at its second one.
    small = jax.tree.map(lambda x: 0.1 * x / norm, gradient)
    clipped = jax.tree.map(lambda x: 0.5 * x / norm, gradient)
    state, expected_state = optimizer.init(gradient), unclipped.init(gradient)
    for given, expected in ((gradient, clipped), (small, small)):
        update, state = optimizer.update(given, state, gradient)
        wanted, expected_state = unclipped.update(expected, expected_state, gradient)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), update, wanted)


def test_decay_mask_by_name_also_in_a_scanned_stack() -> None:
    params = {
        "embedding": np.ones((7, 4)),
        "layers": {
            "kernel": np.ones((2, 4, 4)),
            "bias": np.ones((2, 4)),  # (layers, D): two dimensions, and yet a bias
            "norm": {"scale": np.ones((2, 4))},
        },
        "gate": np.ones(4),
    }
    assert decay_mask(params) == {
        "embedding": True,
        "layers": {"kernel": True, "bias": False, "norm": {"scale": False}},
        "gate": False,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak_rate": -1e-3}, "peak_rate=-0.001 must be a positive number"),
        ({"peak_rate": 0.0}, "peak_rate=0.0 must be a positive"),
        ({"peak_rate": math.nan}, "peak_rate=nan must be a positive"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be 0"),
        ({"warmup_start_factor": 1.5}, r"warmup_start_factor=1.5 must be in \[0, 1\]"),
        ({"end_rate_factor": 2.0, "schedule": "cosine"}, r"must be in \[0, 1\]"),
        ({"end_rate_factor": 0.1}, "only to the schedules cosine and linear"),
        ({"b1": 1.0}, r"b1=1.0 must be in \[0, 1\)"),
        ({"b2": -0.1}, r"b2=-0.1 must be in"),
        ({"epsilon": 0.0}, "epsilon=0.0 must be a positive"),
        ({"name": "adafactor", "b1": 0.5}, "b1=0.5 applies only to name='adam' and 'adamw'; leave it at 0.9"),
        ({"weight_decay": 0.1}, "applies only to name='adamw'; set it to 0 for name='adam'"),
        ({"weight_decay": -0.1, "name": "adamw"}, "weight_decay=-0.1 must be 0"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0 must be 0"),
    ],
)
def test_impossible_values_are_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


def test_a_schedule_needs_room_to_fall() -> None:
    for schedule in ("cosine", "linear"):
        config = OptimizerConfig(schedule=schedule, warmup_steps=100)
        with pytest.raises(
            ValueError, match=r"warmup_steps=100 leaves none of the 100 steps .* use at most 99"
        ):
            make_schedule(config, 100)
        make_schedule(config, 101)
    make_schedule(OptimizerConfig(warmup_steps=100), 2)  # need not fall: a shrunk experiment
    with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
        make_schedule(OptimizerConfig(), 0)
    with pytest.raises(ValueError, match="must be at least 1"):
        paper_peak_rate(512, 0)


def test_a_section_reads_into_the_config() -> None:
    section = {
        "name": "adamw",
        "schedule": "cosine",
        "peak_rate": 1,
        "warmup_steps": 3,
        "warmup_start_factor": 0.0,
        "end_rate_factor": 0.0,
        "b1": 0.9,
        "b2": 0.98,
        "epsilon": 1e-9,
        "weight_decay": 0.01,
        "clip_norm": 0.0,
        "frozen": (),
        "layer_decay": 1.0,
    }
    assert read_section(OptimizerConfig, section, "optimizer").weight_decay == 0.01
    with pytest.raises(ConfigError, match=r"config.optimizer: .*b1=2.0 must be in"):
        read_section(OptimizerConfig, {**section, "b1": 2.0}, "optimizer")
    with pytest.raises(ConfigError, match=r"config.optimizer.schedule must be"):
        read_section(OptimizerConfig, {**section, "schedule": "cosin"}, "optimizer")


@pytest.mark.parametrize("more", [{}, dict(frozen=("head/",)), dict(clip_norm=0.5)], ids=str)
def test_adafactor_of_scanned_layers_is_that_of_each(rng: np.random.Generator, more) -> None:
    # Layers of very different sizes, factored (kernel) and not (bias), and stacks of different depths.
    kernels = {
        stack: [10.0**i * rng.normal(size=(128, 130)) for i in range(count)]
        for stack, count in (("encoder", 2), ("decoder", 3))
    }
    biases = {stack: [rng.normal(size=5) * 3**i for i in range(len(ks))] for stack, ks in kernels.items()}
    head = {"head": {"kernel": jnp.ones((128, 130))}}

    def unrolled(kernels, biases):
        return head | {
            stack: {
                f"layer_{i}": {"kernel": jnp.asarray(k, jnp.float32), "bias": jnp.asarray(b, jnp.float32)}
                for i, (k, b) in enumerate(zip(kernels[stack], biases[stack], strict=True))
            }
            for stack in kernels
        }

    def scanned(tree):
        stacks = {
            stack: {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *tree[stack].values())}
            for stack in kernels
        }
        return {"head": tree["head"]} | stacks

    config = OptimizerConfig(name="adafactor", peak_rate=0.05, schedule="constant", warmup_steps=2, **more)
    optimizer = make_optimizer(config, 10)
    params = unrolled(kernels, biases)
    stacked = scanned(params)
    state, stacked_state = optimizer.init(params), optimizer.init(stacked)
    update = jax.jit(optimizer.update)
    for _ in range(3):
        gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
        updates, state = update(gradient, state, params)
        stacked_updates, stacked_state = update(scanned(gradient), stacked_state, stacked)
        params, stacked = optax.apply_updates(params, updates), optax.apply_updates(stacked, stacked_updates)
    for one, other in zip(jax.tree.leaves(scanned(params)), jax.tree.leaves(stacked), strict=True):
        # The norm that clips is summed in another order; what is added to a number as large as the largest is
        # rounded like it.
        rounding = np.finfo(np.float32).eps * np.abs(one).max()
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=rounding)
