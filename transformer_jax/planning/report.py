"""Prints a plan: a table for people, and the same values as JSON for programs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformer_jax.planning.collectives import Collective
from transformer_jax.planning.costs import Cost
from transformer_jax.planning.estimate import Estimate
from transformer_jax.planning.hardware import GIB, Topology
from transformer_jax.planning.memory import Memory
from transformer_jax.planning.model_flops import FORMULA

WHAT_IT_IS = (
    "These are estimates from compiled programs and published peak rates, not measurements: nothing was run. "
    "A real step takes longer."
)
XLA_ATTENTION = "matrix products and softmax compiled by XLA, no fused kernel"


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Holds everything that is known about one compiled step.

    Attributes:
      name: ``train``, ``evaluate`` or ``decode``.
      rows, tokens: of a batch over all devices, padding included; images count as tokens.
      cost: operations and bytes of one device.
      model_flops: operations that the model needs on all devices; see ``model_flops``.
      attention: the kernels that compute attention.
      uncounted: kernels whose number of operations is unknown; ``cost`` does not include them.
    """

    name: str
    rows: int
    tokens: int
    memory: Memory
    cost: Cost
    estimate: Estimate
    model_flops: int
    attention: tuple[str, ...]
    uncounted: tuple[str, ...]
    unknown_loops: tuple[str, ...]
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """Holds the steps of an experiment, compiled for a topology and a mesh."""

    config: str
    topology: Topology
    num_devices: int
    mesh: Mapping[str, int]
    steps: tuple[StepPlan, ...]

    @property
    def fits(self) -> bool:
        """Returns whether every step fits into the memory that is available to it on a device."""
        return all(step.memory.total <= self.topology.device.usable_bytes for step in self.steps)

    def utilization(self, step: StepPlan) -> float:
        """Returns the model FLOPs utilization, from 0 to 1: needed operations divided by possible ones."""
        return self._share(step, step.estimate.seconds)

    def most_utilization(self, step: StepPlan) -> float:
        """Returns the utilization for ``least_seconds``, the roofline of the program as a whole."""
        return self._share(step, step.estimate.least_seconds)

    def _share(self, step: StepPlan, seconds: float) -> float:
        possible = seconds * self.num_devices * self.topology.device.peak_rate
        return step.model_flops / possible if possible else 0.0


def to_json(plan: Plan) -> dict[str, Any]:
    """Returns the plan as JSON values. Bytes and operations are per device, seconds per run of a step.

    Keys:
      what: says that the values are estimates. config, topology, mesh (sizes by axis), fits.
      device: name, count, memory_bytes, usable_bytes (available to a program), peak_flops (per second, by
        type), memory_rate and link_rate (bytes per second), source.
      steps: by name: rows and tokens (of a batch, all devices), memory (bytes: parameters, optimizer,
        other_arguments, outputs, activations, temporaries, code, peak, total), flops (product, other),
        memory_traffic_bytes, bytes_accessed (XLA's measure), collectives (a list: kind, axes, dtype, bytes,
        count, group_size, is_async, seconds, exposed_seconds), parts (a list: phase, module, flops,
        memory_bytes, seconds), product_seconds, memory_seconds, exposed_collective_seconds, step_seconds,
        least_step_seconds (if products and memory traffic always overlapped), tokens_per_second, model_flops
        (all devices), model_flops_formula, utilization, most_utilization (for least_step_seconds), attention,
        uncounted_kernels, loops_counted_once, compile_seconds.
    """
    device = plan.topology.device
    return {
        "what": WHAT_IT_IS,
        "config": plan.config,
        "topology": plan.topology.name,
        "mesh": dict(plan.mesh),
        "fits": plan.fits,
        "device": {
            "name": device.name,
            "count": plan.num_devices,
            "memory_bytes": device.memory_bytes,
            "usable_bytes": device.usable_bytes,
            "peak_flops": dict(device.product_rates),
            "memory_rate": device.memory_rate,
            "link_rate": device.link_rate,
            "source": device.source,
        },
        "steps": {step.name: _step_json(plan, step) for step in plan.steps},
    }


