"""Losses over logits, one number a token; callers sum them and divide by the number of real tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class TokenLosses(NamedTuple):
    """Each token's loss to minimise and ``-log p(target)``, in nats, and whether it was the best guess."""

    loss: Float[Array, "B L"]
    nll: Float[Array, "B L"]
    is_correct: Bool[Array, "B L"]


def smoothed_cross_entropy(
    logits: Float[Array, "B L V"], targets: Int[Array, "B L"], label_smoothing: float
) -> TokenLosses:
    """Cross-entropy against smoothed and against one-hot targets.

    Label smoothing (Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4) mixes the one-hot
    target with the uniform distribution: ``q = (1 - label_smoothing) * one_hot + label_smoothing / V``, and
    the loss is ``-sum(q * log p)``; its least value is the entropy of ``q``, not 0.

    A target is a correct guess if no token has a higher logit. Everything is a reduction over V, so
    the (B, L, V) log-probabilities are never stored.
    """
    logits = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])[None, None, :]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    nll = log_normalizer - target_logit
    is_correct = target_logit >= jnp.max(jax.lax.stop_gradient(logits), axis=-1)
    if label_smoothing == 0:
        return TokenLosses(nll, nll, is_correct)
    uniform = log_normalizer - jnp.mean(logits, axis=-1)
    return TokenLosses((1 - label_smoothing) * nll + label_smoothing * uniform, nll, is_correct)
