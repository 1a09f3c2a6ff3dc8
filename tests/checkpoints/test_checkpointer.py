"""Checkpoints: exact, atomic, prunable, and readable on other devices than those that wrote."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.started_processes import run_python
from transformer_jax.checkpoints.checkpointer import CheckpointConfig, Checkpointer
from transformer_jax.checkpoints.files import CheckpointError, CheckpointMismatchError
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh

pytestmark = pytest.mark.smoke

CONFIG = CheckpointConfig(every_steps=10, keep_latest=3, keep_best=0)


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    optimizer: Any
    key: jax.Array


def make_state(seed: int = 0, size: int = 24) -> State:
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {"kernel": jnp.asarray(rng.normal(size=(size, 16)), jnp.float32)},
        "layers": [jnp.asarray(rng.normal(size=(8, 3)), jnp.bfloat16)],
        "scale": jnp.asarray([1e-42, -0.0, np.inf, np.nan], jnp.float32),
    }
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    return State(jnp.asarray(seed), params, optimizer.init(params), jax.random.key(seed, impl="rbg"))


def template(state: Any, sharding: Any = None) -> Any:
    def leaf(x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, state)


def bits(leaf: Any) -> bytes:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype, bits(a)) == (b.shape, b.dtype, bits(b))


def write(directory: Path, config: CheckpointConfig, steps: list[int], size: int = 24) -> None:
    with Checkpointer(directory, config) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step, size), {"step": step})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 10 and 20; to be copied, not changed."""
    directory = tmp_path_factory.mktemp("written") / "checkpoints"
    write(directory, CONFIG, [10, 20], size=200)
    return directory


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def test_round_trip_is_exact_to_the_bit(tmp_path: Path) -> None:
    state = make_state(7)
    data = {"next": [1, {"a": 2**60}], "rng": "☃", "nothing": None, "ratio": 0.1}
    with Checkpointer(tmp_path / "new" / "folder", CONFIG) as checkpointer:
        assert checkpointer.latest_step() is None and checkpointer.steps() == []
        assert not (tmp_path / "new").exists()
        checkpointer.save(3, state, data, {"loss": 0.5, "bleu": np.float32(1)})
        checkpointer.wait()
        restored = checkpointer.restore(template(state))
    assert_same(restored.state, state)
    assert restored.state.key.dtype == state.key.dtype  # its implementation too
    assert restored[0] == 3 and restored.data_state == data and restored.skipped == ()
    assert restored.metrics == {"loss": 0.5, "bleu": 1.0}


def test_restores_onto_another_mesh(tmp_path: Path) -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    specs = {"a": PartitionSpec("fsdp", "tensor"), "b": PartitionSpec(("data", "fsdp"))}
    values = {"a": np.arange(48.0).reshape(6, 8), "b": np.arange(16), "c": np.float32(3)}
    state = {
        "params": {
            name: jax.device_put(value, NamedSharding(mesh, specs.get(name, PartitionSpec())))
            for name, value in values.items()
        }
    }
    with Checkpointer(tmp_path, CONFIG) as checkpointer:
        checkpointer.save(1, state, {})
    other = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
    for sharding in (
        NamedSharding(other, PartitionSpec()),
        NamedSharding(make_mesh(MeshConfig(), jax.devices()[3:4]), PartitionSpec()),
        None,
    ):
        found = Checkpointer(tmp_path, CONFIG).restore(template(state, sharding)).state
        assert_same(found, state)
        if sharding is not None:
            assert found["params"]["a"].sharding == sharding


