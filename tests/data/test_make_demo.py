"""The demo corpus: its grammar against tables of German grammar, its files against their generator."""

import importlib
import re
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "data"
sys.path.insert(0, str(DATA))
make_demo = importlib.import_module("make_demo")
clauses = importlib.import_module("demo_grammar.clauses")
inflection = importlib.import_module("demo_grammar.inflection")
lexicon = importlib.import_module("demo_grammar.lexicon")
sys.path.remove(str(DATA))

VERBS = {
    verb.english: verb
    for verb in (*lexicon.PUTTING, *lexicon.GIVING, *lexicon.MOVING, *lexicon.PERSON, lexicon.BE, lexicon.HAVE)
}
ANNA = clauses.name("Anna")


def phrase(noun: str, determiner: str = "the", plural: bool = False, adjective: tuple[str, str] = ("", "")):
    return clauses.noun_phrase(lexicon.LEXICON[noun], determiner, plural, adjective)


def clause(subject, verb: str, tense: str, **rest):
    return clauses.Clause(subject, VERBS[verb], tense, **rest)


def read(split: str) -> list[tuple[str, str]]:
    sides = ((DATA / "demo" / f"{split}.{language}").read_text(encoding="utf-8") for language in ("en", "de"))
    return list(zip(*(side.splitlines() for side in sides), strict=True))


# --- Inflection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("determiner", "plural", "noun", "forms"),
    [
        ("the", False, "table", "der neue Tisch, den neuen Tisch, dem neuen Tisch, des neuen Tisches"),
        ("the", False, "lamp", "die neue Lampe, die neue Lampe, der neuen Lampe, der neuen Lampe"),
        ("the", False, "car", "das neue Auto, das neue Auto, dem neuen Auto, des neuen Autos"),
        ("the", True, "table", "die neuen Tische, die neuen Tische, den neuen Tischen, der neuen Tische"),
        ("a", False, "table", "ein neuer Tisch, einen neuen Tisch, einem neuen Tisch, eines neuen Tisches"),
        ("a", False, "lamp", "eine neue Lampe, eine neue Lampe, einer neuen Lampe, einer neuen Lampe"),
        ("a", False, "car", "ein neues Auto, ein neues Auto, einem neuen Auto, eines neuen Autos"),
        ("", False, "wine", "neuer Wein, neuen Wein, neuem Wein, neuen Weines"),
        ("", False, "milk", "neue Milch, neue Milch, neuer Milch, neuer Milch"),
        ("", False, "water", "neues Wasser, neues Wasser, neuem Wasser, neuen Wassers"),
        ("", True, "car", "neue Autos, neue Autos, neuen Autos, neuer Autos"),
        ("not a", False, "car", "kein neues Auto, kein neues Auto, keinem neuen Auto, keines neuen Autos"),
        ("not any", True, "car", "keine neuen Autos, keine neuen Autos, keinen neuen Autos, keiner neuen Autos"),
        ("our", False, "table", "unser neuer Tisch, unseren neuen Tisch, unserem neuen Tisch, unseres neuen Tisches"),
        ("this", False, "car", "dieses neue Auto, dieses neue Auto, diesem neuen Auto, dieses neuen Autos"),
        ("all", True, "car", "alle neuen Autos, alle neuen Autos, allen neuen Autos, aller neuen Autos"),
        ("many", True, "car", "viele neue Autos, viele neue Autos, vielen neuen Autos, vieler neuer Autos"),
        ("three", True, "car", "drei neue Autos, drei neue Autos, drei neuen Autos, drei neuer Autos"),
        ("Anna's", False, "car", "Annas neues Auto, Annas neues Auto, Annas neuem Auto, Annas neuen Autos"),
    ],
)
def test_articles_adjectives_and_nouns_decline_together(determiner, plural, noun, forms):
    declined = phrase(noun, determiner, plural, ("new", "neu")).german
    assert ", ".join(declined[case] for case in inflection.CASES) == forms


@pytest.mark.parametrize(
    ("noun", "dative"),
    [
        ("child", "den Kindern"),
        ("apple", "den Äpfeln"),
        ("teacher", "den Lehrern"),
        ("car", "den Autos"),
        ("woman", "den Frauen"),
        ("girl", "den Mädchen"),
        ("mouse", "den Mäusen"),
    ],
)
def test_the_dative_plural_ends_in_n_unless_in_s(noun, dative):
    assert phrase(noun, plural=True).german["dative"] == dative


