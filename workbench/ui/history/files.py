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
    with st.popover("Download", icon=":material/download:", type=kind, key=f"menu_{key}"):
        lora = lora_switch(f"lora_{key}")
        download(
            backend, f"{count(len(ids), 'edit')} as a zip", ids, name=name, key=key, with_lora=lora
        )


def lora_switch(key: str) -> bool:
    """Whether the trained LoRAs go along."""
    return bool(
        st.toggle(
            "With the LoRA",
            key=key,
            help="The trained LoRA goes along, so that the edit can be recomputed elsewhere "
            "without training again. It makes the file some megabytes larger.",
        )
    )


def importer(backend: Backend) -> None:
    """Take a zip in; what came of it stays on the page until the next one."""
    nonce = int(st.session_state.get("history_import_nonce", 0))
    file = st.file_uploader(
        "A zip that a workbench exported",
        type=["zip"],
        key=f"history_import_{nonce}",
        max_upload_size=MOST_MB,
        help="Everything in it is checked first. Nothing that you have is overwritten; a damaged "
        "or suspicious file is refused as a whole.",
    )
    if file is not None:
        st.session_state["history_import_nonce"] = nonce + 1
        st.session_state[_SAID] = None
        with guard(), st.spinner("Checking every file …"):
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
        said.append(f"{count(len(done.known), 'edit')} {_were(done.known)} here already.")
    if done.differing:
        said.append(
            f"{count(len(done.differing), 'edit')} {_were(done.differing)} here with another "
            "content; yours stayed as they are."
        )
    return " ".join(said)


def _were(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"
