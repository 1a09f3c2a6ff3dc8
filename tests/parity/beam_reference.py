"""Beam search in lists and loops, one text at a time and without a cache: what the fixtures' beams must be.

Imports neither transformer_jax nor torch. The rule is that of ``transformer_jax.decoding.beam_search``; with
``unfinished_compete`` and ``powered_length`` it is that of transformers' ``generate(early_stopping=True)``,
and without ``early_stopping`` that of its defaults.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

# (number of texts) token sequences so far -> log-probabilities (number of texts, V) of the next token.
NextLogProbs = Callable[[list[tuple[int, ...]]], np.ndarray]
Penalty = Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    tokens: tuple[int, ...]
    log_prob: float
    score: float


@dataclasses.dataclass(frozen=True)
class Beams:
    """What came out.

    Attributes:
      hypotheses: best first.
      filled: as many as there are beams ended before the limit, which so had no part in the result.
      margin: the least difference between two log-probabilities or scores on whose order the result hung.
    """

    hypotheses: list[Hypothesis]
    filled: bool
    margin: float


def wu_penalty(alpha: float) -> Penalty:
    """Wu et al. 2016, equation 14, without coverage."""
    return lambda length: ((5 + length) / 6) ** alpha


def powered_length(power: float) -> Penalty:
    """What transformers divides by."""
    return lambda length: length**power


def beam_search(
    next_log_probs: NextLogProbs,
    *,
    beam_size: int,
    limit: int,
    eos_id: int,
    penalty: Penalty,
    unfinished_compete: bool = False,
    early_stopping: bool = True,
) -> Beams:
    """Searches for one text.

    In each step all continuations of the live hypotheses are sorted by log P. Of the first ``beam_size``,
    those that end in eos have ended, and the ``beam_size`` with the best scores are kept; the first
    ``beam_size`` that do not end in eos live on. It stops when ``beam_size`` have ended, or at the limit on
    the length. Without ``early_stopping`` it goes on until the best that lives, scored as it stands, is not
    above the worst that ended.

    What is left at the limit comes after all that ended; with ``unfinished_compete`` the first ``beam_size``
    of the last step count as ended instead, whether they do or not.
    """
    live, ended, margins = [Hypothesis((), 0.0, 0.0)], [], []
    for length in range(1, limit + 1):
        table = next_log_probs([hypothesis.tokens for hypothesis in live])
        candidates = []
        for parent, row in zip(live, table, strict=True):
            for token, added in enumerate(row):
                total = parent.log_prob + float(added)
                candidates.append(Hypothesis((*parent.tokens, token), total, total / penalty(length)))
        candidates.sort(key=lambda candidate: -candidate.log_prob)
        first = candidates[:beam_size]
        alive = [candidate for candidate in candidates if candidate.tokens[-1] != eos_id]
        all_end = unfinished_compete and length == limit
        pool = ended + [candidate for candidate in first if all_end or candidate.tokens[-1] == eos_id]
        ended, margin = _best(pool, beam_size)
        live = alive[:beam_size]
        margins += [margin, alive[beam_size - 1].log_prob - alive[beam_size].log_prob]
        last_in, first_out = candidates[beam_size - 1 : beam_size + 1]
        if all_end or eos_id in (last_in.tokens[-1], first_out.tokens[-1]):
            margins.append(last_in.log_prob - first_out.log_prob)
        if len(ended) < beam_size or length == limit:
            continue
        lead = -1.0 if early_stopping else live[0].score - ended[-1].score
        margins.append(abs(lead))
        if lead <= 0:
            break
    rest, margin = _best(live, beam_size)
    filled = len(ended) == beam_size and length < limit
    return Beams((ended + rest)[:beam_size], filled, min([margin, *margins]))


def _best(hypotheses: list[Hypothesis], number: int) -> tuple[list[Hypothesis], float]:
    """The best by score, and the least difference between neighbours among them and the first that is out."""
    ranked = sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)
    gaps = [better.score - worse.score for better, worse in itertools.pairwise(ranked[: number + 1])]
    return ranked[:number], min(gaps, default=float("inf"))
