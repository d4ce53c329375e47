"""A picture from a prompt by mouse: made, cancelled, found again after a reload, taken and dragged."""

from __future__ import annotations

import dataclasses
import re

from conftest import QUICK, Bench, Server
from playwright.sync_api import expect

from workbench.core.record import JobState
from workbench.ui.shell.forms import say

SIZE = (64, 64)


def ask(bench: Bench, prompt: str, *, steps: int, count: int) -> None:
    """Fill the form and press its button."""
    page = bench.page
    page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    page.get_by_role("spinbutton", name=say("upload.pictures")).fill(str(count))
    if not page.get_by_role("spinbutton", name="Steps").is_visible():
        page.get_by_text("More options").click()
    page.get_by_role("spinbutton", name="Steps").fill(str(steps))
    page.keyboard.press("Tab")
    bench.settle()
    page.get_by_role("button", name=say("upload.generate")).click()


def test_make_choose_and_drag(server: Server, bench: Bench) -> None:
    page = bench.page
    bench.open("/")
    page.get_by_role("radio", name=say("upload.generate")).click()
    bench.settle()
    ask(bench, "a <b>red</b> robot", steps=4, count=2)
    take = page.get_by_role("button", name=re.compile("^Edit this one"))
    expect(take).to_have_count(2)  # the first job also waits for torch
    expect(page.get_by_text("2 candidates for “a <b>red</b> robot”")).to_be_visible()
    first = bench.query("job")
    ask(bench, "a robot of another kind", steps=500, count=8)
    cancel = page.locator(".st-key-card_generate_job").get_by_role("button", name="Cancel")
    cancel.click()
    expect(page.get_by_text("Cancelled", exact=True)).to_be_visible()
    assert bench.query("job") != first

    assert first
    bench.open("/", job=first)
    bench.settle(1.0)
    expect(take).to_have_count(2)
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value(
        "a <b>red</b> robot"
    )
    take.last.click()
    bench.settle(1.0)
    expect(page.get_by_role("heading", level=1)).to_have_text(say("common.mask_points"))
    bench.goto_page("Upload & train")
    expect(page.get_by_text(say("upload.generated_here_ready_to_drag"))).to_be_visible()
    expect(page.get_by_role("button", name="Train", exact=True)).to_have_count(0)
    name = bench.query("project")
    assert name
    kept = server.store.projects.load(name)
    assert kept.settings["made"]["config"]["seed"] == 1
    quick = {**kept.settings, "drag": QUICK["drag"]}
    server.store.projects.save(dataclasses.replace(kept, settings=quick))

    bench.goto_page("Mask & points")
    bench.stroke((20, 30), (40, 24), size=SIZE)
    page.get_by_role("button", name="Run", exact=True).click()
    see = page.get_by_role("link", name="Open in Results")
    expect(see).to_be_visible()
    see.click()
    bench.settle(1.0)
    record = server.store.record(bench.query("edit") or "")
    assert record.status is JobState.DONE
    assert record.request.generation is not None
    assert record.request.generation.seed == 1
    assert record.result is not None
    assert "generate" in record.result.cached
    assert not {"lora", "invert"} & set(record.result.seconds)
