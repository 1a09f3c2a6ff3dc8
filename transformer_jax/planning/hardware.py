"""Describes the accelerators that programs can be compiled for without having them: rates and topologies.

Rates are per device as JAX counts devices, and come from the vendors' pages. Those of TPU chips were read in
November 2026. The link rate of v4 and the rates of the two GPUs were written from memory of their papers and
data sheets and have not been looked up again:

    v4     docs.cloud.google.com/tpu/docs/v4; its links are those of Jouppi et al. 2023 (arXiv:2304.01433)
    v5e    docs.cloud.google.com/tpu/docs/v5e
    v5p    docs.cloud.google.com/tpu/docs/tpu7x, which compares v5p, v6e and TPU7x
    v6e    the same
    tpu7x  the same; JAX has two devices in each chip, so a device has half of what a chip has
    a100   NVIDIA A100 Tensor Core GPU data sheet, SXM with 80 GB
    h100   NVIDIA H100 Tensor Core GPU data sheet, SXM with 80 GB, without sparsity
"""

import dataclasses
import math
import re

from transformer_jax.config import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
    """Describes one kind of device.

    Attributes:
      name: the part of a topology before the colon.
      platform: JAX's name of the backend.
      memory_bytes: size of the main memory.
      product_rates: floating-point operations of matrix products per second, by the type of the operands. By
        default a TPU multiplies float32 as bfloat16, and an NVIDIA GPU as TF32.
      memory_rate: bytes per second between the device and its main memory.
      link_rate: bytes per second through one link, in one direction.
      links_per_axis: links per axis of the network: two in a ring, one to each neighbour. A GPU has one, its
        connection to the switch, which combines all its links.
      axes: number of axes of a TPU slice's network; 0 if a switch joins all devices.
      devices_per_chip: number of devices that JAX counts per chip.
      most_chips: maximum number of chips in one slice, or of GPUs in one machine.
      source: where the rates come from.
    """

    name: str
    platform: str
    memory_bytes: int
    product_rates: dict[str, float]
    memory_rate: float
    link_rate: float
    links_per_axis: int
    axes: int
    devices_per_chip: int
    most_chips: int
    source: str

    def product_rate(self, dtype: str) -> float:
        """Returns operations per second for a type; ``f32_highest`` is float32 in the highest precision."""
        return self.product_rates.get(dtype, self.product_rates["bf16"])

    @property
    def usable_bytes(self) -> int:
        """Returns the part of the main memory that a program may take, as ``memory.read_memory`` counts it.

        On TPUs it is 93 %. The runtime keeps 258 MiB of a v5e's 16 GiB, as libtpu's log shows, and the
        allocated memory exceeded the peak in use by up to 4 %, for which 5 % are reserved. v5e's share is
        used for all TPUs. On GPUs it is 75 %: what JAX reserves when it starts unless
        ``XLA_PYTHON_CLIENT_MEM_FRACTION`` says otherwise.
        """
        return self.memory_bytes * (93 if self.platform == "tpu" else 75) // 100

    @property
    def peak_rate(self) -> float:
        """Returns the bfloat16 operations per second that utilization is measured against."""
        return self.product_rates["bf16"]


def _tpu(
    name: str,
    flops: float,
    memory: int,
    memory_rate: float,
    link_rate: float,
    axes: int,
    most_chips: int,
    page: str,
    per: int = 1,
) -> Device:
    # In the highest precision, a float32 product takes six bfloat16 passes.
    rates = {"bf16": flops / per, "f32": flops / per, "f32_highest": flops / per / 6}
    return Device(
        name=name,
        platform="tpu",
        memory_bytes=memory // per,
        product_rates=rates,
        memory_rate=memory_rate / per,
        link_rate=link_rate,
        links_per_axis=2,
        axes=axes,
        devices_per_chip=per,
        most_chips=most_chips,
        source=f"https://docs.cloud.google.com/tpu/docs/{page}",
    )


def _gpu(name: str, rates: dict[str, float], memory_rate: float, link_rate: float) -> Device:
    return Device(
        name=name,
        platform="cuda",
        memory_bytes=80 * 10**9,
        product_rates=rates,
        memory_rate=memory_rate,
        link_rate=link_rate,
        links_per_axis=1,
        axes=0,
        devices_per_chip=1,
        most_chips=8,  # joined by NVLink
        source=f"NVIDIA {name.upper()} Tensor Core GPU data sheet (SXM, 80 GB, without sparsity)",
    )


