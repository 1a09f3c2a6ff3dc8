"""Makes optimizers and learning-rate schedules by name, from a section of an experiment.

It may import only ``types`` and ``config``.
"""

from transformer_jax.optimizers.optimizers import (
    OptimizerConfig,
    fine_tuning,
    make_optimizer,
    make_schedule,
    paper_peak_rate,
)

__all__ = ["OptimizerConfig", "fine_tuning", "make_optimizer", "make_schedule", "paper_peak_rate"]
