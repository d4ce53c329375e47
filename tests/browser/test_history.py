"""History in the browser: find, tick, download, import elsewhere, delete and restore, at any width."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Bench, Server
from edit_samples import add_edit
from playwright.sync_api import Locator, expect

from workbench.core.record import EditRecord
from workbench.storage.archive.read import import_zip
from workbench.storage.archive.write import export_zip
from workbench.storage.history import Store
from workbench.ui.shell.forms import say


@pytest.fixture
def edits(server: Server) -> Iterator[dict[str, EditRecord]]:
    """A small tree in the server's history; other tests' edits are put into the bin meanwhile."""
    store = server.store
    others = [r.id for r in store.records()]
    store.bin(others)
    first = add_edit(store, seed=11, name="Robot.png", prompt="a robot with a laser")
    second = add_edit(store, after=first, prompt="a robot waving")
    third = add_edit(store, seed=12, name="Boat.png", prompt="a boat at sea")
    yield {"first": first, "second": second, "third": third}
    store.restore(others)
    for name in (first.id, second.id, third.id):
        if name in {r.id for r in store.records(binned=None)}:
            store.bin([name])
            store.forget(name)


def rows(bench: Bench) -> Locator:
    """The edits in the list."""
    return bench.page.locator("[class*='st-key-open_'] button")


def row(bench: Bench, edit: EditRecord) -> Locator:
    return bench.page.locator(f".st-key-open_{edit.id} button")


def take(bench: Bench, button: Locator) -> bytes:
    """Press a download button and take what comes."""
    with bench.page.expect_download() as waiting:
        button.click()
    return Path(waiting.value.path()).read_bytes()


def edits_in(raw: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        assert file.testzip() is None
        assert b"<html" in file.read("index.html")
        return {n.split("/")[1] for n in file.namelist() if n.startswith("edits/")}


def no_sideways_scroll(bench: Bench) -> bool:
    """Whether the page fits its width."""
    return bool(
        bench.page.evaluate(
            "() => { const m = document.querySelector('[data-testid=stMain]');"
            " return m.scrollWidth <= m.clientWidth; }"
        )
    )


def test_find_tick_and_download(
    bench: Bench, server: Server, edits: dict[str, EditRecord], tmp_path: Path
) -> None:
    bench.open("/history")
    expect(rows(bench)).to_have_count(3)
    search = bench.page.get_by_placeholder(say("history.search_placeholder"))
    search.press_sequentially("waving", delay=20)  # found while one types
    expect(rows(bench)).to_have_count(1)
    expect(row(bench, edits["second"])).to_be_visible()
    expect(search).to_have_value("waving")
    expect(bench.page).to_have_url(re.compile(r"[?&]search=waving\b"))
    bench.page.reload()  # the address keeps it
    expect(rows(bench)).to_have_count(1)
    bench.page.get_by_placeholder(say("history.search_placeholder")).fill("")
    expect(rows(bench)).to_have_count(3)

    for name in ("second", "third"):
        bench.page.locator(f".st-key-ticked_{edits[name].id} label").click()
        bench.settle()
    chosen = bench.page.locator(".st-key-card_ticked")
    expect(chosen).to_contain_text("2 edits selected")
    chosen.get_by_role("button", name="Download").click()
    raw = take(
        bench, bench.page.get_by_role("button", name=say("history.edits_zip", edits="2 edits"))
    )
    assert edits_in(raw) == {edits["second"].id, edits["third"].id}

    other = Store(tmp_path / "other")  # another person's workspace
    done = import_zip(other, raw, name="from-the-page.zip")
    assert set(done.added) == {edits["second"].id, edits["third"].id}
    result = edits["second"].result
    assert result is not None
    assert (other.image(result.image) == server.store.image(result.image)).all()
    other.close()

    bench.page.keyboard.press("Escape")
    chosen.get_by_role("button", name="Compare").click()
    expect(bench.page.get_by_role("heading", level=1)).to_have_text("Compare")
    assert bench.query("edits") in (
        f"{edits['second'].id},{edits['third'].id}",
        f"{edits['second'].id}%2C{edits['third'].id}",
    )


def test_delete_restore_and_import(
    bench: Bench, server: Server, edits: dict[str, EditRecord], tmp_path: Path
) -> None:
    bench.open("/history")
    row(bench, edits["third"]).click()
    bench.settle()
    assert bench.query("edit") == edits["third"].id
    bench.page.get_by_role("button", name="More", exact=True).click()
    bench.page.get_by_role("button", name="Delete", exact=True).click()
    expect(rows(bench)).to_have_count(2)
    assert server.store.notes(edits["third"].id).binned
    bench.page.locator(".st-key-bin label").click()
    expect(row(bench, edits["third"])).to_be_visible()
    row(bench, edits["third"]).click()
    bench.settle()
    bench.page.get_by_role("button", name="Restore", exact=True).click()
    expect(row(bench, edits["third"])).to_have_count(0)
    bench.page.locator(".st-key-bin label").click()
    expect(rows(bench)).to_have_count(3)
    assert not server.store.notes(edits["third"].id).binned

    other = Store(tmp_path / "other")
    theirs = add_edit(other, seed=21, name="Theirs.png", prompt="drawn elsewhere")
    raw = export_zip(other)
    other.close()
    bench.page.get_by_role("button", name="Import", exact=True).click()
    bench.upload(raw, "theirs.zip", "application/zip")
    expect(bench.page.get_by_text("1 edit added.")).to_be_visible()
    bench.page.keyboard.press("Escape")
    expect(row(bench, theirs)).to_be_visible()
    assert server.store.record(theirs.id) == theirs
    server.store.bin([theirs.id])
    server.store.forget(theirs.id)


def test_narrow_dark_and_by_keyboard(new_bench: Any, edits: dict[str, EditRecord]) -> None:
    bench = new_bench(viewport={"width": 800, "height": 1000}, color_scheme="dark")
    bench.open("/history", edit=edits["second"].id)
    expect(rows(bench)).to_have_count(3)
    detail = bench.page.locator(".st-key-card_history_detail")
    expect(detail).to_be_visible()  # opens under its row
    assert no_sideways_scroll(bench)
    row(bench, edits["first"]).focus()
    bench.page.keyboard.press("Enter")
    bench.settle()
    assert bench.query("edit") == edits["first"].id
    above, below = row(bench, edits["first"]).bounding_box(), detail.bounding_box()
    assert above is not None
    assert below is not None
    assert above["y"] < below["y"]
    detail.get_by_role("textbox", name="Title").fill("Arm up")
    bench.page.keyboard.press("Tab")
    expect(row(bench, edits["first"])).to_have_text(re.compile("Arm up"))
    bench.open("/settings")
    expect(bench.page.get_by_text("Storybook (ships with the workbench)")).to_be_visible()
    assert no_sideways_scroll(bench)
    for part in (
        "Device & memory",
        "Cache",
        "LoRAs",
        "Defaults & colours",
        say("settings.health_check"),
    ):
        bench.page.get_by_role("tab", name=part).click()
        bench.settle(0.1)
        assert no_sideways_scroll(bench), part
