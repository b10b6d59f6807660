"""Sentence patterns: each draws words that suit one another and returns an English sentence and its German."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random

from demo_grammar.clauses import (
    NOBODY,
    PRONOUNS,
    WEATHER,
    WHAT,
    WHO,
    Adverbial,
    Clause,
    Pair,
    Phrase,
    after_preposition,
    back_reference,
    english,
    english_be,
    german,
    name,
    noun_phrase,
    prepositional,
    relative_pronoun,
    sentence,
    words,
)
from demo_grammar.inflection import (
    COUNTS,
    NAMES,
    POSSESSIVES,
    RELATIVE,
    STEMS,
    UNITS,
    Adjective,
    Noun,
    Verb,
    number,
    superlative,
)
from demo_grammar.lexicon import (
    ADJECTIVES_BY_KIND,
    ANIMAL,
    BE,
    BELONG,
    BESIDE,
    CITIES,
    CONJUNCTIONS,
    COST,
    DEPART,
    EVENTS,
    FORGET,
    FREQUENCIES,
    GIVING,
    HAVE,
    HOPE,
    JUMP,
    KNOW,
    LEXICON,
    LIVE,
    MODALS,
    MOMENTARY,
    MONTHS,
    MOVING,
    PERSON,
    PLACED,
    PUTTING,
    RESTING,
    SAY,
    STATIVE,
    TEMPORARY,
    THINK,
    TIMES,
    TRAVEL,
    TRY,
    WEEKDAYS,
    nouns,
)

Combination = tuple[str, str]  # two English words that a sentence brings together


class Draw(Random):
    """A source of chance that remembers which words it has brought together."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.combinations: set[Combination] = set()

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def again(self, pattern: Callable[["Draw"], Pair]) -> Pair:
        """Another try at a pattern, since the words drawn do not suit it."""
        self.combinations.clear()
        return pattern(self)

    def match(self, word: str, partners: Sequence):
        """One of `partners` (nouns, verbs, adjectives or strings) to go with `word`."""
        partner = self.choice(partners)
        self.combinations.add((word, partner if isinstance(partner, str) else partner.english))
        return partner


def fitting(noun: Noun) -> list[Adjective]:
    """The adjectives that suit a noun; nobody is an old child, and every child is young."""
    unsuited = ("old", "young") if noun.english in ("boy", "girl", "child") else ()
    return [adjective for adjective in ADJECTIVES_BY_KIND[noun.kind] if adjective.english not in unsuited]


def adjective_for(draw: Draw, noun: Noun, probability: float = 0.3) -> Pair:
    """English adjective and German stem, or nothing."""
    adjectives = fitting(noun)
    if not adjectives or not draw.chance(probability):
        return "", ""
    adjective = draw.match(noun.english, adjectives)
    return adjective.english, STEMS.get(adjective.german, adjective.german)


def some(draw: Draw, noun: Noun, negated: bool = False, determiners: Sequence[str] = ()) -> Phrase:
    """The noun with a determiner that suits it; under negation one that keeps the scope clear."""
    if not determiners:
        if noun.kind == "relative":
            determiners = POSSESSIVES
        elif not noun.plural:
            determiners = ("the", "not any") if negated else ("the", "", "")
        elif negated:
            determiners = ("the", "the", "not a", "not a", "not any", "this")
        else:
            determiners = ("the",) * 5 + ("a",) * 4 + ("this", "", "many", "all", draw.choice(COUNTS))
            if noun.kind != "person":
                determiners += draw.choice(POSSESSIVES), draw.choice(POSSESSIVES), "owner", "name"
    determiner = draw.choice(determiners)
    if determiner in ("", "many", "all", "not any", *COUNTS):
        plural = bool(noun.plural)
    else:
        plural = determiner not in ("a", "not a", "every") and several(draw, noun)
    if determiner == "name":
        determiner = draw.choice(NAMES["m"] + NAMES["f"]) + "'s"
    if determiner == "owner":
        return noun_phrase(noun, "the", plural, adjective_for(draw, noun), owner=draw.choice(nouns("person")))
    return noun_phrase(noun, determiner, plural, adjective_for(draw, noun))


def several(draw: Draw, noun: Noun) -> bool:
    return bool(noun.plural) and noun.kind != "relative" and draw.chance(0.25)


