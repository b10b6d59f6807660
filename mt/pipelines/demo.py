"""`mt demo`: the whole of mt on the bundled corpus, in four minutes on two CPU cores."""

import logging
import sys
import time
from importlib.resources import files as package_files
from itertools import islice
from pathlib import Path

from mt.errors import ConfigError, ModelError
from mt.files import read_lines
from mt.pipelines.evaluate import evaluate_model
from mt.pipelines.recipe import Settings
from mt.pipelines.run_folder import RunFolder
from mt.pipelines.train import TrainRequest, train
from mt.pipelines.translate import SearchRequest, load_translator
from mt.settings import Values

logger = logging.getLogger(__name__)

# What learns most from 20,000 short sentences in few minutes: a tiny model, many small updates, a high learning rate.
RECIPE: dict[str, Values] = {
    "data": {"batch_tokens": 512},
    "model": {"preset": "tiny", "dropout": 0.05},
    "optimizer": {"peak_learning_rate": 3e-3, "warmup_steps": 300},
    "training": {
        "max_minutes": 3.6,
        "consistency": "off",
        "noise_rate": 0.0,
        "label_smoothing": 0.0,
        "validate_every_steps": 500,
        "log_every_steps": 100,
    },
}  # with translating and scoring the command stays below four minutes
SAMPLES = 5


def corpus_folder() -> Path:
    """The bundled corpus: inside the installed package, or data/demo of the repository that mt runs from."""
    package = Path(str(package_files("mt")))
    for folder in (package / "demo_corpus", package.parent / "data" / "demo"):
        if folder.is_dir():
            return folder
    raise ModelError("the demo corpus is not installed", "install mt from its wheel or run it from the repository")


def demo(output: Path, *, started: float, quiet: bool) -> str:
    """Train English to German, translate some unseen sentences, score the test set; returns what is printed."""
    corpus = corpus_folder()

    def both(split: str) -> list[dict[str, str]]:
        return [{"source": str(corpus / f"{split}.en"), "target": str(corpus / f"{split}.de")}]

    settings = Settings()
    settings.add(RECIPE, "mt demo")
    settings.add({"data": {"train": both("train"), "valid": both("valid")}}, "mt demo")
    try:
        train(TrainRequest(output=output, settings=settings, quiet=quiet, started=started))
    except ConfigError as error:
        if not RunFolder(output).recipe.is_file():
            raise
        raise ConfigError(error.message, f"delete {output} to run the demo anew, or choose another --output") from error

    request = SearchRequest(models=[output])
    references = list(islice(read_lines(corpus / "test.de"), SAMPLES))
    sources = list(islice(read_lines(corpus / "test.en"), SAMPLES))
    lines = ["", "Sentences that the model has never seen:", ""]
    with load_translator(request) as translator:
        translations = translator.translate(sources)
    for translation, reference in zip(translations, references, strict=True):
        lines += [f"  English    {translation.source}", f"  German     {translation.text}"]
        lines += [f"  reference  {reference}", ""]
    test = {"source": corpus / "test.en", "reference": corpus / "test.de"}
    evaluation = evaluate_model(request, **test, output=None, target_language="de", bleu_tokenize=None)
    lines += [evaluation.as_text(), ""]
    program = sys.argv[0] if Path(sys.argv[0]).name == "mt" else "mt"  # .venv/bin/mt where make has run it
    lines += [
        f"The model is in {output}; all this took {(time.monotonic() - started) / 60:.1f} minutes. Next:",
        "",
        f"  echo 'The old teacher has read the book.' | {program} translate --model {output}",
        f"  {program} info {output}",
        f"  {program} train --train SOURCE TARGET --output RUN     with two aligned text files of your own",
    ]
    return "\n".join(lines)
