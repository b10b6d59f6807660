"""A run folder: everything a trained model needs, under names that scripts may rely on.

`config.json` says what the model is, `run.toml` how it came to be; weights and tokenizers stand beside them.
"""

import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mt import __version__
from mt.corpus.tokenizer import Tokenizer
from mt.decoding.search import SearchConfig
from mt.decoding.shortlist import Shortlist
from mt.errors import ConfigError, DataError, ModelError
from mt.files import atomic_file, read_json, write_json
from mt.model.config import ModelConfig
from mt.model.transformer import Transformer
from mt.pipelines.recipe import SECTIONS, Settings
from mt.settings import Values, build, read_toml
from mt.training.checkpoint import load_tensors, load_weights

FORMAT_VERSION = "1"
ARCHITECTURES = {"transformer": (ModelConfig, Transformer)}
# What recipes from before these settings did, where "auto" would choose something else now.
OLDER: dict[str, Values] = {
    "model": {"positions": "sinusoidal"},
    "training": {
        "noise_rate": 0.0,
        "noise_from_epoch": 0,
        "consistency": "off",
        "consistency_from": 0.0,
        "consistency_epochs": 0,
    },
}
# What a run folder may hold before it has a recipe: the remains of a run that was killed while it prepared its data.
PREPARATIONS = {".lock", "cache", "tokenizer.model", "source.model", "target.model", "config.json"}
# What stands in one besides, once it is trained and looked at.
RESULTS = {
    "run.toml", "model.safetensors", "log.jsonl", "samples.txt", "checkpoints", "shortlist.safetensors", "plots",
    "tensorboard",
}  # fmt: skip
DECODING_FIELDS = ("beam", "length_penalty", "max_length_ratio", "max_length_offset")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def recipe(self) -> Path:
        return self.path / "run.toml"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.txt"

    @property
    def shortlist(self) -> Path:
        return self.path / "shortlist.safetensors"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    def clear(self) -> None:
        """Delete what an earlier run left, the recipe first, so that a crash leaves nothing that looks like a run.

        Encoded text stays: the cache is keyed by what it was made from.
        """
        self.recipe.unlink(missing_ok=True)
        for name in (PREPARATIONS | RESULTS) - {self.lock.name, self.cache.name}:
            path = self.path / name
            if path.is_dir():
                for entry in path.iterdir():
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                if not path.is_symlink():  # which may lead to another disk, and stays
                    path.rmdir()
            else:
                path.unlink(missing_ok=True)

    def read_config(self) -> dict[str, Any]:
        """config.json; raises `ModelError` for a folder that is no run, or one that this version cannot read."""
        hint = "name a run folder made by mt train"
        if not self.path.is_dir():
            raise ModelError(
                f"{self.path} is not a folder" if self.path.exists() else f"{self.path} does not exist", hint
            )
        try:
            record = read_json(self.config)
        except FileNotFoundError as error:
            raise ModelError(f"{self.path} has no config.json", hint) from error
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read {self.config}: {error}", hint) from error
        version = record.get("format_version")
        if version != FORMAT_VERSION:
            raise ModelError(f"{self.config} has format {version}; this mt reads format {FORMAT_VERSION}", "update mt")
        if not whole(record):
            raise ModelError(f"{self.config} is incomplete", "the file is damaged or not written by mt")
        return {"knows_capitals": True} | record  # which older ones do not say

    def read_provenance(self) -> Values:
        """What config.json says of how the run was made; raises `ModelError` where it no longer says enough."""
        said = self.read_config()["provenance"]
        match said:
            case {"settings": dict(), "corpora": list(), "started_from": str()}:
                return said
        raise ModelError(
            f"{self.config} no longer says how the run was made", "mt translate, evaluate and export work without that"
        )

    def read_recipe(self) -> dict[str, Values]:
        """run.toml, with what an `OLDER` one did not have to say; raises `ConfigError` for what is no recipe."""
        said = read_toml(self.recipe)
        Settings().add(said, str(self.recipe))
        return {name: OLDER.get(name, {}) | said.get(name, {}) for name in SECTIONS}

    def recipe_of_weights(self) -> dict[str, Values]:
        """The recipe by which the weights were trained, that of an average being the one of its run."""
        if self.recipe.is_file():
            return self.read_recipe()
        recipe = self.read_config()["provenance"].get("recipe", {})  # which older averages do not have
        return {name: OLDER.get(name, {}) | recipe.get(name, {}) for name in ("tokenizer", "training")}

    def write_tokenizers(self, source: Tokenizer, target: Tokenizer) -> None:
        names = ("tokenizer.model",) * 2 if source is target else ("source.model", "target.model")
        for tokenizer, name in zip((source, target), names, strict=True):
            with atomic_file(self.path / name, "wb") as stream:
                stream.write(tokenizer.model)

    def write_config(
        self,
        model: ModelConfig,
        tokenizers: tuple[Tokenizer, Tokenizer],
        languages: tuple[str, str],
        decoding: SearchConfig,
        provenance: Values,
        *,
        knows_capitals: bool,
    ) -> None:
        """Write config.json: all that is needed to use the weights, and where they come from."""
        shared = tokenizers[0] is tokenizers[1]
        names = ("tokenizer.model",) * 2 if shared else ("source.model", "target.model")
        record = {
            "format_version": FORMAT_VERSION,
            "architecture": "transformer",
            "model": asdict(model),
            "tokenizer": {
                side: {"file": name, "size": tokenizer.size, **asdict(tokenizer.specials)}
                for side, name, tokenizer in zip(("source", "target"), names, tokenizers, strict=True)
            },
            "languages": {"source": languages[0], "target": languages[1]},
            "knows_capitals": knows_capitals,
            "decoding": {name: getattr(decoding, name) for name in DECODING_FIELDS},
            "provenance": provenance,
        }
        write_json(self.config, record)

    def set_length_penalty(self, length_penalty: float) -> None:
        """What translations are ranked by unless they are asked for otherwise."""
        record = self.read_config()
        record["decoding"]["length_penalty"] = length_penalty
        write_json(self.config, record)