def somebody(draw: Draw, tense: str = "present", pronouns: bool = True) -> Phrase:
    """A person as a subject; `you` stands in no past tense, where German speech would not say du lasest."""
    share = draw.random()
    if share < 0.3:
        return name(draw.choice(NAMES["m"] + NAMES["f"]))
    if share < 0.5 and pronouns:
        return PRONOUNS[draw.choice([p for p in PRONOUNS if p != "you" or tense not in ("past", "pluperfect")])]
    if share < 0.62:
        return some(draw, draw.choice(nouns("relative")))
    determiners = ("the", "the", "the", "a", "this", "every", "two", "all")
    return some(draw, draw.choice(nouns("person")), determiners=determiners)


def animal(draw: Draw) -> Phrase:
    return some(draw, draw.choice(nouns("pet", "wild")), determiners=("the", "the", "the", "a", "this", "two"))


def speakable(verb: Verb, subject: Phrase, tense: str) -> bool:
    """Whether English says this, and says it unambiguously."""
    if verb.english in STATIVE and tense not in ("present", "past", "future"):
        return False
    if verb.english in MOMENTARY and tense == "progressive":
        return False
    return verb.past != verb.english or tense not in ("present", "past") or subject.person == "3s"


def object_of(draw: Draw, verb: Verb, subject: Phrase, negated: bool) -> Phrase:
    """An object for the verb, now and then a pronoun other than the subject's own."""
    noun = draw.choice(nouns(*verb.objects))
    if noun.kind in ("person", "relative") and draw.chance(0.35):
        if draw.chance(0.5):
            return name(draw.choice([n for n in NAMES["m"] + NAMES["f"] if n != subject.english]))
        third = [PRONOUNS[p] for p in ("he", "she", "they")]
        first = [PRONOUNS[p] for p in ("I", "you", "we")] if subject.person.startswith("3") else []
        return draw.choice(third + first)
    draw.match(verb.english, [noun])
    if negated and verb.preposition:  # auf keine Frau, but nicht von Mäusen
        return some(draw, noun, determiners=POSSESSIVES if noun.kind == "relative" else ("the", "this", "not a"))
    return some(draw, noun, negated)


def spot(draw: Draw, noun: Noun) -> Phrase:
    """A single place: nobody eats in the kitchens."""
    return noun_phrase(noun, draw.choice(("the", "the", "the", "this", "a")), adjective=adjective_for(draw, noun))


def place(draw: Draw, word: str, classes: Sequence[str] = ("room", "building", "outdoors")) -> Adverbial:
    noun = draw.match(word, nouns(*classes))
    return prepositional("in", "in", spot(draw, noun), "dative", "where")


def moment(draw: Draw, tense: str, fronting: float) -> Adverbial | None:
    """A time that goes with the tense, in front or not."""
    slot = "front" if draw.chance(fronting) else "time"
    tense = "modal" if tense in MODALS else tense
    if tense == "present" and slot == "time" and draw.chance(0.7):
        often, oft = draw.choice(list(FREQUENCIES.items()))
        return Adverbial(often, oft, "not" if often == "never" else "time")
    if tense in ("past", "future") and draw.chance(0.4):
        english_day, german_day = draw.choice((weekday, weekday, date, month, clock))(draw)
        return Adverbial(english_day, german_day, slot)
    if tense not in TIMES:
        return None
    return Adverbial(*draw.choice(list(TIMES[tense].items())), slot)


def weekday(draw: Draw) -> Pair:
    english_day, german_day = draw.choice(list(WEEKDAYS.items()))
    if draw.chance(0.4):
        english_hour, german_hour = clock(draw)
        return f"on {english_day} {english_hour}", f"am {german_day} {german_hour}"
    return f"on {english_day}", f"am {german_day}"


def month(draw: Draw) -> Pair:
    english_month, german_month = draw.choice(list(MONTHS.items()))
    return f"in {english_month}", f"im {german_month}"


def date(draw: Draw, year: bool = False) -> Pair:
    english_month, german_month = draw.choice(list(MONTHS.items()))
    day = draw.randint(1, 28)
    suffix = f" {draw.randint(1990, 2009)}" if year else ""
    return f"on {day} {english_month}{suffix}", f"am {day}. {german_month}{suffix}"


def clock(draw: Draw) -> Pair:
    """A clock time: half past three is halb vier."""
    hour = draw.randint(1, 11)
    (english_hour, german_hour), german_next = UNITS[hour], UNITS[hour + 1][1]
    return draw.choice(
        (
            (f"at {english_hour} o'clock", f"um {german_hour.replace('eins', 'ein')} Uhr"),
            (f"at half past {english_hour}", f"um halb {german_next}"),
            (f"at a quarter past {english_hour}", f"um Viertel nach {german_hour}"),
            (f"at {hour + 10}:30", f"um {hour + 10}:30 Uhr"),
        )
    )


