"""Optimizers and learning-rate schedules by name, as a section of an experiment.

It may import types and config alone.
"""

from transformer_jax.optimizers.optimizers import (
    OptimizerConfig,
    fine_tuning,
    make_optimizer,
    make_schedule,
    paper_peak_rate,
)

__all__ = ["OptimizerConfig", "fine_tuning", "make_optimizer", "make_schedule", "paper_peak_rate"]
