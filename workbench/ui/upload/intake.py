"""Where a picture comes from: a file, the clipboard, an example, earlier work."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

from workbench.ui import components
from workbench.ui.results import figures
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import (
    count,
    inert,
    plain,
    when,
)
from workbench.ui.shell.words import say
from workbench.ui.shell.workspace import Workspace
from workbench.ui.upload import auto_train, generating, working

_EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MOST_RECENT = 9
TYPES = ["png", "jpg", "jpeg", "webp", "gif", "tif", "tiff", "bmp", "avif", "jp2", "heic", "heif"]


@cache
def examples() -> list[dict[str, Any]]:
    """The bundled scenes: file, title, prompt, and a hint what to drag."""
    listing = _EXAMPLES / "examples.json"
    if not listing.exists():
        return []
    found: list[dict[str, Any]] = json.loads(listing.read_text(encoding="utf-8"))
    return found


def choose(backend: Backend) -> None:
    """The first page while no picture is open."""
    ways = (say("upload.open_a_picture"), say("upload.generate"))
    job = router.current("job")
    making = bool(job) and backend.knows(str(job)) and backend.job(str(job)).kind == "generate"
    way = st.segmented_control(
        say("upload.source"),
        ways,
        default=ways[making],
        required=True,
        key="way",
        persist_state="session",
        label_visibility="collapsed",
    )
    if way == ways[1]:
        generating.choose(backend)
        return
    with st.container(key="halves_choose"):
        left, right = st.columns([2, 3], gap="large")
    with left:
        with st.container(key="card_upload"):
            st.subheader(say("upload.your_picture"), anchor=False)
            _upload(backend)
        _recent(backend)
    with right:
        _examples(backend)


def _upload(backend: Backend) -> None:
    nonce = st.session_state.get("upload_nonce", 0)
    key = f"upload_{nonce}"
    file = st.file_uploader(
        say("upload.drop_a_picture_here_choose"),
        type=TYPES,
        key=key,
        help=say("upload.drop_a_picture_here_choose_help"),
    )
    st.caption(say("upload.your_pictures_stay_on_this"))
    with st.container(key="quiet_paste"):
        components.paste(key, key="paste")
    if file is not None:
        with guard():
            opened = take(backend, file.getvalue(), file.name)
            st.session_state["upload_nonce"] = nonce + 1
            auto_train.train_if_wished(backend, opened)
            enter(opened)


def take(backend: Backend, raw: bytes, name: str) -> Workspace:
    """Read an uploaded file into a new project; a result of ours brings its edit along.

    Raises:
        BadInput: in one sentence, when it is no picture that can be worked on.
    """
    decoded = backend.decode(raw, name)
    restored = backend.restored(decoded)
    if restored is not None:
        return restored
    asset = backend.store.put_image(decoded.rgb, decoded.name)
    alpha = backend.alpha_blob(decoded.alpha)
    asset = dataclasses.replace(asset, alpha=alpha) if alpha else asset
    space = Workspace.create(
        backend.store, asset, title=plain(Path(name).stem, 60) or say("common.picture")
    )
    space.set(notices=list(decoded.notices), **backend.defaults())
    return space


def enter(space: Workspace) -> None:
    """Make a project the one at hand and show the page anew."""
    router.remember("project", space.id)
    router.remember("job", None)
    router.remember("edit", None)
    st.rerun()


def _examples(backend: Backend) -> None:
    found = examples()
    if not found:
        return
    st.subheader(say("upload.or_start_with_an_example"), anchor=False)
    columns = st.columns(min(4, len(found)), gap="small")
    for n, entry in enumerate(found):
        with columns[n % len(columns)], st.container(key=f"tile_example_{n}", gap="small"):
            raw = (_EXAMPLES / entry["file"]).read_bytes()
            st.image(raw, width="stretch", alt=entry["prompt"])
            if st.button(entry["title"], key=f"example_{n}", width="stretch", help=entry["hint"]):
                asset = backend.store.put_image(figures.decode(raw), entry["title"])
                space = Workspace.create(
                    backend.store, asset, title=entry["title"], prompt=entry["prompt"]
                )
                space.set(**backend.defaults(), hint=entry["hint"], example=entry["drawing"])
                auto_train.train_if_wished(backend, space)
                enter(space)


def _recent(backend: Backend) -> None:
    projects = backend.store.projects.recent()[:MOST_RECENT]
    if not projects:
        return
    st.subheader(say("upload.recent"), anchor=False)
    columns = st.columns(3, gap="small")
    for n, project in enumerate(projects):
        space = Workspace(backend.store, project)
        with columns[n % 3], st.container(key=f"tile_recent_{n}", gap="small"), guard():
            raw = backend.store.thumbnail(project.image, 320)
            st.image(raw, width="stretch", alt=plain(space.title, 60))
            label = inert(space.title, 24)
            size = f"{space.image.width} × {space.image.height} px"
            tip = f"{when(project.updated)}, {size}"
            if st.button(label, key=f"recent_{project.id}", width="stretch", help=tip):
                enter(space)


def what_was_read(backend: Backend, space: Workspace) -> None:
    """The picture at hand and what is known about it."""
    image = space.image
    working.picture_and_size(backend, space)
    for notice in space.get("notices", ()):
        st.caption(f":material/info: {inert(str(notice))}")
    edits = len(backend.store.records(image=image.id))
    if edits:
        router.link(
            "results",
            say("upload.edits_so_far", edits=count(edits, "edit")),
            icon=":material/history:",
        )
