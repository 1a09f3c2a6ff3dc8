"""What greedy search, sampling and beam search share: the state of a loop over tokens, and its parts.

Nothing here depends on a model. A decoder is one function, ``step(tokens, cache) -> (logits, cache)``:

* ``tokens`` (N,) int32 is the last token of each row, and ``logits`` (N, V) score the next token;
* ``cache`` is any pytree. ``step`` returns it with the same structure, shapes and types. Each leaf has its
  rows on ``cache_axis`` (1 if layers are stacked in front). A leaf without that axis, such as a scalar write
  index, is shared by all rows.

A logit may be ``-inf``, which forbids its token. If all logits of a row are ``-inf``, the row cannot be
continued. Probabilities are computed in float32, whatever the type of the logits.

``constrain(logits, tokens, position) -> logits`` is optional. It gets float32 logits (N, V), the tokens so
far (N, L), of which the first ``position`` count, and sets the logits of forbidden tokens to ``-inf``. The
other tokens keep their probabilities; they are not renormalized.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float32, Int32

from transformer_jax.types import Array, PyTree

Step: TypeAlias = Callable[[jax.Array, PyTree], tuple[jax.Array, PyTree]]
Constrain: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Decoded(NamedTuple):
    """Contains decoded outputs. The leading axes are (N,) or, for beam search, (B, beam_size), best first.

    An impossible output has length 0, only padding, and ``-inf`` as log-probability and score. An output is
    impossible if all logits were ``-inf``, or if fewer than ``beam_size`` different outputs exist.

    Attributes:
      tokens: without the start token, up to and including eos if it was decoded, then ``pad_id``.
      lengths: number of tokens, eos included.
      log_probs: log P(tokens) under the model, natural logarithm, eos included if it was decoded.
      scores: what outputs are ranked by: ``log_probs``, which beam search normalizes for length.
    """

    tokens: Int32[jax.Array, "*rows L"]
    lengths: Int32[jax.Array, "*rows"]
    log_probs: Float32[jax.Array, "*rows"]
    scores: Float32[jax.Array, "*rows"]


class LoopState(NamedTuple):
    """Contains what a decoding loop carries from step to step; ``rows`` are (N,) or (B, beam_size).

    Attributes:
      position: scalar, the number of tokens decoded so far.
      last: rows, the last token of each.
      live: Decoded, rows: the outputs that are continued. Empty places have log_probs and scores of ``-inf``.
      ended: Decoded, rows: the ended hypotheses of beam search; None in other loops.
      done: (N,) or (B,), whether a text is complete.
      limits: (N,) or (B,), the maximum number of tokens of each text.
      cache: see the module's docstring.
    """

    position: Any
    last: Any
    live: Any
    ended: Any
    done: Any
    limits: Any
    cache: Any


def start_loop(cache: PyTree, start_ids: Array, max_length: int, max_lengths: Array | None) -> LoopState:
    """Returns the state before the first token; arguments as for ``greedy_search``."""
    if max_length < 1:
        raise ValueError(f"{max_length=} must be at least 1 token")
    last, limits = jnp.asarray(start_ids, jnp.int32), jnp.full(len(start_ids), max_length)
    if max_lengths is not None:
        check_rows("max_lengths", len(max_lengths), start_ids)
        limits = jnp.minimum(limits, jnp.asarray(max_lengths))
    tokens, zeros = jnp.zeros((len(last), max_length), jnp.int32), jnp.zeros(last.shape, jnp.float32)
    live = Decoded(tokens, jnp.zeros(last.shape, jnp.int32), zeros, zeros)
    cache = jax.tree.map(jnp.asarray, cache)
    return LoopState(jnp.zeros((), jnp.int32), last, live, None, limits <= 0, limits, cache)


def is_running(state: LoopState) -> jax.Array:
    """Returns whether a text is incomplete and has room for another token."""
    return (state.position < state.live.tokens.shape[-1]) & ~state.done.all()


def next_logits(
    step: Step, state: LoopState, eos_id: int, constrain: Constrain | None
) -> tuple[Float32[jax.Array, "N V"], Float32[jax.Array, "N V"], PyTree]:
    """Runs one step of the model.

    Returns:
      The logits of the model, the same with ``-inf`` for the tokens that ``constrain`` forbids, and the
      cache.
    """
    logits, cache = step(state.last.reshape(-1), state.cache)
    _check_logits(logits, state.last.size, eos_id)
    logits = logits.astype(jnp.float32)
    if constrain is None:
        return logits, logits, cache
    tokens = state.live.tokens.reshape(len(logits), -1)
    return logits, constrain(logits, tokens, state.position), cache


def log_probabilities(chosen: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns the log-softmax (N, P) of logits chosen among (N, V).

    If all logits of a row are -inf, the result is -inf, not NaN.
    """
    best = jnp.max(logits, axis=-1, keepdims=True)
    best = jnp.where(best == -jnp.inf, 0.0, best)
    total = jnp.sum(jnp.exp(logits - best), axis=-1, keepdims=True)
    return chosen - best - jnp.log(jnp.maximum(total, 1.0))  # the best token alone contributes 1


def pad_outputs(decoded: Decoded, pad_id: int) -> Decoded:
    """Returns the outputs with padding after their last tokens; impossible ones have length 0."""
    lengths = jnp.where(decoded.log_probs > -jnp.inf, decoded.lengths, 0)
    positions = lax.broadcasted_iota(jnp.int32, decoded.tokens.shape, decoded.tokens.ndim - 1)
    tokens = jnp.where(positions < lengths[..., None], decoded.tokens, pad_id)
    return decoded._replace(tokens=tokens, lengths=lengths)


def check_rows(name: str, num_rows: int, start_ids: Array) -> None:
    """Raises ValueError unless the array ``name`` has as many rows as ``start_ids``."""
    if num_rows != len(start_ids):
        raise ValueError(f"{name} has {num_rows} rows, but start_ids has {len(start_ids)}")


def check_cache(cache: PyTree, axis: int, start_ids: Array) -> None:
    """Raises ValueError unless every leaf with rows has as many as ``start_ids``."""
    if axis < 0:
        raise ValueError(f"cache_axis={axis} must not be negative")
    for path, leaf in jax.tree_util.tree_leaves_with_path(cache):
        if np.ndim(leaf) > axis:
            name = f"cache{jax.tree_util.keystr(path)} of shape {np.shape(leaf)} (cache_axis={axis})"
            check_rows(name, np.shape(leaf)[axis], start_ids)


def _check_logits(logits: jax.Array, num_rows: int, eos_id: int) -> None:
    if logits.ndim != 2 or logits.shape[0] != num_rows:
        raise ValueError(f"step gave logits of shape {logits.shape}, not ({num_rows}, vocabulary)")
    if not 0 <= eos_id < logits.shape[-1]:
        raise ValueError(f"{eos_id=} is outside the vocabulary of {logits.shape[-1]} tokens")
