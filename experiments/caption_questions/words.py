"""Word lists from which the questions about captions are generated, and the comparison of words."""

import functools
import re
from collections.abc import Iterator


def listed(text: str) -> tuple[str, ...]:
    """Returns the words of a text in their order."""
    return tuple(text.split())


COLOURS = listed(
    "black white red blue green yellow orange pink brown purple gray grey tan beige gold silver maroon "
    "turquoise teal blond blonde"
)
SHADES = listed("light dark bright navy neon royal pale")
NUMBERS = listed("two three four five six seven eight nine ten")
DETERMINERS = ("a", "an", "the", "one", "his", "her", "their", "its", "some", "several", "many", *NUMBERS)
# Beginnings of a noun phrase. Longer ones come first, because a regular expression tries them in this order.
GROUPS = (
    *(
        f"{article}{group} of"
        for article in ("a large ", "a small ", "a ", "")
        for group in ("group", "couple", "pair", "crowd", "team", "bunch")
    ),
    *("a few", "few"),
)

# Nouns for people by gender (m, f or -) and age (adult, child or -); "-" agrees with every value.
_PEOPLE = {
    "m adult": "man/men guy/guys gentleman/gentlemen male/males father/fathers businessman/businessmen "
    "fisherman/fishermen policeman/policemen fireman/firemen cowboy/cowboys workman/workmen monk/monks groom",
    "f adult": "woman/women lady/ladies female/females mother/mothers bride/brides ballerina/ballerinas "
    "businesswoman",
    "m child": "boy/boys son/sons",
    "f child": "girl/girls daughter/daughters",
    "- child": "child/children kid/kids baby/babies toddler/toddlers infant/infants",
    "- adult": "adult/adults",
    "- -": "person/people/persons individual/individuals player/players worker/workers couple/couples crowd "
    "family/families band teenager/teenagers teen/teens youth student/students snowboarder/snowboarders "
    "surfer/surfers skateboarder/skateboarders skier/skiers rider/riders bicyclist/bicyclists "
    "cyclist/cyclists biker/bikers gymnast/gymnasts hiker/hikers artist/artists musician/musicians "
    "athlete/athletes officer/officers runner/runners dancer/dancers performer/performers chef/chefs "
    "climber/climbers clown/clowns singer/singers photographer/photographers pitcher swimmer/swimmers "
    "teacher/teachers soldier/soldiers motorcyclist/motorcyclists goalie firefighter/firefighters "
    "friend/friends vendor/vendors skater/skaters wrestler/wrestlers guitarist/guitarists barber doctor "
    "nurse/nurses coach professor waiter/waiters waitress bartender painter/painters drummer/drummers "
    "tourist/tourists pedestrian/pedestrians spectator/spectators team/teams group/groups someone "
    "cheerleader/cheerleaders jockey/jockeys golfer/golfers batter catcher racer/racers driver/drivers"
    "other/others another one twin/twins sibling/siblings brother/brothers sister/sisters parent/parents",
}
_ANIMALS = listed(
    "animal/animals dog/dogs puppy/puppies cat/cats horse/horses bird/birds cow/cows bull/bulls "
    "poodle/poodles greyhound/greyhounds duck/ducks donkey/donkeys goat/goats camel/camels "
    "elephant/elephants"
)
_NOT_SUBJECTS = {"other", "others", "another", "one", "someone"}  # mean people, but are not used as subjects

