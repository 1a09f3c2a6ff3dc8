"""Compiles the real steps of an experiment ahead of time, for devices that are not present.

libtpu compiles TPU programs; JAX's CUDA plugin compiles GPU programs, without NVIDIA's libraries. Neither
needs an accelerator. Both belong in an environment of their own (``make plan-env``), because they print error
messages at every start if they are installed with everything else.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax.config import ConfigError
from transformer_jax.evaluation.scoring import make_evaluate_step
from transformer_jax.models import build, evaluation_keys
from transformer_jax.models.cache import NO_AXIS, PromptContext, row_axes
from transformer_jax.planning.batches import batch_template, source_shapes
from transformer_jax.planning.hardware import EXAMPLES, Topology
from transformer_jax.runs.experiment import Experiment
from transformer_jax.sharding import partitioning
from transformer_jax.training.step import compile_train_step
from transformer_jax.types import PyTree

STEPS = ("train", "evaluate", "decode")
CUDA_FOLDER = "cuda-plugin"  # a folder of the environment that is not on Python's import path
INSTALL = "make plan-env, then .venv-plan/bin/python -m transformer_jax.plan ..."

_AT_ONCE = 2  # number of compilations at the same time

# libtpu reads these, and asks a metadata server, when it starts. Without a TPU they must be set by hand.
_TPU_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling holds no chip, so several processes may do it
}
_GPU_FACTS = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: 0 }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared_by_choice}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""
# From the data sheets and NVIDIA's CUDA C++ Programming Guide (compute capabilities).
_GPUS = {
    "a100": _GPU_FACTS.format(
        **dict(major=8, cores=108, units=64, clock=1.41, shared=167936, shared_by_choice=166912),
        **dict(bandwidth=2039 * 10**9, cache=40 * 2**20, memory=80 * 10**9, name="NVIDIA A100-SXM4-80GB"),
    ),
    "h100": _GPU_FACTS.format(
        **dict(major=9, cores=132, units=128, clock=1.98, shared=233472, shared_by_choice=232448),
        **dict(bandwidth=3350 * 10**9, cache=50 * 2**20, memory=80 * 10**9, name="NVIDIA H100 80GB HBM3"),
    ),
}


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Holds a step compiled for a topology.

    Attributes:
      name: one of ``STEPS``.
      compiled: JAX's compiled program.
      text: the text of the program.
      seconds: time that compiling took.
    """

    name: str
    compiled: jax.stages.Compiled
    text: str
    seconds: float


def topology_devices(topology: Topology) -> Sequence[Any]:
    """Returns stand-ins for the devices of a topology, to compile for.

    Raises:
      ConfigError: the compiler is not installed or does not know the topology.
    """
    from jax.experimental import topologies

    try:
        if topology.device.platform == "tpu":
            description = topologies.get_topology_desc(platform="tpu", **_prepare_tpu(topology))
        else:
            description = topologies.get_topology_desc(platform="cuda", **_prepare_cuda(topology))
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        if "INVALID_ARGUMENT" not in reason and "NOT_FOUND" not in reason:
            raise ConfigError(
                f"the compiler for --topology={topology.name} cannot start: {reason}"
            ) from error
        raise ConfigError(
            f"--topology={topology.name}: the compiler does not know this topology ({reason}). It knows, "
            f"among others, {', '.join(EXAMPLES[topology.device.name])}"
        ) from error
    return description.devices


def _prepare_tpu(topology: Topology) -> dict[str, Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"compiling for a TPU needs libtpu, which {sys.prefix} does not have: {INSTALL}")
    for name, value in _TPU_VARIABLES.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"topology_name": topology.xla_name}
    if topology.num_chips == 1:  # by default the compiler assumes hosts of 2 x 2 chips
        options["chips_per_host_bounds"] = [1, 1, 1]
    if topology.device.name == "v4":  # makes both cores of a chip one device, as JAX does on a real v4
        options["chip_config_name"] = "megacore"
    return options


def _prepare_cuda(topology: Topology) -> dict[str, Any]:
    folder = pathlib.Path(sys.prefix) / CUDA_FOLDER
    libraries = sorted(folder.glob("jax_plugins/xla_cuda*/xla_cuda_plugin.so"))
    if not libraries:
        raise ConfigError(f"compiling for a GPU needs JAX's CUDA plugin in {folder}: {INSTALL}")
    _register_cuda(folder, libraries[-1])
    shape = f"1x1x{topology.num_devices}"  # partitions x hosts x devices per host
    return {"topology_name": "", "target_config": _GPUS[topology.device.name], "topology": shape}


def compile_steps(
    experiment: Experiment,
    mesh: Mesh,
    steps: Sequence[str] = STEPS,
    options: dict[str, Any] | None = None,
) -> list[CompiledStep]:
    """Compiles steps of an experiment as training and evaluation run them, two at the same time.

    Args:
      experiment: its batches get the greatest of their lengths.
      mesh: a mesh of real devices or of a topology's.
      steps: some of ``STEPS``; an encoder-only model has no decoding step.
      options: options of the compiler.

    Raises:
      ConfigError: the mesh does not divide the batch or the model.
    """
    lowered = {
        name: _LOWER[name](experiment, mesh)
        for name in steps
        if name != "decode" or not experiment.model.is_encoder_only
    }

    def compile_one(name: str) -> CompiledStep:
        began = time.monotonic()
        compiled = lowered[name].compile(compiler_options=options)
        return CompiledStep(name, compiled, compiled.as_text() or "", time.monotonic() - began)

    # A compilation uses little more than one core. The longest one starts first.
    with _without_compilation_cache(), concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(compile_one, lowered))