@pytest.mark.parametrize(
    ("noun", "accusative", "genitive"),
    [
        ("boy", "den Jungen", "des Jungen"),
        ("student", "den Studenten", "des Studenten"),
        ("neighbour", "den Nachbarn", "des Nachbarn"),
        ("bear", "den Bären", "des Bären"),
        ("child", "das Kind", "des Kindes"),
        ("teacher", "den Lehrer", "des Lehrers"),
        ("house", "das Haus", "des Hauses"),
        ("bus", "den Bus", "des Busses"),
        ("queen", "die Königin", "der Königin"),
    ],
)
def test_weak_nouns_keep_their_n_and_others_take_s(noun, accusative, genitive):
    german = phrase(noun).german
    assert (german["accusative"], german["genitive"]) == (accusative, genitive)


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("read", "lese liest liest lesen lesen"),
        ("eat", "esse isst isst essen essen"),
        ("drive", "fahre fährst fährt fahren fahren"),
        ("work", "arbeite arbeitest arbeitet arbeiten arbeiten"),
        ("open", "öffne öffnest öffnet öffnen öffnen"),
        ("feed", "füttere fütterst füttert füttern füttern"),
        ("wash", "wasche wäschst wäscht waschen waschen"),
        ("clean", "putze putzt putzt putzen putzen"),
        ("be", "bin bist ist sind sind"),
        ("have", "habe hast hat haben haben"),
    ],
)
def test_the_present_agrees_and_changes_its_stem(verb, forms):
    verb = VERBS[verb]
    assert [inflection.present(verb.infinitive, verb.third, person) for person in inflection.PERSONS] == forms.split()


@pytest.mark.parametrize(
    ("infinitive", "forms"),
    [
        ("kaufen", ("kauft", "kaufte", "gekauft")),
        ("arbeiten", ("arbeitet", "arbeitete", "gearbeitet")),
        ("öffnen", ("öffnet", "öffnete", "geöffnet")),
        ("zeichnen", ("zeichnet", "zeichnete", "gezeichnet")),
        ("wohnen", ("wohnt", "wohnte", "gewohnt")),
        ("verkaufen", ("verkauft", "verkaufte", "verkauft")),
        ("gehören", ("gehört", "gehörte", "gehört")),
        ("reparieren", ("repariert", "reparierte", "repariert")),
    ],
)
def test_weak_verbs_are_regular(infinitive, forms):
    assert inflection.weak_forms(infinitive) == forms


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2, ("two", "zwei")),
        (12, ("twelve", "zwölf")),
        (30, ("thirty", "dreißig")),
        (21, ("twenty-one", "einundzwanzig")),
    ],
)
def test_numbers_put_the_unit_first(value, words):
    assert inflection.number(value) == words


# --- Clauses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tense", "second", "first", "final"),
    [
        ("present", "Anna ruft ihn an", "ruft Anna ihn an", "Anna ihn anruft"),
        ("progressive", "Anna ruft ihn gerade an", "ruft Anna ihn gerade an", "Anna ihn gerade anruft"),
        ("past", "Anna rief ihn an", "rief Anna ihn an", "Anna ihn anrief"),
        ("perfect", "Anna hat ihn angerufen", "hat Anna ihn angerufen", "Anna ihn angerufen hat"),
        ("future", "Anna wird ihn anrufen", "wird Anna ihn anrufen", "Anna ihn anrufen wird"),
        ("must", "Anna muss ihn anrufen", "muss Anna ihn anrufen", "Anna ihn anrufen muss"),
    ],
)
def test_a_separable_verb_parts_in_main_clauses_only(tense, second, first, final):
    call = clause(ANNA, "call", tense, object=clauses.PRONOUNS["he"])
    assert [clauses.german(call, order) for order in ("second", "first", "final")] == [second, first, final]


def test_zu_stands_inside_a_separable_verb():
    assert [inflection.with_zu(VERBS[verb]) for verb in ("call", "open")] == ["anzurufen", "zu öffnen"]


def test_an_adverbial_in_front_inverts_verb_and_subject():
    yesterday = clauses.Adverbial("yesterday", "gestern", "front")
    bought = clause(ANNA, "buy", "past", object=phrase("coat", "a"))
    assert clauses.german(bought) == "Anna kaufte einen Mantel"
    fronted = replace(bought, adverbials=(yesterday,))
    assert clauses.german(fronted) == "gestern kaufte Anna einen Mantel"
    assert clauses.english(fronted) == "yesterday Anna bought a coat"


@pytest.mark.parametrize(
    ("verb", "determiner", "noun", "source", "target"),
    [
        ("buy", "not a", "car", "Anna does not buy a car", "Anna kauft kein Auto"),
        ("buy", "the", "car", "Anna does not buy the car", "Anna kauft das Auto nicht"),
        ("help", "the", "man", "Anna does not help the man", "Anna hilft dem Mann nicht"),
        ("wait for", "the", "bus", "Anna does not wait for the bus", "Anna wartet nicht auf den Bus"),
        ("turn on", "the", "lamp", "Anna does not turn on the lamp", "Anna schaltet die Lampe nicht ein"),
    ],
)
def test_nicht_follows_what_is_definite_and_kein_replaces_ein(verb, determiner, noun, source, target):
    denial = clause(ANNA, verb, "present", object=phrase(noun, determiner), negated=True)
    assert (clauses.english(denial), clauses.german(denial)) == (source, target)