CLOTHES = listed(
    "shirt shirts t-shirt t-shirts tee-shirt jacket jackets hat hats dress dresses pants shorts coat "
    "coats jeans uniform uniforms sweater sweaters outfit outfits top tops helmet helmets vest vests suit "
    "suits sweatshirt jersey jerseys cap caps skirt skirts clothing clothes blouse scarf apron aprons "
    "boots shoes bikini hoodie gloves robe robes jumpsuit tie costume costumes goggles sunglasses glasses "
    "swimsuit wetsuit socks headband overalls snowsuit bandanna bandana attire beanie mask masks leotard "
    "belt pajamas headscarf scrubs trunks slacks gear backpack backpacks sandals sneakers cardigan tuxedo "
    "gown kimono earrings necklace"
)
LOOKS = (
    *CLOTHES,
    "hair",
    "beard",
    "mustache",
    "ponytail",
    "umbrella",
    "bag",
    "purse",
    "camera",
    "microphone",
)
OBJECTS = listed(
    "ball balls car cars umbrella umbrellas building buildings bag bags wall walls truck trucks chair "
    "chairs bike bikes boat boats motorcycle motorcycles flowers bicycle bicycles slide object bench "
    "benches guitar kayak kayaks purse sign signs blanket balloon balloons surfboard bucket buckets table "
    "tables tent tents bus couch fence shovel sled flag flags scooter house mat van pole poles door raft "
    "towel tunnel sofa bowl cup rope cones skateboard railing canoe canoes vehicle machine frisbee basket "
    "backpack trampoline box ribbon ladder cart carpet rug train toy toys wagon stroller cake bricks ramp "
    "tractor airplane stool curtain curtains hose kite desk swing trailer pipe mug jeep helicopter tarp"
)
PLACES = listed(
    "street streets sidewalk beach field water park grass table tables snow bench benches road pool "
    "ground room building buildings ocean wall chair chairs city hill path restaurant stage sand tree "
    "trees boat floor kitchen market river track tracks lake woods store fence trail mountain mountains "
    "bar forest couch playground yard window fountain bridge shop court rock rocks car corner bed slide "
    "train tent gym classroom alley ramp shore bus dock pole railing dirt counter walkway wave waves "
    "subway desk blanket parking lot station slope platform desert crosswalk house mat trampoline site "
    "lawn stadium garden roof cafe doorway puddle tunnel log steps stairs structure square racetrack "
    "backyard podium pond courtyard surf pier airport church curb staircase cliff stream studio patio "
    "hall porch office hillside arena library deck hallway escalator museum mud mall balcony ledge sofa "
    "ice intersection stool rink dune sea creek gallery laundromat lane boardwalk auditorium ladder "
    "waterfront waterfall raft stoop boulder factory rug bathroom carpet aisle tub bathtub swing side "
    "middle edge top body air area canoe kayak bicycle motorcycle bike horse crowd"
)
# Prepositions of places. Longer ones come first, because a regular expression tries them in this order.
PREPOSITIONS = (
    *("in front of", "on top of", "next to", "close to", "outside of", "out of"),
    *listed(
        "into onto through down up along across over under near beside behind inside outside around past "
        "towards toward against between above off alongside in on at by"
    ),
)

BASES = listed(
    "sit stand play walk hold look ride run jump talk work smile carry take watch perform eat use read "
    "climb dance pose wait swim sing lay make enjoy paint shop drink hang prepare lean sleep fish sell "
    "race put push throw laugh cut cook pull cross drive fly smoke kick swing practice clean listen "
    "skateboard stare slide point speak compete fight surf kiss chase skate kneel write wave blow fix "
    "help wash dive fall ski reach draw pick hike dig catch hug relax sweep leap rest converse jog "
    "wrestle splash move cry roll sew open shake pour shave march paddle check shoot balance juggle float "
    "buy cheer touch serve operate grill brush bend examine hit share row snowboard feed pet leave mix "
    "fold celebrate squat flip lead stretch turn spray grind crouch inspect box approach discuss follow "
    "carve lounge lift bike weave protest wade interact peer admire study pray teach enter sail browse "
    "clap visit toss adjust chat rollerblade bite chop kayak embrace gaze sort bounce crawl stir bake "
    "measure repair tackle hammer saw stroll gather lie do try get show shovel weld strum type swing knit "
    "decorate perform bathe shower load unload plant water test build assemble photograph film tie untie "
    "peel lick wrap drag board attempt begin stop start cover bring come go give set"
)
_DOUBLING = listed(
    "sit run swim put cut hug jog dig get flip stir hit pet wrap chat clap shop drag set stop step begin "
    "knit strum chop squat"
)
_CLAUSE_WORDS = listed(
    "and or but while as when who whom that which where whose because than if so is are was were be been "
    "being has have had do does did can will to for from of with without during before after about like "
    "via per he she it they him them himself herself itself themselves something someone anything nothing "
    "each other another others both all no not there this these those what together alone away outdoors "
    "indoors back very too also just only high low forward backwards upside apart along wearing dressed"
)
ING_NOUNS = listed(
    "building buildings clothing railing ceiling string ring king swing wing spring painting evening "
    "morning thing bathing swimming matching wedding parking shopping wrestling boxing surfing fencing"
)


