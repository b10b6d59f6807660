"""Settings: plain values become complete frozen records, and a mistake names the nearest key that exists."""

from dataclasses import FrozenInstanceError, dataclass

import pytest

from mt.errors import ConfigError, ExitCode
from mt.settings import AUTO, auto, build, check_key, convert, defaults, parse_assignment, plain, read_toml


@dataclass(frozen=True, kw_only=True, slots=True)
class Kitchen:
    ovens: int = 2
    heat: float = auto()
    gas: bool = False
    name: str = "north"
    shelves: tuple = ()


COMPLETE = {"ovens": 3, "heat": 0.5, "gas": True, "name": "south", "shelves": ["low", "high"]}


def test_defaults_are_what_stands_before_the_user_says_anything():
    assert defaults(Kitchen) == {"ovens": 2, "heat": AUTO, "gas": False, "name": "north", "shelves": ()}


def test_plain_is_the_inverse_of_build():
    kitchen = build(Kitchen, COMPLETE, "kitchen")
    assert kitchen == Kitchen(ovens=3, heat=0.5, gas=True, name="south", shelves=("low", "high"))
    assert plain(kitchen) == COMPLETE
    with pytest.raises(FrozenInstanceError):
        kitchen.ovens = 4


@pytest.mark.parametrize(
    ("key", "nearest"), [("ovnes", "ovens"), ("heating", "heat"), ("names", "name"), ("Gas", "gas")]
)
def test_an_unknown_key_names_its_place_and_the_nearest_known_one(key, nearest):
    with pytest.raises(ConfigError, match=f"^kitchen.{key} is not a setting$") as caught:
        build(Kitchen, COMPLETE | {key: 1}, "kitchen")
    assert caught.value.hint == f"did you mean {nearest}?"
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_key_without_a_likeness_still_gets_a_suggestion_and_none_where_nothing_is_known():
    with pytest.raises(ConfigError) as caught:
        check_key("zzz", ["ovens"], "zzz")
    assert caught.value.hint == "did you mean ovens?"
    with pytest.raises(ConfigError) as caught:
        check_key("zzz", [], "zzz")
    assert caught.value.hint == ""


@pytest.mark.parametrize(
    ("value", "wanted", "result"),
    [(1, float, 1.0), (1, int, 1), (0.5, float, 0.5), (True, bool, True), (["a"], tuple, ("a",)), ("1", str, "1")],
)
def test_a_value_keeps_its_type_but_an_integer_may_stand_for_a_float(value, wanted, result):
    converted = convert(value, wanted, "x")
    assert converted == result
    assert type(converted) is type(result)


@pytest.mark.parametrize(
    ("value", "wanted", "kind"),
    [
        (1.0, int, "a whole number"),
        (True, int, "a whole number"),
        ("3", int, "a whole number"),
        (True, float, "a number"),
        ("auto", float, "a number"),
        (float("inf"), float, "a finite number"),
        (float("nan"), float, "a finite number"),
        (1, bool, "true or false"),
        (1, str, "text"),
        ("a", tuple, "a list"),
    ],
)
def test_nothing_else_is_bent_into_shape(value, wanted, kind):
    with pytest.raises(ConfigError, match=f"^kitchen.x = {value!r} is not {kind}$"):
        convert(value, wanted, "kitchen.x")


def test_a_whole_number_beyond_all_floats_is_not_finite():
    with pytest.raises(ConfigError, match=r"^kitchen.x = inf is not a finite number$"):
        convert(10**309, float, "kitchen.x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optimizer.warmup_steps=500", 500),
        ("optimizer.warmup_steps = 5e-4 ", 5e-4),
        ("optimizer.warmup_steps=true", True),
        ('optimizer.warmup_steps="500"', "500"),
        ("optimizer.warmup_steps=cosine", "cosine"),
        ("optimizer.warmup_steps=a=b", "a=b"),
        ("optimizer.warmup_steps=[1, 2]", [1, 2]),
        ("optimizer.warmup_steps=", ""),
        ("optimizer.warmup_steps=nan", "nan"),
    ],
)
def test_an_assignment_is_read_as_toml_and_else_as_text(text, value):
    section, key, parsed = parse_assignment(text)
    assert (section, key, parsed) == ("optimizer", "warmup_steps", value)
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "warmup_steps=5", "optimizer.warmup_steps", ".x=1", "optimizer.=1", "=1"])
def test_what_is_no_assignment_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="is not section.key=value") as caught:
        parse_assignment(text)
    assert "--set optimizer.warmup_steps=500" in caught.value.hint


def test_a_toml_file_is_read_and_its_mistake_has_a_place(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[kitchen]\novens = 3\n")
    assert read_toml(path) == {"kitchen": {"ovens": 3}}
    path.write_text("\ufeff[kitchen]\novens = 3\n", encoding="utf-8")  # a mark of some editors
    assert read_toml(path) == {"kitchen": {"ovens": 3}}
    path.write_text("[kitchen]\novens = \n")
    with pytest.raises(ConfigError, match=r"recipe\.toml is not TOML: .*line 2"):
        read_toml(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"recipe\.toml is not TOML"):
        read_toml(path)
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such file"):
        read_toml(tmp_path / "absent.toml")
