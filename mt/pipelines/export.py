"""`mt export`: a trained model in the format of another toolkit, with its tokenizers."""

import logging
import shutil
from pathlib import Path

from mt.errors import ConfigError, ModelError
from mt.files import atomic_directory
from mt.interop.ctranslate2 import TYPES, to_ctranslate2
from mt.pipelines.run_folder import RunFolder, load_model

logger = logging.getLogger(__name__)

FORMATS = ("ctranslate2",)


def export(run: Path, form: str, output: Path, weights: str) -> None:
    """Write a run's model for CTranslate2 into a new folder; the SentencePiece models keep their names."""
    if form not in FORMATS:
        raise ConfigError(f"--to {form} is none of {', '.join(FORMATS)}")
    if weights not in TYPES:
        raise ConfigError(f"--weights {weights} is none of {', '.join(TYPES)}")
    if output.exists():
        raise ModelError(f"{output} is already there", "choose another --output")
    loaded = load_model(run)
    if not loaded.knows_capitals:
        logger.warning("lines in capitals must be lower-cased before this model reads them; %s will not do that", form)
    record = RunFolder(run).read_config()
    spec = to_ctranslate2(loaded.model, loaded.tokenizers, weights)
    with atomic_directory(output) as folder:
        spec.save(str(folder))
        for name in {entry["file"] for entry in record["tokenizer"].values()}:
            shutil.copyfile(run / name, folder / name)