def action(
    draw: Draw,
    subject: Phrase,
    tense: str,
    *,
    negated: bool = False,
    timed: float = 0.0,
    fronting: float = 0.0,
    fleeting: bool = False,
    placed: bool = True,
    verbs: Iterable[Verb] = (),
) -> Clause:
    """What the subject does (`fleeting`: not what it loves or knows), now and then in a place and at a time."""
    candidates = verbs or (ANIMAL if subject.animal else PERSON)
    lasting = STATIVE if fleeting else ()
    verb = draw.choice([v for v in candidates if speakable(v, subject, tense) and v.english not in lasting])
    object_ = object_of(draw, verb, subject, negated) if verb.objects else None
    adverbials = []
    if placed and verb.english in PLACED and draw.chance(0.3 if object_ else 0.5):
        outside = ("outdoors", "=kitchen", "=cellar", "=garage")
        adverbials.append(place(draw, verb.english, outside) if subject.animal else place(draw, verb.english))
    if verb.english not in STATIVE and draw.chance(timed):
        when = moment(draw, tense, 1.0 if negated else fronting)
        adverbials += [when] if when else []
    return Clause(subject, verb, tense, object_, adverbials=tuple(adverbials), negated=negated)


def state(draw: Draw, subject: Phrase, tense: str) -> Clause:
    """How the subject is just now: tired, very hungry."""
    kind = "person" if subject.kind in ("pronoun", "name") else subject.kind
    moods = [adjective for adjective in ADJECTIVES_BY_KIND[kind] if adjective.english in TEMPORARY]
    quality = degree(draw, draw.match(subject.english.split()[-1], moods))
    return Clause(subject, BE, tense, adverbials=(quality,))


def degree(draw: Draw, adjective: Adjective) -> Adverbial:
    english_degree, german_degree = "", ""
    if adjective.german_comparative or adjective.english in TEMPORARY:  # nothing is too red
        english_degree, german_degree = draw.choice((("", ""), ("", ""), ("very", "sehr"), ("too", "zu")))
    return Adverbial(words(english_degree, adjective.english), words(german_degree, adjective.german), "whither")


def weather(draw: Draw, tense: str) -> Clause:
    quality = draw.choice((("cold", "kalt"), ("warm", "warm"), ("dark", "dunkel"), ("very cold", "sehr kalt")))
    return Clause(WEATHER, BE, tense, adverbials=(Adverbial(*quality, "whither"),))


# ---------------------------------------------------------------------------------------------------------------------
# Sentence patterns
# ---------------------------------------------------------------------------------------------------------------------

TENSES = ("present",) * 3 + ("progressive",) * 3 + ("past",) * 4 + ("perfect",) * 3 + ("future",) * 2
ASKED = ("present", "progressive", "perfect", "can", "must", "want", "should")
REPORTED = ("present", "perfect", "future", "can", "must", "want", "should")


def plain(clause: Clause) -> Pair:
    return sentence(english(clause), german(clause))


def statement(draw: Draw) -> Pair:
    tense = draw.choice(TENSES)
    return plain(action(draw, somebody(draw, tense), tense, timed=0.5, fronting=0.4))


def modal(draw: Draw) -> Pair:
    return plain(action(draw, somebody(draw), draw.choice(list(MODALS)), timed=0.3, fronting=0.4))


def animals(draw: Draw) -> Pair:
    tense = draw.choice(TENSES)
    return plain(action(draw, animal(draw), tense, timed=0.4, fronting=0.4))


def denial(draw: Draw) -> Pair:
    tense = draw.choice(("present", "past", "past", "perfect", "future", "can", "want", "should"))
    timed = 0.0 if tense == "present" else 0.3
    return plain(action(draw, somebody(draw, tense), tense, negated=True, timed=timed))


def question(draw: Draw) -> Pair:
    tense = draw.choice(ASKED)
    clause = action(draw, somebody(draw), tense, timed=0.2 if tense in MODALS else 0.0)
    return sentence(english(clause, inverted=True), german(clause, "first"), "?")


def who_does(draw: Draw) -> Pair:
    clause = action(draw, WHO, draw.choice(ASKED))
    return sentence(english(clause), german(clause), "?")


def whom_or_what(draw: Draw) -> Pair:
    """Object questions: who, what and which, with the case and the preposition of the verb."""
    tense, subject = draw.choice(ASKED), somebody(draw)
    verb = draw.choice([verb for verb in PERSON if verb.objects and speakable(verb, subject, tense)])
    if draw.chance(0.5):
        noun = draw.match(verb.english, nouns(*verb.objects))
        asked = noun_phrase(noun, "which", several(draw, noun))
    elif "person" in verb.objects:
        asked = WHO
    elif "relative" in verb.objects or verb.preposition:
        return draw.again(whom_or_what)
    else:
        asked = WHAT
    clause = Clause(subject, verb, tense, asked)
    return sentence(english(clause, inverted=True), german(clause), "?")


