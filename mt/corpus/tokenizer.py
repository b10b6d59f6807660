"""Text to subword ids and back, by SentencePiece (Kudo and Richardson 2018).

Text passes unchanged: no normalisation unless asked for, spaces kept, characters outside the vocabulary as bytes.
"""

import io
import random
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import sentencepiece

from mt.errors import ConfigError, ModelError
from mt.settings import auto

TYPES = ("unigram", "bpe")
NORMALIZATIONS = ("none", "nfc", "nfkc")
SAMPLE_LINES = 2_000_000  # more teach SentencePiece nothing new
SAMPLE_CHARACTERS = 60_000_000  # training a unigram tokenizer takes 21 bytes of memory for each
LINE_BREAKS = re.compile("[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
SPECIAL_IDS = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}  # of tokenizers trained here


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """How tokenizers are made; nothing here matters to those that are given as files."""

    files: tuple = ()  # given SentencePiece models: one for both sides, or source and target
    type: str = "unigram"  # unigram | bpe
    vocabulary_size: int = auto()  # pieces; of each side when not joint
    joint: bool = auto()  # one tokenizer for both sides; auto: when both are written in one script
    normalization: str = "none"  # none | nfc | nfkc, applied to source and target
    sample_lines: int = SAMPLE_LINES  # about so many lines at most are trained on
    sample_characters: int = SAMPLE_CHARACTERS  # and about so many characters: 21 bytes of memory each

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ConfigError(f"tokenizer.type {self.type} is none of {', '.join(TYPES)}")
        if self.normalization not in NORMALIZATIONS:
            raise ConfigError(f"tokenizer.normalization {self.normalization} is none of {', '.join(NORMALIZATIONS)}")
        if len(self.files) > 2:
            raise ConfigError("tokenizer.files has more than two entries", "one for both sides, or source and target")
        for name in ("sample_lines", "sample_characters"):
            if getattr(self, name) < 1:
                raise ConfigError(f"tokenizer.{name} is {getattr(self, name)}", "a tokenizer is trained on text")


@dataclass(frozen=True, slots=True)
class Specials:
    """The ids with a meaning of their own, as the tokenizer file gives them."""

    pad: int
    bos: int
    eos: int
    unk: int


FEW_LINES = 100  # are encoded in less time than SentencePiece takes to start a thread for them


class Tokenizer:
    """A SentencePiece model; `size` counts its pieces, and one more row when it has no `<pad>` of its own."""

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        if not model:  # of which SentencePiece would make a processor that knows nothing
            raise ModelError(f"{name} is empty", "name a SentencePiece .model file")
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ModelError(f"{name} is not a SentencePiece model", "name a .model file") from error
        self.model = model
        pieces, eos, bos = self.processor.get_piece_size(), self.processor.eos_id(), self.processor.bos_id()
        if eos < 0:
            raise ModelError(f"{name} has no end-of-sentence piece", "train one with: mt tokenizer train")
        pad = self.processor.pad_id()
        self.size = pieces + (pad < 0)
        self.specials = Specials(
            pad=pieces if pad < 0 else pad, bos=eos if bos < 0 else bos, eos=eos, unk=self.processor.unk_id()
        )

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise ModelError(
                f"cannot read the tokenizer {path}: {error.strerror}", "name a SentencePiece .model file"
            ) from error

    def encode(self, lines: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Ids of each line, without special ids."""
        if len(lines) <= FEW_LINES:
            return [self.processor.encode(line) for line in lines]
        return self.processor.encode(list(lines), num_threads=threads)

    def sample(self, lines: Sequence[str], alpha: float, seed: int) -> list[list[int]]:
        """Ids of each line, in pieces drawn at random.

        A unigram tokenizer draws a segmentation with probability proportional to its likelihood^alpha: near 1 it is
        nearly always the best one, near 0 any.  BPE leaves out each merge with probability alpha.  Raises
        `ConfigError` for tokenizers of other types.
        """
        sentencepiece.set_random_generator_seed(seed)
        try:
            # With one thread, which SentencePiece starts for the call and seeds, lines are drawn in order.
            return self.processor.encode(list(lines), enable_sampling=True, alpha=alpha, nbest_size=-1, num_threads=1)
        except RuntimeError as error:
            raise ConfigError(
                f"this tokenizer has no other pieces to draw: {error}", "--set training.sampling_alpha=0"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ids are passed over, and a line break (made of byte pieces, say) is a space."""
        special = {self.specials.pad, self.specials.bos, self.specials.eos, self.specials.unk}
        known = [int(i) for i in ids if i not in special]
        return LINE_BREAKS.sub(" ", self.processor.decode(known))

    def bytes(self) -> list[int]:
        """The ids that stand for a byte each, of which characters outside the vocabulary are made."""
        return [i for i in range(self.processor.get_piece_size()) if self.processor.is_byte(i)]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.processor.id_to_piece(int(i)) if i < self.processor.get_piece_size() else "<pad>" for i in ids]


