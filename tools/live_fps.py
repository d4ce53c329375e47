"""Frames a second while an arrow is drawn: `python tools/live_fps.py [--seconds 4]` prints one table.

A real server, headless Chromium and its mouse on a 1024 x 768 picture. requestAnimationFrame counts the
frames of the browser during the drag, and those in which the stage drew the bent picture again: there cannot
be more of these than mouse events, and on a busy machine few are sent. First the plain bump (a new
arrow), then the shape of what the handle holds (the end of that arrow dragged on).
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from find_chromium import find_chromium  # noqa: E402

ARGS = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"]
SIZE = (1024, 768)
STEPS = 40  # mouse events from one turn to the next
COUNT = """() => {
  const find = (n) => n.querySelector(".wb-warp") || [...n.querySelectorAll("*")]
    .map((m) => m.shadowRoot && find(m.shadowRoot)).find(Boolean);
  const layer = find(document);
  const spent = Number(layer.dataset.spent ?? 0), bent = Number(layer.dataset.frames ?? 0);
  const last = layer.dataset.frames, begun = performance.now();
  window.counted = { spent, bent, layer, last, begun, frames: 0, drawn: 0, moves: 0 };
  const tick = () => {
    const c = window.counted;
    c.frames += 1;
    if (layer.dataset.frames !== c.last) c.drawn += 1;
    c.last = layer.dataset.frames;
    if (!c.over) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
  addEventListener("pointermove", () => { window.counted.moves += 1; }, { capture: true });
}"""
STOP = """() => {
  const c = window.counted;
  c.over = true;
  const { frames, spent } = c.layer.dataset;
  // a drag begins with a new mesh, which counts from 0
  const fresh = Number(frames) < c.bent || Number(spent) < c.spent;
  const each = (spent - (fresh ? 0 : c.spent)) / Math.max(1, frames - (fresh ? 0 : c.bent));
  return [c.frames, c.moves, c.drawn, (performance.now() - c.begun) / 1000, each];
}"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="length of each drag [default 4]"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_CACHE"] = folder
        name = project(Path(folder))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "streamlit", "run", "streamlit_app.py"]
        server = subprocess.Popen(  # noqa: S603 - our own program
            [*command, "--server.port", str(port)], cwd=HERE.parent,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await_server(port)
            rows = drags(f"http://127.0.0.1:{port}/drag?project={name}", args.seconds)
        finally:
            server.terminate()
            server.wait(20)
    out = [
        "| drag | seconds | frames/s | mouse events/s | bent pictures/s | ms of script each |",
        "|---|---|---|---|---|---|",
    ]
    for what, (*counts, took, each) in rows:
        rates = " | ".join(f"{n / took:.0f}" for n in counts)
        out.append(f"| {what} | {took:.1f} | {rates} | {each:.1f} |")
    sys.stdout.write("\n".join(out) + "\n")


def project(folder: Path) -> str:
    """A project with a picture of `SIZE`; its id."""
    from workbench.storage.history import Store
    from workbench.ui.shell.workspace import Workspace

    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    rgb = np.stack([127 + 90 * np.sin(x / 60 + k) * np.cos(y / 45 + k) for k in range(3)], axis=2)
    rgb[(x - 420) ** 2 + (y - 420) ** 2 < 90**2] = (210, 60, 40)
    store = Store(folder / "history")
    asset = store.put_image(rgb.astype(np.uint8), "Measured")
    made = Workspace.create(store, asset, title="Measured")
    store.close()
    return made.id


def await_server(port: int) -> None:
    """Wait until the server answers."""
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return


def drags(address: str, length: float) -> list[tuple[str, tuple[int, int, int, float, float]]]:
    """Draw an arrow and drag its end; frames, mouse events, bent pictures, seconds, ms of script."""
    from playwright.sync_api import sync_playwright

    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(address)
        canvas = page.locator("canvas.upper-canvas[data-tool]")
        canvas.wait_for(timeout=60_000)
        page.wait_for_timeout(4000)  # the canvas has its size, torch is imported
        at = (420.0, 420.0)
        for what in ("a new arrow, plain bump", "its end, shape of the held piece"):
            box = canvas.bounding_box()
            assert box is not None
            k = box["width"] / SIZE[0]
            here = box["x"] + at[0] * k, box["y"] + at[1] * k
            page.mouse.move(*here)
            page.mouse.down()
            page.evaluate(COUNT)
            begun, n = time.perf_counter(), 0
            while time.perf_counter() - begun < length:
                n += 1
                x, y = at[0] + 160 * math.sin(0.9 * n), at[1] + 120 * math.sin(1.3 * n)
                # the steps are sent by the driver, one as soon as the browser has taken the one before
                page.mouse.move(box["x"] + x * k, box["y"] + y * k, steps=STEPS)
            at = (x, y)
            rows.append((what, tuple(page.evaluate(STOP))))
            page.mouse.up()
            page.wait_for_timeout(2500)
        browser.close()
    return rows


if __name__ == "__main__":
    main()
