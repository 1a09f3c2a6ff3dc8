"""Examples that come in random pieces, use another example, or are no sequences at all."""

import dataclasses
import functools
import itertools
import json
from collections import Counter
from typing import Any

import grain
import numpy as np
import pytest

from tests.objectives.toy import ToyTokenizer
from transformer_jax.config import ConfigError
from transformer_jax.data import (
    DataConfig,
    DataError,
    MemorySource,
    evaluation_batches,
    evaluation_pieces,
    training_iterator,
)
from transformer_jax.data import token_examples as module
from transformer_jax.objectives import MaskedLM, Seq2Seq
from transformer_jax.objectives.base import BoundTransform, ModelFacts

NUM_EXAMPLES = 50
BUCKETS = DataConfig(max_length=12, buckets=(4, 8), tokens_per_batch=64, window=16, seed=5)
PACKED = DataConfig(max_length=12, tokens_per_batch=96, window=16, seed=5, batching="packed")
CONFIGS = pytest.mark.parametrize("config", [BUCKETS, PACKED], ids=["buckets", "packed"])
BLANK = 7


def make_source():
    """Example i is its number, 5 to 44 times; one is blank."""
    texts = [" ".join([str(100 + i)] * (5 + 7 * i % 40)) for i in range(NUM_EXAMPLES)]
    texts[BLANK] = "\n"
    return MemorySource({"inputs": texts})


def cut(length, rng):
    """Where a text of so many tokens is cut: after 1 to 12, again and again."""
    stops = [0]
    while stops[-1] < length:
        stops.append(min(length, stops[-1] + int(rng.integers(1, 13))))
    return list(itertools.pairwise(stops))


class Pieces:
    """Cuts an example at random; a piece's types count it, its neighbour is of another example."""

    def __init__(self):
        self.encoded = Counter()

    def encode(self, example):
        self.encoded[example["inputs"][:3]] += 1
        return {"inputs": np.array(example["inputs"].split(), np.int32)}

    def pieces(self, tokens, rng, draw_other):
        places = cut(len(tokens["inputs"]), rng)
        other = draw_other()["inputs"][0]
        return [
            {
                "inputs": tokens["inputs"][start:stop],
                "inputs_types": np.full(stop - start, number, np.int32),
                "inputs_other": np.full(stop - start, other, np.int32),
                "_host": np.array(["not for devices"]),
            }
            for number, (start, stop) in enumerate(places)
        ]


def read_back(batch):
    """Every piece of a batch as (number of its example, number of the piece, length, other)."""
    assert set(batch) == {f"inputs{part}" for part in ("", "_positions", "_segments", "_types", "_other")}
    found = []
    for row, segments in enumerate(batch["inputs_segments"]):
        for segment in range(1, segments.max() + 1):
            where = segments == segment
            parts = [
                set(batch[key][row][where].tolist()) for key in ("inputs", "inputs_types", "inputs_other")
            ]
            assert all(len(part) == 1 for part in parts)
            np.testing.assert_array_equal(batch["inputs_positions"][row][where], np.arange(where.sum()))
            found.append((parts[0].pop() - 100, parts[1].pop(), int(where.sum()), parts[2].pop() - 100))
        for array in batch.values():
            assert not array[row][segments == 0].any()
    return found


@functools.cache  # Grain is slow in one thread while another one is busy
def example_at(place):
    order: Any = grain.MapDataset.range(NUM_EXAMPLES).seed(5).shuffle().repeat()
    return order[place]


def visits():
    return ((place, example_at(place)) for place in itertools.count())


def expected_pieces(place, number):
    """Example, piece and length of all pieces of one visit, as the seed and the place have them."""
    cuts = cut(5 + 7 * number % 40, np.random.default_rng((5, place)))
    return [(number, i, stop - start) for i, (start, stop) in enumerate(cuts)]


@CONFIGS
def test_every_visit_gives_its_own_pieces_once(config):
    batches = training_iterator(config, make_source(), Pieces())
    emitted, firsts, checked = Counter(), 0, 0
    for _ in range(60):
        found = read_back(next(batches))
        state = batches.get_state()
        if state["start"] and state["batch"] == 1:  # the windows before have given all they can
            checked += 1
            everything = Counter()
            for place, number in visits():
                if place == state["start"]:
                    break
                everything.update(expected_pieces(place, number) if number != BLANK else ())
            pieces = {
                place: expected_pieces(place, number)
                for (place, number), _ in zip(visits(), range(state["start"]), strict=False)
            }
            waiting = Counter(pieces[place][number] for place, number in state["carried"])
            assert emitted + waiting == everything
        emitted.update(piece[:3] for piece in found)
        firsts += sum(number == 0 for _, number, _, _ in found)
        assert batches.examples == firsts
        assert batches.epoch == firsts / (NUM_EXAMPLES - batches.blank)
    assert checked > 5 and batches.epoch > 2 and (batches.blank, batches.filtered) == (1, 0)
    assert len(emitted) > 1.5 * len({piece[0] for piece in emitted})
    batches.close()


