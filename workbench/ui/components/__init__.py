"""Small browser components of our own: JavaScript and CSS in the files beside this one.

Each Python function mounts one component (Streamlit components v2: one document, a shadow root, no
iframe, nothing fetched from elsewhere). Pictures travel as data URLs, already small.

    viewer      before/after slider, side by side with a common zoom, flicker
    board       thumbnails to choose from, in groups or as a table
    chart       lines over steps (loss, distance), drawn as SVG in the theme's colours
    room        how wide the column is and how tall the window is below it, in px
    pairs       the table of arrows: switch, numbers, delete, add
    paste       an image on the clipboard goes into the file uploader
    stage       arrows, pins, selection, polygons, live warp, mask marks and keys on the drawing canvas
    shown       lays a picture of a run over the drawing canvas
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__).parent
Mount = Callable[..., Any]


@cache
def _component(name: str, html: str, parts: tuple[str, ...] = ()) -> Mount:
    """Register one component once per process; its assets are read from the files beside this.

    `parts` are scripts that stand before the component's own in one module. The leading newline keeps
    Streamlit from taking a one-line text for a file name.
    """
    css = _HERE / f"{name}.css"
    scripts = [(_HERE / f"{n}.js").read_text(encoding="utf-8") for n in (*parts, name)]
    made: Mount = st.components.v2.component(
        f"workbench_{name}",
        html=html,
        js="\n" + "\n".join(scripts),
        css="\n" + css.read_text(encoding="utf-8") if css.exists() else None,
    )
    return made


def data_url(raw: bytes) -> str:
    """Encoded picture (PNG, JPEG, WebP, GIF) as a data URL."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((k for head, k in kinds.items() if raw.startswith(head)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def viewer(
    images: Sequence[tuple[str, bytes]],
    *,
    mode: str = "slider",
    key: str,
    max_height: int = 640,
    columns: int = 0,
    focus: Sequence[float] | None = None,
    stage: bool = False,
    hold: str = "",
) -> None:
    """Show pictures against each other.

    Args:
        images: (label, encoded bytes) each; labels are shown as plain text.
        mode: "slider" (the first two, with a divider), "side" (all, one zoom), "flicker", "hold"
            (the last, and the first while a button or key is held), or "single" (the first, without
            tools, replaced in place when it changes).
        key: unique key of the element.
        max_height: limit of the picture's height on the page, CSS px.
        columns: most panes in a row with "side" (0: as many as there is room for).
        focus: the part [x0, y0, x1, y1] (shares of the picture, 0..1) to begin at: the divider stands
            in it, and a small one is shown close.
        hold: what the button of "hold" says.
        stage: every mode takes the room that one whole picture takes.
    """
    data = {
        "columns": columns,
        "focus": list(focus) if focus is not None else None,
        "stage": stage,
        "hold": hold,
        "images": [{"label": label, "src": data_url(raw)} for label, raw in images],
        "mode": mode,
        "maxHeight": max_height,
    }
    _component("viewer", '<div class="wb-viewer"></div>')(data=data, key=key)


def board(
    data: Mapping[str, Any],
    chosen: Sequence[str],
    *,
    most: int,
    key: str,
    on_change: Callable[[], None],
) -> Any:
    """Show thumbnails to choose from.

    Args:
        data: `groups`, a list of {title, cells}, or `table`, {columns, rows, corner} with rows of
            {label, cells}. A cell has id, src (data URL), title, note and state: only one that is
            "done" can be chosen; the others show their note and `reason`. `shape`: width / height
            of all cells.
        chosen: ids that are chosen, in their order.
        most: how many can be chosen.
        key: unique key of the element.
        on_change: called after a click; the result's `chosen` lists the ids.
    """
    return _component("compare", '<div class="wb-board"></div>')(
        key=key, data={**data, "chosen": list(chosen), "most": most}, on_chosen_change=on_change
    )


def chart(
    series: Mapping[str, Sequence[tuple[int, float]]],
    *,
    key: str,
    label: str,
    y_label: str = "",
    total: int = 0,
    goal: float | None = None,
    height: int = 180,
) -> None:
    """Draw lines over steps.

    Args:
        series: name -> (step, value) in the order of steps; the names are shown as plain text.
        key: unique key of the element.
        label: what the picture shows, for screen readers.
        y_label: unit of the vertical axis.
        total: steps to leave room for (0: as many as there are).
        goal: a dashed level, e.g. the distance at which a handle has arrived.
        height: CSS px.
    """
    data = {
        "series": [{"name": n, "points": [[s, float(v)] for s, v in p]} for n, p in series.items()],
        "label": label,
        "yLabel": y_label,
        "total": total,
        "goal": goal,
        "height": height,
    }
    _component("chart", '<div class="wb-chart"></div>')(data=data, key=key)


