"""Inflection, English and German: from a dictionary form to the form a sentence needs."""

import re
from dataclasses import dataclass

UNITS = dict(
    enumerate(
        zip(
            "one two three four five six seven eight nine ten eleven twelve".split(),
            "eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf".split(),
            strict=True,
        ),
        start=1,
    )
)
TENS = {20: ("twenty", "zwanzig"), 30: ("thirty", "dreißig"), 40: ("forty", "vierzig")}
NAMES = {"m": "Peter Paul Martin David Simon Daniel".split(), "f": "Anna Maria Julia Laura Lena Emma".split()}

# What the rules below do not find.
GENITIVES = {"Bus": "Busses", "Park": "Parks", "Film": "Films", "Koch": "Kochs"}
STEMS = {"teuer": "teur", "dunkel": "dunkl", "müde": "müd"}  # before an ending
SUPERLATIVES = {"groß": "größt", "teuer": "teuerst", "dunkel": "dunkelst", "neu": "neuest"}

CASES = ("nominative", "accusative", "dative", "genitive")
PERSONS = ("1s", "2s", "3s", "1p", "3p")


def paradigm(**rows: str) -> dict[tuple[str, str], str]:
    """Forms by (gender or `p` for the plural, case), from one row of forms in the order of `CASES` for each."""
    return {(gender, case): form for gender, row in rows.items() for case, form in zip(CASES, row.split(), strict=True)}


DEFINITE = paradigm(m="der den dem des", f="die die der der", n="das das dem des", p="die die den der")
RELATIVE = paradigm(m="der den dem dessen", f="die die der deren", n="das das dem dessen", p="die die denen deren")
STRONG = paradigm(m="er en em es", f="e e er er", n="es es em es", p="e e en er")
IT = paradigm(m="er ihn ihm -", f="sie sie ihr -", n="es es ihm -")
BARE_EIN = {("m", "nominative"), ("n", "nominative"), ("n", "accusative")}  # where ein, kein, mein have no ending

# English with one thing, with several | German, declined like `der`, `ein`, `viele`, or not at all.
DETERMINERS = {
    "the": ("the", "the", "d", "der"),
    "this": ("this", "these", "dies", "der"),
    "every": ("every", "every", "jed", "der"),
    "which": ("which", "which", "welch", "der"),
    "all": ("all", "all", "all", "der"),
    "many": ("many", "many", "viel", "viele"),
    "a": ("a", "", "ein", "ein"),
    "not a": ("a", "", "kein", "ein"),
    "": ("", "", "", ""),
    "not any": ("", "", "kein", "ein"),
    "my": ("my", "my", "mein", "ein"),
    "your": ("your", "your", "dein", "ein"),
    "his": ("his", "his", "sein", "ein"),
    "her": ("her", "her", "ihr", "ein"),
    "our": ("our", "our", "unser", "ein"),
    "their": ("their", "their", "ihr", "ein"),
}
DETERMINERS |= {english: (english, english, german, "") for english, german in UNITS.values() if english != "one"}
DETERMINERS |= {f"{name}'s": (f"{name}'s", f"{name}'s", f"{name}s", "") for names in NAMES.values() for name in names}
COUNTS = ("two", "three", "four", "five", "six")
POSSESSIVES = ("my", "your", "his", "her", "our", "their")


@dataclass(frozen=True)
class Noun:
    english: str
    english_plural: str
    gender: str
    weak: bool
    german: str
    plural: str  # empty: not used in the plural
    kind: str


@dataclass(frozen=True)
class Adjective:
    english: str
    german: str
    english_comparative: str
    german_comparative: str  # empty: not compared
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Verb:
    base: str
    past: str
    participle: str
    particle: str  # of "pick up": it follows a pronoun object
    tail: str  # of "look for": it never leaves the verb
    infinitive: str
    third: str
    preterite: str
    german_participle: str
    auxiliary: str
    prefix: str
    case: str
    preposition: str
    objects: tuple[str, ...]  # classes of nouns, or = and one noun

    @property
    def english(self) -> str:
        return " ".join(part for part in (self.base, self.particle, self.tail) if part)


