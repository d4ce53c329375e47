"""Sources of a picture: a file, the clipboard, an example, earlier work."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Callable, Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from workbench.canvas.drawing import Drawing
from workbench.canvas.overlay import overlay
from workbench.core.record import JobState
from workbench.imaging.crop import Crop
from workbench.imaging.decode import Decoded
from workbench.imaging.opening import Stop
from workbench.ui import components
from workbench.ui.shell import figures, shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import count, inert, plain, say, when
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace
from workbench.ui.upload import generating

_EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MOST_RECENT = 9
_READING = "upload_reading"
_AT_ONCE = 1.0  # s within which nearly every file is open
_LOOK = 0.5  # s between two looks at one that is not
# in Settings.ui: one of the three below; True is the "always" of version 1
TRAIN_ON_UPLOAD = "train_on_upload"
WHEN_GPU, WHEN_OPENED, WHEN_RUN = "gpu", "always", "run"
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
    _steps()
    ways = (say("upload.open_a_picture"), say("upload.generate"))
    job = shell.current("job")
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


def _steps() -> None:
    """Introduction: three steps, and the first example before and after, in a loop."""
    found = examples()
    before, after = _loop() if found else ("", "")
    steps = "".join(
        f"<li>{escape(step)}</li>"
        for step in (say("upload.step_open"), say("upload.step_drag"), say("upload.step_run"))
    )
    pictures = (
        f'<div class="wb-loop"><img src="{before}" alt="{escape(say("upload.before_alt"))}">'
        f'<img src="{after}" alt="{escape(say("upload.after_alt"))}"></div>'
    )
    st.html(f'<div class="wb-promise"><ol>{steps}</ol>{pictures if found else ""}</div>')


@cache
def _loop() -> tuple[str, str]:
    """The first example with its arrows, and what became of it, as data URLs."""
    entry = examples()[0]
    before = figures.decode((_EXAMPLES / entry["file"]).read_bytes())
    pairs = Drawing.from_json(entry["drawing"]).pairs
    marked = figures.encode(overlay(before, None, pairs))
    return components.data_url(marked), components.data_url(_after(entry))


def _after(entry: Mapping[str, Any]) -> bytes:
    """The finished result of an example, WebP bytes."""
    return _EXAMPLES.joinpath(str(entry["after"])).read_bytes()


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
    if file is None:
        _give_up()
        return
    with guard():
        decoded = _read(backend, file)
        if decoded is None:
            return
        restore = _restore_or_edit() if decoded.edit is not None else False
        if restore is None:
            return
        opened = take(backend, decoded, restore=restore)
        st.session_state["upload_nonce"] = nonce + 1
        _give_up()
        enter(backend, opened)


class Reading:
    """An uploaded file that is opened beside the page, which stays usable and can give it up."""

    def __init__(self, of: str, read: Callable[[Stop], Decoded]) -> None:
        """Begin; `of` is the file's id."""
        self.of = of
        self.stop = Stop()
        self._found: Decoded | None = None
        self._error: Exception | None = None
        self._read = read
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._found = self._read(self.stop)
        except Exception as exc:  # shown by the page, which asks for the result
            self._error = exc

    def ended(self, wait: float = 0.0) -> bool:
        """True if it has ended, after at most `wait` seconds."""
        self._thread.join(wait)
        return not self._thread.is_alive()

    def result(self) -> Decoded:
        """The picture.

        Raises:
            BadInput, Cancelled: what went wrong.
        """
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found


def _give_up() -> None:
    """Nobody waits for the file any more that was being opened."""
    reading: Reading | None = st.session_state.pop(_READING, None)
    if reading is not None:
        reading.stop.set()


