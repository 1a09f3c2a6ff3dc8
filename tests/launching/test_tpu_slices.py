"""TPU slices by name; the figures are those of Google Cloud's documentation, read in November 2026."""

import math

import pytest

from transformer_jax.config import ConfigError
from transformer_jax.launching.tpu_slices import GENERATIONS, TpuSlice, parse_slice, topologies
from transformer_jax.planning.hardware import DEVICES

# Slice, chips, hosts in Kubernetes Engine, workers of a TPU VM, accelerator type.
PUBLISHED = [
    ("v4:2x2x1", 4, 1, 1, "v4-8"),
    ("v4:2x2x4", 16, 4, 4, "v4-32"),
    ("v4:4x4x8", 128, 32, 32, "v4-256"),
    ("v5e:1x1", 1, 1, 1, "v5litepod-1"),
    ("v5e:2x2", 4, 1, 1, "v5litepod-4"),
    ("v5e:2x4", 8, 2, 1, "v5litepod-8"),
    ("v5e:4x4", 16, 4, 4, "v5litepod-16"),
    ("v5e:16x16", 256, 64, 64, "v5litepod-256"),
    ("v5p:2x2x1", 4, 1, 1, "v5p-8"),
    ("v5p:4x4x4", 64, 16, 16, "v5p-128"),
    ("v5p:8x16x16", 2048, 512, 512, "v5p-4096"),
    ("v5p:16x16x24", 6144, 1536, 1536, "v5p-12288"),
    ("v6e:2x4", 8, 2, 1, "v6e-8"),
    ("v6e:16x16", 256, 64, 64, "v6e-256"),
]


@pytest.mark.parametrize(("name", "chips", "hosts", "workers", "accelerator_type"), PUBLISHED)
def test_published_slices(name, chips, hosts, workers, accelerator_type):
    found = parse_slice(name)
    assert str(found) == name
    assert (found.chips, found.hosts(), found.vm_workers) == (chips, hosts, workers)
    assert found.accelerator_type == accelerator_type


def test_ironwood_is_in_kubernetes_engine_only():
    found = parse_slice("tpu7x:2x2x2")
    assert (found.hosts(), found.generation.gke_accelerator) == (2, "tpu7x")
    with pytest.raises(
        ConfigError, match=r"tpu7x is not available as TPU VMs; .* launch/gke.py, .* v4, v5e, v5p, v6e"
    ):
        _ = found.accelerator_type


@pytest.mark.parametrize("generation", GENERATIONS.values(), ids=GENERATIONS)
def test_every_topology_can_be_asked_for(generation):
    found = topologies(generation)
    assert len(found) == len(set(found)) > 7
    shapes = [parse_slice(f"{generation.name}:{topology}").shape for topology in found]
    assert max(map(math.prod, shapes)) == generation.most_chips
    for shape in shapes:
        assert len(shape) == (2 if generation.flat else 3)
        tpus = TpuSlice(generation, shape)
        assert tpus.hosts() * tpus.host_sizes()[0] == tpus.chips
        cubes = all(edge % 4 == 0 for edge in shape) and list(shape) == sorted(shape)
        assert generation.flat or cubes or tpus.chips < 64


def test_slices_are_those_that_plan_knows():
    """Two tables, of rates and of names; what is in both is the same in both."""
    assert list(GENERATIONS) == [name for name, device in DEVICES.items() if device.platform == "tpu"]
    for name, generation in GENERATIONS.items():
        device = DEVICES[name]
        assert (generation.most_chips, 2 if generation.flat else 3) == (device.most_chips, device.axes), name


def test_hosts_of_eight_chips_where_they_are():
    assert parse_slice("v6e:2x4").hosts(8) == 1
    with pytest.raises(ConfigError, match=r"the hosts of v6e:4x4 have 4 chips, not 8"):
        parse_slice("v6e:4x4").hosts(8)
    with pytest.raises(ConfigError, match=r"the hosts of v5e:2x4 have 4 or 8 chips, not 2"):
        parse_slice("v5e:2x4").hosts(2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("v7:4x4", r"unknown TPU 'v7'; use one of v4, v5e, v5p, v6e, tpu7x, .* as in v5e:4x4"),
        ("", r"unknown TPU ''"),
        ("v5e", r"'v5e' has no topology; for v5e use one of 1x1, 2x2, .*16x16, as in v5e:1x1"),
        ("v5e:8x4", r"no topology '8x4' \(did you mean v5e:4x8\?\)"),
        ("v5e:3x3", r"no topology '3x3' .*1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5p:1x2x2", r"did you mean v5p:2x2x1\?"),
        ("v5p:4x4", r"no topology '4x4'.*2x2x1, 2x2x2, .*larger ones are AxBxC with multiples of 4"),
        ("v5e:", r"v5e has no topology ''"),
    ],
)
def test_what_is_no_slice_is_one_error_with_those_there_are(text, problem):
    with pytest.raises(ConfigError, match=problem):
        parse_slice(text)


def test_a_type_that_has_another_shape_is_not_taken_for_it():
    # 128 chips are 4x4x8, as published; a longer one of as many chips would come as that.
    with pytest.raises(ConfigError, match=r"with 256 chips of v5p has the topology 4x8x8, not 4x4x16"):
        _ = parse_slice("v5p:4x4x16").accelerator_type
