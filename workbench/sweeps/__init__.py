"""One drag over a grid of methods and parameters: which runs it makes, what they are called.

A sweep is a plan: a request and up to three axes. Its runs are ordinary edits; which of them are done
is read from the history by the key of each run's request, so a sweep that was cancelled, or belongs to
an earlier process, still knows its cells, and starting it again only does what is missing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workbench.core import keys
from workbench.core.config import (
    METHODS,
    SPECS,
    DragConfig,
    InversionConfig,
    LoraConfig,
    method_label,
    method_spec,
)
from workbench.core.errors import BadInput
from workbench.core.options import Option, options_of, range_text
from workbench.core.request import EditRequest, ModelRef

FORMAT = 1
MOST_RUNS = 36
MOST_AXES = 3
METHOD = "method"
PARTS: dict[str, type[Any]] = {"drag": DragConfig, "lora": LoraConfig, "inversion": InversionConfig}

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something that a sweep can vary: `name` is 'method' or 'part.field', such as 'drag.steps'."""

    name: str
    label: str
    kind: type[Any]
    default: Any
    option: Option

    @property
    def part(self) -> str:
        """drag, lora, inversion, or "" for the method."""
        return self.name.rpartition(".")[0]

    @property
    def field(self) -> str:
        """The field of the configuration."""
        return self.name.rpartition(".")[2]


def parameters() -> dict[str, Parameter]:
    """Everything that can be varied, by name, in the order in which it is offered."""
    kind, default, opt = options_of(DragConfig)["method"]
    found = {METHOD: Parameter(METHOD, "Method", kind, default, opt)}
    for part, cls in PARTS.items():
        for field, (kind, default, opt) in options_of(cls).items():
            if (part, field) != ("drag", "method"):
                name = f"{part}.{field}"
                words = field.replace("_", " ")
                label = words if part == "drag" else f"{_TITLES[part]} {words}"
                label = label[:1].upper() + label[1:]
                found[name] = Parameter(name, label, kind, default, opt)
    return found


_TITLES = {"lora": "LoRA", "inversion": "inversion"}


def parameter(name: str) -> Parameter:
    """One of `parameters`.

    Raises:
        BadInput: for a name that is not known.
    """
    known = parameters()
    if name not in known:
        raise BadInput(
            f"There is no parameter {name!r:.60} to vary; there are: {', '.join(known)}.",
            code="unknown-name",
        )
    return known[name]


def parse_values(name: str, text: str) -> tuple[Value, ...]:
    """Values as a person writes them: '20, 40, 80'; each once, in their order.

    Raises:
        BadInput: naming the value and what is possible.
    """
    words = [w for part in text.replace(";", ",").split(",") for w in part.split()]
    return Axis(name, tuple(_value(parameter(name), word) for word in words)).values


def _value(of: Parameter, word: str) -> Value:
    if of.kind is bool:
        known = {"yes": True, "true": True, "on": True, "1": True}
        known |= {"no": False, "false": False, "off": False, "0": False}
        if word.lower() not in known:
            raise BadInput(f"{of.label}: {word!r:.40} is neither yes nor no.", code="wrong-type")
        return known[word.lower()]
    if of.kind is str:
        return word
    try:
        number = float(word)
        return int(word) if of.kind is int else number
    except ValueError as exc:
        wanted = "whole number" if of.kind is int else "number"
        raise BadInput(
            f"{of.label}: {word!r:.40} is no {wanted}; write values such as 10, 20, 40.",
            code="wrong-type",
        ) from exc


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that is varied, and its values (each once, in their order)."""

    name: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        """Check name and values.

        Raises:
            BadInput: naming the value and the range.
        """
        of = parameter(self.name)
        object.__setattr__(self, "values", tuple(dict.fromkeys(self.values)))
        if not self.values:
            raise BadInput(f"{of.label}: give at least one value.", code="empty")
        for value in self.values:
            _check(of, value)

    @property
    def label(self) -> str:
        """Names of the varied parameters, as shown."""
        return parameter(self.name).label

    def word(self, value: Value) -> str:
        """One value for people: 'GoodDrag', 'steps 40'."""
        if self.name == METHOD:
            return method_label(str(value))
        return f"{self.label} {show(value)}"


def _check(of: Parameter, value: Value) -> None:
    """The configuration's own check, with the label that a person reads."""
    opt = of.option
    if of.kind in (int, float) and not isinstance(value, (bool, str)):
        low, high = opt.low, opt.high
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise BadInput(
                f"{of.label}: {value:g} is not possible; it goes {range_text(opt)}.",
                code="out-of-range",
            )
    try:
        PARTS[of.part or "drag"](**{of.field: value})
    except BadInput as exc:
        raise BadInput(f"{of.label}: {exc}", code="out-of-range") from exc


def show(value: Value) -> str:
    """A value as text: 40, 0.01, yes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def suggested(name: str, now: Value) -> tuple[Value, ...]:
    """Values to begin with, around the present one and within the range.

    Whole numbers and numbers: half, the same, double. Switches: both. The method: all.
    """
    of = parameter(name)
    if of.kind is str:
        return METHODS
    if of.kind is bool:
        return (True, False)
    assert isinstance(now, (int, float))
    middle = now or (of.default or 1)
    wanted = (middle / 2, middle, middle * 2)
    low, high = of.option.low, of.option.high
    kept = [max(low or 0, min(high if high is not None else v, v)) for v in wanted]
    if of.kind is int:
        return tuple(dict.fromkeys(round(v) for v in kept))
    return tuple(dict.fromkeys(float(f"{v:.4g}") for v in kept))


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the grid: the values of its axes and the edit that they mean."""

    row: int
    column: int
    values: tuple[Value, ...]
    name: str
    request: EditRequest
    key: str


