"""Names and values on a page: widgets built from the options' own metadata, and lists of facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import streamlit as st

from workbench.core.options import Option, options_of, range_text
from workbench.ui.shell.text import field_label, plain
from workbench.ui.shell.words import say


def describe(opt: Option, default: Any) -> str:
    """What an option does, its range and its default, in one tooltip."""
    span = range_text(opt).strip()
    parts = [opt.help]
    if span:
        parts.append(say("shell.range_span", span=span))
    if opt.choices:
        parts.append(say("shell.values_choices", choices=", ".join(opt.choices)))
    parts.append(
        say("shell.default_default", default=default)
        if isinstance(default, float)
        else say("shell.default_default_2", default=default)
    )
    return " ".join(parts)


def option_widget(
    cls: type[Any],
    name: str,
    value: Any,
    *,
    key: str,
    on_change: Callable[[], None],
    default: Any = None,
    label: str = "",
    disabled: bool = False,
) -> Any:
    """One field's widget: a switch, a choice or a number with the field's own range.

    `value` fills it the first time; afterwards the widget's own state counts. `default` is what the
    tooltip calls the default (a preset's value), the dataclass's default when None; `label` stands
    over it instead of the field's name.
    """
    kind, own_default, opt = options_of(cls)[name]
    unit = f" ({opt.unit})" if opt.unit else ""
    common: dict[str, Any] = {
        "label": label or field_label(name) + unit,
        "key": key,
        "help": describe(opt, own_default if default is None else default),
        "on_change": on_change,
        "disabled": disabled,
    }
    if kind is bool:
        return st.toggle(**common, value=bool(value))
    if opt.choices:
        index = opt.choices.index(value) if value in opt.choices else 0
        return st.selectbox(options=opt.choices, **common, index=index)
    if kind is str:
        return st.text_input(**common, value=str(value))
    if kind is int:
        low, high = _int(opt.low), _int(opt.high)
        return st.number_input(**common, value=int(value), min_value=low, max_value=high, step=1)
    return st.number_input(
        **common,
        value=float(value),
        min_value=opt.low,
        max_value=opt.high,
        step=_step(opt),
        format="%g",
    )


def option_grid(
    cls: type[Any],
    names: Sequence[str],
    values: Mapping[str, Any],
    *,
    prefix: str,
    on_change: Callable[[], None],
    defaults: Mapping[str, Any] | None = None,
    columns: int = 3,
    disabled: bool = False,
) -> dict[str, Any]:
    """Several fields of one dataclass in a grid; returns what the widgets hold now."""
    got: dict[str, Any] = {}
    for start in range(0, len(names), columns):
        places = st.columns(columns, vertical_alignment="bottom")
        for place, name in zip(places, names[start : start + columns], strict=False):
            with place:
                got[name] = option_widget(
                    cls,
                    name,
                    values[name],
                    key=f"{prefix}_{name}",
                    on_change=on_change,
                    default=(defaults or {}).get(name),
                    disabled=disabled,
                )
    return got


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _step(opt: Option) -> float:
    """A step that a click on + is worth: a hundredth of small ranges, a tenth of wide ones."""
    span = (opt.high if opt.high is not None else 1.0) - (opt.low or 0.0)
    if span <= 0.2:
        return 1e-4
    return 0.01 if span <= 1.0 else 0.1 if span <= 64 else 1.0


LONGEST = 300  # characters of a value
_STYLE = """<style>
.wb-facts { display: grid; grid-template-columns: minmax(6.5rem, max-content) 1fr;
  gap: 0.35rem 1.1rem; margin: 0.2rem 0 0.6rem; font-size: 0.95rem; }
.wb-facts dt { margin: 0; opacity: 0.68; }
.wb-facts dd { margin: 0; overflow-wrap: anywhere; }
</style>"""


def facts_list(rows: Mapping[str, str]) -> None:
    """Show names and values; both are put in letter by letter, never as markup."""
    items = (
        f"<dt>{escape(plain(k))}</dt><dd>{escape(plain(v, LONGEST))}</dd>" for k, v in rows.items()
    )
    st.html(f'{_STYLE}<dl class="wb-facts">{"".join(items)}</dl>')
