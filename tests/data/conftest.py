"""Saves the tests of the data most of their time."""

import functools

import pytest
from grain._src.python.dataset.transformations import shuffle
from grain.experimental import index_shuffle

from transformer_jax.data import packing

# A pure function of four numbers, which takes a millisecond where there are few examples: it permutes at
# least 2^16 places, until one is among theirs. Replays ask for the same few places again and again.
remembered = functools.cache(index_shuffle)


@pytest.fixture(autouse=True)
def places_are_remembered(monkeypatch):
    monkeypatch.setattr(shuffle.index_shuffle, "index_shuffle", remembered)
    monkeypatch.setattr(packing, "index_shuffle", remembered)
