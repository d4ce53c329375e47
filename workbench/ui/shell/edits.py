"""One edit of the history as the pages show it: pictures, figures, words, and ways to go on from it.

Shared by results, compare and history. Pictures are made at display size and remembered.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from workbench.canvas import sheets
from workbench.canvas.overlay import overlay
from workbench.core.config import SPECS, DragConfig, InversionConfig, LoraConfig, method_label
from workbench.core.errors import BadInput
from workbench.core.options import options_of
from workbench.core.record import (
    STAGES,
    Converged,
    EditRecord,
    EditResult,
    JobState,
    StopReason,
    convergence,
)
from workbench.core.request import EditRequest, Point
from workbench.imaging.coords import Frame
from workbench.storage.archive import page
from workbench.storage.archive.write import export_zip
from workbench.storage.history import Store
from workbench.ui.shell import figures, shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import count, field_label, plain, say, seconds
from workbench.ui.shell.workspace import Workspace, settings_of

FILM = 512  # longest side of an animation, px


class EditView:
    """A finished edit, ready to be looked at."""

    def __init__(self, store: Store, record: EditRecord, *, near: bool = False) -> None:
        """Wrap a record that has a result; `near` looks at the changed part of a big picture.

        Raises:
            BadInput: when it has none.
        """
        if record.result is None:
            raise BadInput(say("results.this_edit_has_no_picture", value=record.status.value))
        self.store = store
        self.record = record
        self.request: EditRequest = record.request
        self.result: EditResult = record.result
        image = record.request.image
        self.frame = figures.frame(image.width, image.height)
        if near:
            self.frame = self.close_up() or self.frame

    def close_up(self) -> Frame | None:
        """The part of a big picture that was edited; None where the whole is as good."""
        image, mask = self.request.image, self.request.mask
        painted = self.store.mask(mask.id) if mask else None
        return figures.close_up((image.width, image.height), painted, self.request.pairs)

    # --- pictures ---------------------------------------------------------------------------------

    def before(self) -> figures.U8:
        """The original at display size, uint8 [h,w,3]."""
        return figures.seen(self.store.image(self.request.image.id), self.frame)

    def after(self) -> figures.U8:
        """The result at display size, uint8 [h,w,3]."""
        return figures.seen(self.store.image(self.result.image), self.frame)

    def heat(self) -> figures.U8:
        """Difference map of before and after, uint8 [h,w,3]."""
        return sheets.heatmap(self.before(), self.after())

    def marked(self) -> figures.U8:
        """The original with mask and arrows, uint8 [h,w,3]."""
        mask = self.store.mask(self.request.mask.id) if self.request.mask else None
        if mask is not None:
            to = self.frame
            part = mask[to.y0 : to.y0 + to.height, to.x0 : to.x0 + to.width]
            mask = figures.fit_mask(part, to.out_width, to.out_height)
        pairs = figures.fit_pairs(self.request.pairs, self.frame)
        return overlay(self.before(), mask, pairs)

    def paths(self) -> figures.U8:
        """The result with each handle's way, uint8 [h,w,3]."""
        pairs = figures.fit_pairs(self.request.pairs, self.frame)
        rows = figures.fit_rows(self.rows(), self.frame)
        return overlay(self.after(), None, pairs, paths=rows)

    def rows(self) -> list[list[Point]]:
        """Positions of the handles [tracking][pair], image px; at least the start."""
        kept = [list(row) for row in self.result.trajectory]
        return kept or [[p.handle for p in self.request.pairs]]

    def frames(self) -> list[figures.U8]:
        """The original, the pictures on the way, the result: one size, display size."""
        first, last = self.before(), self.after()
        height, width = first.shape[:2]
        way = [figures.decode(self.store.blob(name)) for name in self.result.frames]
        moved = SPECS[self.request.drag.method].keeps_pixels
        fitted = [figures.fit(f, width, height) for f in way]
        fitted = figures.steadied(first, fitted, last, moved=moved)
        if self.request.mask is not None and self.request.drag.composite:
            inside = figures.soft_mask(self.store.mask(self.request.mask.id), width, height)
            fitted = [figures.composite(first, f, inside) for f in fitted]
        return [first, *fitted, last]

    def focus(self) -> list[float] | None:
        """The edited part [x0, y0, x1, y1] in shares of the picture; None where it may be anywhere."""
        image, mask = self.request.image, self.request.mask
        part = figures.part_of(self.store.mask(mask.id) if mask else None, self.request.pairs)
        size = (image.width, image.height)
        return [min(1.0, max(0.0, v / size[n % 2])) for n, v in enumerate(part)] if part else None

    def film(self, kind: str = "GIF") -> bytes:
        """The drag as an endless animation, "GIF" (256 colours) or "WEBP"."""
        pairs = figures.fit_pairs(self.request.pairs, self.frame)
        rows = figures.fit_rows(self.rows(), self.frame)
        frames = self.frames()
        pace = max(60, min(400, 2000 // len(frames)))
        return sheets.animation(frames, pairs, rows, longest=FILM, milliseconds=pace, kind=kind)

    def mp4(self) -> bytes | None:
        """The drag as an MP4, or None where no encoder is installed."""
        pairs = figures.fit_pairs(self.request.pairs, self.frame)
        rows = figures.fit_rows(self.rows(), self.frame)
        made = sheets.animation_frames(self.frames(), pairs, rows, longest=FILM)
        return figures.mp4([*made, *[made[-1]] * 12], max(4, min(24, len(made) // 2)))

    # --- files to take away -----------------------------------------------------------------------

    def name(self, what: str) -> str:
        """A file name that says what it is: "robot-with-a-laser-edited.png" for "edited.png"."""
        return f"{file_words(self.request.image.name)}-{what}"

    def png(self, with_card: bool = True) -> bytes:
        """The result at full size as PNG, with its settings inside if wanted."""
        return page.result_png(self.record, self.store, with_card=with_card)

    def strip(self) -> bytes:
        """Source with mask and arrows beside the result, PNG."""
        if self.result.strip:
            return self.store.blob(self.result.strip)
        return figures.encode(sheets.strip(self.marked(), None, (), self.after()), "PNG")

    def zip(self) -> bytes:
        """The whole edit: pictures, mask, arrows, parameters, and a page that shows it."""
        return export_zip(self.store, [self.record.id], layers=True)

    # --- words and figures ------------------------------------------------------------------------

    def arrivals(self) -> list[Converged]:
        """Outcome of each arrow."""
        return convergence(self.request.pairs, self.result, self.request.drag, self._per_cell())

    def _per_cell(self) -> float:
        """Image px per feature grid px, roughly: the grid is half the working picture."""
        image = self.request.image
        working = self.request.working_size or max(image.width, image.height)
        return 2 * max(image.width, image.height) / max(1, working)

    def outcome(self) -> str:
        """Why the drag ended, as a sentence that agrees with what is said of the arrows."""
        if self.result.stop == StopReason.REACHED.name and not all(map(reached, self.arrivals())):
            return say("results.the_points_stopped_close_to")
        try:
            return StopReason[self.result.stop].value
        except KeyError:
            return plain(self.result.stop, 200)

    def advice(self) -> list[str]:
        """Advice on what to try next, from the measurements."""
        tips = []
        late = [a for a in self.arrivals() if not reached(a)]
        if late and self.result.stop == StopReason.STEP_LIMIT.name:
            other = (
                say("results.or_the_method_auto")
                if self.request.drag.method == "dragdiffusion"
                else ""
            )
            tips.append(say("results.choose_run_more_steps_or", other=other))
        if any(a.share < 0.2 for a in late):
            tips.append(say("results.an_arrow_barely_moved_start"))
        tips += [a.sentence for a in self.arrivals() if a.sentence]
        if self.request.mask is None:
            tips.append(say("results.no_mask_was_used_add"))
        if self.result.change_outside_mask > 0 and self.request.drag.composite:
            tips.append(say("results.the_picture_also_changed_slightly"))
        return tips

    def verdict(self) -> str:
        """A sentence about a result that is not what the model was asked for, else ""."""
        why = self.result.choice.get("why")
        if why == "model-unfit":
            return say("results.own_pixels_unfit")
        if why == "own-better":
            return say("results.own_pixels_better")
        return say("results.known_poorly") if self.result.knows.get("level") == "poorly" else ""

    def timings(self) -> list[tuple[str, float, bool]]:
        """(stage, seconds, from the cache) in the order in which they run."""
        spent, cached = self.result.seconds, self.result.cached
        order = {stage: n for n, stage in enumerate(STAGES)}
        found = sorted({*spent, *cached}, key=lambda s: order.get(s, len(order)))
        return [(s, float(spent.get(s, 0.0)), s in cached) for s in found]

    def total(self) -> float:
        """Seconds of all stages together."""
        return sum(float(t) for t in self.result.seconds.values())


def reached(arrow: Converged) -> bool:
    """True if an arrow is said to have reached its target: it stopped there, and is there."""
    return arrow.arrived and (arrow.left <= 2.0 or arrow.share >= 0.85)


def px(value: float) -> str:
    """A distance on a page: "2.5 px", "12 px"."""
    return f"{value:.1f} px" if value < 9.95 else f"{value:.0f} px"


def file_words(name: str) -> str:
    """A picture's name as the beginning of a file name: "Robot with a laser" -> "robot-with-a-laser"."""
    stem = re.sub(r"\.(png|jpe?g|webp|gif|tiff?|bmp)$", "", plain(name, 60), flags=re.IGNORECASE)
    return re.sub(r"[\W_]+", "-", stem).strip("-").lower()[:48] or "picture"


def parameter_groups(request: EditRequest) -> list[tuple[str, dict[str, str]]]:
    """Everything that an edit was asked for, as heading and rows: the edit, then each stage."""
    general: dict[str, str] = {
        say("common.model"): request.model.name,
        say("common.method"): method_label(request.drag.method),
        say("common.prompt"): plain(request.prompt, 300) or "(none)",
        say("common.arrows"): str(len(request.pairs)),
        say("common.mask"): "painted"
        if request.mask
        else say("results.none_the_whole_picture_may"),
        say("common.seed"): str(request.seed),
        say("common.working_size"): f"{request.working_size} px"
        if request.working_size
        else say("common.automatic"),
    }
    groups = [(say("results.edit"), general)]
    for head, cls, config in (
        (say("common.drag"), DragConfig, request.drag),
        (say("common.lora"), LoraConfig, request.lora),
        (say("common.inversion"), InversionConfig, request.inversion),
    ):
        values: Mapping[str, Any] = dataclasses.asdict(config)
        rows = {}
        for name, (_kind, _default, opt) in options_of(cls).items():
            if name != "method":
                unit = f" {opt.unit}" if opt.unit else ""
                rows[field_label(name)] = f"{_shown(values[name])}{unit}"
        groups.append((head, rows))
    return groups


def parameters(request: EditRequest) -> dict[str, str]:
    """The groups in one list, label -> value; a stage's labels begin with its name."""
    (_, rows), *stages = parameter_groups(request)
    for head, of_stage in stages:
        rows |= {f"{head}: {name.lower()}": value for name, value in of_stage.items()}
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def one_line(record: EditRecord) -> str:
    """An edit in a few words, for lists."""
    request = record.request
    words = f"{method_label(request.drag.method)}, {count(len(request.pairs), 'arrow')}"
    if record.status is not JobState.DONE or record.result is None:
        return f"{words}, {record.status.value}"
    return f"{words}, {seconds(sum(record.result.seconds.values()))}"


@lru_cache(maxsize=64)
def _encoded(store: Store, edit: str, what: str, near: bool) -> bytes:
    view = EditView(store, store.record(edit), near=near)
    if what == "gif":
        return view.film("WEBP")
    if what == "mp4":
        return view.mp4() or b""
    return figures.encode(getattr(view, what)(), quality=93)


def picture_of(store: Store, edit: str, what: str, *, near: bool = False) -> bytes:
    """An edit's picture for the page: before, after, heat, marked, paths (WebP), gif or mp4.

    `near`: only the part of a big picture that was edited (not for films).

    Raises:
        BadInput: for an edit without a result.
        StoreError: when its files are missing or damaged.
    """
    return _encoded(store, edit, what, near and what not in ("gif", "mp4"))


def level_of(backend: Backend, space: Workspace) -> str:
    """How well the model knows a project's picture, as training or the last edit measured it; "" before."""
    known = [(backend.reconstruction(space) or {}).get("knows")]
    for record in backend.store.records(image=space.image.id):
        if record.result and record.request.model.name == space.model.name:
            known.append(record.result.knows)
    return next((str(k["level"]) for k in known if k), "")


def home_of(backend: Backend, record: EditRecord) -> Workspace:
    """The project in which an edit's picture is worked on: the newest there is, else a new one.

    Raises:
        BadInput, StoreError: when picture or mask are missing or cannot be drawn on.
    """
    image = record.request.image.id
    for project in backend.store.projects.recent():
        if project.image == image:
            return Workspace(backend.store, project)
    return backend.project_of(record.request)


def continued(backend: Backend, record: EditRecord) -> Workspace:
    """A new project whose picture is the edit's result, with its settings and nothing drawn yet.

    Raises:
        BadInput: when the edit has no result.
    """
    view = EditView(backend.store, record)
    request = view.request
    asset = backend.store.put_image(backend.store.image(view.result.image), request.image.name)
    return Workspace.create(
        backend.store,
        dataclasses.replace(asset, alpha=request.image.alpha),
        title=f"{plain(request.image.name, 50)} →",
        prompt=request.prompt,
        parent=record.id,
        settings=settings_of(request),
    )


def enter(space: Workspace, *, edit: str | None = None) -> None:
    """Make a project (and an edit of it) the one at hand."""
    for name, value in (("project", space.id), ("job", None), ("edit", edit)):
        shell.remember(name, value)
