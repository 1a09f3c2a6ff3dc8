"""Signals that stop a run: noted by a process that is alone, agreed about by several."""

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
    """Yields a list that gets the name of the first SIGINT or SIGTERM; a second SIGINT interrupts.

    The first is acknowledged at once: it may take a step, or the preparations, until it has an effect.

    In another thread than the main one, where Python cannot handle signals, it stays empty; so it does in one
    of several processes, which ``stop_is_agreed`` has agree.
    """
    received: list[str] = []
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or jax.process_count() > 1:
        if is_main:  # JAX has SIGTERM
            signal.signal(signal.SIGINT, lambda number, _: os.kill(os.getpid(), signal.SIGTERM))
        yield received
        return

    def handle(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)
        # Not print, which must not be entered again by a signal that comes while it writes.
        os.write(2, f"\n{received[0]}: stopping as soon as all can be saved\n".encode())

    with signals_handled_by(handle):
        yield received


@contextlib.contextmanager
def signals_handled_by(handle: Callable[[int, Any], None]) -> Iterator[None]:
    """SIGINT and SIGTERM are handled so within it, and as before after it; in the main thread only."""
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_is_agreed(step: int) -> bool:
    """Whether this is the step after which all processes stop, for one of them was sent SIGTERM.

    Every process must call it at every step. JAX agrees on the step: the one after the latest that any of
    them has begun.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
