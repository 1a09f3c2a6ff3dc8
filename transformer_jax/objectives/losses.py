"""Losses over logits, one value per token; callers sum them and divide by the number of real tokens."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.objectives.base import Apply, Rngs, Sums
from transformer_jax.objectives.calls import run_model, side_arrays
from transformer_jax.types import Batch, PyTree


class TokenLosses(NamedTuple):
    """Losses of the tokens of a batch.

    Attributes:
      loss: the loss that training minimizes, in nats.
      nll: ``-log p(target)``, in nats.
      is_correct: whether the target has the highest logit.
    """

    loss: Float[Array, "B L"]
    nll: Float[Array, "B L"]
    is_correct: Bool[Array, "B L"]


def smoothed_cross_entropy(
    logits: Float[Array, "B L V"], targets: Int[Array, "B L"], label_smoothing: float
) -> TokenLosses:
    """Returns the cross-entropy against smoothed targets and against one-hot targets.

    Label smoothing (Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4) mixes the one-hot
    target with the uniform distribution: ``q = (1 - label_smoothing) * one_hot + label_smoothing / V``, and
    the loss is ``-sum(q * log p)``. Its least value is the entropy of ``q``, not 0.

    A target counts as correct if no token has a higher logit. Everything is a reduction over V, so that the
    (B, L, V) log-probabilities are never stored.
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


def token_sums(
    losses: TokenLosses, weights: Float[Array, "B L"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the loss summed over tokens of weight 1, and ``loss``, ``nll``, ``correct`` and ``tokens``."""
    loss = jnp.sum(losses.loss * weights)
    sums = {
        "loss": loss,
        "nll": jnp.sum(losses.nll * weights),
        "correct": jnp.sum(losses.is_correct * weights),
        "tokens": jnp.sum(weights),
    }
    return loss, sums


def token_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Returns ``loss``, ``nll``, ``perplexity`` and ``accuracy`` per token, given ``token_sums``' sums."""
    tokens = sums["tokens"]
    nll = sums["nll"] / tokens
    return {
        "loss": sums["loss"] / tokens,
        "nll": nll,
        "perplexity": math.inf if nll >= 700 else math.exp(nll),  # e^710 overflows; NaN stays NaN
        "accuracy": sums["correct"] / tokens,
    }


def target_weights(batch: Batch) -> Float[Array, "B L"]:
    """Returns 1 at targets that have a loss: real tokens whose ``targets_weights``, if given, is positive."""
    is_real = jnp.asarray(batch["targets_segments"]) > 0
    if "targets_weights" in batch:
        is_real &= jnp.asarray(batch["targets_weights"]) > 0
    return is_real.astype(jnp.float32)


def target_sums(
    apply: Apply,
    params: PyTree,
    batch: Batch,
    sides: Sequence[str],
    rngs: Rngs,
    label_smoothing: float,
    *,
    train: bool,
) -> tuple[jax.Array, Sums]:
    """Returns ``token_sums`` of ``batch["targets"]``, predicted by a model that reads the given arrays.

    Args:
      apply, params, batch, rngs, train: see ``Objective.loss``.
      sides: the sides and other keys of the batch that the model reads; see ``calls.side_arrays``.
      label_smoothing: see ``smoothed_cross_entropy``.
    """
    targets = jnp.asarray(batch["targets"])

    def per_token(logits: Float[Array, "B L V"], tokens: slice) -> TokenLosses:
        return smoothed_cross_entropy(logits, targets[:, tokens], label_smoothing)

    losses = run_model(
        apply, params, {**side_arrays(batch, *sides), "per_token": per_token}, rngs, train=train
    )
    return token_sums(losses, target_weights(batch))