def room(*, key: str, default: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Width of the place where it stands and height of the window below it; `default` until known.

    Both in CSS px, rounded down to 16.
    """
    known = {"w": default[0], "h": default[1]}
    got = _component("room", '<div class="wb-room"></div>')(
        key=key, default={"size": known}, on_size_change=lambda: None
    )
    size = got.get("size") or known
    return int(size["w"]), int(size["h"])


def paste(target: str, *, key: str) -> None:
    """Put an image pasted anywhere on the page into the file uploader whose key is `target`."""
    _component("paste", '<div class="wb-paste" hidden></div>')(key=key, data={"target": target})


def pairs(
    arrows: Sequence[tuple[Sequence[Any], bool]],
    *,
    size: tuple[int, int],
    revision: int,
    words: Mapping[str, Any],
    key: str,
    on_change: Callable[[], None],
) -> Any:
    """The table of arrows.

    Args:
        arrows: ([handle x, handle y, target x, target y] in image px, switched on) each.
        size: the picture's width and height.
        revision: number of the drawing's state; it comes back with each change.
        words: `add` (the button that adds an arrow), `holds`, and `moves` (name of each way -> words).
        key: unique key of the element.
        on_change: called after a change; the result's `change` has `kind` (edit, switch, hold, remove,
            add), `n` (from 0), `revision`, and `pair`, `on`, or `grow` and `move`.
    """
    rows = [{"pair": list(pair), "on": on} for pair, on in arrows]
    width, height = size
    data = {"arrows": rows, "width": width, "height": height, "revision": revision, **words}
    return _component("pairs", '<div class="wb-pairs"></div>')(
        key=key, data=data, on_change_change=on_change
    )


def stage(
    data: Mapping[str, Any],
    *,
    key: str,
    on_sent: Callable[[], None],
    on_zoom: Callable[[], None],
) -> Any:
    """Everything on the drawing canvas beyond its own brush and rectangle (see `canvas.js`).

    Args:
        data: `target` (key prefix of the canvas), `tool` (arrow, pin, select, polygon, brush, eraser,
            rect, adjust), `brush` (diameter, CSS px), `paint` and `eraser` (colours `#rrggbb`),
            `generation` (number of the projection), `arrows` ({on, pair} each, image px), `size`
            (the picture's), `view` ([x0, y0, width, height] of the picture), `zoomed`, `masked`
            (something is painted), `area` (data URL of a proposed mask, or None), `held` ("x,y,grow,move"
            of a handle -> data URL of the weights of what it moves), `draft` ({src, box} of the server's
            preview, or None), `acked` (id -> number of the last log entry answered), `taken` ([id, number]
            of what was taken in last, or None), `colours`, `label`, `said`, `coach` and `words`.
        key: unique key of the element; its state `sent` has id, number, generation, arrows, log and
            brush.
        on_sent: called when `sent` changed.
        on_zoom: called on the wheel; the result's `zoom` has `by` (-1, 1) with `u`, `v` in 0..1, or 0
            with `dx`, `dy` in -1, 0, 1.
    """
    return _component(
        "canvas", '<div class="wb-assist" hidden></div>', ("canvas_warp", "canvas_marks")
    )(key=key, data=dict(data), on_sent_change=on_sent, on_zoom_change=on_zoom)


def shown(kind: str = "", *, src: bytes = b"", label: str = "", of: str = "", key: str) -> None:
    """Lay a picture of a run over the drawing canvas of this page.

    Args:
        kind: "live" while it runs, "result" afterwards, "" for nothing.
        src: the encoded picture.
        label: what it is, in words.
        of: id of the job, so that a result that was left does not come back.
        key: unique key of the element.
    """
    data = {"kind": kind, "src": data_url(src) if kind else "", "label": label, "of": of}
    with st.container(key=f"quiet_{key}"):
        _component("shown", '<div class="wb-shown-source" hidden></div>')(key=key, data=data)
