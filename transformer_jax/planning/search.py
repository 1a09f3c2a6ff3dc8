"""Searches for the fastest mesh, gradient checkpointing and rows per device that fit into memory.

There are far more candidates than can be compiled. Each is first judged by a closed-form estimate of what it
saves in memory (Korthikanti et al. 2022, section 4), computes and sends. Then the most promising ones are
compiled, one at a time, and the results correct the estimates of the remaining ones. Only compiled candidates
are ranked.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, get_args

import jax

from transformer_jax.config import ConfigError
from transformer_jax.models import TransformerConfig
from transformer_jax.planning.batches import batch_template
from transformer_jax.planning.hardware import Topology
from transformer_jax.planning.model_flops import model_flops
from transformer_jax.planning.planner import make_plan, with_rows
from transformer_jax.planning.programs import topology_devices
from transformer_jax.planning.report import Plan
from transformer_jax.runs.experiment import Experiment
from transformer_jax.sharding import partitioning
from transformer_jax.training.step import make_init

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # rows per device to try
LONG = 2048  # tokens; rows shorter than this are not split


# What a layer saves for its backward pass: everything that it needs, or what ``remat_keeps`` says.
Kept: TypeAlias = Literal["all", "products", "inputs"]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Describes a configuration to try: sizes of the mesh axes, gradient checkpointing, rows per device."""

    mesh: tuple[tuple[str, int], ...]
    kept: Kept
    rows: int

    def size(self, axis: str) -> int:
        """Returns the size of a mesh axis."""
        return dict(self.mesh)[axis]

    def apply(self, experiment: Experiment) -> Experiment:
        """Returns the experiment with this candidate's mesh, gradient checkpointing and batch size."""
        mesh = dataclasses.replace(experiment.mesh, **dict(self.mesh))
        model = dataclasses.replace(experiment.model, **self.model_fields)
        changed = dataclasses.replace(experiment, mesh=mesh, model=model)
        return with_rows(changed, self.rows, math.prod(size for _, size in self.mesh))

    @property
    def model_fields(self) -> dict[str, Any]:
        """Returns the fields of the model's config that say what its layers save."""
        return {"remat": False} if self.kept == "all" else {"remat": True, "remat_keeps": self.kept}


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds a compiled candidate; if the compiler refused it, there is an error instead of a plan."""

    candidate: Candidate
    plan: Plan | None
    error: str = ""

    @property
    def fits(self) -> bool:
        """Returns whether it compiled and fits into memory."""
        return self.plan is not None and self.plan.fits

    @property
    def utilization(self) -> float:
        """Returns the predicted model FLOPs utilization."""
        return self.plan.utilization(self.plan.steps[0]) if self.plan else 0.0


@dataclasses.dataclass(frozen=True)
class Search:
    """Holds the results of a search.

    Attributes:
      results: those that fit, with the highest utilization first, then the others in the order of
        compilation.
      num_candidates: the number of candidates that were judged in closed form.
    """

    config: str
    topology: Topology
    num_devices: int
    results: tuple[Result, ...]
    num_candidates: int


@dataclasses.dataclass(frozen=True)
class StackSizes:
    """Holds the sizes in which the stacks of a model may differ."""

    layers: int
    heads: int
    length: int  # positions of a row


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Holds the sizes of an experiment that do not depend on the mesh."""

    parameters: int
    state_bytes: int  # parameters and optimizer state
    width: int
    vocab_size: int
    stacks: tuple[StackSizes, ...]  # the last one is followed by the head
    flops_per_row: float


