"""Makes a plan: compiles an experiment's steps for a topology and reads the compiled programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from transformer_jax.config import ConfigError
from transformer_jax.planning.batches import batch_template, num_tokens, source_shapes
from transformer_jax.planning.collectives import find_collectives
from transformer_jax.planning.costs import Work, read_work, total
from transformer_jax.planning.estimate import estimate, mesh_coords
from transformer_jax.planning.hardware import Topology
from transformer_jax.planning.hlo import read_program
from transformer_jax.planning.memory import read_memory
from transformer_jax.planning.model_flops import decode_flops, model_flops
from transformer_jax.planning.programs import STEPS, CompiledStep, compile_steps, topology_devices
from transformer_jax.planning.report import XLA_ATTENTION, Plan, StepPlan
from transformer_jax.runs.experiment import Experiment
from transformer_jax.sharding import partitioning
from transformer_jax.training.step import compile_train_step

_PALLAS = ("tpu_custom_call", "__gpu$xla.gpu.triton")  # the targets that all Pallas kernels share


def make_plan(
    experiment: Experiment,
    topology: Topology,
    *,
    name: str = "",
    steps: Sequence[str] = STEPS,
    devices: Sequence[Any] | None = None,
    options: dict[str, Any] | None = None,
) -> Plan:
    """Compiles the steps of an experiment for a topology and reads the compiled programs.

    Args:
      experiment: its mesh section says how the devices are arranged.
      topology: the topology to compile for.
      name: the experiment's name, for the report.
      steps: some of ``STEPS``.
      devices: devices to compile for, instead of stand-ins for the topology's.
      options: options of the compiler.

    Raises:
      ConfigError: the compiler is missing or does not know the topology, or the mesh does not fit the
        devices, the batch or the model.
    """
    devices = topology_devices(topology) if devices is None else devices
    try:
        mesh = partitioning.make_mesh(experiment.mesh, devices)
    except ValueError as error:
        raise ConfigError(f"--topology={topology.name}: {error}") from error
    compiled = compile_steps(experiment, mesh, steps, options)
    plans = tuple(_read_step(one, experiment, mesh, topology) for one in compiled)
    return Plan(name, topology, mesh.size, dict(mesh.shape), plans)


def with_rows(experiment: Experiment, rows_per_device: int, num_devices: int) -> Experiment:
    """Returns the experiment with so many rows per device in a (micro-)batch of the greatest length."""
    rows = rows_per_device * num_devices * experiment.train.gradient_accumulation_steps
    data = dataclasses.replace(experiment.data, batch_size=rows, buckets=())
    return dataclasses.replace(experiment, data=data)


def _read_step(step: CompiledStep, experiment: Experiment, mesh: Mesh, topology: Topology) -> StepPlan:
    program = read_program(step.text)
    work, collectives = read_work(program), find_collectives(program, mesh)
    template = compile_train_step(experiment, mesh)[0]
    optimizer = template.optimizer if step.name == "train" else ()
    rows, tokens, needed = _sizes(step.name, experiment, mesh)
    return StepPlan(
        name=step.name,
        rows=rows,
        tokens=tokens,
        memory=read_memory(
            step.compiled, program, template.params, optimizer, platform=mesh.devices.flat[0].platform
        ),
        cost=total(work),
        estimate=estimate(program, work, collectives, mesh_coords(mesh), topology),
        model_flops=needed,
        attention=attention_kernels(work),
        uncounted=tuple(sorted({one.kernel or one.name for one in work if not one.is_counted})),
        unknown_loops=program.unknown_loops,
        compile_seconds=step.seconds,
    )


def _sizes(name: str, experiment: Experiment, mesh: Mesh) -> tuple[int, int, int]:
    """Returns rows, tokens and the operations that the model needs for a step."""
    model = experiment.model
    if name != "decode":
        batch: dict[str, jax.ShapeDtypeStruct] = batch_template(experiment, mesh)
        rows = next(iter(batch.values())).shape[0]
        return rows, num_tokens(batch), model_flops(model, batch, train=name == "train")
    settings = experiment.evaluate
    rows = settings.batch_size * (settings.beam_size if settings.temperature == 0 else 1)
    length = min(experiment.data.max_length, model.batch_max_length)
    width = length if model.is_decoder_only else min(length + settings.extra_length, model.targets_max_length)
    source = 0
    if not model.is_decoder_only:
        source = model.front_end.length(model, source_shapes(experiment, rows))
    return rows, rows, decode_flops(model, rows, source, width)


def _pallas_name(work: Work) -> str:
    """Returns the kernel's own name, which precedes ``pallas_call``, or else the instruction's name."""
    before, _, after = work.op_name.rpartition("/pallas_call")
    return before.rpartition("/")[2] if before and not after else work.name.split(".")[0]


def attention_kernels(work: Sequence[Work]) -> tuple[str, ...]:
    """Returns the names of the kernels that compute attention, from the custom calls inside it."""
    kernels = sorted(
        {
            one.kernel + (f" {_pallas_name(one)}" if one.kernel in _PALLAS else "")
            for one in work
            if one.kernel and ("attention" in one.op_name or "fmha" in one.kernel)
        }
    )
    has_products = any(
        one.cost.product_flops and "bhls" in one.op_name and "attention" in one.op_name for one in work
    )
    return tuple(kernels) + ((XLA_ATTENTION,) if has_products or not kernels else ())
