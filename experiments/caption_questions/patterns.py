"""Regular expressions over the lists of ``words`` that parse captions and find the answers in them."""

import re
from collections.abc import Iterable

from experiments.caption_questions import words


def any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in names)


_FORMS = words.PARTICIPLES | words.THIRD_PERSONS
_STOP = any_of(sorted(words.FUNCTION_WORDS | _FORMS))
_ING = rf"(?!(?!(?:{any_of(sorted(words.ING_NOUNS))})\b)\w+ing\b)"  # excludes words in -ing, except nouns
_DETERMINER = rf"(?:{any_of(words.DETERMINERS)})"
_WORD = rf"(?!(?:{_STOP}|{any_of(words.DETERMINERS)})(?![\w'-])){_ING}[A-Za-z][\w'-]*"
_COLOUR = rf"(?:(?:{any_of(words.SHADES)}) )?(?:{any_of(words.COLOURS)})"
_COLOURS = rf"(?:{_COLOUR}, )?{_COLOUR}(?:,? and {_COLOUR})?"
_WORDS = rf"(?:(?:{_COLOURS}|{_WORD}),? )"
# The end of a noun phrase: no further noun follows.
_END = rf"(?=[.,]|$| (?:{_STOP}|{any_of(words.DETERMINERS)})\b| \w+ing\b)"
_BEFORE_A_VERB = rf"(?= (?:{any_of(sorted(words.BASES))})\b)"  # for plurals: "Two men in hats | sit"
_ITEM = rf"(?:(?:{_DETERMINER}) )?{_WORDS}{{0,4}}?(?:{any_of(words.LOOKS)})(?:{_END}|{_BEFORE_A_VERB})"
_ITEMS = rf"{_ITEM}(?:,? and {_ITEM})?"
_LOOKS = rf"(?:,? (?:in|with|wearing|dressed in) {_ITEMS},?)"
_BEINGS = any_of([*words.PEOPLE, *words.ANIMALS])
_CORE = (
    rf"(?:(?P<determiner>(?i:{any_of(words.GROUPS)}|{any_of(words.DETERMINERS)})) )?"
    rf"(?P<modifiers>{_WORDS}{{0,3}}?)(?P<head>(?i:{_BEINGS}))\b"
)
_AND_ANOTHER = rf" and (?:(?:{_DETERMINER}) )?{_WORDS}{{0,3}}?(?:{_BEINGS})\b{_LOOKS}?"
_VERB = any_of(sorted(words.PARTICIPLE_OF, key=len, reverse=True))
CAPTION = re.compile(
    rf"(?P<subject>(?P<core>{_CORE})(?P<looks>{_LOOKS}{{0,2}})(?P<second>(?:{_AND_ANOTHER})?))"
    rf"(?: (?P<auxiliary>is|are))? (?P<verb>{_VERB})(?P<rest>(?: [^.]*)?)\."
)
LOOKS_ALONE = re.compile(rf"(?P<subject>(?P<core>{_CORE})(?P<looks>{_LOOKS}{{1,2}}))(?=[ .])")
CLAUSE = re.compile(
    rf"[,;:]| (?:while|as|when|who|that|which|where|because|but|so|if|before|after)\b"
    rf"| and (?:is |are )?(?:{any_of(sorted(_FORMS))})\b"
)
LIST = re.compile(rf",(?! (?:{_STOP})\b)")  # a comma that does not begin a clause: "a good, deep wave"
_PLACE = rf"(?:{_DETERMINER} )?{_WORDS}{{0,3}}?(?:{any_of(words.PLACES)}){_END}"
_BESIDE = rf"(?:{_DETERMINER} )?{_WORDS}{{0,3}}?(?:{any_of([*words.PLACES, *words.OBJECTS])}|{_BEINGS}){_END}"
WHERE = re.compile(
    rf"(?P<object> (?:{_DETERMINER} )?(?:{_WORD} ){{0,2}}{_WORD})??(?: (?:together|alone|outside|outdoors))?"
    rf" (?P<answer>(?:(?:{any_of(words.PREPOSITIONS)}) {_PLACE}(?: of {_PLACE})?"
    rf"|(?:in front of|next to|beside|near|behind) {_BESIDE})"
    rf"(?: (?:{any_of(words.PREPOSITIONS)}) {_PLACE}(?: of {_PLACE})?)*)"
    rf"(?=[.,]| (?:while|as|with|during|wearing|{any_of(sorted(words.PARTICIPLES))})\b)"
)
_NOUN_PHRASE = rf"(?:{_DETERMINER} )?{_WORDS}{{0,4}}{_WORD}{_END}"
OBJECT = re.compile(
    rf" (?P<answer>{_NOUN_PHRASE}(?: of {_NOUN_PHRASE})?(?: and {_NOUN_PHRASE})?)"
    rf"(?=[.,]| (?!of\b|and {_DETERMINER}\b)(?:{_STOP})\b| \w+ing\b)"
)
NOT_WORN = tuple(look for look in words.LOOKS if look not in words.CLOTHES)
LOOK = re.compile(rf"(?P<way>in|with|wearing|dressed in) (?P<items>{_ITEMS})")
COLOURED = re.compile(
    rf"\b(?i:a|an|the|his|her|in|wearing|with|and|two|three|of) (?:{_WORD} )??"
    rf"(?<![\w-])(?P<colour>{_COLOURS}) (?:{_WORD} ){{0,2}}?"
    rf"(?P<noun>{any_of([*words.OBJECTS, *words.CLOTHES, 'hair', *words.ANIMALS])}){_END}"
)
ENDS_IN_COLOUR = re.compile(rf"\b{_COLOUR},? $")
_PLURALS = any_of([*sorted(words.PLURALS), *(noun for noun in words.OBJECTS if noun.endswith("s"))])
COUNTED = re.compile(
    rf"\b(?P<number>(?i:{any_of(words.NUMBERS)})) "
    rf"(?P<noun>(?:{_WORD} ){{0,2}}?(?:{_PLURALS}))(?:{_END}|{_BEFORE_A_VERB})"
)

