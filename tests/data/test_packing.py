"""Plans of batches and the arrays they become, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.data import pad_batch
from transformer_jax.data.examples import DataError
from transformer_jax.data.packing import (
    BatchPlan,
    nearest_sizes,
    plan_buckets,
    plan_packed,
    rows_per_batch,
)
from transformer_jax.types import BATCH_KEYS, SIDES

BUCKETS = (4, 7, 12)
LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=150)


def as_array(lengths):
    return np.array(lengths, np.int64).reshape(-1, 2)


@pytest.mark.parametrize(
    ("tokens", "length", "rows"),
    [(4096, 64, 64), (4096, 60, 64), (4096, 50, 80), (128, 16, 8), (135, 8, 16), (10, 100, 8)],
)
def test_rows_are_a_multiple_of_eight(tokens, length, rows):
    assert rows_per_batch(tokens, length) == rows


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 2**40))
def test_buckets_place_every_example_once_and_tightly(lengths, seed):
    plans, carried = plan_buckets(as_array(lengths), BUCKETS, 64, seed)
    placed = [example for plan in plans for row in plan.rows for example in row]
    assert sorted(placed + carried) == list(range(len(lengths)))
    for plan in plans:
        assert len(plan.rows) == rows_per_batch(64, plan.length)
        for row in plan.rows:
            (example,) = row
            assert plan.length == min(b for b in BUCKETS if b >= max(lengths[example]))
    for bucket in BUCKETS:
        waiting = [e for e in carried if min(b for b in BUCKETS if b >= max(lengths[e])) == bucket]
        assert len(waiting) < rows_per_batch(64, bucket)
        served = [e for plan in plans if plan.length == bucket for row in plan.rows for e in row]
        assert not waiting or not served or max(served) < min(waiting)  # first come, first served


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 2**40))
def test_packed_rows_hold_every_example_once(lengths, seed):
    plans, carried = plan_packed(as_array(lengths), 12, 100, seed)
    placed = [example for plan in plans for row in plan.rows for example in row]
    assert sorted(placed + carried) == list(range(len(lengths)))
    for plan in plans:
        assert plan.length == 12 and len(plan.rows) == rows_per_batch(100, 12) == 8
        for row in plan.rows:
            assert row and (as_array([lengths[e] for e in row]).sum(axis=0) <= 12).all()


def test_packing_fills_rows_well(rng):
    lengths = rng.integers(3, 25, (2_000, 1)) + rng.integers(0, 4, (2_000, 2))
    plans, carried = plan_packed(lengths, 64, 64 * 16, 0)
    used = sum(lengths[e].sum() for plan in plans for row in plan.rows for e in row)
    assert used / (2 * 64 * 16 * len(plans)) > 0.9
    assert len(carried) < 200


@pytest.mark.parametrize("plan", [plan_buckets, plan_packed])
def test_the_order_is_a_function_of_the_seed(plan, rng):
    lengths = rng.integers(1, 12, (400, 2))
    limit = BUCKETS if plan is plan_buckets else 12
    first = plan(lengths, limit, 64, 5)
    assert plan(lengths, limit, 64, 5) == first
    assert plan(lengths, limit, 64, 6) != first


def test_batches_are_not_in_the_order_of_their_lengths(rng):
    plans, _ = plan_buckets(rng.integers(1, 12, (600, 2)), BUCKETS, 64, 0)
    found = [plan.length for plan in plans]
    assert found != sorted(found) and found != sorted(found, reverse=True)


def example(*lengths, start=10):
    return {side: np.arange(start, start + n, dtype=np.int32) for side, n in zip(SIDES, lengths, strict=True)}


def test_a_filled_batch_by_hand():
    rows = [[example(2, 1), example(3, 4, start=20)], [example(1, 5)], []]
    batch = pad_batch(rows, 6)
    assert tuple(batch) == BATCH_KEYS
    assert all(a.shape == (3, 6) and a.dtype == np.int32 for a in batch.values())
    expected = {
        "inputs": [[10, 11, 20, 21, 22, 0], [10, 0, 0, 0, 0, 0]],
        "inputs_positions": [[0, 1, 0, 1, 2, 0], [0] * 6],
        "inputs_segments": [[1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0]],
        "targets": [[10, 20, 21, 22, 23, 0], [10, 11, 12, 13, 14, 0]],
        "targets_positions": [[0, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0]],
        "targets_segments": [[1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0]],
    }
    for key, first_rows in expected.items():
        np.testing.assert_array_equal(batch[key], [*first_rows, [0] * 6], err_msg=key)


def test_keys_go_into_a_batch_by_their_names():
    def one(start, length, label):
        return {
            "labels": np.array(label, np.int32),
            "inputs": np.arange(start, start + length, dtype=np.int32),
            "inputs_types": np.arange(length, dtype=np.int32) % 2,
            "answer_span": np.array([label, label + 1], np.int32),
            "image": np.full((2, 1, 3), label, np.uint8),
            "_words": np.arange(3),
        }

    batch = pad_batch([[one(10, 3, 4)], [], [one(20, 1, 0)]], 4)
    expected = {
        "inputs": [[10, 11, 12, 0], [0] * 4, [20, 0, 0, 0]],
        "inputs_positions": [[0, 1, 2, 0], [0] * 4, [0] * 4],
        "inputs_segments": [[1, 1, 1, 0], [0] * 4, [1, 0, 0, 0]],
        "inputs_types": [[0, 1, 0, 0], [0] * 4, [0] * 4],
        "labels": [4, -1, 0],
        "answer_span": [[4, 5], [-1, -1], [0, 1]],
        "image": np.array([4, 0, 0])[:, None, None, None] * np.ones((1, 2, 1, 3)),
    }
    assert set(batch) == set(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(batch[key], array, err_msg=key)
        assert batch[key].dtype == (np.uint8 if key == "image" else np.int32)


def test_rows_of_prompts_end_in_the_last_column():
    rows = [[example(2, 1)], [], [{**example(3, 1), "inputs_types": np.array([1, 0, 1], np.int32)}]]
    rows[0][0]["inputs_types"] = np.array([1, 1], np.int32)
    batch = pad_batch(rows, 4, pad_id=9, on_the_left=True)
    expected = {
        "inputs": [[9, 9, 10, 11], [9] * 4, [9, 10, 11, 12]],
        "inputs_positions": [[0, 0, 0, 1], [0] * 4, [0, 0, 1, 2]],
        "inputs_segments": [[0, 0, 1, 1], [0] * 4, [0, 1, 1, 1]],
        "inputs_types": [[0, 0, 1, 1], [0] * 4, [0, 1, 0, 1]],
        "targets": [[9, 9, 9, 10], [9] * 4, [9, 9, 9, 10]],
    }
    for key, array in expected.items():
        np.testing.assert_array_equal(batch[key], array, err_msg=key)


def test_rows_without_examples_are_like_the_one_given():
    like = {"targets": np.ones(3, np.int32), "targets_weights": np.ones(3, np.int32)}
    batch = pad_batch([[], []], 5, like)
    assert set(batch) == {f"targets{part}" for part in ("", "_positions", "_segments", "_weights")}
    assert all(array.shape == (2, 5) and not array.any() for array in batch.values())


def test_examples_that_do_not_go_together():
    one = {"inputs": np.ones(2, np.int32), "labels": np.array(1, np.int32)}
    with pytest.raises(DataError, match=r"labels cannot be packed, because a row has only one"):
        pad_batch([[one, one]], 5)
    with pytest.raises(
        DataError, match=r"examples with different keys: \['inputs'\] and \['inputs', 'labels'\]"
    ):
        pad_batch([[one], [{"inputs": one["inputs"]}]], 5)
    images = [{"images": np.zeros((side, 2, 1), np.uint8)} for side in (2, 3)]
    with pytest.raises(
        DataError, match=r"images of shape \(3, 2, 1\) cannot be in one batch with .*\(2, 2, 1\)"
    ):
        pad_batch([[image] for image in images], 5)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=80))
def test_examples_can_be_read_back_from_packed_batches(lengths):
    examples = [example(*both, start=100 * i + 4) for i, both in enumerate(lengths)]
    plans, carried = plan_packed(as_array(lengths), 12, 96, 0)
    plans.append(BatchPlan(12, tuple((e,) for e in carried)))
    seen = []
    for plan in plans:
        batch = pad_batch([[examples[e] for e in row] for row in plan.rows], plan.length, examples[0])
        for row in range(len(plan.rows)):
            segments = {side: batch[f"{side}_segments"][row] for side in SIDES}
            for segment in range(1, segments["inputs"].max() + 1):
                found = [batch[side][row][segments[side] == segment] for side in SIDES]
                number = (int(found[0][0]) - 4) // 100
                seen.append(number)
                for side, tokens in zip(SIDES, found, strict=True):
                    np.testing.assert_array_equal(tokens, examples[number][side])
                    positions = batch[f"{side}_positions"][row][segments[side] == segment]
                    np.testing.assert_array_equal(positions, np.arange(len(tokens)))
            for side in SIDES:
                padding = segments[side] == 0
                assert not batch[side][row][padding].any()
                assert not batch[f"{side}_positions"][row][padding].any()
    assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("tokens", "lengths", "parts"),
    [(25_600, (16, 32, 64, 128, 256), 16), (256, (16, 24, 48), 3), (900, (64,), 1), (100, (40, 24), 5)],
)
def test_the_nearest_sizes_of_batches_that_divide_are_those_of_trying_all(tokens, lengths, parts):
    def divides(size):
        return all(max(size // length // 8 * 8, 8) % parts == 0 for length in lengths)

    def rows(size):
        return [rows_per_batch(size, length) for length in lengths]

    found = nearest_sizes(tokens, lengths, 0, parts)
    below = next((size for size in range(tokens, 0, -1) if divides(size)), None)
    more = range(tokens + 1, 8 * tokens)  # of more it says nothing
    above = next((size for size in more if divides(size) and rows(size) != rows(tokens)), None)
    assert [rows(size) for size in found] == [rows(size) for size in (below, above) if size is not None]
    assert all(divides(size) for size in found)


def test_the_nearest_numbers_of_rows_that_divide():
    assert nearest_sizes(9, (64,), 9, 8) == [8, 16]
    assert nearest_sizes(3, (64,), 3, 8) == [8]
