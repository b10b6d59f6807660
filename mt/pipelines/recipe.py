"""A run's recipe: what the user says, laid over the defaults, with every "auto" resolved from corpus and device.

Precedence: defaults < `--config run.toml` < flags < `--set section.key=value`.  The result is saved whole as run.toml.
"""

import dataclasses
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from mt.corpus.cleaning import PRESETS as CLEANING
from mt.corpus.cleaning import CleaningRules
from mt.corpus.parallel import CorpusFiles
from mt.corpus.tokenizer import TokenizerConfig, vocabulary_size_for
from mt.device import Compute
from mt.errors import ConfigError
from mt.model.config import PRESETS, ModelConfig
from mt.settings import AUTO, Values, auto, build, check_key, convert, defaults, plain, read_toml
from mt.training.config import TrainingConfig, ValidationConfig
from mt.training.consistency import ALPHA, CUTOFF
from mt.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The text that is learned from."""

    train: tuple = ()  # corpora: tables with source and target, or tsv, and weight
    valid: tuple = ()  # the same; none: pairs are held out of the first training corpus
    temperature: float = 1.0  # above 1, small corpora are drawn from more often; see `sampling_weights`
    source_language: str = auto()  # ISO 639; auto: the suffix of the first source file
    target_language: str = auto()
    batch_tokens: int = auto()  # real target tokens of an update, `</s>` counted
    max_tokens: int = 256  # of either side; longer pairs are left out
    max_characters: int = 5_000  # of either side; longer pairs are left out
    clean: str = "safe"  # off | safe | strict: which pairs are left out
    max_length_ratio: float = auto()  # of the sides' characters, 1 being usual in the corpus; 0: any
    cache: str = ""  # folder of encoded corpora, may be shared between runs; "": RUN/cache

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("no training text is given", "mt train --train SOURCE TARGET --output RUN")
        if self.batch_tokens < 1 or self.max_tokens < 2:
            raise ConfigError("data.batch_tokens must be at least 1, data.max_tokens at least 2")
        if not 1 <= self.temperature < math.inf:
            raise ConfigError(
                f"data.temperature is {self.temperature:g}", "1 takes corpora as they are; more flattens their sizes"
            )
        _ = self.rules  # which says what no text can meet

    @property
    def rules(self) -> CleaningRules:
        """Raises `ConfigError` for numbers that no text can meet."""
        return replace(CLEANING[self.clean], max_characters=self.max_characters, max_length_ratio=self.max_length_ratio)


def corpus_files(tables: tuple | list, name: str) -> list[CorpusFiles]:
    """The corpora that `[[data.train]]` tables name."""
    corpora = []
    for table in tables:
        if not isinstance(table, dict):
            raise ConfigError(f"data.{name} must be tables: [[data.{name}]] source = ... target = ...")
        for key in table:
            check_key(key, ("source", "target", "tsv", "weight"), f"data.{name}.{key}")
        keys = [key for key in ("source", "target", "tsv") if key in table]
        paths = {key: Path(convert(table[key], str, f"data.{name}.{key}")) for key in keys}
        weight = convert(table.get("weight", 1.0), float, f"data.{name}.weight")
        corpora.append(CorpusFiles(**paths, weight=weight))
    return corpora


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The complete recipe of a run."""

    tokenizer: TokenizerConfig
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    validation: ValidationConfig

    def __post_init__(self) -> None:
        training = self.training
        limited = training.max_steps or training.max_minutes
        if self.optimizer.schedule == "warmup_stable_decay" and not limited:
            raise ConfigError(
                "the schedule warmup_stable_decay decays towards a limit, and none is given",
                "add --max-steps or --max-minutes, or, in a new run, --set optimizer.schedule=inverse_sqrt",
            )
        if self.optimizer.schedule == "cosine" and not training.max_steps:
            raise ConfigError("the schedule cosine needs --max-steps")
        if training.consistency_from and not limited:
            raise ConfigError(
                "training.consistency_from is a share of the limit, and none is given",
                "add --max-steps or --max-minutes",
            )
        if training.passes == 2 and training.consistency_epochs and not training.consistency_from:
            raise ConfigError(
                f"there cannot have been {training.consistency_epochs:,} epochs before the first update",
                "give training.consistency_from above 0 as well, or training.consistency_epochs=0",
            )
        timed = self.optimizer.schedule == "warmup_stable_decay" and training.max_minutes
        in_decay = training.consistency_from + self.optimizer.decay_fraction > 1
        if timed and in_decay and training.passes == 2:
            raise ConfigError(
                f"two passes would begin at {training.consistency_from:g} of the time, when the learning rate already"
                f" falls (the last {self.optimizer.decay_fraction:g} of it), in steps planned at the pace of one pass",
                "lower training.consistency_from or optimizer.decay_fraction, or give --max-steps alone",
            )
        if self.data.max_tokens > self.model.max_positions:
            raise ConfigError(
                f"data.max_tokens {self.data.max_tokens} is above model.max_positions {self.model.max_positions}"
            )

    def as_toml(self) -> str:
        sections = {item.name: plain(getattr(self, item.name)) for item in dataclasses.fields(self)}
        for name in VOCABULARY_FIELDS:
            del sections["model"][name]
        return tomli_w.dumps(sections)


