"""`mt tokenizer`: train a tokenizer; turn text into pieces and back."""

from pathlib import Path
from typing import Annotated

import typer

from mt.cli.options import one_of


def train(
    files: Annotated[list[Path], typer.Argument(help="Text files (plain, .gz, .zst), read one after another.")],
    vocabulary_size: Annotated[int, typer.Option("--vocab-size", min=1, help="Number of pieces.")],
    output: Annotated[Path, typer.Option(metavar="PREFIX", help="Write PREFIX.model and PREFIX.vocab.")],
    type: Annotated[str, typer.Option(help="unigram or bpe.")] = "unigram",
) -> None:
    """Train a tokenizer on FILES."""
    from mt.pipelines.tokenize import train_files

    train_files(files, one_of(type, ("unigram", "bpe"), "--type"), vocabulary_size, output)


def encode(model: Annotated[Path, typer.Option(help="A .model file.")]) -> None:
    """Read text on standard input, write its pieces, separated by spaces."""
    from mt.files import standard_input
    from mt.pipelines.tokenize import encode_lines

    encode_lines(model, standard_input())


def decode(model: Annotated[Path, typer.Option(help="A .model file.")]) -> None:
    """Read pieces on standard input, write the text that they stand for."""
    from mt.files import standard_input
    from mt.pipelines.tokenize import decode_pieces

    decode_pieces(model, standard_input())
