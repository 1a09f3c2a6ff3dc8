"""Code shared by the launchers in launch/: the run to start, sweeps, TPU slices, and Kubernetes manifests.

It may import runs/, cli/, checkpoints/ and reporting/. Launchers start ``transformer_jax.train``.
"""

from transformer_jax.launching.run import Run, parse_own_flags, read_run, record_end, record_start

__all__ = ["Run", "parse_own_flags", "read_run", "record_end", "record_start"]
