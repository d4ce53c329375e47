"""The history leaves and comes as zips: what is asked for, and what came of an import."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import streamlit as st

from workbench.core.errors import WorkbenchError
from workbench.core.record import EditRecord
from workbench.storage import archive
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
