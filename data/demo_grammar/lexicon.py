"""The words: nouns, verbs and adjectives with what they go with, times, names and numbers.

Tables are text, read once at the end.  A verb names the classes of nouns it can have as an object and an adjective
those it suits, so that sentences make sense.
"""

import re

from demo_grammar.inflection import Adjective, Noun, Verb, english_past, english_suffix, weak_forms


def pairs(table: str) -> dict[str, str]:
    """English to German, from "Monday = Montag, ..."."""
    return dict(entry.strip().split(" = ") for entry in table.split(","))


# English[/irregular plural], gender (* = weak: all other forms equal the plural), German/plural (none: uncountable).
NOUNS = {
    "person": """
        man/men m Mann/Männer, woman/women f Frau/Frauen, boy m* Junge/Jungen, girl n Mädchen/Mädchen,
        child/children n Kind/Kinder, teacher m Lehrer/Lehrer, doctor m Arzt/Ärzte, baker m Bäcker/Bäcker,
        farmer m* Bauer/Bauern, neighbour m* Nachbar/Nachbarn, student m* Student/Studenten, cook m Koch/Köche,
        policeman/policemen m* Polizist/Polizisten, nurse f Krankenschwester/Krankenschwestern,
        actress f Schauspielerin/Schauspielerinnen, queen f Königin/Königinnen, guest m Gast/Gäste,
        gardener m Gärtner/Gärtner, lawyer m Anwalt/Anwälte, waitress f Kellnerin/Kellnerinnen""",
    "relative": """
        mother f Mutter, father m Vater, brother m Bruder/Brüder, sister f Schwester/Schwestern, uncle m Onkel/Onkel,
        aunt f Tante/Tanten, grandmother f Großmutter, grandfather m Großvater, daughter f Tochter/Töchter,
        son m Sohn/Söhne""",
    "pet": """
        dog m Hund/Hunde, cat f Katze/Katzen, horse n Pferd/Pferde, cow f Kuh/Kühe, pig n Schwein/Schweine,
        rabbit n Kaninchen/Kaninchen, goat f Ziege/Ziegen, duck f Ente/Enten""",
    "wild": """
        bird m Vogel/Vögel, mouse/mice f Maus/Mäuse, fox m Fuchs/Füchse, bear m* Bär/Bären, lion m* Löwe/Löwen,
        monkey m* Affe/Affen""",
    "fruit": """
        apple m Apfel/Äpfel, banana f Banane/Bananen, pear f Birne/Birnen, tomato/tomatoes f Tomate/Tomaten,
        potato/potatoes f Kartoffel/Kartoffeln, carrot f Karotte/Karotten""",
    "food": """
        egg n Ei/Eier, sausage f Wurst/Würste, cake m Kuchen/Kuchen, biscuit m Keks/Kekse,
        apple cake m Apfelkuchen/Apfelkuchen, tomato soup f Tomatensuppe/Tomatensuppen""",
    "grocery": "bread n Brot, cheese m Käse, meat n Fleisch, rice m Reis, honey m Honig, butter f Butter",
    "drink": """
        water n Wasser, milk f Milch, tea m Tee, coffee m Kaffee, beer n Bier, wine m Wein, apple juice m Apfelsaft,
        tomato juice m Tomatensaft""",
    "text": """
        letter m Brief/Briefe, poem n Gedicht/Gedichte, report m Bericht/Berichte, novel m Roman/Romane,
        story f Geschichte/Geschichten, message f Nachricht/Nachrichten, love letter m Liebesbrief/Liebesbriefe""",
    "print": """
        book n Buch/Bücher, newspaper f Zeitung/Zeitungen, magazine f Zeitschrift/Zeitschriften,
        schoolbook n Schulbuch/Schulbücher""",
    "garment": """
        coat m Mantel/Mäntel, shirt n Hemd/Hemden, dress n Kleid/Kleider, skirt m Rock/Röcke, jacket f Jacke/Jacken,
        shoe m Schuh/Schuhe, winter coat m Wintermantel/Wintermäntel, summer dress n Sommerkleid/Sommerkleider""",
    "thing": """
        key m Schlüssel/Schlüssel, knife/knives n Messer/Messer, pencil m Bleistift/Bleistifte,
        spoon m Löffel/Löffel, fork f Gabel/Gabeln, ring m Ring/Ringe, watch f Uhr/Uhren,
        umbrella m Regenschirm/Regenschirme, car key m Autoschlüssel/Autoschlüssel""",
    "vessel": """
        bottle f Flasche/Flaschen, cup f Tasse/Tassen, glass n Glas/Gläser, vase f Vase/Vasen,
        coffee cup f Kaffeetasse/Kaffeetassen, wine glass n Weinglas/Weingläser""",
    "device": """
        lamp f Lampe/Lampen, radio n Radio/Radios, computer m Computer/Computer, television m Fernseher/Fernseher,
        washing machine f Waschmaschine/Waschmaschinen""",
    "vehicle": "car n Auto/Autos, bicycle n Fahrrad/Fahrräder, taxi n Taxi/Taxis, lorry m Lastwagen/Lastwagen",
    "transport": "bus m Bus/Busse, train m Zug/Züge, ship n Schiff/Schiffe, tram f Straßenbahn/Straßenbahnen",
    "furniture": """
        table m Tisch/Tische, chair m Stuhl/Stühle, shelf/shelves n Regal/Regale, bed n Bett/Betten, sofa n Sofa/Sofas,
        bench f Bank/Bänke, kitchen table m Küchentisch/Küchentische, garden chair m Gartenstuhl/Gartenstühle""",
    "container": """
        box f Kiste/Kisten, bag f Tasche/Taschen, basket m Korb/Körbe, suitcase m Koffer/Koffer,
        drawer f Schublade/Schubladen""",
    "opening": "door f Tür/Türen, window n Fenster/Fenster, front door f Haustür/Haustüren",
    "room": """
        kitchen f Küche/Küchen, room n Zimmer/Zimmer, bedroom n Schlafzimmer/Schlafzimmer, office n Büro/Büros,
        living room n Wohnzimmer/Wohnzimmer, cellar m Keller/Keller, garage f Garage/Garagen""",
    "building": """
        house n Haus/Häuser, school f Schule/Schulen, church f Kirche/Kirchen, hotel n Hotel/Hotels,
        museum n Museum/Museen, restaurant n Restaurant/Restaurants, library f Bibliothek/Bibliotheken,
        theatre n Theater/Theater, hospital n Krankenhaus/Krankenhäuser, castle n Schloss/Schlösser,
        station m Bahnhof/Bahnhöfe""",
    "outdoors": """
        garden m Garten/Gärten, park m Park/Parks, forest m Wald/Wälder,
        village n Dorf/Dörfer, city f Stadt/Städte""",
    "event": """
        concert n Konzert/Konzerte, film m Film/Filme, meal n Essen/Essen, meeting f Besprechung/Besprechungen,
        wedding f Hochzeit/Hochzeiten, exam f Prüfung/Prüfungen, journey f Reise/Reisen, storm m Sturm/Stürme""",
}

