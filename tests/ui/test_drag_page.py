"""Mask & points without a browser: what is asked for, what may change, what the checklist says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from patience import HANG
from streamlit.testing.v1 import AppTest

from workbench.app import App
from workbench.canvas.checklist import TEXTS, Code, checklist
from workbench.canvas.drawing import Arrow, Drawing, Rect
from workbench.canvas.rasterize import rasterise
from workbench.canvas.selection import propose
from workbench.core.config import METHODS, SPECS, DragConfig
from workbench.core.record import EditRecord, EditResult, JobState, StepInfo
from workbench.core.request import EditRequest, ModelRef, Point, PointPair
from workbench.jobs import Job
from workbench.ui import draw
from workbench.ui.draw import run_panel
from workbench.ui.shell.forms import inert, say
from workbench.ui.shell.projection import stored
from workbench.ui.shell.workspace import Workspace

PAIR = PointPair(Point(20, 20), Point(34, 14))
SIZE = (64, 48)


def disc() -> Any:
    """A red disc on blue, uint8 [48, 64, 3]; the arrow begins on the disc."""
    y, x = np.mgrid[0:48, 0:64]
    inside = (x - 20) ** 2 + (y - 20) ** 2 < 36
    return np.where(inside[..., None], [220, 40, 30], [40, 90, 200]).astype(np.uint8)


@pytest.fixture
def make(app: App) -> Callable[..., Workspace]:
    def go(drawing: Drawing | None = None, **settings: Any) -> Workspace:
        asset = app.store.put_image(disc(), "Disc")
        kept = (drawing or Drawing((Arrow(PAIR),))).to_json()
        own = {"model": "micro", **settings}
        return Workspace.create(app.store, asset, title="Disc", settings=own, drawing=kept)

    return go


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EditRequest]:
    """What was submitted, instead of being computed."""
    kept: list[EditRequest] = []

    def submit(_self: App, request: EditRequest, owner: str = "") -> str:
        kept.append(request)
        return "01ARZ3NDEKTSV4RRFFQ69G5FAV"

    monkeypatch.setattr(App, "submit_edit", submit)
    return kept


@pytest.fixture
def drag_page(visit: Callable[..., AppTest]) -> Callable[[Workspace], AppTest]:
    def go(space: Workspace) -> AppTest:
        page = visit(project=space.id)
        page.query_params["project"] = space.id
        page.switch_page("pages/drag.py").run()
        assert not page.exception
        return page

    return go


def words(page: AppTest) -> str:
    """All text of the page."""
    parts = [*page.markdown, *page.caption, *page.info, *page.warning, *page.error]
    return "\n".join(str(p.value) for p in parts)


def test_without_paint_the_proposal_is_shown_said_and_run(
    app: App,
    make: Callable[..., Workspace],
    drag_page: Callable[[Workspace], AppTest],
    asked: list[EditRequest],
) -> None:
    page = drag_page(make())
    assert inert(TEXTS[Code.MASK_PROPOSED].split("{")[0]) in words(page)
    page.button(key="run").click().run()
    (request,) = asked
    assert request.mask is not None
    mask = app.store.mask(request.mask.id)
    assert (mask == propose(disc(), (PAIR,))).all()
    assert mask[20, 20]
    assert mask[14, 34]
    assert not mask.all()


def test_whole_picture_stays_a_choice(
    make: Callable[..., Workspace],
    drag_page: Callable[[Workspace], AppTest],
    asked: list[EditRequest],
) -> None:
    space = make()
    page = drag_page(space)
    page.segmented_control(key=f"unpainted_{space.id}").set_value("whole").run()
    assert inert(TEXTS[Code.NO_MASK]) in words(page)
    page.button(key="run").click().run()
    assert asked[0].mask is None
    assert drag_page(space).segmented_control(key=f"unpainted_{space.id}").value == "whole"


def test_the_proposal_can_be_painted_on(
    app: App, make: Callable[..., Workspace], drag_page: Callable[[Workspace], AppTest]
) -> None:
    space = make()
    page = drag_page(space)
    page.button(key="adopt_area").click().run()
    drawing = stored(app.store.projects.load(space.id).drawing)
    assert (rasterise(drawing, *SIZE) == propose(disc(), (PAIR,))).all()
    assert inert(TEXTS[Code.NO_MASK]) not in words(page)
    assert inert(TEXTS[Code.MASK_PROPOSED].split("{")[0]) not in words(page)
    page.button(key="pad_undo").click().run()
    assert not stored(app.store.projects.load(space.id).drawing).has_mask


def test_paint_takes_the_place_of_the_proposal(
    app: App,
    make: Callable[..., Workspace],
    drag_page: Callable[[Workspace], AppTest],
    asked: list[EditRequest],
) -> None:
    shapes = (Rect(9.5, 9.5, 49.5, 39.5),)
    page = drag_page(make(Drawing((Arrow(PAIR),), shapes)))
    page.button(key="run").click().run()
    assert asked[0].mask is not None
    mask = app.store.mask(asked[0].mask.id)
    assert (mask == rasterise(Drawing(shapes=shapes), *SIZE)).all()


@pytest.mark.parametrize(
    ("drawing", "code"),
    [
        (Drawing(), Code.NO_ARROW),
        (Drawing((Arrow(PAIR, on=False),)), Code.ARROWS_OFF),
        (Drawing((Arrow(PointPair(Point(20, 20), Point(80, 20))),)), Code.OUTSIDE_PICTURE),
        (Drawing(loose=Point(3, 3)), Code.NO_TARGET),
    ],
)
def test_run_is_off_and_says_why(
    make: Callable[..., Workspace],
    drag_page: Callable[[Workspace], AppTest],
    drawing: Drawing,
    code: Code,
) -> None:
    page = drag_page(make(drawing))
    first = checklist(drawing, SIZE, np.zeros(SIZE[::-1], bool))[0]
    assert first.code is code
    reason = inert(first.text)
    run = page.button(key="run")
    assert run.disabled
    assert first.text == run.help
    assert reason in words(page)


def test_fault_1_a_model_that_knows_the_picture_poorly_is_said_before_the_run(
    app: App, make: Callable[..., Workspace], drag_page: Callable[[Workspace], AppTest]
) -> None:
    space = make()
    code = inert(TEXTS[Code.MODEL_POOR].partition("}")[2])
    assert code not in words(drag_page(space))
    request = space.request((PAIR,), None)
    result = EditResult(
        image=space.image.id, stop="STEP_LIMIT", distances=(1.0,), iterations=0,
        knows={"level": "poorly", "psnr": 20.0, "noise": 0.9},
    )  # fmt: skip
    app.store.finish(
        EditRecord(
            id=app.store.begin(request), request=request, status=JobState.DONE, result=result
        )
    )
    assert code in words(drag_page(space))


def test_before_the_first_arrow_nothing_untrue_is_said_of_the_area(
    make: Callable[..., Workspace], drag_page: Callable[[Workspace], AppTest]
) -> None:
    """With the first arrow an area will be proposed: the whole picture would not change."""
    empty = Drawing(arrows=(), shapes=())
    assert inert(TEXTS[Code.NO_MASK]) not in words(drag_page(make(empty)))
    assert inert(TEXTS[Code.NO_MASK]) in words(drag_page(make(empty, unpainted="whole")))


def test_all_methods_are_offered_and_each_brings_its_presets(
    app: App, make: Callable[..., Workspace], drag_page: Callable[[Workspace], AppTest]
) -> None:
    space = make()
    page = drag_page(space)
    for method in METHODS:
        (box,) = [b for b in page.selectbox if b.label == "Method"]
        box.set_value(method).run()
        assert Workspace.open(app.store, space.id).drag == DragConfig.preset(method, "normal")
        presets = [c for c in page.segmented_control if c.label == "Preset"]
        assert bool(presets) == (method != "warp")
        if presets:
            presets[0].set_value("strong").run()
            assert Workspace.open(app.store, space.id).drag == DragConfig.preset(method, "strong")
            (again,) = [c for c in page.segmented_control if c.label == "Preset"]
            again.set_value("normal").run()
    assert not page.exception


def test_every_option_is_on_the_page_with_its_range(
    make: Callable[..., Workspace], drag_page: Callable[[Workspace], AppTest]
) -> None:
    page = drag_page(make(drag={"method": "gooddrag"}))
    helps = [w.help for w in [*page.number_input, *page.toggle]]
    for field in ("Step size of Adam", "Lambda:", "DDIM steps", "How deep", "gooddrag: stop after"):
        (told,) = [h for h in helps if h and field in h]
        assert say("shell.range_span").partition("{")[0] in told
        assert "Default:" in told


def test_a_job_is_told_with_phase_step_pace_and_time_left() -> None:
    def job(**more: Any) -> Job:
        return Job(id="x", kind="edit", state=JobState.RUNNING, **more)

    text, share = run_panel.describe(
        job(progress=StepInfo(stage="drag", step=20, total=80), eta=30.0)
    )
    assert text == "Dragging · step 20 of 80 · 2 steps/s · about 30 s left"
    assert share == 0.25
    slow, _ = run_panel.describe(job(progress=StepInfo(stage="lora", step=10, total=20), eta=40.0))
    assert "4 s/step" in slow
    first, _ = run_panel.describe(job(progress=StepInfo(stage="drag", step=0, total=80)))
    assert first == "Dragging · step 0 of 80"


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.CANCELLED])
def test_fault_25_the_loss_curve_is_under_details(
    monkeypatch: pytest.MonkeyPatch, state: JobState
) -> None:
    job = Job(id="x", kind="train", state=state, losses=[(s, 1 / (1 + s)) for s in range(9)])

    class OneJob:
        def job(self, _name: str) -> Job:
            return job

    monkeypatch.setattr(draw, "one_job", OneJob(), raising=False)

    def script() -> None:
        from workbench.ui import draw
        from workbench.ui.draw import run_panel

        run_panel.job_panel(draw.one_job, "x", key="train")  # type: ignore[attr-defined]

    page = AppTest.from_function(script, default_timeout=HANG).run()
    assert not page.exception
    (details,) = page.expander
    assert not details.proto.expanded
    curves = page.get("bidi_component")
    assert len(curves) == 1
    assert len(details.get("bidi_component")) == 1  # the same one: there is none outside


def stage(page: AppTest, space: Workspace, **sent: Any) -> AppTest:
    """The page after the stage sent something."""
    generation = page.session_state[f"pad_{space.id}"]["arrows_generation"]
    own = {"id": "browser", "number": 1, "generation": generation, "arrows": [], "log": []}
    page.session_state["canvas_stage"] = {"sent": own | sent}
    return page.run()


def test_the_stage_hands_over_arrows_brush_and_clicks(
    app: App, make: Callable[..., Workspace], drag_page: Callable[[Workspace], AppTest]
) -> None:
    space = make(Drawing())
    page = drag_page(space)
    arrows = [{"on": True, "pair": [20.0, 20.0, 34.0, 14.0]}, {"on": False, "pair": [5, 5, 9, 9]}]
    corners = [[2, 30], [20, 30], [11, 44]]
    log = [{"number": 1, "kind": "polygon", "points": corners, "erase": False}]
    stage(page, space, arrows=arrows, log=log, brush=77)
    drawn = stored(app.store.projects.load(space.id).drawing)
    assert [a.on for a in drawn.arrows] == [True, False]
    assert drawn.pairs == (PAIR,)
    assert rasterise(drawn, *SIZE)[36, 11]
    assert app.store.projects.load(space.id).settings["brush"] == 77
    # the same once more (Streamlit runs a script as often as it likes): nothing is done twice
    page.run()
    assert len(stored(app.store.projects.load(space.id).drawing).shapes) == 1


def test_the_first_arrow_of_a_new_picture_is_no_other_tabs(
    app: App, drag_page: Callable[[Workspace], AppTest]
) -> None:
    asset = app.store.put_image(disc(), "Disc")
    space = Workspace.create(app.store, asset, title="Disc", settings={"model": "micro"})
    assert not space.project.drawing
    page = stage(drag_page(space), space, arrows=[{"on": True, "pair": PAIR.to_json()}])
    assert stored(app.store.projects.load(space.id).drawing).pairs == (PAIR,)
    assert not page.toast


def test_arrows_of_an_older_drawing_do_not_come_back(
    app: App, make: Callable[..., Workspace], drag_page: Callable[[Workspace], AppTest]
) -> None:
    space = make()
    page = drag_page(space)
    page.button(key="pad_backspace").click().run()  # delete all arrows
    late = [{"on": True, "pair": PAIR.to_json()}]
    stage(page, space, generation=-1, arrows=late)
    assert not stored(app.store.projects.load(space.id).drawing).arrows


def test_what_the_stage_sends_is_checked(
    app: App, make: Callable[..., Workspace], drag_page: Callable[[Workspace], AppTest]
) -> None:
    space = make()
    page = stage(drag_page(space), space, arrows=[{"on": True, "pair": [1, 2, "x", 4]}])
    assert not page.exception
    assert page.error
    assert stored(app.store.projects.load(space.id).drawing).pairs == (PAIR,)


def test_try_again_offers_own_pixels_and_each_strength(app: App) -> None:
    asset = app.store.put_image(disc(), "Disc")
    model = ModelRef(name="micro")
    for method in METHODS:
        request = EditRequest(
            image=asset, model=model, pairs=(PAIR,), drag=SPECS[method].drag_config()
        )
        found = draw.variants(request)
        assert found["own"].drag.method == "auto"
        assert not found["own"].drag.refine
        steps = [v.drag.steps for n, v in found.items() if n != "own"]
        assert steps == sorted(steps)
        assert len(set(steps)) == (3 if SPECS[method].optimises else 0)
        for name, variant in found.items():
            assert draw.same_drag(variant, dataclasses.replace(variant, parent="else"))
            others = [v for n, v in found.items() if n != name]
            assert not any(draw.same_drag(variant, v) for v in others)
