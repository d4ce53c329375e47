"""Fault 40: the browser is closed in the middle of a job; the job goes on, and is found again."""

from __future__ import annotations

from conftest import Bench, Server, picture
from patience import until
from playwright.sync_api import Browser, expect

from workbench.core.record import JobState

SIZE = (256, 192)
SETTINGS = {"lora": {"steps": 2, "batch_size": 1, "rank": 4}, "drag": {"steps": 200}}


def arrive(chromium: Browser, server: Server) -> Bench:
    """A browser of its own: no cookie, no session."""
    return Bench(chromium.new_context(viewport={"width": 1440, "height": 1000}), server.url)


def leave(bench: Bench) -> None:
    """Close it, and with it the only connection to the server."""
    bench.check()
    bench.context.close()


def test_fault_40_the_job_outlives_the_browser_that_asked_for_it(
    server: Server, chromium: Browser
) -> None:
    first = arrive(chromium, server)
    name = server.project(picture(*SIZE, seed=40), **SETTINGS)
    image = server.store.projects.load(name).image
    first.open("/drag", project=name)
    first.stroke((77, 77), (230, 180), size=SIZE)
    first.page.get_by_role("button", name="Run", exact=True).click()
    expect(first.page.get_by_text("Dragging · step")).to_be_visible()
    job = first.query("job")
    assert job
    leave(first)  # no session is left that watches
    assert not server.store.records(image=image)

    # somebody comes by the same address with another browser: no session state but the address
    second = arrive(chromium, server)
    second.open("/drag", project=name, job=job)
    expect(second.page.get_by_text("Dragging · step")).to_be_visible()
    leave(second)

    until(lambda: server.store.records(image=image), every=0.2)
    (record,) = server.store.records(image=image)
    assert record.status is JobState.DONE

    third = arrive(chromium, server)
    third.open("/drag", project=name, job=job)
    expect(third.page.get_by_role("link", name="Open in Results")).to_be_visible()
    third.open("/results", project=name, edit=record.id)
    expect(third.page.get_by_role("heading", level=1)).to_have_text("Results")
    leave(third)
