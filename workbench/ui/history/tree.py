"""The history as a tree: which edits are shown, in which order, how deep, and how each is named.

An edit hangs under the edit whose result it took as its picture. Where that one is filtered out or
in the bin, it hangs under the nearest one that is shown. Edits that began with the same picture are
a family; the family in which something happened last comes first. No Streamlit here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from workbench.core.config import method_label
from workbench.core.record import EditRecord, JobState, left_of
from workbench.core.request import ImageAsset
from workbench.storage.history import Notes, Store
from workbench.ui.shell.text import (
    count,
    inert,
    plain,
    seconds,
    when,
)
from workbench.ui.shell.words import say


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What is to be shown; empty fields let everything through."""

    words: str = ""
    favourites: bool = False
    picture: str = ""  # id of the picture with which a family began
    status: frozenset[JobState] = frozenset()
    binned: bool = False

    @property
    def narrows(self) -> bool:
        """Whether anything but the bin's switch is set."""
        return bool(self.words.strip() or self.favourites or self.picture or self.status)


@dataclass(frozen=True, slots=True)
class Row:
    """One shown edit. `guides` says for each level above it whether a line goes on below."""

    record: EditRecord
    notes: Notes
    family: str
    parent: str | None
    depth: int
    guides: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Edits that began with one picture. `edits` counts those outside the bin."""

    image: ImageAsset
    edits: int


class Forest:
    """Every edit of a history at one moment, with its notes and its family."""

    def __init__(self, store: Store) -> None:
        """Read the history."""
        self.store = store
        self.records = {r.id: r for r in store.records(binned=None)}
        self.notes = store.all_notes()
        self.binned = {n for n in self.records if n in self.notes and self.notes[n].binned}
        self._first = {name: _first(name, self.records) for name in self.records}
        self.families = _families(self.records, self._first, self.binned)

    def rows(self, wanted: Filter) -> list[Row]:
        """The edits that a filter lets through, in the order in which they are shown."""
        shown = [r for r in self.records.values() if (r.id in self.binned) == wanted.binned]
        if wanted.words.strip():
            found = {r.id for r in self.store.search(wanted.words, binned=None)}
            shown = [r for r in shown if r.id in found]
        first, notes = self._first, self.notes
        shown = [r for r in shown if _fits(r, notes.get(r.id), first[r.id], wanted)]
        return list(_rows(shown, self.records, notes, first))

    def of_family(self, image: str) -> list[str]:
        """Ids of a family's edits outside the bin, newest first."""
        return [n for n in self.records if self._first[n] == image and n not in self.binned]


def _fits(record: EditRecord, notes: Notes | None, family: str, wanted: Filter) -> bool:
    return (
        (not wanted.favourites or bool(notes and notes.favourite))
        and (not wanted.picture or family == wanted.picture)
        and (not wanted.status or record.status in wanted.status)
    )


def _first(name: str, records: Mapping[str, EditRecord]) -> str:
    """The picture with which the chain of edits that leads to this one began."""
    seen = {name}
    record = records[name]
    while (parent := record.request.parent) in records and parent not in seen:
        assert parent is not None
        seen.add(parent)
        record = records[parent]
    return record.request.image.id


def _families(
    records: Mapping[str, EditRecord], first: Mapping[str, str], in_bin: set[str]
) -> dict[str, Family]:
    """Every family, the one with the newest edit first (`records` are newest first).

    A picture is called what it was called at first.
    """
    images = {r.request.image.id: r.request.image for r in records.values()}
    counts: dict[str, int] = {}
    for name in records:
        counts[first[name]] = counts.get(first[name], 0) + (name not in in_bin)
    return {image: Family(images[image], edits) for image, edits in counts.items()}


def _rows(
    shown: Sequence[EditRecord],
    records: Mapping[str, EditRecord],
    notes: Mapping[str, Notes],
    first: Mapping[str, str],
) -> Iterator[Row]:
    """Depth first, siblings newest first, with an own stack: a chain may be longer than Python's."""
    there = {r.id for r in shown}
    under: dict[str | None, list[EditRecord]] = defaultdict(list)
    parents: dict[str, str | None] = {}
    families: dict[str, list[EditRecord]] = {}  # the edits at the top, newest family first
    for record in shown:
        tops = families.setdefault(first[record.id], [])
        parents[record.id] = _nearest(record, records, there)
        (tops if parents[record.id] is None else under[parents[record.id]]).append(record)
    for family, tops in families.items():
        stack: list[tuple[EditRecord, tuple[bool, ...]]] = [(r, ()) for r in reversed(tops)]
        while stack:
            record, guides = stack.pop()
            yield Row(
                record,
                notes.get(record.id, Notes()),
                family,
                parents[record.id],
                len(guides),
                guides,
            )
            below = under[record.id]
            last = len(below) - 1
            stack += [(r, (*guides, n < last)) for n, r in reversed(list(enumerate(below)))]


def _nearest(record: EditRecord, records: Mapping[str, EditRecord], there: set[str]) -> str | None:
    seen = {record.id}
    parent = record.request.parent
    while parent is not None and parent in records and parent not in seen:
        if parent in there:
            return parent
        seen.add(parent)
        parent = records[parent].request.parent
    return None


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
