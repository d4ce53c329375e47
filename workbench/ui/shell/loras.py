"""LoRAs on the pages: the one a picture uses, the library, import, and the facts in a file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import streamlit as st

from workbench.core.config import LoraRef
from workbench.core.errors import BadInput, ModelError, Notice, WorkbenchError
from workbench.diffusion.registry.diagnose import CARD, LoraCard
from workbench.diffusion.registry.files import read_header
from workbench.editing.lora_library import LoraEntry
from workbench.ui.shell import shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import count, facts_list, inert, plain, say, size
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace

_OWN = say("upload.trained_here")
_NONE = say("common.none")
MOST_WEIGHT = 2.0


def lora_choice(backend: Backend, space: Workspace) -> None:
    """The expander: the picture's LoRA, a style under it, and where files come from."""
    names = [e.name for e in backend.app.loras.entries()]
    if not names and space.lora_file is None and space.style is None:
        return
    with st.expander(say("upload.other_loras")):
        st.caption(say("upload.use_a_saved_lora_instead"))
        _one(
            backend, space, "lora_file", say("upload.lora_for_this_picture"), _OWN, names,
            say("upload.a_saved_lora_skips_the"),
        )  # fmt: skip
        _one(
            backend, space, "style", say("upload.style_lora"), _NONE, names,
            say("upload.combined_with_the_lora_for"),
        )  # fmt: skip
        to_library(say("upload.manage_loras"))


def to_library(label: str) -> None:
    """A link to where LoRAs are named, exported and imported."""
    shell.link("settings", label, icon=":material/settings:", part=say("common.loras"))


def _one(
    backend: Backend,
    space: Workspace,
    field: str,
    label: str,
    nothing: str,
    names: list[str],
    help: str,
) -> None:
    """A choice among the named LoRAs, and its weight, kept in the record's `field`."""
    now: LoraRef | None = getattr(space, field)
    chosen = now.name if now else nothing
    options = [nothing, *(names if chosen in (nothing, *names) else [chosen, *names])]
    key = f"{field}_{space.id}_{now.id if now else ''}"

    def choose() -> None:
        name = st.session_state[key]
        if name == chosen:
            return
        with guard():
            ref = None if name == nothing else backend.app.loras.reference(name)
            space.set(**{field: dataclasses.asdict(ref) if ref else None})

    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        st.selectbox(
            label, options, index=options.index(chosen), key=key, on_change=choose, help=help,
            format_func=lambda name: plain(name, 60),
        )  # fmt: skip
    if now is None:
        return
    weight_key = f"{key}_weight"

    def weigh() -> None:
        with guard():
            ref = dataclasses.replace(now, weight=float(st.session_state[weight_key]))
            space.set(**{field: dataclasses.asdict(ref)})

    with right:
        st.slider(
            say("upload.strength"), 0.0, MOST_WEIGHT, min(max(now.weight, 0.0), MOST_WEIGHT), 0.05,
            key=weight_key, on_change=weigh, help=say("upload.strength_help"),
        )  # fmt: skip


def begin(space: Workspace, job: str) -> None:
    """Make a training that was queued the project's, and show it."""
    space.set(train_job=job)
    space.add_job(job)
    shell.remember("job", job)
    st.rerun(scope="app")


def train_further(backend: Backend, space: Workspace, *, running: bool) -> None:
    """The button that continues a trained LoRA for as many steps as the options say."""
    steps = space.lora.steps
    pressed = st.button(
        say("upload.train_longer"),
        key="train_further",
        icon=":material/forward_media:",
        disabled=running or steps == 0,
        help=say("upload.train_longer_help", steps=steps),
    )
    if pressed:
        with guard():
            begin(space, backend.submit_further(space))


def in_use(backend: Backend, space: Workspace, *, running: bool) -> None:
    """Caption for a picture that is edited with a LoRA from a file."""
    ref = space.lora_file
    if ref is None:
        raise BadInput(say("upload.no_lora_file_is_selected"))
    st.success(say("upload.edits_use_the_lora_name", name=inert(ref.name or "without a name", 60)))
    with st.container(horizontal=True, vertical_alignment="center"):
        if backend.reconstruction(space) is None:
            pressed = st.button(
                say("common.check_reconstruction"),
                key="check_lora",
                icon=":material/compare:",
                disabled=running,
                help=say("common.check_reconstruction_help"),
            )
            if pressed:
                begin(space, backend.submit_train(space))
        train_further(backend, space, running=running)
        st.button(
            say("upload.use_the_one_trained_here"),
            key="own_lora",
            icon=":material/undo:",
            on_click=lambda: space.set(lora_file=None),
        )
    shell.link("drag", say("common.mask_points"), icon=":material/arrow_forward:")


@dataclass(frozen=True, slots=True)
class Card:
    """Origin of a LoRA as the pages show it; empty where the file does not say."""

    origin: LoraCard = field(default_factory=LoraCard)
    tensors: int = 0
    problem: str = ""

    def line(self) -> str:
        """The card in one line."""
        if self.problem:
            return self.problem
        said = self.origin
        model = said.model_name or said.model
        parts = [said.image_name, f"for {model}" if model else ""]
        parts += [
            f"rank {said.rank}" if said.rank else "",
            f"{said.steps} steps" if said.steps else "",
        ]
        return " · ".join(p for p in parts if p) or say("upload.no_information_in_the_file")

    def facts(self) -> dict[str, str]:
        """The card, name by name."""
        said = self.origin
        rows = {
            say("common.model"): said.model_name or said.model,
            say("common.picture"): said.image_name,
            say("common.prompt"): said.prompt,
            say("upload.rank"): str(said.rank or ""),
            say("common.steps"): str(said.steps or ""),
            say("upload.tensors"): str(self.tensors or ""),
        }
        return {k: v for k, v in rows.items() if v}


def card_of(path: Path) -> Card:
    """The card of a LoRA file; `problem` says why it cannot be read."""
    try:
        stat = path.stat()
    except OSError as exc:
        return Card(problem=say("upload.could_not_be_read_strerror", strerror=exc.strerror))
    return _card(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _card(path: Path, _changed: int, _size: int) -> Card:
    try:
        header = read_header(path)
    except ModelError as exc:
        return Card(problem=str(exc))
    metadata = header.get("__metadata__")
    text = metadata.get(CARD) if isinstance(metadata, dict) else None
    card = LoraCard.from_text(text) if isinstance(text, str) else LoraCard()
    return Card(card, len(header) - ("__metadata__" in header))


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
    image = card.origin.image
    if image and backend.store.has(image):
        with guard():
            st.image(backend.thumbnail(image, 128), width=56, alt="")


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
        BadInput: when it is not a LoRA, or the name is taken or impossible.
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
