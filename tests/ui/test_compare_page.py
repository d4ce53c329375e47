"""Compare and sweep: what the address names is shown, what cannot be shown is said, forms make plans."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from workbench.app import App
from workbench.canvas.drawing import Arrow, Drawing
from workbench.core.config import DragConfig, LoraConfig
from workbench.core.record import EditRecord, EditResult, JobState
from workbench.core.request import EditRequest, ImageAsset, ModelRef, Point, PointPair, SweepTask
from workbench.jobs import Job
from workbench.sweeps import Axis, Plan
from workbench.sweeps.results import metrics_csv
from workbench.ui.compare import facts, sweep_form
from workbench.ui.shell.backend import Backend, get_backend
from workbench.ui.shell.edits import EditView
from workbench.ui.shell.forms import inert, say
from workbench.ui.shell.workspace import Workspace

PAIRS = (PointPair(Point(10, 12), Point(30, 12)),)


@pytest.fixture(autouse=True)
def no_model(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed here: the model need not be loaded behind the pages."""
    monkeypatch.setattr(app, "warm_up", lambda name="": None)


def image(app: App, seed: int = 0, name: str = "Test picture") -> ImageAsset:
    rgb = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return app.store.put_image(rgb, name)


def done(app: App, request: EditRequest, **result: Any) -> EditRecord:
    """A finished edit, written as a run writes it."""
    rgb = app.store.image(request.image.id).copy()
    rgb[10:20, 10:30] = 255 - rgb[10:20, 10:30]
    made = {
        "image": app.store.put_image(rgb).id,
        "distances": (4.0,),
        "iterations": 7,
        "seconds": {"drag": 2.0, "decode": 0.5},
        "trajectory": ((Point(10, 12),), (Point(26, 12),)),
    }
    return _end(app, request, JobState.DONE, result=EditResult(**{**made, **result}))


def failed(app: App, request: EditRequest, error: str) -> EditRecord:
    return _end(app, request, JobState.FAILED, error=error)


def _end(app: App, request: EditRequest, status: JobState, **more: Any) -> EditRecord:
    name = app.store.begin(request)
    record = EditRecord(id=name, request=request, status=status, **more)
    app.store.finish(record)
    return record


@pytest.fixture
def request_(app: App) -> EditRequest:
    return EditRequest(image=image(app), pairs=PAIRS, prompt="a test", model=ModelRef(name="micro"))


@pytest.fixture
def two(app: App, request_: EditRequest) -> list[EditRecord]:
    drag = DragConfig(steps=20, mask_weight=0.3)
    return [
        done(app, request_),
        done(
            app,
            dataclasses.replace(request_, drag=drag),
            distances=(1.5,),
            trajectory=((Point(10, 12),), (Point(28.5, 12),)),
        ),
    ]


@pytest.fixture
def space(app: App, request_: EditRequest) -> Workspace:
    """A project of the picture with one arrow drawn."""
    drawing = Drawing(tuple(Arrow(p) for p in PAIRS))
    return Workspace.create(
        app.store,
        request_.image,
        title="Test picture",
        settings={"model": "micro"},
        drawing=drawing.to_json(),
    )


@pytest.fixture
def compare_page(visit: Callable[..., AppTest]) -> Callable[..., AppTest]:
    def go(**query: str) -> AppTest:
        page = visit()
        for name, value in query.items():
            page.query_params[name] = value
        page.switch_page("pages/compare.py").run()
        assert not page.exception
        return page

    return go


def query(page: AppTest, name: str) -> str:
    """A parameter of the page's address, which AppTest gives as text or as a list of one."""
    value = page.query_params[name]
    return value if isinstance(value, str) else value[0]


def tables(page: AppTest) -> list[str]:
    return [
        h.proto.body
        for h in page.get("html")
        if "wb-facts" in h.proto.body and "<table" in h.proto.body
    ]


def said(page: AppTest) -> str:
    return " ".join(
        m.value for kind in (page.info, page.warning, page.error, page.caption) for m in kind
    )


