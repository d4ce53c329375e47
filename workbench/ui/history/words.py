"""How the history speaks of an edit: its name, how it ended, its place among the others. No Streamlit."""

from __future__ import annotations

from workbench.core.config import method_label
from workbench.core.record import EditRecord, JobState, left_of
from workbench.storage.history import Notes
from workbench.ui.history.tree import Row
from workbench.ui.shell.text import (
    count,
    inert,
    plain,
    seconds,
    when,
)
from workbench.ui.shell.words import say

INDENT, DEEPEST = 26, 7  # CSS px per level; deeper ones are not indented any further
SIGNS = {
    JobState.FAILED: (":material/error:", "red"),
    JobState.CANCELLED: (":material/do_not_disturb_on:", "gray"),
    JobState.INTERRUPTED: (":material/power_off:", "orange"),
}


def title_of(record: EditRecord, notes: Notes) -> str:
    """What an edit is called: its title, or how it was made."""
    if notes.title.strip():
        return plain(notes.title, 60)
    words = method_label(record.request.drag.method)
    return f"{words}, {count(len(record.request.pairs), 'arrow')}"


def line_of(row: Row) -> str:
    """When, how it ended, how far it got, as Markdown."""
    record = row.record
    parts = [when(record.finished)]
    if record.status is JobState.DONE and record.result is not None:
        parts.append(seconds(sum(record.result.seconds.values())))
        if record.result.distances:
            left = max(left_of(record.request.pairs, record.result), default=0.0)
            parts.append(say("history.left_px_short", left=left))
    if row.notes.note.strip():
        parts.append(f":material/sticky_note_2: {inert(row.notes.note, 40)}")
    words = f":gray[:small[{' · '.join(p for p in parts if p)}]]"
    if record.status is JobState.DONE:
        return words
    icon, colour = SIGNS.get(record.status, (":material/help:", "gray"))
    return f":{colour}-badge[{icon} {record.status.label}] {words}"


def branch_of(row: Row) -> str:
    """The lines that join an edit to the one whose result it began with."""
    guides = row.guides[-DEEPEST:]
    lines = [f'<i style="left:{n * INDENT + 12}px"></i>' for n, on in enumerate(guides[:-1]) if on]
    last = (len(guides) - 1) * INDENT + 12
    kind = "tee" if guides[-1] else "end"
    lines.append(f'<b class="{kind}" style="left:{last}px"></b>')
    return f'<div class="wb-branch" style="width:{len(guides) * INDENT}px">{"".join(lines)}</div>'
