"""Training steps compiled for accelerators that are not there; ``make plan`` runs these, one at a time.

Where only has to be seen that a step compiles, the compiler is asked for little effort: that takes a third of
the time or less, and makes slower programs.
"""

import dataclasses
import importlib.util
import itertools
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from transformer_jax.config import ConfigError
from transformer_jax.planning.costs import read_work, total
from transformer_jax.planning.hardware import EXAMPLES, GIB, read_topology
from transformer_jax.planning.hlo import read_program
from transformer_jax.planning.planner import make_plan, with_rows
from transformer_jax.planning.programs import compile_steps, topology_devices
from transformer_jax.planning.report import Plan
from transformer_jax.runs.experiment import Experiment, read_experiment
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh

pytestmark = pytest.mark.plan

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
LITTLE_EFFORT = {"exec_time_optimization_effort": -1.0}
TOPOLOGIES = ("v5e:4x4", "v5p:2x2x1", "v6e:4x4")
# Experiment, variant, rows a device.
MODELS = {
    "transformer base": ("wmt14_en_de", "base", 8),
    "transformer big": ("wmt14_en_de", "big", 8),
    "bert base": ("bert_wikipedia", "base", 8),
    "gpt2 small": ("gpt2_openwebtext", "small", 4),
    "gpt2 xl": ("gpt2_openwebtext", "xl", 1),
    "t5 1.1 large": ("t5_c4", "1.1-large", 2),
    "bart large": ("bart_summaries", None, 1),
    "vit l/16": ("vit_imagenet", "L/16", 8),
}


def experiment_of(name: str) -> Experiment:
    file, variant, _ = MODELS[name]
    spec: Any = importlib.util.spec_from_file_location(file, EXPERIMENTS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    experiment = read_experiment(module.get_config(*([variant] if variant else [])))
    train = dataclasses.replace(experiment.train, gradient_accumulation_steps=1)
    model = dataclasses.replace(experiment.model, scan_layers=True, dtype="bfloat16")
    return dataclasses.replace(experiment, model=model, train=train)


def plan_of(name: str, topology: str, *, mesh: dict[str, int], **options: Any) -> Plan:
    where = read_topology(topology)
    experiment = with_rows(experiment_of(name), MODELS[name][2], where.num_devices)
    experiment = dataclasses.replace(experiment, mesh=MeshConfig(**mesh))
    return make_plan(experiment, where, name=name, steps=("train",), **options)


def check(plan: Plan) -> None:
    """What must be so of every training step that was compiled for several devices."""
    (step,) = plan.steps
    needed = step.model_flops / plan.num_devices
    products = sum(step.cost.product_flops.values())
    remat = 4 / 3
    # Kernels skip what a causal mask hides, which the formula has.
    assert 0.95 * needed < products < 1.1 * remat * needed, "products that the model does not need"
    assert {axis for one in step.estimate.collectives for axis in one.collective.axes}
    assert step.unknown_loops == ()
    assert step.memory.activations > 0
    print(
        f"\n{plan.config} on {plan.topology.name}: compiled in {step.compile_seconds:.0f} s, "
        f"{step.memory.total / 2**30:.2f} GiB, {step.estimate.seconds * 1e3:.1f} ms a step"
    )


# A model for each topology, run for every change: with a decoder, without one, and with nothing else.
FOR_EVERY_CHANGE = set(zip(("transformer base", "bert base", "gpt2 small"), TOPOLOGIES, strict=True))


def on_topologies() -> Iterator[Any]:
    for case in itertools.product(MODELS, TOPOLOGIES):
        yield pytest.param(*case, marks=[pytest.mark.everything] * (case not in FOR_EVERY_CHANGE))


@pytest.mark.parametrize(("name", "topology"), list(on_topologies()))
def test_training_steps_compile_for_tpus(name: str, topology: str) -> None:
    plan = plan_of(name, topology, mesh={"data": -1, "fsdp": 4}, options=LITTLE_EFFORT)
    check(plan)
    assert plan.fits


def test_a_training_step_compiles_for_eight_h100() -> None:
    check(plan_of("transformer base", "h100:8", mesh={"data": 4, "fsdp": 2}))


def test_loops_are_multiplied_out_and_the_rest_is_counted_as_xla_does() -> None:
    """A scanned step has the products of the unrolled one, of which XLA's own count is right.

    Not where attention is a kernel, which XLA does not count.
    """
    topology = read_topology("v5e:2x2")
    plain = MeshConfig(attention="plain")
    mesh = make_mesh(plain, topology_devices(topology))
    found = {}
    for scan_layers in (True, False):
        experiment = experiment_of("transformer base")
        sizes = {"num_encoder_layers": 2, "num_decoder_layers": 2, "scan_layers": scan_layers}
        model = dataclasses.replace(experiment.model, **sizes)
        experiment = dataclasses.replace(experiment, model=model, mesh=plain)
        experiment = with_rows(experiment, 2, topology.num_devices)
        (step,) = compile_steps(experiment, mesh, ("train",), LITTLE_EFFORT)
        found[scan_layers] = total(read_work(read_program(step.text))), step.compiled.cost_analysis()
    (scanned, counted_once), (unrolled, counted) = found[True], found[False]
    assert scanned.product_flops == pytest.approx(unrolled.product_flops, rel=1e-3)
    assert counted_once["flops"] < 0.9 * scanned.flops
    assert unrolled.flops == pytest.approx(counted["flops"], rel=0.01)
    assert unrolled.bytes_accessed == pytest.approx(counted["bytes accessed"], rel=0.05)


def test_the_memory_is_what_the_compiler_says_in_its_log(
    single_device_environment: dict[str, str],
) -> None:
    """Of scanned layers, for which JAX gives a third more."""
    command = [sys.executable, "-m", "transformer_jax.plan", f"--config={EXPERIMENTS}/wmt14_en_de.py:big"]
    loud = {"TPU_STDERR_LOG_LEVEL": "0", "TPU_MIN_LOG_LEVEL": "0", "LIBTPU_INIT_ARGS": "--stderrthreshold=0"}
    said = subprocess.run(
        [*command, "--topology=v5e:4x4", "--rows_per_device=8", "--steps=train", "--json"],
        env=single_device_environment | loud,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr[-2000:]
    # Program and arguments, in GiB to two decimals.
    sizes = re.findall(r"^ +program +([\d.]+)G *\n +arguments +([\d.]+)G", said.stderr, re.MULTILINE)
    assert len(sizes) == 1, said.stderr[-2000:]
    wanted = sum(map(float, sizes[0]))
    total = json.loads(said.stdout)["steps"]["train"]["memory"]["total"] / GIB
    # What is allocated is more than the worst moment, of this program by 4 %; ``usable_bytes`` grants 5 %.
    assert (wanted - 0.01) / 1.05 < total < wanted + 0.01


def test_a_topology_that_the_compiler_refuses_is_an_error_with_some_that_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"does not know this topology.*v5e:2x2.*v5e:4x4"):
        topology_devices(read_topology("v5e:3x3"))


@pytest.mark.parametrize("name", [name for examples in EXAMPLES.values() for name in examples])
def test_the_compiler_takes_every_example(name: str) -> None:
    topology = read_topology(name)
    assert len(topology_devices(topology)) == topology.num_devices