def search(
    experiment: Experiment,
    topology: Topology,
    *,
    name: str = "",
    most: int = 8,
    progress: Callable[[str], None] = lambda text: None,
    devices: Any = None,
    rows: tuple[int, ...] = ROWS,
) -> Search:
    """Compiles the training step of the most promising candidates and ranks those that fit.

    Args:
      experiment: the experiment; candidates replace its mesh, gradient checkpointing and batch size.
      topology: the topology to compile for.
      name: the experiment's name, for the report.
      most: maximum number of candidates to compile.
      progress: called with one line for each compiled candidate.
      devices: devices to compile for, instead of stand-ins for the topology's.
      rows: rows per device to try.

    Raises:
      ConfigError: the compiler is missing or does not know the topology, or there is no candidate.
    """
    devices = topology_devices(topology) if devices is None else devices
    waiting = list(candidates(experiment.model, experiment.data.max_length, len(devices), rows))
    sizes = model_sizes(experiment)
    count, results = len(waiting), list[Result]()
    memory_scale = dict.fromkeys(get_args(Kept), 1.0)
    time_scale = dict(memory_scale)
    seen = set[str]()
    while waiting and len(results) < most:
        fitting = [
            one
            for one in waiting
            if expected_bytes(one, sizes) * memory_scale[one.kept] <= topology.device.usable_bytes
        ]
        if not fitting and not results:  # the estimate may be wrong, so the smallest is tried
            fitting = [min(waiting, key=lambda one: expected_bytes(one, sizes))]
        if not fitting:
            break
        best = max(
            fitting,
            key=lambda one: (
                _speed(one, sizes, topology) / time_scale[one.kept],
                -expected_bytes(one, sizes),
            ),
        )
        waiting.remove(best)
        result = _compile(best, experiment, topology, name, devices)
        results.append(result)
        progress(f"{len(results)} of at most {most}: {describe(result)}")
        if result.plan is not None:
            step = result.plan.steps[0]
            # Kinds of checkpointing that were not compiled yet get the same correction.
            for kept in {best.kept, *(set(get_args(Kept)) - seen)}:
                memory_scale[kept] = step.memory.total / expected_bytes(best, sizes)
                time_scale[kept] = step.estimate.seconds / expected_seconds(best, sizes, topology)
            seen.add(best.kept)
        if not result.fits:
            waiting = [one for one in waiting if not _is_larger(one, best)]
    if not results:
        raise ConfigError(f"no mesh of {len(devices)} devices divides the model's sizes")
    ranked = sorted(results, key=lambda one: -one.utilization if one.fits else 1.0)
    return Search(name, topology, len(devices), tuple(ranked), count)


def candidates(
    model: TransformerConfig, length: int, num_devices: int, rows: tuple[int, ...] = ROWS
) -> Iterator[Candidate]:
    """Yields all candidates that divide the model's sizes: meshes, gradient checkpointing, and rows."""
    divisors = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
    for fsdp, context, tensor in itertools.product(divisors, repeat=3):
        data, rest = divmod(num_devices, fsdp * context * tensor)
        if rest or not data or model.d_model % fsdp:
            continue
        stacks = (model.encoder, model.decoder)
        if any(stack.num_heads % tensor or stack.d_feedforward % tensor for stack in stacks):
            continue
        if context > 1 and (not model.front_end.has_tokens or length < LONG or length % context):
            continue
        mesh = (("data", data), ("fsdp", fsdp), ("context", context), ("tensor", tensor))
        for kept, each in itertools.product(get_args(Kept), rows):
            yield Candidate(mesh, kept, each)


def describe(result: Result) -> str:
    """Returns a result in one line."""
    one = result.candidate
    mesh = " x ".join(f"{name}={size}" for name, size in one.mesh)
    setup = f"{mesh}, layers save {one.kept}, {one.rows} rows per device"
    if result.plan is None:
        return f"{setup}: {result.error}"
    share = result.plan.steps[0].memory.total / result.plan.topology.device.memory_bytes
    return f"{setup}: {share:.0%} of the memory, utilization {result.utilization:.1%}"


