"""Runs in several processes: connects them, detects failed processes, and stops all of them together.

It may import only ``reporting/``.
"""

from transformer_jax.distributed.processes import connect
from transformer_jax.distributed.rendezvous import ProcessError
from transformer_jax.distributed.stopping import stop_signals

__all__ = ["ProcessError", "connect", "stop_signals"]
