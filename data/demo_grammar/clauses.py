"""Phrases and clauses: records of meaning, which `english` and `german` put into words and into order."""

import re
from dataclasses import dataclass, replace

from demo_grammar.inflection import (
    CASES,
    COUNTS,
    DETERMINERS,
    IT,
    NAMES,
    RELATIVE,
    Noun,
    Verb,
    adjective_ending,
    article,
    english_suffix,
    gerund,
    noun_form,
    present,
    preterite,
    with_zu,
)
from demo_grammar.lexicon import FREQUENCIES, MODALS

# What stands between the German finite verb and the end of the clause, in this order; `front` comes before all.
SLOTS = ("front", "subject", "pronoun", "recipient", "time", "definite", "not", "where", "indefinite", "whither")


@dataclass(frozen=True)
class Phrase:
    """What can be a subject or an object."""

    english: str
    german: dict[str, str]  # by case
    english_object: str  # me, him
    person: str = "3s"
    slot: str = "definite"  # of a German object; `negative` is an indefinite one with kein
    gender: str = "m"
    kind: str = "pronoun"

    @property
    def animal(self) -> bool:
        return self.kind in ("pet", "wild")


@dataclass(frozen=True)
class Adverbial:
    english: str
    german: str
    slot: str


@dataclass(frozen=True)
class Clause:
    subject: Phrase
    verb: Verb
    tense: str
    object: Phrase | None = None
    recipient: Phrase | None = None
    adverbials: tuple[Adverbial, ...] = ()
    negated: bool = False


def pronoun(english: str, english_object: str, person: str, gender: str, german: str) -> Phrase:
    return Phrase(english, dict(zip(CASES, german.split(), strict=False)), english_object, person, "pronoun", gender)


PRONOUNS = {
    phrase.english: phrase
    for phrase in (
        pronoun("I", "me", "1s", "m", "ich mich mir"),
        pronoun("you", "you", "2s", "m", "du dich dir"),
        pronoun("he", "him", "3s", "m", "er ihn ihm"),
        pronoun("she", "her", "3s", "f", "sie sie ihr"),
        pronoun("we", "us", "1p", "p", "wir uns uns"),
        pronoun("they", "them", "3p", "p", "sie sie ihnen"),
    )
}
NOBODY = pronoun("", "", "3s", "m", "- - -")  # the subject of an infinitive
WHO = replace(pronoun("who", "who", "3s", "m", "wer wen wem"), slot="front")
WHAT = replace(pronoun("what", "what", "3s", "n", "was was -"), slot="front", kind="thing")
WEATHER = pronoun("it", "it", "3s", "n", "es es ihm")


def name(english: str) -> Phrase:
    gender = "m" if english in NAMES["m"] else "f"
    return Phrase(english, dict.fromkeys(CASES, english), english, gender=gender, kind="name")


