"""all-MiniLM-L6-v2, a published checkpoint, gives the embeddings that PyTorch gives."""

import numpy as np
import pytest

from tests.parity import minilm
from tests.parity.sentences import SENTENCES
from transformer_jax import verify
from transformer_jax.objectives.classification import encode_texts
from transformer_jax.pretrained import from_pretrained

pytestmark = pytest.mark.live

EMBEDDINGS = 1e-5  # asked for


def test_embeddings_are_those_of_pytorch(transformers):
    from tests.parity.make_minilm import embed

    theirs = embed(SENTENCES)
    assert theirs.shape == (50, 384)
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(minilm.our_embeddings(list(SENTENCES)), theirs, rtol=0, atol=EMBEDDINGS)
    texts, stored = minilm.stored()
    assert texts == list(SENTENCES)
    np.testing.assert_allclose(stored, theirs, rtol=0, atol=EMBEDDINGS)


def test_its_vectors_are_the_same_on_long_texts(transformers):
    folder = minilm.folder()
    ours = from_pretrained(folder)
    found = verify.compare(folder, ours.family, ours.config, ours.params)
    assert [one.name for one in found] == ["last_hidden_state", "pooler_output"]
    assert all(one.is_same for one in found), verify.table(found)


def test_its_tokens_are_those_of_transformers(transformers):
    theirs = transformers.AutoTokenizer.from_pretrained(minilm.folder())
    ours = from_pretrained(minilm.folder()).tokenizer
    for text in SENTENCES:
        assert encode_texts(ours, text)["inputs"].tolist() == theirs(text).input_ids, text
