"""Compare and sweep by mouse and keyboard: choosing, zooming together, the divider, a sweep to its sheet."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, Bench, Server, picture
from PIL import Image
from playwright.sync_api import Locator, expect

from workbench.canvas.drawing import Arrow, Drawing
from workbench.core.config import DragConfig
from workbench.core.record import EditRecord, EditResult, JobState
from workbench.core.request import Point, PointPair
from workbench.ui.shell.forms import say
from workbench.ui.shell.workspace import Workspace

SIZE = (64, 48)
PAIRS = (PointPair(Point(19, 19), Point(30, 15)),)


@pytest.fixture
def space(server: Server, request: pytest.FixtureRequest) -> Workspace:
    """A project with an arrow drawn, on a picture of this test alone."""
    seed = zlib.crc32(request.node.name.encode())
    rgb = np.asarray(Image.open(io.BytesIO(picture(*SIZE, seed=seed))))
    asset = server.store.put_image(rgb, "Discs")
    drawing = Drawing(tuple(Arrow(p) for p in PAIRS)).to_json()
    return Workspace.create(server.store, asset, title="Discs", settings=QUICK, drawing=drawing)


def edits(server: Server, space: Workspace, count: int) -> list[EditRecord]:
    """Finished edits of the project, as a run would have written them."""
    made = []
    for n in range(count):
        rgb = server.store.image(space.image.id).copy()
        rgb[10:30, 10 + 8 * n : 20 + 8 * n] = (255, 40 * n, 0)
        drag = DragConfig(steps=10 + n)
        request = dataclasses.replace(space.request(PAIRS, None), drag=drag)
        record = EditRecord(
            id=server.store.begin(request),
            request=request,
            status=JobState.DONE,
            result=EditResult(
                image=server.store.put_image(rgb).id, distances=(float(n),), iterations=n
            ),
        )
        server.store.finish(record)
        made.append(record)
    return made


def transforms(bench: Bench) -> set[str]:
    """How the panes' pictures are zoomed and moved."""
    images = bench.page.locator(".wb-viewer .pane img")
    found: list[str] = images.evaluate_all("nodes => nodes.map(n => n.style.transform)")
    return set(found)


def save(bench: Bench, name: str) -> bytes:
    with bench.page.expect_download() as waiting:
        bench.page.get_by_role("button", name=name, exact=True).click()
    return Path(waiting.value.path()).read_bytes()


def tile(bench: Bench, record: EditRecord) -> Locator:
    return bench.page.locator(f".wb-board button[data-id='{record.id}']")


def middle(place: Locator) -> tuple[float, float]:
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_choose_zoom_slide_and_take_away(server: Server, bench: Bench, space: Workspace) -> None:
    page = bench.page
    a, b, c = edits(server, space, 3)
    bench.open("/compare", project=space.id, edits=f"{a.id},{b.id}")
    panes = page.locator(".wb-viewer .pane")
    expect(panes).to_have_count(2)

    # a third one from the thumbnails; a reload keeps the choice
    page.get_by_text(re.compile("^Select edits")).click()
    bench.settle()
    tile(bench, c).click()
    bench.settle()
    expect(panes).to_have_count(3)
    expect(tile(bench, c)).to_have_attribute("aria-pressed", "true")
    page.reload()
    bench.settle(1.0)
    expect(panes).to_have_count(3)
    assert (bench.query("edits") or "").replace("%2C", ",") == f"{a.id},{b.id},{c.id}"

    # the wheel over one pane zooms all; so do drag and arrow keys
    page.mouse.move(*middle(panes.nth(1)))
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    expect(page.locator(".wb-viewer .percent")).not_to_have_text("100 %")
    (zoomed,) = transforms(bench)
    x, y = middle(panes.nth(2))
    page.mouse.down()
    page.mouse.move(x - 60, y - 30, steps=4)
    page.mouse.up()
    (moved,) = transforms(bench)
    assert moved != zoomed
    panes.nth(0).focus()
    page.keyboard.press("ArrowLeft")
    (again,) = transforms(bench)
    assert again != moved

    # the divider between two of them, by key and by pointer; the zoom stays
    page.get_by_role("radio", name="Slider", exact=True).click()
    bench.settle()
    assert transforms(bench) == {again}
    page.get_by_role("button", name="Fit the whole picture").click()
    divider = page.get_by_role("slider", name=re.compile("^Divider between 1 .* and 2 "))
    expect(divider).to_have_attribute("aria-valuenow", "50")
    divider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageUp")
    expect(divider).to_have_attribute("aria-valuenow", "61")
    pane = panes.nth(0)
    pane.scroll_into_view_if_needed()
    box = pane.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.61 * box["width"], box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 60, steps=5)
    page.mouse.up()
    expect(divider).to_have_attribute("aria-valuenow", "25")

    # another pair, flicker, difference
    page.get_by_role("combobox", name="Second picture").click()
    page.get_by_role("option", name=re.compile("^3 ")).click()
    expect(
        page.get_by_role("slider", name=re.compile("^Divider between 1 .* and 3 "))
    ).to_be_visible()
    page.get_by_role("radio", name="Flicker", exact=True).click()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    page.get_by_role("radio", name="Difference", exact=True).click()
    expect(page.get_by_text("of the pixels differ by more than")).to_be_visible()
    expect(page.get_by_role("table").last).to_contain_text("Drag: steps")

    with Image.open(io.BytesIO(save(bench, "Contact sheet"))) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 2 * 384


