"""The main thing, with the shipped model: mask and arrow by mouse, train, run, and the gun is up."""

from __future__ import annotations

import dataclasses

from conftest import JOB, Bench, Server
from playwright.sync_api import expect

from workbench.canvas.rasterize import rasterise
from workbench.core.config import DragConfig
from workbench.core.record import JobState
from workbench.core.request import Point, PointPair
from workbench.drag.tracking import Template
from workbench.ui.shell.forms import say

SIZE = (256, 256)
GUN = PointPair(Point(221.5, 113.7), Point(213.5, 57.7))  # of the scene robot-784
FEW = {
    "model": "storybook",
    "lora": {"steps": 4, "batch_size": 1, "rank": 4},
    "inversion": {"steps": 10, "strength": 0.7},
    "drag": dataclasses.asdict(DragConfig.preset("warp")),
}


def test_the_robot_raises_its_laser(server: Server, bench: Bench) -> None:
    bench.open("/")
    bench.page.get_by_role("button", name="Robot with a laser", exact=True).last.click()
    name = bench.query("project")
    assert name
    bench.settle(1.0)
    kept = server.store.projects.load(name)
    quick = {**kept.settings, **FEW}
    server.store.projects.save(dataclasses.replace(kept, settings=quick, drawing={}))
    bench.open("/", project=name)
    bench.settle(1.0)
    bench.page.get_by_role("button", name="Train", exact=True).click()
    known = bench.page.get_by_role("heading", name=say("upload.reconstruction"))
    expect(known).to_be_visible(timeout=2 * JOB)

    bench.goto_page("Mask & points")
    bench.tool("Rectangle")
    bench.stroke((146, 20), (254, 150), size=SIZE)
    bench.tool("Arrow")
    bench.stroke((GUN.handle.x, GUN.handle.y), (GUN.target.x, GUN.target.y), size=SIZE)
    drawing = server.drawn(name, lambda d: d.arrows and d.has_mask)
    assert drawing.pairs[0].handle.distance(GUN.handle) < 0.75
    assert drawing.pairs[0].target.distance(GUN.target) < 0.75
    bench.page.get_by_role("button", name="Run", exact=True).click()
    see = bench.page.get_by_role("link", name="Open in Results")
    expect(see).to_be_visible(timeout=2 * JOB)
    see.click()
    expect(bench.page.get_by_role("heading", level=1)).to_have_text("Results")

    (record,) = server.store.records(image=kept.image)
    assert record.status is JobState.DONE
    assert record.result is not None
    assert "lora" in record.result.cached, "the training was not reused"
    before, after = server.store.image(kept.image), server.store.image(record.result.image)
    found = Template().find(before, after, drawing.pairs[0])
    assert found.score > 0.6
    assert found.point.distance(GUN.target) < 0.15 * GUN.length, "the gun is not where it was sent"
    # what looks like the gun's place of before is no gun any more, and the rest is untouched
    mask = rasterise(drawing, *SIZE)
    assert (before[~mask] == after[~mask]).all()
