"""How many programs XLA compiles during a call, by the events that JAX records."""

from collections.abc import Callable
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen: list[str] = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: _seen.append(event))


def compilations(call: Callable[[], Any]) -> int:
    """Returns how many programs were compiled while ``call`` ran."""
    start = len(_seen)
    call()
    return _seen[start:].count(_EVENT)
