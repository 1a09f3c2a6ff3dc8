"""Compares the compiled training step of Transformer big for v5e:4x4 with that of Flax's WMT example.

    git clone https://github.com/google/flax FLAX
    .venv-plan/bin/python -m benchmarks.flax_wmt --flax=FLAX

Both steps are compiled ahead of time for the same slice, and nothing is executed: 32 rows of 256 tokens on
each side per chip, a vocabulary of 37,000, bfloat16 products and Adam. The example (examples/wmt) is used
unmodified, with its attention dropout of 0.1, which the paper does not have. Stand-ins replace the parts of
TensorFlow and CLU that it imports around its training step, and ``shard_map`` replaces ``pmap``. Our layers
are unrolled, as the example's are, because XLA counts the body of a loop only once.

Measured on 2026-11-29 on 2 cores without an accelerator, with the libtpu of constraints/plan.txt and the
example at commit 18f8f31 of 2026-07-02:

                       peak GiB  GB accessed   TFLOP  compiled in s
    transformer_jax         6.02         79.7   10.57            127
    flax examples/wmt       6.67         87.7   11.60            429

XLA does not count the operations inside our attention kernels; with them our step has 11.22 TFLOP, as
``plan`` reports. Other work used one of the two cores meanwhile.
"""

import dataclasses
import functools
import importlib
import pathlib
import sys
import time
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax.training import train_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import wmt14_en_de
from transformer_jax.planning.hardware import GIB, read_topology
from transformer_jax.planning.planner import with_rows
from transformer_jax.planning.programs import compile_steps, topology_devices
from transformer_jax.runs import read_experiment
from transformer_jax.sharding.partitioning import make_mesh

ROWS, LENGTH = 32, 256  # per chip
STAND_INS = ("clu", "tensorflow", "bleu", "decode", "input_pipeline")
SIDES = ("inputs", "targets")


def compile_ours(devices: Any) -> jax.stages.Compiled:
    """Compiles the training step of ``experiments/wmt14_en_de.py:big`` with unrolled layers."""
    experiment = with_rows(read_experiment(wmt14_en_de.get_config("big")), ROWS, len(devices))
    unrolled = dataclasses.replace(experiment.model, scan_layers=False)
    experiment = dataclasses.replace(experiment, model=unrolled)
    (step,) = compile_steps(experiment, make_mesh(experiment.mesh, devices), ("train",))
    return step.compiled


def import_example(folder: pathlib.Path) -> tuple[Any, Any]:
    """Returns the modules ``models`` and ``train`` of ``examples/wmt``."""
    if not (folder / "train.py").is_file():
        raise app.UsageError(f"--flax must be a checkout of google/flax: {folder}/train.py does not exist")
    sys.path.insert(0, str(folder))
    importlib.import_module("flax.training.checkpoints")  # first, so that it imports no stand-ins
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in STAND_INS}):
        return importlib.import_module("models"), importlib.import_module("train")


def compile_flax(devices: Any, folder: pathlib.Path) -> jax.stages.Compiled:
    """Compiles the example's ``train_step`` with its default configuration except for the vocabulary."""
    models, train = import_example(folder)
    config = models.TransformerConfig(
        vocab_size=wmt14_en_de.VOCAB_SIZE,
        output_vocab_size=wmt14_en_de.VOCAB_SIZE,
        share_embeddings=True,
        logits_via_embedding=True,
        dtype=jnp.bfloat16,
        emb_dim=1024,
        num_heads=16,
        num_layers=6,
        qkv_dim=1024,
        mlp_dim=4096,
        max_len=LENGTH,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(stddev=1e-6),
    )
    rate = train.create_learning_rate_schedule(0.002, 1000)

    class State(train_state.TrainState):
        dynamic_scale: Any = None

    def init() -> State:
        tokens = jnp.ones((2, LENGTH), jnp.float32)
        model = models.Transformer(config.replace(deterministic=True))
        params = model.init(jax.random.key(0), tokens, tokens)["params"]
        optimizer = optax.adamw(rate, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.0)
        return State.create(apply_fn=None, params=params, tx=optimizer)

    mesh = Mesh(np.array(devices), ("batch",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("batch",)))

    def shaped(leaf: Any, sharding: NamedSharding = whole) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    rows = jax.ShapeDtypeStruct((ROWS * len(devices), LENGTH), jnp.int32)
    parts = ("", "_position", "_segmentation")
    batch = {side + part: shaped(rows, split) for side in SIDES for part in parts}
    step = functools.partial(train.train_step, config=config, learning_rate_fn=rate, label_smoothing=0.1)

    def on_device(state: State, batch: Any, key: jax.Array) -> Any:
        return step(state, batch, dropout_rng=jax.random.fold_in(key, jax.lax.axis_index("batch")))

    specs = (PartitionSpec(), PartitionSpec("batch"), PartitionSpec())
    on_mesh = jax.shard_map(
        on_device, mesh=mesh, in_specs=specs, out_specs=(PartitionSpec(), PartitionSpec()), check_vma=False
    )
    state = jax.tree.map(shaped, jax.eval_shape(init))
    key = shaped(jax.eval_shape(lambda: jax.random.key(0)))
    return jax.jit(on_mesh, donate_argnums=0).lower(state, batch, key).compile()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: flags begin with --")
    devices = topology_devices(read_topology("v5e:4x4"))
    print(f"{'':18}{'peak GiB':>10}{'GB accessed':>13}{'TFLOP':>8}{'compiled in s':>15}")
    for name, compile_step in (
        ("transformer_jax", compile_ours),
        (
            "flax examples/wmt",
            functools.partial(compile_flax, folder=pathlib.Path(FLAGS.flax) / "examples/wmt"),
        ),
    ):
        began = time.monotonic()
        compiled = compile_step(devices)
        seconds = time.monotonic() - began
        memory: Any = compiled.memory_analysis()
        cost: Any = compiled.cost_analysis()
        print(
            f"{name:18}{memory.peak_memory_in_bytes / GIB:10.2f}"
            f"{cost['bytes accessed'] / 1e9:13.1f}{cost['flops'] / 1e12:8.2f}{seconds:15.0f}",
            flush=True,
        )


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("flax", None, "Folder of a checkout of google/flax.", required=True)
    app.run(main)
