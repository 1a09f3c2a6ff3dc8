"""Scores of a trained run on a split: loss, translations, answers, reconstructions.

It may import runs/ and all below; training/ calls it during a run and at its end.
"""

from transformer_jax.evaluation.scoring import Evaluation, evaluate_loss, evaluate_run, report, score_texts

__all__ = ["Evaluation", "evaluate_loss", "evaluate_run", "report", "score_texts"]
