"""`mt` with the phases of its data preparation timed: python phases.py RECORD.jsonl train --train ...

RECORD.jsonl gets a line for each phase as it ends: its name, and when it began and ended by the clock of
`time.monotonic`, which all processes of a machine share.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any


class Phases:
    """Writes the times of the functions that it stands around."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"phase": name, "began": began, "ended": time.monotonic()}) + "\n")

    def around(self, owner: Any, attribute: str, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, attribute)

        @wraps(inner)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.phase(name):
                return inner(*arguments, **named)

        setattr(owner, attribute, timed)


def main() -> None:
    phases = Phases(Path(sys.argv.pop(1)))
    with phases.phase("imports"):
        import torch._dynamo  # noqa: F401 (the first optimizer imports it, for seconds)

        from mt.cli import main as command
        from mt.corpus.batching import BatchSampler
        from mt.pipelines import prepare
        from mt.pipelines.checksums import Checksums
        from mt.training.update import Updater
    phases.around(Checksums, "of", "checksum")
    phases.around(prepare, "check_text", "check")
    phases.around(prepare, "make_tokenizers", "tokenizer")
    phases.around(prepare, "encode_text", "encoding")
    phases.around(prepare, "read_prepared", "opening")
    phases.around(BatchSampler, "epoch", "epoch")
    phases.around(Updater, "__call__", "step")
    command()


if __name__ == "__main__":
    main()
