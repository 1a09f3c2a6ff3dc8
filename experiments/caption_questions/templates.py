"""Generates the questions that can be asked about one caption, with patterns over the lists of ``words``.

A caption is parsed into *subject, looks, verb, rest*, as in "A man | in a blue shirt | is standing | on a
ladder cleaning a window". If a caption cannot be parsed, only its colours and numbers are asked for.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

from experiments.caption_questions import patterns, words

KINDS = ("who", "doing", "where", "what", "wearing", "colour", "count")
MOST_WORDS_OF_REST = 8  # maximum number of words after the verb that a question repeats

_SAYS_NOTHING = words.FUNCTION_WORDS.union(
    words.listed(
        "who which animal is are where what colour how many there doing wearing a an the group couple pair "
        "crowd team bunch his her their its some several few large small front"
    )
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A possible question about a caption; it is used if nothing else in the context answers it.

    Attributes:
      kind: the kind of question, one of ``KINDS``.
      questions: forms of the question, from short to long; longer ones are more specific.
      start: the first character of the answer in the caption.
      stop: the end of the answer in the caption, exclusive.
      subject: a noun that must occur only once in the caption, because the question would be ambiguous
        otherwise; or "".
    """

    kind: str
    questions: tuple[str, ...]
    start: int
    stop: int
    subject: str


@dataclasses.dataclass(frozen=True)
class _Parts:
    """A parsed caption: its first noun phrase, its verb and the rest."""

    subject: tuple[int, int]  # characters
    core: str  # "the young man"
    looks: str  # " in a blue shirt"
    head: str
    is_plural: bool
    has_second: bool  # "A man and a woman"
    verb: str  # participle, or ""
    shown_verb: tuple[int, int]
    rest: str  # from the verb to the next clause
    rest_start: int
    is_whole: bool  # whether the rest goes to the end of the caption

    @property
    def be(self) -> str:
        return "are" if self.is_plural or self.has_second else "is"

    @property
    def who(self) -> str:
        return "that" if self.head in words.ANIMALS else "who"

    @property
    def predicate(self) -> str:
        """The words of a question for what the subject does; "" if that is unknown, too long or unclear."""
        is_clear = (
            self.verb
            and not patterns.UNCLEAR.search(self.rest)
            and len(self.rest.split()) <= MOST_WORDS_OF_REST
        )
        return self.verb + self.rest if is_clear else ""


def candidates(caption: str) -> list[Candidate]:
    """Returns all possible questions about a caption, in the order of ``KINDS`` and of the answers."""
    parts = _parse(caption)
    found = [*_of_colours(caption, parts), *_of_numbers(caption, parts)]
    if parts is not None:
        found += [
            candidate for ask in (_who, _doing, _where, _what, _wearing) for candidate in ask(caption, parts)
        ]
    return sorted(found, key=lambda candidate: (KINDS.index(candidate.kind), candidate.start))


def could_mislead(caption: str, kind: str) -> bool:
    """Returns whether a caption contains something like an answer to a question of this kind."""
    return patterns.RIVALS[kind].search(caption) is not None


def _parse(caption: str) -> _Parts | None:
    match = patterns.CAPTION.fullmatch(caption)
    if match is None or not _has_one_verb(match):
        match = patterns.LOOKS_ALONE.match(caption)
        if match is None:
            return None
    groups = match.groupdict()
    determiner = (groups["determiner"] or "").lower()
    modifiers = groups["modifiers"]
    if modifiers and not determiner and modifiers.split()[0] not in patterns.PROPER:
        modifiers = modifiers[0].lower() + modifiers[1:]
    if determiner in ("a", "an", "the", "one", "some", "several", "many", "a few", "few", "its", "their"):
        determiner = ""
    core = " ".join(
        ["the", *determiner.removeprefix("a ").split(), *modifiers.split(), groups["head"].lower()]
    )
    rest = groups.get("rest") or ""
    clause = patterns.CLAUSE.search(rest)
    is_group = determiner.split()[-1:] == ["of"]
    verb = groups.get("verb") or ""
    if clause and patterns.LIST.match(rest, clause.start()):
        verb = ""
    return _Parts(
        subject=(match.start("subject"), match.start("subject") + len(match["subject"].rstrip(","))),
        core=core,
        looks=groups["looks"].replace(",", ""),
        head=groups["head"].lower(),
        is_plural=groups["head"].lower() in words.PLURALS and (not is_group or "couple" in determiner),
        has_second=bool(groups.get("second")),
        verb=words.PARTICIPLE_OF.get(verb, ""),
        shown_verb=match.span("verb") if verb else (0, 0),
        rest=rest[: clause.start()] if clause else rest,
        rest_start=match.start("rest") if verb else 0,
        is_whole=clause is None,
    )


def _has_one_verb(match: re.Match[str]) -> bool:
    """Returns whether the matched verb is the main verb; in "A man sitting on a bench reads" it is not."""
    if match["auxiliary"] is not None:
        return True
    if match["verb"] in words.PARTICIPLES:
        clause = re.split(r",| while | as ", match["rest"])[0]
        return not patterns.FINITE.search(clause)
    is_plural = match["head"].lower() in words.PLURALS or bool(match["second"])
    is_group = match["head"].lower() in ("couple", "crowd", "family", "band", "team", "group")
    return is_group or (match["verb"] in words.BASES) == is_plural