def test_one_device_reads_what_eight_wrote(tmp_path: Path, single_device_environment: dict[str, str]) -> None:
    mesh = make_mesh(MeshConfig())
    kernel = jax.device_put(np.arange(16.0), NamedSharding(mesh, PartitionSpec("data")))
    with Checkpointer(tmp_path, CONFIG) as checkpointer:
        checkpointer.save(1, {"params": {"kernel": kernel}, "step": jnp.asarray(1)}, {})
    program = """
        import sys, jax, numpy as np
        from transformer_jax.checkpoints.checkpointer import CheckpointConfig, Checkpointer
        assert jax.device_count() == 1
        template = {"kernel": jax.ShapeDtypeStruct((16,), np.float32)}
        found = Checkpointer(sys.argv[1], CheckpointConfig()).restore_params(template)
        np.testing.assert_array_equal(found.params["kernel"], np.arange(16.0))
    """
    done = run_python(program, tmp_path, single_device_environment)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_the_state_may_be_donated_while_it_is_written(tmp_path: Path) -> None:
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"params": [jnp.full((500, 500), float(i)) for i in range(8)]}
    with Checkpointer(tmp_path, CONFIG) as checkpointer:
        checkpointer.save(1, state, {})
        for _ in range(10):
            state = add(state)
        jax.block_until_ready(state)
        checkpointer.wait()
        found = checkpointer.restore(template(state)).state
    assert [float(x.min()) for x in found["params"]] == list(range(8))
    assert [float(x.max()) for x in found["params"]] == list(range(8))


def test_parameters_alone_can_be_read(copied: Path) -> None:
    state = make_state(20, 200)
    found = Checkpointer(copied, CONFIG).restore_params(template(state.params))
    assert found.steps == (20,)
    assert_same(found.params, state.params)
    found = Checkpointer(copied, CONFIG).restore_params(template(state.params), step=10)
    assert_same(found.params, make_state(10, 200).params)


# Mismatches


def test_mismatches_are_listed_and_never_fallen_back_from(copied: Path) -> None:
    wanted = template(make_state(0, 200))
    params = {
        "encoder": {"kernel": jax.ShapeDtypeStruct((200, 17), jnp.float32)},
        "layers": [jax.ShapeDtypeStruct((8, 3), jnp.float32)],
        "decoder": jax.ShapeDtypeStruct((2,), jnp.float32),
    }
    with pytest.raises(CheckpointMismatchError) as caught:
        Checkpointer(copied, CONFIG).restore(wanted.replace(params=params))
    message = str(caught.value)
    assert f"{copied}/20" in message and "4 array(s) differ" in message
    for line in (
        "params/encoder/kernel: float32[200, 16] in the checkpoint, float32[200, 17] here",
        "params/layers/0: bfloat16[8, 3] in the checkpoint, float32[8, 3] here",
        "params/decoder: not in the checkpoint",
        "params/scale: only in the checkpoint",
    ):
        assert line in message
    many = {str(i): jax.ShapeDtypeStruct((), jnp.float32) for i in range(50)}
    with pytest.raises(CheckpointMismatchError, match=r"\.\.\. and 33 more"):
        Checkpointer(copied, CONFIG).restore_params(many)


# Averages


def test_average_is_the_mean_in_float32(written: Path) -> None:
    states = [make_state(step, 200).params for step in (10, 20)]
    found = Checkpointer(written, CONFIG).average(template(states[0]), last=2)
    assert found.steps == (20, 10)
    for name in ("encoder", "layers"):
        leaves = [jax.tree.leaves(state[name])[0] for state in states]
        expected = np.mean([np.asarray(leaf, np.float32) for leaf in leaves], axis=0)
        (mean,) = jax.tree.leaves(found.params[name])
        assert mean.dtype == jnp.float32
        np.testing.assert_allclose(mean, expected, rtol=1e-6)
    (last,) = jax.tree.leaves(
        Checkpointer(written, CONFIG).average(template(states[0]), last=1).params["encoder"]
    )
    np.testing.assert_array_equal(last, states[1]["encoder"]["kernel"])


def test_average_needs_that_many_whole_ones(copied: Path) -> None:
    params = template(make_state(0, 200).params)
    with pytest.raises(CheckpointError, match=r"last 3 checkpoints, .* has 2 intact .*latest=3"):
        Checkpointer(copied, CONFIG).average(params, last=3)
    with pytest.raises(ValueError, match="last=0"):
        Checkpointer(copied, CONFIG).average(params, last=0)


