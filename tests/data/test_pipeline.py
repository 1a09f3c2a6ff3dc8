"""The pipeline: nothing lost, nothing doubled, everything counted, every state replays exactly."""

import dataclasses
import functools
import json
from collections import Counter
from typing import Any

import grain
import numpy as np
import pytest

from tests.started_processes import run_python
from transformer_jax.data import DataConfig, evaluation_batches, training_iterator
from transformer_jax.data import token_examples as module
from transformer_jax.data.examples import DataError, MemorySource
from transformer_jax.types import BATCH_KEYS, EOS_ID, SIDES

NUM_EXAMPLES = 160
BUCKETS = DataConfig(
    max_length=16, buckets=(6, 10), tokens_per_batch=96, window=32, seed=7, batching="buckets"
)
PACKED = DataConfig(max_length=16, tokens_per_batch=200, window=32, seed=7, batching="packed")
CONFIGS = pytest.mark.parametrize("config", [BUCKETS, PACKED], ids=["buckets", "packed"])


def make_source():
    """Example i's text is its number, many times over; every 20th is too long, one is blank."""
    rng = np.random.default_rng(1)
    sides = []
    for _ in SIDES:
        counts = rng.integers(1, 16, NUM_EXAMPLES)  # with <eos>, at most the 16 allowed
        counts[::20] = 30
        sides.append([" ".join([str(i)] * count) for i, count in enumerate(counts)])
    sides[1][10] = " \t"
    return pairs(*sides)


def pairs(inputs, targets):
    return MemorySource({"inputs": inputs, "targets": targets})


class Plain:
    """Each example is one piece: its numbers, with ``encode`` as the caller may want it."""

    def __init__(self, encode=None):
        self.encode = encode or encode_numbers

    def pieces(self, tokens, rng, draw_other):
        return [tokens]


def encode_numbers(text):
    ids = {side: [int(word) + 10 for word in text[side].split()] for side in SIDES}
    return {side: np.array([*ids[side], EOS_ID], np.int32) for side in SIDES}


PLAIN = Plain()


TRAINABLE = [i for i in range(NUM_EXAMPLES) if i % 20 and i != 10]


def iterator(config, **processes):
    return training_iterator(config, make_source(), PLAIN, **processes)


def numbers_in(batch):
    """The examples in a batch, each checked to be whole and in the same segment on both sides."""
    source, found = make_source(), []
    for row in range(len(batch["inputs"])):
        segments = [batch[f"{side}_segments"][row] for side in SIDES]
        assert segments[0].max() == segments[1].max() >= 1
        for segment in range(1, segments[0].max() + 1):
            number = int(batch["inputs"][row][segments[0] == segment][0]) - 10
            for side, where in zip(SIDES, segments, strict=True):
                tokens = batch[side][row][where == segment]
                np.testing.assert_array_equal(tokens, encode_numbers(source.read([number])[0])[side])
            found.append(number)
    return found


def assert_same(one, other):
    assert tuple(one) == tuple(other) == BATCH_KEYS
    for key in BATCH_KEYS:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@functools.cache  # Grain is slow in one thread while another one is busy
def example_at(place):
    order: Any = grain.MapDataset.range(NUM_EXAMPLES).seed(7).shuffle().repeat()
    return order[place]


@CONFIGS
def test_every_epoch_has_every_example_once(config):
    batches = iterator(config)
    emitted, checked = Counter(), 0
    while checked < 5:
        numbers = numbers_in(next(batches))
        state = batches.get_state()
        epochs, rest = divmod(state["start"], NUM_EXAMPLES)
        if epochs > checked and not rest:  # the window before was the last of an epoch
            waiting = Counter(example_at(place) for place, _ in state["carried"])
            assert emitted + waiting == {number: epochs for number in TRAINABLE}
            checked = epochs
        emitted.update(numbers)
        assert batches.examples == emitted.total()


@CONFIGS
def test_what_is_left_out_is_counted_exactly(config):
    batches = iterator(config)
    assert (batches.filtered, batches.blank, batches.examples, batches.epoch) == (0, 0, 0, 0)
    source = make_source()
    for _ in range(25):
        next(batches)
        state = batches.get_state()
        # Of the first epoch: a pair that is left out in every epoch is one pair.
        read = [example_at(place) for place in range(min(state["start"] + config.window, NUM_EXAMPLES))]
        words = [max(len(source.read([i])[0][side].split()) for side in SIDES) for i in read]
        assert batches.filtered == sum(count + 1 > 16 for count in words)
        assert batches.blank == read.count(10)
        left_out = batches.filtered + batches.blank
        assert batches.epoch == batches.examples / (NUM_EXAMPLES - left_out)
    assert batches.epoch > 1


@CONFIGS
def test_shapes_are_few_and_divisible(config):
    batches = iterator(config)
    shapes = {next(batches)["inputs"].shape for _ in range(60)}
    expected = {(16, 6), (8, 10), (8, 16)} if config is BUCKETS else {(8, 16)}
    assert shapes == expected and len(shapes) == len(config.lengths)


