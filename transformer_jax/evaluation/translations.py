"""Translates a split with an encoder-decoder, and scores the translations."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from transformer_jax.data import Source
from transformer_jax.evaluation.predictions import Outputs
from transformer_jax.evaluation.translator import translator
from transformer_jax.inference.generation import TextGenerator
from transformer_jax.runs.experiment import EvaluateConfig
from transformer_jax.runs.loading import TrainedRun
from transformer_jax.types import PyTree


def score_texts(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Returns corpus scores of translations with one reference each.

    Returns:
      ``bleu`` (Papineni et al. 2002; cased, on raw text, sacreBLEU's 13a tokens), ``bleu_lowercase`` (the
      same in lower case), ``chrf`` (Popović 2015), each from 0 to 100 and with its ``_signature`` (Post
      2018), and ``exact_match``: the percentage of translations that equal their reference.

    Raises:
      ValueError: there are no texts, or the numbers of translations and references differ.
    """
    if not references or len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} translations cannot be scored against {len(references)} references"
        )
    scores: dict[str, Any] = {}
    metrics = {"bleu": BLEU(), "bleu_lowercase": BLEU(lowercase=True), "chrf": CHRF()}
    for name, metric in metrics.items():
        scores[name] = metric.corpus_score(list(hypotheses), [list(references)]).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    matches = sum(map(str.__eq__, hypotheses, references))
    scores["exact_match"] = 100 * matches / len(references)
    return scores


def translate_source(
    generator: TextGenerator, params: PyTree, source: Source
) -> tuple[list[str], list[str], list[str]]:
    """Returns the inputs, translations and references of a whole source, in order."""
    examples = source.read(range(len(source)))
    inputs = [example["inputs"] for example in examples]
    return inputs, generator.generate(params, inputs), [example["targets"] for example in examples]


def translations(run: TrainedRun, mesh: Mesh, settings: EvaluateConfig, source: Source) -> Outputs:
    """Returns the translations of a split and their scores."""
    experiment = run.experiment
    most = experiment.data.max_length if experiment.objective.may_cut else None
    generator = translator(experiment.model, run.tokenizer, settings, mesh, most)
    inputs, hypotheses, references = translate_source(generator, run.params, source)
    decoding = dataclasses.asdict(settings.decoding)
    if settings.temperature == 0:
        decoding = {name: decoding[name] for name in ("beam_size", "length_penalty")}
    scores = score_texts(hypotheses, references)
    return Outputs("translations", hypotheses, inputs, references, decoding | scores)
