"""A real server and a real browser: one Streamlit process and one Chromium per test worker.

Every page that a test opens is watched: a request that leaves this machine, an uncaught error of a
script or a traceback on the page fails the test.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import HANG, until
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from workbench.canvas.drawing import Drawing
from workbench.core.request import PointPair
from workbench.storage.history import Store
from workbench.ui.shell.projection import stored
from workbench.ui.shell.workspace import Workspace

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tools"))
from find_chromium import find_chromium  # noqa: E402

ARGS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOME = "http://127.0.0.1"
SENT_AFTER = 0.35  # the canvas collects strokes for 200 ms before it sends them
MICRO = f"""[micro]
path = "{(REPO / "tests" / "data" / "reference" / "micro_sd").as_posix()}"
title = "Micro (random weights)"
native_size = 64
"""
# few steps: what is tested is the way through the pages, not the picture
QUICK = {
    "model": "micro",
    "lora": {"steps": 3, "batch_size": 1, "rank": 4},
    "inversion": {"steps": 8, "strength": 0.5},
    "drag": {"method": "dragdiffusion", "steps": 4},
}
JOB = 2000 * HANG  # ms that a job may take on a busy machine, torch's import included
expect.set_options(timeout=1000 * HANG)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder drives a browser."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("browser")
            item.add_marker(pytest.mark.timeout(1500))  # a busy machine; alone it is a tenth


class Server:
    """The workbench in a process of its own, with a cache folder of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.cache = folder / "cache"
        self.log = folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"{HOME}:{self.port}"
        env = {
            **os.environ,
            "WORKBENCH_CACHE": str(self.cache),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "WORKBENCH_MODEL": "micro",
            **environment,
        }
        self.cache.mkdir(parents=True)
        self.cache.joinpath("models.toml").write_text(MICRO, encoding="utf-8")
        command = [sys.executable, "-m", "streamlit", "run", "streamlit_app.py"]
        command += ["--server.port", str(self.port)]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=REPO, env=env, stdout=out, stderr=subprocess.STDOUT
            )
        self._wait()

    def _wait(self) -> None:
        def well() -> bool:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=10) as answer,
            ):
                return bool(answer.status == 200)
            return False

        until(lambda: self.process.poll() is not None or well(), every=0.1)
        assert self.process.poll() is None, f"the server did not start:\n{self.log.read_text()}"

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(HANG)
        finally:
            self.process.kill()
            self.process.wait()

    @cached_property
    def store(self) -> Store:
        """The history that the server writes, opened beside it."""
        return Store(self.cache / "history")

    def project(self, raw: bytes, **settings: Any) -> str:
        """A project with a picture and quick settings, made on disk; its id."""
        rgb = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
        asset = self.store.put_image(rgb, "Test picture")
        space = Workspace.create(
            self.store, asset, title="Test picture", prompt="a test", settings={**QUICK, **settings}
        )
        return space.id

    def drawing(self, project: str) -> Drawing:
        """What the project's record says was drawn."""
        return stored(self.store.projects.load(project).drawing)

    def drawn(self, project: str, ok: Callable[[Drawing], Any]) -> Drawing:
        """What was drawn, as soon as `ok` of it holds."""
        until(lambda: ok(self.drawing(project)), every=0.1)
        return self.drawing(project)

    def arrows(self, project: str, count: int) -> list[PointPair]:
        """The arrows of a project, as soon as there are `count` of them."""
        found = self.drawn(project, lambda d: len(d.arrows) == count).arrows
        assert len(found) == count
        return [a.pair for a in found]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a worker; each test works on projects of its own."""
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.store.close()
    made.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser process for all tests of a worker."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGS)
        yield browser
        browser.close()


class Bench:
    """A page of the workbench and the moves of a person in front of it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        context.set_default_timeout(1000 * HANG)  # of clicks and waits; `expect` has its own
        self.page: Page = context.new_page()
        self.faults: list[str] = []
        self._watch(self.page)

    def _watch(self, page: Page) -> None:
        def on_request(request: Any) -> None:
            local = (f"{HOME}:", "ws://127.0.0.1:", "data:", "blob:")
            if not request.url.startswith(local):
                self.faults.append(f"left this machine: {request.url}")

        page.on("request", on_request)
        page.on("pageerror", lambda error: self.faults.append(f"script error: {error}"))

    def check(self) -> None:
        """No request went out, no script failed, and no traceback is shown."""
        assert not self.faults
        shown = self.page.locator("[data-testid=stException]")
        assert shown.count() == 0, shown.first.inner_text()

    # --- going about ------------------------------------------------------------------------------

    def open(self, path: str = "/", **query: str) -> None:
        """Type an address: a new session, as after a reload."""
        text = "&".join(f"{k}={v}" for k, v in query.items())
        self.page.goto(f"{self.url}{path}{'?' + text if text else ''}")
        self.settle()

    def settle(self, wait: float = SENT_AFTER) -> None:
        """Let what is under way arrive: the canvas's patience, then the script's run."""
        self.page.wait_for_timeout(1000 * wait)
        done = self.page.locator("[data-testid=stApp][data-test-script-state=notRunning]")

        def ended() -> bool:
            assert not any("delta path" in fault for fault in self.faults), self.faults
            self.page.wait_for_timeout(50)
            return done.count() > 0

        until(ended)

    def cancel(self) -> None:
        """Cancel the job at hand, and say yes where so much was done that the page asks."""
        self.page.get_by_role("button", name="Cancel", exact=True).click()
        stop = self.page.get_by_role("button", name="Stop", exact=True)
        ended = self.page.get_by_text("Cancelled", exact=True)
        expect(stop.or_(ended).first).to_be_visible()
        if stop.count():
            stop.click()
        expect(ended).to_be_visible()

    def query(self, name: str) -> str | None:
        """A parameter of the page's address, as soon as it is there."""
        end = time.monotonic() + HANG
        while not (found := re.search(rf"[?&]{name}=([^&]*)", self.page.url)):
            if time.monotonic() > end:
                return None
            self.page.wait_for_timeout(100)
        return found[1]

    def goto_page(self, title: str) -> None:
        """Click a page's name in the menu."""
        self.page.get_by_role("link", name=title, exact=True).first.click()
        expect(self.page.get_by_role("heading", level=1)).to_have_text(title)
        self.settle()

    def upload(self, raw: bytes, name: str = "picture.png", mime: str = "image/png") -> None:
        """Hand a file to the uploader."""
        file: Any = {"name": name, "mimeType": mime, "buffer": raw}
        self.page.locator("input[type=file]").first.set_input_files([file])
        self.settle()

    # --- drawing ----------------------------------------------------------------------------------

    @property
    def canvas(self) -> Locator:
        """The layer of the drawing canvas that takes the mouse."""
        return self.page.locator("canvas.upper-canvas")

    def tool(self, name: str) -> None:
        """Choose a drawing tool by its name; click again if the page was rebuilt during the click."""
        radio = self.page.get_by_role("radio", name=name, exact=True)

        def chosen() -> bool:
            if radio.get_attribute("aria-checked") != "true":
                radio.click()
                self.page.wait_for_timeout(100)
            return radio.get_attribute("aria-checked") == "true"

        until(chosen)
        kind = {"Rectangle": "rect"}.get(name, name.lower())
        expect(self.canvas).to_have_attribute("data-tool", kind)
        self.settle()

    def on_canvas(self, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
        """Where a point of the picture (image px, of a picture of `size`) is on the screen."""
        box = self.canvas.bounding_box()
        assert box is not None
        kx, ky = box["width"] / size[0], box["height"] / size[1]
        return box["x"] + (x + 0.5) * kx, box["y"] + (y + 0.5) * ky

    def stand_still(self) -> None:
        """Wait until the canvas keeps its place: it takes its size from the window in a second run."""
        seen: list[Any] = []

        def still() -> bool:
            self.page.wait_for_timeout(100)
            seen.append(self.canvas.bounding_box())
            return len(seen) > 5 and all(box == seen[-1] for box in seen[-6:])

        until(still)

    def stroke(
        self, *points: tuple[float, float], size: tuple[int, int], wait: bool = True
    ) -> None:
        """Press, move and release the mouse along points of the picture (image px)."""
        expect(self.canvas).to_have_count(1)
        self.canvas.scroll_into_view_if_needed()
        self.stand_still()
        places = [self.on_canvas(x, y, size) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=8)
        self.page.mouse.up()
        if wait:
            self.settle()


@pytest.fixture
def bench(chromium: Browser, server: Server) -> Iterator[Bench]:
    """A fresh browser profile, 1440 wide, light."""
    context = chromium.new_context(viewport={"width": 1440, "height": 1000})
    made = Bench(context, server.url)
    yield made
    made.check()
    context.close()


@pytest.fixture
def new_bench(chromium: Browser, server: Server) -> Iterator[Any]:
    """Makes benches with other screens: `new_bench(viewport=..., device_scale_factor=2, ...)`."""
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        options.setdefault("viewport", {"width": 1440, "height": 1000})
        one = Bench(chromium.new_context(**options), server.url)
        made.append(one)
        return one

    yield make
    for one in made:
        one.check()
        one.context.close()


def picture(width: int = 256, height: int = 192, seed: int = 0) -> bytes:
    """A PNG with smooth colours and two blobs, the same for the same arguments."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 6, 3)
    rgb = np.stack([127 + 100 * np.sin(4 * x + 3 * y + p) for p in phase], axis=2)
    for cx, cy, colour in ((0.3, 0.4, (220, 60, 50)), (0.7, 0.35, (40, 90, 200))):
        inside = (x - cx) ** 2 + (y - cy) ** 2 < 0.006
        rgb[inside] = colour
    out = io.BytesIO()
    Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()
