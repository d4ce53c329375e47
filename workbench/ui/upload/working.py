"""At which size and on which part of the picture the model works: shown, explained, changed."""

from __future__ import annotations

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from workbench.imaging.crop import Crop
from workbench.ui.results import figures
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.text import plain
from workbench.ui.shell.words import say
from workbench.ui.shell.workspace import Workspace

DIM = 0.45  # how much of its light the part keeps that is not edited


def picture_and_size(backend: Backend, space: Workspace) -> None:
    """The picture with the part that is edited, what that means in words, and how to change it."""
    image = space.image
    facts = backend.model_facts(space)
    piece = backend.piece(space)
    whole = piece.is_whole(image.width, image.height)
    raw = backend.shown(image.id)
    if not whole:
        raw = figures.encode(lit(figures.decode(raw), piece, (image.width, image.height)))
    st.image(raw, width="stretch", alt=plain(space.title, 60))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(f"{image.width} × {image.height} px · {words(piece, image.width, image.height)}")
        if space.generation is None:
            with st.popover(say("upload.change"), key=f"working_{space.id}", type="tertiary"):
                _form(space, facts.native)


def words(piece: Crop, width: int, height: int) -> str:
    """What becomes of a picture of width x height px, in one line."""
    at = f"{piece.working[0]} × {piece.working[1]} px"
    if not piece.is_whole(width, height):
        part = say("upload.editing_width_height_px_around", width=piece.width, height=piece.height)
        return part if (piece.width, piece.height) == piece.working else f"{part} at {at}"
    return (
        say("upload.edited_at_full_size")
        if piece.working == (width, height)
        else say("upload.edited_at_at", at=at)
    )


def lit(rgb: NDArray[np.uint8], piece: Crop, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A shown picture [h,w,3] of a picture of `size` (W, H), darkened outside the edited part."""
    kx, ky = rgb.shape[1] / size[0], rgb.shape[0] / size[1]
    x0, x1 = round(piece.x0 * kx), max(round((piece.x0 + piece.width) * kx), 1)
    y0, y1 = round(piece.y0 * ky), max(round((piece.y0 + piece.height) * ky), 1)
    out: NDArray[np.uint8] = np.rint(rgb * DIM).astype(np.uint8)
    out[y0:y1, x0:x1] = 255
    edge = max(1, round(max(rgb.shape) / 400))
    inner = slice(y0 + edge, y1 - edge), slice(x0 + edge, x1 - edge)
    out[inner] = rgb[inner]
    return out


def _form(space: Workspace, native: int) -> None:
    key = f"working_size_{space.id}_{space.working_size}"

    def resize() -> None:
        size = int(st.session_state[key])
        space.set(working_size=0 if size == 0 else max(64, size))

    st.number_input(
        say("upload.working_size_px"),
        min_value=0,
        max_value=4096,
        value=space.working_size,
        step=64,
        key=key,
        on_change=resize,
        help=say("upload.working_size_px_help", native=native),
    )
    crop_key = f"working_crop_{space.id}"
    st.toggle(
        say("upload.edit_only_the_part_around"),
        value=space.crop,
        key=crop_key,
        on_change=lambda: space.set(crop=bool(st.session_state[crop_key])),
        help=say("upload.edit_only_the_part_around_help"),
    )
