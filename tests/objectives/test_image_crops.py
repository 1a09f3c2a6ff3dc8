"""Images of any size: parts by closed forms and counts, resizing of linear ramps."""

import math

import numpy as np
import pytest

from tests.objectives.toy import ToyTokenizer, draw
from transformer_jax.objectives import Classification
from transformer_jax.objectives.image_crops import centre_box, random_box, resized


def ramps(height, width):
    """The first channel is a pixel's column, the second its row, the third neither."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.full((height, width), 7)], axis=-1).astype(np.uint8)


def test_evaluation_sees_the_middle(rng):
    image = rng.integers(0, 256, (240, 160, 3), np.uint8)
    assert centre_box(240, 160) == (10, 50, 150, 190)
    objective = Classification(image_size=140)
    tokens = objective.encode({"images": image, "labels": 1}, ToyTokenizer())
    (piece,) = objective.pieces(tokens, draw(ToyTokenizer(), 1, train=False))
    np.testing.assert_array_equal(piece["images"], image[50:190, 10:150])  # 7/8 of 160, as large as before
    assert int(piece["labels"]) == 1


@pytest.mark.parametrize("side", [35, 70, 100, 280])
def test_a_part_becomes_smaller_or_larger(side):
    found = resized(ramps(240, 160), (10.0, 50.0, 150.0, 190.0), side)
    assert found.shape == (side, side, 3) and found.dtype == np.uint8
    # What is linear stays so: pixel i of the new ones is in the middle of what it stands for.
    middle = (np.arange(side) + 0.5) * 140 / side - 0.5
    np.testing.assert_allclose(found[..., 0], np.tile(10 + middle, (side, 1)), atol=1.01)
    np.testing.assert_allclose(found[..., 1], np.tile(50 + middle, (side, 1)).T, atol=1.01)
    assert (found[..., 2] == 7).all()


def triangle_weights(size, start, stop, side):
    """Row i: the weights of a triangle as wide as two of the new pixels, around the middle of the i-th."""
    scale = (stop - start) / side
    middles = start + (np.arange(side)[:, None] + 0.5) * scale
    distances = np.abs(np.arange(size)[None, :] + 0.5 - middles) / scale
    weights = np.maximum(0, 1 - distances)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("side", [7, 16, 20])
@pytest.mark.parametrize("box", [(0.0, 0.0, 40.0, 60.0), (4.5, 10.0, 35.5, 58.0)])
@pytest.mark.parametrize("kind", ["noise", "checkerboard"])
def test_what_becomes_smaller_is_a_mean_of_all_its_pixels(rng, kind, box, side):
    image = rng.integers(0, 256, (60, 40, 3), np.uint8)
    if kind == "checkerboard":
        image = np.tile(255 * (np.indices((60, 40)).sum(axis=0) % 2)[..., None], 3).astype(np.uint8)
    rows = triangle_weights(60, box[1], box[3], side)
    columns = triangle_weights(40, box[0], box[2], side)
    wanted = np.einsum("ay,yxc,bx->abc", rows, image, columns)
    # Rounded after the columns and after the rows: half a step each.
    np.testing.assert_allclose(resized(image, box, side), wanted, atol=1)


def test_the_least_area_is_that_of_the_objective():
    image = ramps(40, 40)
    for least, is_whole in ((1.0, True), (0.5, False)):
        objective = Classification(image_size=20, least_area=least)
        tokens = objective.encode({"images": image, "labels": 0}, ToyTokenizer())
        seen = set()
        for seed in range(30):
            (piece,) = objective.pieces(tokens, draw(ToyTokenizer(), 1, seed))
            seen.add(piece["images"].tobytes())
        assert (seen == {resized(image, (0.0, 0.0, 40.0, 40.0), 20).tobytes()}) == is_whole


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_kept(channels):
    image = np.full((12, 9, channels), 200, np.uint8)
    np.testing.assert_array_equal(resized(image, (0.0, 0.0, 9.0, 12.0), 5), image[:5, :5])


def test_random_parts_are_within_the_image_and_as_the_paper_draws_them(rng):
    height, width, least = 600, 800, 0.09
    boxes = np.array([random_box(height, width, least, rng) for _ in range(6000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    shares = (right - left) * (bottom - top) / (height * width)
    ratios = (right - left) / (bottom - top)
    assert shares.min() >= 0.089 and shares.max() <= 1
    assert ratios.min() > 0.74 and ratios.max() < 1.35
    # A part of up to 9/16 of the image fits whatever its shape, so that none was drawn twice.
    small = shares <= 0.5625
    counts = np.histogram(shares[small], bins=[0.09, 0.2475, 0.405, 0.5625])[0]
    logs = np.histogram(np.log(ratios[small]), bins=np.log(4 / 3) * np.array([-1.1, -0.5, 0, 0.5, 1.1]))[0]
    for found in (counts, logs):
        expected = found.sum() / len(found)
        assert np.abs(found - expected).max() < 5 * math.sqrt(expected)
    assert np.corrcoef(shares[small], np.log(ratios[small]))[0, 1] == pytest.approx(0, abs=0.06)
    spare = (left / (width - (right - left)))[small]  # 0: leftmost, 1: rightmost
    assert spare.mean() == pytest.approx(0.5, abs=0.03) and spare.min() < 0.01 and spare.max() > 0.99


def test_where_no_part_fits_it_is_the_middle(rng):
    assert random_box(30, 900, 1.0, rng) == (430, 0, 470, 30)
    assert random_box(900, 30, 1.0, rng) == (0, 430, 30, 470)


def test_training_images_are_random_parts_mirrored_or_not():
    objective = Classification(image_size=20, flip=True)
    tokens = objective.encode({"images": ramps(120, 90), "labels": 0}, ToyTokenizer())
    mirrored = 0
    seen = set()
    for seed in range(200):
        (piece,) = objective.pieces(tokens, draw(ToyTokenizer(), 1, seed))
        image = piece["images"].astype(int)
        assert image.shape == (20, 20, 3)
        seen.add(piece["images"].tobytes())
        mirrored += image[0, -1, 0] < image[0, 0, 0]
        assert (np.diff(image[:, 0, 1]) >= 0).all()  # never upside down
    assert len(seen) == 200 and 60 < mirrored < 140
    (again,) = objective.pieces(tokens, draw(ToyTokenizer(), 1, 199))
    np.testing.assert_array_equal(again["images"], piece["images"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": -1}, "image_size=-1 must not be negative"),
        ({"least_area": 0.0}, "least_area=0.0 must be above 0"),
        ({"image_size": 32, "crop_padding": 4}, "set it to 0, or set image_size=32 to 0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Classification(**fields)
