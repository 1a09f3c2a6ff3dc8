"""Every family trains on eight virtual devices, however they are arranged, as it does on one."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from tests import golden_collectives
from tests.compilations import optimizations
from tests.families_on_meshes import MODELS, train_family
from tests.tiny_training import assert_equal_training
from transformer_jax import families

# The last one is the hardest: it splits parameters, tokens and heads at once.
MESHES = [
    dict(data=8),
    dict(data=2, fsdp=4),
    dict(data=2, fsdp=2, tensor=2),
    dict(data=2, context=4),
    dict(data=1, fsdp=2, context=2, tensor=2),
]

# What is compared is compiled in the same way.
pytestmark = pytest.mark.usefixtures("quickly_compiled")


@functools.cache
def on_one_device(name, scan_layers=False):
    return train_family(name, dict(data=1), 1, scan_layers=scan_layers, remat=scan_layers)


# Of those with a stored list of collectives: on one parameters are gathered, on the other all is split.
HARD_MESHES = ("data2_fsdp4", "fsdp2_context2_tensor2")


def test_there_is_a_model_of_every_family():
    untrained = {"t5_encoder"}  # it has no head to train; its stack is that of t5
    assert {name.split()[0] for name in MODELS} == set(families.FAMILIES) - untrained


def marked(name, sizes):
    """Every family on the hardest mesh and one family on all; the first of them is a fast test."""
    if sizes == MESHES[-1]:
        marks = [pytest.mark.smoke] if name == "transformer" else [pytest.mark.slow]
    else:
        marks = [pytest.mark.slow] + [pytest.mark.everything] * (name != "transformer")
    return pytest.param(name, sizes, marks=marks, id=f"{name}-{mesh_id(sizes)}")


def mesh_id(sizes):
    return "-".join(f"{axis}{size}" for axis, size in sizes.items())


@pytest.mark.parametrize(("name", "sizes"), [marked(name, sizes) for name in MODELS for sizes in MESHES])
def test_eight_devices_train_as_one(name, sizes):
    assert_equal_training(train_family(name, sizes, 8), on_one_device(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [pytest.param(MESHES[-2], marks=pytest.mark.everything), MESHES[-1]], ids=mesh_id
)
@pytest.mark.parametrize("name", ["transformer", pytest.param("t5", marks=pytest.mark.everything)])
def test_scanned_layers_with_remat_train_so_too(name, sizes):
    # Of the two each way of rematerialisation has one.
    kept = "products" if name == "transformer" else "inputs"
    found = train_family(name, sizes, 8, scan_layers=True, remat=True, remat_keeps=kept)
    assert_equal_training(found, on_one_device(name, scan_layers=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh_name",
    [
        pytest.param(name, marks=[pytest.mark.everything] * (name not in HARD_MESHES))
        for name in golden_collectives.MESHES
    ],
)
def test_a_step_has_the_collectives_that_it_had(mesh_name):
    """See ``golden_collectives`` for how to renew the files where a change is meant."""
    wanted = json.loads((golden_collectives.FOLDER / f"collectives_{mesh_name}.json").read_text())
    with optimizations(True):
        collectives, template, mesh = golden_collectives.collectives_on(mesh_name)
    found = golden_collectives.table(collectives)
    bytes_of = [{key: row[key] for key in ("kind", "axes", "bytes")} for row in wanted["collectives"]]
    assert [{key: row[key] for key in ("kind", "axes", "bytes")} for row in found] == bytes_of
    is_same_version = jax.__version__ == wanted["jax"]
    for row, other in zip(found, wanted["collectives"], strict=True):
        # Other versions of XLA combine more or fewer all-reduces into one.
        assert row["executions"] == other["executions"] or not is_same_version, row
    assert_only_parameters_are_gathered(collectives, template, mesh)


def assert_only_parameters_are_gathered(collectives, template, mesh):
    """Over the axes that split the batch: what is gathered has the size of a parameter."""
    sizes = set()
    for leaf in jax.tree.leaves(template.params):
        gathered = [
            None if {"data", "fsdp"} & set(np.atleast_1d(axis)) else axis for axis in leaf.sharding.spec
        ]
        shape = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*gathered)).shard_shape(
            leaf.shape
        )
        sizes |= {4 * math.prod(shape), 4 * math.prod(shape[1:])}  # of all layers, or of one
    for found in collectives:
        if found.kind in ("all-gather", "all-to-all") and {"data", "fsdp"} & set(found.axes):
            assert found.bytes in sizes, found
        assert found.kind != "all-to-all", found
