"""Defines what the programs share: flags, one-line errors, settings of the process.

It may import decoding/, data/, checkpoints/ and the modules beside the programs (types, config, files).
"""

from transformer_jax.cli.flags import reported_errors
from transformer_jax.cli.process import prepare_process

__all__ = ["prepare_process", "reported_errors"]
