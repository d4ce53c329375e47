"""LoRA files: which one a picture uses, and what a file says about itself (read from its header)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

from workbench.core.config import LoraRef
from workbench.core.errors import BadInput, ModelError
from workbench.diffusion.registry.files import read_header
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


ENTRY = "workbench"  # the card in the file's metadata, as `lora_files` writes it


@dataclass(frozen=True, slots=True)
class Card:
    """Where a LoRA comes from; empty where the file does not say."""

    model: str = ""
    image: str = ""
    image_name: str = ""
    prompt: str = ""
    rank: int = 0
    steps: int = 0
    tensors: int = 0
    problem: str = ""

    def line(self) -> str:
        """The card in one line."""
        if self.problem:
            return self.problem
        parts = [self.image_name, f"for {self.model}" if self.model else ""]
        parts += [
            f"rank {self.rank}" if self.rank else "",
            f"{self.steps} steps" * bool(self.steps),
        ]
        return " · ".join(p for p in parts if p) or say("upload.no_information_in_the_file")

    def facts(self) -> dict[str, str]:
        """The card, name by name."""
        rows = {
            say("common.model"): self.model,
            say("common.picture"): self.image_name,
            say("common.prompt"): self.prompt,
            say("upload.rank"): str(self.rank or ""),
            say("common.steps"): str(self.steps or ""),
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
    said = _said(header.get("__metadata__"))
    names = [n for n in header if n != "__metadata__"]
    return Card(
        model=_text(said, "model_name") or _text(said, "model"),
        image=_text(said, "image"),
        image_name=_text(said, "image_name"),
        prompt=_text(said, "prompt"),
        rank=_count(said, "rank"),
        steps=_count(said, "steps"),
        tensors=len(names),
    )


def _said(metadata: Any) -> Mapping[str, Any]:
    """The card's fields; none where there is no card or a damaged one."""
    text = metadata.get(ENTRY) if isinstance(metadata, dict) else None
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    return value if isinstance(value, str) else ""


def _count(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
