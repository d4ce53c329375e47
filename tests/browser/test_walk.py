"""The whole way by mouse: picture, training, mask and arrow, run, result, downloads."""

from __future__ import annotations

import dataclasses
import io
import re
import zipfile
from pathlib import Path
from typing import Any

from conftest import JOB, QUICK, Bench, Server, picture
from PIL import Image
from playwright.sync_api import expect

from workbench.canvas.rasterize import rasterise
from workbench.core.record import JobState
from workbench.imaging import decode
from workbench.ui.shell.forms import say

SIZE = (64, 48)  # the micro model's own size, so that no crop is made


def download(bench: Bench, label: str) -> bytes:
    """Press a download button and take what comes."""
    with bench.page.expect_download() as waiting:
        bench.page.get_by_role("button", name=label, exact=True).click()
    return Path(waiting.value.path()).read_bytes()


def make_quick(server: Server, bench: Bench) -> str:
    """Give the open project few steps; its id."""
    name = bench.query("project")
    assert name
    kept = server.store.projects.load(name)
    server.store.projects.save(dataclasses.replace(kept, settings={**kept.settings, **QUICK}))
    return name


def test_from_upload_to_download(server: Server, bench: Bench) -> None:
    bench.open("/")
    expect(bench.page.get_by_role("heading", level=1)).to_have_text(say("shell.product"))
    raw = picture(*SIZE, seed=77)
    bench.upload(raw, name="my <b>picture</b>.png")
    heading = bench.page.get_by_role("heading", level=1)
    expect(heading).to_have_text(say("common.mask_points"))  # straight to the canvas
    name = make_quick(server, bench)
    bench.open("/", project=name)
    bench.page.get_by_role("textbox", name=say("upload.describe_the_picture")).fill(
        "two discs on waves"
    )
    bench.page.get_by_role("heading", level=1).click()
    bench.settle()
    bench.page.get_by_role("button", name="Train", exact=True).click()
    known = bench.page.get_by_role("heading", name=say("upload.reconstruction"))
    expect(known).to_be_visible(timeout=JOB)
    assert server.store.projects.load(name).prompt == "two discs on waves"

    bench.page.get_by_role("link", name="Mask & points").last.click()
    bench.settle(1.0)
    run = bench.page.get_by_role("button", name="Run", exact=True)
    expect(run).to_be_disabled()
    bench.stroke((19, 25), (30, 20), size=SIZE)
    bench.tool("Brush")
    bench.stroke((15, 27), (32, 17), (26, 27), (18, 20), size=SIZE)
    expect(run).to_be_enabled()
    run.click()
    see = bench.page.get_by_role("link", name="Open in Results")
    expect(see).to_be_visible(timeout=JOB)
    assert bench.query("job")
    see.click()
    expect(bench.page.get_by_role("heading", level=1)).to_have_text("Results")
    bench.settle()

    record = server.store.record(bench.query("edit") or "")
    assert record.status is JobState.DONE
    assert record.result is not None
    assert "lora" in record.result.cached, "the training was not reused"
    before, after = (server.store.image(i) for i in (record.request.image.id, record.result.image))
    mask = server.store.mask(record.request.mask.id)  # type: ignore[union-attr]
    assert (before[~mask] == after[~mask]).all()
    assert (before[mask] != after[mask]).any()

    png = download(bench, say("results.picture_png"))
    decoded = decode.decode(png)
    assert (decoded.rgb == after).all()
    assert decoded.edit is not None
    assert (
        Image.open(io.BytesIO(download(bench, say("results.before_after_image")))).width
        > 2 * SIZE[0]
    )
    with Image.open(io.BytesIO(download(bench, say("results.animation_gif")))) as film:
        assert getattr(film, "n_frames", 1) > 1
    with zipfile.ZipFile(
        io.BytesIO(download(bench, say("results.complete_project_zip")))
    ) as packed:
        assert "index.html" in packed.namelist()

    # the picture brings its edit along when it is dropped on the first page
    bench.goto_page("Upload & train")
    bench.page.get_by_role("button", name=say("shell.open_another_picture")).click()
    expect(heading).to_have_text(say("shell.product"))
    bench.upload(png, name="result.png")
    bench.page.get_by_role("button", name=say("upload.restore_the_edit")).click()
    expect(heading).to_have_text(say("common.mask_points"))
    restored = bench.query("project")
    assert restored
    assert restored != name
    drawing = server.drawn(restored, lambda d: d.arrows)
    assert [a.pair for a in drawing.arrows] == list(record.request.pairs)
    assert (rasterise(drawing, *SIZE) == mask).all()


