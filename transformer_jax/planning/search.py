"""Which mesh, with or without rematerialisation, and how many rows a device: what fits and is fastest.

There are far more candidates than can be compiled. Each is first judged in closed form, by what it keeps in
memory (Korthikanti et al. 2022, section 4) and what it computes and sends; then the most promising are
compiled, one at a time, and what their programs say corrects the closed form for those that are left. Only
what was compiled is ranked.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, get_args

import jax

from transformer_jax import partitioning
from transformer_jax.config import ConfigError, TransformerConfig
from transformer_jax.experiment import Experiment
from transformer_jax.planning.batches import batch_template
from transformer_jax.planning.hardware import Topology
from transformer_jax.planning.model_flops import model_flops
from transformer_jax.planning.planner import make_plan, with_rows
from transformer_jax.planning.programs import topology_devices
from transformer_jax.planning.report import Plan
from transformer_jax.train_step import make_init

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # a device
LONG = 2048  # tokens; rows shorter than this are not split


# What a layer keeps for its backward pass: all that it needs, or what ``remat_keeps`` says.
Kept: TypeAlias = Literal["all", "products", "inputs"]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is tried: sizes of mesh axes, rematerialisation, rows of a batch for each device."""

    mesh: tuple[tuple[str, int], ...]
    kept: Kept
    rows: int

    def size(self, axis: str) -> int:
        """Of a mesh axis."""
        return dict(self.mesh)[axis]

    def apply(self, experiment: Experiment) -> Experiment:
        """The experiment with it."""
        mesh = dataclasses.replace(experiment.mesh, **dict(self.mesh))
        model = dataclasses.replace(experiment.model, **self.model_fields)
        changed = dataclasses.replace(experiment, mesh=mesh, model=model)
        return with_rows(changed, self.rows, math.prod(size for _, size in self.mesh))

    @property
    def model_fields(self) -> dict[str, Any]:
        """The fields of the model's config that say what its layers keep."""
        return {"remat": False} if self.kept == "all" else {"remat": True, "remat_keeps": self.kept}


@dataclasses.dataclass(frozen=True)
class Result:
    """A candidate that was compiled; without a plan where the compiler refused it, and why."""

    candidate: Candidate
    plan: Plan | None
    error: str = ""

    @property
    def fits(self) -> bool:
        """Whether there is a program and it fits."""
        return self.plan is not None and self.plan.fits

    @property
    def utilization(self) -> float:
        """Model FLOPs utilization that is predicted."""
        return self.plan.utilization(self.plan.steps[0]) if self.plan else 0.0