# Which are kept


def test_the_latest_and_the_best_are_kept_together(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_latest=2, keep_best=2, best_metric="bleu", best_mode="max")
    scores = {1: 20.0, 2: 35.0, 3: math.nan, 4: 30.0, 5: None, 6: 35.0, 7: 1.0, 8: 2.0}
    state = {"params": jnp.zeros(2)}
    for part in ((1, 2, 3, 4), (5, 6, 7, 8)):  # another run reads the scores of the first
        with Checkpointer(tmp_path, config) as checkpointer:
            for step in part:
                score = scores[step]
                checkpointer.save(step, state, {}, None if score is None else {"bleu": score})
        if part[0] == 1:
            assert checkpointer.steps() == [2, 3, 4]
    assert checkpointer.steps() == [2, 6, 7, 8]
    assert checkpointer.best_step() == 6  # the newer of two equals
    assert checkpointer.latest_step() == 8


def test_lowest_is_best_by_default_and_zero_keeps_none(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_latest=1, keep_best=1)
    state = {"params": jnp.zeros(2)}
    with Checkpointer(tmp_path / "best", config) as checkpointer:
        for step, loss in enumerate((3.0, 1.0, 2.0, 4.0)):
            checkpointer.save(step, state, {}, {"loss": loss})
    assert checkpointer.steps() == [1, 3] and checkpointer.best_step() == 1
    with Checkpointer(tmp_path / "latest", dataclasses.replace(config, keep_best=0)) as latest:
        for step, loss in enumerate((1.0, 2.0, 3.0)):
            latest.save(step, state, {}, {"loss": loss})
    assert latest.steps() == [2]


# Refusals and failures


def test_bad_configs_and_arguments_are_refused(tmp_path: Path) -> None:
    changes: dict[str, Any]
    for changes, message in (
        ({"every_steps": 0}, "checkpoint.every_steps=0 must be at least 1"),
        ({"keep_latest": 0}, "checkpoint.keep_latest=0 must be at least 1"),
        ({"keep_best": -1}, "checkpoint.keep_best=-1 must be at least 0"),
        ({"best_metric": ""}, "must name a metric"),
    ):
        with pytest.raises(ValueError, match=message):
            CheckpointConfig(**changes)
    with Checkpointer(tmp_path, CheckpointConfig(every_steps=4)) as checkpointer:
        assert [step for step in range(9) if checkpointer.is_due(step)] == [0, 4, 8]
        state = {"params": jnp.zeros(2)}
        with pytest.raises(ValueError, match="only JSON values"):
            checkpointer.save(1, state, {"iterator": b"bytes"})
        with pytest.raises(ValueError, match="changes when it is converted to JSON and back"):
            checkpointer.save(1, state, {"iterator": {1: 2}})
        with pytest.raises(
            ValueError, match=r"best_metric='loss' is not a metric of this run; use one of accuracy, bleu"
        ):
            checkpointer.save(1, state, {}, {"bleu": 1.0, "accuracy": 1.0})
        assert checkpointer.steps() == []
        checkpointer.save(5, state, {})
        for step in (5, 4):
            with pytest.raises(CheckpointError, match="already has a checkpoint of step 5"):
                checkpointer.save(step, state, {})


def test_a_relative_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Checkpointer("runs/a", CONFIG) as checkpointer:
        monkeypatch.chdir("/")
        checkpointer.save(1, {"params": jnp.zeros(2)}, {})
    assert (tmp_path / "runs" / "a" / "1" / "commit_success.txt").exists()


def test_ordinary_saves_and_restores_are_quiet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    state = make_state()
    with Checkpointer(tmp_path, CheckpointConfig(keep_latest=1)) as checkpointer:
        for step in range(4):
            checkpointer.save(step, state, {}, {"loss": 1.0} if step % 2 else None)
        checkpointer.wait()
        checkpointer.restore(template(state))
        checkpointer.average(template(state.params), last=1)
    assert [record.getMessage() for record in caplog.records] == []
    assert capfd.readouterr() == ("", "")
