"""Attention kernels in training steps that are compiled for TPUs and GPUs which are not there."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from tests.tiny_training import tiny_experiment
from transformer_jax.planning.costs import read_work
from transformer_jax.planning.hardware import read_topology
from transformer_jax.planning.hlo import read_program
from transformer_jax.planning.planner import attention_kernels, with_rows
from transformer_jax.planning.programs import compile_steps, topology_devices
from transformer_jax.planning.report import XLA_ATTENTION
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh

pytestmark = pytest.mark.plan

SPLASH = {"splash_mha_fwd_segmented_residuals", "splash_mha_dkv_segmented_no_residuals"}
SPLIT = {"data": 1, "context": 2, "tensor": 2}
# Of the encoder's attention and of the one to it; and of the decoder's own.
TRITON = {
    f"{prefix}attention_{kernel}_kernel"
    for prefix in ("", "causal_")
    for kernel in ("forward", "query", "key")
}


def kernels_of(
    folder: Any, topology: str, mesh: Mapping[str, Any], steps: tuple[str, ...] = ("train",), **model: Any
) -> set[str]:
    """Names of the attention kernels in a tiny step, without those of the mechanism that calls them."""
    where = read_topology(topology)
    sizes = {"d_model": 128, "num_heads": 2, "key_size": 64, "value_size": 64, "max_length": 256}
    experiment = tiny_experiment(
        folder, model={**sizes, "dtype": "bfloat16", **model}, data={"max_length": 256, "buckets": ()}
    )
    experiment = dataclasses.replace(with_rows(experiment, 2, 4), mesh=MeshConfig(**mesh))
    devices = topology_devices(where)[:4]
    options = {"exec_time_optimization_effort": -1.0} if where.device.platform == "tpu" else None
    compiled = compile_steps(experiment, make_mesh(experiment.mesh, devices), steps, options)
    found = {name for step in compiled for name in attention_kernels(read_work(read_program(step.text)))}
    return {name.rpartition(" ")[2] if name != XLA_ATTENTION else name for name in found}


@pytest.mark.parametrize("form", [{}, {"scan_layers": True, "remat": True}])
def test_a_training_step_for_tpus_has_the_kernel_forward_and_backward(form: dict, tmp_path: Any) -> None:
    assert kernels_of(tmp_path, "v5e:2x2", SPLIT, **form) == SPLASH


@pytest.mark.parametrize("size", [32, 128])
def test_heads_of_other_sizes_compile(size: int, tmp_path: Any) -> None:
    sizes = {"key_size": size, "value_size": size}
    assert kernels_of(tmp_path, "v6e:2x2", {"data": 2, "fsdp": 2}, **sizes) == SPLASH


def test_float32_compiles(tmp_path: Any) -> None:
    assert kernels_of(tmp_path, "v5p:2x2x1", {}, dtype="float32") == SPLASH


def test_plain_attention_is_what_dropout_on_weights_has(tmp_path: Any) -> None:
    assert kernels_of(tmp_path, "v5e:2x2", {}, attention_dropout=0.1) == {XLA_ATTENTION}


def test_decoding_is_plain(tmp_path: Any) -> None:
    assert kernels_of(tmp_path, "v5e:2x2", {}, ("decode",)) == {XLA_ATTENTION}


@pytest.mark.parametrize(
    ("topology", "form"), [("h100:4", {"scan_layers": True, "remat": True}), ("a100:4", {})]
)
def test_a_training_step_for_gpus_has_the_kernel_forward_and_backward(
    topology: str, form: dict, tmp_path: Any
) -> None:
    assert kernels_of(tmp_path, topology, SPLIT, **form) == TRITON
