"""The recipes that mt brings: that they can be used by name, and that they reached what they say."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch

from mt.device import Compute
from mt.errors import ConfigError
from mt.model.config import PRESETS
from mt.pipelines.recipe import (
    OWN_RECIPES,
    CorpusFacts,
    Settings,
    resolve,
    resolve_model,
    resolve_tokenizer,
)

ROOT = Path(__file__).parents[2]
RECIPES = sorted(OWN_RECIPES.glob("*.toml"))
CPU, CUDA = Compute(torch.device("cpu"), "fp32"), Compute(torch.device("cuda"), "bf16")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_used_by_its_name_and_flags_stand_before_it(mt, tmp_path, path):
    flags = ["--config", path.stem, "--output", tmp_path / "run", "--show-config"]
    shown = tomllib.loads(mt("train", *flags).out)
    for section, values in tomllib.loads(path.read_text(encoding="utf-8")).items():
        assert values.items() <= shown[section].items()
    assert tomllib.loads(mt("train", *flags, "--set", "model.dropout=0.05").out)["model"]["dropout"] == 0.05


def test_a_file_stands_before_a_recipe_of_the_same_name(mt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(RECIPES[0].stem).write_text("[training]\nseed = 7\n")
    shown = tomllib.loads(mt("train", "--config", RECIPES[0].stem, "--output", "run", "--show-config").out)
    assert (shown["training"]["seed"], shown["model"]["preset"]) == (7, "auto")


def test_a_folder_of_that_name_is_no_recipe(mt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(RECIPES[0].stem).mkdir()
    shown = tomllib.loads(mt("train", "--config", RECIPES[0].stem, "--output", "run", "--show-config").out)
    assert shown["model"]["preset"] != "auto"


def test_an_unknown_name_is_refused_with_those_that_there_are(mt, tmp_path):
    outcome = mt("train", "--config", "large-text", "--output", tmp_path / "run")
    assert outcome.code == 2
    assert "there is no file large-text, nor a recipe of that name" in outcome.err
    assert ", ".join(path.stem for path in RECIPES) in outcome.err


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reached_what_it_says(path):
    text = path.read_text(encoding="utf-8").replace("\n# ", " ")
    found = re.search(r"BLEU ([\d.]+) .* ([\d,]+) updates .*(benchmarks/results/\S+\.json)", text)
    bleu, updates, results = found.groups()
    reached = [
        score
        for score, steps, recipe in runs_in(ROOT / results)
        if steps == int(updates.replace(",", "")) and agrees(tomllib.loads(text), recipe)
    ]
    assert bleu in [f"{score:.1f}" for score in reached]  # in fp32 or bf16


def runs_in(results):
    """BLEU, updates and recipe of each run in a file of results."""
    record = json.loads(results.read_text(encoding="utf-8"))
    if record["what"] == "train":
        scores = {metric["name"]: metric["score"] for metric in record["metrics"]}
        return [(scores["BLEU"], record["training"]["steps"], record["run"]["run_toml"])]
    return [
        (result["best"]["bleu"], result["steps"], result["run"]["run_toml"])
        for result in record["results"]
        if not result.get("besides")
    ]


def agrees(said, recipe):
    """Whether a run was made with what is said."""
    model = {"activation_dropout": recipe["model"]["dropout"], **recipe["model"]}  # once they were one setting
    shape = PRESETS[said["model"].pop("preset")]
    said["model"] |= shape
    return all(values.items() <= {**recipe, "model": model}[section].items() for section, values in said.items())


@pytest.mark.parametrize(
    ("pairs", "compute", "preset", "rate"),
    [
        (19_999, CPU, "tiny", 0.0028),
        (20_000, CPU, "small", 0.001),
        (20_000_000, CPU, "small", 0.001),
        (19_999, CUDA, "tiny", 0.0028),
        (299_999, CUDA, "small", 0.001),
        (300_000, CUDA, "base", 0.00071),
        (20_000_000, CUDA, "big", 0.0005),
    ],
)
def test_more_text_is_learned_by_a_wider_model_at_a_lower_rate_where_a_gpu_is(pairs, compute, preset, rate):
    config = recipe_of("auto", {}, pairs, compute)
    assert config.model.width == PRESETS[preset]["width"]
    assert config.optimizer.peak_learning_rate == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize(("pairs", "dropout"), [(999_999, 0.2), (1_000_000, 0.1)])
def test_less_text_needs_more_dropout(pairs, dropout):
    assert recipe_of("auto", {}, pairs).model.dropout == dropout


@pytest.mark.parametrize(("compute", "most"), [(CPU, 4_096), (CUDA, 32_768)])
def test_an_update_is_a_four_hundredth_of_an_epoch_within_bounds(compute, most):
    sizes = [
        recipe_of("auto", {}, compute=compute, target_tokens=tokens).data.batch_tokens
        for tokens in (100_000, 1_024_000, 50_000_000)
    ]
    assert sizes == [1_024, 2_560, most]


@pytest.mark.parametrize(("compute", "warmup", "validation"), [(CPU, 500, 1_000), (CUDA, 4_000, 5_000)])
def test_a_warm_up_and_the_time_between_validations_are_an_epoch_within_bounds(compute, warmup, validation):
    def chosen(tokens, **limit):
        config = recipe_of("small", limit, compute=compute, target_tokens=tokens, batch_tokens=1_000)
        return config.optimizer.warmup_steps, config.training.validate_every_steps

    assert chosen(100_000) == (200, 200)
    assert chosen(450_000) == (450, 450)
    assert chosen(50_000_000) == (warmup, validation)
    assert chosen(50_000_000, max_steps=900) == (90, 90)


@pytest.mark.parametrize(("given", "positions"), [({}, "rotary"), ({"positions": "sinusoidal"}, "sinusoidal")])
def test_queries_and_keys_are_turned_unless_it_is_said(given, positions):
    settings = Settings()
    settings.add({"model": given}, "test")
    facts = CorpusFacts(pairs=29_000, target_tokens=400_000, vocabularies=(100, 100), languages=("de", "en"))
    assert resolve_model(settings, facts, CPU, share_embeddings=True).positions == positions


@pytest.mark.parametrize(
    ("preset", "given", "method", "starts"),
    [
        pytest.param("tiny", {"max_minutes": 60}, "r-drop", (0.3, 10), id="with a budget, if the text is read often"),
        pytest.param("small", {}, "off", (0.0, 0), id="no budget to take a share of"),
        pytest.param("small", {"max_steps": 9, "consistency": "off"}, "off", (0.0, 0), id="refused"),
        pytest.param("tiny", {"max_steps": 9, "consistency": "simcut"}, "simcut", (0.3, 0), id="asked for"),
        pytest.param("tiny", {"consistency": "simcut"}, "simcut", (0.0, 0), id="asked for without a budget"),
    ],
)
def test_two_passes_are_made_where_there_is_time_to_learn_the_text_by_heart(preset, given, method, starts):
    training = recipe_of(preset, given).training
    assert training.consistency == method
    assert (training.consistency_from, training.consistency_epochs) == starts
    assert training.consistency_alpha == {"r-drop": 5.0, "simcut": 3.0, "off": 0.0}[method]


def test_two_passes_are_for_little_text():
    found = [recipe_of("auto", {"max_minutes": 60}, pairs).training.consistency for pairs in (299_999, 300_000)]
    assert found == ["r-drop", "off"]


def test_there_are_no_epochs_before_the_first_update():
    with pytest.raises(ConfigError, match="there cannot have been 3 epochs before the first update"):
        recipe_of("tiny", {"consistency": "r-drop", "consistency_epochs": 3})
    assert recipe_of("tiny", {"max_minutes": 60}, decay_fraction=1.0).training.consistency == "off"


def test_a_share_of_no_budget_is_refused():
    with pytest.raises(ConfigError, match=r"consistency_from is a share of the limit, and none is given"):
        recipe_of("small", {"consistency": "r-drop", "consistency_from": 0.5})


def test_of_a_time_two_passes_do_not_begin_once_the_learning_rate_falls():
    """Its steps are counted then, at the pace of one pass."""
    late = {"consistency": "r-drop", "consistency_from": 0.7}
    with pytest.raises(ConfigError, match=r"two passes would begin at 0\.7 of the time, .* \(the last 0\.4 of it\)"):
        recipe_of("small", late | {"max_minutes": 10})
    for harmless in ({"max_steps": 100}, {"max_minutes": 10, "consistency": "off"}):
        assert recipe_of("small", late | harmless).training.consistency_from == 0.7
    assert recipe_of("small", {"max_minutes": 10}, decay_fraction=0.75).training.consistency_from == 0.25


@pytest.mark.parametrize(
    ("pairs", "said", "noise"),
    [
        (299_999, {}, (0.3, 5)),  # once little text is known as it stands
        (300_000, {}, (0.0, 0)),
        (299_999, {"noise_rate": 0.1}, (0.1, 5)),
        (299_999, {"noise_rate": 0.0}, (0.0, 0)),
        (300_000, {"noise_rate": 0.1, "noise_from_epoch": 2}, (0.1, 2)),
    ],
)
def test_little_text_gets_noise_later_and_all_text_what_is_asked_for(pairs, said, noise):
    training = recipe_of("auto", said, pairs).training
    assert (training.noise_rate, training.noise_from_epoch) == noise


def recipe_of(preset, training, pairs=28_996, compute=CPU, target_tokens=455_488, batch_tokens="auto", **optimizer):
    settings = Settings()
    model = {} if preset == "auto" else {"preset": preset}
    settings.add(
        {"data": {"train": [{"tsv": "text"}], "batch_tokens": batch_tokens}, "model": model, "training": training},
        "test",
    )
    settings.add({"optimizer": optimizer}, "test")
    vocabularies, languages = (8_000, 8_000), ("de", "en")
    facts = CorpusFacts(pairs=pairs, target_tokens=target_tokens, vocabularies=vocabularies, languages=languages)
    tokenizer = resolve_tokenizer(settings, facts.pairs, same_script=True)
    return resolve(settings, tokenizer, facts, compute, threads=1)
