"""Objectives: what is predicted, from which arrays, at what loss.

It may import types, config and files alone; an objective knows no architecture.
"""

from transformer_jax.objectives.base import Objective
from transformer_jax.objectives.causal_lm import CausalLM
from transformer_jax.objectives.classification import Classification
from transformer_jax.objectives.denoising import Denoising
from transformer_jax.objectives.masked_lm import MaskedLM
from transformer_jax.objectives.question_answering import QuestionAnswering
from transformer_jax.objectives.seq2seq import Seq2Seq
from transformer_jax.objectives.span_corruption import SpanCorruption
from transformer_jax.objectives.token_classification import TokenClassification

OBJECTIVES = {
    "seq2seq": Seq2Seq,
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "span_corruption": SpanCorruption,
    "denoising": Denoising,
    "classification": Classification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
}

__all__ = [
    "OBJECTIVES",
    "CausalLM",
    "Classification",
    "Denoising",
    "MaskedLM",
    "Objective",
    "QuestionAnswering",
    "Seq2Seq",
    "SpanCorruption",
    "TokenClassification",
]
