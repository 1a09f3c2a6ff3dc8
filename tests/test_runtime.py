"""What the programs hide of what libraries print: errors that were said already, and nothing else."""

import asyncio
import gc
import logging
import os
import sys
import types

import pytest

from transformer_jax import runtime

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
    runtime.hide_forgotten_writes()


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize(("package", "is_said"), [("orbax", False), ("another", True)])
def test_forgotten_writes_of_orbax_alone_are_hidden(package, is_said, caplog):
    with caplog.at_level(logging.ERROR, logger="asyncio"):
        forget_a_write(os.path.join("site-packages", package, "checkpoint", "serialization.py"))
    assert any("never retrieved" in record.getMessage() for record in caplog.records) == is_said