def _who(caption: str, parts: _Parts) -> Iterator[Candidate]:
    if parts.predicate:
        word = "Which animal" if parts.head in words.ANIMALS else "Who"
        rest = parts.predicate.removeprefix(parts.verb)
        cuts = [match.start() for match in patterns.PREPOSITION.finditer(rest)]
        if parts.verb in patterns.NEVER_CUT:
            cuts = []
        elif parts.verb not in patterns.STAYING:  # "Who is looking?" is not a complete question
            cuts = [cut for cut in cuts if cut > 0]
        rests = [*(rest[:cut] for cut in cuts), rest]
        rests = [shown for shown in rests if not patterns.INCOMPLETE.search(shown)]
        if rests:
            questions = [f"{word} is {parts.verb}{shown}?" for shown in rests]
            yield Candidate("who", tuple(questions), *parts.subject, "")


def _doing(caption: str, parts: _Parts) -> Iterator[Candidate]:
    start, stop = parts.shown_verb
    if not parts.predicate or parts.has_second or caption[start:stop] != parts.verb:
        return
    if not parts.rest or not parts.is_whole:
        return
    questions = [f"What {parts.be} {parts.core}{looks} doing?" for looks in _short_and_long(parts)]
    yield Candidate("doing", tuple(questions), start, parts.rest_start + len(parts.rest), parts.head)


def _where(caption: str, parts: _Parts) -> Iterator[Candidate]:
    match = patterns.WHERE.match(caption, parts.rest_start)
    if parts.verb not in patterns.STAYING or parts.has_second or match is None:
        return
    if (match["object"] and parts.verb not in patterns.WITH_OBJECT) or patterns.UNCLEAR.search(match[0]):
        return
    verb = parts.verb + (match["object"] or "")
    questions = [f"Where {parts.be} {parts.core}{looks} {verb}?" for looks in _short_and_long(parts)]
    yield Candidate("where", tuple(questions), *match.span("answer"), parts.head)


def _what(caption: str, parts: _Parts) -> Iterator[Candidate]:
    match = patterns.OBJECT.match(caption, parts.rest_start)
    if parts.verb not in patterns.TAKING or parts.has_second or match is None:
        return
    if any(words.is_being(word) for word in match["answer"].split()):
        return
    questions = [f"What {parts.be} {parts.core}{looks} {parts.verb}?" for looks in _short_and_long(parts)]
    yield Candidate("what", tuple(questions), *match.span("answer"), parts.head)


def _wearing(caption: str, parts: _Parts) -> Iterator[Candidate]:
    if parts.has_second or not parts.looks:
        return
    matches = [
        match for match in patterns.LOOK.finditer(caption, 0, parts.subject[1]) if match["way"] != "with"
    ]
    if len(matches) != 1 or any(look in matches[0]["items"].split() for look in patterns.NOT_WORN):
        return
    questions = [f"What {parts.be} {parts.core} wearing?"]
    if parts.predicate and parts.rest:
        questions.append(f"What {parts.be} {parts.core} {parts.who} {parts.be} {parts.predicate} wearing?")
    yield Candidate("wearing", tuple(questions), *matches[0].span("items"), parts.head)


def _of_colours(caption: str, parts: _Parts | None) -> Iterator[Candidate]:
    for match in patterns.COLOURED.finditer(caption):
        noun = match["noun"]
        if patterns.ENDS_IN_COLOUR.search(caption, 0, match.start()):  # "black | and white"
            continue
        is_plural = noun.endswith("s") and noun not in ("bus", "dress", "canvas", "grass")
        be = "are" if is_plural else "is"
        questions = [] if noun in (*words.CLOTHES, "hair") else [f"What colour {be} the {noun}?"]
        if parts is not None and not parts.has_second and match.end() <= parts.subject[1]:
            if noun != parts.head and not parts.is_plural:
                questions.append(f"What colour {be} {parts.core}'s {noun}?")
            if parts.predicate:
                owned = noun if noun == parts.head else f"{noun} of {parts.core}"
                questions.append(f"What colour {be} the {owned} {parts.who} {parts.be} {parts.predicate}?")
        if questions:
            yield Candidate("colour", tuple(questions), *match.span("colour"), noun)


def _of_numbers(caption: str, parts: _Parts | None) -> Iterator[Candidate]:
    for match in patterns.COUNTED.finditer(caption):
        noun = match["noun"]
        questions = [f"How many {noun} are there?"]
        if parts is not None and match.start() == 0 and not parts.has_second and parts.predicate:
            questions.append(f"How many {noun} are {parts.predicate}?")
        yield Candidate("count", tuple(questions), *match.span("number"), noun.split()[-1])


def _short_and_long(parts: _Parts) -> list[str]:
    return ["", parts.looks] if parts.looks else [""]


@functools.lru_cache(maxsize=200_000)
def content(text: str) -> tuple[str, ...]:
    """Returns the content words of a text, without function words and question words."""
    found = (word.removesuffix("'s") for word in re.findall(r"[A-Za-z][\w'-]*", text))
    return tuple(word for word in found if word.lower() not in _SAYS_NOTHING)


def fits(caption: str, question: str) -> bool:
    """Returns whether a caption contains, or could contain, everything that a question mentions."""
    there = content(caption)
    return all(any(words.agree(word, other) for other in there) for word in content(question))


def times(caption: str, noun: str) -> int:
    """Returns how often a caption mentions something that ``noun`` can mean."""
    return sum(words.agree(noun, word) for word in content(caption))
