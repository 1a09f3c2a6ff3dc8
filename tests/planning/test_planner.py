"""Plans made with the devices that are here: the whole way, but for the compilers of accelerators."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.tiny_training import tiny_experiment
from transformer_jax import families
from transformer_jax.config import ConfigError
from transformer_jax.data import SourceConfig
from transformer_jax.models import abstract_params
from transformer_jax.models.front_ends import Patches
from transformer_jax.objectives import MaskedLM
from transformer_jax.planning.costs import Cost, Work
from transformer_jax.planning.hardware import Topology, read_topology
from transformer_jax.planning.planner import attention_kernels, make_plan, with_rows
from transformer_jax.planning.programs import compile_steps, topology_devices
from transformer_jax.planning.report import WHAT_IT_IS, XLA_ATTENTION, Plan, to_json, to_text
from transformer_jax.planning.search import (
    Candidate,
    Kept,
    Result,
    Search,
    candidates,
    expected_bytes,
    model_sizes,
    search,
    stack_sizes,
)
from transformer_jax.planning.search_report import search_json, search_text
from transformer_jax.runs.experiment import Experiment
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh, unbox

TOPOLOGY = read_topology("h100:8")


def experiment_of(**sections: dict[str, Any]) -> Experiment:
    data = {"buckets": (), "max_length": 32, "batch_size": 16} | sections.pop("data", {})
    return tiny_experiment(pathlib.Path("nowhere"), data=data, **sections)


@pytest.fixture(scope="module")
def plan() -> Plan:
    experiment = experiment_of(model={"scan_layers": True}, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    return make_plan(experiment, TOPOLOGY, name="tiny", devices=jax.devices())


def test_a_plan_has_every_step(plan: Plan) -> None:
    assert [step.name for step in plan.steps] == ["train", "evaluate", "decode"]
    assert plan.mesh == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert [(step.rows, step.tokens) for step in plan.steps] == [(16, 512), (16, 512), (64, 64)]
    assert plan.fits


def test_memory_is_that_of_one_device(plan: Plan) -> None:
    train = plan.steps[0]
    params = unbox(abstract_params(experiment_of().model))
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    # Kernels are split over fsdp and tensor, norms and biases over one of them or none.
    assert whole / 4 < train.memory.parameters < whole / 2
    assert train.memory.optimizer == pytest.approx(2 * train.memory.parameters, abs=8)
    sizes = dataclasses.astuple(train.memory)
    assert train.memory.total == sum(sizes)
    assert train.memory.peak == sum(sizes[:-1])
    assert train.memory.activations > 0
    assert all(step.memory.activations == 0 for step in plan.steps[1:])


def test_products_are_those_that_the_model_needs(plan: Plan) -> None:
    train, evaluate, _ = plan.steps
    # XLA's CPU compiler computes some of the projections on every device of an axis.
    for step in (train, evaluate):
        needed = step.model_flops / 8
        assert needed <= 1.001 * sum(step.cost.product_flops.values())
    assert train.model_flops == 3 * evaluate.model_flops


def test_collectives_are_named_by_the_axes_of_the_mesh(plan: Plan) -> None:
    found = {axis for one in plan.steps[0].estimate.collectives for axis in one.collective.axes}
    assert found == {"data", "fsdp", "tensor"}


def test_parts_add_up_to_the_step(plan: Plan) -> None:
    for step in plan.steps:
        times = step.estimate
        assert times.seconds == pytest.approx(
            sum(part.seconds for part in times.parts) + times.exposed_seconds
        )
        # Equal where memory bounds every part, but for rounding: sums of less than a thousand positive terms
        # in another order differ by less than 1,000 x 2**-53 of them.
        assert times.least_seconds <= times.seconds * (1 + 1e-12)
        assert 0 < plan.utilization(step) <= plan.most_utilization(step) * (1 + 1e-12) < 1
    phases = {part.phase for part in plan.steps[0].estimate.parts}
    assert {"forward", "backward", "update"} <= phases


def test_json_is_what_its_documentation_says(plan: Plan) -> None:
    found = json.loads(json.dumps(to_json(plan)))
    documented = to_json.__doc__ or ""
    assert found["what"] == WHAT_IT_IS
    for values in (found, found["device"], found["steps"]["train"], found["steps"]["train"]["memory"]):
        assert [key for key in values if key not in documented] == []
    collectives, parts = (found["steps"]["train"][key] for key in ("collectives", "parts"))
    assert [key for one in (collectives[0], parts[0]) for key in one if key not in documented] == []
    train = found["steps"]["train"]
    assert train["tokens_per_second"] == pytest.approx(512 / train["step_seconds"])


def test_the_report_says_what_it_is(plan: Plan) -> None:
    text = to_text(plan)
    assert WHAT_IT_IS in text
    assert "data sheet" in text
    for words in (
        "mesh data=2 x fsdp=2",
        "activations",
        "all-reduce",
        "model FLOPs utilization",
        "bf16 peak",
    ):
        assert words in text
    assert "fits" in text
    assert "no fused kernel" in text


def test_what_does_not_fit_is_said(plan: Plan) -> None:
    small = dataclasses.replace(TOPOLOGY, device=dataclasses.replace(TOPOLOGY.device, memory_bytes=1000))
    tight = dataclasses.replace(plan, topology=small)
    assert not tight.fits
    assert "DOES NOT FIT" in to_text(tight)


def test_what_fills_the_memory_may_not_fit(plan: Plan) -> None:
    need = max(step.memory.total for step in plan.steps)
    full = dataclasses.replace(TOPOLOGY, device=dataclasses.replace(TOPOLOGY.device, memory_bytes=need))
    tight = dataclasses.replace(plan, topology=full)
    assert not tight.fits
    assert "MAY NOT FIT" in to_text(tight)


def test_what_is_counted_on_of_a_memory() -> None:
    chip = read_topology("v5e:1x1").device
    assert 0.92 * chip.memory_bytes < chip.usable_bytes < (chip.memory_bytes - 258 * 2**20) / 1.05
    assert TOPOLOGY.device.usable_bytes == 60 * 10**9  # as XLA_PYTHON_CLIENT_MEM_FRACTION is 0.75


def test_an_encoder_alone_does_not_decode() -> None:
    experiment = experiment_of()
    model = families.bert.config(
        "base", vocab_size=260, d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=32,
        num_encoder_layers=1, head="masked_tokens", num_token_types=0, max_length=64,
    )  # fmt: skip
    source = SourceConfig(kind="text", folder="nowhere", train=("a",), features=(("inputs", "text"),))
    data = dataclasses.replace(experiment.data, source=source)
    experiment = dataclasses.replace(experiment, model=model, objective=MaskedLM(), data=data)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    lowered = compile_steps(experiment, mesh, ("evaluate", "decode"))
    assert [step.name for step in lowered] == ["evaluate"]


def test_a_cache_of_compiled_programs_is_left_alone(tmp_path: pathlib.Path) -> None:
    settings = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        compile_steps(experiment_of(), mesh, ("evaluate",))
        assert not list(tmp_path.iterdir())
        jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
        assert list(tmp_path.iterdir())  # afterwards it is used as before
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        ({"mesh": {"tensor": 3}}, "h100:8.*does not divide the 8 device.*1, 2, 4, 8"),
        ({"mesh": {"data": 2, "fsdp": 2}}, "makes 4, but there are 8.*each one of 1, 2, 4, 8"),
        ({"data": {"batch_size": 12}}, "12 rows.*12 is not divisible by 8"),
        ({"mesh": {"data": 1, "tensor": 8}}, "heads=2 over tensor=8"),
    ],
)
def test_what_does_not_divide_is_an_error(sections: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){wanted}"):
        make_plan(experiment_of(**sections), TOPOLOGY, steps=("train",), devices=jax.devices())


@pytest.mark.parametrize("name", ["v5e:2x2", "h100:8"])
def test_without_the_compiler_there_is_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="make plan-env"):
        topology_devices(read_topology(name))


def test_rows_a_device_are_of_a_micro_batch() -> None:
    experiment = experiment_of(train={"gradient_accumulation_steps": 3})
    assert with_rows(experiment, 4, 8).data.batch_size == 4 * 8 * 3


def test_the_attention_kernel_is_read_from_the_program() -> None:
    where = "jit(train_step)/jvp(M)/layers/self_attention"
    product = Work("d", "dot", f"{where}/bhls,bhsw->bhlw/dot_general", "main", 1, Cost({"bf16": 1}))
    splash = Work("splash_fwd.3", "custom-call", f"{where}/call", "main", 1, Cost(), kernel="tpu_custom_call")
    cudnn = Work("f", "custom-call", "", "main", 1, Cost(), kernel="__cudnn$fmhaSoftmax")
    other = Work("g", "custom-call", "jit(f)/feedforward", "main", 1, Cost(), kernel="__cublas$gemm")
    assert attention_kernels([product, other]) == (XLA_ATTENTION,)
    assert attention_kernels([splash, other]) == ("tpu_custom_call splash_fwd",)
    named = dataclasses.replace(splash, op_name=f"{where}/splash_mha_dkv/pallas_call")
    assert attention_kernels([named]) == ("tpu_custom_call splash_mha_dkv",)
    assert attention_kernels([cudnn, product]) == ("__cudnn$fmhaSoftmax", XLA_ATTENTION)


def test_candidates_divide_the_model() -> None:
    model = experiment_of().model  # 2 heads, d_model 16, d_feedforward 32
    meshes = {dict(one.mesh)["tensor"] for one in candidates(model, 32, 8)}
    assert meshes == {1, 2}
    products = {
        one.size("data") * one.size("fsdp") * one.size("context") * one.size("tensor")
        for one in candidates(model, 4096, 8)
    }
    assert products == {8}
    assert {one.size("context") for one in candidates(model, 32, 8)} == {1}
    assert {one.size("context") for one in candidates(model, 4096, 8)} == {1, 2, 4, 8}


def stand_in(plan: Plan, bytes_per_row: int) -> Callable[..., Plan]:
    """``make_plan`` without a compiler: memory grows with the rows, less with rematerialisation."""

    def make(experiment: Experiment, topology: Topology, **_: Any) -> Plan:
        if experiment.mesh.tensor == 2:
            raise ConfigError("two is too many")
        rows = experiment.data.batch_size // 8
        model = experiment.model
        part = {"inputs": 4, "products": 2}[model.remat_keeps] if model.remat else 1
        kept = rows * bytes_per_row // part
        step = dataclasses.replace(
            plan.steps[0],
            memory=dataclasses.replace(plan.steps[0].memory, activations=kept),
            model_flops=rows * plan.steps[0].model_flops,
        )
        return dataclasses.replace(plan, topology=topology, steps=(step,))

    return make


def test_a_search_ranks_what_fits(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformer_jax.planning.search.make_plan", stand_in(plan, 3 * 10**9))
    told: list[str] = []
    found = search(experiment_of(), TOPOLOGY, name="tiny", progress=told.append, devices=jax.devices())
    assert len(found.results) == len(told) == 8
    assert len({one.candidate for one in found.results}) == 8
    fitting = [one for one in found.results if one.fits]
    utilization = [one.utilization for one in fitting]
    assert utilization == sorted(utilization, reverse=True)
    assert found.results[: len(fitting)] == tuple(fitting)
    # The most rows that fit into 60 of 80 GB are 16, or 64 where layers keep their inputs alone. The closed
    # form expects far less memory, and is put right by the first that was compiled.
    assert (fitting[0].candidate.rows, fitting[0].candidate.kept) == (64, "inputs")
    assert found.num_candidates == len(list(candidates(experiment_of().model, 32, 8)))
    values = json.loads(json.dumps(search_json(found)))
    assert [key for key in (*values, *values["results"][0]) if key not in (search_json.__doc__ or "")] == []
    text = search_text(found)
    assert "8 of" in text
    assert "--rows_per_device=64" in text


def test_a_search_that_finds_nothing_says_so(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformer_jax.planning.search.make_plan", stand_in(plan, 10**9))
    device = dataclasses.replace(TOPOLOGY.device, memory_bytes=1000)
    topology = dataclasses.replace(TOPOLOGY, device=device)
    found = search(experiment_of(), topology, devices=jax.devices())
    assert [one.fits for one in found.results] == [False]
    assert "none of them fits" in search_text(found)


def test_a_search_tries_no_more_than_is_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Plan:
        raise ConfigError("refused")

    monkeypatch.setattr("transformer_jax.planning.search.make_plan", refuse)
    monkeypatch.setattr("transformer_jax.planning.search.expected_bytes", lambda one, _: one.rows)
    device = dataclasses.replace(TOPOLOGY.device, memory_bytes=64)  # of which 48 are counted on
    topology = dataclasses.replace(TOPOLOGY, device=device)
    found = search(experiment_of(), topology, devices=jax.devices(), most=1000)
    assert max(one.candidate.rows for one in found.results) == 32


def test_what_the_compiler_refuses_is_said(plan: Plan) -> None:
    candidate = Candidate((("data", 4), ("fsdp", 1), ("context", 1), ("tensor", 2)), "all", 8)
    refused = Result(candidate, None, "two is too many")
    search_of_one = Search("tiny", TOPOLOGY, 8, (refused,), 1)
    assert "two is too many" in search_text(search_of_one)
    assert search_json(search_of_one)["results"][0]["plan"] is None


def test_the_closed_form_knows_what_splits_what() -> None:
    sizes = model_sizes(experiment_of())
    mesh = dict(data=8, fsdp=1, context=1, tensor=1)

    def expect(rows: int = 1, kept: Kept = "all", **changes: int) -> float:
        return expected_bytes(Candidate(tuple((mesh | changes).items()), kept, rows), sizes)

    assert expect(rows=2) > expect(rows=1) > expect(data=1, fsdp=8)
    assert expect(kept="inputs") < expect(kept="products") < expect()
    assert sizes.state_bytes == pytest.approx(12 * sizes.parameters, rel=0.01)


def test_the_closed_form_has_the_heads_and_lengths_of_each_stack() -> None:
    def expect(**model: Any) -> float:
        one = Candidate((("data", 8), ("fsdp", 1), ("context", 1), ("tensor", 1)), "all", 3)
        return expected_bytes(one, model_sizes(experiment_of(model=model)))

    plain = experiment_of().model
    more_heads = {"num_heads": 2 * plain.num_heads, "key_size": plain.key_size // 2}
    more_heads |= {"value_size": plain.value_size // 2}  # as many parameters
    added = 5 * 3 * 32**2 * plain.num_heads  # to each layer of three rows of 32 positions
    changes = tuple(more_heads.items())
    for name, layers in (("encoder", plain.num_encoder_layers), ("decoder", plain.num_decoder_layers)):
        assert expect(**{f"{name}_changes": changes}) == pytest.approx(expect() + layers * added)
    both = layers * added + plain.num_encoder_layers * added
    assert expect(**more_heads) == pytest.approx(expect() + both)


def test_stacks_have_the_lengths_of_their_inputs() -> None:
    model = dataclasses.replace(experiment_of().model, front_end=Patches((8, 8, 1), 4))
    batch = {
        "images": jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.uint8),
        "targets": jax.ShapeDtypeStruct((2, 30), jnp.int32),
    }
    assert [stack.length for stack in stack_sizes(model, batch)] == [5, 30]