STAYING = words.listed(
    "sitting standing walking running jumping climbing swimming dancing jogging sleeping laying lying "
    "kneeling waiting resting leaping playing working performing skateboarding surfing skiing skating "
    "crouching squatting relaxing lounging floating fishing hiking racing marching crawling biking "
    "snowboarding diving wading sailing sliding rowing paddling kayaking rollerblading singing strolling "
    "posing gathering swinging riding pushing pulling driving eating reading falling leaning hanging "
    "shopping"
)
WITH_OBJECT = words.listed("playing riding pushing pulling driving eating reading")
TAKING = words.listed(
    "holding carrying riding pushing pulling throwing kicking eating reading painting driving flying "
    "catching chasing watching cooking selling cleaning washing fixing using cutting climbing feeding "
    "opening sweeping juggling swinging drinking sewing hitting lifting tossing petting examining carving "
    "grilling playing making building repairing inspecting buying peeling dragging operating preparing "
    "serving"
)
# Words that keep their capital letter.
PROPER = words.listed("Asian African American Indian Chinese Japanese Caucasian Hispanic Muslim")
NEVER_CUT = words.listed("putting setting getting giving bringing coming going leaving throwing taking")
# For each kind of question, a pattern of possible answers.
_LIKE_AN_ANSWER = {
    "who": rf"\b(?i:{_BEINGS})\b.* (?:{any_of(sorted(_FORMS))})\b",
    "doing": rf"\b(?:{any_of(sorted(words.PARTICIPLES))})\b",
    "where": rf" (?:{any_of(words.PREPOSITIONS)}) {_PLACE}",
    "what": rf"\b(?:{any_of(sorted(form for form, of in words.PARTICIPLE_OF.items() if of in TAKING))})\b",
    "wearing": rf"\b(?:in|wearing) {_ITEM}",
    "colour": rf"\b(?:{any_of(words.COLOURS)})\b",
    "count": rf"\b(?i:{any_of(words.NUMBERS)})\b",
}
RIVALS = {kind: re.compile(pattern) for kind, pattern in _LIKE_AN_ANSWER.items()}
UNCLEAR = re.compile(r"\b(?:each other|one another|another|together|is|are|was|has|have|does|it|this|that)\b")
PREPOSITION = re.compile(rf" (?:{any_of(words.PREPOSITIONS)})(?![\w-])")
INCOMPLETE = re.compile(r" (?:and|or|of|to|from|with|for|up|down|out|off|\w+ing|the|a)$")
FINITE = re.compile(
    rf"(?<!to )\b(?:is|are|was|has|have|does|do|{any_of(sorted(words.THIRD_PERSONS.union(words.BASES)))})\b"
)
