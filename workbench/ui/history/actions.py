"""What one does with edits of the history: export, import, compare and delete the selected ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import streamlit as st

from workbench.core.errors import WorkbenchError
from workbench.core.record import EditRecord
from workbench.storage import archive
from workbench.ui.compare import page
from workbench.ui.compare.facts import FEWEST, MOST
from workbench.ui.history.tree import Filter, Forest
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import count, inert
from workbench.ui.shell.words import say

MOST_MB = 2000  # of an uploaded zip
_SAID = "history_import_said"


def zip_maker(backend: Backend, ids: Sequence[str] | None, with_lora: bool) -> Callable[[], bytes]:
    """What makes the zip of some edits (None: of all outside the bin), called at the click."""

    def lora_of(record: EditRecord) -> bytes | None:
        return _lora(backend, record)

    def make() -> bytes:
        return archive.export_zip(backend.store, ids, lora_of=lora_of if with_lora else None)

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
    """Whether the trained LoRAs go along."""
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
                done = archive.import_zip(backend.store, file.getvalue(), name=file.name)
                st.session_state[_SAID] = (True, words(done))
            except WorkbenchError as exc:
                st.session_state[_SAID] = (False, str(exc))
            # anew in either case: a file that is dropped on this uploader, whose key has had its turn,
            # would be lost without a word
            st.rerun()
    good, said = st.session_state.get(_SAID) or (True, "")
    if said:
        (st.success if good else st.error)(inert(said))


def words(done: archive.Imported) -> str:
    """What came of an import, as sentences."""
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
    """What can be done with the ticked edits."""
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
        page.choose(with_picture)
        query = {**router.params(), "edits": ",".join(with_picture)}
        st.switch_page(router.PAGES["compare"][0], query_params=query)


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
