"""What a hostile person types, uploads and presses on the pages, in a real browser."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import signal
import warnings
import zipfile
from pathlib import Path

import psutil
from archive_tools import rebuild
from conftest import JOB, Bench, Server, picture
from edit_samples import add_edit
from patience import until
from PIL import Image
from playwright.sync_api import expect

from workbench.core.record import JobState
from workbench.storage.archive.write import export_zip
from workbench.storage.history import Store
from workbench.ui.shell.forms import say

HOSTILE = (
    "<img src=x onerror='window.ran=1'> **loud** [go](javascript:window.ran=1) $x^2$ "
    "<script>window.ran=1</script> ![p](http://127.0.0.1:9/x.png) <svg onload='window.ran=1'>"
)
# What Markdown or HTML would have made of it
MADE = "img[src='x'], img[src*='x.png'], a[href^='javascript'], svg[onload], .katex, strong:text('loud')"


def test_fault_23_what_is_typed_on_the_pages_stays_text(server: Server, bench: Bench) -> None:
    asked: list[str] = []
    bench.page.on("request", lambda request: asked.append(request.url))
    dialogs: list[str] = []
    bench.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    edit = add_edit(server.store, seed=81, name="Hostile.png", prompt="plain")
    name = server.project(picture(64, 48, seed=81))
    bench.open("/", project=name)
    prompt = bench.page.get_by_label(say("upload.describe_the_picture"), exact=True)
    prompt.fill(HOSTILE)
    prompt.press("Control+Enter")
    until(lambda: server.store.projects.load(name).prompt == HOSTILE)
    bench.open("/history", edit=edit.id)
    for label, text in ((say("history.title"), HOSTILE[:80]), (say("history.note"), HOSTILE)):
        field = bench.page.get_by_label(label, exact=True)
        field.fill(text)
        field.press("Tab")
        bench.settle()
    until(lambda: server.store.notes(edit.id).note == HOSTILE)
    for path in ("/", "/drag", "/results", "/compare", "/history", "/settings"):
        bench.open(path, project=name, edit=edit.id, edits=edit.id)
        bench.settle(1.0)
        bench.check()
        assert bench.page.locator(MADE).count() == 0, path
        assert bench.page.evaluate("window.ran") is None, path
    bench.open("/history", edit=edit.id)
    title = bench.page.locator(f".st-key-open_{edit.id}")
    expect(title).to_contain_text("<img src=x")  # it is there, letter by letter
    assert not dialogs
    assert not [url for url in asked if url.endswith("/x.png")]
    server.store.bin([edit.id])


def hostile_zips(good: bytes) -> dict[str, bytes]:
    """Zips of each kind that must not get in."""
    remade = functools.partial(rebuild, compress=zipfile.ZIP_DEFLATED)

    def spoil(files: dict[str, bytes]) -> None:
        name = next(n for n in files if n.startswith("images/"))
        files[name] = files[name][:-9] + b"x" * 9

    def odd(files: dict[str, bytes]) -> None:
        name = next(n for n in files if n.endswith(".json"))
        files[name] = json.dumps({**json.loads(files[name]), "request": -1}).encode()

    twice = io.BytesIO(good)
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(twice, "a") as file:
        file.writestr(zipfile.ZipFile(io.BytesIO(good)).namelist()[0], b"again")
    return {
        "no zip": b"PK\x03\x04" + os.urandom(400),
        "another zip": remade(good, dict.clear),
        "a way out": remade(good, lambda f: f.update({"../../../evil.png": picture(64, 48)})),
        "an absolute way": remade(good, lambda f: f.update({"/tmp/evil.png": picture(64, 48)})),
        "a bomb": remade(
            good, lambda f: f.update({"files/wb1-" + "0" * 32 + ".txt": bytes(10**8)})
        ),
        "a wrong hash": remade(good, spoil, fix=False),
        "wrong pixels": remade(good, spoil),
        "an odd record": remade(good, odd),
        "twice": twice.getvalue(),
        "cut": good[: len(good) // 2],
    }


def test_hostile_zips_get_one_sentence_each_and_nothing_is_written(
    server: Server, bench: Bench, tmp_path: Path
) -> None:
    other = Store(tmp_path / "other")
    add_edit(other, seed=82, name="Theirs.png", prompt="elsewhere")
    good = export_zip(other)
    other.close()
    history = server.cache / "history"

    def written() -> dict[str, int]:
        found = (p for p in history.rglob("*") if p.is_file() and p.suffix != ".lock")
        return {str(p.relative_to(history)): p.stat().st_size for p in found}

    bench.open("/history")
    before = written()
    outside = set(server.cache.parent.iterdir())
    for what, raw in hostile_zips(good).items():
        bench.open("/history")
        bench.page.get_by_role("button", name="Import", exact=True).click()
        bench.upload(raw, f"{what}.zip", "application/zip")
        said = bench.page.get_by_test_id("stAlert")
        expect(said).to_have_count(1)
        text = said.inner_text().strip()
        assert len(text) < 400, (what, text)
        assert not re.search(r"Traceback|Error\b|not foreseen", text), (what, text)
        bench.check()
        assert written() == before, what
    assert set(server.cache.parent.iterdir()) == outside


LONG = {"lora": {"steps": 2000, "batch_size": 1, "rank": 4}}


def test_fault_36_cancel_in_a_run_of_the_whole_page(server: Server, bench: Bench) -> None:
    """A click on Cancel that also leaves a changed text field: Streamlit runs the whole page for both."""
    name = server.project(picture(64, 48, seed=83), **LONG)
    bench.open("/", project=name)
    bench.page.get_by_role("button", name="Train", exact=True).click()
    expect(bench.page.get_by_text("Training on your picture · step")).to_be_visible(timeout=JOB)
    bench.page.get_by_label(say("upload.describe_the_picture"), exact=True).fill(
        "changed meanwhile"
    )
    bench.cancel()
    bench.check()
    assert server.store.projects.load(name).prompt == "changed meanwhile"
    # and while a reload still builds the page
    bench.open("/drag", project=name)
    bench.stroke((19, 19), (57, 45), size=(64, 48))
    bench.page.get_by_role("button", name="Run", exact=True).click()
    expect(bench.page.get_by_text("· step")).to_be_visible(timeout=JOB)
    bench.page.reload()
    bench.cancel()
    bench.check()
    log = server.log.read_text(encoding="utf-8")
    assert "StreamlitInvalidLayoutContextError" not in log
    assert "Traceback" not in log
    records = server.store.records(image=server.store.projects.load(name).image)
    assert [r.status for r in records] == [JobState.CANCELLED]


def test_fault_11_an_upload_that_takes_long_can_be_cancelled(server: Server, bench: Bench) -> None:
    out = io.BytesIO()
    Image.open(io.BytesIO(picture(80, 64, seed=84))).save(out, "TIFF")  # opened in the helper
    bench.open("/")
    bench.upload(out.getvalue(), "first.tiff", "image/tiff")
    assert bench.query("project")
    helpers = [
        p
        for p in psutil.Process(server.process.pid).children(recursive=True)
        if "workbench.imaging.decode" in p.cmdline()
    ]
    (helper,) = helpers
    helper.send_signal(signal.SIGSTOP)  # a file that takes as long as it likes
    bench.page.get_by_role("button", name=say("shell.open_another_picture")).click()
    bench.settle()
    bench.page.locator("input[type=file]").first.set_input_files(
        [{"name": "slow.tiff", "mimeType": "image/tiff", "buffer": out.getvalue()}]
    )
    stop = bench.page.get_by_role("button", name="Cancel", exact=True)
    expect(stop).to_be_visible()
    stop.click()
    expect(bench.page.get_by_text(say("common.cancelled"), exact=True)).to_be_visible()
    assert not helper.is_running()
    bench.open("/")
    bench.upload(out.getvalue(), "again.tiff", "image/tiff")
    assert bench.query("project")