def _step_json(plan: Plan, step: StepPlan) -> dict[str, Any]:
    times = step.estimate
    memory = dataclasses.asdict(step.memory) | {"peak": step.memory.peak, "total": step.memory.total}
    return {
        "rows": step.rows,
        "tokens": step.tokens,
        "memory": memory,
        "flops": {"product": sum(step.cost.product_flops.values()), "other": step.cost.other_flops},
        "memory_traffic_bytes": step.cost.memory_bytes,
        "bytes_accessed": step.cost.bytes_accessed,
        "collectives": [
            _collective_json(one.collective)
            | {"seconds": one.seconds, "exposed_seconds": one.exposed_seconds}
            for one in times.collectives
        ],
        "parts": [dataclasses.asdict(part) for part in times.parts],
        "product_seconds": times.product_seconds,
        "memory_seconds": times.memory_seconds,
        "exposed_collective_seconds": times.exposed_seconds,
        "step_seconds": times.seconds,
        "least_step_seconds": times.least_seconds,
        "tokens_per_second": step.tokens / times.seconds if times.seconds else 0.0,
        "model_flops": step.model_flops,
        "model_flops_formula": FORMULA,
        "utilization": plan.utilization(step),
        "most_utilization": plan.most_utilization(step),
        "attention": list(step.attention),
        "uncounted_kernels": list(step.uncounted),
        "loops_counted_once": list(step.unknown_loops),
        "compile_seconds": step.compile_seconds,
    }


def _collective_json(one: Collective) -> dict[str, Any]:
    keys = ("kind", "axes", "dtype", "bytes", "count", "group_size", "is_async")
    return {key: getattr(one, key) for key in keys} | {"axes": list(one.axes)}


def to_text(plan: Plan) -> str:
    """Returns the plan as tables."""
    device, mesh = plan.topology.device, " x ".join(f"{name}={size}" for name, size in plan.mesh.items())
    rates = ", ".join(f"{dtype} {rate / 1e12:,.4g}" for dtype, rate in device.product_rates.items())
    lines = [
        f"{plan.config} on {plan.topology.name}: {plan.num_devices} devices, mesh {mesh}",
        WHAT_IT_IS,
        f"Rates per device: {rates} TFLOP/s; memory {device.memory_bytes / GIB:.4g} GiB at "
        f"{device.memory_rate / 1e9:,.0f} GB/s; a link {device.link_rate / 1e9:,.0f} GB/s in one direction",
        f"  source: {device.source}",
        f"Utilization counts {FORMULA}",
    ]
    for step in plan.steps:
        lines += ["", *_step_lines(plan, step)]
    return "\n".join(lines)