# The bandwidth between chips is published for all links of a chip and both directions together: a chip has 4
# links in a 2D torus and 6 in a 3D torus.
DEVICES = {
    device.name: device
    for device in (
        _tpu("v4", 275e12, 32 * GIB, 1200e9, 50e9, 3, 4096, "v4"),
        _tpu("v5e", 197e12, 16 * GIB, 819e9, 400e9 / 4 / 2, 2, 256, "v5e"),
        _tpu("v5p", 459e12, 95 * GIB, 2765e9, 1200e9 / 6 / 2, 3, 6144, "tpu7x"),
        _tpu("v6e", 918e12, 32 * GIB, 1638e9, 800e9 / 4 / 2, 2, 256, "tpu7x"),
        _tpu("tpu7x", 2307e12, 192 * GIB, 7380e9, 1200e9 / 6 / 2, 3, 9216, "tpu7x", per=2),
        _gpu("a100", {"bf16": 312e12, "f16": 312e12, "f32": 156e12, "f32_highest": 19.5e12}, 2039e9, 300e9),
        _gpu("h100", {"bf16": 989e12, "f16": 989e12, "f32": 494e12, "f32_highest": 67e12}, 3350e9, 450e9),
    )
}

# Topologies that the compiler accepts, for error messages; it knows more.
EXAMPLES = {
    "v4": ("v4:2x2x1", "v4:2x2x2", "v4:2x2x4", "v4:4x4x4"),
    "v5e": ("v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:16x16"),
    "v5p": ("v5p:2x2x1", "v5p:2x2x2", "v5p:2x4x4", "v5p:4x4x4"),
    "v6e": ("v6e:2x2", "v6e:2x4", "v6e:4x4", "v6e:8x8", "v6e:16x16"),
    "tpu7x": ("tpu7x:2x2x1", "tpu7x:2x2x2", "tpu7x:4x4x4"),
    "a100": ("a100:1", "a100:4", "a100:8"),
    "h100": ("h100:1", "h100:4", "h100:8"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Describes devices of one kind that a network joins.

    Attributes:
      name: as the user wrote it.
      device: the kind of the devices.
      shape: chips along each axis of the network, or the number of GPUs.
    """

    name: str
    device: Device
    shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        """Returns the number of chips."""
        return math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        """Returns the number of devices, as JAX counts them."""
        return self.num_chips * self.device.devices_per_chip

    @property
    def xla_name(self) -> str:
        """Returns the name that the backend's compiler uses."""
        sizes = "x".join(map(str, self.shape))
        return f"{self.device.name}:{sizes}"


def read_topology(name: str) -> Topology:
    """Reads a topology such as ``v5e:4x4``, ``v5p:2x2x1`` or ``h100:8``.

    Raises:
      ConfigError: it is not a topology; the message lists some.
    """
    match = re.fullmatch(r"([\w.]+):(\d+(?:x\d+)*)", name.lower())
    device = DEVICES.get(match[1]) if match else None
    if match is None or device is None:
        known = ", ".join(example for examples in EXAMPLES.values() for example in examples[-2:])
        raise ConfigError(
            f"--topology={name} must be KIND:SIZES, where KIND is one of {', '.join(DEVICES)}: for example "
            f"{known}"
        )
    shape = tuple(map(int, match[2].split("x")))
    if 0 in shape or len(shape) != (device.axes or 1):
        sizes = (
            f"{device.axes} sizes, one for each axis of its network" if device.axes else "a number of GPUs"
        )
        raise ConfigError(
            f"--topology={name}: {device.name} needs {sizes}: for example {', '.join(EXAMPLES[device.name])}"
        )
    if math.prod(shape) > device.most_chips:
        limit = (
            "in one slice" if device.axes else "in one machine; plans for several machines are not supported"
        )
        raise ConfigError(
            f"--topology={name}: {device.name} has at most {device.most_chips} chips {limit}: for example "
            + ", ".join(EXAMPLES[device.name])
        )
    return Topology(name, device, shape)