# English base, past and participle (none: regular) | German infinitive, third person, preterite, participle and `sein`
# (none: weak, with haben) | case, perhaps after a preposition | objects: classes of nouns, `goods`, or = and one noun.
# ~ marks what separates: "pick~up the boy, pick him up", "ab~holen, er holt ... ab".
GOODS = "print garment thing vessel device vehicle furniture"
PERSON_VERBS = """
    read read read          | lesen liest las gelesen                | accusative     | text print
    write wrote written     | schreiben schreibt schrieb geschrieben | accusative     | text
    eat ate eaten           | essen isst aß gegessen                 | accusative     | fruit food grocery
    drink drank drunk       | trinken trinkt trank getrunken         | accusative     | drink
    buy bought bought       | kaufen                                 | accusative     | goods fruit food drink
    sell sold sold          | verkaufen                              | accusative     | goods fruit
    find found found        | finden findet fand gefunden            | accusative     | text thing garment container
    lose lost lost          | verlieren verliert verlor verloren     | accusative     | thing =suitcase =bag =letter
    look for                | suchen                                 | accusative     | person pet thing garment
    see saw seen            | sehen sieht sah gesehen                | accusative     | person relative pet wild
    need                    | brauchen                               | accusative     | thing garment device container
    love                    | lieben                                 | accusative     | relative pet
    know knew known         | kennen kennt kannte gekannt            | accusative     | person relative
    meet met met            | treffen trifft traf getroffen          | accusative     | person relative
    visit                   | besuchen                               | accusative     | person relative =museum =castle
    repair                  | reparieren                             | accusative     | vehicle device =watch =chair
    wash                    | waschen wäscht wusch gewaschen         | accusative     | garment vehicle fruit vessel
    clean                   | putzen                                 | accusative     | room =window =shoe
    open                    | öffnen                                 | accusative     | opening container =bottle
    close                   | schließen schließt schloss geschlossen | accusative     | opening container
    draw drew drawn         | zeichnen                               | accusative     | pet wild building
    photograph              | fotografieren                          | accusative     | person wild building
    order                   | bestellen                              | accusative     | food drink
    peel                    | schälen                                | accusative     | fruit =egg
    feed fed fed            | füttern                                | accusative     | pet
    carry                   | tragen trägt trug getragen             | accusative     | vessel container furniture
    turn~on                 | ein~schalten                           | accusative     | device
    turn~off                | aus~schalten                           | accusative     | device
    put~on put put          | an~ziehen zieht zog gezogen            | accusative     | garment
    try~on tried tried      | an~probieren                           | accusative     | garment
    call                    | an~rufen ruft rief gerufen             | accusative     | person relative
    pick~up                 | ab~holen                               | accusative     | person relative
    invite                  | ein~laden lädt lud geladen             | accusative     | person relative
    tidy~up                 | auf~räumen                             | accusative     | room
    throw~away threw thrown | weg~werfen wirft warf geworfen         | accusative     | text print thing garment vessel
    bring~along brought brought | mit~bringen bringt brachte gebracht | accusative    | food drink print
    help                    | helfen hilft half geholfen             | dative         | person relative
    thank                   | danken                                 | dative         | person relative
    trust                   | vertrauen                              | dative         | person relative
    listen to               | zu~hören                               | dative         | person relative
    wait for                | warten                                 | auf accusative | person relative transport
    talk to                 | sprechen spricht sprach gesprochen     | mit dative     | person relative
    think of thought thought | denken denkt dachte gedacht           | an accusative  | person relative
    dream of                | träumen                                | von dative     | vehicle wild relative
    sleep slept slept       | schlafen schläft schlief geschlafen
    work                    | arbeiten
    sing sang sung          | singen singt sang gesungen
    dance                   | tanzen
    laugh                   | lachen
    cry                     | weinen
    swim swam swum          | schwimmen schwimmt schwamm geschwommen sein
    get~up got got          | auf~stehen steht stand gestanden sein
    fall asleep fell fallen | ein~schlafen schläft schlief geschlafen sein
    arrive                  | an~kommen kommt kam gekommen sein
    come~back came come     | zurück~kommen kommt kam gekommen sein
    go shopping went gone   | ein~kaufen
"""
ANIMAL_VERBS = """
    eat ate eaten           | fressen frisst fraß gefressen          | accusative     | fruit =sausage =meat =bread
    drink drank drunk       | trinken trinkt trank getrunken         | accusative     | =water =milk
    see saw seen            | sehen sieht sah gesehen                | accusative     | person pet wild
    chase                   | jagen                                  | accusative     | pet wild
    bite bit bitten         | beißen beißt biss gebissen             | accusative     | person
    follow                  | folgen folgt folgte gefolgt sein       | dative         | person pet
    wait for                | warten                                 | auf accusative | person
    sleep slept slept       | schlafen schläft schlief geschlafen
    fall asleep fell fallen | ein~schlafen schläft schlief geschlafen sein
    come~back came come     | zurück~kommen kommt kam gekommen sein
"""
GIVING_VERBS = """
    give gave given         | geben gibt gab gegeben                 | accusative     | fruit print thing garment
    show showed shown       | zeigen                                 | accusative     | text print garment vehicle room
    send sent sent          | schicken                               | accusative     | text print
    lend lent lent          | leihen leiht lieh geliehen             | accusative     | print thing vehicle
    bring brought brought   | bringen bringt brachte gebracht        | accusative     | food drink vessel furniture
"""
PUTTING_VERBS = """
    put put put             | legen                                  | accusative     | thing garment text
    put put put             | stellen                                | accusative     | vessel =lamp =box =suitcase
"""
RESTING_VERBS = """
    lie lay lain            | liegen liegt lag gelegen               | accusative     | thing garment text
    stand stood stood       | stehen steht stand gestanden           | accusative     | vessel =lamp =box =suitcase
"""
MOVING_VERBS = """
    walk                    | gehen geht ging gegangen sein
    run ran run             | rennen rennt rannte gerannt sein
    drive drove driven      | fahren fährt fuhr gefahren sein
"""
OTHER_VERBS = """
    be was been             | sein ist war gewesen sein
    have had had            | haben hat hatte gehabt                 | accusative     | goods pet
    cost cost cost          | kosten
    belong to               | gehören                                | dative         | person relative
    depart                  | ab~fahren fährt fuhr gefahren sein
    jump                    | springen springt sprang gesprungen sein
    live                    | wohnen
    travel travelled travelled | reisen reist reiste gereist sein
    think thought thought   | glauben
    know knew known         | wissen weiß wusste gewusst
    say said said           | sagen
    hope                    | hoffen
    try                     | versuchen
    forget forgot forgotten | vergessen vergisst vergaß vergessen
"""
STATIVE = {"need", "love", "know", "trust", "have"}  # neither progressive nor perfect, and no modal before them
MOMENTARY = {"see", "find", "lose"}  # not progressive
# What takes its time, in some place.
PLACED = {"read", "write", "eat", "drink", "meet", "sleep", "work", "sing", "dance", "cry", "draw"}
# How somebody is just now: a reason, or a condition.
TEMPORARY = {"tired", "sick", "sad", "hungry"}

