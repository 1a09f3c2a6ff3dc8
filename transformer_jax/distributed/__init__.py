"""One run in several processes: how they meet, notice that one died, and stop together.

It may import reporting/ alone.
"""

from transformer_jax.distributed.processes import connect
from transformer_jax.distributed.rendezvous import ProcessError
from transformer_jax.distributed.stopping import stop_signals

__all__ = ["ProcessError", "connect", "stop_signals"]
