"""Describes experiments, reads and writes the folders of their runs, and loads trained runs.

It may import pretrained/, inference/, cli/ and all below, but not training/ or evaluation/.
"""

from transformer_jax.runs.experiment import (
    EvaluateConfig,
    Experiment,
    TrainConfig,
    make_transform,
    read_experiment,
)
from transformer_jax.runs.folder import load_config, load_tokenizer, run_folder
from transformer_jax.runs.loading import TrainedRun, from_run, load_run
from transformer_jax.runs.shrinking import shrink

__all__ = [
    "EvaluateConfig",
    "Experiment",
    "TrainConfig",
    "TrainedRun",
    "from_run",
    "load_config",
    "load_run",
    "load_tokenizer",
    "make_transform",
    "read_experiment",
    "run_folder",
    "shrink",
]