def why_and_when(draw: Draw) -> Pair:
    asked = Adverbial(*draw.choice((("why", "warum"), ("why", "warum"), ("when", "wann"), ("where", "wo"))), "front")
    tense = draw.choice(("future", "must", "want", "can") if asked.english == "when" else ASKED)
    anywhere = [verb for verb in PERSON if verb.english in PLACED | {"buy", "sell"}]
    verbs = anywhere if asked.english == "where" else PERSON
    clause = action(draw, somebody(draw), tense, placed=False, verbs=verbs)
    clause = replace(clause, adverbials=(asked,))
    return sentence(english(clause, inverted=True), german(clause), "?")


def beside(draw: Draw, word: str, case: str, slot: str) -> Adverbial:
    """On, under or behind a piece of furniture, or in a container."""
    noun = draw.match(word, nouns("furniture", "container"))
    if noun.kind == "container":
        return prepositional("in", "in", spot(draw, noun), case, slot)
    return prepositional(*draw.choice(list(BESIDE.items())), spot(draw, noun), case, slot)


def resting(draw: Draw) -> Pair:
    """Where something lies or stands: two-way prepositions with the dative."""
    verb = draw.choice(RESTING)
    determiners = ("the", "the", "a", "my", "her", "three")
    subject = some(draw, draw.match(verb.english, nouns(*verb.objects)), determiners=determiners)
    where = beside(draw, verb.english, "dative", "whither")
    return plain(Clause(subject, verb, draw.choice(("resting", "rested")), adverbials=(where,)))


def putting(draw: Draw) -> Pair:
    """Where something is put: the same prepositions with the accusative."""
    tense = draw.choice(TENSES + ("must", "can", "should"))
    subject = somebody(draw, tense)
    verb = draw.choice(PUTTING)
    if not speakable(verb, subject, tense):
        return draw.again(putting)
    clause = action(draw, subject, tense, verbs=(verb,))
    return plain(replace(clause, adverbials=(beside(draw, verb.english, "accusative", "whither"),)))


def moving(draw: Draw) -> Pair:
    """Into a place (accusative) against to a place (zu with the dative)."""
    tense = draw.choice(TENSES + ("must", "want"))
    subject = somebody(draw, tense)
    verb = draw.choice(MOVING)
    driving = verb.english == "drive"  # to a house, but into no house or kitchen
    noun = draw.match(verb.english, nouns("=garage" if driving else "room", "building", "outdoors"))
    goal = spot(draw, noun)
    if noun.kind in ("room", "outdoors") or (not driving and draw.chance(0.4)):
        whither = prepositional("into", "in", goal, "accusative", "whither")
    else:
        whither = prepositional("to", "zu", goal, "dative", "whither")
    return travelling(draw, Clause(subject, verb, tense, adverbials=(whither,)))


def jumping(draw: Draw) -> Pair:
    tense = draw.choice(TENSES)
    subject = animal(draw)
    goal = spot(draw, draw.match("jump", nouns("furniture")))
    whither = prepositional("onto", "auf", goal, "accusative", "whither")
    return travelling(draw, Clause(subject, JUMP, tense, adverbials=(whither,)))


def cities(draw: Draw) -> Pair:
    tense = draw.choice(("present", "past", "perfect", "future", "want"))
    subject = somebody(draw, tense)
    english_city, german_city = draw.choice(list(CITIES.items()))
    draw.match(subject.english, [english_city])
    if draw.chance(0.3) and tense != "perfect":
        home = Adverbial(f"in {english_city}", f"in {german_city}", "whither")
        return plain(Clause(subject, LIVE, tense, adverbials=(home,)))
    whither = Adverbial(f"to {english_city}", f"nach {german_city}", "whither")
    return travelling(draw, Clause(subject, TRAVEL, tense, adverbials=(whither,)))


def travelling(draw: Draw, clause: Clause) -> Pair:
    """The clause, now and then with company or a time."""
    extra = None
    if draw.chance(0.2) and not clause.subject.animal:
        companion = some(draw, draw.match(clause.verb.english, nouns("relative", "person", "pet")))
        extra = prepositional("with", "mit", companion, "dative", "where")
    elif draw.chance(0.6):
        extra = moment(draw, clause.tense, 0.5)
    return plain(replace(clause, adverbials=clause.adverbials + ((extra,) if extra else ())))


