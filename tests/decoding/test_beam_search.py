"""Beam search against exhaustive search and against a plain Python reading of its docstring."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding_model import (
    EOS,
    PAD,
    PENALTIES,
    START,
    STATES,
    log_softmax,
    next_of,
    next_state,
    random_table,
    reference_beam,
    run_beam,
    run_greedy,
    score,
)
from transformer_jax.decoding import beam_search, repeat_rows


def history_step(table, roots):
    """The same model from a cache of whole histories, (layers, rows, positions), and no hash."""

    def step(tokens, cache):
        index = cache["index"][0]
        history = cache["history"].at[:, :, index].set(jnp.stack([tokens, tokens + 1]))

        def fold(position, state):
            layer = position % 2  # so that both layers must be reordered alike
            token = history[layer, :, position] - layer
            return jnp.where(position <= index, next_state(state, token), state)

        state = jax.lax.fori_loop(0, history.shape[2], fold, roots)
        return jnp.asarray(table)[state], {"history": history, "index": cache["index"] + 1}

    return step


# Oracle 1: all sequences there are.
def exhaustive(log_probs, root, limit, alpha):
    """(tokens, log P, score) of every output, ended ones first, each kind by score."""
    ended, cut = [], []

    def visit(prefix, state, total):
        if prefix and prefix[-1] == EOS:
            ended.append((prefix, total, score(total, len(prefix), alpha)))
        elif len(prefix) == limit:
            cut.append((prefix, total, score(total, len(prefix), alpha)))
        else:
            state = next_state(state, prefix[-1] if prefix else START)
            for token, log_prob in enumerate(log_probs[state]):
                if log_prob > -np.inf:
                    visit((*prefix, token), state, total + log_prob)

    visit((), root, np.float32(0))
    return sorted(ended, key=lambda h: -h[2]) + sorted(cut, key=lambda h: -h[2])


def check_hypotheses(decoded, row, expected):
    """That row ``row`` of a beam search's result is the list ``expected``, and nothing else."""
    tokens, lengths, log_probs, scores = (np.asarray(leaf[row]) for leaf in decoded)
    for place, (text, log_prob, expected_score) in enumerate(expected):
        assert tuple(tokens[place, : len(text)]) == text, f"place {place}"
        assert lengths[place] == len(text)
        assert (tokens[place, len(text) :] == PAD).all()
        np.testing.assert_allclose(log_probs[place], log_prob, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(scores[place], expected_score, rtol=1e-5, atol=1e-5)
    assert (tokens[len(expected) :] == PAD).all() and (lengths[len(expected) :] == 0).all()
    assert np.isneginf(scores[len(expected) :]).all()
    assert np.isneginf(log_probs[len(expected) :]).all()


@pytest.mark.smoke
@pytest.mark.parametrize(
    "allowed, beam_size, max_length, alpha",
    [((EOS, 3, 7), 48, 5, alpha) for alpha in PENALTIES]  # 2 ** 4 * 3 candidates in the last step
    + [((EOS, 3, 4, 7, 9), 80, 3, 0.6)],  # 4 ** 2 * 5
)
def test_a_beam_that_holds_all_candidates_is_exhaustive_search(allowed, beam_size, max_length, alpha):
    """The beam may not exceed the vocabulary, so most of a large one is made impossible."""
    table = random_table(0, beam_size, allowed=allowed)
    log_probs = log_softmax(table)
    roots, limits = np.arange(8) * 77, np.array([max_length, max_length - 1, 9, 1] * 2)
    decoded = run_beam(table, roots, limits, beam_size, alpha, max_length)
    for row, root in enumerate(roots):
        expected = exhaustive(log_probs, root, int(min(limits[row], max_length)), alpha)
        check_hypotheses(decoded, row, expected[:beam_size])


@pytest.mark.parametrize(
    "beam_size, vocab_size, alpha",
    [(3, 5, 0.0), (2, 3, 0.6), (4, 9, 0.6), (3, 3, 1.5), (3, 5, -0.8)],
)
def test_small_beams_are_what_the_docstring_says(beam_size, vocab_size, alpha):
    roots = np.arange(16) * 97
    limits = np.array([8, 1, 2, 0, 5, 8, 100, 8] * 2)
    for seed, masked in ((1, 0.0), (2, 0.4)):
        table = random_table(seed, vocab_size, masked)
        decoded = run_beam(table, roots, limits, beam_size, alpha, 8)
        for row, root in enumerate(roots):
            limit = int(min(limits[row], 8))
            expected = reference_beam(next_of(log_softmax(table), root), limit, alpha, beam_size)
            check_hypotheses(decoded, row, expected)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_ties_are_broken_as_the_docstring_says(data):
    """Logits are 0 or -inf, and rows have 1, 2 or 4 zeros: nearly everything is a tie."""
    seed = data.draw(st.integers(0, 2**31))
    beam_size = data.draw(st.sampled_from((2, 3)))
    rng = np.random.default_rng(seed)
    order = rng.random((STATES, 5)).argsort(axis=1)
    possible = order < rng.choice([0, 1, 2, 4], (STATES, 1), p=[0.1, 0.2, 0.35, 0.35])
    table = np.where(possible, 0, -np.inf).astype(np.float32)
    roots, limits = rng.integers(0, STATES, 8), rng.integers(0, 7, 8)
    decoded = run_beam(table, roots, limits, beam_size, 0.0, 6)
    greedy = run_greedy(table, roots, limits, 6)
    for row, root in enumerate(roots):
        limit = int(limits[row])
        expected = reference_beam(next_of(log_softmax(table), root), limit, 0.0, beam_size)
        check_hypotheses(decoded, row, expected)
        expected = reference_beam(next_of(log_softmax(table), root), limit, 0.0, 1)
        check_hypotheses([leaf[:, None] for leaf in greedy], row, expected)
    assert not any(np.isnan(leaf).any() for leaf in (*decoded[2:], *greedy[2:]))


def test_penalty_changes_the_order_and_what_is_cut_comes_last():
    """P(eos) is 0.4 at first, and 1 after token 3: eos alone wins by probability, not by score."""
    table = np.full((STATES, 5), -np.inf, np.float32)
    first = next_state(7, START)
    table[first, EOS], table[first, 3], table[first, 4] = np.log([0.4, 0.35, 0.25])
    table[next_state(first, 3), EOS] = 0
    table[:, 4] = np.where(np.isneginf(table).all(axis=1), 0, table[:, 4])  # 4 never ends

    def best(alpha):
        return run_beam(table, np.array([7]), np.array([6]), 3, alpha, 6)

    assert [tuple(t) for t in np.asarray(best(0.0).tokens[0])] == [
        (EOS, 0, 0, 0, 0, 0),
        (3, EOS, 0, 0, 0, 0),
        (4, 4, 4, 4, 4, 4),
    ]
    decoded = best(2.0)
    assert tuple(decoded.tokens[0, 0]) == (3, EOS, 0, 0, 0, 0)
    assert decoded.scores[0, 2] > decoded.scores[0, 0], "the cut one has the best score, yet is last"
    np.testing.assert_allclose(decoded.scores[0, 0], math.log(0.35) / (7 / 6) ** 2, rtol=1e-5)
    np.testing.assert_array_equal(decoded.lengths[0], [2, 1, 6])


@pytest.mark.parametrize("alpha", [1.5, -0.8])
def test_a_beam_of_one_is_greedy(alpha):
    table = random_table(3, 6, masked=0.3)
    roots, limits = np.arange(200) * 19, np.arange(200) % 12
    beam = run_beam(table, roots, limits, 1, alpha, 10)
    greedy = run_greedy(table, roots, limits, 10)
    np.testing.assert_array_equal(beam.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(beam.lengths[:, 0], greedy.lengths)
    np.testing.assert_array_equal(beam.log_probs[:, 0], greedy.log_probs)
    np.testing.assert_array_equal(greedy.scores, greedy.log_probs)


def test_stacked_cache_is_reordered_on_its_axis():
    """Histories in a (layers, rows, positions) cache with a stacked index decode as the hash."""
    table, beam_size, length = random_table(5, 7), 3, 6
    roots = jnp.array([3, 500, 999, 2000])

    @jax.jit
    def stacked():
        return beam_search(
            history_step(table, repeat_rows(roots, beam_size)),
            {"history": jnp.zeros((2, 4, length), jnp.int32), "index": jnp.zeros(2, jnp.int32)},
            jnp.full(4, START),
            beam_size=beam_size,
            length_penalty=0.6,
            max_length=length,
            eos_id=EOS,
            pad_id=PAD,
            cache_axis=1,
        )

    expected = run_beam(table, roots, np.full(4, length), beam_size, 0.6, length)
    jax.tree.map(np.testing.assert_array_equal, stacked(), expected)
    # The beams did change places, or this would prove nothing: some text's second best differs from
    # its best in the first token, and both have come through steps that others led.
    firsts = np.asarray(expected.tokens[:, :, 0])
    assert (firsts != firsts[:, :1]).any()


def test_a_text_is_decoded_alike_in_every_batch():
    table = random_table(6, 8, masked=0.2)
    roots, limits = np.arange(12) * 301, np.array([9, 3, 0, 9, 9, 1, 9, 9, 5, 9, 9, 2])
    together = run_beam(table, roots, limits, 4, 0.6, 9)
    order = np.random.default_rng(0).permutation(12)
    for part in (order[:4], order[4:8], order[8:]):
        apart = run_beam(table, roots[part], limits[part], 4, 0.6, 9)
        jax.tree.map(np.testing.assert_array_equal, apart, type(together)(*(x[part] for x in together)))