@pytest.mark.smoke
@CONFIGS
def test_every_state_replays_exactly_over_two_epochs(config):
    batches = iterator(config)
    states, expected, counts = [], [], []
    while batches.epoch < 2.2:
        states.append(json.dumps(batches.get_state()))
        counts.append((batches.filtered, batches.blank, batches.examples, batches.epoch))
        expected.append(next(batches))
    for start in range(len(states) - 2):
        again = iterator(config)
        again.set_state(json.loads(states[start]))
        assert (again.filtered, again.blank, again.examples, again.epoch) == counts[start]
        for offset in range(3 if start % 10 else len(states) - start):
            assert json.dumps(again.get_state()) == states[start + offset]
            assert_same(next(again), expected[start + offset])
        again.close()


def test_going_back_in_a_running_iterator():
    batches = iterator(BUCKETS)
    for _ in range(5):
        next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(12)]
    batches.set_state(state)
    for batch in expected:
        assert_same(next(batches), batch)


def test_a_state_handed_out_does_not_change():
    batches = iterator(BUCKETS)
    next(batches)
    state = batches.get_state()
    before = json.dumps(state)
    for _ in range(20):
        next(batches)
    assert json.dumps(state) == before
    state = batches.get_state()
    before = json.dumps(state)
    state["carried"].append(3)
    state["settings"]["seed"] = 8
    assert json.dumps(batches.get_state()) == before


@pytest.mark.smoke
@CONFIGS
@pytest.mark.parametrize("process_count", [2, 8])
def test_processes_share_each_batch(config, process_count):
    whole = iterator(config)
    parts = [iterator(config, process_index=i, process_count=process_count) for i in range(process_count)]
    for _ in range(8):
        expected, found = next(whole), [next(part) for part in parts]
        assert_same({key: np.concatenate([part[key] for part in found]) for key in BATCH_KEYS}, expected)
        assert all(part.get_state() == whole.get_state() for part in parts)
    alone = iterator(config)  # a checkpoint moves to another number of processes
    alone.set_state(parts[-1].get_state())
    assert_same(next(alone), next(whole))


@CONFIGS
def test_the_order_depends_on_epoch_and_seed(config):
    def first_numbers(seed, skip):
        batches = iterator(dataclasses.replace(config, seed=seed))
        while batches.get_state()["start"] < skip:
            next(batches)
        return [numbers_in(next(batches)) for _ in range(3)]

    assert first_numbers(7, 0) == first_numbers(7, 0)
    assert first_numbers(7, 0) != first_numbers(8, 0)
    assert first_numbers(7, 0) != first_numbers(7, NUM_EXAMPLES)


@pytest.mark.parametrize("space", [0, 10, 1_000])
def test_a_second_epoch_does_not_tokenize_again(monkeypatch, space):
    monkeypatch.setattr(module, "CACHED_EXAMPLES", space)
    calls = Counter()

    def counted(text):
        calls[text["inputs"]] += 1
        return encode_numbers(text)

    batches = training_iterator(BUCKETS, make_source(), Plain(counted))
    expected = iterator(BUCKETS)
    while batches.epoch < 2:
        assert_same(next(batches), next(expected))
    batches.close()
    once = sum(count == 1 for count in calls.values())
    if space == 1_000:
        assert once == len(calls) == NUM_EXAMPLES - 1  # the blank one needs no tokens
    else:
        assert space - 1 <= once <= space


def test_fewer_examples_than_rows():
    source = pairs(["1", "2", "3"], ["1", "2", "3"])
    batches = training_iterator(BUCKETS, source, PLAIN)
    emitted = Counter()
    for _ in range(6):
        emitted.update((next(batches)["inputs"][:, 0] - 10).tolist())
    assert emitted.total() == 6 * 16 and max(emitted.values()) - min(emitted.values()) <= 1


def test_no_pair_to_train_on():
    source = pairs(["1 " * 20, "", "3"], ["1", "2", "3 " * 20])
    batches = training_iterator(BUCKETS, source, PLAIN)
    with pytest.raises(DataError, match=r"none of the 3 examples .*max_length=16 .* blank"):
        next(batches)


def test_a_failing_transform_reaches_the_caller():
    def fail(text):
        raise RuntimeError(f"cannot do {text['inputs'][:2]}")

    batches = training_iterator(BUCKETS, make_source(), Plain(fail))
    with pytest.raises(RuntimeError, match="cannot do"):
        next(batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 8}, r"saved with other data: seed 7, now 8\. Continue"),
        ({"tokens_per_batch": 200}, "tokens_per_batch 96, now 200"),
        ({"buckets": (6,)}, r"lengths \[6, 10, 16\], now \[6, 16\]"),
    ],
)
def test_a_state_of_other_settings_is_refused(changes, message):
    batches = iterator(BUCKETS)
    next(batches)
    other = iterator(dataclasses.replace(BUCKETS, **changes))
    with pytest.raises(DataError, match=message):
        other.set_state(batches.get_state())