# Facts of the tokenizers and not the user's to set; config.json has them.
VOCABULARY_FIELDS = ("source_vocabulary", "target_vocabulary", "share_embeddings")
SECTIONS: dict[str, type] = {
    "tokenizer": TokenizerConfig,
    "data": DataConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
    "validation": ValidationConfig,
}


OWN_RECIPES = Path(__file__).parents[1] / "recipes"


def read_recipe(path: Path) -> Values:
    """A recipe from a TOML file, or from one of mt's own by its name; raises `ConfigError` for neither."""
    own = {recipe.stem: recipe for recipe in sorted(OWN_RECIPES.glob("*.toml"))}
    if path.is_file() or path.suffix:
        return read_toml(path)
    if str(path) not in own:
        raise ConfigError(f"there is no file {path}, nor a recipe of that name", f"mt has {', '.join(own)}")
    return read_toml(own[str(path)])


LANGUAGES = ("source_language", "target_language")
# Settings whose "auto" depends on another one: where that changes, what was said of them before is dropped.
DEPENDENT = {
    "data.train": [f"data.{name}" for name in LANGUAGES],
    "training.consistency": [
        f"training.{name}" for name in ("consistency_alpha", "cutoff", "consistency_from", "consistency_epochs")
    ],
    "training.noise_rate": ["training.noise_from_epoch"],
    "data.clean": ["data.max_length_ratio"],
    "model.preset": [*(f"model.{name}" for name in PRESETS["small"]), "optimizer.peak_learning_rate"],
    "model.width": ["optimizer.peak_learning_rate"],
}


def known_keys(section: str) -> list[str]:
    names = [item.name for item in dataclasses.fields(SECTIONS[section]) if item.name not in VOCABULARY_FIELDS]
    return [*names, "preset"] if section == "model" else names


def check_elements(section: str, key: str, value: Any) -> None:
    """Raise `ConfigError` where a list holds other things than it is for."""
    if value != AUTO and (section, key) in TEXTS:
        corpus_files(value, key)
    elif value != AUTO and (section, key) == ("tokenizer", "files"):
        for path in value:
            convert(path, str, "tokenizer.files: an element")


