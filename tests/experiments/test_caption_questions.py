"""The caption_questions TFDS data set: patterns, answers that are the only ones, the builder, baselines."""

import dataclasses
import gzip
import hashlib
import itertools
import json
import os
import re
import sys

import pytest

from benchmarks import caption_questions as baseline
from experiments.caption_questions import caption_questions as module
from experiments.caption_questions import templates, words
from transformer_jax.data import SPLITS, DataError, data_folder, load_source
from transformer_jax.data.text_files import DATA_VARIABLE
from transformer_jax.objectives import QuestionAnswering

LADDER = "A man in a blue shirt is standing on a ladder cleaning a window."
# Caption, kind, questions from short to long, answer: read off the captions by hand.
DOGS = "Two young dogs run through the snow."
BALL = "Young boy holds a red ball."
HAT = "A woman wearing a light blue hat and jeans smiles."
CLEANING = "standing on a ladder cleaning a window"
ASKED = [
    (LADDER, "who", ["Who is standing?", f"Who is {CLEANING}?"], "A man in a blue shirt"),
    (LADDER, "doing", ["What is the man doing?", "What is the man in a blue shirt doing?"], CLEANING),
    (
        LADDER,
        "where",
        ["Where is the man standing?", "Where is the man in a blue shirt standing?"],
        "on a ladder",
    ),
    (
        LADDER,
        "wearing",
        ["What is the man wearing?", f"What is the man who is {CLEANING} wearing?"],
        "a blue shirt",
    ),
    (
        LADDER,
        "colour",
        ["What colour is the man's shirt?", f"What colour is the shirt of the man who is {CLEANING}?"],
        "blue",
    ),
    (
        DOGS,
        "count",
        ["How many young dogs are there?", "How many young dogs are running through the snow?"],
        "Two",
    ),
    (DOGS, "where", ["Where are the two young dogs running?"], "through the snow"),
    (
        DOGS,
        "who",
        ["Which animal is running?", "Which animal is running through the snow?"],
        "Two young dogs",
    ),
    (BALL, "what", ["What is the young boy holding?"], "a red ball"),
    (BALL, "colour", ["What colour is the ball?"], "red"),
    (
        "A large black and white dog is running.",
        "colour",
        ["What colour is the dog?", "What colour is the dog that is running?"],
        "black and white",
    ),
    (
        "A dog in a red sweater is running.",
        "colour",
        ["What colour is the dog's sweater?", "What colour is the sweater of the dog that is running?"],
        "red",
    ),
    (HAT, "wearing", ["What is the woman wearing?"], "a light blue hat and jeans"),
    (
        HAT,
        "colour",
        ["What colour is the woman's hat?", "What colour is the hat of the woman who is smiling?"],
        "light blue",
    ),
    (
        "Two workers in hard hats and safety vests stand.",
        "wearing",
        ["What are the two workers wearing?"],
        "hard hats and safety vests",
    ),
    ("A man and a woman are riding a horse.", "who", ["Who is riding a horse?"], "A man and a woman"),
    (
        "A group of people sit at a table while a dog watches.",
        "where",
        ["Where is the group of people sitting?"],
        "at a table",
    ),
    ("An Asian girl plays a guitar on a stage.", "what", ["What is the Asian girl playing?"], "a guitar"),
    (
        "The boy, wearing a red cap, is jumping into a pool.",
        "where",
        ["Where is the boy jumping?", "Where is the boy wearing a red cap jumping?"],
        "into a pool",
    ),
]
# Caption and kinds that must not be asked: the answer would be wrong, or only a part.
NOT_ASKED = [
    ("A man sitting on a bench reads a book.", {"who", "doing", "where"}),  # two verbs
    ("Surfer catching a good, deep wave.", {"who", "doing", "what"}),  # a list, no clause
    ("A man is sitting next to another man.", {"who", "doing"}),  # "another": unclear in a question
    ("A man is chasing a woman.", {"what"}),  # a person is no thing
    ("A man and a woman are running on a beach.", {"doing", "where"}),  # the question would name both
    ("A black woman is sitting on a chair.", {"colour"}),
    ("A man runs while a woman sits, smiling.", {"doing"}),
    ("A man in red is walking.", {"wearing", "colour"}),  # a colour is no garment
    ("The street is full of shops.", set(templates.KINDS)),
    ("", set(templates.KINDS)),
]