def component(page: AppTest, key: str) -> dict[str, Any]:
    """What was handed to one of our components."""
    for element in page.get("bidi_component"):
        if key in element.proto.id:
            data: dict[str, Any] = json.loads(element.proto.json)
            return data
    raise AssertionError(f"no component {key} on the page")


# --- compare --------------------------------------------------------------------------------------------


def test_the_address_names_the_edits(
    two: list[EditRecord], compare_page: Callable[..., AppTest]
) -> None:
    ids = ",".join(r.id for r in two)
    page = compare_page(edits=ids)
    assert query(page, "edits") == ids
    shown = component(page, "compare_pictures")
    assert [i["label"] for i in shown["images"]] == [
        "1 · DragDiffusion, steps 80, mask weight 0.1",
        "2 · DragDiffusion, steps 20, mask weight 0.3",
    ]
    metrics, parameters = tables(page)
    assert "4.0 of 20 px" in metrics
    assert '<td class="wb-best">1.5 of 20 px</td>' in metrics
    assert re.findall(r'<th scope="row">([^<]*)</th>', parameters) == [
        "Drag: steps",
        "Drag: mask weight",
    ]

    page.toggle(key="compare_all").set_value(True).run()
    every = tables(page)[1]
    assert every.count("wb-differs") == 2
    rows = re.findall(r'<th scope="row">([^<]*)</th>', every)
    assert rows[:2] == ["Drag: steps", "Drag: mask weight"], "what differs stands on top"
    assert {"Picture", "Arrows", "Prompt", "LoRA: rank", "Inversion: strength"} <= set(rows)


def test_difference_and_original(
    two: list[EditRecord], compare_page: Callable[..., AppTest]
) -> None:
    page = compare_page(edits=",".join(r.id for r in two))
    page.toggle(key="compare_original").set_value(True).run()
    assert [i["label"] for i in component(page, "compare_pictures")["images"]][2:] == ["Original"]
    page.segmented_control(key="compare_view").set_value("Difference").run()
    assert say("compare.dark_no_difference_bright_a", share=0, delta=0, mean=0) in said(page)
    page.selectbox(key="compare_1_3").set_value("Original").run()
    assert len(component(page, "compare_pictures")["images"]) == 3
    share = re.search(r"([\d.]+)% of the pixels", said(page))
    assert share
    assert float(share[1]) == pytest.approx(100 * 200 / (48 * 64), abs=0.06)


def test_without_an_address_the_last_two_edits_of_the_picture(
    two: list[EditRecord], space: Workspace, compare_page: Callable[..., AppTest]
) -> None:
    page = compare_page(project=space.id)
    assert query(page, "edits") == ",".join(r.id for r in two)
    board = component(page, "compare_board")
    assert [g["title"] for g in board["groups"]] == ["This picture"]
    assert [c["id"] for c in board["groups"][0]["cells"]] == [two[1].id, two[0].id]


def test_edits_of_several_pictures(
    app: App, two: list[EditRecord], request_: EditRequest, compare_page: Callable[..., AppTest]
) -> None:
    wide = dataclasses.replace(request_, image=image(app, 5, name="Other <b>one</b>"))
    other = done(app, wide, distances=(0.5,))
    page = compare_page(edits=f"{two[0].id},{other.id}")
    labels = [i["label"] for i in component(page, "compare_pictures")["images"]]
    assert labels == ["1 · Test picture, DragDiffusion", "2 · Other <b>one</b>, DragDiffusion"]
    metrics, parameters = tables(page)
    assert "wb-best" not in metrics, "drags of two pictures have no best"
    assert "Other &lt;b&gt;one&lt;/b&gt; (2), 64 × 48 px" in parameters


@pytest.mark.parametrize(
    "text", ["x" * 400, "../../etc,<script>", ",,,", "01M8478RMQ4VCY84EX5YWD0K7Z"]
)
def test_an_address_that_names_nothing(
    two: list[EditRecord], text: str, compare_page: Callable[..., AppTest]
) -> None:
    page = compare_page(edits=text)
    assert not page.error
    assert (
        "cannot be shown" in said(page) or len(component(page, "compare_pictures")["images"]) == 2
    )