# A modal counts as a tense: English auxiliary (none: inflected like a verb) and what follows, German forms.
MODALS = {
    "can": ("can", "", "können kann konnte"),
    "must": ("must", "", "müssen muss musste"),
    "should": ("should", "", "sollten sollte sollte"),
    "want": ("", "want to", "wollen will wollte"),
    "would like": ("would", "like to", "möchten möchte mochte"),
    "be allowed": ("be", "allowed to", "dürfen darf durfte"),
}

# English with comparative (none: with more) | German with comparative (none: regular) | nouns it suits.
ADJECTIVES = """
    old older | alt älter | person relative pet print garment device vehicle transport furniture container building
    young younger | jung jünger | person pet wild
    big bigger | groß größer | pet wild fruit food vessel furniture container room building outdoors
    small smaller | klein kleiner | pet wild fruit food vessel device furniture container room building outdoors
    new newer | neu neuer | print text garment thing device vehicle furniture container opening
    beautiful | schön schöner | vessel garment furniture building outdoors event
    expensive | teuer teurer | drink garment thing device vehicle food grocery
    cheap cheaper | billig billiger | drink garment device vehicle fruit furniture grocery
    heavy heavier | schwer schwerer | furniture container
    red | rot | garment vehicle vessel container
    blue | blau | garment vehicle vessel opening container
    black | schwarz | pet garment thing
    white | weiß | pet garment opening furniture
    brown | braun | pet furniture
    dirty dirtier | schmutzig schmutziger | garment vessel vehicle room
    fresh fresher | frisch frischer | fruit food grocery
    cold colder | kalt kälter | drink room
    warm warmer | warm wärmer | drink room garment
    long longer | lang länger | text event
    short shorter | kurz kürzer | text event
    interesting | interessant interessanter | text print event
    boring | langweilig langweiliger | text print event
    famous | berühmt berühmter | person building
    modern | modern moderner | device transport building
    fast faster | schnell schneller | vehicle transport
    slow slower | langsam langsamer | vehicle transport
    dark darker | dunkel dunkler | room
    quiet quieter | ruhig ruhiger | room outdoors
    tall taller | groß größer | person relative
    friendly friendlier | freundlich freundlicher | person relative
    clever cleverer | klug klüger | person wild relative
    tired | müde | person pet relative
    sick | krank | person pet relative
    sad sadder | traurig trauriger | person relative
    rich richer | reich reicher | person relative
    polite politer | höflich höflicher | person
    strong stronger | stark stärker | person wild
    hungry | hungrig | person pet wild
    dangerous | gefährlich gefährlicher | wild
    lazy lazier | faul fauler | person pet
"""