PEOPLE = ("man", "woman", "boy", "girl")
COLOURS = ("red", "green", "purple", "yellow")
GARMENTS = ("shirt", "jacket", "sweater", "hat")
VERBS = ("sitting", "running", "dancing", "waiting", "sleeping")
PLACES = ("on a bench", "across a field", "in a boat", "behind a wall", "near a tent")
ACTIONS = tuple(itertools.product(VERBS, PLACES))
FACTS = list(itertools.product(PEOPLE, COLOURS, GARMENTS, ACTIONS))


def caption_of(fact):
    person, colour, garment, (verb, place) = fact
    return f"A {person} in a {colour} {garment} is {verb} {place}."


def mixed_facts(number):
    """Facts in an order without pattern, the same in every run; each occurs once."""
    return sorted(FACTS, key=lambda fact: hashlib.sha256(caption_of(fact).encode()).digest())[:number]


@pytest.mark.parametrize(("caption", "kind", "questions", "answer"), ASKED)
def test_questions_about_a_caption(caption, kind, questions, answer):
    found = [one for one in templates.candidates(caption) if one.kind == kind]
    assert [caption[one.start : one.stop] for one in found] == [answer]
    assert list(found[0].questions) == questions


@pytest.mark.parametrize(("caption", "kinds"), NOT_ASKED)
def test_what_is_not_asked(caption, kinds):
    assert not kinds & {one.kind for one in templates.candidates(caption)}


@pytest.mark.parametrize(
    ("word", "other", "expected"),
    [
        ("man", "guys", True),
        ("man", "woman", False),
        ("girl", "woman", False),
        ("person", "girl", True),
        ("child", "boy", True),
        ("child", "adult", False),
        ("dog", "puppies", True),
        ("dog", "cat", False),
        ("animal", "cat", True),
        ("person", "dog", False),
        ("ride", "riding", True),
        ("carries", "carrying", True),
        ("bike", "bicycles", True),
        ("benches", "bench", True),
        ("bus", "buses", True),
        ("shirt", "t-shirt", True),
        ("shirt", "skirt", False),
    ],
)
def test_words_that_may_mean_the_same(word, other, expected):
    assert words.agree(word, other) is words.agree(other, word) is expected


def test_verb_forms():
    known = (
        "sit sits sitting, ride rides riding, carry carries carrying, chop chops chopping, lie lies lying, "
        "watch watches watching, ski skis skiing, play plays playing, tie ties tying, go goes going"
    )
    for forms in known.split(", "):
        base, third_person, participle = forms.split()
        assert words.PARTICIPLE_OF[base] == words.PARTICIPLE_OF[third_person] == participle
        assert base in words.BASES and third_person in words.THIRD_PERSONS


def means(question, fact):
    """Whether a question, by its words alone, is about this fact: none of its words speaks of another."""
    asked = set(re.findall(r"\w+", question.question.removesuffix("'s")))
    person, colour, garment, (verb, place) = fact
    named = ((PEOPLE, person), (COLOURS, colour), (GARMENTS, garment))
    named += ((VERBS, verb), ([name.split()[-1] for name in PLACES], place.split()[-1]))
    return all(asked & set(all_of_them) <= {own} for all_of_them, own in named)


def right_answer(kind, fact):
    person, colour, garment, (verb, place) = fact
    return {
        "who": f"A {person} in a {colour} {garment}",
        "doing": f"{verb} {place}",
        "where": place,
        "wearing": f"a {colour} {garment}",
        "colour": colour,
    }[kind]


