"""Describes TPU slices, such as v5e:4x4, and translates them to the names that GKE and gcloud use.

Sources, read in November 2026: Google Cloud's documentation, "Plan TPUs in GKE" and "TPU7x (Ironwood)" for
accelerator labels and topologies, the pages "TPU v4", "v5e", "v5p" and "v6e" for accelerator types and hosts,
and "TPU software versions" for runtime versions, where it also says that TPU7x has no TPU VMs.
"""

import dataclasses
import difflib
import itertools
import math
import re

from transformer_jax.config import ConfigError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBOIDS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # larger ones consist of cubes of 4x4x4


@dataclasses.dataclass(frozen=True)
class TpuGeneration:
    """Properties shared by all slices of one TPU generation."""

    name: str
    most_chips: int  # maximum of one slice
    flat: bool  # the topology has two dimensions instead of three
    gke_accelerator: str  # value of the node label cloud.google.com/gke-tpu-accelerator
    gcloud_prefix: str  # of accelerator types of TPU VMs, such as v5litepod-16; "" without TPU VMs
    cores_per_chip: int  # TensorCores; some accelerator types count them (v4-32 has 16 chips)
    runtime_version: str  # of TPU VMs, for JAX


GENERATIONS = {
    generation.name: generation
    for generation in (
        TpuGeneration("v4", 4096, False, "tpu-v4-podslice", "v4", 2, "tpu-ubuntu2204-base"),
        TpuGeneration("v5e", 256, True, "tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite"),
        TpuGeneration("v5p", 6144, False, "tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5"),
        TpuGeneration("v6e", 256, True, "tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e"),
        TpuGeneration("tpu7x", 9216, False, "tpu7x", "", 2, ""),
    )
}
CHIPS_PER_HOST = 4  # except for smaller slices, and for slices that are one host with 8 chips
CHIPS_OF_LARGE_HOST = 8


@dataclasses.dataclass(frozen=True)
class TpuSlice:
    """A TPU slice: a generation, and the number of chips along each dimension."""

    generation: TpuGeneration
    shape: tuple[int, ...]

    @property
    def topology(self) -> str:
        """The topology in the notation of GKE, such as 4x4."""
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    def hosts(self, chips_per_host: int | None = None) -> int:
        """Returns the number of hosts (virtual machines) of the slice in GKE.

        Args:
          chips_per_host: the number of chips of each machine in the node pool; by default 4, or all chips of
            a smaller slice.

        Raises:
          ConfigError: no machines for this slice have ``chips_per_host`` chips.
        """
        choices = self.host_sizes()
        size = choices[0] if chips_per_host is None else chips_per_host
        if size not in choices:
            known = " or ".join(map(str, choices))
            raise ConfigError(f"the hosts of {self} have {known} chips, not {size}")
        return self.chips // size

    def host_sizes(self) -> tuple[int, ...]:
        """Returns the possible numbers of chips per host in GKE, the default first."""
        if self.chips < CHIPS_PER_HOST:
            return (self.chips,)
        if self.generation.flat and self.chips == CHIPS_OF_LARGE_HOST:
            return CHIPS_PER_HOST, CHIPS_OF_LARGE_HOST
        return (CHIPS_PER_HOST,)

    @property
    def vm_workers(self) -> int:
        """The number of workers of a TPU VM; a flat slice of up to 8 chips has one worker."""
        if self.generation.flat and self.chips <= CHIPS_OF_LARGE_HOST:
            return 1
        return self.chips // CHIPS_PER_HOST

    @property
    def accelerator_type(self) -> str:
        """The name for ``gcloud compute tpus``: v5litepod-16 for v5e:4x4, v4-32 for v4:2x2x4.

        Raises:
          ConfigError: this generation has no TPU VMs, or TPU VMs of this size have another topology.
        """
        generation = self.generation
        if not generation.gcloud_prefix:
            raise ConfigError(
                f"{generation.name} is not available as TPU VMs; use it in GKE with launch/gke.py, or use "
                f"one of {_listed(_vm_generations())}"
            )
        usual = usual_shape(generation, self.chips)
        if usual != self.shape:
            shape = "x".join(map(str, usual))
            raise ConfigError(
                f"a TPU VM with {self.chips} chips of {generation.name} has the topology {shape}, not "
                f"{self.topology}; use {generation.name}:{shape}"
            )
        return f"{generation.gcloud_prefix}-{self.chips * generation.cores_per_chip}"

    def __str__(self) -> str:
        return f"{self.generation.name}:{self.topology}"


def parse_slice(text: str) -> TpuSlice:
    """Parses a slice such as ``v5e:4x4``.

    Raises:
      ConfigError: the generation or topology does not exist; the message lists the available ones.
    """
    name, colon, topology = text.strip().lower().partition(":")
    if name not in GENERATIONS:
        raise ConfigError(
            f"unknown TPU {name!r}; use one of {_listed(GENERATIONS)}, with a topology, as in v5e:4x4"
        )
    generation = GENERATIONS[name]
    known = topologies(generation)
    if topology in known:
        return TpuSlice(generation, tuple(map(int, topology.split("x"))))
    few = _listed(known[:12]) + (", …" if len(known) > 12 else "")
    if not colon:
        raise ConfigError(f"{text!r} has no topology; for {name} use one of {few}, as in {name}:{known[0]}")
    near = _ascending(topology) if _ascending(topology) in known else None
    near = near or next(iter(difflib.get_close_matches(topology, known, 1)), known[0])
    rule = "" if generation.flat else "; larger ones are AxBxC with multiples of 4, A <= B <= C"
    raise ConfigError(
        f"{name} has no topology {topology!r} (did you mean {name}:{near}?); use one of {few}{rule}"
    )


def topologies(generation: TpuGeneration) -> list[str]:
    """Returns all topologies of a generation, the smallest first."""
    if generation.flat:
        return list(_FLAT)
    edges = range(4, generation.most_chips // 16 + 1, 4)
    cuboids = []
    for a, b in itertools.combinations_with_replacement(edges, 2):
        if a * b * b > generation.most_chips:
            continue
        cuboids += [(a, b, c) for c in range(b, generation.most_chips // (a * b) + 1, 4)]
    cuboids.sort(key=lambda shape: (math.prod(shape), -shape[0]))
    return [*_SMALL_CUBOIDS, *("x".join(map(str, shape)) for shape in cuboids)]


def usual_shape(generation: TpuGeneration, chips: int) -> tuple[int, ...]:
    """Returns the default topology of a number of chips, which is the one closest to a square or cube."""
    shapes = [tuple(map(int, topology.split("x"))) for topology in topologies(generation)]
    return min((shape for shape in shapes if math.prod(shape) == chips), key=sum)


def _ascending(topology: str) -> str:
    """Returns a topology with its dimensions in the usual order: 4x8 for 8x4, but 2x2x1 for 1x2x2."""
    if not re.fullmatch(r"\d+(x\d+){1,2}", topology):
        return topology
    edges = sorted(map(int, topology.split("x")))
    if len(edges) == 3 and edges[0] == 1:
        edges = edges[1:] + edges[:1]
    return "x".join(map(str, edges))


def _vm_generations() -> list[str]:
    return [generation.name for generation in GENERATIONS.values() if generation.gcloud_prefix]


def _listed(names) -> str:
    return ", ".join(names)