@dataclasses.dataclass(frozen=True)
class Search:
    """What came of a search.

    Attributes:
      results: those that fit, the highest utilization first, then the others in the order of compilation.
      num_candidates: all that the closed form judged.
    """

    config: str
    topology: Topology
    num_devices: int
    results: tuple[Result, ...]
    num_candidates: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of an experiment, whatever its mesh."""

    parameters: int
    state_bytes: int  # parameters and optimizer
    layers: int
    width: int
    heads: int
    vocab_size: int
    length: int
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
      experiment: whose mesh, rematerialisation and batch size are replaced.
      topology: to compile for.
      name: of the experiment, for the report.
      most: candidates to compile.
      progress: is told of each that was compiled.
      devices: to compile for, instead of stand-ins for the topology's.
      rows: a device, to try.

    Raises:
      ConfigError: the compiler is missing or knows no such topology, or no candidate can be.
    """
    devices = topology_devices(topology) if devices is None else devices
    waiting = list(candidates(experiment.model, experiment.data.max_length, len(devices), rows))
    sizes = model_sizes(experiment)
    count, results = len(waiting), list[Result]()
    memory_scale = dict.fromkeys(get_args(Kept), 1.0)
    time_scale = dict(memory_scale)
    seen = set[str]()
    while waiting and len(results) < most:
        found = [
            one
            for one in waiting
            if expected_bytes(one, sizes) * memory_scale[one.kept] <= topology.device.usable_bytes
        ]
        if not found:  # the closed form may be wrong: the smallest is tried
            found = [min(waiting, key=lambda one: expected_bytes(one, sizes))] if not results else []
        if not found:
            break
        best = max(
            found,
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
            # What was not compiled yet errs, as far as is known, like what was.
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
    """All that divides the model's sizes: meshes, without and with rematerialisation, rows."""
    divisors = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
    for fsdp, context, tensor in itertools.product(divisors, repeat=3):
        data, rest = divmod(num_devices, fsdp * context * tensor)
        if rest or not data or model.d_model % fsdp:
            continue
        if model.num_heads % tensor or model.d_feedforward % tensor:
            continue
        if context > 1 and (model.image_shape or length < LONG or length % context):
            continue
        mesh = (("data", data), ("fsdp", fsdp), ("context", context), ("tensor", tensor))
        for kept, each in itertools.product(get_args(Kept), rows):
            yield Candidate(mesh, kept, each)


def describe(result: Result) -> str:
    """A result in one line."""
    one = result.candidate
    mesh = " x ".join(f"{name}={size}" for name, size in one.mesh)
    what = f"{mesh}, layers keep {one.kept}, {one.rows} rows a device"
    if result.plan is None:
        return f"{what}: {result.error}"
    share = result.plan.steps[0].memory.total / result.plan.topology.device.memory_bytes
    return f"{what}: {share:.0%} of the memory, utilization {result.utilization:.1%}"


def expected_bytes(candidate: Candidate, sizes: Sizes) -> float:
    """Of a device's memory, in closed form.

    State and gradients are split over ``fsdp`` and ``tensor``. A layer keeps ``10 + 24 / t`` bytes for each
    element of its input and ``5 / t`` for each of its attention weights in 16 bits (equation 2 of
    Korthikanti et al. 2022). With rematerialisation it has all of that one layer at a time, and keeps its
    input, or beside it ``4 + 16 / t`` bytes: two sums, queries, keys, values, what a kernel gives, and four
    for the hidden units of the feed-forward network.
    """
    split, tensor = candidate.size("fsdp") * candidate.size("tensor"), candidate.size("tensor")
    # Rows a device are counted over all devices, so those along tensor hold each other's.
    tokens = candidate.rows * sizes.length * tensor
    layer = tokens * sizes.width * (10 + 24 / tensor)
    layer += 5 * tokens * sizes.heads / tensor * sizes.length
    elements = tokens * sizes.width
    each = {"all": layer, "products": elements * (6 + 16 / tensor), "inputs": elements * 2}
    kept = each[candidate.kept] * sizes.layers + (0 if candidate.kept == "all" else layer)
    logits = 6 * tokens * sizes.vocab_size / tensor
    return (sizes.state_bytes + 4 * sizes.parameters) / split + kept + logits


def expected_seconds(candidate: Candidate, sizes: Sizes, topology: Topology) -> float:
    """Of a step, in closed form: products at their peak rate, and what axes of the mesh send."""
    device, tensor, fsdp = topology.device, candidate.size("tensor"), candidate.size("fsdp")
    # Elementwise work once more, and attention with some kernels, is little, but not nothing.
    again = {"all": 1.0, "products": 1.02, "inputs": 4 / 3}[candidate.kept]
    products = candidate.rows * sizes.flops_per_row * again / device.peak_rate
    sent = 0.0
    if candidate.size("data") * fsdp * candidate.size("context") > 1:
        sent += 2 * 2 * sizes.parameters / tensor  # gradients, in 16 bits
    if fsdp > 1:
        sent += 2 * 2 * sizes.parameters / tensor  # parameters, gathered forward and backward
    if tensor > 1:
        tokens = candidate.rows * sizes.length * tensor
        sent += 4 * 2 * 2 * tokens * sizes.width * sizes.layers * (tensor - 1) / tensor
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
    """What the closed form knows of an experiment; it needs one device, to make shapes for."""
    model = experiment.model
    state = partitioning.unbox(jax.eval_shape(make_init(experiment)))
    alone = partitioning.make_mesh(partitioning.MeshConfig(data=1), jax.devices()[:1])
    changed = dataclasses.replace(experiment, mesh=partitioning.MeshConfig(data=1))
    batch = batch_template(with_rows(changed, 1, 1), alone)
    rows = next(iter(batch.values())).shape[0]
    length = model.num_patches + 1 if model.image_shape else experiment.data.max_length
    return Sizes(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        state_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        layers=model.num_encoder_layers + model.num_decoder_layers,
        width=model.d_model,
        heads=model.num_heads,
        vocab_size=model.vocab_size,
        length=length,
        flops_per_row=model_flops(model, batch) / rows,
    )
