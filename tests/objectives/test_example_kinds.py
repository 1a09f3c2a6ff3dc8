"""Examples whose values are not of the kind that the objective reads: one error each, and what is right."""

import numpy as np
import pytest

from tests.objectives.toy import ToyTokenizer
from transformer_jax.objectives import OBJECTIVES
from transformer_jax.objectives.base import BoundTransform, ModelFacts
from transformer_jax.objectives.kinds import is_array_feature
from transformer_jax.types import FEATURES, KINDS, Kind

WORDS, TAGS = ["ab", "cd"], [0, 1]
QUESTION = {"inputs": "who", "context": "it is Ann", "answers": ["Ann"], "answer_starts": [6]}
RIGHT = {
    "seq2seq": {"inputs": "a", "targets": "b"},
    "causal_lm": {"inputs": "a"},
    "masked_lm": {"inputs": "a"},
    "span_corruption": {"inputs": "a"},
    "denoising": {"inputs": "a"},
    "classification": {"inputs": "a", "pair": "b", "labels": 1},
    "token_classification": {"inputs": WORDS, "labels": TAGS},
    "question_answering": QUESTION,
}


def encoded(name, changes):
    transform = BoundTransform(
        OBJECTIVES[name](), ToyTokenizer(), 12, train=True, model=ModelFacts(num_labels=2)
    )
    return transform.encode(RIGHT[name] | changes)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_right_is_encoded(name):
    assert len(encoded(name, {})["inputs"]) > 0


@pytest.mark.parametrize("value", [7, np.int64(7), WORDS, None])
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "token_classification"])
def test_what_is_no_text_is_one_error(name, value):
    texts = [key for key in ("inputs", "pair", "targets", "context") if key in RIGHT[name]]
    for feature in texts:
        message = rf"^{name} needs a text as {feature}, not .*: config\.data\.source\.features"
        with pytest.raises(ValueError, match=message):
            encoded(name, {feature: value})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("token_classification", {"inputs": "ab cd"}, "a list of texts as inputs, not 'ab cd'"),
        ("token_classification", {"inputs": [7, 8]}, r"a list of texts as inputs, not \[7, 8\]"),
        ("token_classification", {"inputs": 7}, "a list of texts as inputs, not 7"),
        (
            "token_classification",
            {"labels": "01"},
            "a list of integers or a list of texts as labels, not '01'",
        ),
        ("token_classification", {"labels": 1}, "a list of integers or a list of texts as labels, not 1"),
        ("classification", {"labels": ["0"]}, r"an integer or a text as labels, not \['0'\]"),
        ("question_answering", {"answers": "Ann"}, "a list of texts as answers, not 'Ann'"),
        ("question_answering", {"answer_starts": 6}, "a list of integers as answer_starts, not 6"),
        ("question_answering", {"answer_starts": ["6"]}, r"a list of integers as answer_starts, not \['6'\]"),
    ],
)
def test_a_list_and_what_is_none_are_not_taken_for_each_other(name, changes, message):
    with pytest.raises(ValueError, match=rf"^{name} needs {message}: config\.data\.source\.features"):
        encoded(name, changes)


@pytest.mark.parametrize(("answers", "starts"), [(["Ann"], []), (["Ann", "it"], [6]), ([], [6])])
def test_every_answer_has_its_place(answers, starts):
    with pytest.raises(ValueError, match=rf"{len(answers)} answers have {len(starts)} answer_starts"):
        encoded("question_answering", {"answers": answers, "answer_starts": starts})


def test_lists_may_be_arrays_or_tuples_and_labels_numbers_of_numpy():
    plain = encoded("token_classification", {})
    changes = {"inputs": tuple(WORDS), "labels": np.array(TAGS)}
    for key, array in encoded("token_classification", changes).items():
        np.testing.assert_array_equal(array, plain[key])
    starts = {"answer_starts": np.array([6])}
    assert encoded("question_answering", starts)["answer_span"].tolist() == [5, 5]
    assert int(encoded("classification", {"labels": np.uint8(1)})["labels"]) == 1


def test_a_kind_itself_says_whether_it_is_an_array(monkeypatch):
    arrays = [feature for feature in FEATURES if is_array_feature(feature)]
    assert arrays == ["images"]

    def add(name, **fields):
        kind = Kind(f"a {name}", lambda value: True, lambda shape: 0, **fields)
        monkeypatch.setitem(KINDS, name, kind)
        monkeypatch.setitem(FEATURES, f"{name}s", (name,))
        monkeypatch.setitem(FEATURES, f"many {name}s", (f"list of {name}s",))

    add("texture")
    add("score", is_array=False)
    for feature in ("textures", "many textures"):
        assert is_array_feature(feature)
    for feature in ("scores", "many scores"):
        assert not is_array_feature(feature)
    monkeypatch.setitem(FEATURES, "either", ("texture", "score"))
    assert not is_array_feature("either")
