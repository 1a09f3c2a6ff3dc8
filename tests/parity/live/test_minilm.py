"""all-MiniLM-L6-v2, a published checkpoint, gives the embeddings that PyTorch gives."""

import dataclasses

import numpy as np
import pytest

from tests.parity import minilm
from tests.parity.sentences import SENTENCES
from transformer_jax.inference.pooling import Pooling
from transformer_jax.objectives.classification import encode_texts
from transformer_jax.pretrained import verify
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained

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


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "as_it_is"])
def test_sentence_transformers_makes_the_same_vectors_of_what_is_written(mode, normalize, tmp_path):
    import sentence_transformers

    ours = dataclasses.replace(from_pretrained(minilm.folder()), pooling=Pooling(mode, normalize, 20))
    save_pretrained(tmp_path / "ours", ours)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    texts = [*SENTENCES[:5], " ".join(SENTENCES[4:12])]
    wanted = theirs.encode(texts, batch_size=1)
    found = ours.embed(texts, cut=True)
    assert theirs.max_seq_length == 20 and len(theirs.tokenizer(texts[-1]).input_ids) > 20
    np.testing.assert_allclose(found, wanted, rtol=0, atol=EMBEDDINGS)
    theirs.save(str(tmp_path / "theirs"))  # as the newest version writes it
    again = from_pretrained(tmp_path / "theirs")
    assert again.pooling == ours.pooling
    np.testing.assert_allclose(again.embed(texts, cut=True), wanted, rtol=0, atol=EMBEDDINGS)


def test_its_vectors_are_the_same_on_long_texts(transformers):
    folder = minilm.folder()
    ours = from_pretrained(folder)
    found = verify.compare(CheckpointFolder(folder), ours.config, ours.params)
    assert [one.name for one in found] == ["last_hidden_state", "pooler_output"]
    assert all(one.is_same for one in found), verify.table(found)


def test_its_tokens_are_those_of_transformers(transformers):
    theirs = transformers.AutoTokenizer.from_pretrained(minilm.folder())
    ours = from_pretrained(minilm.folder()).tokenizer
    for text in SENTENCES:
        assert encode_texts(ours, text)["inputs"].tolist() == theirs(text).input_ids, text