def _read(backend: Backend, file: Any) -> Decoded | None:
    """The picture in an uploaded file; None while it takes long, with Cancel on the page."""
    reading: Reading | None = st.session_state.get(_READING)
    if reading is None or reading.of != file.file_id:
        _give_up()
        raw, name = file.getvalue(), file.name
        reading = Reading(file.file_id, lambda stop: backend.decode(raw, name, stop))
        st.session_state[_READING] = reading
    at_work = reading
    if at_work.ended(_AT_ONCE):
        return at_work.result()

    def waiting() -> None:
        if at_work.ended():
            st.rerun(scope="app")
        with st.container(horizontal=True, vertical_alignment="center", key="opening_file"):
            st.markdown(say("upload.opening", name=inert(file.name, 40)))
            st.space("stretch")
            st.button(say("draw.cancel"), key="cancel_opening", on_click=at_work.stop.set)

    st.fragment(waiting, run_every=_LOOK)()
    return None


def _restore_or_edit() -> bool | None:
    """For a result of ours: whether to restore its edit, or to edit it as a picture; None: not chosen."""
    st.markdown(say("upload.this_picture_was_saved_by"))
    with st.container(horizontal=True):
        if st.button(say("common.edit_this_result"), key="upload_edit", type="primary"):
            return False
        if st.button(
            say("upload.restore_the_edit"),
            key="upload_restore",
            help=say("upload.restore_the_edit_help"),
        ):
            return True
    return None


def take(backend: Backend, decoded: Decoded, *, restore: bool = True) -> Workspace:
    """Make a project of a picture that was read; `restore`: a result of ours brings its edit along.

    Raises:
        BadInput: when the edit that it carries cannot be read.
    """
    restored = backend.restored(decoded) if restore else None
    if restored is not None:
        return restored
    asset = backend.put_image(decoded.rgb, decoded.name)
    alpha = backend.alpha_blob(decoded.alpha)
    asset = dataclasses.replace(asset, alpha=alpha) if alpha else asset
    title = plain(re.sub(r"\.\w{3,4}$", "", decoded.name), 60) or say("common.picture")
    space = Workspace.create(backend.store, asset, title=title)
    space.set(notices=list(decoded.notices), **backend.defaults(decoded.rgb))
    return space


def enter(backend: Backend, space: Workspace) -> NoReturn:
    """Make a project the one at hand, start its training where that is wished, and show the canvas."""
    shell.remember("project", space.id)
    shell.remember("job", train_if_wished(backend, space))
    shell.remember("edit", None)
    shell.go("drag")


def _examples(backend: Backend) -> None:
    found = examples()
    if not found:
        return
    st.subheader(say("upload.or_start_with_an_example"), anchor=False)
    columns = st.columns(min(4, len(found)), gap="small")
    for n, entry in enumerate(found):
        with columns[n % len(columns)], st.container(key=f"tile_example_{n}", gap="small"):
            raw = (_EXAMPLES / entry["file"]).read_bytes()
            st.html(
                f'<div class="wb-scrub"><img src="{components.data_url(raw)}" '
                f'alt="{escape(entry["prompt"])}"><img src="{components.data_url(_after(entry))}" '
                f'alt=""></div>'
            )
            if st.button(entry["title"], key=f"example_{n}", width="stretch", help=entry["hint"]):
                enter(backend, open_example(backend, entry))


def open_example(backend: Backend, entry: Mapping[str, Any]) -> Workspace:
    """The project of an example with its prompt, mask and arrows: the one there is, else a new one."""
    for project in backend.store.projects.recent():
        if project.settings.get("example_file") == entry["file"]:
            return Workspace(backend.store, project)
    rgb = figures.decode((_EXAMPLES / entry["file"]).read_bytes())
    space = Workspace.create(
        backend.store,
        backend.store.put_image(rgb, entry["title"]),
        title=entry["title"],
        prompt=entry["prompt"],
        drawing=entry["drawing"],
    )
    after = backend.store.put_image(figures.decode(_after(entry)), entry["title"])
    space.set(
        **backend.defaults(rgb),
        hint=entry["hint"],
        example=entry["drawing"],
        example_file=entry["file"],
        example_after=after.id,
    )
    return space


