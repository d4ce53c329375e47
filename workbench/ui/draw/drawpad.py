"""The canvas on the page: tools, view, undo, and how strokes get into the project record.

The record on disk is the truth; canvas and stage show a projection of it (see `projection`). What was
drawn comes back in the session's state before the script runs, is written to the record first, and
only then is anything shown, so canvas, preview, checklist and Run all see the same drawing.
Painted shapes come from the drawing canvas, arrows and clicks from the stage in front of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from workbench.canvas.drawing import Drawing, History, Polygon
from workbench.core.request import MOVES, Point, PointPair
from workbench.imaging.coords import Viewport
from workbench.ui import components
from workbench.ui.draw.drag_form import brush_size, mask_menu, select_size
from workbench.ui.shell import area, projection
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import say
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace

BRUSH = (1, 160)  # diameter, px of the canvas
TOOLS = ("Arrow", "Pin", "Select", "Brush", "Eraser", "Rectangle", "Polygon", "Adjust")
HINTS = {tool: say(f"draw.{tool.lower()}_hint") for tool in TOOLS}
MOVE_WORDS = {name: say(f"draw.moves_{name}") for name in MOVES}
_ROOM = "canvas_room"  # key of the probe that says how large the canvas may be
_BELOW = 20  # px under the canvas that stay free
_STAGE = "canvas_stage"
_LISTS = 4  # so many replaced lists of arrows are remembered
_HELD = 12  # so many handles get the shape of what they move


class Drawpad:
    """One project's canvas in one run of the page."""

    def __init__(self, backend: Backend, space: Workspace) -> None:
        """Take in what the browser sent, before anything is shown."""
        self.backend = backend
        self.space = space
        self.size = (space.image.width, space.image.height)
        self.key = f"canvas_{space.id}"
        self.paint = projection.colours(
            str(space.get("mask_colour", "Automatic")), backend.pixels(space.image.id)
        )
        self.state: dict[str, Any] = st.session_state.setdefault(f"pad_{space.id}", {})
        self.state.setdefault("generation", backend.next_generation())
        self.state.setdefault("arrows_generation", backend.next_generation())
        self.drawing = projection.stored(space.project.drawing)
        if self.key not in st.session_state:
            self.reload()  # a fresh canvas (page entry): not from what it showed before
        else:
            self._receive()
        self._take()
        self._show_others()

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
        """View of the canvas, from the last known size of the column."""
        room = self.state.get("room", (640, 480))
        zoom, centre = float(self.state.get("zoom", 1.0)), self.state.get("centre")
        return projection.viewport(
            self.size, projection.canvas_size(*self.size, *room), zoom, centre
        )

    def change(self, drawing: Drawing, *, by_hand: bool = False) -> None:
        """Make another drawing the present one; the browser loads it unless it came from there."""
        if drawing == self.drawing:
            return
        self.backend.undo[self.space.id] = self.history.push(drawing)
        self._put(drawing, by_hand=by_hand)

    def undo(self) -> None:
        """One step back."""
        self._step(self.history.undo())

    def redo(self) -> None:
        """One step forward again."""
        self._step(self.history.redo())

    def _step(self, history: History) -> None:
        if history.present != self.drawing:
            self.backend.undo[self.space.id] = history
            self._put(history.present)

    def _put(self, drawing: Drawing, *, by_hand: bool = False) -> None:
        before, seen = self.drawing, self.state.get("seen")
        base = self.space.project
        told = projection.stored(base.drawing).to_json()  # of a new project, the record is empty
        if by_hand and seen is not None and seen != told:
            # another tab has drawn since this one showed the project: an older revision is merged
            base = dataclasses.replace(base, drawing=seen, revision=-1)
        self.space.change(base=base, drawing=drawing.to_json())
        self.drawing = projection.stored(self.space.project.drawing)
        self.state["revision"] = self.revision + 1
        self.state["own"] = by_hand = by_hand and self.drawing == drawing  # the browser shows it
        if not by_hand and self.drawing.shapes != before.shapes:
            self.reload()
        if not by_hand and self.drawing.arrows != before.arrows:
            self.state["arrows_generation"] = self.backend.next_generation()

    def reload(self) -> None:
        """Have the canvas load the shapes again; what it still sends of before is not listened to."""
        self.state["generation"] = self.backend.next_generation()

    def _receive(self) -> None:
        """Take in the shapes that the drawing canvas sent."""
        sent = st.session_state.get(self.key)
        drawn = sent.get("drawing") if isinstance(sent, Mapping) else None
        raw = drawn.get("raw") if isinstance(drawn, Mapping) else None
        shown = self.state.get("shown")  # the view in which the browser drew
        if raw is None or shown is None:
            return
        with guard():
            shapes = projection.received(raw, shown, self.paint, self.generation)
            if shapes is not None:
                shapes = projection.settle(self.drawing.shapes, shapes, 0.02 * shown.k)
                self.change(dataclasses.replace(self.drawing, shapes=shapes), by_hand=True)

    def _show_others(self) -> None:
        """Have the browser load what another tab has drawn since the last run of this one."""
        now = self.drawing.to_json()
        seen = self.state.get("seen", now)
        if seen != now and not self.state.pop("own", False):
            if seen.get("shapes") != now.get("shapes"):
                self.reload()
            if seen.get("arrows") != now.get("arrows"):
                self.state["arrows_generation"] = self.backend.next_generation()
        self.state["seen"] = now

    def _take(self) -> None:
        """Take in arrows, brush size and clicks that the stage sent."""
        stage = st.session_state.get(_STAGE)
        sent = stage.get("sent") if isinstance(stage, Mapping) else None
        if not isinstance(sent, Mapping):
            return
        name, number = str(sent.get("id"))[:32], int(sent.get("number", 0))
        if self.state.get("taken") == (name, number):
            return
        self.state["taken"] = (name, number)
        with guard():
            self._take_arrows(sent)
            brush = max(BRUSH[0], min(BRUSH[1], int(sent.get("brush") or 0)))
            if sent.get("brush") and brush != int(self.space.get("brush", 32)):
                self.space.set(brush=brush)
                self.state["brush_keys"] = int(self.state.get("brush_keys", 0)) + 1  # a new slider
            acked: dict[str, int] = self.state.setdefault("acked", {})
            for item in sent.get("log", ()):
                if int(item["number"]) > acked.get(name, 0):
                    acked[name] = int(item["number"])
                    self._answer(item)

    def _take_arrows(self, sent: Mapping[str, Any]) -> None:
        """Take in arrows; those drawn over a list that has been replaced meanwhile are added to it."""
        lists, generation = self.state.setdefault("lists", {}), sent.get("generation")
        latest = generation == self.state["arrows_generation"]
        if latest or generation in lists:
            mine, now = projection.arrows_sent(sent.get("arrows", ())), self.drawing.arrows
            arrows = mine if latest else projection.merge_arrows(lists[generation], mine, now)
            lists[generation] = mine
            self.change(dataclasses.replace(self.drawing, arrows=arrows), by_hand=latest)

    def _answer(self, item: Mapping[str, Any]) -> None:
        """Do what a click on the stage asked for."""
        if item["kind"] == "polygon":
            corners = tuple(Point(float(x), float(y)) for x, y in item["points"])
            shape = Polygon(corners, erase=bool(item.get("erase")))
            self.change(dataclasses.replace(self.drawing, shapes=(*self.drawing.shapes, shape)))
            return
        at = Point(float(item["x"]), float(item["y"]))
        if item["kind"] == "press":
            self.state["press"] = at
        elif item["kind"] == "select":
            self._select(at, str(item.get("how")))

    def _select(self, at: Point, how: str) -> None:
        """Select the connected area at a place: alone ("new"), added ("add") or removed ("take")."""
        grow = float(self.space.get("select_grow", 0.0))
        part = self.backend.areas.part_at(self.space.image.id, at, grow)
        if not part.any():
            st.toast(say("draw.nothing_there"), icon=":material/info:")
            return
        before = self.drawing
        painted = self.backend.areas.painted(before, self.size)
        mask = part if how == "new" else painted & ~part if how == "take" else painted | part
        self.change(area.painted_with(before, mask))
        self.state["selected"] = (at, how, before, self.drawing)

    def select_again(self) -> None:
        """Make the last selection again, with more or less of what is connected."""
        at, how, before, after = self.state.get("selected", (None, "", None, None))
        if after is not None and self.drawing == after:
            self.undo()
            if self.drawing == before:
                with guard():
                    self._select(at, how)

    # --- what is shown ----------------------------------------------------------------------------

    def tools(self) -> str:
        """The tool bar; returns the tool's name."""
        with st.container(
            horizontal=True, vertical_alignment="center", gap="small", key="pad_tools"
        ):
            tool = st.segmented_control(
                say("draw.tool"),
                list(projection.TOOLS),
                default="Arrow",
                required=True,
                key=f"tool_bar_{self.space.id}",
                label_visibility="collapsed",
            )
            with st.popover(say("draw.mask"), icon=":material/format_paint:", key="mask_menu"):
                mask_menu(
                    self.backend, self.space, self.drawing, self.state, self.change, self.reload
                )
            with st.popover(
                say("draw.shortcuts"), icon=":material/keyboard:", key="tool_help", type="tertiary",
                help=say("draw.shortcuts"),
            ):  # fmt: skip
                st.markdown(say("draw.keys"))
        return str(tool or "Arrow")

    def options(self, tool: str) -> int:
        """Undo, zoom and the brush's size or a hint; returns the brush's diameter in canvas px."""
        brush = int(self.space.get("brush", 32))
        with st.container(
            horizontal=True, vertical_alignment="center", gap="xsmall", key="pad_row"
        ):
            history = self.history
            self._button(say("draw.undo"), "undo", self.undo, not history.can_undo, "Ctrl+Z")
            self._button(say("draw.redo"), "redo", self.redo, not history.can_redo, "Ctrl+Shift+Z")
            self._zoom_buttons()
            st.space("small")
            if tool in ("Brush", "Eraser"):
                brush = brush_size(self.space, self.state, brush, BRUSH)
            elif tool == "Select":
                select_size(self.space, self.select_again)
            else:
                st.caption(HINTS[tool], width="content")
        return brush

    def _button(
        self, label: str, name: str, act: Callable[[], None], off: bool, shortcut: str
    ) -> None:
        st.button(
            label,
            key=f"pad_{name}",
            type="tertiary",
            icon=f":material/{name}:",
            on_click=act,
            disabled=off,
            shortcut=shortcut,
            help=f"{label} ({shortcut})",
        )

    def _zoom_buttons(self) -> None:
        zoom = float(self.state.get("zoom", 1.0))
        st.button(
            say("draw.zoom_out"), key="zoom_out", icon=":material/zoom_out:", type="tertiary",
            disabled=zoom <= 1, on_click=lambda: self.zoom(-1), help=say("draw.zoom_out"),
        )  # fmt: skip
        st.markdown(f"{zoom:g} ×", width="content")
        st.button(
            say("draw.zoom_in"), key="zoom_in", icon=":material/zoom_in:", type="tertiary",
            disabled=zoom >= projection.ZOOMS[-1], on_click=lambda: self.zoom(1),
            help=say("draw.zoom_in_help"),
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

    def canvas(self, tool: str, brush: int, coach: str = "") -> None:
        """The canvas and the stage in front of it; `coach` is said on it while there is no arrow."""
        from streamlit_drawable_canvas import st_canvas

        # Until the browser has said how much room there is, nothing is shown: a canvas that changes
        # its size a moment after it appeared would drop the stroke that was begun on it.
        room = components.room(key=_ROOM, default=st.session_state.get("room_known", (0, 0)))
        if not room[0]:
            st.skeleton(height=480)
            return
        st.session_state["room_known"] = room
        fits = (room[0], max(240, room[1] - _BELOW))
        if fits != self.state.get("room"):
            self.state["room"] = fits
            self.reload()
        view = self.view
        mode = projection.TOOLS[tool]
        with st.container(key="canvas_box", height=view.canvas_height + 4, border=False):
            st_canvas(
                drawing_mode=mode,
                stroke_width=brush if mode == "freedraw" else 1,
                stroke_color=self.paint.eraser if tool == "Eraser" else self.paint.brush,
                fill_color=self.paint.brush,
                background_image=self.backend.canvas_background(self.space, view),
                initial_drawing=self._initial(view),
                width=view.canvas_width,
                height=view.canvas_height,
                key=self.key,
            )
        self.state["shown"] = view
        with st.container(key="quiet_stage"):
            components.stage(
                self._stage(tool, brush, coach, view),
                key=_STAGE,
                on_sent=lambda: None,  # `_take` reads it before anything is shown
                on_zoom=self._on_zoom,
            )

    def _stage(self, tool: str, brush: int, coach: str, view: Viewport) -> dict[str, Any]:
        """Data for `components.stage`."""
        areas = self.backend.areas
        pairs = [a.pair for a in self.drawing.arrows if a.on][:_HELD]
        if (pressed := self.state.get("press")) is not None:
            pairs.append(PointPair(pressed, pressed))
        painted = areas.painted(self.drawing, self.size)
        found = areas.of(self.space, self.drawing)
        held = {}
        for pair in pairs:
            weights = areas.weights(self.space, self.drawing, pair)
            if weights:
                x, y = (projection.half_up(v) for v in (pair.handle.x, pair.handle.y))
                held[f"{x},{y},{pair.grow:g},{pair.move}"] = components.data_url(weights)
        # what the browser is told to show under this number; the last few, for lists still on their way
        lists = self.state.setdefault("lists", {})
        lists[self.state["arrows_generation"]] = self.drawing.arrows
        for old in sorted(lists)[:-_LISTS]:
            del lists[old]
        draft = self.backend.draft(self.space, self.drawing, view.canvas_width)
        return {
            "target": self.key,
            "tool": {"Rectangle": "rect"}.get(tool, tool.lower()),
            "brush": brush,
            "paint": self.paint.brush,
            "eraser": projection.ERASER,
            "generation": self.state["arrows_generation"],
            "arrows": [{"on": a.on, "pair": a.pair.to_json()} for a in self.drawing.arrows],
            "size": self.size,
            "view": (view.x0, view.y0, view.width, view.height),
            "zoomed": float(self.state.get("zoom", 1.0)) > 1,
            "masked": bool(painted.any()),
            "area": components.data_url(areas.picture(found)) if found.proposed else None,
            "held": held,
            "draft": draft and {"src": components.data_url(draft[0]), "box": draft[1]},
            "acked": dict(self.state.get("acked", {})),
            "taken": self.state.get("taken"),
            "colours": self.backend.canvas_colours(),
            "label": say(
                "draw.canvas_label", title=self.space.title, width=self.size[0], height=self.size[1]
            ),
            "said": area.said(self.drawing, found),
            "coach": coach,
            "words": {
                "before": say("draw.before"),
                "back": say("draw.back_to_drawing"),
                "live": say("draw.show_live"),
                "starting": say("draw.starting"),
                "holds": say("draw.holds"),
                "moves": MOVE_WORDS,
            },
        }  # fmt: skip

    def _initial(self, view: Viewport) -> dict[str, Any]:
        """The projection to load: made once per generation, the same object in every run."""
        if self.state.get("made") != self.generation:
            self.state["made"] = self.generation
            self.state["initial"] = projection.projection(
                self.drawing, view, self.paint, self.generation
            )
        initial: dict[str, Any] = self.state["initial"]
        return initial

    def _on_zoom(self) -> None:
        asked = st.session_state[_STAGE].get("zoom")
        if isinstance(asked, Mapping):
            if asked.get("by"):
                self.zoom(int(asked["by"]), (float(asked["u"]), float(asked["v"])))
            else:
                self.move(float(asked.get("dx", 0)), float(asked.get("dy", 0)))