def test_a_sweep_of_two_by_two(server: Server, bench: Bench, space: Workspace) -> None:
    space.set(inversion={"steps": 4, "strength": 0.5})
    page = bench.page
    bench.open("/compare", project=space.id)
    page.get_by_role("radio", name="Sweep", exact=True).click()
    bench.settle()
    run = page.locator(".st-key-sweep_run button")
    expect(run).to_be_disabled()
    page.get_by_role("button", name="Auto", exact=True).click()
    bench.settle()
    page.get_by_role("combobox", name="Parameter", exact=True).click()
    page.get_by_role("option", name="Drag: steps", exact=True).click()
    values = page.get_by_role("textbox", name="Values")
    values.fill("1, 2")
    values.press("Enter")
    expect(run).to_have_text(re.compile("Run 4 edits"))
    run.click()
    cells = page.locator(".wb-board button.cell")
    expect(cells).to_have_count(4)
    expect(page.get_by_role("button", name="Cancel all")).to_have_count(0)
    name = bench.query("sweep")
    assert name

    made = server.store.records(image=space.image.id)
    assert {(r.request.drag.method, r.request.drag.steps) for r in made} == {
        (method, steps) for method in ("dragdiffusion", "auto") for steps in (1, 2)
    }
    assert all(r.status is JobState.DONE for r in made)

    # found again by its address, in a new session
    page.reload()
    bench.settle(1.0)
    assert bench.query("sweep") == name
    expect(cells).to_have_count(4)
    heads = page.locator(".wb-board th")
    expect(heads).to_have_text(["Steps 1", "Steps 2", "DragDiffusion", "Auto"])
    with Image.open(io.BytesIO(save(bench, "Contact sheet"))) as sheet:
        assert sheet.width > 2 * 320
        assert len(sheet.convert("RGB").getcolors(2**20) or ()) > 100
    rows = list(csv.DictReader(io.StringIO(save(bench, say("compare.measurements_csv")).decode())))
    assert [r["state"] for r in rows] == ["done"] * 4
    assert {r["edit"] for r in rows} == {r.id for r in made}

    # two of its cells against each other, by keyboard
    cells.nth(0).focus()
    page.keyboard.press("Space")
    cells.nth(3).focus()
    page.keyboard.press("Enter")
    go = page.get_by_role("button", name=say("compare.compare_selected_number", number=2))
    expect(go).to_be_enabled()
    go.click()
    expect(page.locator(".wb-viewer .pane")).to_have_count(2)
    bench.settle()
    chosen = (bench.query("edits") or "").replace("%2C", ",")
    assert chosen == ",".join(rows[n]["edit"] for n in (0, 3))


def test_cancel_all_and_begin_anew(server: Server, bench: Bench, space: Workspace) -> None:
    space.set(
        drag=dataclasses.asdict(DragConfig(steps=900)), inversion={"steps": 60, "strength": 0.9}
    )
    page = bench.page
    bench.open("/compare", project=space.id)
    page.get_by_role("radio", name="Sweep", exact=True).click()
    bench.settle()
    page.get_by_role("combobox", name="Parameter", exact=True).click()
    page.get_by_role("option", name="Drag: mask weight", exact=True).click()
    bench.settle()
    page.locator(".st-key-sweep_run button").click()
    cancel = page.get_by_role("button", name="Cancel all")
    expect(cancel).to_be_visible()
    expect(page.locator(".wb-board .cell.running")).to_have_count(1)
    cancel.click()
    expect(page.get_by_text(say("compare.cancelled_finished_edits_are_kept"))).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Run the missing ones"))).to_be_visible()
    assert not server.store.pending()

    # back to the form, which a reload keeps
    page.get_by_role("button", name="New sweep").click()
    expect(page.locator(".st-key-sweep_run button")).to_be_visible()
    page.reload()
    bench.settle(1.0)
    expect(page.locator(".st-key-sweep_run button")).to_be_visible()
    assert "sweep=" not in page.url