@contextlib.contextmanager
def _without_compilation_cache() -> Iterator[None]:
    """Compiles anew, even if JAX_COMPILATION_CACHE_DIR names a folder of programs compiled before.

    JAX can store a program for a topology but cannot read it again, and warns of that. A stored program also
    keeps the operation names of whichever experiment compiled it first.
    """
    is_enabled = cast(Any, jax.config).jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks only once whether it has a cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", is_enabled)
        compilation_cache.reset_cache()


def _lower_train(experiment: Experiment, mesh: Mesh) -> jax.stages.Lowered:
    template, _, step = compile_train_step(experiment, mesh)
    return cast(Any, step).lower(template, batch_template(experiment, mesh))


def _lower_evaluate(experiment: Experiment, mesh: Mesh) -> jax.stages.Lowered:
    params = compile_train_step(experiment, mesh)[0].params
    step = make_evaluate_step(experiment, mesh)
    return cast(Any, step).lower(params, batch_template(experiment, mesh))


def _lower_decode(experiment: Experiment, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers one decoding step for every hypothesis of ``evaluate.batch_size`` sources or prompts."""
    model, settings = experiment.model, experiment.evaluate
    params = compile_train_step(experiment, mesh)[0].params
    rows = settings.batch_size * (settings.beam_size if settings.temperature == 0 else 1)
    length = min(experiment.data.max_length, model.batch_max_length)
    sources = {} if model.is_decoder_only else source_shapes(experiment, rows)
    network: Any = build(model)

    # Structures of context and cache, which accept only arrays while these are shapes, and their row axes.
    trees: list[Any] = []
    axes: list[list[int]] = []

    def states(params: PyTree) -> tuple[list[Any], list[Any]]:
        if model.is_decoder_only:
            context: Any = PromptContext(jnp.zeros(rows, jnp.int32))
            cache = network.init_cache(rows, length)
        else:
            context = network.apply(
                {"params": params},
                **{name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in sources.items()},
                method="encode_context",
                rngs=evaluation_keys(model),
            )
            cache = network.init_cache(rows, min(length + settings.extra_length, model.targets_max_length))
        trees[:] = jax.tree.structure(context), jax.tree.structure(cache)
        axes[:] = row_axes(context), row_axes(cache)
        return jax.tree.leaves(context), jax.tree.leaves(cache)

    def step(params: PyTree, tokens: jax.Array, context: list[Any], cache: list[Any]) -> Any:
        states = [
            jax.tree.unflatten(tree, leaves) for tree, leaves in zip(trees, (context, cache), strict=True)
        ]
        return network.apply(
            {"params": params}, tokens, *states, method="decode_step", rngs=evaluation_keys(model)
        )

    place = _row_sharding(mesh, rows)
    shapes = jax.eval_shape(states, params)
    context, cache = (list(map(place, leaves, of)) for leaves, of in zip(shapes, axes, strict=True))
    tokens = place(jax.ShapeDtypeStruct((rows,), jnp.int32), 0)
    on_mesh = partitioning.on_mesh(step, mesh, experiment.mesh.rules)
    return jax.jit(on_mesh, donate_argnums=3).lower(params, tokens, context, cache)


def _row_sharding(mesh: Mesh, rows: int) -> Callable[[Any, int], jax.ShapeDtypeStruct]:
    """Returns a function that shards an array of a decoding state over its rows if the mesh divides them.

    The function is given the shape of the array, and the axis of its rows as ``row_axes`` returns it.
    """
    axes = partitioning.BATCH_AXES if rows % partitioning.num_batch_shards(mesh) == 0 else None

    def place(leaf: Any, axis: int) -> jax.ShapeDtypeStruct:
        spec = () if axis == NO_AXIS else (None,) * axis + (axes,)
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
        )

    return place


_LOWER = {"train": _lower_train, "evaluate": _lower_evaluate, "decode": _lower_decode}

# These functions use private names of JAX, because there are no public ones.


def _register_cuda(folder: pathlib.Path, library: pathlib.Path) -> None:
    """Registers the CUDA plugin, which is outside JAX's search path, and its Triton compiler with JAX."""
    from jax._src import xla_bridge
    from jax._src.lib import triton

    if "cuda" in xla_bridge._backend_factories:
        return
    with _quiet():  # the plugin prints that there is no driver
        c_api = xla_bridge.register_plugin("cuda", library_path=str(library))
    sys.path.append(str(folder))  # only for this import: otherwise JAX would find and load the plugin again
    package = next(folder.glob("jax_cuda*_plugin")).name
    extension = importlib.import_module(f"{package}.cuda_plugin_extension")
    sys.path.remove(str(folder))
    compile_triton = functools.partial(extension.compile_triton_to_asm, c_api)
    triton.register_compilation_handler("CUDA", compile_triton)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discards everything that a library writes to standard error."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
