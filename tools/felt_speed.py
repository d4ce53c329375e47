"""How fast the workbench feels: `python tools/felt_speed.py [--threads N]` prints one table.

Measured on the shipped model, each from outside: the time from the start of the server to the first
page in a browser, the live preview at 512 x 512, a photograph of 24 MP coming in and going out, a
history of 10,000 edits, the first progress after a run was submitted (model already loaded, as after
the first page), and how long a cancel takes in training and in a drag.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from find_chromium import find_chromium  # noqa: E402

from workbench.ui.shell.forms import say  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

ARGS = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"]
REPEATS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch [default 2]")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    rows: list[tuple[str, str, list[float], float]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_CACHE"] = folder
        rows.append(("first page after the start of the server", "s", first_pages(), 3.0))
        rows += clicks(Path(folder))
        drafts = first_drafts(Path(folder))
        rows.append(("Run to the result, a fresh photograph of 1024 px (auto)", "s", drafts, 5.0))
        rows.append(("preview, 512 x 512, two arrows", "ms", previews(), 50.0))
        rows += big_picture(Path(folder) / "big")
        rows += long_history(Path(folder) / "long")
        rows += jobs()
    out = ["| what | median | slowest | goal |", "|---|---|---|---|"]
    for what, unit, values, goal in rows:
        digits = 0 if unit == "ms" else 2
        shown = [f"{v:.{digits}f} {unit}" for v in (statistics.median(values), max(values))]
        out.append(f"| {what} | {' | '.join(shown)} | {goal:g} {unit} |")
    sys.stdout.write("\n".join(out) + "\n")


def first_pages() -> list[float]:
    """Seconds from starting the server until the heading of the first page stands in a browser."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGS)
        for _ in range(REPEATS + 1):
            page = browser.new_page()
            found.append(_first_page(page))
            page.close()
        browser.close()
    return found[1:]  # the first one reads the files from disk


