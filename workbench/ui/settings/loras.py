"""LoRAs: the library by name, what was trained here, import with a look at where a file fits."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from workbench.core.errors import BadInput, Notice, WorkbenchError
from workbench.editing.lora_library import LoraEntry
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.options_form import facts_list
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import count, inert, size
from workbench.ui.shell.words import say
from workbench.ui.shell.workspace import Workspace
from workbench.ui.upload.loras import Card, card_of

MOST_MB = 500
_SAID = "lora_import_said"


def show(backend: Backend, space: Workspace | None) -> None:
    """The whole part."""
    st.caption(say("settings.a_lora_stores_what_a"))
    with st.container(key="halves_loras"):
        left, right = st.columns([3, 2], gap="large")
    with left:
        _library(backend)
        _trained(backend)
    with right, st.container(key="card_lora_import"):
        st.subheader(say("common.import"), anchor=False)
        _import(backend, space)


# --- the library --------------------------------------------------------------------------------------


def _library(backend: Backend) -> None:
    entries = backend.app.loras.entries()
    st.subheader(say("settings.saved_loras"), anchor=False)
    if not entries:
        st.caption(say("settings.none_yet_save_one_from"))
    for entry in entries:
        with guard(), st.container(key=f"card_lora_{_slug(entry.name)}"):
            _entry(backend, entry)


def _entry(backend: Backend, entry: LoraEntry) -> None:
    card = card_of(entry.path)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        _picture(backend, card)
        with st.container(gap=None):
            st.markdown(f"**{inert(entry.name)}** · {size(entry.bytes)}")
            st.caption(inert(card.line()))
        st.download_button(
            say("settings.export"),
            data=entry.path.read_bytes,
            file_name=entry.path.name,
            mime="application/octet-stream",
            key=f"lora_export_{entry.name}",
            on_click="ignore",
            icon=":material/download:",
            help=say("settings.export_help"),
        )
        with st.popover(say("common.more"), key=f"lora_more_{_slug(entry.name)}"):
            _entry_more(backend, entry, card)


def _entry_more(backend: Backend, entry: LoraEntry, card: Card) -> None:
    facts_list(card.facts())
    key = f"lora_rename_{entry.name}"
    st.text_input(say("settings.name"), value=entry.name, key=key, max_chars=64)
    st.button(
        say("settings.rename"), key=f"{key}_do", on_click=_rename, args=(backend, entry.name, key)
    )
    st.button(
        say("settings.remove"),
        key=f"lora_remove_{entry.name}",
        icon=":material/delete:",
        help=say("settings.remove_help"),
        on_click=_remove,
        args=(backend, entry.name),
    )


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _picture(backend: Backend, card: Card) -> None:
    if card.image and backend.store.has(card.image):
        with guard():
            st.image(backend.thumbnail(card.image, 128), width=56, alt="")


def _rename(backend: Backend, name: str, key: str) -> None:
    with guard():
        to = str(st.session_state[key]).strip()
        backend.app.loras.rename(name, to)
        st.toast(say("settings.renamed_to_to", to=inert(to)), icon=":material/check:")


def _remove(backend: Backend, name: str) -> None:
    with guard():
        backend.app.loras.remove(name)
        st.toast(say("settings.name_was_removed", name=inert(name)), icon=":material/delete:")


# --- what was trained here ----------------------------------------------------------------------------


def _trained(backend: Backend) -> None:
    """LoRAs of the cache: to be named, and so kept."""
    found = [e for e in backend.app.cache.entries() if e.kind == "lora"]
    if not found:
        return
    nothing_named = not backend.app.loras.entries()
    with st.expander(
        say("settings.trained_here_number", number=len(found)),
        icon=":material/school:",
        expanded=nothing_named,
    ):
        st.caption(say("settings.most_recently_used_first_enter"))
        for entry in found[:20]:
            with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
                key = f"lora_name_{entry.key}"
                st.text_input(
                    f"{inert(entry.label, 40) or say('common.picture')}, {size(entry.bytes)}",
                    key=key,
                    placeholder=say("settings.name"),
                    max_chars=64,
                    width=320,
                )
                st.button(
                    say("settings.save"),
                    key=f"lora_keep_{entry.key}",
                    on_click=_keep,
                    args=(backend, entry.key, key),
                )


def _keep(backend: Backend, cache_key: str, key: str) -> None:
    with guard():
        name = str(st.session_state.get(key) or "").strip()
        raw = backend.app.cache.get(cache_key)
        if raw is None:
            raise BadInput(say("settings.this_lora_is_no_longer"))
        if not name:
            raise BadInput(say("settings.enter_a_name_then_press"))
        backend.app.loras.put(name, raw)
        st.toast(say("settings.name_was_saved", name=inert(name)), icon=":material/check:")


# --- import -------------------------------------------------------------------------------------------


def _import(backend: Backend, space: Workspace | None) -> None:
    nonce = int(st.session_state.get("lora_import_nonce", 0))
    file = st.file_uploader(
        say("settings.a_safetensors_file"),
        type=["safetensors"],
        key=f"lora_import_{nonce}",
        max_upload_size=MOST_MB,
        help=say("settings.a_safetensors_file_help"),
    )
    models = [m.name for m in backend.models()]
    model = st.selectbox(
        say("settings.use_with"),
        models,
        index=models.index(backend.default_model()) if backend.default_model() in models else 0,
        key="lora_model",
        help=say("settings.use_with_help"),
    )
    name = st.text_input(
        say("settings.name"),
        value=Path(file.name).stem[:64] if file else "",
        key=f"lora_import_name_{nonce}_{file.file_id if file else ''}",  # a value counts once per key
    )
    if st.button(say("common.import"), key="lora_import_do", type="primary", disabled=file is None):
        assert file is not None
        with guard(), st.spinner(say("settings.reading_the_file")):
            said = take(backend, file.getvalue(), str(name).strip(), str(model), space)
            st.session_state["lora_import_nonce"] = nonce + 1
            st.session_state[_SAID] = said
            st.rerun()
    said = st.session_state.get(_SAID)
    if said:
        st.success(inert(said[0]))
        for warning in said[1:]:
            st.warning(inert(warning))


def take(
    backend: Backend, raw: bytes, name: str, model: str, space: Workspace | None
) -> list[Notice]:
    """Put a file into the library; first what was done, then what does not fit.

    Raises:
        BadInput: when it is no LoRA, or the name is taken or impossible.
    """
    from workbench.diffusion.lora_files import read

    if not name:
        raise BadInput(say("settings.enter_a_name_for_the"))
    file = read(raw, name)
    warnings = _misfits(backend, raw, name, model, space)
    backend.app.loras.put(name, raw)
    tensors = count(len(file.weights), "tensor")
    done = say(
        "settings.name_was_added_layout_tensors", name=name, layout=file.layout, tensors=tensors
    )
    return [Notice(done, code="imported"), *warnings]


def _misfits(
    backend: Backend, raw: bytes, name: str, model: str, space: Workspace | None
) -> list[Notice]:
    """Why a file does not fit a model, or the picture that is open; [] when it does."""
    from workbench.diffusion.lora_files import check, read

    try:
        unet = backend.app.runtime(model).unet
        file = read(raw, name, unet.config.layers_per_block)
        image = space.image.id if space is not None else ""
        mark = backend.app.model_ref(model).fingerprint
        return check(file, unet, name=name, model=mark, image=image)
    except WorkbenchError as exc:
        return [Notice(str(exc), code=exc.code)]