@pytest.mark.parametrize(
    "config", [pytest.param(BUCKETS, marks=pytest.mark.everything), PACKED], ids=["buckets", "packed"]
)
def test_random_pieces_replay_to_the_bit(config):
    batches = training_iterator(config, make_source(), Pieces())
    states, expected = [], []
    for _ in range(80):
        states.append(json.dumps(batches.get_state()))
        expected.append(next(batches))
    batches.close()
    assert any(json.loads(state)["carried"] for state in states)
    for start in range(0, 78, 3):
        again = training_iterator(config, make_source(), Pieces())
        again.set_state(json.loads(states[start]))
        for offset in range(2):
            assert json.dumps(again.get_state()) == states[start + offset]
            batch = next(again)
            for key, array in expected[start + offset].items():
                np.testing.assert_array_equal(batch[key], array, err_msg=key)
        again.close()


def test_a_window_has_a_limited_number_of_pieces():
    """One long text with more pieces than the window has room for: one visit a window."""
    source = MemorySource({"inputs": [" ".join(["100"] * 400), " ".join(["101"] * 300)]})
    config = dataclasses.replace(BUCKETS, window=32, buckets=())
    starts, seen = set(), Counter()
    batches = training_iterator(config, source, Pieces())
    while len(starts) < 6:
        found = read_back(next(batches))
        state = batches.get_state()
        starts.add(state["start"])
        if state["start"] < 6:
            seen.update(number for number, *_ in found)
    batches.close()
    assert starts == {0, 1, 2, 3, 4, 5} and set(seen) == {0, 1}


@pytest.mark.parametrize("space", [pytest.param(0, marks=pytest.mark.everything), 20, 1000])
def test_the_memory_keeps_tokens_and_changes_nothing(monkeypatch, space):
    monkeypatch.setattr(module, "CACHED_EXAMPLES", space)
    transform = Pieces()
    batches = training_iterator(BUCKETS, make_source(), transform)
    found = [read_back(next(batches)) for _ in range(60)]
    batches.close()
    monkeypatch.setattr(module, "CACHED_EXAMPLES", 500_000)
    plain = training_iterator(BUCKETS, make_source(), Pieces())
    assert found == [read_back(next(plain)) for _ in range(60)]
    plain.close()
    if space == 1000:
        assert set(transform.encoded.values()) == {1}  # although other examples were drawn again and again


def test_processes_share_random_pieces():
    whole = training_iterator(BUCKETS, make_source(), Pieces())
    parts = [
        training_iterator(BUCKETS, make_source(), Pieces(), process_index=i, process_count=2) for i in (0, 1)
    ]
    for _ in range(15):
        expected, found = next(whole), [next(part) for part in parts]
        for key, array in expected.items():
            np.testing.assert_array_equal(np.concatenate([part[key] for part in found]), array)


@pytest.mark.slow
def test_another_example_is_never_the_same_nor_blank():
    batches = training_iterator(BUCKETS, make_source(), Pieces())
    drawn = Counter()
    for _ in range(400):
        for number, _, _, other in read_back(next(batches)):
            assert other != number and 0 <= other < NUM_EXAMPLES and other != BLANK
            drawn[other] += 1
    batches.close()
    assert set(drawn) == set(range(NUM_EXAMPLES)) - {BLANK}
    assert max(drawn.values()) < 4 * min(drawn.values())


def test_a_single_example_has_no_other():
    for texts in (["100 100"], ["100 100", " "]):
        batches = training_iterator(BUCKETS, MemorySource({"inputs": texts}), Pieces())
        with pytest.raises(
            DataError,
            match=rf"combines each example with another .* of the {len(texts)} examples was found",
        ):
            next(batches)
        batches.close()


# Evaluation


