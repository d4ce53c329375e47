"""Upload & train: choose a picture, say what it shows, let the model learn it by heart."""

from __future__ import annotations

import streamlit as st

from workbench.ui import upload
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import say
from workbench.ui.shell.shell import page
from workbench.ui.shell.workspace import Workspace
from workbench.ui.upload import intake


def body(backend: Backend, space: Workspace | None) -> None:
    if space is None:
        intake.choose(backend)
        return
    with st.container(key="halves_train"):
        left, right = st.columns([5, 6], gap="large")
    with left:
        intake.what_was_read(backend, space)
    with right:
        upload.prompt_and_lora(backend, space)
        upload.progress(backend, space)
    upload.reconstruction(backend, space)


page(
    say("common.upload_train"),
    say("pages.promise"),
    body,
    start=say("shell.product"),
)
