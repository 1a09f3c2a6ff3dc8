"""What the pipeline keeps in memory, and what it counts as cut short."""

import numpy as np

from tests.data.test_pieces import BLANK, BUCKETS, NUM_EXAMPLES, Pieces, make_source
from transformer_jax.data import MemorySource, training_iterator
from transformer_jax.data import token_examples as module


def test_the_memory_is_bounded_in_bytes(monkeypatch):
    transform = Pieces()
    encoded = transform.encode({"inputs": "1 2 3", "targets": "4 5"})
    size = sum(array.nbytes for array in encoded.values())
    examples = [{"inputs": "1 2 3", "targets": "4 5"}] * 10
    source = MemorySource({key: [example[key] for example in examples] for key in examples[0]})
    for kept in (0, 1, 4):
        monkeypatch.setattr(module, "CACHED_BYTES", kept * size)
        counting = Pieces()
        cache = module.TokenCache(source, counting)
        for _ in range(3):
            assert len(cache.read(range(10))) == 10
        assert sum(counting.encoded.values()) == 30 - 2 * kept


def test_examples_that_were_cut_short_are_counted_once():
    class Cutting(Pieces):
        def pieces(self, tokens, rng, draw_other):
            long = len(tokens["inputs"]) > 12
            return [{"inputs": tokens["inputs"][:12]} | ({"_cut": np.array(1)} if long else {})]

    wanted = sum(5 + 7 * i % 40 > 12 for i in range(NUM_EXAMPLES) if i != BLANK)
    batches = training_iterator(BUCKETS, make_source(), Cutting())
    assert batches.cut == 0
    while batches.epoch < 2.5:
        before = batches.get_state()
        assert "_cut" not in next(batches)
    assert batches.cut == wanted and (batches.filtered, batches.blank) == (0, 1)
    batches.set_state(before)
    next(batches)
    assert batches.cut == wanted
    batches.close()
