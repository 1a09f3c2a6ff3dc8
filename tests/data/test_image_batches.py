"""Images through the pipeline: batches of one shape, empty rows, and what cannot be."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from transformer_jax.data import DataConfig, DataError, MemorySource, evaluation_batches, training_iterator


class Images:
    def encode(self, example):
        return {"images": example["images"], "labels": np.array(example["labels"], np.int32)}

    def pieces(self, tokens, rng, draw_other):
        flipped = tokens["images"][:, ::-1] if rng.random() < 0.5 else tokens["images"]
        return [{**tokens, "images": flipped}]


def image_source():
    images = np.random.default_rng(0).integers(0, 256, (21, 2, 3, 1), np.uint8)
    return MemorySource({"images": images, "labels": list(range(21))}), images


IMAGES = DataConfig(batch_size=8, window=21, seed=2, buckets=(16, 32))


def test_images_make_batches_of_one_shape():
    source, images = image_source()
    batches = training_iterator(IMAGES, source, Images())
    seen = Counter()
    for _ in range(21):
        batch = next(batches)
        assert {key: (array.shape, array.dtype.name) for key, array in batch.items()} == {
            "images": ((8, 2, 3, 1), "uint8"),
            "labels": ((8,), "int32"),
        }
        for image, label in zip(batch["images"], batch["labels"], strict=True):
            assert (image == images[label]).all() or (image == images[label][:, ::-1]).all()
            seen[int(label)] += 1
    assert batches.examples == 168 and set(seen.values()) == {8}
    batches.close()


@pytest.mark.parametrize("count", [1, 4])
def test_images_are_evaluated_with_empty_rows_marked(count):
    source, _ = image_source()
    parts = [
        evaluation_batches(IMAGES, source, Images(), process_index=i, process_count=count, row_multiple=count)
        for i in range(count)
    ]
    seen = []
    for places, batch in (pair for part in parts for pair in part):
        np.testing.assert_array_equal(batch["labels"], places)  # -1 where there is none
        assert not batch["images"][places < 0].any() and len(batch["images"]) == 8 // count
        seen += [place for place in places.tolist() if place >= 0]
    assert sorted(seen) == list(range(21))
    assert {len(part) for part in parts} == {3}  # the last process has a batch without any example


def test_images_need_a_batch_size_and_cannot_be_packed():
    source, _ = image_source()
    changed = dataclasses.replace(IMAGES, batch_size=0)
    message = r"examples of images, labels have no tokens .* set config\.data\.batch_size"
    with pytest.raises(DataError, match=message):
        next(training_iterator(changed, source, Images()))
    with pytest.raises(DataError, match=message):
        evaluation_batches(changed, source, Images())
    packed = dataclasses.replace(IMAGES, batching="packed", buckets=())
    with pytest.raises(DataError, match=r"images cannot be packed, .*config\.data\.batching='buckets'"):
        next(training_iterator(packed, source, Images()))