def test_failed_edits_and_more_than_six(
    app: App, two: list[EditRecord], request_: EditRequest, compare_page: Callable[..., AppTest]
) -> None:
    bad = failed(app, request_, "Out of memory.")
    page = compare_page(edits=f"{two[0].id},{bad.id},{two[1].id}")
    assert say("compare.edits_from_this_address_cannot", edits="1 edit") in said(page)
    assert len(component(page, "compare_pictures")["images"]) == 2
    more = [done(app, request_) for _ in range(7)]
    page = compare_page(edits=",".join(r.id for r in more))
    assert len(component(page, "compare_pictures")["images"]) == 6


def test_an_empty_history_says_what_to_do(app: App, compare_page: Callable[..., AppTest]) -> None:
    assert say("compare.select_fewest_to_most_edits", fewest=2, most=6) in said(compare_page())


def test_the_contact_sheet_of_the_chosen(app: App, two: list[EditRecord]) -> None:
    from workbench.ui.compare import contact_sheet

    views = [EditView(app.store, r) for r in two]
    raw = contact_sheet(views, facts.names(two))
    with Image.open(io.BytesIO(raw)) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width >= 2 * 384


# --- sweep ----------------------------------------------------------------------------------------------


def plan(request: EditRequest) -> Plan:
    return Plan(request, (Axis("method", ("warp", "auto")), Axis("drag.steps", (5, 9))))


@pytest.fixture
def backend(app: App) -> Backend:
    return get_backend()


def open_sweep(page: AppTest) -> AppTest:
    page.segmented_control(key="compare_part_Compare").set_value("Sweep").run()
    assert not page.exception
    return page


