"""The menu of the mask: grow, shrink, smooth, invert, clear, load from a file, colour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from workbench.canvas import selection
from workbench.canvas.drawing import Drawing
from workbench.ui.draw import area, projection
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.words import say
from workbench.ui.shell.workspace import Workspace


def mask_menu(
    backend: Backend,
    space: Workspace,
    drawing: Drawing,
    state: dict[str, Any],
    change: Callable[[Drawing], None],
    reload: Callable[[], None],
) -> None:
    """Everything that is done to the whole mask, and its colour.

    Args:
        backend: finds areas.
        space: the project.
        drawing: what is drawn now.
        state: the canvas's state in this session.
        change: makes another drawing the present one.
        reload: has the canvas load its shapes again, in another colour.
    """
    width, height = space.image.width, space.image.height

    def reshaped(how: Callable[[Any], Any]) -> Drawing:
        """The mask (or the proposal, where nothing is painted) in another shape."""
        mask = backend.areas.of(space, drawing).mask
        return area.painted_with(drawing, how(mask)) if mask.any() else drawing

    def attempt(make: Callable[[], Drawing]) -> None:
        with guard():
            change(make())

    def load(file: Any) -> None:
        if file is None:
            return
        state["mask_files"] = int(state.get("mask_files", 0)) + 1  # an empty uploader
        with guard():
            mask = area.mask_of(file.getvalue(), (width, height), file.name)
            change(area.painted_with(drawing, mask))

    step = max(1, round(0.006 * (width + height)))
    acts: list[tuple[str, str, Callable[[], Drawing]]] = [
        (
            say("draw.grow"),
            "open_in_full",
            lambda: reshaped(lambda m: selection.grow(m, step)),
        ),
        (
            say("draw.shrink"),
            "close_fullscreen",
            lambda: reshaped(lambda m: selection.grow(m, -step)),
        ),
        (
            say("draw.smooth"),
            "blur_on",
            lambda: reshaped(lambda m: selection.smooth(m, step)),
        ),
        (
            say("draw.invert"),
            "invert_colors",
            lambda: projection.complement(drawing, width, height),
        ),
        (
            say("draw.select_all"),
            "select_all",
            lambda: projection.whole(drawing, width, height),
        ),
        (say("draw.clear_mask"), "layers_clear", drawing.without_mask),
        (say("draw.delete_arrows"), "backspace", drawing.without_arrows),
    ]
    for label, icon, make in acts:
        st.button(
            label,
            key=f"pad_{icon}",
            icon=f":material/{icon}:",
            width="stretch",
            on_click=lambda make=make: attempt(make),
        )
    key = f"mask_file_{space.id}_{state.get('mask_files', 0)}"
    st.file_uploader(
        say("draw.load_mask"),
        type=["png", "jpg", "jpeg", "webp"],
        key=key,
        help=say("draw.load_mask_help"),
        on_change=lambda: load(st.session_state.get(key)),
    )
    colour_key = f"mask_colour_{space.id}"

    def recolour() -> None:
        space.set(mask_colour=st.session_state[colour_key])
        reload()

    names = ["Automatic", *projection.MASK_COLOURS]
    now = str(space.get("mask_colour", "Automatic"))
    st.selectbox(
        say("draw.colour"),
        names,
        index=names.index(now) if now in names else 0,
        key=colour_key,
        on_change=recolour,
        help=say("draw.colour_help"),
    )