def giving(draw: Draw) -> Pair:
    tense = draw.choice(TENSES + ("must", "can", "want", "should"))
    subject = somebody(draw, tense)
    negated = tense not in ("progressive", "must") and draw.chance(0.15)
    clause = action(draw, subject, tense, verbs=GIVING, timed=0.2, fronting=0.6, negated=negated)
    if subject.person.startswith("3") and draw.chance(0.3):
        assert clause.object is not None
        mistakable = clause.object.slot == "indefinite"  # gives her apples: whose, or to whom?
        recipient = PRONOUNS[draw.choice([p for p in PRONOUNS if not (mistakable and p == "she")])]
    elif draw.chance(0.3):
        recipient = name(draw.choice([n for n in NAMES["m"] + NAMES["f"] if n != subject.english]))
    else:
        noun = draw.match(clause.verb.english, nouns("person", "relative"))
        recipient = some(draw, noun, determiners=POSSESSIVES if noun.kind == "relative" else ("the",))
    return plain(replace(clause, recipient=recipient))


def subordinate(draw: Draw) -> Pair:
    """Two clauses about one subject, or a clause and the weather; the subordinate one before or after."""
    conjunction = draw.choice(list(CONJUNCTIONS))
    tense = "present" if conjunction == "if" else draw.choice(("present", "past"))
    german_conjunction = "als" if (conjunction, tense) == ("when", "past") else CONJUNCTIONS[conjunction]
    subject, again = referable(draw, tense)
    sub_first = conjunction in ("if", "when") if draw.chance(0.6) else draw.chance(0.5)
    in_main, in_sub = (again, subject) if sub_first else (subject, again)
    main = action(draw, in_main, tense, fleeting=True)
    share = draw.random()
    if conjunction == "while":
        lasting = [verb for verb in (ANIMAL if subject.animal else PERSON) if verb.english in PLACED]
        sub = action(draw, in_sub, tense, verbs=lasting)
    elif conjunction == "before" or share < 0.4:
        sub = action(draw, in_sub, tense, fleeting=True)
    elif share < 0.8:
        sub = state(draw, in_sub, tense)
    else:
        sub, main = weather(draw, tense), replace(main, subject=subject)
    return joined(conjunction, german_conjunction, sub, main, sub_first)


def joined(conjunction: str, german_conjunction: str, sub: Clause, main: Clause, sub_first: bool) -> Pair:
    english_sub, german_sub = f"{conjunction} {english(sub)}", f"{german_conjunction} {german(sub, 'final')}"
    if sub_first:
        return sentence(f"{english_sub}, {english(main)}", f"{german_sub}, {german(main, 'first')}")
    return sentence(f"{english(main)} {english_sub}", f"{german(main)}, {german_sub}")


def referable(draw: Draw, tense: str) -> tuple[Phrase, Phrase]:
    """A subject and the pronoun that takes it up."""
    while True:
        draw.combinations.clear()  # of a subject that was passed over
        subject = animal(draw) if draw.chance(0.25) else somebody(draw, tense)
        again = back_reference(subject)
        if again and not subject.english.startswith("every "):
            return subject, again


def afterwards(draw: Draw) -> Pair:
    """After with the pluperfect: nachdem er das Buch gelesen hatte."""
    subject, again = referable(draw, "past")
    sub, main = action(draw, subject, "pluperfect"), action(draw, again, "past", fleeting=True)
    return joined("after", "nachdem", sub, main, sub_first=True)


def reported(draw: Draw) -> Pair:
    subject = somebody(draw)
    verb = draw.choice((THINK, THINK, KNOW, SAY, HOPE))
    whether = verb is KNOW and draw.chance(0.5)
    main = Clause(subject, verb, "present", negated=whether)
    about, tense = somebody(draw), draw.choice(REPORTED)
    stating = verb is not HOPE and draw.chance(0.3)  # nobody hopes that somebody is sick
    sub = state(draw, about, "present") if stating else action(draw, about, tense)
    english_word, german_word = ("whether", "ob") if whether else ("that", "dass")
    return joined(english_word, german_word, sub, main, sub_first=False)


def purpose(draw: Draw) -> Pair:
    """Infinitives with zu: versucht, die Tür zu öffnen; reist nach Rom, um Anna zu besuchen."""
    verbs = [verb for verb in PERSON if verb.objects and verb.english not in STATIVE | MOMENTARY | {"dream of"}]
    aim = action(draw, NOBODY, "infinitive", verbs=verbs)
    english_city, german_city = draw.choice(list(CITIES.items()))
    verb, tenses, um = draw.choice(
        (
            (TRY, ("progressive", "past", "perfect"), ""),
            (FORGET, ("past", "perfect"), ""),
            (TRAVEL, ("past", "want"), "um "),
        )
    )
    tense = draw.choice(tenses)
    journey = Adverbial(f"to {english_city}", f"nach {german_city}", "whither")
    main = Clause(somebody(draw, tense), verb, tense, adverbials=(journey,) if um else ())
    order = "in order " if um else ""
    return sentence(f"{english(main)} {order}{english(aim)}", f"{german(main)}, {um}{german(aim, 'final')}")