def whole(record: dict[str, Any]) -> bool:
    """Whether config.json says all that commands look for; `load_model` checks the numbers of model and decoding."""
    match record:
        case {
            "architecture": str(),
            "model": dict(),
            "decoding": dict(),
            "tokenizer": {"source": {"file": str(), "size": int()}, "target": {"file": str(), "size": int()}},
            "languages": {"source": str(), "target": str()},
            "provenance": dict(),
        }:
            return True
    return False


def versions() -> Values:
    return {
        "mt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "command": sys.argv,
    }


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to use, with what config.json says of it."""

    path: Path
    model: Transformer
    tokenizers: tuple[Tokenizer, Tokenizer]
    languages: tuple[str, str]
    decoding: SearchConfig
    knows_capitals: bool  # or is to be given lines in capitals in lower case


def load_tokenizers(run: RunFolder, record: dict[str, Any]) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers of a run, checked against the sizes that its config.json was written with."""
    loaded: dict[str, Tokenizer] = {}
    for side in ("source", "target"):
        entry = record["tokenizer"][side]
        path = run.path / entry["file"]
        if entry["file"] not in loaded:
            loaded[entry["file"]] = Tokenizer.load(path)
        tokenizer = loaded[entry["file"]]
        if tokenizer.size != entry["size"]:
            raise ModelError(
                f"{path} has {tokenizer.size:,} pieces; the run was trained with {entry['size']:,}",
                "put the tokenizer back that the run was trained with",
            )
    return loaded[record["tokenizer"]["source"]["file"]], loaded[record["tokenizer"]["target"]["file"]]


def load_model(path: Path, *, trained: bool = True) -> LoadedModel:
    """Read a run folder, its weights too where they are wanted `trained`.

    Raises `ModelError` saying which file is missing, damaged or foreign.
    """
    run = RunFolder(path)
    record = run.read_config()
    try:
        architecture = record["architecture"]
        if architecture not in ARCHITECTURES:
            raise ModelError(f"{run.config}: this mt does not know the architecture {architecture}", "update mt")
        config_class, model_class = ARCHITECTURES[architecture]
        config = build(config_class, record["model"], "model")
        tokenizers = load_tokenizers(run, record)
        decoding = build(SearchConfig, record["decoding"], "decoding")
        languages = (record["languages"]["source"], record["languages"]["target"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{run.config} is incomplete: {error}", "the file is damaged or not written by mt") from error
    except (ConfigError, DataError) as error:
        raise ModelError(f"{run.config}: {error.message}", error.hint or "the file is damaged or foreign") from error
    model = model_class(config)
    if trained:
        if run.recipe.is_file() and not run.model.exists():
            raise ModelError(f"{run.model} does not exist yet", "mt train writes it after the first validation")
        load_weights(model, load_tensors(run.model), str(run.model))
    return LoadedModel(path, model.eval(), tokenizers, languages, decoding, record["knows_capitals"])


def load_shortlist(run: RunFolder, tokenizers: tuple[Tokenizer, Tokenizer]) -> Shortlist:
    """What `mt shortlist` has learnt; raises `ModelError` where it has not, or for another vocabulary."""
    hint = f"mt shortlist {run.path}"
    if not run.shortlist.is_file():
        raise ModelError(f"{run.shortlist} does not exist", hint)
    tensors = load_tensors(run.shortlist)
    if tensors.keys() != {"translations", "always"} or not shortlist_fits(**tensors, tokenizers=tokenizers):
        raise ModelError(f"{run.shortlist} does not fit the vocabulary of {run.path}", hint)
    return Shortlist(**tensors)


def shortlist_fits(translations: Tensor, always: Tensor, tokenizers: tuple[Tokenizer, Tokenizer]) -> bool:
    source, target = tokenizers
    ids = torch.cat((translations.flatten(), always.flatten()))
    ends = bool((always == target.specials.eos).any())
    return ends and len(translations) == source.size and int(ids.min()) >= 0 and int(ids.max()) < target.size
