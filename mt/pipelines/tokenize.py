"""`mt tokenizer`: train a SentencePiece model on its own, turn text into pieces and back."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mt.corpus.tokenizer import SAMPLE_LINES, Tokenizer, sample_of, train_tokenizer
from mt.errors import DataError
from mt.files import atomic_file, decode_lines, read_lines, standard_output

logger = logging.getLogger(__name__)


def train_files(files: list[Path], type: str, vocabulary_size: int, output: Path) -> None:
    """Train on a sample of the lines of all files; writes OUTPUT.model and OUTPUT.vocab (a piece and its score)."""
    lines = sample_of((line for path in files for line in read_lines(path) if line.strip()), SAMPLE_LINES)
    if not lines:
        raise DataError(f"there is no text in {', '.join(map(str, files))}", "a tokenizer is trained on text")
    model, warning = train_tokenizer(lines, type=type, vocabulary_size=vocabulary_size)
    if warning:
        logger.warning("%s", warning)
    with atomic_file(Path(f"{output}.model"), "wb") as stream:
        stream.write(model)
    processor = Tokenizer(model).processor
    with atomic_file(Path(f"{output}.vocab")) as stream:
        for index in range(processor.get_piece_size()):
            stream.write(f"{processor.id_to_piece(index)}\t{processor.get_score(index):g}\n")
    logger.info("%s pieces written to %s.model and %s.vocab", f"{processor.get_piece_size():,}", output, output)


def encode_lines(model: Path, source: BinaryIO) -> None:
    """Print the pieces of each line, separated by spaces."""
    tokenizer = Tokenizer.load(model)
    with standard_output() as target:
        for line in input_lines(source):
            target.write(" ".join(tokenizer.pieces(tokenizer.encode([line])[0])) + "\n")


def decode_pieces(model: Path, source: BinaryIO) -> None:
    """Print the text of each line of pieces; raises `DataError` for a piece that the tokenizer does not have."""
    tokenizer = Tokenizer.load(model)
    known = set(tokenizer.pieces(range(tokenizer.size)))
    with standard_output() as target:
        for number, line in enumerate(input_lines(source), 1):
            pieces = line.split(" ") if line else []
            for piece in pieces:
                if piece not in known:
                    raise DataError(f"standard input, line {number:,}: {model} has no piece {piece!r}")
            target.write(tokenizer.decode([tokenizer.processor.piece_to_id(piece) for piece in pieces]) + "\n")


def input_lines(source: BinaryIO) -> Iterator[str]:
    return (line for line, _ in decode_lines(source, "standard input"))
