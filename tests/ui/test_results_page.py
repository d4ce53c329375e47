"""Results without a browser: every view, every figure, every way on from a finished edit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from workbench.app import App
from workbench.core.config import DragConfig
from workbench.core.record import (
    STAGES,
    EditRecord,
    EditResult,
    JobState,
    StopReason,
)
from workbench.core.request import EditRequest, ModelRef, Point, PointPair
from workbench.ui.results import VIEWS
from workbench.ui.shell.edits import EditView
from workbench.ui.shell.forms import say
from workbench.ui.shell.projection import stored
from workbench.ui.shell.workspace import Workspace

PAIRS = (PointPair(Point(10, 12), Point(30, 12)), PointPair(Point(40, 30), Point(40, 10)))
ROWS = (
    (Point(10, 12), Point(40, 30)),
    (Point(20, 12), Point(40, 28)),
    (Point(29, 12), Point(40, 27)),
)


@pytest.fixture
def request_(app: App) -> EditRequest:
    rgb = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    mask = np.zeros((48, 64), np.bool_)
    mask[4:40, 4:60] = True
    return EditRequest(
        image=app.store.put_image(rgb, "Test picture"),
        mask=app.store.put_mask(mask),
        pairs=PAIRS,
        prompt="a test",
        model=ModelRef(name="micro"),
        drag=DragConfig(steps=20, mask_weight=0.3),
    )


@pytest.fixture
def edit(app: App, request_: EditRequest) -> EditRecord:
    """A finished edit: the first arrow arrived, the second made 3 of 20 px."""
    rgb = app.store.image(request_.image.id).copy()
    rgb[10:20, 10:30] = 255 - rgb[10:20, 10:30]
    result = EditResult(
        image=app.store.put_image(rgb).id,
        distances=(1.0, 17.0),
        iterations=20,
        stop=StopReason.STEP_LIMIT.name,
        seconds={"lora": 0.0, "drag": 2.0, "decode": 0.5},
        cached=("lora",),
        trajectory=ROWS,
        notices=("The picture was padded.",),
    )
    return finish(app, request_, JobState.DONE, result=result)


def finish(app: App, request: EditRequest, status: JobState, **more: Any) -> EditRecord:
    record = EditRecord(id=app.store.begin(request), request=request, status=status, **more)
    app.store.finish(record)
    return record


@pytest.fixture
def space(app: App, request_: EditRequest) -> Workspace:
    return Workspace.create(
        app.store, request_.image, title="Test picture", settings={"model": "micro"}
    )


@pytest.fixture
def results(visit: Callable[..., AppTest]) -> Callable[..., AppTest]:
    def go(**query: str) -> AppTest:
        page = visit(**query)
        for name, value in query.items():
            page.query_params[name] = value
        page.switch_page("pages/results.py").run()
        assert not page.exception
        return page

    return go


def words(page: AppTest) -> str:
    """All text of the page."""
    parts = [*page.markdown, *page.caption, *page.info, *page.warning, *page.error]
    return re.sub(r"\\(.)", r"\1", "\n".join(str(p.value) for p in parts))


def press(page: AppTest, label: str) -> AppTest:
    (button,) = [b for b in page.button if b.label == label]
    return button.click().run()


def test_how_far_it_got_how_long_it_took_and_what_the_cache_gave(
    space: Workspace, edit: EditRecord, results: Callable[..., AppTest]
) -> None:
    page = results(project=space.id, edit=edit.id)
    text = words(page)
    assert say("results.arrow_number_reached_its_target", number=1, left="1.0 px") in text
    assert say("results.arrow_number_moved_share_of", number=2, share=0.15, left="17 px") in text
    assert "20 steps in 2.5 s, 1 stage from the cache" in text
    assert "The picture was padded." in text
    assert say("results.an_arrow_barely_moved_start") in text
    html = "".join(h.proto.body for h in page.get("html"))
    order = [html.index(f"<dt>{STAGES[stage]}</dt>") for stage in ("lora", "drag")]
    assert order == sorted(order)
    assert f"<dt>{STAGES['lora']}</dt><dd>{say('results.from_the_cache')}</dd>" in html
    assert f"<dt>{STAGES['drag']}</dt><dd>2.0 s</dd>" in html
    assert "<dt>Mask weight</dt><dd>0.3</dd>" in html


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_drawn(
    space: Workspace, edit: EditRecord, results: Callable[..., AppTest], view: str
) -> None:
    page = results(project=space.id, edit=edit.id)
    page.segmented_control(key="result_view").set_value(view).run()
    assert not page.exception
    assert not page.error


def test_pictures_show_what_changed_and_where_the_points_went(app: App, edit: EditRecord) -> None:
    view = EditView(app.store, edit)
    heat = view.heat().astype(int).sum(axis=2)
    assert heat[12:18, 12:28].mean() > 3 * heat[25:45, 5:60].mean()
    assert (view.paths() != view.after()).any(axis=2)[12, 10:30].any()


def test_downloads_are_there(
    space: Workspace, edit: EditRecord, results: Callable[..., AppTest]
) -> None:
    page = results(project=space.id, edit=edit.id)
    labels = {d.proto.label for d in page.get("download_button")}
    assert labels >= {
        say("results.picture_png"),
        say("results.before_after_image"),
        say("results.animation_gif"),
        say("results.complete_project_zip"),
    }


def test_continue_makes_the_result_the_next_picture(
    app: App, space: Workspace, edit: EditRecord, results: Callable[..., AppTest]
) -> None:
    page = press(results(project=space.id, edit=edit.id), say("common.edit_this_result"))
    assert not page.exception
    name = page.query_params["project"]
    made = Workspace.open(app.store, name)
    assert made.id != space.id
    assert edit.result is not None
    assert made.image.id == edit.result.image
    assert made.get("parent") == edit.id
    assert made.drag == edit.request.drag
    assert made.project.prompt == "a test"
    assert not stored(made.project.drawing).arrows


def test_run_on_asks_for_more_steps_of_the_same_drag(
    app: App,
    space: Workspace,
    edit: EditRecord,
    results: Callable[..., AppTest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[EditRequest] = []
    monkeypatch.setattr(App, "submit_edit", lambda _self, r, owner="": asked.append(r) or "X" * 26)
    press(results(project=space.id, edit=edit.id), say("results.run_more_steps"))
    (request,) = asked
    assert request.drag.steps == 40
    same = dataclasses.replace(request.drag, steps=edit.request.drag.steps)
    assert dataclasses.replace(request, drag=same) == edit.request


def test_use_these_settings_brings_mask_arrows_and_options_back(
    app: App, space: Workspace, edit: EditRecord, results: Callable[..., AppTest]
) -> None:
    press(results(project=space.id, edit=edit.id), say("common.reuse_mask_and_settings"))
    kept = Workspace.open(app.store, space.id)
    assert stored(kept.project.drawing).pairs == PAIRS
    assert stored(kept.project.drawing).has_mask
    assert kept.drag == edit.request.drag


def test_replay_queues_the_edit_again(
    space: Workspace,
    edit: EditRecord,
    results: Callable[..., AppTest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(App, "submit_replay", lambda _self, name, owner="": asked.append(name))
    page = press(results(project=space.id, edit=edit.id), say("common.reproduce"))
    assert not page.exception
    assert asked == [edit.id]


def test_an_edit_without_a_picture_says_why(
    app: App, space: Workspace, request_: EditRequest, results: Callable[..., AppTest]
) -> None:
    broken = finish(app, request_, JobState.FAILED, error="The disk is full (0 bytes left).")
    text = words(results(project=space.id, edit=broken.id))
    assert f"{say('results.failed')} The disk is full (0 bytes left)." in text


def test_no_edit_yet_and_an_unknown_one(
    space: Workspace, request_: EditRequest, results: Callable[..., AppTest], app: App
) -> None:
    assert say("results.no_edits_of_this_picture") in words(results(project=space.id))
    finish(app, request_, JobState.CANCELLED)
    page = results(project=space.id, edit="../../etc/passwd")
    assert say("common.cancelled") in words(page)


def test_a_picture_that_is_gone_is_said_so(
    app: App, space: Workspace, edit: EditRecord, results: Callable[..., AppTest]
) -> None:
    assert edit.result is not None
    for path in app.settings.history.rglob(f"*{edit.result.image.split(':')[-1]}*"):
        if path.is_file():
            path.unlink()
    page = results(project=space.id, edit=edit.id)
    assert page.error
    assert not page.exception


def test_compare_takes_this_edit_and_the_newest_other_along(
    app: App,
    space: Workspace,
    request_: EditRequest,
    edit: EditRecord,
    results: Callable[..., AppTest],
) -> None:
    page = press(results(project=space.id, edit=edit.id), "Compare")
    assert not page.exception
    assert page.title[0].value == "Compare"
    assert page.query_params["edits"] == edit.id  # alone: the choice stands open with it in
    assert page.expander[0].proto.expanded
    longer = dataclasses.replace(request_, drag=DragConfig(steps=40))
    other = finish(app, longer, JobState.DONE, result=edit.result)
    finish(app, longer, JobState.CANCELLED)
    page = press(results(project=space.id, edit=edit.id), "Compare")
    assert page.query_params["edits"] == f"{other.id},{edit.id}"
    assert say("common.results") in [s.value for s in page.subheader]


def test_of_a_big_picture_the_edited_part_is_shown_close(
    app: App, request_: EditRequest, results: Callable[..., AppTest]
) -> None:
    rgb = np.random.default_rng(5).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    mask = np.zeros((600, 800), np.bool_)
    mask[200:260, 300:380] = True
    arrow = PointPair(Point(320, 230), Point(350, 230))
    asked = dataclasses.replace(
        request_,
        image=app.store.put_image(rgb, "Big"),
        mask=app.store.put_mask(mask),
        pairs=(arrow,),
    )
    after = rgb.copy()
    after[mask] = 255 - after[mask]
    result = EditResult(
        image=app.store.put_image(after).id,
        distances=(1.0,),
        iterations=3,
        stop=StopReason.REACHED.name,
        trajectory=((arrow.handle,), (arrow.target,)),
    )
    record = finish(app, asked, JobState.DONE, result=result)
    space = Workspace.create(app.store, asked.image, title="Big", settings={"model": "micro"})
    page = results(project=space.id, edit=record.id)
    assert page.toggle(key="result_near").value
    near, whole = EditView(app.store, record, near=True), EditView(app.store, record)
    assert whole.before().shape == (600, 800, 3)
    assert near.before().shape[0] < 150
    assert (near.after() != near.before()).any(axis=2).mean() > 0.2
    for view in ("Side by side", say("common.difference"), "Paths"):
        page.segmented_control(key="result_view").set_value(view).run()
        assert not page.exception
        assert not page.error
    page.toggle(key="result_near").set_value(False).run()
    assert not page.exception


def test_run_on_is_off_where_every_point_is_there(
    app: App,
    space: Workspace,
    request_: EditRequest,
    edit: EditRecord,
    results: Callable[..., AppTest],
) -> None:
    assert edit.result is not None
    there = dataclasses.replace(edit.result, stop=StopReason.REACHED.name)
    arrived = finish(app, request_, JobState.DONE, result=there)
    for record, off in ((edit, False), (arrived, True)):
        page = results(project=space.id, edit=record.id)
        (button,) = [b for b in page.button if b.label == say("results.run_more_steps")]
        assert button.disabled is off
