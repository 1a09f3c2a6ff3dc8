"""Predicts and scores the texts of a split: reconstructions of corrupted texts, and answers to questions.

Translations are in ``translations``.
"""

from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from transformer_jax.data import Source, evaluation_pieces
from transformer_jax.data.padding import pad_batch
from transformer_jax.decoding.generator import Generator
from transformer_jax.models import build, evaluation_keys
from transformer_jax.objectives.calls import run_model, side_arrays
from transformer_jax.objectives.question_answering import NO_PLACE, Span, best_span
from transformer_jax.objectives.squad import squad_scores
from transformer_jax.runs.experiment import EvaluateConfig, make_transform
from transformer_jax.runs.loading import TrainedRun
from transformer_jax.types import TokenExample

MAX_ANSWER_TOKENS = 30  # as in the released BERT


class Outputs(NamedTuple):
    """The texts that a model predicted for a split.

    Attributes:
      name: a plural noun such as "translations"; part of the name of their file.
      texts: one text for each example, in order.
      sources, references: the texts that they were predicted from, and the right ones.
      figures: scores, as JSON values.
    """

    name: str
    texts: list[str]
    sources: list[str]
    references: list[str]
    figures: dict[str, Any]


def reconstructions(run: TrainedRun, mesh: Mesh, settings: EvaluateConfig, source: Source) -> Outputs:
    """Returns the texts that the model restores from corrupted ones, and the percentage that is right.

    The texts are corrupted as for the loss: in the same way at every evaluation.
    """
    _, pieces = _pieces_of(run, source)
    config = run.experiment.model
    generator = Generator(
        config,
        settings,
        run.tokenizer.vocab_size,
        output_length=lambda length: length + settings.extra_length,
        batch_size=settings.batch_size,
        mesh=mesh,
    )
    decode = run.tokenizer.decode
    texts = [decode(found) for found in generator.generate(run.params, [piece["inputs"] for piece in pieces])]
    references = [decode(piece["targets"]) for piece in pieces]
    mask_id = run.tokenizer.id_of("mask")
    sources = [
        " _ ".join(decode(np.array(part, np.int32)) for part in _split(piece["inputs"].tolist(), mask_id))
        for piece in pieces
    ]
    matches = sum(map(str.__eq__, texts, references))
    return Outputs(
        "reconstructions", texts, sources, references, {"exact_match": 100 * matches / len(references)}
    )


def _split(tokens: list[int], mask_id: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in tokens:
        if token == mask_id:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def answers(run: TrainedRun, mesh: Mesh, settings: EvaluateConfig, source: Source) -> Outputs:
    """Returns answers to questions and the two scores of SQuAD.

    If a context has several windows, the answer with the highest score among them is taken.
    """
    examples = source.read(range(len(source)))
    model = build(run.experiment.model)

    @jax.jit
    def span_logits(params, batch):
        return cast(
            jax.Array,
            run_model(
                model.apply,
                params,
                side_arrays(batch, "inputs"),
                evaluation_keys(run.experiment.model),
                train=False,
            ),
        )

    windows = list(zip(*_pieces_of(run, source), strict=True))
    windows.sort(key=lambda window: len(window[1]["inputs"]))
    best: list[Span | None] = [None] * len(examples)
    texts = [""] * len(examples)
    for start in range(0, len(windows), settings.batch_size):
        chunk = windows[start : start + settings.batch_size]
        rows = [[piece] for _, piece in chunk] + [[]] * (settings.batch_size - len(chunk))
        longest = -(-max(len(piece["inputs"]) for _, piece in chunk) // 16) * 16
        length = min(longest, run.experiment.model.inputs_max_length)
        logits = np.asarray(span_logits(run.params, pad_batch(rows, length, chunk[0][1])))
        for row, (place, piece) in enumerate(chunk):
            own = logits[row, : len(piece["inputs"])]
            allowed = piece["_starts"] != NO_PLACE
            span = best_span(own[:, 0], own[:, 1], allowed, MAX_ANSWER_TOKENS)
            before = best[place]
            if before is None or span.score > before.score:
                best[place] = span
                first, last = int(piece["_starts"][span.first]), int(piece["_stops"][span.last])
                texts[place] = examples[place]["context"][first:last]
    wanted = [list(example["answers"]) for example in examples]
    sources = [f"{example['inputs']}  |  {example['context']}" for example in examples]
    figures = squad_scores(texts, wanted)
    return Outputs("answers", texts, sources, [found[0] if found else "" for found in wanted], dict(figures))


def _pieces_of(run: TrainedRun, source: Source) -> tuple[list[int], list[TokenExample]]:
    """Returns the index of each piece's example, and the pieces, which are those of the loss."""
    experiment = run.experiment
    transform = make_transform(experiment, run.tokenizer, train=False)
    return evaluation_pieces(experiment.data, source, transform)
