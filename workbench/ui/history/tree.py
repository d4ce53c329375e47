"""The history as a tree: which edits are shown, in which order, how deep, and its rows on the page.

An edit hangs under the edit whose result it took as its picture. Where that one is filtered out or
in the bin, it hangs under the nearest one that is shown. Edits that began with the same picture are
a family; the family in which something happened last comes first. No Streamlit here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import streamlit as st

from workbench.core.config import method_label
from workbench.core.errors import WorkbenchError
from workbench.core.record import EditRecord, JobState, left_of
from workbench.core.request import ImageAsset
from workbench.storage.archive.read import Imported, import_zip
from workbench.storage.archive.write import export_zip
from workbench.storage.history import Store
from workbench.storage.history.folder import Notes
from workbench.ui.compare.facts import FEWEST, MOST, choose
from workbench.ui.shell import shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import count, inert, plain, say, seconds, when
from workbench.ui.shell.shell import guard


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Filter of the history; empty fields let everything through."""

    words: str = ""
    favourites: bool = False
    picture: str = ""  # id of the picture with which a family began
    status: frozenset[JobState] = frozenset()
    binned: bool = False

    @property
    def narrows(self) -> bool:
        """True if anything but the bin's switch is set."""
        return bool(self.words.strip() or self.favourites or self.picture or self.status)


@dataclass(frozen=True, slots=True)
class Row:
    """One shown edit. `guides`: for each level above it, True if its line continues below."""

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
    """Name of an edit: its title, or how it was made."""
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


MOST_MB = 2000  # of an uploaded zip
_SAID = "history_import_said"


def zip_maker(backend: Backend, ids: Sequence[str] | None, with_lora: bool) -> Callable[[], bytes]:
    """Callable that makes the zip of some edits (None: of all outside the bin), called at the click."""

    def lora_of(record: EditRecord) -> bytes | None:
        return _lora(backend, record)

    def make() -> bytes:
        return export_zip(backend.store, ids, lora_of=lora_of if with_lora else None)

    return make


def _lora(backend: Backend, record: EditRecord) -> bytes | None:
    """The LoRA of an edit: from the cache, or as it was imported; None where it is gone."""
    try:
        found = backend.app.lora_of(record.request)
        came = backend.store.notes(record.id).lora
        return backend.store.blob(came) if found is None and came else found
    except WorkbenchError:
        return None


def download(
    backend: Backend,
    label: str,
    ids: Sequence[str] | None,
    *,
    name: str,
    key: str,
    with_lora: bool = False,
    disabled: bool = False,
    help: str | None = None,
) -> None:
    """A button that makes a zip and hands it over."""
    words = re.sub(r"[^\w]+", "-", name).strip("-").lower() or "history"
    st.download_button(
        label,
        data=zip_maker(backend, ids, with_lora),
        file_name=f"{words}.zip",
        mime="application/zip",
        key=key,
        on_click="ignore",
        icon=":material/download:",
        disabled=disabled,
        help=help,
    )


def menu(backend: Backend, ids: Sequence[str], *, name: str, key: str, quiet: bool = False) -> None:
    """A small menu that downloads some edits as one zip, with or without their LoRAs."""
    kind: Literal["tertiary", "secondary"] = "tertiary" if quiet else "secondary"
    with st.popover(
        say("history.download"), icon=":material/download:", type=kind, key=f"menu_{key}"
    ):
        lora = lora_switch(f"lora_{key}")
        download(
            backend,
            say("history.edits_zip", edits=count(len(ids), "edit")),
            ids,
            name=name,
            key=key,
            with_lora=lora,
        )


def lora_switch(key: str) -> bool:
    """True if the trained LoRAs go along."""
    return bool(
        st.toggle(
            say("history.include_loras"),
            key=key,
            help=say("history.include_loras_help"),
        )
    )


