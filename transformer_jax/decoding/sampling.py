"""Draws one next token from the logits of a model."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int


def draw_tokens(
    logits: Float[jax.Array, "N V"],
    rng: jax.Array,
    row_ids: Int[jax.Array, " N"],
    position: Int[jax.Array, ""] | int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[jax.Array, " N"]:
    """Draws a token for each row, in this order of operations:

    1. logits are divided by ``temperature``;
    2. exactly the ``top_k`` most probable tokens are kept, of equal ones those with lower ids;
    3. their probabilities are renormalized, and the smallest set of most probable tokens is kept whose mass
       is at least ``top_p`` (nucleus sampling, Holtzman et al. 2020, section 3.1), ties as before;
    4. one of the kept tokens is drawn from their renormalized distribution.

    A draw depends on ``rng``, the row's id, the position and the row's logits, but not on other rows.

    Args:
      logits: ``-inf`` for a forbidden token.
      rng: a JAX random key.
      row_ids: the number of each row.
      position: of the token in its text.
      temperature: above 0; below 1 sharpens the distribution, above 1 flattens it.
      top_k, top_p: 1 to V, and above 0 up to 1; None keeps all.

    Raises:
      ValueError: a temperature, top_k or top_p outside its range.
    """
    if not 1e-30 < temperature < 1e30:  # outside, float32 would make NaN of a division by it
        raise ValueError(f"{temperature=} must be positive; for its limit 0 use greedy_search")
    if top_k is not None and top_k < 1:
        raise ValueError(f"{top_k=} must be at least 1, or None to keep all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"{top_p=} must be above 0 and at most 1, or None to keep all tokens")
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, row_ids)
    keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, position)
    kept, token_ids = _truncate(logits, temperature, top_k, top_p)
    drawn = jax.vmap(jax.random.categorical)(keys, kept)
    return jnp.take_along_axis(token_ids, drawn[:, None], axis=-1)[:, 0]


def _truncate(
    logits: jax.Array, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[jax.Array, jax.Array]:
    """Returns unnormalized log-probabilities and ids of the tokens that steps 1 to 3 of ``draw_tokens``
    keep."""
    vocab_size = logits.shape[-1]
    if top_k is not None and top_k > vocab_size:
        raise ValueError(f"{top_k=} exceeds the vocabulary of {vocab_size} tokens; use at most that")
    best = jnp.max(logits, axis=-1, keepdims=True)
    # The best logit is shifted to 0 before the division, so that no temperature overflows.
    scaled = jnp.where(logits > -jnp.inf, logits - best, -jnp.inf) / temperature
    if top_k is None and (top_p is None or top_p == 1):
        return scaled, jnp.broadcast_to(jnp.arange(vocab_size)[None, :], scaled.shape)
    kept, token_ids = lax.top_k(scaled, vocab_size if top_k is None else top_k)
    if top_p is not None and top_p < 1:
        mass = jnp.cumsum(jnp.exp(kept), axis=-1)
        mass_before = jnp.pad(mass, ((0, 0), (1, 0)))[:, :-1]
        kept = jnp.where(mass_before < top_p * mass[:, -1:], kept, -jnp.inf)
    return kept, token_ids
