"""Meshes, and where the arrays of a state and of a batch end up on eight virtual devices."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tests.parity.test_fixtures import STORED
from transformer_jax import families
from transformer_jax.config import read_section
from transformer_jax.models import abstract_params
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.sharding.partitioning import (
    DEFAULT_RULES,
    MESH_AXES,
    MeshConfig,
    make_mesh,
    process_slice,
    shard_batch,
    state_shardings,
    unbox,
)

pytestmark = pytest.mark.smoke


class FeedForward(nn.Module):
    width: int = 16
    axes: tuple[str | None, ...] = ("embed", "mlp")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normal = nn.with_logical_partitioning(nn.initializers.normal(), self.axes)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("mlp",))
        kernel: Any = self.param("kernel", normal, (x.shape[-1], self.width))
        bias: Any = self.param("bias", zeros, (self.width,))
        return x @ kernel + bias[None]


def init_state(model: nn.Module, optimizer: optax.GradientTransformation) -> Any:
    """A function that makes a whole state, its parameters and their mirrors boxed."""

    def init(key: jax.Array) -> dict[str, Any]:
        params = model.init(key, jnp.ones((2, 8)))["params"]
        return {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "optimizer": optimizer.init(params),
            "key": key,
        }

    return init


def specs(shardings: Any) -> dict[str, tuple]:
    flat, _ = jax.tree_util.tree_flatten_with_path(shardings)
    return {jax.tree_util.keystr(path): tuple(sharding.spec) for path, sharding in flat}


def test_specs_of_parameters_and_of_what_mirrors_them(key: jax.Array) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    init = init_state(FeedForward(), optax.adam(1e-3))
    shardings = state_shardings(mesh, jax.eval_shape(init, key), DEFAULT_RULES)
    assert specs(shardings) == {
        "['step']": (),
        "['key']": (),
        "['params']['kernel']": ("fsdp", "tensor"),
        "['params']['bias']": ("tensor",),
        "['optimizer'][0].count": (),
        "['optimizer'][0].mu['kernel']": ("fsdp", "tensor"),
        "['optimizer'][0].mu['bias']": ("tensor",),
        "['optimizer'][0].nu['kernel']": ("fsdp", "tensor"),
        "['optimizer'][0].nu['bias']": ("tensor",),
    }
    state = jax.jit(lambda key: unbox(init(key)), out_shardings=shardings)(key)
    kernel = state["params"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 8)}
    same = jax.tree.map(lambda x, to: x.sharding.is_equivalent_to(to, x.ndim), state, shardings)
    assert jax.tree.all(same)
    alone = unbox(jax.jit(init)(key))["params"]["kernel"]
    np.testing.assert_allclose(kernel, alone, rtol=1e-6)


def test_statistics_that_do_not_mirror_a_parameter_are_whole(key: jax.Array) -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    optimizer = optax.adafactor(1e-3, min_dim_size_to_factor=4)
    init = init_state(FeedForward(), optimizer)
    shardings = state_shardings(mesh, jax.eval_shape(init, key))
    found = specs(shardings)
    assert found["['optimizer'][0].v_row['kernel']"] == ()  # (8,): a mean over one axis
    assert not any(found["['optimizer'][0].v_row['bias']"])  # (1,): a placeholder
    assert found["['optimizer'][0].v['bias']"] == ("tensor",)
    jax.jit(lambda key: unbox(init(key)), out_shardings=shardings)(key)


def test_scanned_layers_have_an_axis_of_their_own(key: jax.Array) -> None:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return FeedForward(width=8)(x), None

    stack = nn.scan(
        Layer,
        length=3,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        metadata_params={nn.PARTITION_NAME: "layers"},
    )()
    abstract = jax.eval_shape(lambda key: stack.init(key, jnp.ones((2, 8)), None), key)
    found = specs(state_shardings(make_mesh(MeshConfig(fsdp=4, tensor=2)), abstract))
    assert found["['params']['FeedForward_0']['kernel']"] == (None, "fsdp", "tensor")


def test_rules_are_replaceable_and_the_earlier_has_a_shared_mesh_axis(key: jax.Array) -> None:
    mesh = make_mesh(MeshConfig(fsdp=8))
    abstract = jax.eval_shape(FeedForward().init, key, jnp.ones((2, 8)))
    rules = (("mlp", "fsdp"), ("embed", "fsdp"))
    assert specs(state_shardings(mesh, abstract, rules))["['params']['kernel']"] == (None, "fsdp")
    rules = (("embed", "fsdp"), ("mlp", "fsdp"))
    assert specs(state_shardings(mesh, abstract, rules))["['params']['kernel']"] == ("fsdp", None)


def test_a_logical_axis_without_a_rule_is_named(key: jax.Array) -> None:
    mesh = make_mesh(MeshConfig())
    model = FeedForward(axes=("embde", "mlp"))
    abstract = jax.eval_shape(model.init, key, jnp.ones((2, 8)))
    with pytest.raises(ValueError, match=r"kernel.*'embde'.*did you mean 'embed'"):
        state_shardings(mesh, abstract)
    abstract = jax.eval_shape(FeedForward(axes=("z", "mlp")).init, key, jnp.ones((2, 8)))
    with pytest.raises(ValueError, match="it has vocab, embed, heads"):
        state_shardings(mesh, abstract)


def test_all_dimensions_that_do_not_divide_are_listed(key: jax.Array) -> None:
    abstract = jax.eval_shape(FeedForward(width=18).init, key, jnp.ones((2, 9)))
    with pytest.raises(ValueError) as caught:
        state_shardings(make_mesh(MeshConfig(data=1, fsdp=2, tensor=4)), abstract)
    message = str(caught.value)
    for part in ("['kernel']: embed=9 over fsdp=2", "mlp=18 over tensor=4", "['bias']: mlp=18"):
        assert part in message


def test_a_vocabulary_that_does_not_divide_is_whole_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    config = families.gpt2.config(
        "small", vocab_size=50_257, num_decoder_layers=1, **dict.fromkeys(("d_model", "d_feedforward"), 16),
        num_heads=2, key_size=8, value_size=8, max_length=8,
    )  # fmt: skip
    for _ in range(2):
        found = specs(state_shardings(mesh, abstract_params(config)))
    assert found["['embedding']['embedding']"] == (None, "fsdp")
    assert found["['decoder']['layer_0']['feedforward']['hidden']['kernel']"] == ("fsdp", "tensor")
    said = "every device holds the whole vocabulary of 50,257, because tensor=2 does not divide it"
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize("name", ["gpt2", pytest.param("bart", marks=pytest.mark.everything)])
def test_an_odd_vocabulary_gives_the_same_logits_and_gradients_on_a_mesh(name: str) -> None:
    alone = from_pretrained(STORED / name)
    split = from_pretrained(STORED / name, mesh=make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
    assert alone.config.vocab_size == 67
    tokens = jnp.arange(4, 12, dtype=jnp.int32).reshape(2, 4)
    arguments = {"inputs": tokens} | ({"targets": tokens} if name == "bart" else {})
    model: Any = alone.model

    def probability(params: Any) -> Any:
        logits = model.apply({"params": params}, **arguments)
        return jnp.sum(jax.nn.softmax(logits)[..., 5]), logits

    run = jax.jit(jax.grad(probability, has_aux=True))
    pairs = zip(jax.tree.leaves(run(split.params)), jax.tree.leaves(run(alone.params)), strict=True)
    for found, wanted in pairs:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)
    shards = [leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in jax.tree.leaves(split.params)]
    assert sum(shards) > len(shards) / 2


@pytest.mark.parametrize(
    ("shape", "names"), [((8,), ("x",)), ((4, 2), ("data", "model")), ((1, 2, 4), ("data", "tensor", "fsdp"))]
)
def test_a_mesh_of_other_axes_is_refused_with_how_to_make_one(shape: tuple, names: tuple) -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(shape), names)
    with pytest.raises(ValueError) as caught:
        from_pretrained(STORED / "gpt2", mesh=mesh)
    assert f"the mesh has the axes {names} (" in str(caught.value)
    made = re.search(r"make_mesh\(MeshConfig\(.*?\), devices\)", str(caught.value))
    assert made is not None
    scope = {"make_mesh": make_mesh, "MeshConfig": MeshConfig, "devices": jax.devices()}
    assert from_pretrained(STORED / "bert_base_model", mesh=eval(made[0], scope)).family.name == "bert"


def test_explicit_axes_are_refused() -> None:
    mesh = jax.make_mesh((8, 1, 1, 1), MESH_AXES, axis_types=(AxisType.Explicit,) * 4)
    with pytest.raises(ValueError, match=r"\((Explicit, ){3}Explicit\); it must have .*, all Auto"):
        from_pretrained(STORED / "gpt2", mesh=mesh)


def test_mesh_sizes_and_axis_types() -> None:
    mesh = make_mesh(MeshConfig(tensor=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "context": 1, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert dict(make_mesh(MeshConfig(data=1, fsdp=-1)).shape)["fsdp"] == 8
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(one.shape) == {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": 0}, "mesh.data=0 must be at least 1, or -1"),
        ({"fsdp": -2}, "mesh.fsdp=-2 must be at least 1"),
        ({"data": -1, "tensor": -1}, "only one mesh axis may be -1"),
        ({"rules": (("embed", "modle"),)}, "unknown mesh axis 'modle'; use 'data', 'fsdp'"),
        ({"rules": (("embed", None), ("embed", "fsdp"))}, "two rules for 'embed'"),
        ({"rules": (("batch", "data"),)}, "must not name 'batch'"),
        ({"rules": (("sequence", "tensor"),)}, "must not name 'sequence'.* tokens over 'context'"),
    ],
)
def test_bad_mesh_values_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeshConfig(**changes)


def test_sizes_that_do_not_fit_the_devices_name_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"makes 3, which does not divide the 8 device.* one of 1, 2, 4, 8"):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ValueError, match=r"makes 4, but there are 8 device.* one of 1, 2, 4, 8"):
        make_mesh(MeshConfig(data=2, tensor=2))


def test_batch_rows_are_split_over_data_and_fsdp(rng: np.random.Generator) -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    batch = {"inputs": rng.integers(0, 9, (8, 5), np.int32), "weights": np.ones(8, np.float32)}
    found = shard_batch(mesh, batch)
    for name, array in batch.items():
        np.testing.assert_array_equal(found[name], array)
        spec = (("data", "fsdp"), "context") if name == "inputs" else (("data", "fsdp"),)
        assert found[name].sharding == NamedSharding(mesh, PartitionSpec(*spec))
        assert {shard.data.shape[0] for shard in found[name].addressable_shards} == {2}
    assert process_slice(mesh) == (0, 1)


def test_tokens_are_split_over_context_where_they_divide(rng: np.random.Generator) -> None:
    mesh = make_mesh(MeshConfig(data=2, context=4))
    sides = {
        "inputs": (4, 8),
        "inputs_types": (4, 8),
        "targets": (4, 6),
        "labels": (4,),
        "images": (4, 8, 8, 3),
    }
    found = shard_batch(mesh, {name: rng.random(shape, np.float32) for name, shape in sides.items()})
    shapes = {name: array.sharding.shard_shape(array.shape) for name, array in found.items()}
    assert shapes == {
        "inputs": (2, 2),
        "inputs_types": (2, 2),
        "targets": (2, 6),
        "labels": (2,),
        "images": (2, 8, 8, 3),
    }


def test_rows_that_do_not_divide_are_refused() -> None:
    mesh = make_mesh(MeshConfig(tensor=2))
    with pytest.raises(ValueError, match=r"10 rows cannot be split evenly .* use 8 or 12 rows"):
        shard_batch(mesh, {"inputs": np.zeros((10, 5), np.int32)})
    with pytest.raises(ValueError, match="use 4 rows"):
        shard_batch(mesh, {"inputs": np.zeros((3, 5), np.int32)})
    with pytest.raises(ValueError, match="same number of rows"):
        shard_batch(mesh, {"inputs": np.zeros((8, 5)), "targets": np.zeros((4, 5))})


class _Device:
    def __init__(self, process_index: int) -> None:
        self.process_index = process_index


class _Mesh:
    """What ``process_slice`` reads of a mesh, for processes that are not there."""

    def __init__(self, processes: list, shape: tuple[int, int, int, int]) -> None:
        self.devices = np.array([_Device(index) for index in processes]).reshape(shape)
        self.shape = dict(zip(MESH_AXES, shape, strict=True))


def test_each_process_loads_its_part_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the run-time check of types, which knows that this is no Mesh.
    slices: Any = getattr(process_slice, "__wrapped__", process_slice)

    def of(process: int, processes: list, shape: tuple[int, int, int, int]) -> tuple[int, int]:
        monkeypatch.setattr(jax, "process_index", lambda: process)
        return slices(_Mesh(processes, shape))

    owners = [0, 0, 1, 1, 2, 2, 3, 3]
    assert [of(p, owners, (8, 1, 1, 1)) for p in range(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [of(p, owners, (1, 2, 1, 4)) for p in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [of(p, owners, (1, 2, 2, 2)) for p in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [of(p, owners, (1, 1, 1, 8)) for p in range(4)] == [(0, 1)] * 4
    assert [of(p, [1, 1, 0, 0], (4, 1, 1, 1)) for p in range(2)] == [(1, 2), (0, 2)]
    with pytest.raises(ValueError, match="share only a part of their rows"):
        of(0, [0, 0, 0, 1, 1, 1], (3, 1, 1, 2))


def test_a_section_reads_into_the_config() -> None:
    rules = [["embed", None], ["mlp", "tensor"]]  # as JSON has them
    section = {"data": -1, "fsdp": 2, "context": 1, "tensor": 1, "rules": rules, "attention": "plain"}
    config = read_section(MeshConfig, section, "mesh")
    assert config.rules == (("embed", None), ("mlp", "tensor"))