def test_the_form_becomes_one_job(
    app: App,
    space: Workspace,
    compare_page: Callable[..., AppTest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[SweepTask] = []
    monkeypatch.setattr(app, "submit_sweep", lambda task, _owner: taken.append(task) or "0" * 26)
    page = open_sweep(compare_page(project=space.id))
    run = page.button(key="sweep_run")
    assert run.disabled
    assert inert(say("compare.select_a_second_method_or")) in said(page)
    page.get("button_group")[-1].set_value(["warp", "auto"]).run()
    page.selectbox(key="sweep_parameter_1").set_value("drag.steps").run()
    page.text_input(key="sweep_values_1_drag.steps").set_value("5, 9000").run()
    assert page.button(key="sweep_run").disabled
    assert "9000 is not possible; it goes from 0 to 2000" in re.sub(r"\\", "", said(page))
    page.text_input(key="sweep_values_1_drag.steps").set_value("5, 9").run()
    words = " ".join(m.value for m in page.markdown)
    assert "**2 × 2** = 4 cells" in words
    assert "3 different edits" in words
    assert f"3 runs, {say('compare.about_time', time='')}" in words
    page.button(key="sweep_run").click().run()
    assert not page.exception
    (task,) = taken
    assert [r.drag.method for r in task.requests] == ["warp", "auto", "auto"]
    assert [r.drag.steps for r in task.requests[1:]] == [5, 9]
    assert all(r.pairs == PAIRS and r.image.id == space.image.id for r in task.requests)
    name = query(page, "sweep")
    assert [c["label"] for c in component(page, "sweep_board")["table"]["rows"]] == ["Warp", "Auto"]

    # found again: by its address in a new session, and in the project's list
    assert component(compare_page(project=space.id, sweep=name), "sweep_board")
    page.button(key="sweep_new").click().run()
    assert page.button(key=f"sweep_{name}").label == "Method × steps (2 × 2)"


def test_without_an_arrow_there_is_nothing_to_sweep(
    app: App, space: Workspace, compare_page: Callable[..., AppTest]
) -> None:
    space.change(drawing={})
    assert say("compare.no_arrows_yet_draw_one") in said(open_sweep(compare_page(project=space.id)))
    assert say("compare.a_sweep_repeats_an_edit") in said(open_sweep(compare_page()))


def test_cells_show_picture_reason_or_that_they_were_not_run(
    app: App, backend: Backend, space: Workspace, request_: EditRequest,
    compare_page: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    grid = plan(request_)
    name = sweep_form.save(backend, space, grid)
    warp = done(app, grid.cells[0].request, iterations=0)
    failed(app, grid.cells[2].request, "The device ran out of <b>memory</b>.")
    page = compare_page(project=space.id, sweep=name)
    rows = component(page, "sweep_board")["table"]["rows"]
    states = [[c["state"] for c in row["cells"]] for row in rows]
    assert states == [["done", "done"], ["failed", "missing"]]
    assert rows[1]["cells"][0]["reason"] == "The device ran out of <b>memory</b>."
    assert rows[0]["cells"][0]["id"] == rows[0]["cells"][1]["id"] == warp.id

    now = sweep_form.standing(backend, grid)
    with Image.open(io.BytesIO(sweep_form.sheet(backend, now))) as sheet:
        assert sheet.format == "PNG"
    lines = list(csv.DictReader(io.StringIO(metrics_csv(grid, now.outcomes))))
    assert [line["state"] for line in lines] == ["done", "done", "failed", "missing"]

    taken: list[SweepTask] = []
    monkeypatch.setattr(app, "submit_sweep", lambda task, _owner: taken.append(task) or "0" * 26)
    assert page.button(key="sweep_rest").label == say(
        "compare.run_the_missing_ones_number", number=2
    )
    page.button(key="sweep_rest").click().run()
    assert [r.drag.steps for r in taken[0].requests] == [5, 9]


def test_a_sweep_under_way_can_be_cancelled(
    app: App, backend: Backend, space: Workspace, request_: EditRequest,
    compare_page: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    grid = plan(request_)
    name = sweep_form.save(backend, space, grid)
    task = SweepTask(tuple(c.request for c in grid.runs()))
    job = Job(id="0" * 26, kind="sweep", payload=task, state=JobState.RUNNING, started=1.0)
    monkeypatch.setattr(backend, "recent", lambda _kind: [job])
    cancelled: list[str] = []
    monkeypatch.setattr(backend, "cancel", lambda job_id: cancelled.append(job_id))
    done(app, grid.cells[0].request)
    begun = app.store.begin(grid.cells[2].request)
    page = compare_page(project=space.id, sweep=name)
    rows = component(page, "sweep_board")["table"]["rows"]
    assert [[c["state"] for c in row["cells"]] for row in rows] == [
        ["done", "done"],
        ["running", "waiting"],
    ]
    assert page.get("progress")[0].proto.text.startswith(
        say("compare.done_of_runs_done", done=1, runs="3 runs")
    )
    page.button(key="cancel_sweep").click().run()
    assert not cancelled  # it has worked for long: first it asks
    page.button(key="cancel_sweep_keep").click().run()
    assert page.button(key="cancel_sweep").label == say("compare.cancel_all")
    page.button(key="cancel_sweep").click().run()
    page.button(key="cancel_sweep").click().run()
    assert cancelled == [job.id]
    assert begun in {p.id for p in app.store.pending()}


@pytest.mark.parametrize("name", ["x", "0" * 32, "../../x", "<b>"])
def test_a_sweep_that_is_not_known(
    app: App, name: str, space: Workspace, compare_page: Callable[..., AppTest]
) -> None:
    page = compare_page(project=space.id, sweep=name)
    assert inert(say("compare.this_sweep_was_not_found")) in said(page)
    assert "sweep" not in page.query_params


def test_names_of_edits_of_several_pictures_are_the_pictures(
    app: App, request_: EditRequest
) -> None:
    """Another picture has another prompt: that need not be said in its heading."""
    edit = done(app, request_)
    other = dataclasses.replace(
        request_,
        image=dataclasses.replace(request_.image, id="wb1:" + "0" * 32, name="Another"),
        prompt="something else",
        lora=LoraConfig(steps=7),
    )
    two = [edit, dataclasses.replace(edit, request=other)]
    first, second = facts.names(two)
    assert "prompt" not in first + second
    assert second == "2 · Another, DragDiffusion, LoRA steps 7"