def test_continue_run_on_and_reuse(server: Server, bench: Bench) -> None:
    name = server.project(picture(*SIZE, seed=5))
    bench.open("/drag", project=name)
    bench.stroke((19, 19), (30, 15), size=SIZE)
    bench.page.get_by_role("button", name="Run", exact=True).click()
    see = bench.page.get_by_role("link", name="Open in Results")
    expect(see).to_be_visible(timeout=JOB)
    see.click()
    bench.settle(1.0)
    first = bench.query("edit")
    assert first
    bench.page.get_by_role("button", name=say("results.run_more_steps")).click()
    bench.settle()
    expect(bench.page.get_by_role("heading", level=1)).to_have_text("Mask & points")
    expect(see).to_be_visible(timeout=JOB)
    see.click()
    bench.settle(1.0)
    longer = server.store.record(bench.query("edit") or "")
    assert longer.request.drag.steps == server.store.record(first).request.drag.steps + 20
    assert longer.result is not None
    assert "drag" in longer.result.cached, "it began anew instead of running on"

    bench.page.get_by_role("button", name=say("common.reuse_mask_and_settings")).click()
    bench.settle()
    assert server.store.projects.load(name).settings["drag"]["steps"] == 24
    bench.goto_page("Results")
    bench.page.get_by_role("button", name=say("common.edit_this_result")).click()
    bench.settle(1.0)
    child = bench.query("project")
    assert child
    assert child != name
    kept = server.store.projects.load(child)
    assert kept.settings["parent"] == longer.id
    assert kept.image == longer.result.image
    assert not server.drawing(child).arrows


def test_the_slider_by_mouse_keyboard_and_zoom(server: Server, bench: Bench) -> None:
    name = server.project(picture(*SIZE, seed=6))
    bench.open("/drag", project=name)
    bench.stroke((19, 19), (30, 15), size=SIZE)
    bench.page.get_by_role("button", name="Run", exact=True).click()
    see = bench.page.get_by_role("link", name="Open in Results")
    expect(see).to_be_visible(timeout=JOB)
    see.click()
    bench.settle(1.0)
    stage = bench.page.locator("[class*=st-key-result_0]")
    before, after = (stage.get_by_role("img", name=say(f"common.{n}")) for n in ("before", "after"))
    expect(after).to_be_visible()
    expect(before).to_be_hidden()
    tall: Any = stage.bounding_box()
    hold = bench.page.get_by_role("button", name=say("results.hold_to_see_the_original"))
    hold.dispatch_event("pointerdown", {"pointerId": 1})
    expect(before).to_be_visible()
    hold.dispatch_event("pointerup", {"pointerId": 1})
    expect(before).to_be_hidden()
    bench.page.get_by_role("radio", name=say("results.before_after")).click()
    divider = bench.page.get_by_role("slider", name=re.compile("^Divider"))
    expect(divider).to_be_visible()
    bench.settle()
    pane = stage.locator(".pane")
    box: Any = pane.bounding_box()
    bench.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    bench.page.mouse.down()
    bench.page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 40, steps=5)
    bench.page.mouse.up()
    expect(divider).to_have_attribute("aria-valuenow", "25")
    divider.press("ArrowRight")
    expect(divider).to_have_attribute("aria-valuenow", "26")
    divider.press("End")
    expect(divider).to_have_attribute("aria-valuenow", "100")
    percent = stage.locator(".percent")  # it opens on the edited part, larger than 100 %
    before_zoom = int(percent.inner_text().removesuffix("%"))
    bench.page.get_by_role("button", name="Zoom in").click()
    expect(percent).not_to_have_text(f"{before_zoom} %")
    assert abs(int(percent.inner_text().removesuffix("%")) - 1.5 * before_zoom) <= 1
    for view in ("Side by side", "Flicker", say("common.difference"), "Paths", "Animation"):
        bench.page.get_by_role("radio", name=view).click()
        bench.settle()
        bench.check()
        now: Any = stage.bounding_box()
        assert abs(now["height"] - tall["height"]) <= 1, "the stage changed its size"
    film = bench.page.get_by_role("img", name=say("results.animation_of_the_drag"))
    expect(film).to_be_visible()


def test_an_example_and_its_own_drag(server: Server, bench: Bench) -> None:
    bench.open("/")
    bench.page.get_by_role("button", name="Robot with a laser", exact=True).last.click()
    bench.settle(1.0)
    name = bench.query("project")
    assert name
    assert "robot" in server.store.projects.load(name).prompt
    expect(bench.page.get_by_role("heading", level=1)).to_have_text(say("common.mask_points"))
    drawing = server.drawn(name, lambda d: len(d.arrows) == 3)
    assert len(drawing.arrows) == 3
    expect(bench.page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    assert drawing.has_mask
    bench.goto_page("Results")
    expect(bench.page.get_by_text(say("results.what_this_example_gives"))).to_be_visible()
    bench.open("/")
    bench.page.get_by_role("button", name="Robot with a laser", exact=True).last.click()
    bench.settle(1.0)
    assert bench.query("project") == name  # the same work again, not a second one