@pytest.mark.parametrize(
    ("english", "german", "noun", "case", "expected"),
    [
        ("in", "in", "garden", "dative", "im Garten"),
        ("into", "in", "garden", "accusative", "in den Garten"),
        ("in", "in", "house", "dative", "im Haus"),
        ("into", "in", "house", "accusative", "ins Haus"),
        ("to", "zu", "school", "dative", "zur Schule"),
        ("by", "von", "student", "dative", "vom Studenten"),
        ("onto", "auf", "table", "accusative", "auf den Tisch"),
        ("during", "während", "concert", "genitive", "während des Konzerts"),
    ],
)
def test_prepositions_rule_their_case_and_contract(english, german, noun, case, expected):
    assert clauses.prepositional(english, german, phrase(noun), case, "where").german == expected


@pytest.mark.parametrize(
    ("noun", "plural", "verb", "expected"),
    [
        ("man", False, "see", "den Anna sieht"),
        ("woman", False, "help", "der Anna hilft"),
        ("child", False, "thank", "dem Anna dankt"),
        ("man", True, "help", "denen Anna hilft"),
        ("man", False, "talk to", "mit dem Anna spricht"),
        ("bus", False, "wait for", "auf den Anna wartet"),
        ("child", False, "pick up", "das Anna abholt"),
    ],
)
def test_a_relative_pronoun_takes_gender_from_its_noun_and_case_from_its_clause(noun, plural, verb, expected):
    relative = clauses.relative_pronoun(phrase(noun, plural=plural))
    assert clauses.german(clause(ANNA, verb, "present", object=relative), "final") == expected


def test_it_takes_the_gender_of_its_antecedent():
    pronouns = [clauses.back_reference(phrase(noun)) for noun in ("dog", "cat", "horse")]
    assert [(p.english, p.german["nominative"]) for p in pronouns] == [("it", "er"), ("it", "sie"), ("it", "es")]


def test_an_english_particle_follows_a_pronoun():
    noun, pronoun = (clause(ANNA, "pick up", "past", object=o) for o in (phrase("man"), clauses.PRONOUNS["he"]))
    assert clauses.english(noun) == "Anna picked up the man"
    assert clauses.english(pronoun) == "Anna picked him up"


# --- Corpus ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits() -> dict[str, list[tuple[str, str]]]:
    return {split: read(split) for split in make_demo.SIZES}


def test_the_script_writes_the_committed_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_demo.py", "--output", str(tmp_path)])
    make_demo.main()
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in (DATA / "demo").iterdir()}


def test_the_splits_have_their_sizes(splits):
    assert {split: len(pairs) for split, pairs in splits.items()} == make_demo.SIZES


def test_an_english_sentence_has_one_german(splits):
    translations = defaultdict(set)
    for pairs in splits.values():
        for source, target in pairs:
            translations[source].add(target)
    assert all(len(targets) == 1 for targets in translations.values())


def english_sentences(splits, form: str) -> list[str]:
    return [source for pairs in splits.values() for source, _ in pairs if re.search(form, source)]


def test_must_is_never_negated(splits):
    assert english_sentences(splits, r"\bmust\b")
    assert not english_sentences(splits, r"\bmust\b.*\b(not|no|never)\b")


def test_every_and_all_stand_beside_no_negation(splits):
    universal, negated = (
        set(english_sentences(splits, form)) for form in (r"\b([Ee]very|[Aa]ll)\b", r"\b(not|cannot|no|never)\b")
    )
    assert universal
    assert negated
    assert not universal & negated


def test_a_name_occurs_once_in_a_sentence(splits):
    names = "|".join(inflection.NAMES["m"] + inflection.NAMES["f"])
    assert english_sentences(splits, rf"\b({names})\b.*\b({names})\b")
    assert not english_sentences(splits, rf"\b({names})\b.*\b\1\b")


@pytest.mark.parametrize("side", [0, 1], ids=["english", "german"])
def test_no_sentence_occurs_twice(splits, side):
    counts = Counter(pair[side] for pairs in splits.values() for pair in pairs)
    assert max(counts.values()) == 1


@pytest.mark.parametrize("side", [0, 1], ids=["english", "german"])
def test_every_word_of_the_test_is_familiar_from_training(splits, side):
    counts = Counter(word for pair in splits["train"] for word in make_demo.tokens(pair[side]))
    words = {word for split in ("valid", "test") for pair in splits[split] for word in make_demo.tokens(pair[side])}
    assert min(counts[word] for word in words) >= make_demo.FAMILIAR


def test_valid_and_test_recombine_what_training_keeps_apart(splits):
    unread = {pair for pairs in splits.values() for pair in pairs}
    combinations = {}
    for pair, combined in make_demo.generate(seed=1):
        combinations[pair] = combined
        unread.discard(pair)
        if not unread:
            break
    trained = set().union(*(combinations[pair] for pair in splits["train"]))
    assert all(combinations[pair] - trained for split in ("valid", "test") for pair in splits[split])


def test_sentences_are_short(splits):
    lengths = [len(side.split()) for pairs in splits.values() for pair in pairs for side in pair]
    assert max(lengths) <= make_demo.LONGEST
    assert 6 < sum(lengths) / len(lengths) < 12