def head_of(draw: Draw, noun: Noun) -> Phrase:
    return noun_phrase(noun, "the", several(draw, noun), adjective_for(draw, noun, 0.15))


def relative_clause(draw: Draw) -> Pair:
    """A subject with a relative clause about it: who acts, whom somebody knows, for whom, whose."""
    share, tense = draw.random(), draw.choice(("present", "past", "perfect"))
    if share < 0.4:
        noun = draw.choice(nouns("person", "pet", "wild"))
        head = head_of(draw, noun)
        clause = action(draw, relative_pronoun(head, subject=True), tense)
    elif share < 0.9:
        subject = somebody(draw, tense)
        verb = draw.choice(
            [v for v in PERSON if v.objects and "grocery" not in v.objects and speakable(v, subject, tense)]
        )
        described = [noun for noun in nouns(*verb.objects) if noun.kind != "relative" and ADJECTIVES_BY_KIND[noun.kind]]
        noun = draw.match(verb.english, described)
        head = head_of(draw, noun)
        clause = Clause(subject, verb, tense, relative_pronoun(head))
    else:
        noun = draw.choice(nouns("person"))
        head = head_of(draw, noun)
        return whose(draw, head, noun)
    return about(draw, head, noun, clause)


def about(draw: Draw, head: Phrase, noun: Noun, clause: Clause) -> Pair:
    """Something said about the head of a relative clause: in the middle of a sentence, or at its end."""
    if noun.kind in ("person", "pet", "wild") and draw.chance(0.5):
        tense = draw.choice(("present", "past", "can"))
        subject = somebody(draw, tense)
        verb = draw.choice([v for v in PERSON if noun.kind in v.objects and speakable(v, subject, tense)])
        draw.match(verb.english, [noun])
        main = Clause(subject, verb, tense, head)
        return sentence(f"{english(main)} {english(clause)}", f"{german(main)}, {german(clause, 'final')}")
    main = state_of(draw, head, noun)
    return sentence(*inserted(main, head, clause))


def inserted(main: Clause, head: Phrase, clause: Clause) -> Pair:
    """The main clause with the relative clause right after its subject."""
    source, target = head.english, head.german["nominative"]
    return (
        english(main).replace(source, f"{source} {english(clause)}", 1),
        german(main).replace(target, f"{target}, {german(clause, 'final')},", 1),
    )


def state_of(draw: Draw, head: Phrase, noun: Noun, tense: str = "present") -> Clause:
    news = [adjective for adjective in fitting(noun) if adjective.english not in head.english.split()]
    quality = degree(draw, draw.match(noun.english, news))
    return Clause(head, BE, tense, adverbials=(quality,))


def whose(draw: Draw, head: Phrase, noun: Noun) -> Pair:
    """The man whose dog is sick: dessen, deren, and the verb last."""
    owned = draw.choice(nouns("pet", "vehicle"))
    thing = noun_phrase(owned, "")
    whose_thing = replace(
        thing,
        english=f"whose {thing.english}",
        german={"nominative": words(RELATIVE[head.gender, "genitive"], thing.german["nominative"])},
        slot="front",
    )
    return sentence(*inserted(state_of(draw, head, noun), head, state_of(draw, whose_thing, owned)))


def description(draw: Draw) -> Pair:
    noun = draw.choice([noun for noun in LEXICON.values() if ADJECTIVES_BY_KIND[noun.kind]])
    determiners: tuple[str, ...] = ("the", "the", "this")
    if noun.kind in ("garment", "vehicle", "pet"):
        determiners += "my", "name"
    subject = some(draw, noun, determiners=POSSESSIVES if noun.kind == "relative" else determiners)
    clause = state_of(draw, subject, noun, draw.choice(("present", "present", "past")))
    if draw.chance(0.2):
        return sentence(english(clause, inverted=True), german(clause, "first"), "?")
    if draw.chance(0.25):
        quality = clause.adverbials[0]
        clause = replace(clause, negated=not quality.english.startswith("too "))
    return plain(clause)


