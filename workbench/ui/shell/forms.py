"""Words, numbers, options and colours on a page; the words are in `words.toml` beside this file."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import streamlit as st

from workbench.canvas.overlay import Style
from workbench.core.options import Option, options_of, range_text

_FILE = Path(__file__).with_name("words.toml")


@cache
def words() -> dict[str, str]:
    """Every text of the interface by its key, "section.name"."""
    sections = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return {f"{s}.{name}": text for s, texts in sections.items() for name, text in texts.items()}


def say(key: str, **values: Any) -> str:
    """The text of a key, with the values put into its `{name}` places.

    Raises:
        KeyError: for a key or a place that is not there.
    """
    text = words()[key]
    return text.format(**values) if values else text


_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~<>$:^=&@/])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def plain(text: str, limit: int = 0) -> str:
    """Text without control and direction marks, on one line, cut to `limit` characters (0: all)."""
    one_line = " ".join(_CONTROL.sub("", text).split())
    if limit and len(one_line) > limit:
        return one_line[: max(1, limit - 1)].rstrip() + "…"
    return one_line


def inert(text: str, limit: int = 0) -> str:
    """A user's text for a Markdown place: shown letter by letter, never as markup.

    Escapes every character that Markdown, LaTeX, emoji codes or HTML give a meaning.
    """
    return _MARKUP.sub(r"\\\1", plain(text, limit))


def seconds(value: float) -> str:
    """A duration: '0.4 s', '12 s', '3 min 05 s', '1 h 02 min'."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def about(value: float) -> str:
    """A duration that is a guess, with as many digits as one has: '5 s', '40 s', '2 min', '1 h'."""
    for unit, name in ((3600, "h"), (60, "min")):
        if value >= 0.9 * unit:
            return f"{max(1, round(value / unit))} {name}"
    step = 1 if value < 10 else 5
    return f"{max(1, round(value / step)) * step} s"


class Guess(NamedTuple):
    """Seconds that something will take; `rough` where nothing was measured on this machine."""

    seconds: float
    rough: bool = False

    def __str__(self) -> str:
        """'2 min', or '2 min, a rough guess'."""
        time = about(self.seconds)
        return say("common.rough_time", time=time) if self.rough else time


def size(count: float) -> str:
    """Bytes: '820 bytes', '1.4 MB'."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            return f"{count:.1f} {unit}" if count < 100 else f"{count:.0f} {unit}"
    raise AssertionError("unreachable")


def when(iso: str, now: datetime.datetime | None = None) -> str:
    """A stored UTC time in the reader's words: 'just now', '5 min ago', '14:05', '3 Nov, 14:05'."""
    try:
        then = datetime.datetime.fromisoformat(iso)
    except ValueError:
        return ""
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    now = now or datetime.datetime.now(datetime.UTC)
    past = (now - then).total_seconds()
    if past < 60:
        return "just now"
    if past < 3600:
        return f"{int(past // 60)} min ago"
    local = then.astimezone()
    if local.date() == now.astimezone().date():
        return local.strftime("%H:%M")
    return f"{local.day} {local.strftime('%b, %H:%M')}"


def field_label(name: str) -> str:
    """A field's name as a label: 'learning_rate' -> 'Learning rate'."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def count(number: int, noun: str, nouns: str = "") -> str:
    """'1 arrow', '3 arrows'."""
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def describe(opt: Option, default: Any) -> str:
    """Tooltip of an option: effect, range and default."""
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


ENTRY = "colours"  # in Settings.ui
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_PARTS = ("handle", "target", "arrow")
LIGHT = (0.1, 0.9)  # of the protected area: from nearly black to nearly as it is

# DragDiffusion's own; then pairs that people tell apart who do not see red and green (Okabe, Ito 2008)
THEMES: dict[str, dict[str, Any]] = {
    say("shell.classic"): {
        "handle": "#e53935",
        "target": "#1e64e6",
        "arrow": "#ffffff",
        "dim": 0.75,
    },
    say("shell.colour_blind_safe"): {
        "handle": "#e69f00",
        "target": "#56b4e9",
        "arrow": "#ffffff",
        "dim": 0.75,
    },
    say("shell.high_contrast"): {
        "handle": "#ff2d00",
        "target": "#00e5ff",
        "arrow": "#ffff00",
        "dim": 0.5,
    },
    say("shell.soft"): {"handle": "#d9665f", "target": "#6f93d6", "arrow": "#f3f0e8", "dim": 0.85},
}


def chosen(ui: Mapping[str, Any]) -> dict[str, Any]:
    """The colours of the settings; what is missing or damaged is classic."""
    kept = ui.get(ENTRY)
    found = dict(THEMES[say("shell.classic")])
    if isinstance(kept, Mapping):
        for name in _PARTS:
            value = kept.get(name)
            if isinstance(value, str) and _HEX.fullmatch(value):
                found[name] = value.lower()
        dim = kept.get("dim")
        if isinstance(dim, float) and LIGHT[0] <= dim <= LIGHT[1]:
            found["dim"] = dim
    return found


def theme_of(colours: Mapping[str, Any]) -> str:
    """The theme that these colours are, or "Custom"."""
    return next(
        (name for name, theme in THEMES.items() if theme == dict(colours)), say("common.custom")
    )


def style(ui: Mapping[str, Any]) -> Style:
    """The overlay's style with the colours of the settings."""
    colours = chosen(ui)
    return Style(
        handle=_rgb(colours["handle"]),
        target=_rgb(colours["target"]),
        arrow=_rgb(colours["arrow"]),
        dim=colours["dim"],
    )


def _rgb(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
