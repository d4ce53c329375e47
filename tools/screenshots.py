"""Photograph every page, light and dark, 1440 and 800 wide: `make screenshots`.

The edits shown are really made, by the shipped model, in a cache of their own (minutes on a CPU the
first time; `--cache FOLDER` keeps it for the next). Nothing in the pictures is put together by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tools")]

import numpy as np  # noqa: E402
from find_chromium import find_chromium  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from workbench.app import App  # noqa: E402
from workbench.canvas.drawing import Drawing  # noqa: E402
from workbench.canvas.rasterize import rasterise  # noqa: E402
from workbench.core.config import DragConfig, InversionConfig, lora_preset  # noqa: E402
from workbench.core.record import EditRecord  # noqa: E402
from workbench.core.request import EditRequest, ModelRef, TrainTask  # noqa: E402
from workbench.storage.settings import Settings  # noqa: E402
from workbench.ui.shell import workspace  # noqa: E402
from workbench.ui.shell.workspace import Workspace, settings_of  # noqa: E402
from workbench.ui.upload.intake import examples  # noqa: E402

EXAMPLES = REPO / "workbench" / "ui" / "examples"
OUT = REPO / "docs" / "screenshots"
WIDTHS = (1440, 800)
SCHEMES = ("light", "dark")
TALLEST = 1500
LORA = lora_preset("tutorial")
INVERSION = InversionConfig(steps=20)
STATE = "screenshots.json"


def main() -> int:
    """Make the edits, start the server, photograph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="cache folder to keep; else a fresh one")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", default="", help="pages to photograph, with commas")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        cache = args.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cache.mkdir(parents=True, exist_ok=True)
        known = cache / STATE
        if not known.exists():
            known.write_text(json.dumps(prepare(cache)), encoding="utf-8")
        address = stack.enter_context(server(cache))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--hide-scrollbars"]
        )
        wanted = {w for w in args.only.split(",") if w}
        shoot(browser, address, json.loads(known.read_text(encoding="utf-8")), args.out, wanted)
        browser.close()
    total = sum(f.stat().st_size for f in args.out.glob("*.png"))
    sys.stdout.write(f"{args.out}: {total / 1e6:.1f} MB\n")
    return 0


def prepare(cache: Path) -> dict[str, str]:
    """Make the edits that are shown; the ids by which the pages find them."""
    app = App(Settings(folder=cache))
    try:
        robot, drawing = _project(app, "robot-784.png")
        request = _request(app, robot, drawing)
        known = app.perform("train", TrainTask(request=request, preview=True))
        names = ("lora", "reconstruction", "psnr", "notices")
        robot.set(prepared={"of": workspace.digest(request), **{k: known.get(k) for k in names}})
        edits = [_run(app, robot, request)]
        refined = DragConfig.preset("auto")
        edits.append(_run(app, robot, dataclasses.replace(request, drag=refined)))
        cat, whiskers = _project(app, "animal-701.png")
        _run(app, cat, _request(app, cat, whiskers))
        app.store.annotate(
            edits[0].id, title="Arm up, first try", note="The hand follows; the beam fades."
        )
        app.store.annotate(edits[1].id, favourite=True)
        return {"project": robot.id, "edit": edits[0].id, "other": edits[1].id}
    finally:
        app.close()


def _project(app: App, file: str) -> tuple[Workspace, Drawing]:
    entry = next(e for e in examples() if e["file"] == file)
    rgb = np.asarray(Image.open(EXAMPLES / file).convert("RGB"))
    asset = app.store.put_image(rgb, entry["title"])
    drawing = Drawing.from_json(entry["drawing"])
    space = Workspace.create(
        app.store,
        asset,
        title=entry["title"],
        prompt=entry["prompt"],
        settings={"model": "storybook", "hint": entry["hint"], "example": entry["drawing"]},
        drawing=drawing.to_json(),
    )
    return space, drawing


