"""The canvas on the page: tools, view, undo, and how strokes get into the project record.

The record on disk is the truth; the canvas shows a projection of it (see `sketch`). A stroke comes
back in the session's state before the script runs, is written to the record first, and only then
is anything drawn, so background, preview, checklist and Run all see the same drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from workbench.canvas.drawing import Drawing, History
from workbench.core.request import Point, PointPair
from workbench.imaging.coords import Viewport
from workbench.ui import components
from workbench.ui.draw import projection
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace

BRUSH = (1, 160)  # diameter, px of the canvas
_ROOM = "canvas_room"  # key of the probe that says how wide the canvas may be


class Drawpad:
    """One project's canvas in one run of the page."""

    def __init__(self, backend: Backend, space: Workspace) -> None:
        """Take in what the browser sent, before anything is shown."""
        self.backend = backend
        self.space = space
        self.size = (space.image.width, space.image.height)
        self.key = f"canvas_{space.id}"
        self.paint = projection.colours(str(space.get("mask_colour", "Magenta")))
        self.state: dict[str, Any] = st.session_state.setdefault(f"pad_{space.id}", {})
        self.state.setdefault("generation", backend.next_generation())
        self.drawing = projection.stored(space.project.drawing)
        if self.key not in st.session_state:
            self.reload()  # the canvas is made anew (page entry): not from what it showed before
        else:
            self._receive()

    # --- state ------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Number of the projection that the canvas shows."""
        return int(self.state["generation"])

    @property
    def revision(self) -> int:
        """Number of the drawing's state in this session."""
        return int(self.state.get("revision", 0))

    @property
    def history(self) -> History:
        """Undo and redo of this project, shared by all sessions of the process."""
        kept = self.backend.undo.get(self.space.id)
        if kept is None or kept.present != self.drawing:
            past = kept.past if kept else ()
            kept = History(self.drawing, past)
        return kept

    @property
    def view(self) -> Viewport:
        """What the canvas shows, from the last known room."""
        room = int(self.state.get("room", 640))
        zoom, centre = float(self.state.get("zoom", 1.0)), self.state.get("centre")
        return projection.viewport(
            self.size, projection.canvas_size(*self.size, room), zoom, centre
        )

    def change(self, drawing: Drawing, *, by_hand: bool = False) -> None:
        """The drawing becomes another one; the canvas loads it unless it came from there."""
        if drawing == self.drawing:
            return
        self.backend.undo[self.space.id] = self.history.push(drawing)
        self._put(drawing, reload=not by_hand)

    def undo(self) -> None:
        """One step back."""
        self._step(self.history.undo())

    def redo(self) -> None:
        """One step forward again."""
        self._step(self.history.redo())

    def _step(self, history: History) -> None:
        if history.present != self.drawing:
            self.backend.undo[self.space.id] = history
            self._put(history.present, reload=True)

    def _put(self, drawing: Drawing, *, reload: bool) -> None:
        self.drawing = drawing
        self.space.change(drawing=drawing.to_json())
        self.state["revision"] = self.revision + 1
        if reload:
            self.reload()

    def reload(self) -> None:
        """Have the canvas load the drawing anew; what it still sends of before is not listened to."""
        self.state["generation"] = self.backend.next_generation()

    def _receive(self) -> None:
        sent = st.session_state.get(self.key)
        drawn = sent.get("drawing") if isinstance(sent, Mapping) else None
        raw = drawn.get("raw") if isinstance(drawn, Mapping) else None
        shown = self.state.get("shown")  # the view in which the browser drew
        if raw is None or shown is None:
            return
        with guard():
            drawing = projection.received(raw, shown, self.paint, self.generation)
            if drawing is not None:
                self.change(projection.settle(self.drawing, drawing, 0.02 * shown.k), by_hand=True)

    # --- what is shown ----------------------------------------------------------------------------

    def tools(self) -> str:
        """The tool bar; returns the tool's name."""
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            tool = st.segmented_control(
                "Tool",
                list(projection.TOOLS),
                default="Arrow",
                required=True,
                key=f"tool_{self.space.id}",
                label_visibility="collapsed",
            )
            with st.popover("Mask", icon=":material/format_paint:", key="mask_menu"):
                self._mask_menu()
            with st.popover("", icon=":material/help:", key="tool_help", type="tertiary"):
                st.markdown(projection.TOOL_HELP)
        return str(tool or "Arrow")

    def options(self, tool: str) -> int:
        """Brush size, undo and zoom; returns the brush's diameter in canvas px."""
        brush = int(self.space.get("brush", 32))
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            if tool in ("Brush", "Eraser"):
                brush = self._brush(brush)
            else:
                st.caption(projection.TOOL_HINTS.get(tool, ""), width="content")
            st.space("stretch")
            self._button("Undo", "undo", self.undo, not self.history.can_undo, "Ctrl+Z")
            self._button("Redo", "redo", self.redo, not self.history.can_redo, "Ctrl+Shift+Z")
            self._zoom_buttons()
        return brush

    def _button(
        self, label: str, icon: str, act: Callable[[], None], off: bool, shortcut: str
    ) -> None:
        st.button(
            label,
            key=f"pad_{icon}",
            type="tertiary",
            icon=f":material/{icon}:",
            on_click=act,
            disabled=off,
            shortcut=shortcut,
            help=f"{label} ({shortcut})",
        )

    def _brush(self, brush: int) -> int:
        key = f"brush_{self.space.id}_{self.state.get('brush_keys', 0)}"

        def save() -> None:
            self.space.set(brush=int(st.session_state[key]))

        # Always the same value as default and never set through the state: a slider that is told its
        # value in one run only begins at its lower end when the next run overtakes that one.
        return int(
            st.slider(
                "Brush",
                *BRUSH,
                value=brush,
                key=key,
                on_change=save,
                format="%d px",
                label_visibility="collapsed",
                width=220,
            )
        )

    def _mask_menu(self) -> None:
        width, height = self.size
        acts: list[tuple[str, str, Callable[[], Drawing]]] = [
            ("Invert", "invert_colors", lambda: projection.complement(self.drawing, width, height)),
            (
                "Paint everything",
                "select_all",
                lambda: projection.whole(self.drawing, width, height),
            ),
            ("Clear the mask", "layers_clear", self.drawing.without_mask),
            ("Delete all arrows", "backspace", self.drawing.without_arrows),
        ]
        for label, icon, make in acts:
            st.button(
                label,
                key=f"pad_{icon}",
                icon=f":material/{icon}:",
                width="stretch",
                on_click=lambda make=make: self.change(make()),
            )
        key = f"mask_colour_{self.space.id}"

        def recolour() -> None:
            self.space.set(mask_colour=st.session_state[key])
            self.reload()

        names = list(projection.MASK_COLOURS)
        now = str(self.space.get("mask_colour", "Magenta"))
        st.selectbox(
            "Colour",
            names,
            index=names.index(now) if now in names else 0,
            key=key,
            on_change=recolour,
            help="Choose one that the picture does not have.",
        )

    def _zoom_buttons(self) -> None:
        zoom = float(self.state.get("zoom", 1.0))
        st.button(
            "Out", key="zoom_out", icon=":material/zoom_out:", type="tertiary",
            disabled=zoom <= 1, on_click=lambda: self.zoom(-1), help="Zoom out",
        )  # fmt: skip
        st.markdown(f"{zoom:g} ×", width="content")
        st.button(
            "In", key="zoom_in", icon=":material/zoom_in:", type="tertiary",
            disabled=zoom >= projection.ZOOMS[-1], on_click=lambda: self.zoom(1),
            help="Zoom in. Ctrl + mouse wheel zooms where the pointer is; then the wheel alone "
            "moves the view.",
        )  # fmt: skip

    def zoom(self, by: int, at: tuple[float, float] | None = None) -> None:
        """Magnify or shrink the view, keeping the point `at` (u, v in 0..1 of the canvas)."""
        view = self.view
        now = float(self.state.get("zoom", 1.0))
        after = projection.zoom_step(now, by)
        u, v = at or (0.5, 0.5)
        x, y = view.x0 + u * view.width, view.y0 + v * view.height
        width, height = self.size[0] / after, self.size[1] / after
        self.state["zoom"] = after
        self.state["centre"] = (x + (0.5 - u) * width - 0.5, y + (0.5 - v) * height - 0.5)
        self.reload()

    def move(self, dx: float, dy: float, share: float = 0.15) -> None:
        """Shift a zoomed view by a share of its size."""
        view = self.view
        x, y = view.x0 + view.width / 2, view.y0 + view.height / 2
        self.state["centre"] = (
            x + dx * share * view.width - 0.5,
            y + dy * share * view.height - 0.5,
        )
        self.reload()

    def canvas(self, tool: str, brush: int) -> None:
        """The canvas itself, with everything that Python draws behind it."""
        from streamlit_drawable_canvas import st_canvas

        # Until the browser has said how much room there is, nothing is shown: a canvas that changes
        # its size a moment after it appeared would drop the stroke that was begun on it.
        room = components.width(key=_ROOM, default=int(st.session_state.get("room_known", 0)))
        if not room:
            st.skeleton(height=480)
            return
        st.session_state["room_known"] = room
        if room != self.state.get("room"):
            self.state["room"] = room
            self.reload()
        view = self.view
        mode = projection.TOOLS[tool]
        with st.container(key="canvas_box", height=view.canvas_height + 4, border=False):
            st_canvas(
                drawing_mode=mode,
                stroke_width=brush if mode == "freedraw" else 3 if mode == "line" else 1,
                stroke_color=self._stroke_colour(tool),
                fill_color=self.paint.brush,
                background_image=self.backend.canvas_background(self.space, self.drawing, view),
                initial_drawing=self._initial(view),
                width=view.canvas_width,
                height=view.canvas_height,
                key=self.key,
            )
        self.state["shown"] = view
        with st.container(key="quiet_assist"):
            components.assist(
                self.key,
                key="canvas_assist",
                tool={"Rectangle": "rect"}.get(tool, tool.lower()),
                brush=brush,
                eraser=projection.ERASER,
                revision=self.revision,
                zoomed=float(self.state.get("zoom", 1.0)) > 1,
                on_brush=self._on_brush,
                on_zoom=self._on_zoom,
            )

    def _stroke_colour(self, tool: str) -> str:
        if tool == "Eraser":
            return self.paint.eraser
        return self.paint.arrow if projection.TOOLS[tool] == "line" else self.paint.brush

    def _initial(self, view: Viewport) -> dict[str, Any]:
        """The projection to load: made once per generation, the same object in every run."""
        if self.state.get("made") != self.generation:
            self.state["made"] = self.generation
            self.state["initial"] = projection.projection(
                self.drawing, view, self.paint, self.generation
            )
        initial: dict[str, Any] = self.state["initial"]
        return initial

    def _on_brush(self) -> None:
        step = st.session_state["canvas_assist"].get("brush")
        now = int(self.space.get("brush", 32))
        if step:
            factor = 1.25 if step > 0 else 0.8
            after = round(now * factor) if now > 4 else now + (1 if step > 0 else -1)
            self.space.set(brush=max(BRUSH[0], min(BRUSH[1], after)))
            self.state["brush_keys"] = int(self.state.get("brush_keys", 0)) + 1  # a new slider

    def _on_zoom(self) -> None:
        asked = st.session_state["canvas_assist"].get("zoom")
        if isinstance(asked, Mapping):
            if asked.get("by"):
                self.zoom(int(asked["by"]), (float(asked["u"]), float(asked["v"])))
            else:
                self.move(float(asked.get("dx", 0)), float(asked.get("dy", 0)))

    def table(self) -> None:
        """The table of arrows."""
        if not self.drawing.arrows:
            return
        components.pairs(
            [(a.pair.to_json(), a.on) for a in self.drawing.arrows],
            size=self.size,
            revision=self.revision,
            key="pair_table",
            on_change=self._on_table,
        )

    def _on_table(self) -> None:
        asked = st.session_state["pair_table"].get("change")
        if not isinstance(asked, Mapping) or asked.get("revision") != self.revision:
            return  # the table of a drawing that has changed since
        n = int(asked["n"])
        with guard():
            if asked["kind"] == "remove":
                self.change(self.drawing.without_arrow(n))
            elif asked["kind"] == "switch":
                self.change(self.drawing.switched(n, bool(asked["on"])))
            else:
                hx, hy, tx, ty = (float(v) for v in asked["pair"])
                self.change(self.drawing.with_pair(n, PointPair(Point(hx, hy), Point(tx, ty))))
