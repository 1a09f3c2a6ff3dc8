"""A model for tests of decoding: its logits depend on all tokens so far, and a table holds them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.decoding import beam_search, greedy_search

PAD, START, EOS = 0, 1, 2
STATES = 4099  # a prime: histories seldom meet in one state
PENALTIES = (0.0, 0.6, 1.5, -0.8)


# The model: a hash of all tokens so far chooses a row of a table of logits.
def next_state(state, token):
    return (state * 131 + token * 17 + 7) % STATES


def hash_step(table):
    def step(tokens, cache):
        state = next_state(cache["state"], tokens)
        return jnp.asarray(table)[state], {"state": state, "index": cache["index"] + 1}

    return step


def hash_cache(roots):
    return {"state": jnp.asarray(roots, jnp.int32), "index": jnp.zeros((), jnp.int32)}


def random_table(seed, vocab_size, masked=0.0, allowed=None):
    rng = np.random.default_rng(seed)
    table = rng.normal(0, 2, (STATES, vocab_size)).astype(np.float32)
    table[rng.random(table.shape) < masked] = -np.inf
    if allowed is not None:
        table[:, [token for token in range(vocab_size) if token not in allowed]] = -np.inf
    return table


def log_softmax(table):
    impossible = np.isneginf(table).all(axis=-1, keepdims=True)
    safe = np.where(impossible, 0, table)
    return np.where(impossible, -np.inf, np.asarray(jax.nn.log_softmax(safe))).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("beam_size", "length_penalty", "max_length"))
def run_beam(table, roots, limits, beam_size, length_penalty, max_length):
    return beam_search(
        hash_step(table),
        hash_cache(roots),
        jnp.full(roots.shape, START),
        beam_size=beam_size,
        length_penalty=length_penalty,
        max_length=max_length,
        max_lengths=limits,
        eos_id=EOS,
        pad_id=PAD,
    )


@functools.partial(jax.jit, static_argnames=("max_length",))
def run_greedy(table, roots, limits, max_length):
    return greedy_search(
        hash_step(table),
        hash_cache(roots),
        jnp.full(roots.shape, START),
        max_length=max_length,
        max_lengths=limits,
        eos_id=EOS,
        pad_id=PAD,
    )


# Beam search as its docstring has it, with lists: for the model above and for any other.
def score(log_prob, length, alpha):
    return log_prob / np.float32((5 + length) / 6) ** np.float32(alpha)


def next_of(log_probs, root):
    """The function from a tuple of tokens to the log-probabilities of the next, of one row."""

    def next_log_probs(tokens):
        return log_probs[functools.reduce(next_state, (START, *tokens), root)]

    return next_log_probs


def reference_beam(next_log_probs, limit, alpha, beam_size):
    """(tokens, log P, score) of at most ``beam_size`` outputs, best first."""
    live, ended = [((), np.float32(0))], []
    for _ in range(limit):
        candidates = []
        for place, (tokens, total) in enumerate(live):
            for token, log_prob in enumerate(next_log_probs(tokens)):
                if log_prob > -np.inf:
                    sort_key = (-(total + log_prob), place, -log_prob, token)
                    candidates.append((sort_key, (*tokens, token), total + log_prob))
        candidates.sort()
        for _, tokens, total in candidates[:beam_size]:
            if tokens[-1] == EOS:
                ended.append((tokens, total, score(total, len(tokens), alpha)))
        ended = sorted(ended, key=lambda h: -h[2])[:beam_size]  # stable: who came first stays first
        live = [c[1:] for c in candidates if c[1][-1] != EOS][:beam_size]
        if len(ended) == beam_size or not live:
            return ended
    rest = [(tokens, total, score(total, limit, alpha)) for tokens, total in live]
    return (ended + rest)[:beam_size]