def test_exactly_one_fact_answers_every_question(monkeypatch):
    monkeypatch.setattr(module, "MOST_QUESTIONS_OF_CONTEXT", 5)
    facts = mixed_facts(120)
    fact_of = {caption_of(fact): fact for fact in facts}
    questions, left_out = module.make_questions(list(fact_of), 10_000)
    assert {question.kind for question in questions} == {"who", "doing", "where", "wearing", "colour"}
    assert len(questions) > 200 and left_out["not the only answer"] > 100
    for question in questions:
        context = [fact_of[sentence] for sentence in re.split(r"(?<=\.) ", question.context)]
        assert 3 <= len(context) <= 5
        (meant,) = (fact for fact in context if means(question, fact))
        assert question.answer == right_answer(question.kind, meant)
        assert question.context[question.start :].startswith(question.answer)
        place = question.context[: question.start].count(". ")
        assert context[place] == meant


def test_limits_of_a_context_and_nothing_asked_twice():
    questions, _ = module.make_questions([caption_of(fact) for fact in mixed_facts(100)], 10_000, "some")
    ids = [question.id for question in questions]
    assert len(set(ids)) == len(ids)
    for _, group in itertools.groupby(ids, key=lambda name: name.rsplit("-", 1)[0]):
        kinds = [name.rsplit("-", 1)[1] for name in group]
        assert len(kinds) <= 3 and len(set(kinds)) == len(kinds)
    asked = [
        (question.question, question.context.split(". ")[question.context[: question.start].count(". ")])
        for question in questions
    ]
    asked = [(question, sentence.rstrip(".")) for question, sentence in asked]
    assert len(set(asked)) == len(asked)


def test_a_question_needs_another_thing_like_its_answer():
    captions = ["A man in a red shirt is running.", "A street at night.", "A house near a lake."]
    questions, left_out = module.make_questions(captions, 10)
    assert questions == [] and left_out["nothing else looks like an answer"] > 0
    captions[1] = "A house with green walls."
    (question,), _ = module.make_questions(captions, 10)
    answers = {"What colour is the man's shirt?": "red", "What colour are the walls?": "green"}
    assert question.answer == answers[question.question]


def test_what_two_captions_answer_is_not_asked():
    captions = [
        "A man in a red shirt is running on a beach.",
        "A guy in a red shirt is running on a beach.",
        "A man in a red shirt runs along the beach.",
    ]
    assert module.make_questions(captions, 10)[0] == []


def test_the_same_questions_every_time():
    captions = [caption_of(fact) for fact in mixed_facts(60)]
    questions, _ = module.make_questions(captions, 10_000, "test")
    assert module.make_questions(captions, 10_000, "test")[0] == questions
    fewer, left_out = module.make_questions(captions, 20, "test")
    assert len(fewer) == 20 and left_out["beyond the most"] == len(questions) - 20
    assert set(fewer) < set(questions)
    # What is stored under version 1.0.0 must not change.
    text = json.dumps([vars(question) for question in questions])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "050349ef322d5330"


