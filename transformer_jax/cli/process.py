"""Process-wide settings that the programs make before they compute."""

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
CPU_THREADS_VARIABLE = "PJRT_NPROC"  # number of threads in XLA's pool; by default one per core
_THREADS_PER_DEVICE = 8


def prepare_process() -> None:
    """Applies the settings below, sets the output to UTF-8, and hides log messages below warnings.

    Programs must call this before the first use of a JAX device. Otherwise the threads of the device would
    get separate heaps. ``--verbosity=0`` shows the log messages of libraries.
    """
    keep_freed_memory()
    give_threads_to_devices()
    hide_forgotten_writes()
    cast(io.TextIOWrapper, sys.stdout).reconfigure(encoding="utf-8")
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for later allocations; does nothing with another C library.

    By default glibc returns every large buffer to the kernel and requests it again in the next step, and the
    kernel zeroes each page every time. The price is that the memory of the process never shrinks.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # Some versions refuse so high a threshold and accept 32 MiB. Without it the other settings would do harm.
    if not any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (2**30, 2**25)):
        return
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_ARENA_MAX, 1)  # the arenas of other threads cannot hold large buffers


def give_threads_to_devices() -> None:
    """Gives XLA enough threads if the CPU is split into several devices; keeps a value of the environment.

    In a collective the devices wait for one another, each in a thread of one pool. With only one thread per
    core, devices could wait for ever for others that get no thread.
    """
    counts = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    devices = max(int(counts[-1]) if counts else 1, cast(Any, jax.config).jax_num_cpu_devices)
    if devices > 1:
        threads = max(_THREADS_PER_DEVICE * devices, os.cpu_count() or 1)
        os.environ.setdefault(CPU_THREADS_VARIABLE, str(threads))


def hide_forgotten_writes() -> None:
    """Suppresses Orbax's duplicate tracebacks after a failed save; the error that is raised remains.

    If one array cannot be written, Orbax closes the event loop that the other writes still use. TensorStore
    then prints a traceback for each of these, and asyncio prints another one for each failed write at exit.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    def is_not_orbax(record: logging.LogRecord) -> bool:
        # The message of a task names its coroutine; for a future that gathers several, see their traceback.
        message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        frames = traceback.walk_tb(error.__traceback__ if error else None)
        places = [message, *(frame.f_code.co_filename for frame, _ in frames)]
        is_of_orbax = any(f"{os.sep}orbax{os.sep}" in place for place in places)
        return "never retrieved" not in message or not is_of_orbax

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(is_not_orbax)
