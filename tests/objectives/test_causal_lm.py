"""Causal language modelling: what is predicted from what, and its loss in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.objectives.toy import ROLES, ToyTokenizer, draw, floats, log_softmax, padded
from transformer_jax.objectives.causal_lm import CausalLM

TEXT = " ".join(f"w{i}" for i in range(40))


def test_every_token_is_a_target_once_and_predicted_from_the_one_before():
    tokenizer = ToyTokenizer()
    tokens = CausalLM().encode({"inputs": TEXT}, tokenizer)
    document = [*tokenizer.encode(TEXT), ROLES["eos"]]
    assert tokens["inputs"].tolist() == document
    firsts = set()
    for seed in range(60):
        pieces = CausalLM().pieces(tokens, draw(tokenizer, 7, seed))
        assert np.concatenate([piece["targets"] for piece in pieces]).tolist() == document
        seen = np.concatenate([piece["inputs"] for piece in pieces])
        assert seen.tolist() == [ROLES["eos"], *document[:-1]]
        assert all(len(p["inputs"]) == len(p["targets"]) <= 7 for p in pieces)
        firsts.add(len(pieces[0]["targets"]))
    assert firsts == set(range(1, 8))


def test_a_document_that_fits_is_whole_and_the_same_rng_gives_the_same_pieces():
    tokenizer = ToyTokenizer()
    tokens = CausalLM().encode({"inputs": TEXT}, tokenizer)
    (piece,) = CausalLM().pieces(tokens, draw(tokenizer, 41))
    assert len(piece["targets"]) == 41
    first, second = (CausalLM().pieces(tokens, draw(tokenizer, 7, seed=5)) for _ in range(2))
    assert [p["targets"].tolist() for p in first] == [p["targets"].tolist() for p in second]


def test_loss_is_that_of_numpy_and_the_model_gets_the_inputs_alone(rng):
    logits = rng.normal(size=(3, 5, 12)).astype(np.float32)
    examples = [
        {"inputs": np.array([2, 7, 8], np.int32), "targets": np.array([7, 8, 2], np.int32)},
        {"inputs": np.array([2, 9, 9, 8], np.int32), "targets": np.array([9, 9, 8, 11], np.int32)},
    ]
    seen = {}

    def apply(variables, per_token, **arguments):
        seen.update(arguments)
        parts = [per_token(jnp.asarray(logits[:, part]), part) for part in (slice(0, 2), slice(2, 5))]
        return jax.tree.map(lambda *both: jnp.concatenate(both, 1), *parts)

    loss, sums = CausalLM().loss(apply, {}, padded(examples, 5), {"dropout": jax.random.key(0)}, train=True)
    assert set(seen) == {"inputs", "inputs_positions", "inputs_segments", "train", "rngs"}
    log_p = log_softmax(logits)
    each = [-log_p[r, i, t] for r, e in enumerate(examples) for i, t in enumerate(e["targets"])]
    np.testing.assert_allclose(loss, sum(each), rtol=1e-5)
    metrics = CausalLM().metrics(floats(sums))
    right = [logits[r, i].argmax() == t for r, e in enumerate(examples) for i, t in enumerate(e["targets"])]
    wanted = [np.mean(each), np.mean(each), np.exp(np.mean(each)), np.mean(right)]
    np.testing.assert_allclose([metrics[name] for name in CausalLM.METRICS], wanted, rtol=1e-5)


def test_in_evaluation_the_pieces_are_always_the_same_and_begin_with_a_full_one():
    tokenizer = ToyTokenizer()
    tokens = CausalLM().encode({"inputs": TEXT}, tokenizer)
    for seed in range(20):
        pieces = CausalLM().pieces(tokens, draw(tokenizer, 7, seed, train=False))
        assert [len(piece["targets"]) for piece in pieces] == [7, 7, 7, 7, 7, 6]  # 40 words and eos