def _request(app: App, space: Workspace, drawing: Drawing) -> EditRequest:
    mask = rasterise(drawing, space.image.width, space.image.height)
    return EditRequest(
        image=space.image,
        mask=app.store.put_mask(mask),
        pairs=drawing.pairs,
        prompt=space.project.prompt,
        model=ModelRef(name="storybook"),
        lora=LORA,
        inversion=INVERSION,
        drag=DragConfig.preset("warp"),
    )


def _run(app: App, space: Workspace, request: EditRequest) -> EditRecord:
    space.set(**settings_of(request))
    return app.store.record(app.perform("edit", request))


@contextlib.contextmanager
def server(cache: Path) -> Iterator[str]:
    """The workbench on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "streamlit_app.py", "--server.port"]
    env = {**os.environ, "WORKBENCH_CACHE": str(cache)}
    process = subprocess.Popen(  # noqa: S603
        [*command, str(port)], cwd=REPO, env=env, stdout=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(  # noqa: S310
                    f"{address}/_stcore/health"
                ),
            ):
                break
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def shoot(browser: Browser, address: str, ids: dict[str, str], out: Path, wanted: set[str]) -> None:
    """Every page in both schemes and widths, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    robot = f"project={ids['project']}&edit={ids['edit']}"
    views = {
        "start": "/",
        "train": f"/?{robot}",
        "drag": f"/drag?{robot}",
        "results": f"/results?project={ids['project']}&edit={ids['other']}",
        "compare": f"/compare?{robot}&edits={ids['edit']},{ids['other']}",
        "history": f"/history?{robot}",
        "settings": "/settings",
    }
    for scheme in SCHEMES:
        for width in WIDTHS:
            context = browser.new_context(
                viewport={"width": width, "height": 1000}, color_scheme=scheme
            )
            for name, path in views.items():
                if wanted and name not in wanted:
                    continue
                page = context.new_page()
                page.goto(address + path)
                _settle(page)
                save(page, out / f"{name}-{scheme}-{width}.png")
                page.close()
            context.close()


def _settle(page: Page) -> None:
    """Until the script has run, the pictures are there, and nothing moves any more."""
    done = "[data-testid=stApp][data-test-script-state=notRunning]"
    page.wait_for_selector("h1", timeout=120_000)
    for _ in range(3):
        page.wait_for_timeout(900)
        page.wait_for_selector(done, timeout=120_000)
    main = "document.querySelector('[data-testid=stMain]').scrollHeight"
    tall = min(TALLEST, max(900, int(page.evaluate(main))))
    size = page.viewport_size
    assert size is not None
    page.set_viewport_size({"width": size["width"], "height": tall})
    page.wait_for_timeout(900)
    page.wait_for_selector(done, timeout=120_000)
    page.mouse.move(2, 2)


def save(page: Page, path: Path) -> None:
    """A PNG of at most 256 colours: a third of the size, and one does not see it."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    colours = _colours(
        image, 208, Image.Quantize.MEDIANCUT
    )  # smooth where there is much of a colour
    colours += _colours(image, 48, Image.Quantize.MAXCOVERAGE)  # and a small blue dot stays blue
    # Pillow's own search for the nearest colour rounds, and then the page's ground is off by four.
    chosen = np.array(colours[: 3 * 256], np.int32).reshape(-1, 3)
    rgb = np.asarray(image, np.int32)
    packed, back = np.unique(rgb @ [65536, 256, 1], return_inverse=True)
    seen = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    nearest = [int(((chosen - c) ** 2).sum(axis=1).argmin()) for c in seen]
    small = Image.fromarray(np.array(nearest, np.uint8)[back].reshape(rgb.shape[:2]), "P")
    small.putpalette(chosen.astype(np.uint8).tobytes())
    small.save(path, "PNG", optimize=True)


def _colours(image: Image.Image, count: int, how: Image.Quantize) -> list[int]:
    """The colours that stand for a picture, as r, g, b, r, g, b, ..."""
    found = image.quantize(count, how, dither=Image.Dither.NONE).getpalette() or []
    return found[: 3 * count]


if __name__ == "__main__":
    sys.exit(main())