def expected_bytes(candidate: Candidate, sizes: Sizes) -> float:
    """Returns a closed-form estimate of the bytes in a device's memory.

    State and gradients are split over ``fsdp`` and ``tensor``. With ``t`` the size of ``tensor``, a layer
    saves ``10 + 24 / t`` bytes for each element of its input and ``5 / t`` for each attention weight in 16
    bits (equation 2 of Korthikanti et al. 2022). With gradient checkpointing these are in memory for one
    layer at a time, and every layer saves its input alone ("inputs"), or also ``4 + 16 / t`` bytes per
    element ("products"): two sums, queries, keys, values, the attention kernel's output, and four times the
    width for the feed-forward network's hidden units.
    """
    split, tensor = candidate.size("fsdp") * candidate.size("tensor"), candidate.size("tensor")
    # The batch is rows times all devices, but the devices along ``tensor`` hold the same rows.
    rows, kept, largest = candidate.rows * tensor, 0.0, 0.0
    for stack in sizes.stacks:
        elements = rows * stack.length * sizes.width
        layer = elements * (10 + 24 / tensor) + 5 * rows * stack.length**2 * stack.heads / tensor
        each = {"all": layer, "products": elements * (6 + 16 / tensor), "inputs": elements * 2}
        kept += each[candidate.kept] * stack.layers
        largest = max(largest, layer)
    if candidate.kept != "all":
        kept += largest
    logits = 6 * rows * sizes.stacks[-1].length * sizes.vocab_size / tensor
    return (sizes.state_bytes + 4 * sizes.parameters) / split + kept + logits


def expected_seconds(candidate: Candidate, sizes: Sizes, topology: Topology) -> float:
    """Returns a closed-form estimate of a step's seconds: products at their peak rate and communication."""
    device, tensor, fsdp = topology.device, candidate.size("tensor"), candidate.size("fsdp")
    # "products" recomputes elementwise operations and, with some kernels, attention, which costs little.
    again = {"all": 1.0, "products": 1.02, "inputs": 4 / 3}[candidate.kept]
    products = candidate.rows * sizes.flops_per_row * again / device.peak_rate
    sent = 0.0
    if candidate.size("data") * fsdp * candidate.size("context") > 1:
        sent += 2 * 2 * sizes.parameters / tensor  # gradients, in 16 bits
    if fsdp > 1:
        sent += 2 * 2 * sizes.parameters / tensor  # parameters, gathered forward and backward
    if tensor > 1:
        positions = candidate.rows * tensor * sum(stack.length * stack.layers for stack in sizes.stacks)
        sent += 4 * 2 * 2 * positions * sizes.width * (tensor - 1) / tensor
    return products + sent / (device.link_rate * device.links_per_axis)


def _speed(candidate: Candidate, sizes: Sizes, topology: Topology) -> float:
    return candidate.rows / expected_seconds(candidate, sizes, topology)


def _is_larger(one: Candidate, other: Candidate) -> bool:
    return one.mesh == other.mesh and one.kept == other.kept and one.rows > other.rows


def _compile(
    candidate: Candidate, experiment: Experiment, topology: Topology, name: str, devices: Any
) -> Result:
    try:
        plan = make_plan(candidate.apply(experiment), topology, name=name, steps=("train",), devices=devices)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        return Result(candidate, None, " ".join(str(error).split())[:200])
    return Result(candidate, plan)


def model_sizes(experiment: Experiment) -> Sizes:
    """Returns the sizes that the closed-form estimates need; uses one device to derive shapes."""
    model = experiment.model
    state = partitioning.unbox(jax.eval_shape(make_init(experiment)))
    alone = partitioning.make_mesh(partitioning.MeshConfig(data=1), jax.devices()[:1])
    changed = dataclasses.replace(experiment, mesh=partitioning.MeshConfig(data=1))
    batch = batch_template(with_rows(changed, 1, 1), alone)
    rows = next(iter(batch.values())).shape[0]
    return Sizes(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        state_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        width=model.d_model,
        vocab_size=model.vocab_size,
        stacks=stack_sizes(model, batch),
        flops_per_row=model_flops(model, batch) / rows,
    )


def stack_sizes(model: TransformerConfig, batch: Mapping[str, Any]) -> tuple[StackSizes, ...]:
    """Returns the sizes of the stacks that the model has, given the shapes of a batch."""
    inputs = model.front_end.length(model, batch)
    stacks = []
    if not model.is_decoder_only:
        stacks.append(StackSizes(model.num_encoder_layers, model.encoder.num_heads, inputs))
    if not model.is_encoder_only:
        length = inputs if model.is_decoder_only else batch["targets"].shape[1]
        stacks.append(StackSizes(model.num_decoder_layers, model.decoder.num_heads, length))
    return tuple(stacks)
