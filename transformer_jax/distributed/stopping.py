"""Handles the signals that stop a run; several processes agree on the step at which they stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Yields a list that receives the name of the first SIGINT or SIGTERM; a second SIGINT interrupts.

    The first signal is acknowledged with a message at once, because the run stops only after the current
    step.

    The list stays empty outside the main thread, where Python cannot handle signals, and in a run with
    several processes, where ``stop_is_agreed`` is used instead.
    """
    received: list[str] = []
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or jax.process_count() > 1:
        if is_main:  # JAX itself handles SIGTERM
            signal.signal(signal.SIGINT, lambda number, _: os.kill(os.getpid(), signal.SIGTERM))
        yield received
        return

    def handle(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)
        # print is not reentrant, and the signal may arrive while it runs.
        os.write(2, f"\n{received[0]}: stopping as soon as a checkpoint can be saved\n".encode())

    with signals_handled_by(handle):
        yield received


@contextlib.contextmanager
def signals_handled_by(handle: Callable[[int, Any], None]) -> Iterator[None]:
    """Handles SIGINT and SIGTERM with ``handle`` inside the context; works in the main thread only."""
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_is_agreed(step: int) -> bool:
    """Returns whether all processes stop at this step because one of them received SIGTERM.

    Every process must call it at every step. JAX chooses the step after the latest one that any process has
    begun.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
