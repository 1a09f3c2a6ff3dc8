"""Constraints on the next token: tokens that are banned, forced, or would repeat an n-gram.

They are those of the ``LogitsProcessor`` classes of Hugging Face ``transformers``. Allowed tokens keep their
probabilities, which are not renormalized by default. A forced token has the probability 1.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int


class Given(NamedTuple):
    """Contains what precedes the outputs, and their limits; N rows.

    Attributes:
      tokens: prompts, or start tokens with the prompts of decoders, padded on the left.
      lengths: numbers of these tokens, without padding.
      limits: maximum numbers of tokens of the outputs.
    """

    tokens: Int[jax.Array, "N P"]
    lengths: Int[jax.Array, " N"]
    limits: Int[jax.Array, " N"]


@dataclasses.dataclass(frozen=True)
class Constraints:
    """Forbids or forces tokens.

    Attributes:
      banned_ids: tokens that never occur in an output.
      no_repeat_ngram_size: no n-gram of this size occurs twice, in what precedes an output and the output
        together; 0 is off.
      min_new_tokens: minimum number of tokens of an output, without eos, which is forbidden before.
      min_length: the same, but what precedes the output counts too: a prompt, or the start token of a decoder
        that has an encoder, with its prompt.
      forced_bos_id: the token after a start token without a prompt, or after a prompt of one token; None is
        off.
      forced_eos_id: the last token of an output that reaches its limit; None is off.
      renormalize: whether the probabilities of the allowed tokens sum to 1 again.
    """

    banned_ids: tuple[int, ...] = ()
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    min_length: int = 0
    forced_bos_id: int | None = None
    forced_eos_id: int | None = None
    renormalize: bool = False

    def __post_init__(self) -> None:
        for name in ("no_repeat_ngram_size", "min_new_tokens", "min_length"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    def check(self, vocab_size: int) -> None:
        """Raises ValueError if a token is not one of a model with ``vocab_size`` tokens."""
        forced = {"forced_bos_id": self.forced_bos_id, "forced_eos_id": self.forced_eos_id}
        named = [("banned_ids", token) for token in self.banned_ids]
        for name, token in [*named, *((name, token) for name, token in forced.items() if token is not None)]:
            if not 0 <= token < vocab_size:
                raise ValueError(f"{name} has the token {token}, the model those from 0 to {vocab_size - 1}")

    def apply(
        self,
        logits: Float[jax.Array, "N V"],
        tokens: Int[jax.Array, "N L"],
        position: Int[jax.Array, ""],
        given: Given,
        eos_id: int,
    ) -> Float[jax.Array, "N V"]:
        """Returns the logits with ``-inf`` for forbidden tokens.

        Args:
          logits: of the next tokens.
          tokens: the outputs so far, of which the first ``position`` tokens count.
          position: of the next token in the output.
          given: what precedes the outputs.
          eos_id: the token that ends a text.
        """
        allowed = logits
        if self.no_repeat_ngram_size:
            allowed = jnp.where(
                _would_repeat(tokens, position, given, self.no_repeat_ngram_size, logits.shape[-1]),
                -jnp.inf,
                allowed,
            )
        if self.banned_ids:
            allowed = allowed.at[:, jnp.array(self.banned_ids)].set(-jnp.inf)
        if self.min_new_tokens or self.min_length:
            is_short = (position < self.min_new_tokens) | (given.lengths + position < self.min_length)
            allowed = allowed.at[:, eos_id].set(jnp.where(is_short, -jnp.inf, allowed[:, eos_id]))
        if self.forced_bos_id is not None:
            allowed = _force(allowed, logits, self.forced_bos_id, given.lengths + position == 1)
        if self.forced_eos_id is not None:
            allowed = _force(allowed, logits, self.forced_eos_id, position == given.limits - 1)
        if self.renormalize:
            before, after = (jax.nn.logsumexp(array, axis=-1, keepdims=True) for array in (logits, allowed))
            allowed += jnp.where(after > -jnp.inf, before - after, 0.0)  # the sum of all probabilities stays
        return allowed


UNCONSTRAINED = Constraints()


def _force(allowed: jax.Array, logits: jax.Array, token: int, where: jax.Array) -> jax.Array:
    """Returns the logits with ``token`` as the only allowed one in the rows ``where``, with the probability
    1."""
    certain = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    only = jnp.where(jnp.arange(logits.shape[-1])[None, :] == token, certain, -jnp.inf)
    return jnp.where(where[:, None], only, allowed)


def _would_repeat(
    tokens: jax.Array, position: jax.Array, given: Given, size: int, vocab_size: int
) -> jax.Array:
    """Returns (N, V), whether a next token completes an n-gram of ``size`` tokens that has occurred
    before."""
    num_rows, width = given.tokens.shape
    # Windows may begin before the first token and end after the last one.
    edge = jnp.full((num_rows, size), -1, jnp.int32)
    texts = jnp.concatenate([edge, given.tokens, tokens, edge], axis=1)
    end = size + width + position
    newest = lax.dynamic_slice_in_dim(texts, end - size + 1, size - 1, axis=1)
    starts = jnp.arange(texts.shape[1] - size + 1)
    first = size + width - given.lengths
    matches = (starts[None, :] >= first[:, None]) & (starts + size - 1 < end)[None, :]
    for place in range(size - 1):
        matches &= texts[:, place : place + len(starts)] == newest[:, place, None]
    repeated = jnp.where(matches, texts[:, size - 1 :], vocab_size)
    rows = jnp.arange(num_rows)[:, None]
    return jnp.zeros((num_rows, vocab_size), bool).at[rows, repeated].set(True, mode="drop")
