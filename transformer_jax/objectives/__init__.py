"""Objectives: what a model is trained to predict, from which arrays, and with which loss.

It may import only types, config and files: an objective knows no architecture.
"""

from transformer_jax.objectives.base import ModelFacts, Objective
from transformer_jax.objectives.causal_lm import CausalLM
from transformer_jax.objectives.classification import Classification
from transformer_jax.objectives.denoising import Denoising
from transformer_jax.objectives.labels import LabelledObjective
from transformer_jax.objectives.masked_lm import MaskedLM
from transformer_jax.objectives.question_answering import QuestionAnswering
from transformer_jax.objectives.seq2seq import Seq2Seq
from transformer_jax.objectives.span_corruption import SpanCorruption
from transformer_jax.objectives.token_classification import TokenClassification
from transformer_jax.objectives.token_objective import TokenObjective

# Keys are ``objective.name`` of a config. A program may add objectives of its own.
OBJECTIVES: dict[str, type[Objective]] = {
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
    "LabelledObjective",
    "MaskedLM",
    "ModelFacts",
    "Objective",
    "QuestionAnswering",
    "Seq2Seq",
    "SpanCorruption",
    "TokenClassification",
    "TokenObjective",
]
