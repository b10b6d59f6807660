"""What is drawn is what the records say: read back from the figure's lines."""

import sys

import pytest

from mt.errors import ConfigError
from mt.evaluation.plots import STYLE, training_figure, without_undone

matplotlib = pytest.importorskip("matplotlib")


def train(step, loss, **more):
    return {"step": step, "kind": "train", "loss": loss, "learning_rate": step / 1000, **more}


def valid(step, loss, bleu):
    return {"step": step, "kind": "valid", "loss": loss, "bleu": bleu, "chrf": 2 * bleu, "best": True}


def event(step, name):
    return {"step": step, "kind": "event", "event": name}


def lines(figure, title):
    """The lines of the panel whose title begins so, by their labels: what they show as (x, y)."""
    (axes,) = [axes for axes in figure.axes if axes.get_title("left").startswith(title)]
    return {line.get_label(): [*zip(*map(list, line.get_data()), strict=True)] for line in axes.lines}


def titles(figure):
    return [axes.get_title("left") for axes in figure.axes]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_panel_shows_its_number_over_the_step():
    records = [
        event(0, "started"), train(5, 6.0, target_tokens_per_second=70.0), valid(5, 5.5, 1.5),
        train(10, 4.0, target_tokens_per_second=80.0), valid(10, 4.5, 7.0), event(10, "finished"),
    ]  # fmt: skip
    figure = training_figure({"run": records})
    assert lines(figure, "loss") == {"run train": [(5, 6.0), (10, 4.0)], "run valid": [(5, 5.5), (10, 4.5)]}
    assert lines(figure, "BLEU") == {"run valid": [(5, 1.5), (10, 7.0)]}
    assert lines(figure, "chrF2") == {"run valid": [(5, 3.0), (10, 14.0)]}
    assert lines(figure, "learning rate") == {"run train": [(5, 0.005), (10, 0.01)]}
    assert lines(figure, "speed") == {"run train": [(5, 70.0), (10, 80.0)]}
    assert legend(figure) == ["run", "training", "validation"]


def test_only_what_the_records_hold_has_a_panel():
    assert titles(training_figure({"run": [train(5, 6.0)]})) == ["loss (nats per target token)", "learning rate"]
    figure = training_figure({"old": [train(5, 6.0)], "new": [train(5, 6.0, gradient_norm=0.5)]})
    assert lines(figure, "norm of the gradient") == {"new train": [(5, 0.5)]}


def test_what_a_resumed_run_does_again_counts_and_what_it_undid_does_not():
    first = [event(0, "started"), train(4, 6.0), train(8, 5.0), event(9, "decay"), train(12, 4.0), valid(12, 4.2, 9.0)]
    again = [event(6, "resumed"), train(7, 5.1), train(14, 3.9)]
    assert without_undone([*first, *again]) == [first[0], first[1], *again]
    figure = training_figure({"run": [*first, *again]})
    assert lines(figure, "loss")["run train"] == [(4, 6.0), (7, 5.1), (14, 3.9)]
    assert "run valid" not in lines(figure, "loss")


def test_of_two_records_of_a_kind_and_step_the_later_counts():
    records = [train(4, 6.0), valid(4, 5.0, 1.0), train(4, 7.0), event(4, "resumed"), event(4, "decay")]
    assert without_undone(records) == [train(4, 7.0), valid(4, 5.0, 1.0), event(4, "resumed"), event(4, "decay")]


@pytest.mark.parametrize("going_on", ["resumed", "rolled_back"])
def test_a_decay_is_undone_by_going_on_from_the_step_at_which_it_began(going_on):
    before = [train(2, 6.5), event(2, "decay"), train(4, 6.0)]  # a decay that the checkpoint of step 4 knows of
    records = [*before, event(4, "decay"), train(6, 5.0), event(4, going_on), train(6, 5.5)]
    assert without_undone(records) == [*before, event(4, going_on), train(6, 5.5)]
    again = [event(4, "decay"), train(7, 5.2)]
    assert without_undone([*records[:-1], *again]) == [*before, event(4, going_on), *again]


def test_events_are_marks_across_every_panel():
    records = [
        event(0, "started"), train(5, 6.0), event(7, "decay"), event(8, "rolled_back"), train(10, 4.0),
        event(10, "averaged"), event(10, "moving_average"), event(10, "finished"),
    ]  # fmt: skip
    figure = training_figure({"run": records})
    for panel in ("loss", "learning rate"):
        marks = {label: points for label, points in lines(figure, panel).items() if label != "run train"}
        assert {label: {x for x, _ in points} for label, points in marks.items()} == {
            "decay": {7}, "rolled_back": {8}, "averaged": {10},
            "moving_average": {10},
        }  # fmt: skip
    assert legend(figure) == ["run", "training", "validation", "averaged", "decay", "moving average", "rolled back"]


def test_marks_of_different_events_look_different():
    names = "decay resumed averaged moving_average noise consistency skipped rolled_back out_of_memory".split()
    figure = training_figure({"run": [train(1, 3.0), train(2, 2.0), *(event(3 + n, x) for n, x in enumerate(names))]})
    dashes = {line.get_label(): repr(line._dash_pattern) for line in figure.axes[0].lines}
    assert len({dashes[name] for name in names}) == len(names)


def test_a_mark_has_the_colour_of_its_run_where_there_are_several():
    course = [train(5, 6.0), event(7, "decay"), train(10, 4.0)]
    drawn = training_figure({"one": course, "other": course}).axes[0].lines
    marks = [line.get_color() for line in drawn if line.get_label() == "decay"]
    assert marks == [line.get_color() for line in drawn if line.get_label().endswith(" train")]
    [mark] = [line for line in training_figure({"one": course}).axes[0].lines if line.get_label() == "decay"]
    assert mark.get_color() not in marks


@pytest.mark.parametrize("begun", [True, False])
def test_two_passes_are_marked_only_where_they_began(begun):
    decided = {**event(7, "consistency"), "begun": begun}
    figure = training_figure({"run": [train(5, 6.0), decided, train(10, 4.0), event(10, "length_penalty")]})
    assert ("consistency" in legend(figure)) == begun
    assert "length penalty" not in legend(figure)


def test_each_run_keeps_one_colour_and_one_marker_in_all_panels():
    runs = {name: [train(5, 6.0), valid(5, 5.5, 1.5)] for name in ("one", "other")}
    figure = training_figure(runs)
    styles = {name: set() for name in runs}
    for axes in figure.axes:
        for line in axes.lines:
            name, kind = line.get_label().split()
            styles[name].add((line.get_color(), line.get_marker() if kind == "valid" else "no marker"))
    for style in styles.values():
        assert len({colour for colour, _ in style}) == 1
        assert len({marker for _, marker in style}) == 2
    assert not styles["one"] & styles["other"]
    assert legend(figure) == ["one", "other", "training", "validation"]


def test_drawing_leaves_the_settings_of_matplotlib_as_they_are():
    before = {name: matplotlib.rcParams[name] for name in STYLE}
    assert before != STYLE
    training_figure({"run": [train(5, 6.0)]})
    assert {name: matplotlib.rcParams[name] for name in STYLE} == before


def test_without_matplotlib_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib is not installed") as caught:
        training_figure({"run": [train(5, 6.0)]})
    assert caught.value.hint == "pip install matplotlib"