@dataclass
class Settings:
    """What the user has said, section by section; what is not in it is a default."""

    given: dict[str, Values] = field(default_factory=lambda: {name: {} for name in SECTIONS})

    def add(self, layer: dict[str, Any], where: str) -> None:
        """Lay a layer over what stands; raises `ConfigError` for a section or key that does not exist."""
        for section, values in layer.items():
            check_key(section, SECTIONS, f"{where}: [{section}]")
            if not isinstance(values, dict):
                raise ConfigError(f"{where}: {section} is not a section", f"write it as a table: [{section}]")
            for key, value in values.items():
                check_key(key, known_keys(section), f"{where}: {section}.{key}")
                wanted = str if key == "preset" else get_type_hints(SECTIONS[section])[key]
                given, before = self.given[section], self.given[section].get(key)
                given[key] = value if value == AUTO else convert(value, wanted, f"{section}.{key}")
                check_elements(section, key, given[key])
                # A changed choice drops its dependents; so does a first preset: a complete recipe has a shape instead.
                if given[key] != before and (before is not None or key == "preset"):
                    for its_section, dependent in (name.split(".") for name in DEPENDENT.get(f"{section}.{key}", ())):
                        if dependent not in layer.get(its_section, {}):
                            self.given[its_section].pop(dependent, None)
        preset = self.given["model"].get("preset", AUTO)
        if preset != AUTO:
            check_key(preset, PRESETS, f"{where}: the preset {preset}")

    def said(self) -> dict[str, Values]:
        """What was given and not left to the program."""
        return {
            section: {key: value for key, value in values.items() if value != AUTO}
            for section, values in self.given.items()
        }

    def section(self, name: str, resolved: Values) -> Values:
        """A section's complete values: given, else resolved, else the default."""
        values = {key: value for key, value in defaults(SECTIONS[name]).items() if key not in VOCABULARY_FIELDS}
        values |= self.said()[name]
        return {key: resolved[key] if value == AUTO and key in resolved else value for key, value in values.items()}

    def as_text(self) -> str:
        """Every setting as TOML, for `--show-config`: given values, defaults, and "auto" where it is resolved later."""
        sections = {}
        for name in SECTIONS:
            values = self.section(name, {})
            if name == "model":
                preset = self.given["model"].get("preset", AUTO)
                shape = PRESETS.get(preset, dict.fromkeys(PRESETS["small"], AUTO))
                values = {"preset": preset, **values, **shape, **self.said()["model"]}
                for key in ("dropout", "positions"):
                    values[key] = self.said()["model"].get(key, AUTO)
            sections[name] = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return tomli_w.dumps(sections)


def preset_for(pairs: int, compute: Compute) -> str:
    """The size that a corpus of so many pairs can fill: on little text a large model is worse, not better.

    A CPU is given *small* at most: what is larger learns too slowly there.
    """
    if pairs < 20_000:
        return "tiny"
    if pairs < 300_000 or not compute.on_cuda:
        return "small"
    return "base" if pairs < 20_000_000 else "big"


def dropout_for(pairs: int) -> float:
    """Less text needs more dropout."""
    return 0.2 if pairs < 1_000_000 else 0.1


def resolve_tokenizer(settings: Settings, pairs: int, same_script: bool) -> TokenizerConfig:
    files = settings.said()["tokenizer"].get("files", ())
    joint = len(set(files)) == 1 if files else same_script
    resolved = {"vocabulary_size": vocabulary_size_for(pairs), "joint": joint}
    config = build(TokenizerConfig, settings.section("tokenizer", resolved), "tokenizer")
    if files and config.joint != joint:
        raise ConfigError(
            f"tokenizer.joint is {str(config.joint).lower()}, and --tokenizer gives {len(set(files))}",
            "give one tokenizer for both sides, or two: source, then target",
        )
    if settings.said()["training"].get("bidirectional_epochs") and not config.joint:
        raise ConfigError(
            "training.bidirectional_epochs needs one tokenizer for both sides; here each side has its own",
            "leave it out, or train with one: --set tokenizer.joint=true",
        )
    return config


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFacts:
    """What the choices that are left to the program depend on."""

    pairs: int
    target_tokens: int  # of an epoch, weights and temperature counted
    vocabularies: tuple[int, int]  # sizes of the source and target tokenizers
    languages: tuple[str, str]


