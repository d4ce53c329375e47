"""Words on the page: text made inert, numbers with units. No Streamlit here."""

from __future__ import annotations

import datetime
import re

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