@dataclass(frozen=True)
class Plan:
    """A request and what is varied. The last axis gives the columns, those before it the rows."""

    base: EditRequest
    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        """Check the number of axes and of runs.

        Raises:
            BadInput: with the number and the limit.
        """
        object.__setattr__(self, "axes", tuple(self.axes))
        if not self.base.pairs:
            raise BadInput(
                "There is nothing to move; draw at least one arrow first.", code="no-arrow"
            )
        if not 1 <= len(self.axes) <= MOST_AXES:
            raise BadInput(
                f"A sweep varies 1 to {MOST_AXES} things, not {len(self.axes)}: the method and one or "
                "two parameters.",
                code="axis-count",
            )
        named = [a.name for a in self.axes]
        if len(set(named)) < len(named):
            raise BadInput(
                f"{self.axes[0].label} is varied twice; choose another parameter.", code="twice"
            )
        total = self.rows * self.columns
        if not 2 <= total <= MOST_RUNS:
            raise BadInput(
                f"This makes {total} {'run' if total == 1 else 'runs'}; a sweep has 2 to {MOST_RUNS}. "
                f"{'Add values.' if total < 2 else 'Take fewer values.'}",
                code="run-count",
            )

    # --- the grid -------------------------------------------------------------------------------------

    @property
    def columns(self) -> int:
        """Number of columns."""
        return len(self.axes[-1].values)

    @property
    def rows(self) -> int:
        """Number of rows."""
        total = 1
        for axis in self.axes[:-1]:
            total *= len(axis.values)
        return total

    @property
    def column_labels(self) -> list[str]:
        """Labels of the columns."""
        return [self.axes[-1].word(v) for v in self.axes[-1].values]

    @property
    def row_labels(self) -> list[str]:
        """Labels of the rows; "" for the only row of a sweep over one thing."""
        return [
            _sentence([a.word(v) for a, v in zip(self.axes, values, strict=False)], ", ")
            for values in itertools.product(*(a.values for a in self.axes[:-1]))
        ]

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All places, row by row.

        Raises:
            BadInput: when a combination is not possible.
        """
        made = []
        for n, values in enumerate(itertools.product(*(a.values for a in self.axes))):
            request = self.request(values)
            name = _sentence([a.word(v) for a, v in zip(self.axes, values, strict=True)], ", ")
            row, column = divmod(n, self.columns)
            made.append(Cell(row, column, values, name, request, key_of(request)))
        return tuple(made)

    def runs(self) -> list[Cell]:
        """The cells that need a run of their own: a parameter that a method does not know changes
        nothing, so such cells share one edit.
        """
        return list({cell.key: cell for cell in reversed(self.cells)}.values())[::-1]

    def request(self, values: Sequence[Value]) -> EditRequest:
        """The edit for one value of each axis."""
        chosen = dict(zip((a.name for a in self.axes), values, strict=True))
        base = self.base
        method = str(chosen.pop(METHOD, base.drag.method))
        if method != base.drag.method:
            base = base.with_method(method)
        parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for name, value in chosen.items():
            of = parameter(name)
            if of.part != "drag" or method_spec(method).reads(of.field):
                parts[of.part][of.field] = value
        return dataclasses.replace(
            base,
            drag=dataclasses.replace(base.drag, **parts["drag"]),
            lora=dataclasses.replace(base.lora, **parts["lora"]),
            inversion=dataclasses.replace(base.inversion, **parts["inversion"]),
        )

    # --- as a file ------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """The sweep in a few words: 'Method × steps'."""
        return _sentence([a.label for a in self.axes], " × ")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        axes = [{"name": a.name, "values": list(a.values)} for a in self.axes]
        return {"format": FORMAT, "base": self.base.to_json(), "axes": axes}

    def raw(self) -> bytes:
        """The file of the plan: equal plans give equal bytes."""
        return keys.canonical(self.to_json())

    @classmethod
    def from_raw(cls, raw: bytes) -> Plan:
        """Read what `raw` gave.

        Raises:
            BadInput: when it is not a plan.
        """
        try:
            data = json.loads(raw)
            if data["format"] != FORMAT:
                raise BadInput(
                    f"This sweep has format {data['format']!r:.20}; use a newer workbench.",
                    code="newer-format",
                )
            axes = tuple(Axis(str(a["name"]), tuple(a["values"])) for a in data["axes"])
            return cls(EditRequest.from_json(data["base"], strict=False), axes)
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            raise BadInput("This is not a sweep that can be read.", code="unreadable") from exc


def _sentence(parts: Sequence[str], between: str) -> str:
    """Labels in a row; after the first, only names keep their capital."""
    named = ("LoRA", *(s.label for s in SPECS.values()))
    rest = [p if p.startswith(named) else p[:1].lower() + p[1:] for p in parts[1:]]
    return between.join([*parts[:1], *rest])


def key_of(request: EditRequest) -> str:
    """By what a run is found in the history: `keys.edit_key` by the model's name, not its files'
    fingerprint, which is only known once the model was loaded.
    """
    return keys.edit_key(dataclasses.replace(request, model=ModelRef(name=request.model.name)))
