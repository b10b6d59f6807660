"""What the benchmarks compute by themselves: scores as papers have them, recipes, rows of tables."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from mt.cli.options import add_assignments
from mt.pipelines.recipe import Settings
from mt.pipelines.run_folder import RunFolder
from mt.pipelines.train import check_settings

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
ablation, measured, scores, tables = (
    importlib.import_module(name) for name in ("ablation", "measured", "scores", "tables")
)
sys.path.remove(str(BENCHMARKS))


def test_a_result_is_written_and_only_its_summary_stands_on_stdout(tmp_path, capsys):
    path = tmp_path / "results" / "train-here.json"
    measured.write_result(path, {"what": "train"}, "BLEU 39.00")
    assert json.loads(path.read_text()) == {"what": "train"}
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("BLEU 39.00\n", f"wrote {path}\n")


class TestScoresOfPapers:
    def test_bleu_counts_tokens_of_moses_in_lower_case(self):
        pytest.importorskip("sacremoses")
        hypotheses = ["A Man's dog runs.", "Two cats sleep here."]
        references = ["a man's dog runs.", "Two cats sleep there."]
        # a man 's dog runs . | two cats sleep here .: 10 of 11 tokens, 7 of 9 pairs, 5 of 7 triples, 3 of 5 quadruples
        [metric] = scores.literature_scores(hypotheses, references, "en")
        assert metric["score"] == pytest.approx(100 * (10 / 11 * 7 / 9 * 5 / 7 * 3 / 5) ** 0.25, abs=1e-4)
        assert metric["low"] <= metric["score"] <= metric["high"]
        assert {"case:lc", "tok:none"} < set(metric["signature"].split("|"))

    def test_tokens_depend_on_the_language_and_keep_dashes_and_characters(self):
        pytest.importorskip("sacremoses")
        assert scores.moses_tokens(["L'homme & l'eau."], "fr") == ["L' homme & l' eau ."]
        assert scores.moses_tokens(["A well-known Man's dog."], "en") == ["A well-known Man 's dog ."]

    def test_without_the_tokenizer_there_is_no_such_score(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sacremoses", None)
        monkeypatch.setattr(scores, "find_spec", lambda name: None)
        assert scores.literature_scores(["a"], ["a"], "en") == []

    def test_capitals_cost_what_bleu_is_lower_by(self):
        plain, capitals = [{"name": "BLEU", "score": 41.5}], [{"name": "BLEU", "score": 39.25}]
        assert scores.upper_cased_record(plain, capitals) == {"metrics": capitals, "bleu_lost": 2.25}


class TestAblation:
    def test_a_setting_becomes_a_flag(self):
        settings = {"model.encoder_layers": 6, "model.norm_first": "false"}
        assert ablation.set_flags(settings) == ["--set", "model.encoder_layers=6", "--set", "model.norm_first=false"]

    @pytest.mark.parametrize("recipe", ablation.RECIPES.values(), ids=ablation.RECIPES)
    def test_mt_takes_every_recipe(self, recipe):
        settings = Settings()
        settings.add({"data": {"train": [{"source": "a", "target": "b"}]}, "training": {"max_minutes": 1}}, "the base")
        add_assignments(settings, ablation.set_flags(recipe)[1::2])
        check_settings(settings)

    def test_recipes_have_folders_of_their_own(self):
        folders = {ablation.run_of(Path("runs"), name).path for name in ablation.RECIPES}
        assert len(folders) == len(ablation.RECIPES)
        assert ablation.run_of(Path("runs"), "6+2 layers").path == Path("runs", "6+2-layers")

    def test_runs_of_other_minutes_are_refused(self, tmp_path):
        run = RunFolder(tmp_path)
        ablation.check_minutes(run, 30)  # nothing is there yet
        run.recipe.write_text("[training]\nmax_minutes = 30.0\n")
        ablation.check_minutes(run, 30)
        with pytest.raises(ablation.Failure, match="was given 30 minutes, not 20"):
            ablation.check_minutes(run, 20)

    def test_the_time_of_an_update_leaves_validation_out(self):
        records = [
            {"kind": "train", "step": 50, "seconds": 10.0},
            {"kind": "train", "step": 100, "seconds": 20.0},  # 0.2 s an update
            {"kind": "valid", "step": 120, "seconds": 90.0},
            {"kind": "train", "step": 150, "seconds": 100.0},
            {"kind": "train", "step": 200, "seconds": 120.0},  # 0.4 s
        ]
        assert ablation.update_seconds(records) == pytest.approx(0.3)

    def test_a_cost_is_relative_to_the_base(self):
        results = [{"name": "base", "update_seconds": 0.2}, {"name": "R-Drop", "update_seconds": 0.5}]
        assert [each["update_cost"] for each in ablation.with_costs(results)] == [1.0, 2.5]


MACHINE = {"cpu": "CPU", "cpu_threads": 2, "gpu": None}
FIGURES = {"minutes": 44.6, "steps": 716, "parameters": 7_578_624, "target_tokens_per_second_median": 3199.4}


class TestTables:
    @pytest.fixture
    def results(self, monkeypatch):
        """Puts made-up results where the files would be."""

        def put(*made):
            monkeypatch.setattr(tables, "records", lambda what: [each for each in made if each["what"] == what])

        return put

    def test_a_peer_stands_below_mt_and_what_was_not_computed_is_blank(self, results):
        circumstances = {"pair": "en-de", "device": "cpu", "machine": MACHINE, "training": FIGURES}
        bleu, chrf = {"name": "BLEU", "score": 38.84}, {"name": "chrF2", "score": 62.9}
        peer = {
            "what": "quality",
            "engine": "hf",
            "metrics": [bleu, chrf, {"name": scores.LITERATURE, "score": 40.0}],
            "upper_cased": {"metrics": [{"name": "BLEU", "score": 5.06}], "bleu_lost": 33.78},
        }
        results(peer | circumstances, {"what": "train", "metrics": [bleu, chrf]} | circumstances)
        assert tables.quality_table().splitlines()[2:] == [
            "| en-de | mt | 45 | 38.8 | 62.9 |  |  | 716 | 3,199 | 7.6 M | CPU, 2 threads |",
            "| en-de | HF MarianMTModel | 45 | 38.8 | 62.9 | 40.0 | 5.1 | 716 | 3,199 | 7.6 M | CPU, 2 threads |",
        ]

    def test_a_recipe_shows_its_settings_and_what_an_update_costs(self, results):
        recipe = {
            "name": "6+2 layers",
            "set": {"model.encoder_layers": 6, "model.decoder_layers": 2},
            "metrics": [{"name": "BLEU", "score": 41.26}],
            "upper_cased": {"metrics": [{"name": "BLEU", "score": 5.06}], "bleu_lost": 36.2},
            "best": {"bleu": 40.02},
            "training": FIGURES,
            "update_cost": 1.234,
        }
        made = {"what": "ablation", "pair": "de-en", "device": "cpu", "machine": MACHINE, "minutes": 30.0}
        results(made | {"results": [recipe]})
        assert tables.ablation_table().splitlines()[2:] == [
            "| de-en | 6+2 layers | `model.encoder_layers=6`, `model.decoder_layers=2` | 30 | 41.3 | 5.1 | 40.0 | 716"
            " | 1.23 | CPU, 2 threads |"
        ]

    @pytest.mark.parametrize(
        ("engine", "precision", "name"),
        [
            ("mt", "fp32", "mt"),
            ("mt", "bf16", "mt, bf16"),
            ("mt-int8", "int8", "mt-int8"),
            ("hf", "bfloat16", "HF generate (M2M-100), bf16"),
            ("ctranslate2-bfloat16", "bfloat16", "ctranslate2-bfloat16"),
        ],
    )
    def test_an_engine_is_named_with_its_precision_once(self, engine, precision, name):
        assert tables.translator_name({"engine": engine, "precision": precision}) == name