def _participle(base: str) -> str:
    if base in _DOUBLING:
        return f"{base}{base[-1]}ing"
    if base.endswith("ie"):
        return f"{base[:-2]}ying"
    return f"{base.removesuffix('e')}ing" if re.search(r"[^eoy]e$", base) else f"{base}ing"


def _third_person(base: str) -> str:
    if re.search(r"(s|sh|ch|x|z|o)$", base):
        return f"{base}es"
    return f"{base[:-1]}ies" if re.search(r"[^aeiou]y$", base) else f"{base}s"


PARTICIPLE_OF = {form: _participle(base) for base in BASES for form in (base, _third_person(base))} | {
    _participle(base): _participle(base) for base in BASES
}
PARTICIPLES = frozenset(PARTICIPLE_OF.values())
THIRD_PERSONS = frozenset(_third_person(base) for base in BASES)

_BASE_OF = {participle: form for form, participle in PARTICIPLE_OF.items() if form in BASES}
_STEMS = {form: _BASE_OF[participle] for form, participle in PARTICIPLE_OF.items()}


def _beings() -> Iterator[tuple[str, tuple[str, str, str], bool]]:
    """Yields the nouns for people and animals, each with its value in _BEINGS and whether it is a plural."""
    for kind, nouns in _PEOPLE.items():
        gender, age = kind.split()
        for forms in nouns.split():
            for number, form in enumerate(forms.split("/")):
                yield form, ("people", gender, age), number > 0
    for forms in _ANIMALS:
        singular, plural = forms.split("/")
        species = {"puppy": "dog", "poodle": "dog", "greyhound": "dog"}.get(singular, singular)
        for form in (singular, plural):
            yield form, ("animal", "-" if species == "animal" else species, "-"), form == plural


# noun -> ("people" or "animal", gender or species, age); "-" means that the noun does not say it.
_BEINGS = {form: kind for form, kind, _ in _beings()}
PEOPLE = tuple(form for form, kind in _BEINGS.items() if kind[0] == "people" and form not in _NOT_SUBJECTS)
ANIMALS = tuple(form for form, kind in _BEINGS.items() if kind[0] == "animal")
PLURALS = frozenset(form for form, _, is_plural in _beings() if is_plural)

FUNCTION_WORDS = frozenset(_CLAUSE_WORDS) | {
    word
    for preposition in PREPOSITIONS
    for word in preposition.split()
    if word not in ("front", "top", "close")
}
_SAME = {
    "bicycle": "bike", "road": "street", "sea": "ocean", "cellphone": "phone", "sofa": "couch",
    "motorbike": "motorcycle", "t-shirt": "shirt", "tee-shirt": "shirt", "grey": "gray", "blonde": "blond",
    "stroll": "walk", "leap": "jump", "lie": "lay", "photo": "picture", "photograph": "picture",
    "converse": "talk", "chat": "talk", "speak": "talk", "seat": "sit", "puppy": "dog", "grassy": "grass",
    "snowy": "snow", "sandy": "sand", "hardhat": "hat", "jog": "run", "race": "run", "kayak": "canoe",
}  # fmt: skip


@functools.cache
def stem(word: str) -> str:
    """Returns the normal form for comparing words: lower case, base forms of verbs, singular nouns."""
    word = word.lower()
    found = _STEMS.get(word)
    if found is None:
        found = word
        if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            found = re.sub(r"(?<=[sxh])e$", "", word[:-1])
            found = _STEMS.get(found, found)
    return _SAME.get(found, found)


def is_being(word: str) -> bool:
    """Returns whether the word is a noun for people or animals."""
    return word.lower() in _BEINGS


def agree(word: str, other: str) -> bool:
    """Returns whether two words can mean the same: "lady" and "person", but not "man" and "girl"."""
    kind, other_kind = _BEINGS.get(word.lower()), _BEINGS.get(other.lower())
    if kind is None or other_kind is None:
        return stem(word) == stem(other)
    return all(a == b or "-" in (a, b) for a, b in zip(kind, other_kind, strict=True))