def words(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def noun_phrase(
    noun: Noun,
    determiner: str = "the",
    plural: bool = False,
    adjective: tuple[str, str] = ("", ""),
    owner: Noun | None = None,
) -> Phrase:
    """A noun with its determiner, an adjective (in English and its German stem), and "the teacher's" as its owner."""
    singular_english, plural_english, _, declension = DETERMINERS[determiner]
    head = plural_english if plural else singular_english
    english = words(
        f"the {owner.english}'s" if owner else head, adjective[0], noun.english_plural if plural else noun.english
    )
    gender = "p" if plural else noun.gender
    german = {
        case: words(
            article(determiner, gender, case),
            adjective[1] and adjective[1] + adjective_ending(declension, gender, case),
            noun_form(noun, gender, case),
            words(article("the", owner.gender, "genitive"), noun_form(owner, owner.gender, "genitive"))
            if owner
            else "",
        )
        for case in CASES
    }
    slot = {"not a": "negative", "not any": "negative", "which": "front"}.get(determiner, "definite")
    if determiner in ("a", "", "many", *COUNTS):
        slot = "indefinite"
    return Phrase(english, german, english, "3p" if plural else "3s", slot, gender, noun.kind)


def relative_pronoun(head: Phrase, subject: bool = False) -> Phrase:
    human = head.kind in ("person", "relative", "name")
    english = ("who" if subject else "whom") if human else "that"
    german = {case: RELATIVE[head.gender, case] for case in CASES}
    return replace(head, english=english, english_object=english, german=german, slot="front")


def back_reference(phrase: Phrase) -> Phrase | None:
    """The pronoun that takes up a subject; none for das Mädchen and das Kind, where German hesitates."""
    if phrase.kind == "pronoun":
        return phrase
    if phrase.person == "3p":
        return replace(PRONOUNS["they"], kind=phrase.kind)
    if phrase.animal:
        it = pronoun("it", "it", "3s", phrase.gender, " ".join(IT[phrase.gender, case] for case in CASES))
        return replace(it, kind=phrase.kind)
    return {"m": PRONOUNS["he"], "f": PRONOUNS["she"]}.get(phrase.gender)


CONTRACTIONS = {"in dem": "im", "in das": "ins", "an dem": "am", "von dem": "vom", "zu dem": "zum", "zu der": "zur"}


def after_preposition(preposition: str, phrase: Phrase, case: str) -> str:
    """A German preposition and its phrase; before a noun (not a relative pronoun) it swallows a plain article."""
    first, _, rest = phrase.german[case].partition(" ")
    contracted = CONTRACTIONS.get(f"{preposition} {first}") if rest else None
    return words(contracted or f"{preposition} {first}", rest)


def prepositional(english: str, german: str, phrase: Phrase, case: str, slot: str) -> Adverbial:
    return Adverbial(f"{english} {phrase.english_object}", after_preposition(german, phrase, case), slot)


def english_be(person: str, past: bool = False) -> str:
    if past:
        return "was" if person in ("1s", "3s") else "were"
    return {"1s": "am", "3s": "is"}.get(person, "are")


def english_verb(verb: Verb, tense: str, person: str, support: bool) -> tuple[str, str]:
    """Auxiliary and main verb; with `support` (negation, inversion) there is always an auxiliary."""
    base, singular = verb.base, person == "3s"
    auxiliary, complement = MODALS.get(tense, ("", "", ""))[:2]
    if complement and not auxiliary:  # want to
        want, to = complement.split()
        if support:
            return "does" if singular else "do", f"{complement} {base}"
        return "", f"{english_suffix(want) if singular else want} {to} {base}"
    if auxiliary:
        return english_be(person) if auxiliary == "be" else auxiliary, words(complement, base)
    if base == "be" and tense in ("present", "past"):
        return english_be(person, tense == "past"), ""
    match tense:
        case "present" if support:
            return "does" if singular else "do", base
        case "present":
            return "", english_suffix(base) if singular and base != "have" else "has" if singular else base
        case "past":
            return ("did", base) if support else ("", verb.past)
        case "progressive" | "resting":
            return english_be(person), gerund(base)
        case "rested":
            return english_be(person, past=True), gerund(base)
        case "perfect":
            return "has" if singular else "have", verb.participle
        case "pluperfect":
            return "had", verb.participle
        case "passive":
            return english_be(person, past=True), verb.participle
        case "future":
            return "will", base
        case "infinitive":
            return "", f"to {base}"
    raise AssertionError(tense)


def english(clause: Clause, inverted: bool = False) -> str:
    verb, subject, object_ = clause.verb, clause.subject, clause.object
    auxiliary, main = english_verb(verb, clause.tense, subject.person, clause.negated or inverted)
    fronted = [adverbial.english for adverbial in clause.adverbials if adverbial.slot == "front"]
    middle = [adverbial.english for adverbial in clause.adverbials if adverbial.english in FREQUENCIES]
    last = [adverbial for adverbial in clause.adverbials if adverbial.slot in ("whither", "where", "time")]
    last.sort(key=lambda adverbial: ("whither", "where", "time").index(adverbial.slot))
    object_text = object_.english_object if object_ else ""
    if object_ and object_.slot == "front":
        fronted.append(object_text)
        object_text = ""
    split = object_ is not None and object_.slot == "pronoun"  # picks him up
    return words(
        *fronted,
        *([auxiliary, subject.english] if inverted else [subject.english, auxiliary]),
        "not" if clause.negated else "",
        *middle,
        main,
        "" if split else verb.particle,
        verb.tail,
        clause.recipient.english_object if clause.recipient else "",
        object_text,
        verb.particle if split else "",
        *(adverbial.english for adverbial in last if adverbial.english not in FREQUENCIES),
    )


def german_verb(verb: Verb, tense: str, person: str) -> tuple[str, str, str]:
    """The finite verb, its separated prefix, and the participle or infinitive that closes the clause."""
    infinitive, participle = verb.prefix + verb.infinitive, verb.prefix + verb.german_participle
    if tense in MODALS:
        modal, third, _ = MODALS[tense][2].split()
        return present(modal, third, person), "", infinitive
    match tense:
        case "present" | "progressive" | "resting":
            return present(verb.infinitive, verb.third, person), verb.prefix, ""
        case "past" | "rested":
            return preterite(verb.preterite, person), verb.prefix, ""
        case "perfect" if verb.auxiliary == "sein":
            return present("sein", "ist", person), "", participle
        case "perfect":
            return present("haben", "hat", person), "", participle
        case "pluperfect":
            return preterite("war" if verb.auxiliary == "sein" else "hatte", person), "", participle
        case "passive":
            return preterite("wurde", person), "", participle
        case "future":
            return present("werden", "wird", person), "", infinitive
        case "infinitive":
            return with_zu(verb), "", ""
    raise AssertionError(tense)


def german(clause: Clause, order: str = "second") -> str:
    """The clause with its finite verb second, first (questions, and after a fronted clause) or final."""
    verb, subject, object_ = clause.verb, clause.subject, clause.object
    finite, prefix, closing = german_verb(verb, clause.tense, subject.person)
    pieces = [(adverbial.slot, adverbial.german) for adverbial in clause.adverbials]
    if clause.tense != "infinitive":
        pieces.append(("front" if subject.slot == "front" else "subject", subject.german["nominative"]))
    if clause.recipient:
        slot = "pronoun" if clause.recipient.slot == "pronoun" else "recipient"
        pieces.append((slot, clause.recipient.german["dative"]))
    if object_ and verb.preposition:
        slot = "front" if object_.slot == "front" else "whither"
        pieces.append((slot, after_preposition(verb.preposition, object_, verb.case)))
    elif object_:
        slot = "indefinite" if object_.slot == "negative" else object_.slot
        pieces.append((slot, object_.german[verb.case]))
    if clause.tense == "progressive":
        pieces.append(("time", "gerade"))
    if clause.negated and not (object_ and object_.slot == "negative"):
        pieces.append(("not", "nicht"))
    field_words = [text for _, text in sorted(pieces, key=lambda piece: SLOTS.index(piece[0]))]
    if order == "second":
        return words(field_words[0], finite, *field_words[1:], prefix, closing)
    if order == "first":
        return words(finite, *field_words, prefix, closing)
    return words(*field_words, closing, prefix + finite)


Pair = tuple[str, str]


def sentence(source: str, target: str, mark: str = ".") -> Pair:
    """Both sides with a capital, a mark, and a or an before the English vowel."""
    source = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", source).replace("can not", "cannot")
    return source[0].upper() + source[1:] + mark, target[0].upper() + target[1:] + mark
