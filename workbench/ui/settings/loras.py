"""LoRAs: the library by name, what was trained here, import with a look at where a file fits."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from workbench.core.errors import BadInput, WorkbenchError
from workbench.editing.lora_library import LoraEntry
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.facts import facts_list
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import count, inert, size
from workbench.ui.shell.workspace import Workspace
from workbench.ui.upload.lora_cards import Card, card_of

MOST_MB = 500
_SAID = "lora_import_said"


def show(backend: Backend, space: Workspace | None) -> None:
    """The whole part."""
    st.caption(
        "A LoRA is what a model learnt of a picture (or a style). Every training is kept in the "
        "cache until the room is needed; what has a name here is kept until you remove it."
    )
    with st.container(key="halves_loras"):
        left, right = st.columns([3, 2], gap="large")
    with left:
        _library(backend)
        _trained(backend)
    with right, st.container(key="card_lora_import"):
        st.subheader("Import", anchor=False)
        _import(backend, space)


# --- the library --------------------------------------------------------------------------------------


def _library(backend: Backend) -> None:
    entries = backend.app.loras.entries()
    st.subheader("Named", anchor=False)
    if not entries:
        st.caption("None yet. Name one that was trained here, or import a file.")
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
            "Export",
            data=entry.path.read_bytes,
            file_name=entry.path.name,
            mime="application/octet-stream",
            key=f"lora_export_{entry.name}",
            on_click="ignore",
            icon=":material/download:",
            help="A standard diffusers/PEFT file, or as it was imported.",
        )
        with st.popover("More", key=f"lora_more_{_slug(entry.name)}"):
            _entry_more(backend, entry, card)


def _entry_more(backend: Backend, entry: LoraEntry, card: Card) -> None:
    facts_list(card.facts())
    key = f"lora_rename_{entry.name}"
    st.text_input("Name", value=entry.name, key=key, max_chars=64)
    st.button("Rename", key=f"{key}_do", on_click=_rename, args=(backend, entry.name, key))
    st.button(
        "Remove",
        key=f"lora_remove_{entry.name}",
        icon=":material/delete:",
        help="Edits that used it keep their own copy.",
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
        st.toast(f"It is called {inert(to)} now.", icon=":material/check:")


def _remove(backend: Backend, name: str) -> None:
    with guard():
        backend.app.loras.remove(name)
        st.toast(f"{inert(name)} was removed.", icon=":material/delete:")


# --- what was trained here ----------------------------------------------------------------------------


def _trained(backend: Backend) -> None:
    """LoRAs of the cache: to be named, and so kept."""
    found = [e for e in backend.app.cache.entries() if e.kind == "lora"]
    if not found:
        return
    nothing_named = not backend.app.loras.entries()
    with st.expander(
        f"Trained here ({len(found)})", icon=":material/school:", expanded=nothing_named
    ):
        st.caption("The last used first. Give one a name to keep it.")
        for entry in found[:20]:
            with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
                key = f"lora_name_{entry.key}"
                st.text_input(
                    f"{inert(entry.label, 40) or 'Picture'}, {size(entry.bytes)}",
                    key=key,
                    placeholder="A name",
                    max_chars=64,
                    width=320,
                )
                st.button(
                    "Keep",
                    key=f"lora_keep_{entry.key}",
                    on_click=_keep,
                    args=(backend, entry.key, key),
                )


def _keep(backend: Backend, cache_key: str, key: str) -> None:
    with guard():
        name = str(st.session_state.get(key) or "").strip()
        raw = backend.app.cache.get(cache_key)
        if raw is None:
            raise BadInput("This LoRA is no longer in the cache; train it again.")
        if not name:
            raise BadInput("Write a name first, then press Keep.")
        backend.app.loras.put(name, raw)
        st.toast(f"{inert(name)} is kept.", icon=":material/check:")


# --- import -------------------------------------------------------------------------------------------


def _import(backend: Backend, space: Workspace | None) -> None:
    nonce = int(st.session_state.get("lora_import_nonce", 0))
    file = st.file_uploader(
        "A .safetensors file",
        type=["safetensors"],
        key=f"lora_import_{nonce}",
        max_upload_size=MOST_MB,
        help="diffusers, PEFT, kohya, DragDiffusion's and GoodDrag's own. Pickles (.pt, .bin, "
        ".ckpt) are not opened: convert them first.",
    )
    models = [m.name for m in backend.models()]
    model = st.selectbox(
        "To be used with",
        models,
        index=models.index(backend.default_model()) if backend.default_model() in models else 0,
        key="lora_model",
        help="Whether the file fits this model is looked at; a file for another one can be kept, "
        "too.",
    )
    name = st.text_input(
        "Name", value=Path(file.name).stem[:64] if file else "", key=f"lora_import_name_{nonce}"
    )
    if st.button("Import", key="lora_import_do", type="primary", disabled=file is None):
        assert file is not None
        with guard(), st.spinner("Looking at the file …"):
            said = take(backend, file.getvalue(), str(name).strip(), str(model), space)
            st.session_state["lora_import_nonce"] = nonce + 1
            st.session_state[_SAID] = said
            st.rerun()
    said = st.session_state.get(_SAID)
    if said:
        st.success(inert(said[0]))
        for warning in said[1:]:
            st.warning(inert(warning))


def take(backend: Backend, raw: bytes, name: str, model: str, space: Workspace | None) -> list[str]:
    """Put a file into the library; first what was done, then what does not fit.

    Raises:
        BadInput: when it is no LoRA, or the name is taken or impossible.
    """
    from workbench.diffusion.lora_files import read

    if not name:
        raise BadInput("A LoRA needs a name.")
    file = read(raw, name)
    warnings = _misfits(backend, raw, name, model, space)
    backend.app.loras.put(name, raw)
    number = len(file.weights) + len(file.left_out)
    return [f"{name} is in the library: {file.layout}, {count(number, 'tensor')}.", *warnings]


def _misfits(
    backend: Backend, raw: bytes, name: str, model: str, space: Workspace | None
) -> list[str]:
    """Why a file does not fit a model, or the picture that is open; [] when it does."""
    from workbench.diffusion.lora_files import check, read

    try:
        unet = backend.app.runtime(model).unet
        modules = [n for n, _ in unet.named_modules()]
        file = read(raw, name, modules, unet.config.layers_per_block)
        image = space.image.id if space is not None else ""
        mark = backend.app.model_ref(model).fingerprint
        return check(file, unet, name=name, model=mark, image=image)
    except WorkbenchError as exc:
        return [str(exc)]
