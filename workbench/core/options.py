"""Options that describe themselves: a dataclass field with unit, range and effect.

The same metadata checks a value, writes the `--help` line and builds the widget of the page, so the
three cannot disagree.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any, TypeVar, cast, get_type_hints

from workbench.core.errors import BadInput

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """Description of one field: its range (inclusive), unit and effect in one sentence."""

    help: str
    low: float | None = None
    high: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    advanced: bool = False


def option(
    default: T,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    choices: tuple[str, ...] = (),
    advanced: bool = False,
) -> T:
    """Give a dataclass field its default and its `Option`; typed as the default for mypy."""
    meta = Option(help=help, low=low, high=high, unit=unit, choices=choices, advanced=advanced)
    made: T = dataclasses.field(default=default, metadata={"option": meta})
    return made


def options_of(cls: type[Any]) -> dict[str, tuple[type[Any], Any, Option]]:
    """Map field name to (type, default, Option) for every field that carries an Option."""
    return dict(_options(cls))


def _options(cls: type[Any]) -> dict[str, tuple[type[Any], Any, Option]]:
    known = _KNOWN.get(cls)
    if known is None:
        hints = get_type_hints(cls)
        known = _KNOWN[cls] = {
            f.name: (hints[f.name], f.default, f.metadata["option"])
            for f in dataclasses.fields(cls)
            if "option" in f.metadata
        }
    return known


# Evaluating annotations took a quarter of the time of reading a record.
_KNOWN: dict[type[Any], dict[str, tuple[type[Any], Any, Option]]] = {}


def check(obj: Any) -> None:
    """Check each option of a dataclass instance against its type and range.

    Ints are accepted where a float is declared (and stay as given in JSON: `normalise` converts).
    A bool is never a number.

    Raises:
        BadInput: code "out-of-range", with the field ("lora.rank") and the value.
    """
    for name, (kind, _default, opt) in _options(type(obj)).items():
        value = getattr(obj, name)
        if kind is bool:
            good, wanted = isinstance(value, bool), "true or false"
        elif kind is str:
            good = isinstance(value, str) and (not opt.choices or value in opt.choices)
            wanted = f"one of: {', '.join(opt.choices)}" if opt.choices else "text"
        else:
            good = isinstance(value, int if kind is int else (int, float))
            good = good and not isinstance(value, bool) and abs(value) <= sys.float_info.max
            good = good and (opt.low is None or value >= opt.low)
            good = good and (opt.high is None or value <= opt.high)
            number = "a whole number" if kind is int else "a number"
            wanted = f"{number} {range_text(opt)}".rstrip()
        if not good:
            field = f"{type(obj).__name__.removesuffix('Config').lower()}.{name}"
            text = f"{field} is {value!r:.80}; it must be {wanted}."
            raise BadInput(text, code="out-of-range", field=field, value=value)
        if kind is float and isinstance(value, int):
            object.__setattr__(obj, name, float(value))


def range_text(opt: Option) -> str:
    """Say the range in words, e.g. 'from 1 to 128 px'."""
    unit = f" {opt.unit}" if opt.unit else ""
    if opt.low is not None and opt.high is not None:
        return f"from {opt.low:g} to {opt.high:g}{unit}"
    if opt.low is not None:
        return f"of at least {opt.low:g}{unit}"
    if opt.high is not None:
        return f"of at most {opt.high:g}{unit}"
    return f"in{unit}" if unit else ""


def from_mapping(cls: type[T], data: Any, *, strict: bool = True) -> T:
    """Build a flat option dataclass from JSON data.

    Unknown keys are an error when `strict` (a request), and dropped otherwise (a record written by
    a newer version); missing keys take the default.

    Raises:
        BadInput: when `data` is not a mapping, has an unknown key, or a value is out of range.
    """
    if not isinstance(data, Mapping):
        raise BadInput(f"{cls.__name__} must be a JSON object, not {type(data).__name__}.")
    names = _names(cast(Any, cls))
    unknown = sorted(str(k) for k in data if k not in names)
    if unknown and strict:
        raise BadInput(
            f"{cls.__name__} does not know {unknown[0]!r}; it has: {', '.join(sorted(names))}.",
            code="unknown-key",
            field=unknown[0],
        )
    given = {k: v for k, v in data.items() if k in names}
    kinds = tuple(map(type, given.values()))  # 1, 1.0 and True are equal and mean different things
    if not _PLAIN.issuperset(kinds):
        return cls(**given)
    key = (cls, kinds, *given.items())
    made = _made.get(key)
    if made is None:
        made = cls(**given)
        if len(_made) >= _MOST_MADE:
            _made.clear()
        _made[key] = made
    return cast(T, made)


_PLAIN = frozenset({str, int, float, bool, type(None)})
_MOST_MADE = 4096
# The edits of a history share most of their settings: what is frozen and equal is made and checked once.
_made: dict[Any, Any] = {}


@functools.cache
def _names(cls: type[Any]) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(cls))
