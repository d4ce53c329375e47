"""Which LoRA a picture's edits use: the one trained here, a named one, one trained further; and a style."""

from __future__ import annotations

import dataclasses

import streamlit as st

from workbench.core.config import LoraRef
from workbench.core.errors import BadInput
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import inert, plain
from workbench.ui.shell.words import say
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
    router.link("settings", label, icon=":material/settings:", part=say("common.loras"))


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
    router.remember("job", job)
    st.rerun(scope="app")


def train_further(backend: Backend, space: Workspace, *, running: bool) -> None:
    """The button that goes on with a trained LoRA for as many steps as the options say."""
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
    """What is said of a picture that is edited with a LoRA from a file."""
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
    router.link("drag", say("common.mask_points"), icon=":material/arrow_forward:")