def _recent(backend: Backend) -> None:
    projects = backend.store.projects.recent()[:MOST_RECENT]
    if not projects:
        return
    st.subheader(say("upload.recent"), anchor=False)
    newest = _newest_results(backend)
    columns = st.columns(3, gap="small")
    for n, project in enumerate(projects):
        space = Workspace(backend.store, project)
        with columns[n % 3], st.container(key=f"tile_recent_{n}", gap="small"), guard():
            raw = backend.store.thumbnail(newest.get(project.image, project.image), 320)
            st.image(raw, width="stretch", alt=plain(space.title, 60))
            size = f"{space.image.width} × {space.image.height} px"
            if st.button(
                f"{inert(space.title, 24)}  \n:small[{when(project.updated)}]",
                key=f"recent_{project.id}",
                width="stretch",
                help=size,
            ):
                enter(backend, space)


def _newest_results(backend: Backend) -> dict[str, str]:
    """Picture -> the picture of its newest finished edit."""
    found: dict[str, str] = {}
    for record in backend.store.records():
        if record.result is not None and record.status is JobState.DONE:
            found.setdefault(record.request.image.id, record.result.image)
    return found


# --- training by itself -------------------------------------------------------------------------------


def train_if_wished(backend: Backend, space: Workspace) -> str | None:
    """Start training a picture that was just opened, where the settings say so; the job's id, or None.

    Not for a picture larger than the model's own size without a mask: only the part around the mask
    is trained. Not for one that is trained already, or that needs no training.
    """
    wanted = backend.app.settings.ui.get(TRAIN_ON_UPLOAD, WHEN_GPU)
    if wanted in (WHEN_RUN, False) or (wanted == WHEN_GPU and not backend.has_gpu()):
        return None
    facts = backend.model_facts(space)
    fits = max(space.image.width, space.image.height) <= facts.native or space.project.drawing
    if facts.problem or not fits or space.generation is not None or backend.is_trained(space):
        return None
    job = backend.submit_train(space)
    space.set(train_job=job)
    space.add_job(job)
    return job


def what_was_read(backend: Backend, space: Workspace) -> None:
    """The picture at hand and what is known about it."""
    image = space.image
    picture_and_size(backend, space)
    for notice in space.get("notices", ()):
        st.caption(f":material/info: {inert(str(notice))}")
    edits = len(backend.store.records(image=image.id))
    if edits:
        shell.link(
            "results",
            say("upload.edits_so_far", edits=count(edits, "edit")),
            icon=":material/history:",
        )


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
        waits = waits_for_part(space, facts.native)
        what = (
            say("upload.edited_part_waits", native=facts.native)
            if waits
            else words(piece, image.width, image.height)
        )
        st.caption(f"{image.width} × {image.height} px · {what}")
        if space.generation is None:
            with st.popover(say("upload.change"), key=f"working_{space.id}", type="tertiary"):
                _size_form(space, facts.native)


def waits_for_part(space: Workspace, native: int) -> bool:
    """Whether only a part of the picture will be edited, and nothing drawn says yet which one."""
    large = max(space.image.width, space.image.height) > (space.working_size or native)
    drawing = Drawing.from_json(space.project.drawing) if space.project.drawing else Drawing()
    return large and space.crop and not (drawing.pairs or drawing.has_mask)


def words(piece: Crop, width: int, height: int) -> str:
    """One line about how a picture of width x height px will be edited."""
    at = f"{piece.working[0]} × {piece.working[1]} px"
    if not piece.is_whole(width, height):
        part = say("upload.editing_width_height_px_around", width=piece.width, height=piece.height)
        return part if (piece.width, piece.height) == piece.working else f"{part} at {at}"
    return (
        say("upload.edited_at_full_size")
        if piece.working == (width, height)
        else say("upload.edited_at_at", at=at)
    )


DIM = 0.45  # how much of its light the part keeps that is not edited


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


def _size_form(space: Workspace, native: int) -> None:
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
