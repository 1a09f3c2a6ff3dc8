"""Greedy search and sampling, and what all of decoding has in common."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.decoding_model import (
    EOS,
    PAD,
    START,
    STATES,
    hash_cache,
    hash_step,
    log_softmax,
    next_state,
    random_table,
    run_beam,
    run_greedy,
)
from transformer_jax.decoding import Decoded, beam_search, greedy_search, repeat_rows, sample
from transformer_jax.decoding.settings import DecodingSettings
from transformer_jax.runs.experiment import EvaluateConfig

pytestmark = pytest.mark.smoke


def test_greedy_takes_the_most_probable_token_until_eos_or_limit():
    table = random_table(4, 5, masked=0.45)
    log_probs = log_softmax(table)
    roots, limits = np.arange(64) * 53, np.arange(64) % 9
    decoded = run_greedy(table, roots, limits, 7)
    for row, root in enumerate(roots):
        state, tokens, total = root, [], 0.0
        while len(tokens) < min(limits[row], 7) and (not tokens or tokens[-1] != EOS):
            state = next_state(state, tokens[-1] if tokens else START)
            tokens.append(int(log_probs[state].argmax()))
            total += float(log_probs[state].max())
            if total == -np.inf:  # no token is possible: no output
                tokens = []
                break
        assert decoded.lengths[row] == len(tokens)
        assert list(decoded.tokens[row]) == tokens + [PAD] * (7 - len(tokens))
        np.testing.assert_allclose(decoded.log_probs[row], total, rtol=1e-5, atol=1e-6)
    assert np.isneginf(decoded.log_probs).any() and (np.asarray(decoded.lengths) == 7).any()


def count_steps(decode, table, roots):
    """How many times the loop really ran its step."""
    calls = []

    def step(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        return hash_step(table)(tokens, cache)

    start_ids = jnp.full(len(roots), START)
    options: dict[str, Any] = {"max_length": 50, "eos_id": EOS, "pad_id": PAD}
    jax.block_until_ready(jax.jit(lambda: decode(step, hash_cache(roots), start_ids, **options))())
    jax.effects_barrier()
    return len(calls)


def test_loops_end_when_all_rows_are_done():
    table = np.zeros((STATES, 4), np.float32)
    table[:, EOS] = 9  # a beam of 2 has its second ended hypothesis in the second step
    beam = functools.partial(beam_search, beam_size=2, length_penalty=0.6)
    assert count_steps(greedy_search, table, [1, 2]) == 1
    assert count_steps(beam, table, [1, 2]) == 2
    impossible = np.full((STATES, 4), -np.inf, np.float32)
    assert count_steps(greedy_search, impossible, [1, 2]) == 1
    assert count_steps(beam, impossible, [1, 2]) == 1


def test_a_second_call_does_not_trace_again():
    traces = []

    @jax.jit
    def decode(table, roots):
        def step(tokens, cache):
            traces.append(1)
            return hash_step(table)(tokens, cache)

        cache, start_ids = hash_cache(roots), jnp.full(roots.shape, START)
        options: dict[str, Any] = {"max_length": 5, "eos_id": EOS, "pad_id": PAD}
        return (
            greedy_search(step, cache, start_ids, **options),
            sample(step, cache, start_ids, jax.random.key(0), top_k=3, top_p=0.9, **options),
            beam_search(step, cache, start_ids, beam_size=2, length_penalty=0.6, **options),
        )

    decode(random_table(0, 5), np.array([1, 2]))
    first = len(traces)
    decode(random_table(1, 5), np.array([3, 4]))
    assert len(traces) == first


@functools.partial(jax.jit, static_argnames=("max_length", "temperature", "top_k", "top_p"))
def run_sample(table, roots, row_ids=None, seed=0, max_length=1, temperature=1.0, top_k=None, top_p=None):
    return sample(
        hash_step(table),
        hash_cache(roots),
        jnp.full(roots.shape, START),
        jax.random.key(seed),
        max_length=max_length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        row_ids=row_ids,
        eos_id=EOS,
        pad_id=PAD,
    )


def truncated_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    """What ``sample`` should draw from, in float64, token by token."""
    weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    order = sorted(range(len(logits)), key=lambda token: (-weights[token], token))
    order = order[:top_k]
    total, kept, mass = sum(weights[token] for token in order), [], 0.0
    for token in order:
        kept.append(token)
        mass += weights[token] / total
        if top_p is not None and mass >= top_p:
            break
    result = np.zeros(len(logits))
    result[kept] = weights[kept] / weights[kept].sum()
    return result


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5, "top_p": 1.0},
        {"temperature": 2.5, "top_k": 4},
        {"top_p": 0.7},
        {"temperature": 1.3, "top_k": 5, "top_p": 0.85},
    ],
    ids=str,
)
def test_samples_have_the_truncated_distribution(options):
    table = random_table(11, 10) / 2
    table[:, 8], table[:, 4] = table[:, 5], -np.inf  # a tie, and a token that never comes
    draws = 20_000
    decoded = run_sample(table, np.full(draws, 42), **options)
    logits = table[next_state(42, START)]
    expected = truncated_distribution(logits, **options) * draws
    tokens = np.asarray(decoded.tokens[:, 0])
    observed = np.bincount(tokens, minlength=10)
    possible = expected > 0
    assert observed[~possible].sum() == 0
    assert scipy.stats.chisquare(observed[possible], expected[possible]).pvalue > 0.01
    # The log-probabilities are the model's, without temperature and truncation.
    np.testing.assert_allclose(decoded.log_probs, log_softmax(logits[None])[0][tokens], rtol=1e-5)


def test_top_k_keeps_exactly_k_of_equal_tokens():
    table = np.zeros((STATES, 6), np.float32)
    tokens = np.asarray(run_sample(table, np.full(500, 1), top_k=2).tokens)
    assert set(tokens.ravel()) == {0, 1}
    tokens = np.asarray(run_sample(table, np.full(500, 1), top_p=0.5).tokens)
    assert set(tokens.ravel()) == {0, 1, 2}, "three sixths are a mass of at least 0.5"


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}], ids=str)
def test_sampling_from_one_token_is_greedy(options):
    table = random_table(12, 6, masked=0.4)
    roots = np.arange(48) * 31
    greedy = run_greedy(table, roots, np.full(48, 6), 6)
    sampled = run_sample(table, roots, max_length=6, **options)
    jax.tree.map(np.testing.assert_array_equal, sampled, greedy)
    assert not any(np.isnan(leaf).any() for leaf in sampled[2:])


def test_positions_and_rows_are_drawn_independently():
    table = np.zeros((STATES, 4), np.float32)
    table[:, EOS] = -np.inf
    tokens = np.asarray(run_sample(table, np.full(9_000, 3), max_length=2).tokens)
    pairs = np.array(list(itertools.product((0, 1, 3), repeat=2)))
    in_row = [(tokens == pair).all(axis=1).sum() for pair in pairs]
    next_row = [(np.stack([tokens[:-1, 0], tokens[1:, 0]], 1) == p).all(axis=1).sum() for p in pairs]
    for observed in (in_row, next_row):
        assert scipy.stats.chisquare(observed).pvalue > 0.01


def test_a_draw_depends_on_key_and_row_id_only():
    table, roots, ids = random_table(13, 8), np.arange(20) * 77, np.arange(100, 120)
    together = run_sample(table, roots, ids, max_length=6)
    part = np.array([17, 2, 9])
    apart = run_sample(table, roots[part], ids[part], max_length=6)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[part]), apart, together)
    other = run_sample(table, roots, ids, seed=1, max_length=6)
    assert (np.asarray(other.tokens) != np.asarray(together.tokens)).any()


def test_bfloat16_logits_are_summed_in_float32():
    table = jnp.asarray(random_table(14, 6), jnp.bfloat16)
    roots, limits = np.arange(4) * 9, np.full(4, 8)
    as_float32 = np.asarray(table, np.float32)
    decoded = run_beam(table, roots, limits, 2, 0.6, 8)
    assert decoded.scores.dtype == jnp.float32
    expected = run_beam(as_float32, roots, limits, 2, 0.6, 8)
    jax.tree.map(np.testing.assert_array_equal, decoded, expected)


def test_vocabularies_of_one_and_two_tokens():
    def step(tokens, cache):
        return jnp.zeros((*tokens.shape, vocab_size)), cache

    for vocab_size in (1, 2):
        decoded = beam_search(
            step,
            {},
            jnp.zeros(2, jnp.int32),
            beam_size=vocab_size,
            length_penalty=0.6,
            max_length=4,
            eos_id=0,
            pad_id=0,
        )
        np.testing.assert_array_equal(decoded.lengths, [[1, 2][:vocab_size]] * 2)
    assert isinstance(decoded, Decoded)


GREEDY: dict[str, Any] = {"max_length": 4, "eos_id": EOS, "pad_id": PAD}
BEAM: dict[str, Any] = {**GREEDY, "beam_size": 2, "length_penalty": 0.6}
SAMPLE: dict[str, Any] = {**GREEDY, "rng": jax.random.key(0)}


@pytest.mark.parametrize(
    "decode, options, message",
    [
        (greedy_search, {**GREEDY, "max_length": 0}, "max_length=0 must be at least 1"),
        (greedy_search, {**GREEDY, "eos_id": 5}, "eos_id=5 is outside the vocabulary of 5"),
        (
            greedy_search,
            {**GREEDY, "max_lengths": jnp.ones(2, jnp.int32)},
            "max_lengths has 2 rows",
        ),
        (sample, {**SAMPLE, "temperature": 0.0}, "use greedy_search"),
        (sample, {**SAMPLE, "temperature": float("nan")}, "temperature=nan must be positive"),
        (sample, {**SAMPLE, "top_k": 0}, "top_k=0 must be at least 1"),
        (sample, {**SAMPLE, "top_k": 6}, "top_k=6 exceeds the vocabulary of 5"),
        (sample, {**SAMPLE, "top_p": 0.0}, "top_p=0.0 must be above 0"),
        (sample, {**SAMPLE, "top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        (sample, {**SAMPLE, "row_ids": jnp.arange(4)}, "row_ids has 4 rows, but start_ids has 3"),
        (beam_search, {**BEAM, "beam_size": 0}, "beam_size=0 must be at least 1"),
        (beam_search, {**BEAM, "beam_size": 6}, "beam_size=6 exceeds the vocabulary of 5"),
        (beam_search, {**BEAM, "length_penalty": 9.0}, "length_penalty=9.0 must be from -5"),
        (beam_search, {**BEAM, "length_penalty": float("nan")}, "length_penalty=nan must be from"),
        (beam_search, {**BEAM, "max_length": -1}, "max_length=-1 must be at least 1"),
        (beam_search, {**BEAM, "cache_axis": -1}, "cache_axis=-1 must not be negative"),
        (beam_search, {**BEAM, "max_lengths": jnp.ones(1, jnp.int32)}, "max_lengths has 1 rows"),
    ],
)
def test_bad_arguments_are_named(decode, options, message):
    step = hash_step(jnp.asarray(random_table(0, 5)))
    with pytest.raises(ValueError, match=message):
        decode(step, hash_cache(np.arange(3)), jnp.full(3, START), **options)


def test_a_cache_with_other_rows_is_named():
    with pytest.raises(ValueError, match=r"cache\['state'\] of shape \(4,\).* has 4 rows, but .* 3"):
        beam_search(hash_step(None), hash_cache(np.arange(4)), jnp.full(3, START), **BEAM)


def test_logits_of_another_shape_are_named():
    def step(tokens, cache):
        return jnp.zeros((*tokens.shape, 1, 5)), cache

    with pytest.raises(ValueError, match=r"logits of shape \(3, 1, 5\), not \(3, vocabulary\)"):
        greedy_search(step, {}, jnp.full(3, START), **GREEDY)


def test_repeat_rows_keeps_a_texts_rows_together():
    tree = {"a": jnp.array([[1, 2], [3, 4]]), "shared": jnp.array(7)}
    repeated = repeat_rows(tree, 2)
    np.testing.assert_array_equal(repeated["a"], [[1, 2], [1, 2], [3, 4], [3, 4]])
    assert repeated["shared"] == 7
    repeated = repeat_rows({"a": tree["a"], "index": jnp.array([5, 6])}, 2, axis=1)
    np.testing.assert_array_equal(repeated["a"], [[1, 1, 2, 2], [3, 3, 4, 4]])
    np.testing.assert_array_equal(repeated["index"], [5, 6])


def test_settings_of_decoding_alone_have_nothing_of_a_subclass():
    settings = EvaluateConfig(beam_size=1, temperature=0.5, top_k=3, top_p=0.7, seed=9, length_penalty=1.0)
    alone = DecodingSettings(1, 1.0, 0.5, 3, 0.7, 9)
    assert type(settings.decoding) is DecodingSettings and settings.decoding == alone
