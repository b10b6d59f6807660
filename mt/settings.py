"""Settings: frozen dataclasses made from plain dictionaries, with errors that name the key and the nearest known one.

A field made by `auto()` has no default: what the user leaves at "auto" is resolved before the dataclass is built, so
that a configuration is complete once it exists.
"""

import dataclasses
import difflib
import math
import sys
import tomllib
import typing
from pathlib import Path
from typing import Any, TypeVar

from mt.errors import ConfigError

AUTO = "auto"
Values = dict[str, Any]
Section = TypeVar("Section")


def auto() -> Any:
    """A dataclass field that the user may leave to the program."""
    return dataclasses.field(metadata={AUTO: True})


def defaults(section: type) -> Values:
    """The values of a section before the user says anything: defaults, and "auto" where the program chooses."""
    values: Values = {}
    for item in dataclasses.fields(section):
        if item.metadata.get(AUTO):
            values[item.name] = AUTO
        else:
            values[item.name] = item.default
    return values


def check_key(key: str, known: typing.Iterable[str], where: str) -> None:
    """Raise `ConfigError` naming the nearest known key when `key` is not one of them."""
    known = list(known)
    if key in known:
        return
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    raise ConfigError(f"{where} is not a setting", f"did you mean {nearest[0]}?" if nearest else "")


def convert(value: Any, wanted: Any, name: str) -> Any:
    """`value` as the type that a field declares: an integer may stand for a float, a list for a tuple, nothing else."""
    plain = typing.get_origin(wanted) or wanted
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    if plain is tuple and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, plain) or (plain is not bool and isinstance(value, bool)):
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a list"}[plain]
        raise ConfigError(f"{name} = {value!r} is not {kind}")
    if plain is float and not math.isfinite(value):
        raise ConfigError(f"{name} = {value!r} is not a finite number")
    return value


def build(section: type[Section], values: Values, name: str) -> Section:
    """The dataclass `section` from complete plain values, checked for unknown keys and wrong types."""
    types = typing.get_type_hints(section)
    for key in values:
        check_key(key, types, f"{name}.{key}")
    return section(**{key: convert(value, types[key], f"{name}.{key}") for key, value in values.items()})


def plain(record: Any) -> Values:
    """The inverse of `build`: a section as a dictionary of plain values."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(record).items()
    }


def read_toml(path: Path) -> Values:
    """A TOML file as a dictionary; raises `ConfigError` with the place of what is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def parse_assignment(text: str) -> tuple[str, str, Any]:
    """Section, key and value of a `section.key=value` flag; the value is read as TOML, else as text."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"--set {text!r} is not section.key=value", "for instance: --set optimizer.warmup_steps=500")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    if isinstance(parsed, float) and not math.isfinite(parsed):  # no setting is: nan stands for the language Min Nan
        parsed = value.strip()
    return section, key, parsed