@CONFIGS
def test_evaluation_has_every_piece_once_and_always_the_same(config):
    source = MemorySource(
        {"inputs": [text["inputs"] for text in make_source().read([*range(7), *range(8, 50)])]}
    )
    found = []
    for places, batch in evaluation_batches(config, source, Pieces()):
        pieces = iter(read_back(batch))
        for place in places.tolist():
            if place >= 0:
                piece = next(pieces)
                assert piece[0] == place + (place >= 7) and piece[3] != piece[0]
                found.append(piece)
        assert next(pieces, None) is None
    again = [p for _, batch in evaluation_batches(config, source, Pieces()) for p in read_back(batch)]
    assert again == found
    lengths = {number: 5 + 7 * number % 40 for number in range(NUM_EXAMPLES) if number != 7}
    covered = Counter()
    for number, _, length, _ in found:
        covered[number] += length
    assert covered == lengths and len(set(found)) == len(found)
    training = [expected_pieces(place, 3) for place in range(50)]
    assert [piece[:3] for piece in sorted(found) if piece[0] == 3] not in training  # randomness of its own


def test_no_other_example_in_evaluation_is_blank():
    for seed in range(5):
        config = dataclasses.replace(BUCKETS, seed=seed)
        batches = evaluation_batches(config, make_source(), Pieces())
        drawn = {other for _, batch in batches for *_, other in read_back(batch)}
        assert BLANK not in drawn and len(drawn) > 20


def test_no_second_sentence_in_evaluation_is_blank():
    texts = [f"w{i} x\ny z" if i % 3 == 0 else " \n"[: i % 3] for i in range(30)]  # two in three are blank
    transform = BoundTransform(
        MaskedLM(next_sentence=True), ToyTokenizer(), 12, train=False, model=ModelFacts()
    )
    places, pieces = evaluation_pieces(BUCKETS, MemorySource({"inputs": texts}), transform)
    assert set(places) == set(range(0, 30, 3))
    labels = [int(piece["labels"]) for piece in pieces]
    assert 5 < sum(labels) < len(labels)
    assert all((piece["inputs_types"] == 1).sum() > 1 for piece in pieces)  # more than [SEP]


def test_nothing_to_evaluate():
    class Nothing(Pieces):
        def pieces(self, tokens, rng, draw_other):
            return []

    with pytest.raises(DataError, match="nothing to evaluate in 50 example"):
        evaluation_batches(BUCKETS, make_source(), Nothing())


# What is no sequence


def test_a_batch_size_is_that_of_every_length():
    batches = training_iterator(dataclasses.replace(BUCKETS, batch_size=6), make_source(), Pieces())
    assert {next(batches)["inputs"].shape for _ in range(40)} == {(6, 4), (6, 8), (6, 12)}
    batches.close()
    with pytest.raises(DataError, match=r"batch_size=6 makes 6 rows, which 4 processes cannot share"):
        training_iterator(
            dataclasses.replace(BUCKETS, batch_size=6), make_source(), Pieces(), process_count=4
        )


# What is left out, and what is missing.


def test_any_blank_text_leaves_an_example_out():
    columns = {
        "inputs": ["1", "2", "3 3", "4"],
        "pair": ["a", " ", "b", "c"],
        "labels": ["x", "y", "\t", "z"],
        "answers": [[], [""], [], []],  # no text of its own
    }

    class Pair(Pieces):
        def pieces(self, tokens, rng, draw_other):
            return [tokens]

    batches = training_iterator(BUCKETS, MemorySource(columns), Pair())
    seen = {int(number) for _ in range(4) for number in next(batches)["inputs"][:, 0]}
    assert seen == {1, 4} and batches.blank == 2
    batches.close()


def test_a_part_that_is_not_as_long_as_its_side():
    class Short(Pieces):
        def pieces(self, tokens, rng, draw_other):
            return [{**tokens, "inputs_types": np.zeros(2, np.int32)}]

    with pytest.raises(
        DataError, match=r"the objective gives 2 inputs_types for \d+ inputs: it must give one per token"
    ):
        next(training_iterator(BUCKETS, make_source(), Short()))


def test_an_example_without_what_the_objective_needs():
    class Words:
        vocab_size, sentinels = 9, ()

        @property
        def targets(self):
            return self

        def encode(self, text):
            return np.ones(len(text.split()), np.int32)

        def encode_whole(self, text):
            return np.append(self.encode(text), np.int32(2))

        def encode_with_places(self, text):
            raise NotImplementedError

        def template(self, num_texts):
            raise NotImplementedError

        def id_of(self, role):
            raise NotImplementedError

    transform = BoundTransform(Seq2Seq(), Words(), 12, train=True, model=ModelFacts())
    message = (
        r"Seq2Seq\.FEATURES, .* are inputs, targets, .* no targets: config\.data\.source\.features gives"
    )
    with pytest.raises(ConfigError, match=message):
        transform.encode({"inputs": "a"})
    tokens = transform.encode({"inputs": "a b", "targets": "c"})
    assert tokens["inputs"].tolist() == [1, 1, 2]
    rng = np.random.default_rng(0)
    assert transform.pieces(tokens, rng, lambda: tokens) == [tokens]
