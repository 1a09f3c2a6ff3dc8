"""Question answering: spans by hand, windows by brute force, the loss in NumPy, the best span by search."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.toy import ToyTokenizer, draw, floats, log_softmax, padded
from transformer_jax.objectives.question_answering import QuestionAnswering, best_span

CONTEXT = "It was founded in Prague by monks, in 1348."
WORDS = " ".join(f"{i:03d}" for i in range(60))


def asked(answer, context=CONTEXT, question="who did"):
    return {
        "inputs": question,
        "context": context,
        "answers": [answer, "another"],
        "answer_starts": [context.index(answer), 0],
    }


def test_question_and_context_are_written_as_in_the_paper():
    tokenizer = ToyTokenizer()
    tokens = QuestionAnswering().encode(asked("Prague"), tokenizer)
    written = "<cls> who did <sep> It was fou nde d in Pra gue by mon ks, in 134 8. <sep>"
    assert " ".join(tokenizer.tokens(tokens["inputs"])) == written
    assert tokens["inputs_types"].tolist() == [0] * 4 + [1] * 15
    assert tokens["answer_span"].tolist() == [10, 11]
    assert QuestionAnswering().pieces(tokens, draw(tokenizer, 19)) == [tokens]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("monks", "monks,"),
        ("It", "It"),
        ("1348", "1348."),
        ("ounde", "founde"),
        ("nde", "nde"),
        ("by monks, in", "by monks, in"),
    ],
)
def test_a_span_is_the_tokens_that_hold_the_answer(answer, text):
    tokens = QuestionAnswering().encode(asked(answer), ToyTokenizer())
    first, last = tokens["answer_span"]
    assert CONTEXT[tokens["_starts"][first] : tokens["_stops"][last]] == text
    assert tokens["_starts"][[0, 1, 2, 3, -1]].tolist() == [-1] * 5


def test_the_template_of_the_tokenizer_stays_in_windows():
    parts = {2: [["bos"], ["eos", "eos"], ["eos"]]}
    tokenizer, objective = ToyTokenizer(parts=parts), QuestionAnswering(stride=7)
    pieces = objective.pieces(objective.encode(asked("029 030", WORDS), tokenizer), draw(tokenizer, 16))
    start = 0
    for piece in pieces:
        written = tokenizer.tokens(piece["inputs"])
        context = WORDS.split()[start : start + 10]
        assert written == ["<bos>", "who", "did", "<eos>", "<eos>", *context, "<eos>"]
        first, last = piece["answer_span"]
        assert (written[first : last + 1] == ["029", "030"]) == {"029", "030"}.issubset(context)
        assert piece["_starts"][[0, 4, -1]].tolist() == [-1] * 3 and piece["_starts"][5] >= 0
        start += 7
    with pytest.raises(ValueError, match="a question of 2 tokens leaves no room"):
        objective.pieces(objective.encode(asked("029 030", WORDS), tokenizer), draw(tokenizer, 6))


def test_without_an_answer_the_span_is_cls():
    example = asked("Prague") | {"answers": [], "answer_starts": []}
    assert QuestionAnswering().encode(example, ToyTokenizer())["answer_span"].tolist() == [0, 0]


@pytest.mark.parametrize("stride", [1, 3, 7, 50])
@pytest.mark.parametrize("answer", ["000", "029 030 031", "059"])
def test_windows_are_those_of_brute_force(stride, answer):
    tokenizer, objective = ToyTokenizer(), QuestionAnswering(stride=stride)
    pieces = objective.pieces(objective.encode(asked(answer, WORDS), tokenizer), draw(tokenizer, 15))
    words, room, start, covered = WORDS.split(), 10, 0, set()
    for number, piece in enumerate(pieces):
        window = words[start : start + room]
        covered |= set(window)
        written = tokenizer.tokens(piece["inputs"])
        assert written == ["<cls>", "who", "did", "<sep>", *window, "<sep>"]
        assert piece["inputs_types"].tolist() == [0] * 4 + [1] * (len(window) + 1)
        first, last = piece["answer_span"]
        if set(answer.split()) <= set(window):
            assert " ".join(written[first : last + 1]) == answer
            assert WORDS[piece["_starts"][first] : piece["_stops"][last]] == answer
        else:
            assert (first, last) == (0, 0)
        assert number == len(pieces) - 1 or start + room < len(words)
        start += min(stride, room)
    assert covered == set(words)


def test_a_long_question_is_cut_or_an_error():
    tokenizer, objective = ToyTokenizer(), QuestionAnswering(max_question_length=5)
    tokens = objective.encode(asked("001", WORDS, question=WORDS), tokenizer)
    assert tokenizer.tokens(tokens["inputs"][:8]) == ["<cls>", *WORDS.split()[:5], "<sep>", "000"]
    with pytest.raises(ValueError, match=r"of 5 tokens leaves no room .* data.max_length=8: raise"):
        objective.pieces(tokens, draw(tokenizer, 8))


def test_how_much_of_a_question_was_cut_is_said_in_every_window():
    tokenizer, objective = ToyTokenizer(), QuestionAnswering(max_question_length=5, stride=4)
    tokens = objective.encode(asked("001", WORDS, question=WORDS), tokenizer)
    for max_length in (16, 100):
        pieces = objective.pieces(tokens, draw(tokenizer, max_length))
        assert (len(pieces) > 1) == (max_length == 16)
        assert [int(piece["_cut"]) for piece in pieces] == [55] * len(pieces)  # of 60 tokens
    short = objective.encode(asked("001", WORDS, question="a b c d e"), tokenizer)
    assert not any("_cut" in piece for piece in [short, *objective.pieces(short, draw(tokenizer, 16))])


@pytest.mark.parametrize(("answer", "start"), [("Prague", 17), ("1348", -5), ("Brno", 18), ("", 3)])
def test_an_answer_that_is_not_where_it_should_be_is_an_error(answer, start):
    example = asked("Prague") | {"answers": [answer], "answer_starts": [start]}
    with pytest.raises(ValueError, match=f"the answer '{answer}' is not at character {start} of its context"):
        QuestionAnswering().encode(example, ToyTokenizer())


@pytest.mark.parametrize("name", ["stride", "max_question_length"])
def test_bad_fields_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        QuestionAnswering(**{name: 0})


def test_loss_is_that_of_numpy_over_real_tokens(rng):
    tokenizer, objective = ToyTokenizer(), QuestionAnswering(stride=4)
    tokens = objective.encode(asked("Prague"), tokenizer)
    pieces = objective.pieces(tokens, draw(tokenizer, 12))
    logits = rng.normal(size=(len(pieces) + 1, 14, 2)).astype(np.float32)
    logits[0, 12:] = 50.0  # padding, however probable, is no token
    logits[1, pieces[1]["answer_span"], [0, 1]] = 9.0
    logits[2, pieces[2]["answer_span"][0], 0] = 9.0  # one end alone is not right
    logits[2, pieces[2]["answer_span"][1] + 1, 1] = 9.0
    seen = {}

    def apply(variables, **arguments):
        seen.update(arguments)
        return jnp.asarray(logits)

    loss, sums = objective.loss(apply, {}, padded(pieces, 14), {}, train=False)
    assert {"inputs_types", "inputs_segments"} < set(seen) and "answer_span" not in seen
    each, right = [], []
    for row, piece in enumerate(pieces):
        real = logits[row, : len(piece["inputs"])]
        log_p = log_softmax(real.T)
        each.append(-(log_p[0, piece["answer_span"][0]] + log_p[1, piece["answer_span"][1]]) / 2)
        right.append((real.argmax(axis=0) == piece["answer_span"]).all())
    assert len(each) == 3 and any(right)
    np.testing.assert_allclose(loss, sum(each), rtol=1e-5)
    metrics = objective.metrics(floats(sums))
    wanted = [np.mean(each), np.mean(right)]
    np.testing.assert_allclose([metrics[n] for n in objective.METRICS], wanted, rtol=1e-5)


def test_the_best_span_is_that_of_a_search(rng):
    for _ in range(100):
        start, end = rng.normal(size=(2, 9)).astype(np.float32)
        allowed = rng.random(9) < 0.6
        allowed[rng.integers(9)] = True
        most = int(rng.integers(1, 6))
        spans = [
            (float(start[i]) + float(end[j]), i, j)
            for i in range(9)
            for j in range(i, min(9, i + most))
            if allowed[i] and allowed[j]
        ]
        found = best_span(start, end, allowed, most)
        assert (found.score, found.first, found.last) == max(spans)


@pytest.mark.parametrize(("allowed", "most"), [(False, 5), (True, 0)])
def test_no_possible_span_is_an_error(allowed, most):
    logits = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="no span can be chosen"):
        best_span(logits, logits, np.full(3, allowed), most)