def resolve(
    settings: Settings, tokenizer: TokenizerConfig, facts: CorpusFacts, compute: Compute, threads: int
) -> RunConfig:
    """The complete recipe for this corpus on this device."""
    data = resolve_data(settings, facts, compute)
    model = resolve_model(settings, facts, compute, share_embeddings=tokenizer.joint)
    steps_per_epoch = max(1, round(facts.target_tokens / data.batch_tokens))
    training = resolve_training(settings, facts, steps_per_epoch, compute, threads)
    optimizer = resolve_optimizer(settings, steps_per_epoch, model.width, training, compute)
    patience = 0 if training.max_steps or training.max_minutes else 10
    validation = build(ValidationConfig, settings.section("validation", {"patience": patience}), "validation")
    return RunConfig(
        tokenizer=tokenizer, data=data, model=model, optimizer=optimizer, training=training, validation=validation
    )


# Bounds by what a device computes while people wait: target tokens of an update, and numbers of updates.
MAX_BATCH_TOKENS = {"cpu": 4_096, "cuda": 32_768}
MAX_WARMUP_STEPS = {"cpu": 500, "cuda": 4_000}
MAX_STEPS_BETWEEN_VALIDATIONS = {"cpu": 1_000, "cuda": 5_000}


def resolve_data(settings: Settings, facts: CorpusFacts, compute: Compute) -> DataConfig:
    """An update is a four-hundredth of an epoch, between 1,024 target tokens and what a device makes fast enough."""
    resolved = {
        "max_length_ratio": cleaning_rules(settings).max_length_ratio,
        "source_language": facts.languages[0],
        "target_language": facts.languages[1],
        "batch_tokens": min(MAX_BATCH_TOKENS[compute.device.type], max(1_024, facts.target_tokens // 400 // 256 * 256)),
    }
    return build(DataConfig, settings.section("data", resolved), "data")


def cleaning_rules(settings: Settings) -> CleaningRules:
    """Those of the preset that is asked for."""
    name = settings.section("data", {})["clean"]
    if name not in CLEANING:
        raise ConfigError(f"--clean {name} is none of {', '.join(CLEANING)}")
    return CLEANING[name]


def resolve_model(settings: Settings, facts: CorpusFacts, compute: Compute, *, share_embeddings: bool) -> ModelConfig:
    """Given settings override the preset's, and these override the defaults."""
    given = settings.said()["model"]
    preset = given.pop("preset", preset_for(facts.pairs, compute))
    vocabularies = {
        "source_vocabulary": facts.vocabularies[0],
        "target_vocabulary": facts.vocabularies[1],
        "share_embeddings": share_embeddings,
    }
    chosen = {"dropout": dropout_for(facts.pairs), "positions": "rotary"}
    values = settings.section("model", {}) | PRESETS[preset] | chosen | given
    values.pop("preset", None)
    return build(ModelConfig, values | vocabularies, "model")


# Two passes pay on small text that has been read often when they begin: on Multi30k, small gained when they began after
# 5 epochs and lost when after 3; tiny gained when after 15, and fewer were not tried with it.
CONSISTENT_PAIRS = 300_000
CONSISTENT_EPOCHS = 10

# Small text is read so often that, once a model knows it, noisy versions teach more than reading it as it is again.
NOISY_PAIRS = 300_000
NOISE_RATE = 0.3
NOISE_FROM_EPOCH = 5


def noise_rate_for(settings: Settings, pairs: int) -> float:
    """The given rate, or what suits a corpus of this many pairs."""
    return settings.said()["training"].get("noise_rate", NOISE_RATE if pairs < NOISY_PAIRS else 0.0)


def resolve_training(
    settings: Settings, facts: CorpusFacts, steps_per_epoch: int, compute: Compute, threads: int
) -> TrainingConfig:
    """Validation comes once an epoch, within bounds, and a checkpoint with it.

    On a GPU as much of an update is computed at a time as its memory holds; on the CPU so many tokens as its caches
    like best, which was measured.
    """
    given = settings.said()["training"]
    most = MAX_STEPS_BETWEEN_VALIDATIONS[compute.device.type]
    often = min(max(200, steps_per_epoch), most, (given.get("max_steps") or 1 << 40) // 10)
    every = given.get("validate_every_steps", max(1, often))
    limited = bool(given.get("max_steps") or given.get("max_minutes"))
    decay = settings.section("optimizer", {})["decay_fraction"]
    worth_it = limited and facts.pairs < CONSISTENT_PAIRS and decay < 1
    consistency = given.get("consistency", "r-drop" if worth_it else "off")
    passes = 1 if consistency == "off" else 2  # that memory must hold at a time
    consistency_from = given.get("consistency_from", max(0.0, min(0.3, 1 - decay)) if passes == 2 and limited else 0.0)
    read_often = CONSISTENT_EPOCHS if passes == 2 and "consistency" not in given and consistency_from else 0
    noise_rate = noise_rate_for(settings, facts.pairs)
    resolved = {
        "device": compute.device.type,
        "precision": compute.precision,
        "threads": threads,
        "compile": compute.on_cuda,
        "noise_rate": noise_rate,
        "noise_from_epoch": NOISE_FROM_EPOCH if noise_rate else 0,
        "consistency": consistency,
        "consistency_from": consistency_from,
        "consistency_epochs": read_often,
        "consistency_alpha": ALPHA.get(consistency, 0.0),
        "cutoff": CUTOFF.get(consistency, 0.0),
        "micro_batch_tokens": 0 if compute.on_cuda else 4_096 // passes,
        "validate_every_steps": every,
        "checkpoint_every_steps": every,
    }
    return build(TrainingConfig, settings.section("training", resolved), "training")


def resolve_optimizer(
    settings: Settings, steps_per_epoch: int, width: int, training: TrainingConfig, compute: Compute
) -> OptimizerConfig:
    """The learning rate falls with the square root of the width; below 256 it is doubled, which did well at 128.

    The warm-up is an epoch, within bounds.
    """
    limited = training.max_steps or training.max_minutes
    longest = min(MAX_WARMUP_STEPS[compute.device.type], max(1, (training.max_steps or 1 << 40) // 10))
    resolved = {
        "peak_learning_rate": (1e-3 if width >= 256 else 2e-3) * (256 / width) ** 0.5,
        "schedule": "warmup_stable_decay" if limited else "inverse_sqrt",
        "warmup_steps": min(max(200, steps_per_epoch), longest),
    }
    return build(OptimizerConfig, settings.section("optimizer", resolved), "optimizer")


# What may change when a run is continued: how long, how often, where, and at what cost; never what is computed.
CHANGEABLE = {
    "training": {
        "max_steps", "max_minutes", "device", "threads", "compile", "micro_batch_tokens", "log_every_steps",
        "tensorboard", "validate_every_steps", "checkpoint_every_steps", "keep_last", "keep_best", "timeout_seconds",
    },
    "validation": {"patience"},
    "data": {"cache"},
}  # fmt: skip


def differences(saved: dict[str, Values], settings: Settings, precision_was_auto: bool) -> tuple[list[str], list[str]]:
    """What the settings given now would change in a saved recipe: (allowed, refused), each as `section.key: a -> b`."""
    said = {section: dict(values) for section, values in settings.said().items()}
    preset = said["model"].pop("preset", None)
    if preset:
        said["model"] = PRESETS[preset] | said["model"]
    allowed: list[str] = []
    refused: list[str] = []
    for section, values in said.items():
        for key, value in values.items():
            before = saved[section].get(key, defaults(SECTIONS[section]).get(key))  # older recipes lack some
            if isinstance(value, tuple):
                value = list(value)
            if value == before:
                continue
            moved = (section, key) in TEXTS and without_paths(value) == without_paths(before or [])
            free = moved or key in CHANGEABLE.get(section, ()) or (key == "precision" and precision_was_auto)
            (allowed if free else refused).append(f"{section}.{key}: {before} -> {value}")
    return allowed, refused


TEXTS = (("data", "train"), ("data", "valid"))  # their checksums say whether they are the same, not their places


def without_paths(corpora: list[Values]) -> list[Values]:
    """Tables of corpora, but for where the files are."""
    return [
        {key: "" if key in ("source", "target", "tsv") else value for key, value in table.items()} for table in corpora
    ]