def comparison(draw: Draw) -> Pair:
    """Older than, as old as, the oldest in the village."""
    kind = draw.choice(("person", "relative", "pet", "wild", "vehicle", "room", "building", "garment", "text"))
    noun = draw.choice(nouns(kind))
    adjective = draw.match(noun.english, [adjective for adjective in fitting(noun) if adjective.german_comparative])
    if kind in ("person", "pet", "vehicle", "building") and draw.chance(0.35):
        best = noun_phrase(noun, adjective=superlative(adjective))
        area = noun_phrase(draw.match(noun.english, nouns("=village", "=city")))
        rank = Adverbial(
            f"{best.english} in {area.english}",
            f"{best.german['nominative']} {after_preposition('in', area, 'dative')}",
            "whither",
        )
        this = Phrase("this", {"nominative": "das"}, "this")
        return plain(Clause(this, BE, "present", adverbials=(rank,)))
    determiners = POSSESSIVES if kind == "relative" else ("the", "this")
    subject = noun_phrase(noun, draw.choice(determiners))
    if kind in ("person", "relative") and draw.chance(0.5):
        other = name(draw.choice(NAMES["m"] + NAMES["f"]))
    else:
        other = noun_phrase(draw.choice([n for n in nouns(kind) if n != noun]), draw.choice(determiners))
    if draw.chance(0.4):
        than, als = f"as {adjective.english} as", f"so {adjective.german} wie"
    else:
        than, als = f"{adjective.english_comparative} than", f"{adjective.german_comparative} als"
    quality = Adverbial(f"{than} {other.english}", f"{als} {other.german['nominative']}", "whither")
    return plain(Clause(subject, BE, draw.choice(("present", "present", "past")), adverbials=(quality,)))


def age(draw: Draw) -> Pair:
    """Ages in words: vierundzwanzig Jahre alt."""
    subject = name(draw.choice(NAMES["m"] + NAMES["f"]))
    if draw.chance(0.5):
        sibling = draw.choice(nouns("=brother", "=sister", "=daughter", "=son"))
        subject = some(draw, sibling, determiners=POSSESSIVES)
    if draw.chance(0.1):
        asked = Adverbial("how old", "wie alt", "front")
        clause = Clause(subject, BE, "present", adverbials=(asked,))
        return sentence(english(clause, inverted=True), german(clause), "?")
    english_years, german_years = number(draw.choice((*range(2, 13), *range(20, 50))))
    draw.match(subject.english, [english_years])
    years = Adverbial(f"{english_years} years old", f"{german_years} Jahre alt", "whither")
    return plain(Clause(subject, BE, "present", adverbials=(years,)))


def price(draw: Draw) -> Pair:
    """Prices in digits, with a decimal comma in German."""
    noun = draw.choice(nouns("drink", "food", "print", "garment", "vessel"))
    subject = some(draw, noun, determiners=("the", "this"))
    if subject.person == "3p":  # they cost: now or then?
        return draw.again(price)
    if draw.chance(0.2):
        asked = Adverbial("how much", "wie viel", "front")
        clause = Clause(subject, COST, "present", adverbials=(asked,))
        return sentence(english(clause, inverted=True), german(clause), "?")
    euros, cents = draw.randint(1, 12), draw.choice((20, 50, 95))
    draw.match(noun.english, [f"{euros}.{cents}"])
    sum_ = Adverbial(f"{euros}.{cents} euros", f"{euros},{cents} Euro", "whither")
    return plain(Clause(subject, COST, draw.choice(("present", "past")), adverbials=(sum_,)))


def departure(draw: Draw) -> Pair:
    """Trains and clock times."""
    noun, tense = draw.choice(nouns("transport")), draw.choice(("present", "past", "future"))
    english_city, german_city = draw.choice(list(CITIES.items()))
    draw.match(noun.english, [english_city])
    bound = noun_phrase(noun, "the")
    subject = replace(
        bound,
        english=f"the {noun.english} to {english_city}",
        german={"nominative": f"{bound.german['nominative']} nach {german_city}"},
    )
    if draw.chance(0.2):
        clause = Clause(subject, DEPART, "present", adverbials=(Adverbial("when", "wann", "front"),))
        return sentence(english(clause, inverted=True), german(clause), "?")
    hour = draw.choice((clock, clock, weekday))(draw)
    return plain(Clause(subject, DEPART, tense, adverbials=(Adverbial(*hour, "time"),)))


def birth(draw: Draw) -> Pair:
    """Full dates: wurde am 3. März 1998 geboren."""
    subject = somebody(draw, "past", pronouns=False)
    if subject.person == "3p" or subject.english.startswith(("a ", "every ")):
        return draw.again(birth)
    english_date, german_date = date(draw, year=True)
    english_city, german_city = draw.choice(list(CITIES.items()))
    draw.match(subject.english, [english_city])
    return sentence(
        f"{subject.english} was born in {english_city} {english_date}",
        f"{subject.german['nominative']} wurde {german_date} in {german_city} geboren",
    )


