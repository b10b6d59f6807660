"""Parallel text, read in lockstep: line n of the source belongs to line n of the target, or nothing can be learned.

Refuses files of unequal length, empty files, and tab-separated lines that are not one pair.  Judges no text: that is
the work of `mt.corpus.cleaning`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from mt.errors import ConfigError, DataError
from mt.files import COMPRESSED, read_lines

Pair = tuple[str, str]  # source line, target line

# ISO 639-1, complete.
TWO_LETTERS = """
    aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en
    eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja
    jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb
    nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq
    sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
# Of ISO 639-3: languages without a two-letter code, and the three-letter codes (terminological and bibliographic) of
# the most translated ones.  Those that are common file suffixes too (src, tok, ref) are left out.
THREE_LETTERS = """
    ace apc ary arz ast awa ban bem bho bjn bug ceb cjk ckb cmn crh dik din dsb dyu fil fon frp fur fuv gaz gsw haw
    hmn hne hsb ilo kab kac kam kbp kea khk kik kin kmb kmr knc lij lim lmo lua luo lus mag mai min mni mos nds nso
    nus oci pag pam pap pbt pcm quy rom rup sah sat scn shn sid srd szl taq tet tpi tum tyv tzm udm umb vec war wol
    wuu yue zgh afr amh ara asm aze bel ben bos bul cat ces cze cym wel dan deu ger ell gre eng est eus baq fas per
    fin fra fre gle glg guj hau heb hin hrv hun hye arm ibo ind isl ice ita jpn kan kat geo kaz khm kor lao lav lit
    mal mar mkd mac mlt mon mya bur nep nld dut nor nob nno ori pan pol por pus ron rum rus sin slk slo slv som spa
    sqi alb srp sun swa swe swh tam tat tel tgl tha tur uig ukr urd uzb vie xho yor zho chi zsm zul
"""
LANGUAGES = frozenset(f"{TWO_LETTERS} {THREE_LETTERS}".split())


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFiles:
    """Where parallel text stands: two files matched line by line, or one with `source TAB target` in each line."""

    source: Path | None = None
    target: Path | None = None
    tsv: Path | None = None
    weight: float = 1.0  # how often an epoch contains each of its pairs

    def __post_init__(self) -> None:
        if (self.tsv is None) == (self.source is None) or (self.source is None) != (self.target is None):
            raise ConfigError("a corpus is either a source and a target file, or one tsv file")
        if not self.weight > 0:
            raise ConfigError(f"the weight of {self.name} is {self.weight:g}", "a weight is above zero")

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.source, self.target, self.tsv) if path is not None)

    @property
    def name(self) -> str:
        return " + ".join(map(str, self.paths))


def sampling_weights(corpora: Sequence[CorpusFiles], pairs: Sequence[int], temperature: float) -> list[float]:
    """How often an epoch holds each pair of these corpora of so many pairs.

    At temperature T a corpus of n pairs is drawn from in proportion to n^(1/T) and to its own weight (Arivazhagan et
    al. 2019): the largest has its weight, a smaller one its weight times (largest / n)^(1 - 1/T).
    """
    largest = max(pairs)
    return [
        corpus.weight * (largest / max(1, count)) ** (1 - 1 / temperature)
        for corpus, count in zip(corpora, pairs, strict=True)
    ]


def language_of(path: Path) -> str:
    """The ISO 639 code that a file name ends in (`train.de`, `train.de.gz`), in lower case, or "" when it has none."""
    if path.suffix in COMPRESSED:
        path = path.with_suffix("")
    code = path.suffix.removeprefix(".").lower()
    return code if code in LANGUAGES else ""


def read_pairs(files: CorpusFiles) -> Iterator[Pair]:
    """Yield (source, target) for each line, as it stands.

    Raises `DataError` when a file cannot be read or is empty, when one side has fewer lines than the other (at the
    end, with both counts), and when a line of a tsv file has not exactly one tab.
    """
    if files.tsv is not None:
        return split_pairs(files.tsv)
    return paired_lines(*files.paths)


def paired_lines(source: Path, target: Path) -> Iterator[Pair]:
    source_lines, target_lines = read_lines(source), read_lines(target)
    number = 0
    for number, (source_line, target_line) in enumerate(zip_longest(source_lines, target_lines), 1):
        if source_line is None:
            raise unequal(source, number - 1, target, number + sum(1 for _ in target_lines))
        if target_line is None:
            raise unequal(source, number + sum(1 for _ in source_lines), target, number - 1)
        yield source_line, target_line
    if number == 0:
        raise DataError(f"{source} and {target} are empty")


def unequal(source: Path, source_count: int, target: Path, target_count: int) -> DataError:
    for path, count in ((source, source_count), (target, target_count)):
        if count == 0:
            return DataError(f"{path} is empty")
    return DataError(
        f"{source} has {source_count:,} lines, {target} has {target_count:,}",
        "parallel files are matched line by line; one of them has lost or gained a line",
    )


def split_pairs(path: Path) -> Iterator[Pair]:
    number = 0
    for number, line in enumerate(read_lines(path), 1):
        source, tab, target = line.partition("\t")
        if not tab or "\t" in target:
            tabs = line.count("\t")
            raise DataError(f"{path}, line {number:,}: {tabs} tabs instead of one", "a line is: source TAB target")
        yield source, target
    if number == 0:
        raise DataError(f"{path} is empty")
