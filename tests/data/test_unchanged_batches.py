"""The batches of a run that is stored somewhere must stay the same batches, in the same order."""

import hashlib

import numpy as np
import pytest

from transformer_jax.data import (
    DataConfig,
    MemorySource,
    TokenizerConfig,
    evaluation_batches,
    train_tokenizer,
    training_iterator,
)
from transformer_jax.objectives import Seq2Seq
from transformer_jax.objectives.base import BoundTransform, ModelFacts
from transformer_jax.types import BATCH_KEYS

WORDS = ("a", "bc", "def", "Größe", "zwei drei")
BUCKETS = DataConfig(max_length=24, buckets=(8, 16), tokens_per_batch=128, window=48, seed=3)
PACKED = DataConfig(max_length=32, batching="packed", tokens_per_batch=256, window=48, seed=4)


def source_and_transform():
    inputs = [" ".join(WORDS[(i + j) % 5] for j in range(i % 7)) for i in range(150)]
    targets = [" ".join(WORDS[(i * j) % 5] for j in range(1 + i % 6)) for i in range(150)]
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte"), [])
    transform = BoundTransform(Seq2Seq(), tokenizer, 24, train=True, model=ModelFacts())
    return MemorySource({"inputs": inputs, "targets": targets}), transform


def digest(batches):
    """Of names, types, shapes and contents."""
    found = hashlib.sha256()
    for batch in batches:
        assert tuple(batch) == BATCH_KEYS
        for key, array in batch.items():
            found.update(f"{key} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(BUCKETS, "e922a04bfd666783", id="buckets"),
        pytest.param(PACKED, "19c4ab46481a52a6", id="packed"),
    ],
)
def test_training_batches(config, expected):
    batches = training_iterator(config, *source_and_transform())
    assert digest(next(batches) for _ in range(40)) == expected
    assert batches.epoch > 1  # so that more than one window and epoch are looked at
    batches.close()


def test_evaluation_batches():
    found = evaluation_batches(BUCKETS, *source_and_transform())
    assert digest(batch for _, batch in found) == "d2a0ed8ae8fc67eb"
