"""Writes and reads training checkpoints: the state and the position in the data, written atomically.

It may import only ``types`` and ``config``.
"""

from transformer_jax.checkpoints.checkpointer import CheckpointConfig, Checkpointer
from transformer_jax.checkpoints.files import CheckpointError

__all__ = ["CheckpointConfig", "CheckpointError", "Checkpointer"]