def write_captions(folder, parts):
    os.makedirs(folder / "multi30k")
    for name, facts in parts.items():
        text = "".join(caption_of(fact) + "\n" for fact in facts)
        (folder / "multi30k" / f"{name}.en.gz").write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def small_multi30k(tmp_path, monkeypatch):
    """A data folder with captions: 100, 30 and 30, of which the first of each part are the same."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    facts = mixed_facts(160)
    parts = {
        "train": facts[:100],
        "val": facts[:1] + facts[100:129],
        "test_2016_flickr": facts[:1] + facts[130:159],
    }
    write_captions(tmp_path / "data", parts)
    return tmp_path / "data"


def config(folder, **changes):
    return dataclasses.replace(baseline.SOURCE, folder=str(folder), **changes)


def examples_of(folder, split):
    source = load_source(config(folder), split)
    return source.read(range(len(source)))


def test_it_is_prepared_on_first_use_and_reused(small_multi30k, monkeypatch):
    first = {split: examples_of(small_multi30k, split) for split in SPLITS}
    prepared = []
    monkeypatch.setattr(module.CaptionQuestions, "download_and_prepare", lambda self: prepared.append(self))
    assert {split: examples_of(small_multi30k, split) for split in SPLITS} == first and not prepared
    source = load_source(config(small_multi30k, name="caption_questions"), "test")
    assert source.read(range(len(source))) == first["test"]
    assert "tensorflow" not in sys.modules
    for examples in first.values():
        assert len(examples) > 20
        for example in examples:
            ((answer, start),) = zip(example["answers"], example["answer_starts"], strict=True)
            assert example["context"][start : start + len(answer)] == answer
            assert set(QuestionAnswering.FEATURES) == set(example)


def test_no_caption_is_in_two_splits(small_multi30k):
    seen = [
        {
            sentence
            for example in examples_of(small_multi30k, split)
            for sentence in example["context"].split(". ")
        }
        for split in SPLITS
    ]
    seen = [{sentence.rstrip(".") for sentence in sentences} for sentences in seen]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    captions = module.read_captions([str(small_multi30k)])
    assert {split: len(lines) for split, lines in captions.items()} == {
        "train": 100,
        "validation": 29,
        "test": 29,
    }


def test_captions_may_lie_in_another_folder(small_multi30k, tmp_path, monkeypatch):
    expected = examples_of(small_multi30k, "test")
    monkeypatch.setenv(DATA_VARIABLE, str(small_multi30k))
    assert examples_of(tmp_path / "prepared", "test") == expected
    assert (tmp_path / "prepared" / "caption_questions").is_dir()


def test_a_missing_file_is_named_and_nothing_is_left_behind(small_multi30k):
    os.remove(small_multi30k / "multi30k" / "val.en.gz")
    with pytest.raises(DataError) as error:
        load_source(config(small_multi30k), "train")
    message = str(error.value)
    assert "multi30k/val.en.gz of Multi30k, which is not in" in message and "\n" not in message
    assert (
        f"copy data/task1/raw/val.en.gz of https://github.com/multi30k/dataset to {small_multi30k}" in message
    )
    assert not list(small_multi30k.rglob("*array_record*")) and not list(small_multi30k.rglob("*incomplete*"))


def test_captions_without_a_full_stop_are_left_out(tmp_path):
    write_captions(tmp_path, {"val": [], "test_2016_flickr": []})
    text = "A man is running. \r\nA dog\n\nTwo men sit\nA dog sleeps.\n"
    (tmp_path / "multi30k" / "train.en.gz").write_bytes(gzip.compress(text.encode()))
    captions = module.read_captions([str(tmp_path)])
    assert captions == {"train": ["A man is running.", "A dog sleeps."], "validation": [], "test": []}


def test_the_baselines():
    context = "A man in a blue shirt is running on a beach. Two women sit on a red bench."
    answers = {
        "Where are the two women sitting?": "on a red bench",
        "What colour is the bench?": "red",
        "How many women are there?": "Two",
        "Who is running on a beach?": "A man in a blue shirt",
        "What is the man doing?": "running on a beach",
        "What is the man wearing?": "a blue shirt",
    }
    for question, answer in answers.items():
        assert baseline.lexical_answer(question, context) == answer
    assert baseline.first_sentence_answer("What colour is the bench?", context) == "blue"
    examples = [{"inputs": q, "context": context, "answers": [answer]} for q, answer in answers.items()]
    assert baseline.scores(baseline.lexical_answer, examples) == (100, 100)


@pytest.mark.slow
def test_the_questions_of_multi30k():
    captions = module.read_captions([data_folder("")])
    sizes = {}
    for split, lines in captions.items():
        questions, _ = module.make_questions(lines, module.MOST_QUESTIONS[split], split)
        sizes[split] = len(questions)
        for question in questions:
            assert question.context[question.start :].startswith(question.answer) and question.answer
            assert any(question.answer in line for line in lines)
    assert sizes == {"train": 37_878, "validation": 1_403, "test": 1_419}
