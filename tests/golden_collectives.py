"""The collectives of a training step on each mesh: what is in tests/golden/, and how to make it anew.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu python -m tests.golden_collectives

Look at the difference before you commit it: each row is time on every device, in every step.
"""

import json
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from tests.families_on_meshes import family_batch, family_experiment
from transformer_jax.planning.collectives import Collective, read_collectives
from transformer_jax.sharding import partitioning
from transformer_jax.sharding.partitioning import MeshConfig
from transformer_jax.training.step import compile_train_step
from transformer_jax.types import PyTree

FOLDER = pathlib.Path(__file__).parent / "golden"
MESHES = {
    "data8": dict(data=8),
    "data2_fsdp4": dict(data=2, fsdp=4),
    "data2_fsdp2_tensor2": dict(data=2, fsdp=2, tensor=2),
    "fsdp2_context2_tensor2": dict(data=1, fsdp=2, context=2, tensor=2),
}
# No two sizes of a parameter's axes, rows or tokens are the same.
_CHANGES = dict(scan_layers=True, num_encoder_layers=3, num_decoder_layers=2, d_feedforward=96, vocab_size=80)


def collectives_on(mesh_name: str) -> tuple[list[Collective], PyTree, Mesh]:
    """Of an encoder-decoder's training step; also the state's shapes, with shardings, and the mesh."""
    experiment = family_experiment("transformer", MeshConfig(**MESHES[mesh_name]), **_CHANGES)
    mesh = partitioning.make_mesh(experiment.mesh)
    template, _, step = compile_train_step(experiment, mesh)
    batch = family_batch("transformer", 0)
    shardings = partitioning.batch_shardings(mesh, batch)
    shapes = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=shardings[name])
        for name, array in batch.items()
    }
    compiled: Any = step
    return read_collectives(compiled.lower(template, shapes).compile().as_text(), mesh), template, mesh


def table(collectives: list[Collective]) -> list[dict[str, Any]]:
    """One row for each kind and set of mesh axes: executions and bytes of a step, of one device."""
    rows: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for found in sorted(collectives, key=lambda one: (one.kind, one.axes)):
        key = (found.kind, found.axes)
        row = rows.setdefault(
            key, {"kind": found.kind, "axes": list(found.axes), "executions": 0, "bytes": 0}
        )
        row["executions"] += found.count
        row["bytes"] += found.total_bytes
    return list(rows.values())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in MESHES:
        content = {"jax": jax.__version__, "collectives": table(collectives_on(name)[0])}
        (FOLDER / f"collectives_{name}.json").write_text(json.dumps(content, indent=1) + "\n")
