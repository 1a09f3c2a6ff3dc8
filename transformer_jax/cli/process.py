"""Process-wide settings that the command-line programs make before they compute."""

import ctypes
import io
import logging
import os
import platform
import re
import sys
import traceback
from typing import Any, cast

import jax
from absl import flags
from absl import logging as absl_logging

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
CPU_THREADS_VARIABLE = "PJRT_NPROC"  # of XLA's pool; by default as many as there are cores
_THREADS_PER_DEVICE = 8


def prepare_process() -> None:
    """What every program does first: the settings below, UTF-8 output, only warnings from libraries.

    It must come before the first use of a JAX device, whose threads would otherwise get heaps of their own.
    ``--verbosity=0`` shows what libraries have to say in ordinary operation.
    """
    keep_freed_memory()
    give_threads_to_devices()
    hide_forgotten_writes()
    cast(io.TextIOWrapper, sys.stdout).reconfigure(encoding="utf-8")
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)


def keep_freed_memory() -> None:
    """Makes the C library keep memory that was freed, for the next to use; a no-op without glibc.

    By default glibc gives every large buffer back to the kernel and asks for it again in the next step: the
    kernel then zeroes each page anew. The price of keeping them is that the process does not shrink again.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # Versions that refuse so high a threshold take 32 MiB; with none the other settings would do harm.
    if not any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (2**30, 2**25)):
        return
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_ARENA_MAX, 1)  # arenas of other threads cannot hold large buffers


def give_threads_to_devices() -> None:
    """Where the CPU is to be several devices, gives XLA threads enough for all of them.

    In a collective they wait for one another, each in a thread of one pool: with as few threads as there are
    cores, some could wait for ever for others that have none left. What the environment says already stays.
    """
    told = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    devices = max(int(told[-1]) if told else 1, cast(Any, jax.config).jax_num_cpu_devices)
    if devices > 1:
        threads = max(_THREADS_PER_DEVICE * devices, os.cpu_count() or 1)
        os.environ.setdefault(CPU_THREADS_VARIABLE, str(threads))


def hide_forgotten_writes() -> None:
    """Leaves one error of a checkpoint that cannot be written, the one that is raised.

    Where one array cannot be written, Orbax closes the event loop under the others: TensorStore then prints
    a traceback for each of them, and asyncio, at the end, one for each that failed as well.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    def is_not_orbax(record: logging.LogRecord) -> bool:
        # A task is told by its coroutine; a future that gathers several by where their error comes from.
        message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        frames = traceback.walk_tb(error.__traceback__ if error else None)
        places = [message, *(frame.f_code.co_filename for frame, _ in frames)]
        return "never retrieved" not in message or not any(f"{os.sep}orbax{os.sep}" in it for it in places)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(is_not_orbax)
