"""What may not come next, against a reading of it in lists; and beams by other rules, against loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding_model import EOS, PAD, START, hash_cache, hash_step, log_softmax, next_of, random_table
from tests.parity import beam_reference
from transformer_jax.decoding import beam_search
from transformer_jax.decoding.beam_rules import TRANSFORMERS_RULE, WU_RULE, BeamRule
from transformer_jax.decoding.constraints import Constraints, Given

LIMIT = 7


def repeating(text, size):
    """The tokens after which the last ``size`` tokens of ``text`` have been there before."""
    windows = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
    return {token for token in range(6) if (*text[len(text) - size + 1 :], token) in windows}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_no_tokens_are_repeated(size):
    rng = np.random.default_rng(size)
    prompts = [rng.integers(0, 2, length) for length in (1, 2, 5, 9)]
    made = rng.integers(0, 2, (4, 8)).astype(np.int32)
    tokens = np.zeros((4, 9), np.int32)  # of which the padding on the left is a token as well
    for row, prompt in enumerate(prompts):
        tokens[row, 9 - len(prompt) :] = prompt
    given = Given(jnp.array(tokens), jnp.array([1, 2, 5, 9]), jnp.full(4, 8))
    apply = jax.jit(functools.partial(Constraints(no_repeat_ngram_size=size).apply, eos_id=EOS))
    banned = 0
    for position in range(9):
        allowed = np.asarray(apply(jnp.zeros((4, 6)), made, jnp.int32(position), given))
        for row, prompt in enumerate(prompts):
            expected = repeating([*prompt, *made[row, :position]], size)
            assert set(np.flatnonzero(np.isneginf(allowed[row]))) == expected, (row, position)
            banned += len(expected)
    assert banned > 10


def test_lengths_forced_and_banned_tokens():
    logits = jnp.array([[0.0, 1.0, 2.0, 3.0]] * 2)
    given = Given(jnp.array([[0, 1], [1, 1]]), jnp.array([1, 2]), jnp.array([4, 3]))
    made = jnp.zeros((2, 4), jnp.int32)

    def allowed(position, **constraints):
        found = Constraints(**constraints).apply(logits, made, jnp.int32(position), given, EOS)
        return [set(np.flatnonzero(row > -np.inf)) for row in np.asarray(found)]

    everything, unended = {0, 1, 2, 3}, {0, 1, 3}
    assert allowed(0, banned_ids=(1, 3)) == [{0, 2}] * 2
    assert [allowed(place, min_new_tokens=2)[0] for place in (1, 2)] == [unended, everything]
    assert allowed(1, min_length=3) == [unended, everything]
    assert allowed(0, forced_bos_id=1) == [{1}, everything]
    assert allowed(1, forced_bos_id=1) == [everything] * 2
    assert allowed(2, forced_eos_id=0) == [everything, {0}]
    assert allowed(3, forced_eos_id=0) == [{0}, everything]
    assert allowed(3, forced_eos_id=EOS, min_new_tokens=9)[0] == {EOS}


def test_a_forced_token_is_certain_and_the_rest_keep_their_probability_unless_told():
    logits = jnp.array([[0.0, 1.0, 2.0, 3.0]])
    given = Given(jnp.array([[1]]), jnp.array([1]), jnp.array([4]))

    def probabilities(**constraints):
        found = Constraints(**constraints).apply(
            logits, jnp.zeros((1, 4), jnp.int32), jnp.int32(0), given, EOS
        )
        return np.exp(np.asarray(found[0])) / np.exp(np.asarray(logits)).sum()

    every = np.exp(np.arange(4)) / np.exp(np.arange(4)).sum()
    np.testing.assert_allclose(probabilities(forced_bos_id=1), [0, 1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(probabilities(banned_ids=(3,)), [*every[:3], 0], rtol=1e-6)
    renormalized = probabilities(banned_ids=(3,), renormalize=True)
    np.testing.assert_allclose(renormalized, [*every[:3] / every[:3].sum(), 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(no_repeat_ngram_size=-1), "no_repeat_ngram_size=-1 must not be negative"),
        (dict(banned_ids=(3, 9)), "banned_ids has the token 9, the model those from 0 to 8"),
        (dict(forced_eos_id=-1), "forced_eos_id has the token -1"),
    ],
    ids=str,
)
def test_constraints_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        Constraints(**changes).check(9)


def test_a_beam_rule_that_cannot_be():
    with pytest.raises(ValueError, match="early_stopping='always' must be True, False or 'never'"):
        BeamRule(early_stopping="always")
    with pytest.raises(ValueError, match="weighing='log' must be 'wu' or 'power'"):
        BeamRule("log")


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("early_stopping", [True, False])
def test_beams_by_the_rule_of_transformers(early_stopping, length_penalty):
    rule = BeamRule("power", early_stopping, unfinished_compete=True)
    table = random_table(3, 6)
    table[:, EOS] += 1.0
    roots = np.arange(24) * 97
    found, by_wu = (search(table, roots, one, length_penalty) for one in (rule, WU_RULE))
    log_probs = log_softmax(table)
    for row, root in enumerate(roots):
        next_one = next_of(log_probs, root)
        beams = beam_reference.beam_search(
            lambda texts, of=next_one: np.stack([of(text) for text in texts]).astype(np.float64),
            beam_size=3,
            limit=LIMIT,
            eos_id=EOS,
            penalty=beam_reference.powered_length(length_penalty),
            unfinished_compete=True,
            early_stopping=early_stopping,
        )
        assert beams.margin > 1e-6
        lengths = found.lengths[row]
        tokens = [tuple(found.tokens[row, k, : lengths[k]].tolist()) for k in range(3)]
        assert tokens == [hypothesis.tokens for hypothesis in beams.hypotheses]
        scores = [hypothesis.score for hypothesis in beams.hypotheses]
        np.testing.assert_allclose(found.scores[row], scores, rtol=1e-5)
    assert (found.tokens != by_wu.tokens).any(), "the rule makes no difference"


@functools.partial(jax.jit, static_argnums=(2, 3))
def search(table, roots, rule, length_penalty):
    return beam_search(
        hash_step(table),
        hash_cache(roots),
        jnp.full(roots.shape, START),
        beam_size=3,
        length_penalty=length_penalty,
        max_length=LIMIT,
        eos_id=EOS,
        pad_id=PAD,
        rule=rule,
    )


def test_when_nothing_better_is_to_come():
    """Two of two ended; the best that lives has log P -3 after 3 tokens, and room for 6."""
    live, ended = jnp.array([-3.0, -4.0]), jnp.array([-0.4, -0.8])

    def settled(early_stopping, penalty=1.0):
        rule = BeamRule("power", early_stopping, unfinished_compete=True)
        return bool(rule.is_settled(live, ended, jnp.int32(3), jnp.int32(6), penalty))

    assert settled(True)
    assert settled(False)  # -3 / 3 is below -0.8
    assert not settled("never")  # -3 / 6 is not
    assert settled("never", penalty=-1.0)  # longer is worse, so it scores at best -3 * 3
    assert TRANSFORMERS_RULE.early_stopping is False
