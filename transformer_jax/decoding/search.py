"""Greedy search and sampling: one loop over tokens, which differ in the choice of the next token only.

``greedy_search`` and ``sample`` run the loop on the device. ``next_tokens`` is one step of the same loop, for
callers that need each token as soon as it is chosen. ``transformer_jax.decoding.loop`` documents ``step``,
``cache`` and ``constrain``.

Call these functions inside ``jax.jit``, with everything but the arrays static. Outside ``jit`` the loop is
compiled at every call.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Int

from transformer_jax.decoding.loop import (
    Constrain,
    Decoded,
    LoopState,
    Step,
    check_rows,
    is_running,
    log_probabilities,
    next_logits,
    pad_outputs,
    start_loop,
)
from transformer_jax.decoding.sampling import draw_tokens
from transformer_jax.types import Array, PyTree

# From logits (N, V) and the position of the next token to the chosen tokens (N,).
Choose: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def greedy_search(
    step: Step,
    cache: PyTree,
    start_ids: Int[Array, " N"],
    *,
    max_length: int,
    eos_id: int,
    pad_id: int,
    max_lengths: Int[Array, " limits"] | None = None,
    constrain: Constrain | None = None,
) -> Decoded:
    """Chooses the most probable token, of equal ones the lowest id, until ``eos_id`` or the row's limit.

    Args:
      step: the decoder.
      cache: with N rows.
      start_ids: the token before the first one; it is not part of the output.
      max_length: width of the output, in tokens, eos included.
      eos_id: the token that ends a text.
      pad_id: the token that follows eos in the output.
      max_lengths: (N,) limit of each row in tokens; None means ``max_length``. A lower limit wins. A row with
        the limit 0 only fills up the batch: its output is empty and has log-probability 0.
      constrain: forbids tokens.

    Raises:
      ValueError: ``max_length`` is below 1, ``eos_id`` is outside the vocabulary, or the arrays have
        different numbers of rows.
    """
    state = start_loop(cache, start_ids, max_length, max_lengths)
    return search_tokens(step, state, most_probable, eos_id, pad_id, constrain)


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
    """Draws each token at random, as ``sampling.draw_tokens`` does.

    The returned log-probabilities are those of the model, without temperature, truncation and constraints.

    Args:
      step, cache, start_ids, max_length, eos_id, pad_id, max_lengths, constrain: as for ``greedy_search``.
      rng: a JAX random key.
      temperature: above 0; below 1 sharpens the distribution, above 1 flattens it.
      top_k: from 1 to V, the number of tokens to draw from; None keeps all.
      top_p: above 0 and at most 1, the probability mass to draw from; None keeps all.
      row_ids: (N,) numbers that the draws depend on, by default 0 .. N-1. With the number of each text in its
        data set, the output of a text does not depend on its batch.

    Raises:
      ValueError: as ``greedy_search``; or temperature, top_k or top_p is outside its range.
    """
    state = start_loop(cache, start_ids, max_length, max_lengths)
    ids = jnp.arange(len(start_ids)) if row_ids is None else jnp.asarray(row_ids)
    check_rows("row_ids", len(ids), start_ids)

    def draw(logits: jax.Array, position: jax.Array) -> jax.Array:
        return draw_tokens(logits, rng, ids, position, temperature=temperature, top_k=top_k, top_p=top_p)

    return search_tokens(step, state, draw, eos_id, pad_id, constrain)


def most_probable(logits: jax.Array, position: jax.Array) -> jax.Array:
    """Returns the token of greedy search for each row, (N,)."""
    del position
    return jnp.argmax(logits, axis=-1)


def next_tokens(
    step: Step, state: LoopState, choose: Choose, eos_id: int, constrain: Constrain | None = None
) -> LoopState:
    """Returns the state after one more token of each row, of which ``choose`` makes the choice.

    A row that is done keeps its length and its log-probability.
    """
    logits, allowed, cache = next_logits(step, state, eos_id, constrain)
    chosen = choose(allowed, state.position).astype(jnp.int32)
    added = log_probabilities(jnp.take_along_axis(allowed, chosen[:, None], axis=-1), logits)[:, 0]
    position, old, done = state.position + 1, state.live, state.done
    total = old.log_probs + jnp.where(done, 0.0, added)
    tokens = old.tokens.at[:, state.position].set(chosen)
    live = Decoded(tokens, jnp.where(done, old.lengths, position), total, total)
    done |= (chosen == eos_id) | (total == -jnp.inf) | (position >= state.limits)
    return LoopState(position, chosen, live, None, done, state.limits, cache)


def search_tokens(
    step: Step, state: LoopState, choose: Choose, eos_id: int, pad_id: int, constrain: Constrain | None = None
) -> Decoded:
    """Runs ``next_tokens`` until every row is done."""

    def body(state: LoopState) -> LoopState:
        return next_tokens(step, state, choose, eos_id, constrain)

    return pad_outputs(lax.while_loop(is_running, body, state).live, pad_id)
