"""Beam search over any model that can predict one next token.

``transformer_jax.decoding.loop`` documents ``step``, ``cache`` and ``constrain``. What all beams of a text
have in common (the encoder's output, keys and values of cross-attention) belongs in the closure of ``step``,
not in
the cache: only the cache is reordered when beams change places.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Int

from transformer_jax.decoding.beam_rules import WU_RULE, BeamRule
from transformer_jax.decoding.loop import (
    Constrain,
    Decoded,
    LoopState,
    Step,
    check_cache,
    is_running,
    log_probabilities,
    next_logits,
    pad_outputs,
    start_loop,
)
from transformer_jax.types import Array, PyTree


def beam_search(
    step: Step,
    cache: PyTree,
    start_ids: Int[Array, " B"],
    *,
    beam_size: int,
    length_penalty: float,
    max_length: int,
    eos_id: int,
    pad_id: int,
    max_lengths: Int[Array, " limits"] | None = None,
    rule: BeamRule = WU_RULE,
    constrain: Constrain | None = None,
    cache_axis: int = 0,
) -> Decoded:
    """Keeps the ``beam_size`` most probable hypotheses of each text, and ranks the outputs.

    Score. ``log P(tokens) / ((5 + length) / 6) ** length_penalty`` (Wu et al. 2016, equation 14, without
    coverage). The length counts eos. A penalty of 0 ranks by probability; a higher one favours longer
    outputs. Vaswani et al. 2017, section 6.1, use ``beam_size=4, length_penalty=0.6`` and a limit of 50
    tokens beyond the length of the source. ``rule`` can change scores, stopping and ranking; see
    ``BeamRule``.

    Search. Each text has at most ``beam_size`` live hypotheses, at first only the empty one, and besides them
    at most ``beam_size`` ended ones. In each step

    1. every live hypothesis is continued with every token. These candidates are sorted by log P. Of equal
       candidates the child of the earlier live hypothesis comes first; of one parent's children the more
       probable token, then the lower id;
    2. those of the first ``beam_size`` candidates that end in eos join the ended hypotheses. Of these the
       ``beam_size`` with the highest scores are kept (of equal ones the one that ended earlier, then the one
       that came first in 1);
    3. the first ``beam_size`` candidates that do not end in eos become the live hypotheses, in order.

    Stop. A text is done after the step in which ``beam_size`` hypotheses have ended, no hypothesis is live,
    or the text's limit is reached. As in fairseq, and unlike in Tensor2Tensor, the search does not continue
    in the hope that a live hypothesis overtakes an ended one through the length penalty. A beam of 1 is
    therefore ``greedy_search`` for every penalty.

    Result. Ended hypotheses by score, best first, ties as in 2. Live hypotheses fill the remaining places,
    also by score. They reached the limit without eos, so they are incomplete texts and come after all ended
    ones, whatever the scores. ``rule`` may rank them together: then all first candidates of the last step
    have ended.

    Args:
      step: the decoder. It is called with N = B * beam_size rows; hypothesis k of text b is row
        b * beam_size + k. ``repeat_rows`` lays out other arrays in this way.
      cache: with B rows, which are repeated here.
      start_ids, max_length, eos_id, pad_id, max_lengths, constrain: as for ``greedy_search``.
      beam_size: from 1 to V.
      length_penalty: from -5 to 5; alpha in the papers.
      rule: how hypotheses are scored and ranked, and when the search stops.
      cache_axis: the axis of the cache's leaves that has the rows.

    Raises:
      ValueError: as ``greedy_search``; or beam_size or length_penalty is outside its range.
    """
    _check_settings(beam_size, length_penalty)
    check_cache(cache, cache_axis, start_ids)
    cache = repeat_rows(jax.tree.map(jnp.asarray, cache), beam_size, cache_axis)
    advance_text = functools.partial(_advance, length_penalty=length_penalty, eos_id=eos_id, rule=rule)
    advance = jax.vmap(advance_text, (0, 0, _TEXT_AXES), (_TEXT_AXES, 0))

    def body(state: LoopState) -> LoopState:
        logits, allowed, cache = next_logits(step, state, eos_id, constrain)
        vocab_size = logits.shape[-1]
        if beam_size > vocab_size:
            raise ValueError(f"{beam_size=} exceeds the vocabulary of {vocab_size} tokens; use at most that")
        # At most one child of a hypothesis ends, so beam_size others are enough. On CPU top_k of an array
        # with three axes is four times slower.
        children, tokens = lax.top_k(allowed, min(beam_size + 1, vocab_size))
        log_probs = log_probabilities(children, logits).reshape(*state.last.shape, -1)
        new, parents = advance(log_probs, tokens.reshape(log_probs.shape), state._replace(cache=None))
        return new._replace(cache=_reorder(cache, parents, cache_axis))

    state = _start_beams(cache, start_ids, max_length, max_lengths, beam_size)
    state = lax.while_loop(is_running, body, state)
    both = _join(state.ended, state.live, axis=1)
    order = jnp.argsort(both.scores == -jnp.inf, axis=1, stable=True)  # empty places come last
    return pad_outputs(jax.vmap(_take)(both, order[:, :beam_size]), pad_id)


def _check_settings(beam_size: int, length_penalty: float) -> None:
    if beam_size < 1:
        raise ValueError(f"{beam_size=} must be at least 1")
    if not -5 <= length_penalty <= 5:  # beyond, the penalty of a long text overflows float32
        raise ValueError(f"{length_penalty=} must be from -5 to 5")


def repeat_rows(tree: PyTree, repeats: int, axis: int = 0) -> PyTree:
    """Repeats rows: row r of each leaf becomes rows r * repeats .. r * repeats + repeats - 1.

    ``beam_search`` lays out its hypotheses in this way, so arrays in the closure of ``step`` must be laid out
    alike. A leaf without the axis is returned unchanged.
    """
    return jax.tree.map(lambda leaf: leaf if leaf.ndim <= axis else jnp.repeat(leaf, repeats, axis), tree)


_TEXT_AXES = LoopState(None, 0, 0, 0, 0, 0, None)  # the axis of texts in each part of the state, for vmap


def _start_beams(
    cache: PyTree, start_ids: Array, max_length: int, max_lengths: Array | None, beam_size: int
) -> LoopState:
    state = start_loop(cache, start_ids, max_length, max_lengths)
    last, live = jax.tree.map(
        lambda leaf: jnp.repeat(leaf[:, None], beam_size, axis=1), (state.last, state.live)
    )
    # All beams begin alike: only the first may have children, or each would be found many times.
    is_first = lax.broadcasted_iota(jnp.int32, last.shape, 1) == 0
    ended = _keep(live, jnp.zeros(last.shape, bool))
    return state._replace(last=last, live=_keep(live, is_first), ended=ended)


def _advance(
    child_log_probs: jax.Array,
    child_tokens: jax.Array,
    state: LoopState,
    *,
    length_penalty: float,
    eos_id: int,
    rule: BeamRule,
) -> tuple[LoopState, jax.Array]:
    """Advances one text by one token.

    Args:
      child_log_probs: (beam_size, C), of the best continuations of each live hypothesis, best first.
      child_tokens: (beam_size, C), their tokens.
      state: of the text, without the cache.
      length_penalty, eos_id, rule: as for ``beam_search``.

    Returns:
      The new state, without the cache, and the parent of each live hypothesis.
    """
    beam_size, num_children = child_tokens.shape
    sums = (state.live.log_probs[:, None] + child_log_probs).reshape(-1)
    # Each parent has one child that ends, so at most beam_size of the best 2 * beam_size candidates end.
    log_probs, places = lax.top_k(sums, min(2 * beam_size, sums.size))
    parents, tokens = places // num_children, _take(child_tokens.reshape(-1), places)
    length = state.position + 1
    candidates = Decoded(
        tokens=_take(state.live.tokens, parents).at[:, state.position].set(tokens),
        lengths=jnp.full_like(tokens, length),
        log_probs=log_probs,
        scores=rule.score(log_probs, length, length_penalty),
    )
    ends = tokens == eos_id
    if rule.unfinished_compete:
        ends |= length >= state.limits
    pool = _join(state.ended, _take(_keep(candidates, ends), jnp.arange(beam_size)))
    ended = _take(pool, lax.top_k(pool.scores, beam_size)[1])
    places = lax.top_k(jnp.where(ends, -jnp.inf, log_probs), beam_size)[1]
    live = _take(_keep(candidates, ~ends), places)
    old = (state.live, state.ended)
    live, ended = jax.tree.map(functools.partial(jnp.where, state.done), old, (live, ended))
    all_ended, none_live = (ended.scores > -jnp.inf).all(), (live.scores == -jnp.inf).all()
    settled = rule.is_settled(live.log_probs, ended.scores, length, state.limits, length_penalty)
    done = state.done | (all_ended & settled) | none_live | (length >= state.limits)
    new = LoopState(length, _take(tokens, places), live, ended, done, state.limits, None)
    return new, _take(parents, places)


def _join(first: Decoded, second: Decoded, axis: int = 0) -> Decoded:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), first, second)


def _keep(hypotheses: Decoded, condition: jax.Array) -> Decoded:
    """Returns the hypotheses with the places marked as empty where ``condition`` does not hold."""
    log_probs, scores = (jnp.where(condition, leaf, -jnp.inf) for leaf in hypotheses[2:])
    return hypotheses._replace(log_probs=log_probs, scores=scores)


def _take(tree: PyTree, places: jax.Array, axis: int = 0) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.take(leaf, places, axis=axis, mode="clip"), tree)


def _reorder(cache: PyTree, parents: jax.Array, axis: int) -> PyTree:
    """Gives each hypothesis the cache of its parent; parents (B, beam_size) are indices within a text."""
    # With vmap over texts the gather needs no communication if the batch is sharded.
    take = jax.vmap(functools.partial(_take, axis=axis), (axis, 0), axis)

    def reorder(leaf: jax.Array) -> jax.Array:
        beams = leaf.reshape(*leaf.shape[:axis], *parents.shape, *leaf.shape[axis + 1 :])
        return take(beams, parents).reshape(leaf.shape)

    return jax.tree.map(lambda leaf: leaf if leaf.ndim <= axis else reorder(leaf), cache)
