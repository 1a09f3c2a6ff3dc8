"""all-MiniLM-L6-v2 without PyTorch: the embeddings that are stored, and that they mean something.

The checkpoint itself is a package of the parity extra: where that is missing the live test fails.
"""

import numpy as np
import pytest

from tests.parity import minilm
from tests.parity.sentences import SENTENCES

# The same meaning in other words, and a text about something else.
ALIKE = (
    "The cat sleeps on the warm stove.",
    "A cat is sleeping on the stove because it is warm there.",
    "Nobody expected the bridge to be finished before winter.",
)


@pytest.mark.parity
def test_the_stored_embeddings_are_whole():
    texts, embeddings = minilm.stored()
    assert texts == list(SENTENCES) and len(set(texts)) == 50
    assert embeddings.shape == (50, 384) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    first, same, other = (embeddings[texts.index(text)] for text in ALIKE)
    assert first @ same > 0.9 and first @ other < 0.3


@pytest.mark.live
def test_embeddings_are_those_that_are_stored():
    texts, wanted = minilm.stored()
    np.testing.assert_allclose(minilm.our_embeddings(texts), wanted, rtol=0, atol=1e-5)
