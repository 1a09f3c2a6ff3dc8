"""SQuAD's scores against cases computed by hand from the rules of the official script."""

import pytest

from transformer_jax.objectives.squad import exact_match, f1, normalized, squad_scores


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The  Denver Broncos.", "denver broncos"),
        ("an apple a day", "apple day"),
        ("Theatre", "theatre"),  # articles are words of their own
        ("U.S.A", "usa"),  # punctuation goes without leaving a space, and before articles do
        ("the-end", "theend"),
        ("A.", ""),
        ("\tGold\n medal ", "gold medal"),
        ("$40 – 50", "40 – 50"),  # only ASCII punctuation
        ("40–a–50", "40– –50"),  # an article leaves a space
    ],
)
def test_normalization(answer, wanted):
    assert normalized(answer) == wanted


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "score"),
    [
        ("Saint Bernadette Soubirous", "saint bernadette soubirous!", True, 1.0),
        ("in the Grotto", "a grotto", False, 2 / 3),  # precision 1/2, recall 1
        ("new new york", "new york new york", False, 6 / 7),  # bags: 3 shared of 3 and of 4
        ("gold", "silver", False, 0.0),
        ("the", "an", True, 0.0),  # both are empty: the official script gives exact 1 and F1 0
    ],
)
def test_exact_match_and_f1(prediction, answer, exact, score):
    assert exact_match(prediction, answer) is exact
    assert f1(prediction, answer) == pytest.approx(score)
    assert f1(answer, prediction) == pytest.approx(score)


def test_scores_take_the_best_answer_of_each_question_and_their_mean_in_per_cent():
    found = squad_scores(
        ["in the Grotto", "1858", "nothing"],
        [["the grotto", "in a grotto"], ["in 1858", "1868"], ["all of it"]],
    )
    assert found == pytest.approx({"exact_match": 100 / 3, "f1": 100 * (1 + 2 / 3 + 0) / 3})


def test_a_question_without_an_answer_is_answered_by_saying_nothing():
    found = squad_scores(["", "Paris", "in Paris"], [[], [], ["Paris"]])
    assert found == pytest.approx({"exact_match": 100 / 3, "f1": 100 * (1 + 0 + 2 / 3) / 3})


@pytest.mark.parametrize(
    ("predictions", "answers", "message"),
    [
        (["a"], [], "1 predictions for 0 questions"),
        ([], [], "0 predictions for 0 questions"),
    ],
)
def test_what_cannot_be_scored_is_refused(predictions, answers, message):
    with pytest.raises(ValueError, match=message):
        squad_scores(predictions, answers)
