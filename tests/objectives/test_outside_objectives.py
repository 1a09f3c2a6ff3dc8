"""Objectives that are defined outside the library: what they inherit, and how their features are checked."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.toy import ToyTokenizer, draw, padded
from transformer_jax.objectives import ModelFacts, Objective, TokenObjective
from transformer_jax.objectives.base import BoundTransform

IMAGE = np.zeros((4, 3, 2), np.uint8)
# Of each feature, values that are right and values that are not.
VALUES = {
    "images": (
        [IMAGE],
        [0, np.int64(3), "a", [0], None, np.zeros((4, 3, 2)), np.zeros((4, 3), np.uint8), [IMAGE]],
    ),
    "context": (["", "a"], [0, IMAGE, ["a"], None, b"a"]),
    "answers": ([["a"], (), np.array(["a", "b"])], ["a", [0], 0, IMAGE, None]),
    "answer_starts": ([[0], (), np.array([1, 2])], [0, ["0"], [True], [1.0], "0", IMAGE, None]),
    "labels": ([1, "a", np.uint8(1)], [[1], ["a"], True, 1.0, IMAGE, None]),
}


@dataclasses.dataclass(frozen=True)
class Reading(Objective):
    """Reads an image and one value more, and does nothing with them."""

    FEATURES = ("images",)
    OPTIONAL_FEATURES = tuple(name for name in VALUES if name != "images")
    HEADS = ("pooled",)
    PARTS = ("encoder",)

    name: str = "reading"

    def encode(self, example, tokenizer):
        return {"images": np.asarray(example["images"])}

    def loss(self, apply, params, batch, rngs, *, train):
        return jnp.zeros(()), {"loss": jnp.zeros(()), "tokens": jnp.ones(())}


@dataclasses.dataclass(frozen=True)
class ReadingLists(Reading):
    """Reads one label per word."""

    LIST_FEATURES = ("labels",)


@dataclasses.dataclass(frozen=True)
class Copying(TokenObjective):
    """Predicts the inputs again."""

    name: str = "copying"

    def encode(self, example, tokenizer):
        tokens = tokenizer.encode_whole(example["inputs"])
        return {"inputs": tokens, "targets": tokens}


@dataclasses.dataclass(frozen=True)
class Captioning(TokenObjective):
    """Predicts the caption of an image."""

    FEATURES = ("images", "targets")
    ARGUMENTS = ("images", "targets")

    name: str = "captioning"

    def encode(self, example, tokenizer):
        return {"images": example["images"], "targets": tokenizer.encode_whole(example["targets"])}


def encoded(objective, example):
    return BoundTransform(objective, ToyTokenizer(), 12, train=True, model=ModelFacts()).encode(example)


@pytest.mark.parametrize("feature", VALUES)
def test_every_kind_of_feature_is_accepted_and_other_kinds_are_one_error(feature):
    right, wrong = VALUES[feature]
    for value in right:
        assert encoded(Reading(), {"images": IMAGE, feature: value})["images"].shape == (4, 3, 2)
    for value in wrong:
        message = rf"^reading needs an? .* as {feature}, not .*: config\.data\.source\.features"
        with pytest.raises(ValueError, match=message):
            encoded(Reading(), {"images": IMAGE, feature: value})


def test_an_objective_that_reads_lists_refuses_single_values():
    for value in ([1, 2], ["a"]):
        encoded(ReadingLists(), {"images": IMAGE, "labels": value})
    with pytest.raises(ValueError, match="needs a list of integers or a list of texts as labels, not 1"):
        encoded(ReadingLists(), {"images": IMAGE, "labels": 1})


def test_a_missing_feature_is_one_error():
    with pytest.raises(ValueError, match=r"^Reading\.FEATURES, .* are images, but there is no images"):
        encoded(Reading(), {"context": "a"})


def test_a_stand_in_has_the_features_of_the_experiment_and_is_accepted():
    facts = ModelFacts(feature="images", shape=(4, 3, 2))
    for objective in (Reading(), ReadingLists()):
        example = objective.stand_in(facts, ("images", "labels", "answers", "pair"))
        assert sorted(example) == ["answers", "images", "labels"]
        assert encoded(objective, example)["images"].shape == (4, 3, 2)


def test_what_an_objective_does_not_define_has_defaults():
    objective, facts = Reading(), ModelFacts()
    tokens = objective.encode({"images": IMAGE}, ToyTokenizer())
    assert objective.pieces(tokens, draw(ToyTokenizer(), 12)) == [tokens]
    assert objective.metrics({"loss": 6.0, "tokens": 3.0}) == {"loss": 2.0}
    assert objective.heads == ("pooled",) and objective.shrunk(64) is objective
    assert not objective.unmeasured(facts) and not objective.may_cut and objective.sizing is None
    with pytest.raises(ValueError, match=r"config\.objective\.name must be str, not 3"):
        Reading(name=3)


def test_a_token_objective_needs_only_its_tokens():
    objective = Copying()
    tokens = encoded(objective, {"inputs": "abc def"})
    assert tokens["inputs"].tolist() == tokens["targets"].tolist()

    def apply(variables, *, inputs, targets, per_token, **rest):
        return per_token(jnp.zeros((*targets.shape, 8)), slice(None))

    batch = {}
    for side in ("inputs", "targets"):
        ids = np.array([[1, 2, 0]], np.int32)
        batch |= {side: ids, f"{side}_segments": (ids > 0).astype(np.int32), f"{side}_positions": ids}
    loss, sums = objective.loss(apply, {}, batch, {}, train=False)
    np.testing.assert_allclose(loss, 2 * np.log(8), rtol=1e-6)
    metrics = objective.metrics({name: float(value) for name, value in sums.items()})
    assert metrics["perplexity"] == pytest.approx(8, rel=1e-5) and set(metrics) == set(objective.METRICS)


def test_a_token_objective_gives_the_model_arrays_that_are_no_side():
    tokens = encoded(Captioning(), {"images": IMAGE, "targets": "abc"})
    batch = padded([tokens], 4)
    given = {}

    def apply(variables, *, per_token, **arguments):
        given.update(arguments)
        return per_token(jnp.zeros((2, 4, 8)), slice(None))

    _, sums = Captioning().loss(apply, {}, batch, {}, train=False)
    sides = {"targets", "targets_positions", "targets_segments"}
    assert given.keys() == sides | {"images", "train", "rngs"} and given["images"].shape == (2, 4, 3, 2)
    assert float(sums["tokens"]) == 2