def english_suffix(word: str) -> str:
    """`word` with -s, as nouns in the plural and verbs in the third person take it."""
    if re.search(r"(s|x|ch|sh|go)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def english_past(verb: str) -> str:
    """The past of a regular verb."""
    if verb.endswith("e"):
        return verb + "d"
    return verb[:-1] + "ied" if re.search(r"[^aeiou]y$", verb) else verb + "ed"


def gerund(verb: str) -> str:
    """The -ing form: lie, lying; write, writing; put, putting."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if re.search(r"[^aeiou]e$", verb):
        return verb[:-1] + "ing"
    return verb + verb[-1] + "ing" if re.fullmatch(r"[^aeiou]+[aeiou][^aeiouwxy]", verb) else verb + "ing"


def article(determiner: str, gender: str, case: str) -> str:
    """The German form of an English determiner."""
    _, _, stem, declension = DETERMINERS[determiner]
    if stem == "d":
        return DEFINITE[gender, case]
    if declension == "" or (declension == "ein" and (gender, case) in BARE_EIN):
        return stem
    return stem + STRONG[gender, case]


def adjective_ending(declension: str, gender: str, case: str) -> str:
    """The ending after a word declined like `der` (weak), like `ein` (mixed), or after anything else (strong)."""
    mixed_like_strong = declension == "ein" and (gender, case) in BARE_EIN
    if declension in ("", "viele") or mixed_like_strong:
        return "en" if case == "genitive" and gender in "mn" else STRONG[gender, case]
    nominative_like = gender != "p" and (case == "nominative" or (case == "accusative" and gender != "m"))
    return "e" if nominative_like else "en"


def noun_form(noun: Noun, gender: str, case: str) -> str:
    """The German noun in a case, in the plural when `gender` is `p`."""
    if gender == "p":
        return noun.plural + ("n" if case == "dative" and noun.plural[-1] not in "ns" else "")
    if noun.weak:
        return noun.german if case == "nominative" else noun.plural
    if case != "genitive" or gender == "f":
        return noun.german
    one_syllable = len(re.findall(r"[aeiouäöü]+", noun.german.lower())) == 1
    return GENITIVES.get(noun.german) or noun.german + ("es" if one_syllable or noun.german[-1] in "sßz" else "s")


def weak_forms(infinitive: str) -> tuple[str, str, str]:
    """Third person, preterite and participle of a weak verb."""
    stem = infinitive.removesuffix("n").removesuffix("e")
    link = "e" if re.search(r"([td]|(ch|[^lrhnmaeiouäöü])[nm])$", stem) else ""  # er arbeitet, er öffnet
    ge = "" if stem.endswith("ier") or re.match(r"(be|ge|ver|zer)", stem) else "ge"
    return f"{stem}{link}t", f"{stem}{link}te", f"{ge}{stem}{link}t"


def present(infinitive: str, third: str, person: str) -> str:
    """The Präsens; a third person without -t (kann, weiß) belongs to a verb that has no endings in the singular."""
    if infinitive == "sein":
        return dict(zip(PERSONS, ("bin", "bist", "ist", "sind", "sind"), strict=True))[person]
    if infinitive == "werden":
        return dict(zip(PERSONS, ("werde", "wirst", "wird", "werden", "werden"), strict=True))[person]
    if person in ("1p", "3p"):
        return infinitive
    if person == "2s":
        stem = third.removesuffix("t")
        return stem + ("t" if stem[-1] in "sßz" else "st")
    if person == "1s" and third.endswith("t"):
        return infinitive.removesuffix("n").removesuffix("e") + "e"
    return third


def preterite(form: str, person: str) -> str:
    """The Präteritum; its second person singular is not used."""
    return form if person in ("1s", "3s") else form + ("n" if form.endswith("e") else "en")


def with_zu(verb: Verb) -> str:
    return f"{verb.prefix}zu{verb.infinitive}" if verb.prefix else f"zu {verb.infinitive}"


def superlative(adjective: Adjective) -> tuple[str, str]:
    """English word(s) and German stem: oldest, ältest; most famous, berühmtest."""
    more, german = adjective.english_comparative, adjective.german_comparative.removesuffix("er")
    english = more.replace("more ", "most ") if more.startswith("more ") else more[:-1] + "st"
    return english, SUPERLATIVES.get(adjective.german) or german + (
        "est" if german.endswith(("d", "t", "s", "ß", "z", "sch")) else "st"
    )


def number(value: int) -> tuple[str, str]:
    """A number below fifty (but thirteen to nineteen) in words."""
    if value in UNITS:
        return UNITS[value]
    tens, unit = TENS[value // 10 * 10], value % 10
    if not unit:
        return tens
    return f"{tens[0]}-{UNITS[unit][0]}", f"{'ein' if unit == 1 else UNITS[unit][1]}und{tens[1]}"