def existence(draw: Draw) -> Pair:
    """In the village there is a museum: the verb stands second, and what there is in the accusative."""
    if draw.chance(0.6):
        where = place(draw, "be", ("room",))
        candidates = nouns("furniture", "container", "device")
    else:
        where = place(draw, "be", ("=village", "=city"))
        candidates = nouns("building")
    noun = draw.match(where.english.split()[-1], candidates)
    determiner = draw.choice(("a", "a", "no", "two", "three", "many"))
    plural = determiner not in ("a", "no")
    thing = noun_phrase(noun, "not a" if determiner == "no" else determiner, plural, adjective_for(draw, noun))
    source = re.sub("^a ", "no ", thing.english) if determiner == "no" else thing.english
    be = english_be(thing.person)
    return sentence(f"{where.english} there {be} {source}", f"{where.german} gibt es {thing.german['accusative']}")


def passive(draw: Draw) -> Pair:
    """The passive, its agent with von."""
    verbs = [verb for verb in PERSON if verb.case == "accusative" and not verb.preposition]
    verb = draw.choice([verb for verb in verbs if verb.english not in STATIVE | MOMENTARY | {"meet", "look for"}])
    noun = draw.match(verb.english, nouns(*verb.objects))
    possible = ("the",) if not noun.plural else ("the", "the", "this", "two", "many")
    patient = some(draw, noun, determiners=POSSESSIVES if noun.kind == "relative" else possible)
    by = name(draw.choice(NAMES["m"] + NAMES["f"])) if draw.chance(0.4) else head_of(draw, draw.choice(nouns("person")))
    agent = prepositional("by", "von", by, "dative", "where")
    when = moment(draw, "past", 0.5) if draw.chance(0.3) else None
    return plain(Clause(patient, verb, "passive", adverbials=(agent, when) if when else (agent,)))


def possession(draw: Draw) -> Pair:
    """Having and belonging."""
    noun = draw.match("have", nouns(*HAVE.objects))
    if draw.chance(0.5):
        tense = draw.choice(("present", "past"))
        subject = somebody(draw, tense)
        negated = draw.chance(0.3)
        determiners = ("not a", "not any") if negated else ("a", "a", "two", "three", "many")
        return plain(Clause(subject, HAVE, tense, some(draw, noun, determiners=determiners), negated=negated))
    subject = some(draw, noun, determiners=("this", "the"))
    return plain(Clause(subject, BELONG, "present", object_of(draw, BELONG, subject, negated=False)))


def event(draw: Draw) -> Pair:
    """Prepositions with the dative and the genitive, in front or not."""
    tense = draw.choice(("past", "past", "future"))
    english_preposition, (german_preposition, case) = draw.choice(list(EVENTS.items()))
    noun = draw.match(english_preposition, nouns("event"))
    phrase = noun_phrase(noun, "the", adjective=adjective_for(draw, noun))
    slot = draw.choice(("front", "time"))
    when = prepositional(english_preposition, german_preposition, phrase, case, slot)
    clause = action(draw, somebody(draw, tense), tense, fleeting=True)
    return plain(replace(clause, adverbials=clause.adverbials + (when,)))


def contrast(draw: Draw) -> Pair:
    """Two main clauses: a comma before aber, none before und."""
    tense = draw.choice(("present", "past", "progressive"))
    first, second = (action(draw, somebody(draw, tense, pronouns=False), tense) for _ in range(2))
    if draw.chance(0.5):
        return sentence(f"{english(first)} and {english(second)}", f"{german(first)} und {german(second)}")
    return sentence(f"{english(first)}, but {english(second)}", f"{german(first)}, aber {german(second)}")


PATTERNS: dict[Callable[[Draw], Pair], int] = {
    statement: 16,
    modal: 9,
    animals: 6,
    denial: 7,
    question: 6,
    who_does: 2,
    whom_or_what: 4,
    why_and_when: 3,
    resting: 3,
    putting: 3,
    moving: 5,
    jumping: 2,
    cities: 3,
    giving: 5,
    subordinate: 10,
    afterwards: 2,
    reported: 5,
    purpose: 4,
    relative_clause: 7,
    description: 6,
    comparison: 5,
    age: 4,
    price: 3,
    departure: 2,
    birth: 2,
    existence: 2,
    passive: 3,
    possession: 3,
    event: 3,
    contrast: 3,
}
