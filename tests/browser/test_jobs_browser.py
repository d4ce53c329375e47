"""Jobs seen from the page: cancel, run again, reload in the middle, two people at once."""

from __future__ import annotations

import re
from typing import Any

from conftest import JOB, Bench, Server, picture
from playwright.sync_api import expect

from workbench.core.record import JobState
from workbench.ui.shell.forms import say

SIZE = (64, 48)  # the micro model's own size: short steps, many of them
LONG = {"lora": {"steps": 2, "batch_size": 1, "rank": 4}, "drag": {"steps": 2000}}


def begin(server: Server, bench: Bench, seed: int, **settings: Any) -> str:
    """A project with an arrow, run; its id."""
    name = server.project(picture(*SIZE, seed=seed), **settings)
    bench.open("/drag", project=name)
    bench.stroke((19, 19), (57, 45), size=SIZE)
    bench.page.get_by_role("button", name="Run", exact=True).click()
    bench.settle()
    return name


def test_cancel_then_run_again(server: Server, bench: Bench) -> None:
    name = begin(server, bench, 21, **LONG)
    expect(bench.page.get_by_text("Dragging · step")).to_be_visible(timeout=JOB)
    bench.cancel()
    image = server.store.projects.load(name).image
    (record,) = server.store.records(image=image)
    assert record.status is JobState.CANCELLED
    bench.page.get_by_role("button", name="Run", exact=True).click()
    expect(bench.page.get_by_text("Dragging · step")).to_be_visible(timeout=JOB)
    bench.cancel()


def test_reload_and_second_browser_find_the_job(
    server: Server, bench: Bench, new_bench: Any
) -> None:
    begin(server, bench, 22, **LONG)
    job = bench.query("job")
    assert job
    expect(bench.page.get_by_text("Dragging · step")).to_be_visible(timeout=JOB)
    bench.page.reload()
    bench.settle(1.0)
    assert bench.query("job") == job
    expect(bench.page.get_by_text("Dragging · step")).to_be_visible()

    other: Bench = new_bench()
    begin(server, other, 23)
    expect(other.page.get_by_text("Next in the queue")).to_be_visible()
    expect(bench.page.get_by_text("Dragging · step")).to_be_visible()  # theirs changed nothing
    bench.cancel()
    expect(other.page.get_by_role("link", name="Open in Results")).to_be_visible(timeout=JOB)


def test_the_page_can_be_left_and_more_can_be_queued(server: Server, bench: Bench) -> None:
    begin(server, bench, 24, **LONG)
    expect(bench.page.get_by_text("Dragging · step")).to_be_visible(timeout=JOB)
    bench.stroke((45, 15), (50, 25), size=SIZE)  # drawing goes on while it runs
    bench.page.get_by_role("button", name="Queue this drawing").click()
    bench.settle()
    expect(bench.page.get_by_text("Next in the queue")).to_be_visible()
    bench.page.get_by_text("Other jobs (1)").click()
    expect(bench.page.get_by_text("Dragging · step")).to_be_visible()  # the one that runs
    bench.goto_page("Upload & train")
    expect(bench.page.get_by_role("button", name="2 jobs running")).to_be_visible()
    bench.goto_page("Mask & points")
    assert bench.query("job")
    expect(bench.page.get_by_text("Next in the queue")).to_be_visible()
    bench.cancel()
    bench.page.get_by_text("Other jobs (1)").click()
    bench.page.get_by_role("button", name=re.compile("^Cancel Test picture")).click()
    stop = bench.page.get_by_role("button", name="Stop", exact=True)
    idle = bench.page.get_by_text("Other jobs (1)")
    expect(stop.or_(idle).first).to_be_visible()
    bench.settle()
    if stop.count():
        stop.click()
    expect(idle).to_have_count(0)


def test_an_unknown_job_or_project_in_the_address_is_said_so(server: Server, bench: Bench) -> None:
    name = server.project(picture(*SIZE, seed=25))
    bench.open("/drag", project=name, job="01ARZ3NDEKTSV4RRFFQ69G5FAV")
    expect(bench.page.get_by_text(say("draw.unknown_job"))).to_be_visible()
    bench.open("/drag", project="../../etc/passwd")
    expect(bench.page.get_by_text("No picture is open.")).to_be_visible()
    expect(bench.page.get_by_text("Traceback")).to_have_count(0)


def test_pages_change_and_strokes_come_while_a_job_runs(server: Server, bench: Bench) -> None:
    """`settle` fails as soon as the browser is sent an element without its container."""
    begin(server, bench, 27, **LONG)
    places = ["Results", "Mask & points", "Compare", "Mask & points", "History", "Mask & points"]
    for n, title in enumerate(2 * places):
        bench.page.get_by_role("link", name=title, exact=True).first.click()
        bench.page.wait_for_timeout((60, 450, 900)[n % 3])
        if title == "Mask & points":
            # the menu's entry reruns the drawing's fragment while the page is still being sent
            bench.page.keyboard.press("b" if n % 4 == 1 else "a")
    bench.settle()
    expect(bench.page.get_by_role("heading", level=1)).to_have_text("Mask & points")
    bench.stroke((19, 40), (40, 40), size=SIZE)  # drawn while the run goes on
    expect(bench.page.get_by_role("button", name=say("draw.queue_another"))).to_be_enabled()
    bench.cancel()
