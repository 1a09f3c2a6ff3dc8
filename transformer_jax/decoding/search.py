"""Greedy search, sampling and beam search over any model that can predict one next token.

Nothing here knows a model. A decoder is one function, ``step(tokens, cache) -> (logits, cache)``:

* ``tokens`` (N,) int32 holds the last token of each row, ``logits`` (N, V) scores the next one;
* ``cache`` is any pytree, and comes back with the same structure, shapes and types. A leaf has its rows on
  ``cache_axis`` (1 where layers are stacked in front); a leaf without such an axis, like a scalar write
  index, is shared by all rows.

What is the same for all beams of a sentence (encoder output, cross-attention keys) belongs in the closure of
``step``, not in the cache: only the cache is reordered when beams change places.

A logit may be ``-inf``: a token that must not come; where all are, a text has no way on. Probabilities are
computed in float32, whatever the type of the logits. ``constrain(logits, tokens, position) -> logits`` has
a say besides: given float32 logits (N, V), the tokens so far (N, L) and how many of these count, it sets to
``-inf`` what must not come, and the others keep the probability that they have beside it.

Call these functions inside ``jax.jit``, everything but the arrays static. Each runs one ``lax.while_loop``
that ends when every row is done; outside ``jit`` it is compiled at every call.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float32, Int, Int32

from transformer_jax.decoding.beam_rules import WU_RULE, BeamRule
from transformer_jax.decoding.sampling import draw_tokens
from transformer_jax.types import Array, PyTree

Step: TypeAlias = Callable[[jax.Array, PyTree], tuple[jax.Array, PyTree]]
Constrain: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Decoded(NamedTuple):
    """What was decoded. The leading axes are (N,) or, for beam search, (B, beam_size), best first.

    An output that cannot exist (every way on was ``-inf``, or fewer than ``beam_size`` different ones are
    possible) has length 0, only padding, and ``-inf`` as log-probability and score.

    Attributes:
      tokens: without the start token, up to and including eos where it came, then ``pad_id``.
      lengths: in tokens; eos counts.
      log_probs: log P(tokens) under the model, natural logarithm, eos included where it came.
      scores: what outputs are ranked by: ``log_probs``, normalised for length by beam search.
    """

    tokens: Int32[jax.Array, "*rows L"]
    lengths: Int32[jax.Array, "*rows"]
    log_probs: Float32[jax.Array, "*rows"]
    scores: Float32[jax.Array, "*rows"]


def greedy_search(
    step: Step,
    cache: PyTree,
    start_ids: Int[Array, " N"],
    *,
    max_length: int,
    eos_id: int,
    pad_id: int,
    max_lengths: Int[Array, " limits"] | None = None,
) -> Decoded:
    """Takes the most probable token, of equal ones the lowest id, until ``eos_id`` or the row's limit.

    Args:
      step: see the module's docstring.
      cache: with N rows.
      start_ids: the token before the first one; it is not part of the output.
      max_length: width of the output, in tokens, eos included.
      eos_id, pad_id: the token that ends a text, and what follows it in the output.
      max_lengths: (N,) limit of each row in tokens; the lower of it and ``max_length`` holds. A limit of 0,
        for rows that only fill up a batch, gives at once an empty output of log-probability 0.

    Raises:
      ValueError: ``max_length`` below 1, an ``eos_id`` outside the vocabulary, or arrays whose numbers of
        rows differ.
    """
    state = _start(cache, start_ids, max_length, max_lengths)
    return _pad(_decode_rows(step, state, lambda logits, _: jnp.argmax(logits, -1), eos_id), pad_id)


def sample(
    step: Step,
    cache: PyTree,
    start_ids: Int[Array, " N"],
    rng: jax.Array,
    *,
    max_length: int,
    eos_id: int,
    pad_id: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    max_lengths: Int[Array, " limits"] | None = None,
    row_ids: Int[Array, " ids"] | None = None,
    constrain: Constrain | None = None,
) -> Decoded:
    """Draws each token at random, as ``sampling.draw_tokens``.

    The log-probabilities returned are the model's own, without temperature, truncation and constraints.

    Args:
      step, cache, start_ids, max_length, eos_id, pad_id, max_lengths: as for ``greedy_search``.
      rng: a JAX random key.
      temperature: above 0; below 1 sharpens, above 1 flattens.
      top_k, top_p: 1 to V, and above 0 up to 1; None keeps all.
      row_ids: (N,) numbers to draw by, instead of 0 .. N-1. Given each text's number in its data set, a text
        is decoded alike in whatever batch it comes.
      constrain: see the module's docstring.

    Raises:
      ValueError: as ``greedy_search`` does, or a temperature, top_k or top_p outside its range.
    """
    state = _start(cache, start_ids, max_length, max_lengths)
    ids = jnp.arange(len(start_ids)) if row_ids is None else jnp.asarray(row_ids)
    _check_rows("row_ids", len(ids), start_ids)

    def choose(logits: jax.Array, position: jax.Array) -> jax.Array:
        return draw_tokens(logits, rng, ids, position, temperature=temperature, top_k=top_k, top_p=top_p)

    return _pad(_decode_rows(step, state, choose, eos_id, constrain), pad_id)


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
    """Keeps the ``beam_size`` most probable beginnings of each text and ranks what they end as.

    Score. ``log P(tokens) / ((5 + length) / 6) ** length_penalty`` (Wu et al. 2016, equation 14, without
    coverage), where the length counts eos. 0 ranks by probability, more favours longer outputs, less shorter.
    Vaswani et al. 2017, section 6.1, has ``beam_size=4, length_penalty=0.6`` and a limit of 50 tokens more
    than the source. Another ``rule`` scores, stops and ranks otherwise; see ``BeamRule``.

    Search. Each text has at most ``beam_size`` live hypotheses, at first the empty one alone, and apart from
    them at most ``beam_size`` ended ones. In each step

    1. every live hypothesis is continued by every token. These candidates are sorted by log P; of equal ones
       the child of the earlier live hypothesis comes first, and of one parent's children the more probable
       token, then the lower id;
    2. those among the first ``beam_size`` candidates that end in eos join the ended ones, of which the
       ``beam_size`` with the highest scores stay (of equal ones, who ended earlier, then who led in 1);
    3. the first ``beam_size`` candidates that do not end in eos are the live hypotheses, in order.

    Stop. A text is done, and changes no more, after the step in which ``beam_size`` hypotheses have ended, or
    none is live, or its limit is reached. As in fairseq, and unlike in Tensor2Tensor, it does not go on
    because a live hypothesis might still overtake an ended one through the length penalty: so a beam of 1 is
    ``greedy_search`` for every penalty.

    Result. Ended hypotheses by score, best first, ties as in 2. Places left over go to live ones, also by
    score: they reached the limit without eos, and come after all that ended, whatever the scores, for they
    are no whole texts (but ``rule`` may have them compete: all the first candidates of the last step ended).

    Args:
      step: see the module's docstring. It is called with N = B * beam_size rows; hypothesis k of text b is
        row b * beam_size + k. ``repeat_rows`` lays out other arrays in this way.
      cache: with B rows; they are repeated for the beams here.
      start_ids, max_length, eos_id, pad_id, max_lengths: as for ``greedy_search``.
      beam_size, length_penalty: 1 to V, and -5 to 5 (the alpha of the papers).
      constrain, cache_axis: see the module's docstring, and where the cache's leaves have their rows.

    Raises:
      ValueError: as ``greedy_search``; a beam_size or length_penalty outside its range.
    """
    if beam_size < 1:
        raise ValueError(f"{beam_size=} must be at least 1")
    if not -5 <= length_penalty <= 5:  # beyond, the penalty of a long text leaves float32
        raise ValueError(f"{length_penalty=} must be from -5 to 5")
    _check_cache(cache, cache_axis, start_ids)
    cache = repeat_rows(jax.tree.map(jnp.asarray, cache), beam_size, cache_axis)
    advance_text = functools.partial(_advance, length_penalty=length_penalty, eos_id=eos_id, rule=rule)
    advance = jax.vmap(advance_text, (0, 0, _TEXT_AXES), (_TEXT_AXES, 0))

    def body(state: _State) -> _State:
        logits, cache = step(state.last.reshape(-1), state.cache)
        _check_logits(logits, state.last.size, eos_id)
        vocab_size = logits.shape[-1]
        if beam_size > vocab_size:
            raise ValueError(f"{beam_size=} is more than the vocabulary has tokens: {vocab_size}")
        # One child ends: beam_size others are enough. From three axes top_k is four times slower on CPU.
        logits = logits.astype(jnp.float32)
        allowed = _allowed(constrain, logits, state)
        children, tokens = lax.top_k(allowed, min(beam_size + 1, vocab_size))
        log_probs = _log_probs(children, logits).reshape(*state.last.shape, -1)
        new, parents = advance(log_probs, tokens.reshape(log_probs.shape), state._replace(cache=None))
        return new._replace(cache=_reorder(cache, parents, cache_axis))

    state = _start(cache, start_ids, max_length, max_lengths, beam_size)
    state = lax.while_loop(_is_running, body, state)
    both = _join(state.ended, state.live, axis=1)
    order = jnp.argsort(both.scores == -jnp.inf, axis=1, stable=True)  # empty places come last
    return _pad(jax.vmap(_take)(both, order[:, :beam_size]), pad_id)


def repeat_rows(tree: PyTree, repeats: int, axis: int = 0) -> PyTree:
    """Repeats rows: row r of each leaf becomes rows r * repeats .. r * repeats + repeats - 1.

    So ``beam_search`` lays out its beams, and so must ``step``'s closure. A leaf without the axis stays.
    """
    return jax.tree.map(lambda leaf: leaf if leaf.ndim <= axis else jnp.repeat(leaf, repeats, axis), tree)


class _State(NamedTuple):
    """What a loop carries. ``rows`` are (N,), or (B, beam_size) in beam search."""

    position: Any  # scalar: tokens decoded so far
    last: Any  # rows: the last token of each
    live: Any  # Decoded, rows; where there is no hypothesis, log_probs and scores are -inf
    ended: Any  # the same; None but in beam search
    done: Any  # (N,) or (B,)
    limits: Any  # (N,) or (B,)
    cache: Any


_TEXT_AXES = _State(None, 0, 0, 0, 0, 0, None)  # where beam search has its texts, for vmap


def _start(
    cache: PyTree, start_ids: Array, max_length: int, max_lengths: Array | None, beam_size: int | None = None
) -> _State:
    if max_length < 1:
        raise ValueError(f"{max_length=} must be at least 1 token")
    last, limits = jnp.asarray(start_ids, jnp.int32), jnp.full(len(start_ids), max_length)
    if max_lengths is not None:
        _check_rows("max_lengths", len(max_lengths), start_ids)
        limits = jnp.minimum(limits, jnp.asarray(max_lengths))
    if beam_size is not None:
        last = jnp.repeat(last[:, None], beam_size, axis=1)
    tokens, zeros = jnp.zeros((*last.shape, max_length), jnp.int32), jnp.zeros(last.shape, jnp.float32)
    live, ended = Decoded(tokens, jnp.zeros(last.shape, jnp.int32), zeros, zeros), None
    if beam_size is not None:
        ended = _keep(live, zeros > 0)
        # All beams begin alike: only the first may have children, or each is found many times.
        live = _keep(live, lax.broadcasted_iota(jnp.int32, last.shape, 1) == 0)
    cache = jax.tree.map(jnp.asarray, cache)
    return _State(jnp.zeros((), jnp.int32), last, live, ended, limits <= 0, limits, cache)


def _is_running(state: _State) -> jax.Array:
    return (state.position < state.live.tokens.shape[-1]) & ~state.done.all()


def _decode_rows(
    step: Step,
    state: _State,
    choose: Callable[[jax.Array, jax.Array], jax.Array],
    eos_id: int,
    constrain: Constrain | None = None,
) -> Decoded:
    """The loop of greedy search and sampling: ``choose(logits (N, V), position) -> (N,)``."""

    def body(state: _State) -> _State:
        logits, cache = step(state.last, state.cache)
        _check_logits(logits, state.last.size, eos_id)
        logits = logits.astype(jnp.float32)
        allowed = _allowed(constrain, logits, state)
        chosen = choose(allowed, state.position).astype(jnp.int32)
        added = _log_probs(jnp.take_along_axis(allowed, chosen[:, None], axis=-1), logits)[:, 0]
        position, old, done = state.position + 1, state.live, state.done
        total = old.log_probs + jnp.where(done, 0.0, added)
        tokens = old.tokens.at[:, state.position].set(chosen)
        live = Decoded(tokens, jnp.where(done, old.lengths, position), total, total)
        done |= (chosen == eos_id) | (total == -jnp.inf) | (position >= state.limits)
        return _State(position, chosen, live, None, done, state.limits, cache)

    return lax.while_loop(_is_running, body, state).live


def _allowed(constrain: Constrain | None, logits: jax.Array, state: _State) -> jax.Array:
    if constrain is None:
        return logits
    return constrain(logits, state.live.tokens.reshape(len(logits), -1), state.position)


def _advance(
    child_log_probs: jax.Array,
    child_tokens: jax.Array,
    state: _State,
    *,
    length_penalty: float,
    eos_id: int,
    rule: BeamRule,
) -> tuple[_State, jax.Array]:
    """One step of ``beam_search`` for one text: its new state but for the cache, and the parents.

    The children, (beam_size, C), are the best continuations of each live hypothesis, best first.
    """
    beam_size, num_children = child_tokens.shape
    sums = (state.live.log_probs[:, None] + child_log_probs).reshape(-1)
    # Of the best 2 * beam_size at most beam_size end, for each parent has one child that does.
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
    new = _State(length, _take(tokens, places), live, ended, done, state.limits, None)
    return new, _take(parents, places)


def _join(first: Decoded, second: Decoded, axis: int = 0) -> Decoded:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), first, second)


def _keep(hypotheses: Decoded, condition: jax.Array) -> Decoded:
    """Marks as empty the places where ``condition`` does not hold."""
    log_probs, scores = (jnp.where(condition, leaf, -jnp.inf) for leaf in hypotheses[2:])
    return hypotheses._replace(log_probs=log_probs, scores=scores)


def _pad(decoded: Decoded, pad_id: int) -> Decoded:
    lengths = jnp.where(decoded.log_probs > -jnp.inf, decoded.lengths, 0)
    positions = lax.broadcasted_iota(jnp.int32, decoded.tokens.shape, decoded.tokens.ndim - 1)
    tokens = jnp.where(positions < lengths[..., None], decoded.tokens, pad_id)
    return decoded._replace(tokens=tokens, lengths=lengths)


def _take(tree: PyTree, places: jax.Array, axis: int = 0) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.take(leaf, places, axis=axis, mode="clip"), tree)


def _reorder(cache: PyTree, parents: jax.Array, axis: int) -> PyTree:
    """Gives each beam the cache of its parent; parents (B, beam_size) are numbers within a text."""
    # Mapped over texts, the gather stays on its own device when the batch is sharded.
    take = jax.vmap(functools.partial(_take, axis=axis), (axis, 0), axis)

    def reorder(leaf: jax.Array) -> jax.Array:
        beams = leaf.reshape(*leaf.shape[:axis], *parents.shape, *leaf.shape[axis + 1 :])
        return take(beams, parents).reshape(leaf.shape)

    return jax.tree.map(lambda leaf: leaf if leaf.ndim <= axis else reorder(leaf), cache)


def _log_probs(picked: jax.Array, logits: jax.Array) -> jax.Array:
    """Log-softmax of some logits (N, P) among (N, V); where all are -inf, it is -inf, not NaN."""
    best = jnp.max(logits, axis=-1, keepdims=True)
    best = jnp.where(best == -jnp.inf, 0.0, best)
    total = jnp.sum(jnp.exp(logits - best), axis=-1, keepdims=True)
    return picked - best - jnp.log(jnp.maximum(total, 1.0))  # the best token alone makes 1


def _check_rows(name: str, num_rows: int, start_ids: Array) -> None:
    if num_rows != len(start_ids):
        raise ValueError(f"{name} has {num_rows} rows, but start_ids has {len(start_ids)}")


def _check_cache(cache: PyTree, axis: int, start_ids: Array) -> None:
    if axis < 0:
        raise ValueError(f"cache_axis={axis} must not be negative")
    for path, leaf in jax.tree_util.tree_leaves_with_path(cache):
        if np.ndim(leaf) > axis:
            name = f"cache{jax.tree_util.keystr(path)} of shape {np.shape(leaf)} (cache_axis={axis})"
            _check_rows(name, np.shape(leaf)[axis], start_ids)


def _check_logits(logits: jax.Array, num_rows: int, eos_id: int) -> None:
    if logits.ndim != 2 or logits.shape[0] != num_rows:
        raise ValueError(f"step gave logits of shape {logits.shape}, not ({num_rows}, vocabulary)")
    if not 0 <= eos_id < logits.shape[-1]:
        raise ValueError(f"{eos_id=} is outside the vocabulary of {logits.shape[-1]} tokens")
