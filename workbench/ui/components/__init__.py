"""Small browser components of our own: JavaScript and CSS in the files beside this one.

Each Python function mounts one component (Streamlit components v2: one document, a shadow root, no
iframe, nothing fetched from elsewhere). Pictures travel as data URLs, already small.

    viewer      before/after slider, side by side with a common zoom, flicker
    board       thumbnails to choose from, in groups or as a table
    chart       lines over steps (loss, distance), drawn as SVG in the theme's colours
    width       how wide the column is, in px
    pairs       the table of arrows: switch, numbers, delete
    paste       an image on the clipboard goes into the file uploader
    assist      what the drawing canvas lacks: touch, brush ring, live arrow head, true eraser, `[` `]`
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
def _component(name: str, html: str) -> Mount:
    """Register one component once per process; its assets are read from the files beside this.

    The leading newline keeps Streamlit from taking a one-line text for a file name.
    """
    css = _HERE / f"{name}.css"
    made: Mount = st.components.v2.component(
        f"workbench_{name}",
        html=html,
        js="\n" + (_HERE / f"{name}.js").read_text(encoding="utf-8"),
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
    first: int = 0,
    second: int = 1,
    max_height: int = 640,
    columns: int = 0,
    focus: Sequence[float] | None = None,
    stage: bool = False,
    hold: str = "",
) -> None:
    """Show pictures against each other.

    Args:
        images: (label, encoded bytes) each; labels are shown as plain text.
        mode: "slider" (two of them, with a divider), "side" (all, one zoom), "flicker", "hold"
            (the last, and the first while a button or key is held), or "single" (the first, without
            tools, replaced in place when it changes).
        key: unique key of the element.
        first: index of the picture on the left of the divider.
        second: index of the picture on its right.
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
        "first": first,
        "second": second,
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
    x_label: str = "step",
    y_label: str = "",
    total: int = 0,
    goal: float | None = None,
    height: int = 180,
    log: bool = False,
) -> None:
    """Draw lines over steps.

    Args:
        series: name -> (step, value) in the order of steps; the names are shown as plain text.
        key: unique key of the element.
        label: what the picture shows, for screen readers.
        x_label: unit of the horizontal axis.
        y_label: unit of the vertical axis.
        total: steps to leave room for (0: as many as there are).
        goal: a dashed level, e.g. the distance at which a handle has arrived.
        height: CSS px.
        log: logarithmic vertical axis.
    """
    data = {
        "series": [{"name": n, "points": [[s, float(v)] for s, v in p]} for n, p in series.items()],
        "label": label,
        "xLabel": x_label,
        "yLabel": y_label,
        "total": total,
        "goal": goal,
        "height": height,
        "log": log,
    }
    _component("chart", '<div class="wb-chart"></div>')(data=data, key=key)


def width(*, key: str, default: int = 0) -> int:
    """Width of the place where it stands, in CSS px rounded down to 16; `default` until known."""
    got = _component("width", '<div class="wb-width"></div>')(
        key=key, default={"w": default}, on_w_change=lambda: None
    )
    return int(got.get("w") or default)


def paste(target: str, *, key: str) -> None:
    """Put an image pasted anywhere on the page into the file uploader whose key is `target`."""
    _component("paste", '<div class="wb-paste" hidden></div>')(key=key, data={"target": target})


def pairs(
    arrows: Sequence[tuple[Sequence[float], bool]],
    *,
    size: tuple[int, int],
    revision: int,
    key: str,
    on_change: Callable[[], None],
) -> Any:
    """The table of arrows.

    Args:
        arrows: ([handle x, handle y, target x, target y] in image px, switched on) each.
        size: the picture's width and height.
        revision: number of the drawing's state; it comes back with each change.
        key: unique key of the element.
        on_change: called after a change; the result's `change` has `kind` (edit, switch, remove),
            `n` (from 0), `revision`, and `pair` or `on`.
    """
    rows = [{"pair": [float(v) for v in pair], "on": on} for pair, on in arrows]
    width, height = size
    data = {"arrows": rows, "width": width, "height": height, "revision": revision}
    return _component("pairs", '<div class="wb-pairs"></div>')(
        key=key, data=data, on_change_change=on_change
    )


def assist(
    target: str,
    *,
    key: str,
    tool: str,
    brush: int,
    eraser: str,
    revision: int,
    zoomed: bool,
    on_brush: Callable[[], None],
    on_zoom: Callable[[], None],
) -> Any:
    """Complete the drawing canvas whose key starts with `target`.

    Args:
        target: the key prefix of the canvas.
        key: unique key of the element.
        tool: arrow, brush, eraser, rect, polygon or adjust.
        brush: brush diameter in CSS px, for the ring around the pointer.
        eraser: the colour `#rrggbb` in which the canvas draws erasing strokes.
        revision: raised with every change of the drawing, so that sketches know they are outdated.
        zoomed: the canvas shows a part of the picture, so that the wheel moves it.
        on_brush: called when `[` or `]` was pressed; the result's `brush` is -1 or 1.
        on_zoom: called on the wheel; the result's `zoom` has `by` (-1, 1) with `u`, `v` in 0..1, or 0 with
            `dx`, `dy` in -1, 0, 1.
    """
    return _component("assist", '<div class="wb-assist" hidden></div>')(
        key=key,
        data={
            "target": target,
            "tool": tool,
            "brush": brush,
            "eraser": eraser,
            "revision": revision,
            "zoomed": zoomed,
        },
        on_brush_change=on_brush,
        on_zoom_change=on_zoom,
    )