def _first_page(page: Page) -> float:
    begun = time.perf_counter()
    with server() as address:
        page.goto(address)
        page.get_by_role("heading", name=say("shell.product")).wait_for()
        return time.perf_counter() - begun


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A server of its own; its address, as soon as it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "streamlit_app.py"]
    process = subprocess.Popen(  # noqa: S603 - our own program
        [*command, "--server.port", str(port)], cwd=HERE.parent,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while True:
            try:
                health = f"http://127.0.0.1:{port}/_stcore/health"
                urllib.request.urlopen(health, timeout=1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


# Seconds from a click, taken in the browser, until `seen` holds at a frame of the screen.
WATCH = """(seen) => {
  const look = new Function(seen);
  window.felt = new Promise((done, fail) => {
    setTimeout(() => fail("it did not happen within two minutes"), 120000);
    const kind = window.feltAt;
    addEventListener(kind, () => {
      const begun = performance.now();
      const tick = () => (look() ? done((performance.now() - begun) / 1000) : requestAnimationFrame(tick));
      requestAnimationFrame(tick);
    }, { capture: true, once: true });
  });
}"""
DEEP = """const find = (n, what) => n.querySelector(what) || [...n.querySelectorAll("*")]
  .map((m) => m.shadowRoot && find(m.shadowRoot, what)).find(Boolean);"""
HEADING = "return document.querySelector('h1')?.textContent === '{title}';"
PREVIEW = DEEP + "const d = find(document, '.wb-draft'); return d && !d.hidden;"
RESULT = (
    DEEP
    + f"""const b = find(document, ".wb-chips button");
  return b?.textContent === {json.dumps(say("draw.back_to_drawing"))};"""
)
PRESSED = """const b = document.querySelector(".st-key-run button");
  return !b || getComputedStyle(b, "::before").content !== "none";"""


def clicks(folder: Path) -> list[tuple[str, str, list[float], float]]:
    """Page change, preview and Run, each from the mouse to what is seen."""
    from playwright.sync_api import sync_playwright

    from workbench.storage.history import Store
    from workbench.ui.shell.workspace import Workspace

    y, x = np.mgrid[0:512, 0:512]
    rgb = np.stack([127 + 90 * np.sin(x / 60 + k) * np.cos(y / 45 + k) for k in range(3)], axis=2)
    rgb[(x - 200) ** 2 + (y - 250) ** 2 < 60**2] = (210, 60, 40)
    store = Store(folder / "history")
    asset = store.put_image(rgb.astype(np.uint8), "Measured")
    name = Workspace.create(store, asset, title="Measured", prompt="a ball").id
    store.close()
    changes, previews, runs = [], [], []
    with sync_playwright() as playwright, server() as address:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{address}/drag?project={name}")
        canvas = page.locator("canvas.upper-canvas[data-tool]")
        canvas.wait_for(timeout=120_000)
        page.wait_for_timeout(8000)  # torch is imported behind the page

        def turn(title: str) -> float:
            link = page.get_by_role("link", name=title, exact=True).first
            return felt(page, "click", HEADING.format(title=title), link.click)

        def stroke(n: int) -> float:
            box = canvas.bounding_box()
            assert box is not None
            k = box["width"] / 512
            page.mouse.move(box["x"] + 200 * k, box["y"] + (230 + 8 * n) * k)
            page.mouse.down()
            page.mouse.move(box["x"] + 280 * k, box["y"] + (200 + 12 * n) * k, steps=6)
            page.wait_for_timeout(300)
            return felt(page, "pointerup", PREVIEW, page.mouse.up)

        for n in range(REPEATS):
            changes.append(turn(say("common.history")))
            page.wait_for_timeout(1500)
            changes.append(turn(say("common.mask_points")))
            canvas.wait_for()
            page.wait_for_timeout(2500)
            previews.append(stroke(n))
            page.wait_for_timeout(1000)
            run = page.locator(".st-key-run button").first
            runs.append(felt(page, "click", PRESSED, run.click))
            stop = page.locator(".st-key-cancel_drag button")
            stop.click()
            page.locator(".st-key-run").wait_for(timeout=300_000)
            page.wait_for_timeout(1500)
        browser.close()
    return [
        ("page change, click to the new heading", "s", changes, 0.5),
        ("mouse-up to the server's preview", "s", previews, 0.4),
        ("Run, click to a visible change", "s", runs, 0.3),
    ]


def felt(page: Page, kind: str, seen: str, act: Callable[[], object]) -> float:
    """Seconds from the event `kind` that `act` causes until `seen` holds in the browser."""
    page.evaluate("(kind) => { window.feltAt = kind; }", kind)
    page.evaluate(WATCH, seen)
    act()
    return float(page.evaluate("() => window.felt"))


def first_drafts(folder: Path) -> list[float]:
    """Seconds from Run to the result on photographs that were never run before, 1024 px wide."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from workbench.storage.history import Store
    from workbench.ui.shell.workspace import Workspace

    store = Store(folder / "history")
    with Image.open(HERE.parent / "workbench" / "ui" / "examples" / "otter.webp") as photo:
        rgb = np.array(photo.convert("RGB").resize((1024, 640)))
    names = []
    for n in range(REPEATS):
        rgb[:8, :8] = n  # another picture each time
        asset = store.put_image(rgb, "Measured")
        made = Workspace.create(
            store, asset, title="Measured", prompt="an otter",
            settings={"model": "album", "drag": {"method": "auto"}},
        )  # fmt: skip
        names.append(made.id)
    store.close()
    found = []
    with sync_playwright() as playwright, server() as address:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        canvas = page.locator("canvas.upper-canvas[data-tool]")
        for name in names:
            page.goto(f"{address}/drag?project={name}")
            canvas.wait_for(timeout=120_000)
            page.wait_for_timeout(8000)  # a person looks; torch is imported behind the page
            box = canvas.bounding_box()
            assert box is not None
            k = box["width"] / 1024
            page.mouse.move(box["x"] + 217 * k, box["y"] + 173 * k)
            page.mouse.down()
            page.mouse.move(box["x"] + 200 * k, box["y"] + 123 * k, steps=6)
            page.mouse.up()
            page.wait_for_timeout(2000)
            found.append(
                felt(page, "click", RESULT, page.locator(".st-key-run button").first.click)
            )
        browser.close()
    return found


def previews() -> list[float]:
    """Milliseconds of the moved pieces that are shown beside the canvas."""
    from workbench.core.request import Point, PointPair
    from workbench.warping.layers import moved_picture

    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    y, x = np.mgrid[:512, :512]
    mask = (y - 256) ** 2 + (x - 256) ** 2 < 150**2
    pairs = [
        PointPair(Point(220.0, 250.0), Point(250.0, 200.0)),
        PointPair(Point(300.0, 260.0), Point(320.0, 230.0)),
    ]
    moved_picture(rgb, mask, pairs)
    return [1000 * _seconds(lambda: moved_picture(rgb, mask, pairs)) for _ in range(20)]


def big_picture(folder: Path) -> list[tuple[str, str, list[float], float]]:
    """A photograph of 24 MP: from its bytes to what the canvas shows, and a result into the history."""
    from PIL import Image

    from workbench.app import App
    from workbench.core.request import EditRequest, Point, PointPair
    from workbench.editing.working_image import WorkingImage
    from workbench.storage.settings import Settings
    from workbench.ui.shell.backend import Backend
    from workbench.ui.upload.intake import take

    y, x = np.mgrid[:4000, :6000]
    smooth = np.stack([x / 25, y / 17, 127 + 90 * np.sin(x / 400) * np.cos(y / 300)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 4, (1000, 6000, 3))
    photo = (smooth + np.tile(noise, (4, 1, 1))).clip(0, 255).astype(np.uint8)
    shown, saved = [], []
    for n in range(REPEATS):
        photo[:8, :8] = n  # another picture each time
        out = io.BytesIO()
        Image.fromarray(photo).save(out, "JPEG", quality=92)
        app = App(Settings(folder=folder / str(n)))  # nothing is kept from the time before
        backend = Backend(app)
        begun = time.perf_counter()
        space = take(backend, backend.decode(out.getvalue(), "photo.jpg"))
        backend.shown(space.image.id)
        shown.append(time.perf_counter() - begun)
        pairs = (PointPair(Point(3000, 2000), Point(3050, 2000)),)
        mask = np.zeros(photo.shape[:2], bool)
        mask[1900:2100, 2900:3150] = True
        asked = EditRequest(image=space.image, pairs=pairs, mask=app.store.put_mask(mask))
        image = WorkingImage.of(asked, app.store, 256)
        begun = time.perf_counter()
        whole = image.put_back(255 - image.rgb)
        app.store.put_image(whole, "result")
        saved.append(time.perf_counter() - begun)
        app.close()
    return [
        ("24 MP photograph, from its bytes to the page", "s", shown, 2.0),
        ("24 MP photograph, saving a result", "s", saved, 5.0),
    ]


def long_history(folder: Path, edits: int = 10_000) -> list[tuple[str, str, list[float], float]]:
    """A history of many edits, each a refined one of 80 steps with two arrows: read, and listed."""
    from workbench.core.config import method_spec
    from workbench.core.record import EditRecord, EditResult, JobState
    from workbench.core.request import EditRequest, ImageAsset, Point, PointPair
    from workbench.storage.files import UlidMaker
    from workbench.storage.history import Store
    from workbench.storage.history.folder import seal
    from workbench.ui.history.tree import Filter, Forest

    rng = np.random.default_rng(0)
    Store(folder).close()
    ids = UlidMaker()
    pairs = (PointPair(Point(10, 20), Point(40, 60)), PointPair(Point(100, 20), Point(140, 60)))
    for n in range(edits):
        image = ImageAsset(id=f"wb1:{n % 50:032x}", width=256, height=256, name=f"picture {n % 50}")
        drag = method_spec("dragdiffusion").drag_config()
        way = tuple(tuple(Point(*map(float, p)) for p in row) for row in rng.random((80, 2, 2)))
        losses = tuple(map(float, rng.random(80)))
        result = EditResult(image=image.id, trajectory=way, losses=losses, distances=(1.0, 2.0))
        record = EditRecord(
            id=ids.new(), request=EditRequest(image=image, pairs=pairs, prompt="a robot", drag=drag),
            status=JobState.DONE, result=result,
        )  # fmt: skip
        path = folder / "edits" / f"{record.id}.json"
        path.write_bytes(seal({**record.to_json(), "owner": ""}))
    read, listed = [], []
    for _ in range(REPEATS):
        store = Store(folder)
        read.append(_seconds(lambda: store.records(binned=None)))  # noqa: B023
        listed.append(_seconds(lambda: Forest(store).rows(Filter())))  # noqa: B023
        store.close()
    return [
        (f"history of {edits:,} edits, read once behind the first page", "s", read, 3.0),
        (f"history of {edits:,} edits, the page's list", "s", listed, 1.0),
    ]


def jobs() -> list[tuple[str, str, list[float], float]]:
    """First progress and cancels, by the queue that the pages use."""
    from workbench.app import App
    from workbench.core.config import DragConfig, InversionConfig, LoraConfig
    from workbench.core.record import JobState
    from workbench.core.request import EditRequest, ModelRef, Point, PointPair
    from workbench.storage.settings import Settings

    app = App(Settings.load())
    app.runtime("storybook")  # what the first page does behind the scenes
    rng = np.random.default_rng(1)
    first, steps, stops_training, stops_drag = [], [], [], []

    def until(job: str, good: Callable[[object], bool]) -> float:
        begun = time.perf_counter()
        while not good(app.executor.snapshot(job)):
            time.sleep(0.002)
        return time.perf_counter() - begun

    def at(stage: str) -> Callable[[object], bool]:
        return lambda job: (
            job.state.ended  # type: ignore[attr-defined]
            or (job.progress is not None and job.progress.stage == stage and job.progress.step >= 3)  # type: ignore[attr-defined]
        )

    for _ in range(REPEATS):
        picture = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        asset = app.store.put_image(picture, "noise")
        request = EditRequest(
            image=asset, mask=None, pairs=(PointPair(Point(100.0, 100.0), Point(140.0, 100.0)),),
            model=ModelRef(name="storybook"), prompt="a robot", lora=LoraConfig(steps=80),
            inversion=InversionConfig(), drag=DragConfig.preset("dragdiffusion"), seed=0,
        )  # fmt: skip
        job = app.submit_edit(request)
        first.append(until(job, lambda j: j.progress is not None or j.state.ended))  # type: ignore[attr-defined]
        until(job, at("lora"))
        app.executor.cancel(job)
        stops_training.append(until(job, lambda j: j.state.ended))  # type: ignore[attr-defined]
        plain = dataclasses.replace(request, lora=LoraConfig(steps=0))
        job = app.submit_edit(plain)
        until(job, at("drag"))
        app.executor.cancel(job)
        stops_drag.append(until(job, lambda j: j.state.ended))  # type: ignore[attr-defined]
        steps.append(app.executor.snapshot(job).state is JobState.CANCELLED)
    app.close()
    assert all(steps), "a drag ended before it could be cancelled"
    return [
        ("first progress after a run was submitted", "s", first, 1.0),
        ("cancel during training (one step: 4 pictures)", "s", stops_training, 1.5),
        ("cancel during a drag (one step)", "s", stops_drag, 0.5),
    ]


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
