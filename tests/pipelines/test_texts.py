"""What is found in the text of a run."""

import numpy as np
import pytest

from mt.corpus.cleaning import CleaningRules
from mt.corpus.parallel import CorpusFiles
from mt.errors import DataError
from mt.pipelines.texts import CheckedText, Texts, check_text


@pytest.mark.parametrize("read", [2, 4])
def test_a_text_that_has_grown_or_shrunk_since_it_was_judged_is_a_data_error(tmp_path, read):
    for language in ("en", "de"):
        (tmp_path / f"train.{language}").write_text("one\ntwo\nthree\n")
    files = CorpusFiles(source=tmp_path / "train.en", target=tmp_path / "train.de")
    text = CheckedText([files], [np.ones(read, bool)], valid=[], characters=10_000)
    with pytest.raises(DataError, match="has changed while it was read"):
        list(text.training_pairs())


@pytest.mark.parametrize(("shared", "warned"), [(2, False), (3, True)])
def test_more_than_a_fiftieth_of_validation_text_learned_is_warned_of_and_empty_sides_leave(
    tmp_path, caplog, shared, warned
):
    lines = {name: [f"{name} line {n}" for n in range(count)] for name, count in (("train", 300), ("valid", 100))}
    lines["valid"][:shared] = lines["train"][:shared]
    lines["valid"].append("")
    files = {}
    for name, text in lines.items():
        for side in ("en", "de"):
            (tmp_path / f"{name}.{side}").write_text("".join(f"{line}\n" for line in text))
        files[name] = [CorpusFiles(source=tmp_path / f"{name}.en", target=tmp_path / f"{name}.de")]
    texts = Texts(files["train"], files["valid"], checksums=[], remembered=None)
    assert len(check_text(texts, CleaningRules(), seed=1).valid) == 100
    assert ("its scores flatter the model" in caplog.text) == warned


@pytest.mark.parametrize(("loud", "taught"), [(2, False), (3, True)])
def test_a_hundredth_of_the_sources_teaches_capitals(tmp_path, loud, taught):
    lines = ["ALL IS WELL"] * loud + ["All is well"] * (300 - loud) + ["ALL ELSE"] * 300
    for language in ("en", "de"):
        (tmp_path / f"train.{language}").write_text("".join(f"{line}\n" for line in lines))
    files = CorpusFiles(source=tmp_path / "train.en", target=tmp_path / "train.de")
    used = np.arange(600) < 300
    text = CheckedText([files], [used], valid=[], characters=10_000)
    assert text.teaches_capitals() is taught