def sample_of(lines: Iterable[str], count: int, seed: int = 1) -> list[str]:
    """All lines, or of more than `count` so many, each equally likely (Vitter 1985, algorithm R)."""
    generator = random.Random(seed)
    chosen: list[str] = []
    for number, line in enumerate(lines):
        if number < count:
            chosen.append(line)
        elif (slot := generator.randrange(number + 1)) < count:
            chosen[slot] = line
    return chosen


def vocabulary_size_for(pairs: int) -> int:
    """Pieces for a corpus of so many pairs: 8,000 at 29,000 pairs, 32,000 from 4.1 million on.

    A multiple of 8, as GPUs want the sizes of products to be.
    """
    return min(32_000, max(1_000, round(8_000 * (pairs / 29_000) ** 0.28 / 200) * 200))


def train_tokenizer(
    lines: Iterable[str], *, type: str = "unigram", vocabulary_size: int, normalization: str = "none"
) -> tuple[bytes, str]:
    """A SentencePiece model trained on lines, and a warning: "" or how the size was changed to what the text allows.

    A size that the text cannot fill is lowered; one below what it needs (bytes, specials, characters) is raised.
    The number of threads is fixed, since the sums of unigram training depend on it.
    """
    sample = [line for line in lines if line.strip()]
    if not sample:
        raise ConfigError("there is no text to train a tokenizer on")
    size = max(vocabulary_size, 2 * len(SPECIAL_IDS))  # below, SentencePiece does not say what it needs
    for _ in range(3):
        model = io.BytesIO()
        try:
            with tempfile.TemporaryDirectory() as folder:
                options: dict[str, Any] = {
                    "model_type": type,
                    "vocab_size": size,
                    "remove_extra_whitespaces": False,
                    "byte_fallback": True,
                    "character_coverage": 0.9995,
                    "split_digits": True,  # a number unseen in training is then spelt like those seen
                    "max_sentence_length": 1 << 30,  # bytes; longer lines are left out silently
                    "num_threads": 16,
                    "minloglevel": 2,
                    **SPECIAL_IDS,
                    **normalization_rules(normalization, Path(folder)),
                }
                sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sample), model_writer=model, **options)
            break
        except RuntimeError as error:
            size = size_allowed(str(error), size)
    else:
        raise ConfigError(f"SentencePiece finds no vocabulary size for this text; {size:,} was the last one tried")
    actual = Tokenizer(model.getvalue()).size
    if actual == vocabulary_size:
        return model.getvalue(), ""
    verb, why = ("lowered", "the text yields no more") if actual < vocabulary_size else ("raised", "the text needs it")
    return model.getvalue(), f"vocabulary size {verb} from {vocabulary_size:,} to {actual:,} pieces: {why}"


def normalization_rules(normalization: str, folder: Path) -> dict[str, str]:
    """SentencePiece's options for a normalisation; NFC, which it does not ship, is written out as rules."""
    if normalization != "nfc":
        return {"normalization_rule_name": "identity" if normalization == "none" else normalization}
    rules: dict[str, str] = {}
    for composed in map(chr, range(0x80, 0x110000)):
        decomposed = unicodedata.normalize("NFD", composed)
        if unicodedata.normalize("NFC", composed) != composed:
            rules[composed] = unicodedata.normalize("NFC", composed)
        elif decomposed != composed:
            for spelling in spellings(decomposed):
                if unicodedata.normalize("NFC", spelling) == composed != spelling:
                    rules[spelling] = composed
    path = folder / "nfc.tsv"
    path.write_text("".join(f"{code_points(spelling)}\t{code_points(rules[spelling])}\n" for spelling in sorted(rules)))
    return {"normalization_rule_tsv": str(path)}


def spellings(decomposed: str) -> Iterator[str]:
    """A base letter and its marks in every order, the first of them composed with the letter or not."""
    for marks in permutations(decomposed[1:]):
        for cut in range(len(marks) + 1):
            yield unicodedata.normalize("NFC", decomposed[0] + "".join(marks[:cut])) + "".join(marks[cut:])


def code_points(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def size_allowed(message: str, size: int) -> int:
    """The vocabulary size that SentencePiece's complaint about `size` asks for."""
    if found := re.search(r"value <= (\d+)", message):
        return int(found[1])
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return int(found[1])
    raise ConfigError(f"cannot train a tokenizer of {size:,} pieces: {message.strip().splitlines()[-1]}")


def script_of(lines: Iterable[str]) -> str:
    """The script of most letters, by the first word of their Unicode names: LATIN, CYRILLIC, CJK ..."""
    counts: Counter[str] = Counter()
    for line in lines:
        for character in line:
            if character.isalpha():
                counts[unicodedata.name(character, "UNKNOWN").split()[0]] += 1
    return counts.most_common(1)[0][0] if counts else ""