TIMES = {
    "present": pairs("""
        every day = jeden Tag, every morning = jeden Morgen, every evening = jeden Abend, every week = jede Woche,
        on Mondays = montags, on Sundays = sonntags"""),
    "past": pairs("""
        yesterday = gestern, yesterday evening = gestern Abend, last week = letzte Woche, last summer = letzten Sommer,
        last year = letztes Jahr, two days ago = vor zwei Tagen, three weeks ago = vor drei Wochen"""),
    "future": pairs("""
        tomorrow = morgen, tomorrow evening = morgen Abend, next week = nächste Woche, next year = nächstes Jahr,
        next summer = nächsten Sommer"""),
    "perfect": pairs("today = heute, this morning = heute Morgen, this week = diese Woche"),
    "modal": pairs("today = heute, tomorrow = morgen, this evening = heute Abend, next week = nächste Woche"),
}
FREQUENCIES = pairs("often = oft, always = immer, sometimes = manchmal, usually = normalerweise, never = nie")
WEEKDAYS = pairs("""
    Monday = Montag, Tuesday = Dienstag, Wednesday = Mittwoch, Thursday = Donnerstag, Friday = Freitag,
    Saturday = Samstag, Sunday = Sonntag""")
MONTHS = pairs("""
    January = Januar, February = Februar, March = März, April = April, May = Mai, June = Juni, July = Juli,
    August = August, September = September, October = Oktober, November = November, December = Dezember""")