def importer(backend: Backend) -> None:
    """Take a zip in; what came of it stays on the page until the next one."""
    nonce = int(st.session_state.get("history_import_nonce", 0))
    file = st.file_uploader(
        say("history.a_zip_exported_by_the"),
        type=["zip"],
        key=f"history_import_{nonce}",
        max_upload_size=MOST_MB,
        help=say("history.a_zip_exported_by_the_help"),
    )
    if file is not None:
        st.session_state["history_import_nonce"] = nonce + 1
        st.session_state[_SAID] = None
        with guard(), st.spinner(say("history.checking_files")):
            try:
                done = import_zip(backend.store, file.getvalue(), name=file.name)
                st.session_state[_SAID] = (True, words(done))
            except WorkbenchError as exc:
                st.session_state[_SAID] = (False, str(exc))
            # rerun in either case: a file dropped on this uploader, whose key is used up, would be lost
            st.rerun()
    good, said = st.session_state.get(_SAID) or (True, "")
    if said:
        (st.success if good else st.error)(inert(said))


def words(done: Imported) -> str:
    """Result of an import, in sentences."""
    said = [f"{count(len(done.added), 'edit')} added."]
    if done.known:
        said.append(
            say("history.edits_already_in_the_history", edits=count(len(done.known), "edit"))
        )
    if done.differing:
        said.append(
            say("history.edits_already_in_the_history_2", edits=count(len(done.differing), "edit"))
        )
    return " ".join(said)


_TICKED = "history_ticked"


def ticked() -> list[str]:
    """Ids of the ticked edits in the order of ticking; they stay over pages and filters."""
    found: list[str] = st.session_state.setdefault(_TICKED, [])
    return found


def tick(name: str) -> None:
    """Keep what the checkbox of an edit was changed to."""
    if st.session_state.get(f"ticked_{name}"):
        ticked().append(name)
    else:
        st.session_state[_TICKED] = [n for n in ticked() if n != name]


def tick_none() -> None:
    """Forget all ticks."""
    for name in ticked():
        st.session_state.pop(f"ticked_{name}", None)
    st.session_state[_TICKED] = []


def bar(backend: Backend, forest: Forest, wanted: Filter) -> None:
    """Actions on the selected edits."""
    names = [n for n in ticked() if n in forest.records and (n in forest.binned) == wanted.binned]
    if not names:
        return
    with st.container(key="card_ticked", horizontal=True, vertical_alignment="center"):
        st.markdown(say("history.edits_selected", edits=count(len(names), "edit")))
        st.space("stretch")
        if wanted.binned:
            st.button(
                say("history.restore"),
                key="restore_ticked",
                icon=":material/restore_from_trash:",
                on_click=_move,
                args=(backend, names, False),
            )
        else:
            _compare(forest, names)
            menu(backend, names, name="history-selection", key="zip_ticked")
            st.button(
                say("history.delete"),
                key="delete_ticked",
                icon=":material/delete:",
                help=say("history.delete_help_2"),
                on_click=_move,
                args=(backend, names, True),
            )
        st.button(
            say("common.clear_selection"), key="tick_none", type="tertiary", on_click=tick_none
        )


def _compare(forest: Forest, names: list[str]) -> None:
    with_picture = [n for n in names if forest.records[n].result is not None]
    possible = FEWEST <= len(with_picture) <= MOST
    if st.button(
        say("common.compare"),
        key="compare_ticked",
        icon=":material/compare:",
        type="primary",
        disabled=not possible,
        help=None
        if possible
        else say("history.select_fewest_to_most_edits", fewest=FEWEST, most=MOST),
    ):
        choose(with_picture)
        query = {**shell.params(), "edits": ",".join(with_picture)}
        st.switch_page(shell.PAGES["compare"][0], query_params=query)


def _move(backend: Backend, names: list[str], to_bin: bool) -> None:
    with guard():
        move(backend, names, to_bin)
        tick_none()


def move(backend: Backend, names: list[str], to_bin: bool) -> None:
    """Put edits into the bin or take them out, and say so."""
    if to_bin:
        backend.store.bin(names)
        st.toast(
            say("history.edits_moved_to_the_bin", edits=count(len(names), "edit")),
            icon=":material/delete:",
        )
    else:
        backend.store.restore(names)
        st.toast(f"{count(len(names), 'edit')} restored.", icon=":material/restore_from_trash:")
