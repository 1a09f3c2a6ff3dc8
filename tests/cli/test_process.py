"""What the programs hide of what libraries print: errors that were said already, and nothing else."""

import asyncio
import gc
import logging
import os
import sys
import types

import pytest

from transformer_jax.cli import process

WRITES = """
async def write(name):
    raise ValueError(f"no space for {name}")


async def write_all():
    writes = asyncio.gather(write("first"), write("second"))  # a future of its own, with its own complaint
    await asyncio.sleep(0.01)
"""


def forget_a_write(path: str) -> None:
    """A program of several writes that fail, as if it were the file ``path``, which never looks at them."""
    module = types.ModuleType("writes")
    module.__dict__["asyncio"] = asyncio
    exec(compile(WRITES, path, "exec"), module.__dict__)
    asyncio.run(module.write_all())
    gc.collect()


@pytest.fixture
def hidden(monkeypatch):
    logger = logging.getLogger("asyncio")
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(logger, "filters", list(logger.filters))
    process.hide_forgotten_writes()


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize(("package", "is_said"), [("orbax", False), ("another", True)])
def test_forgotten_writes_of_orbax_alone_are_hidden(package, is_said, caplog):
    with caplog.at_level(logging.ERROR, logger="asyncio"):
        forget_a_write(os.path.join("site-packages", package, "checkpoint", "serialization.py"))
    assert any("never retrieved" in record.getMessage() for record in caplog.records) == is_said


@pytest.mark.parametrize(
    ("flags", "devices", "given", "expected"),
    [
        ("", 1, None, None),
        ("--xla_force_host_platform_device_count=1", 1, None, None),
        ("--xla_force_host_platform_device_count=1 --xla_force_host_platform_device_count=4", 1, None, "32"),
        ("", 3, None, "24"),  # as jax.config says it
        ("--xla_force_host_platform_device_count=4", 1, "5", "5"),
    ],
)
def test_several_devices_of_a_cpu_get_threads_enough_to_wait_in(monkeypatch, flags, devices, given, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(process.jax, "config", types.SimpleNamespace(jax_num_cpu_devices=devices))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setenv("PJRT_NPROC", given or "")  # what is set before the test is put back after it
    if not given:
        monkeypatch.delenv("PJRT_NPROC")
    process.give_threads_to_devices()
    assert os.environ.get("PJRT_NPROC") == expected