CITIES = pairs("""
    Berlin = Berlin, Hamburg = Hamburg, Vienna = Wien, Munich = München, Cologne = Köln, Zurich = Zürich, Rome = Rom,
    Prague = Prag""")
CONJUNCTIONS = pairs("because = weil, although = obwohl, if = wenn, while = während, before = bevor, when = wenn")
BESIDE = pairs("on = auf, under = unter, behind = hinter, next to = neben, in front of = vor")
EVENTS = {  # before an event: German preposition and case
    "after": ("nach", "dative"),
    "before": ("vor", "dative"),
    "during": ("während", "genitive"),
    "because of": ("wegen", "genitive"),
}


def read_nouns() -> dict[str, Noun]:
    nouns = {}
    for kind, table in NOUNS.items():
        for entry in table.split(","):
            match = re.fullmatch(r"\s*(.+) ([mfn]\*?) (\S+)\s*", entry)
            assert match, entry
            english, gender, german = match.groups()
            english, _, english_plural = english.partition("/")
            german, _, plural = german.partition("/")
            english_plural = english_plural or english_suffix(english)
            nouns[english] = Noun(english, english_plural, gender[0], gender.endswith("*"), german, plural, kind)
    return nouns


def read_verbs(table: str) -> tuple[Verb, ...]:
    verbs = []
    for line in table.strip().splitlines():
        english, german, *frame = (column.strip() for column in line.split("|"))
        case, objects = frame or ("", "")
        preposition, _, case = case.rpartition(" ")
        base, *irregular = english.split()
        tail = irregular.pop(0) if len(irregular) % 2 else ""
        base, _, particle = base.partition("~")
        past, participle = irregular or [english_past(base)] * 2
        infinitive, *forms = german.split()
        prefix, _, infinitive = infinitive.rpartition("~")
        third, simple_past, german_participle, *auxiliary = forms or weak_forms(infinitive)
        verbs.append(
            Verb(
                base=base,
                past=past,
                participle=participle,
                particle=particle,
                tail=tail,
                infinitive=infinitive,
                third=third,
                preterite=simple_past,
                german_participle=german_participle,
                auxiliary=auxiliary[0] if auxiliary else "haben",
                prefix=prefix,
                case=case,
                preposition=preposition,
                objects=tuple(objects.replace("goods", GOODS).split()),
            )
        )
    return tuple(verbs)


def read_adjectives() -> tuple[Adjective, ...]:
    adjectives = []
    for line in ADJECTIVES.strip().splitlines():
        (english, *more), (german, *mehr), kinds = (column.split() for column in line.split("|"))
        comparatives = more[0] if more else f"more {english}", mehr[0] if mehr else ""
        adjectives.append(Adjective(english, german, *comparatives, tuple(kinds)))
    return tuple(adjectives)


LEXICON = read_nouns()
ADJECTIVES_BY_KIND = {kind: tuple(a for a in read_adjectives() if kind in a.kinds) for kind in NOUNS}
PERSON, ANIMAL, GIVING, PUTTING, RESTING, MOVING = map(
    read_verbs, (PERSON_VERBS, ANIMAL_VERBS, GIVING_VERBS, PUTTING_VERBS, RESTING_VERBS, MOVING_VERBS)
)
BE, HAVE, COST, BELONG, DEPART, JUMP, LIVE, TRAVEL, THINK, KNOW, SAY, HOPE, TRY, FORGET = read_verbs(OTHER_VERBS)


def nouns(*classes: str) -> tuple[Noun, ...]:
    """The nouns of some classes; `=` and a noun stands for itself."""
    return tuple(noun for noun in LEXICON.values() if noun.kind in classes or "=" + noun.english in classes)