def test_a_state_of_another_corpus_is_refused():
    batches = training_iterator(BUCKETS, pairs(["1"] * 9, ["1"] * 9), PLAIN)
    with pytest.raises(DataError, match="num_examples 160, now 9"):
        batches.set_state(iterator(BUCKETS).get_state())


def test_something_else_than_a_state_is_refused():
    with pytest.raises(DataError, match="state has the keys"):
        iterator(BUCKETS).set_state({"next_index": 3})


def test_a_closed_iterator():
    batches = iterator(BUCKETS)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_processes_that_cannot_share():
    with pytest.raises(DataError, match="16 rows of 6 tokens, which 3 processes"):
        iterator(BUCKETS, process_count=3)
    with pytest.raises(DataError, match="process_index=2 must be from 0"):
        iterator(BUCKETS, process_index=2, process_count=2)


PROGRAM = """
import numpy as np
from transformer_jax.data import DataConfig, MemorySource, training_iterator

class Ones:
    def encode(self, example):
        return {"inputs": np.ones(3, np.int32), "targets": np.ones(3, np.int32)}

    def pieces(self, tokens, rng, draw_other):
        return [tokens]

source = MemorySource({"inputs": ["a"] * 50, "targets": ["b"] * 50})
batches = training_iterator(DataConfig(), source, Ones())
next(batches)
print("done")
"""


def test_a_program_ends_quietly_with_the_thread_at_work(tmp_path, single_device_environment):
    environment = single_device_environment | {"PYTHONWARNINGS": "error"}
    ended = run_python(PROGRAM, tmp_path, environment)
    assert (ended.returncode, ended.stdout) == (0, "done\n")
    # Grain itself warns, when it is imported, of an older jaxlib.
    assert "Exception" not in ended.stderr and "Traceback" not in ended.stderr


# Evaluation


@CONFIGS
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_has_every_example_once(config, count):
    source, places = make_source(), []
    parts = [
        evaluation_batches(config, source, PLAIN, process_index=i, process_count=count, row_multiple=count)
        for i in range(count)
    ]
    assert len({len(part) for part in parts}) == 1
    shapes = set()
    for indices, batch in (pair for part in parts for pair in part):
        assert indices.shape == batch["inputs"].shape[:1]
        shapes.add(batch["inputs"].shape)
        places += indices.tolist()
        for row, place in enumerate(indices.tolist()):
            for side in SIDES:
                tokens = encode_numbers(source.read([place])[0])[side] if place >= 0 else np.zeros(0)
                padding = batch[side].shape[1] - len(tokens)
                real = np.arange(len(tokens))
                np.testing.assert_array_equal(batch[side][row], np.pad(tokens, (0, padding)))
                np.testing.assert_array_equal(batch[f"{side}_positions"][row], np.pad(real, (0, padding)))
                np.testing.assert_array_equal(
                    batch[f"{side}_segments"][row], np.pad(real * 0 + 1, (0, padding))
                )
    assert sorted(place for place in places if place >= 0) == list(range(NUM_EXAMPLES))
    assert len({rows_length[1] for rows_length in shapes}) == len(shapes)
    assert max(length for _, length in shapes) == 64  # the over-long ones: 31 tokens
    assert len(shapes) <= len(config.lengths) + 1


def test_evaluation_batches_divide_over_any_number_of_devices():
    def shapes(row_multiple):
        batches = evaluation_batches(BUCKETS, make_source(), PLAIN, row_multiple=row_multiple)
        assert all(indices.shape == batch["inputs"].shape[:1] for indices, batch in batches)
        return {batch["inputs"].shape for _, batch in batches}

    assert shapes(1) == {(16, 6), (8, 10), (8, 16), (8, 64)}
    assert shapes(3) == {(18, 6), (9, 10), (9, 16), (9, 64)}
    with pytest.raises(ValueError, match="must be a multiple of process_count=2"):
        evaluation_batches(BUCKETS, make_source(), PLAIN, process_count=2, row_multiple=3)


def test_evaluation_keeps_its_shapes_when_all_fit():
    source = pairs(["1"] * 3, ["1"] * 3)
    ((indices, batch),) = evaluation_batches(BUCKETS, source, PLAIN)
    assert indices.tolist() == [0, 1, 2] + [-1] * 13
    assert batch["targets"].shape == (16, 6)


def test_the_further_length_of_evaluation_is_at_most_the_models():
    batches = evaluation_batches(BUCKETS, make_source(), PLAIN, 40)  # 31 tokens would be rounded up to 64
    assert {batch["inputs"].shape[1] for _, batch in batches} == {6, 10, 16, 40}
    with pytest.raises(
        DataError, match=r"example 1 of those to evaluate has 31 tokens .* the model accepts 30: raise it, or"
    ):
        evaluation_batches(BUCKETS, make_source(), PLAIN, 30, limited_by="it")
