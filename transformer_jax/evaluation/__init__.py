"""Scores a trained run on a split: its loss, and its translations, answers or reconstructions.

It may import runs/ and the folders below it. training/ calls it during a run and at its end.
"""

from transformer_jax.evaluation.predictions import Outputs
from transformer_jax.evaluation.predictors import PREDICTORS, Predictor
from transformer_jax.evaluation.scoring import Evaluation, evaluate_loss, evaluate_run, report
from transformer_jax.evaluation.translations import score_texts

__all__ = [
    "PREDICTORS",
    "Evaluation",
    "Outputs",
    "Predictor",
    "evaluate_loss",
    "evaluate_run",
    "report",
    "score_texts",
]