def _step_lines(plan: Plan, step: StepPlan) -> list[str]:
    memory, times, device = step.memory, step.estimate, plan.topology.device
    if memory.total <= device.usable_bytes:
        verdict = "fits"
    elif memory.total <= device.memory_bytes:
        verdict = f"MAY NOT FIT: about {device.usable_bytes / GIB:.4g} GiB are available to a program"
    else:
        verdict = "DOES NOT FIT"
    unit = "images" if step.rows == step.tokens and step.name != "decode" else "tokens"
    sizes = (
        "parameters", "optimizer", "other_arguments", "outputs", "activations", "temporaries", "code",
    )  # fmt: skip
    rows = [(name.replace("_", " "), f"{getattr(memory, name) / GIB:.3f} GiB") for name in sizes]
    rows += [
        ("peak without code", f"{memory.peak / GIB:.3f} GiB"),
        ("total", f"{memory.total / GIB:.3f} of {device.memory_bytes / GIB:.4g} GiB: {verdict}"),
    ]
    lines = [
        f"{step.name}: {step.rows:,} rows, {step.tokens:,} {unit} (compiled in {step.compile_seconds:.0f} s)",
        "  memory per device",
        *_table(rows),
        "  work per device",
        *_table(
            [
                ("matrix products", f"{sum(step.cost.product_flops.values()) / 1e12:,.4g} TFLOP"),
                ("other operations", f"{step.cost.other_flops / 1e12:,.4g} TFLOP"),
                ("main memory traffic", f"{step.cost.memory_bytes / 1e9:,.4g} GB"),
                ("bytes accessed, by XLA's measure", f"{step.cost.bytes_accessed / 1e9:,.4g} GB"),
                ("attention", "; ".join(step.attention)),
            ]
        ),
        "  roofline time",
        *_parts_table(step),
        *_collectives_table(step),
        *_table(
            [
                ("matrix products alone", f"{times.product_seconds * 1e3:,.3f} ms"),
                ("memory traffic alone", f"{times.memory_seconds * 1e3:,.3f} ms"),
                ("predicted step", f"{times.seconds * 1e3:,.3f} ms"),
                (f"{unit} per second", f"{step.tokens / max(times.seconds, 1e-12):,.0f}"),
                ("model FLOPs utilization", f"{plan.utilization(step):.1%} of the bf16 peak"),
                (
                    "at most",
                    f"{plan.most_utilization(step):.1%}, if products and memory traffic always overlapped "
                    f"({times.least_seconds * 1e3:,.3f} ms)",
                ),
            ]
        ),
    ]
    if step.uncounted:
        lines.append(f"  not counted: operations inside {', '.join(step.uncounted)}, which do not state them")
    if step.unknown_loops:
        lines.append(f"  counted as one trip: {', '.join(step.unknown_loops)}, whose trips depend on data")
    return lines


def _parts_table(step: StepPlan) -> list[str]:
    whole = step.estimate.seconds or 1.0
    rows = [("phase", "module", "TFLOP", "GB", "ms", "share")]
    for part in step.estimate.parts:
        if part.seconds / whole < 0.0005:
            continue
        flops, size = f"{part.flops / 1e12:.4f}", f"{part.memory_bytes / 1e9:.3f}"
        share = f"{part.seconds / whole:.1%}"
        rows.append((part.phase, part.module, flops, size, f"{part.seconds * 1e3:.3f}", share))
    exposed = step.estimate.exposed_seconds
    if exposed:
        rows.append(("all", "collectives", "", "", f"{exposed * 1e3:.3f}", f"{exposed / whole:.1%}"))
    return columns(rows, left=2)


def _collectives_table(step: StepPlan) -> list[str]:
    if not step.estimate.collectives:
        return ["  collectives: none"]
    groups: dict[tuple[Any, ...], list[float]] = {}
    for one in step.estimate.collectives:
        collective = one.collective
        start = "asynchronous" if collective.is_async else ""
        axes = "+".join(collective.axes) or "none"
        key = (axes, collective.kind, collective.dtype, collective.group_size, start)
        sums = groups.setdefault(key, [0, 0, 0.0, 0.0])
        sums[0] += collective.count
        sums[1] += collective.total_bytes
        sums[2] += one.seconds
        sums[3] += one.exposed_seconds
    rows: list[tuple[str, ...]] = [
        ("axes", "kind", "type", "devices", "", "count", "total MB", "ms", "ms not hidden")
    ]
    for key, (count, size, seconds, exposed) in sorted(groups.items(), key=lambda item: -item[1][2]):
        figures = (f"{count:,}", f"{size / 1e6:,.3f}", f"{seconds * 1e3:.3f}", f"{exposed * 1e3:.3f}")
        rows.append((*map(str, key), *figures))
    return ["  collectives per device", *columns(rows, left=5)]


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"    {name:{width}}  {value}" for name, value in rows]


def columns(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Returns the lines of a table with aligned columns; the first ``left`` columns are flush left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "    "
        + "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def write_json(values: Any) -> str:
    """Returns plain values as indented JSON text."""
    return json.dumps(values, indent=2, ensure_ascii=False)
