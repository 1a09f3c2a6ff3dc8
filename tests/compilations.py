"""How programs are compiled in tests, and how many are, by the events that JAX records."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax

from transformer_jax.sharding import partitioning

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen: list[str] = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: _seen.append(event))


def compilations(call: Callable[[], Any]) -> int:
    """Returns how many programs were compiled while ``call`` ran."""
    start = len(_seen)
    call()
    return _seen[start:].count(_EVENT)


@contextlib.contextmanager
def optimizations(are_on: bool) -> Iterator[None]:
    """Compiles with or without most of XLA's optimizations, whatever the environment says."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not are_on)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Trains on one of the eight devices, for which programs compile in about half the time."""
    make_mesh = functools.partial(partitioning.make_mesh, devices=jax.devices()[:1])
    with mock.patch.object(partitioning, "make_mesh", make_mesh):
        yield
