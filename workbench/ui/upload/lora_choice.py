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
from workbench.ui.shell.workspace import Workspace

_OWN = "Trained here"
_NONE = "None"
MOST_WEIGHT = 2.0


def lora_choice(backend: Backend, space: Workspace) -> None:
    """The expander: the picture's LoRA, a style under it, and where files come from."""
    names = [e.name for e in backend.app.loras.entries()]
    if not names and space.lora_file is None and space.style is None:
        return
    with st.expander("Other LoRAs"):
        st.caption(
            "In place of the LoRA that is trained for this picture you may use a named one, and "
            "stack a style under either."
        )
        _one(
            backend, space, "lora_file", "The picture's LoRA", _OWN, names,
            "What the model knows of this picture. A named one saves the training if it was "
            "trained on this picture, or one much like it.",
        )  # fmt: skip
        _one(
            backend, space, "style", "Style", _NONE, names,
            "A LoRA for the way of painting, stacked under the picture's LoRA. The picture is then "
            "learnt and inverted anew with it.",
        )  # fmt: skip
        to_library("Import, export and name LoRAs")


def to_library(label: str) -> None:
    """A link to where LoRAs are named, exported and imported."""
    router.link("settings", label, icon=":material/settings:", part="LoRAs")


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
            "Weight", 0.0, MOST_WEIGHT, min(max(now.weight, 0.0), MOST_WEIGHT), 0.05,
            key=weight_key, on_change=weigh, help="How strongly it works: 1 as trained, 0 not at all.",
        )  # fmt: skip


def train_further(backend: Backend, space: Workspace, *, running: bool) -> None:
    """The button that goes on with a trained LoRA for as many steps as the options say."""
    steps = space.lora.steps
    pressed = st.button(
        "Train further",
        key="train_further",
        icon=":material/forward_media:",
        disabled=running or steps == 0,
        help=f"Goes on from the LoRA there is for another {steps} steps (training options), at its "
        "own rank. Take it where the reconstruction below lacks something.",
    )
    if pressed:
        with guard():
            job = backend.submit_further(space)
            space.set(train_job=job)
            space.add_job(job)
            router.remember("job", job)
            st.rerun(scope="app")


def in_use(backend: Backend, space: Workspace, *, running: bool) -> None:
    """What is said of a picture that is edited with a LoRA from a file."""
    ref = space.lora_file
    if ref is None:
        raise BadInput("No LoRA file is chosen.")
    st.success(f"Its edits use the LoRA “{inert(ref.name or 'without a name', 60)}”.")
    with st.container(horizontal=True, vertical_alignment="center"):
        if backend.reconstruction(space) is None:
            pressed = st.button(
                "See how well it knows the picture",
                key="check_lora",
                icon=":material/compare:",
                disabled=running,
                help="Inverts the picture with this LoRA and denoises it again.",
            )
            if pressed:
                job = backend.submit_train(space)
                space.set(train_job=job)
                space.add_job(job)
                router.remember("job", job)
                st.rerun(scope="app")
        train_further(backend, space, running=running)
        st.button(
            "Back to the one trained here",
            key="own_lora",
            icon=":material/undo:",
            on_click=lambda: space.set(lora_file=None),
        )
    router.link("drag", "Mask & points", icon=":material/arrow_forward:")
