"""Draw the example scenes of the first page once: `python -m training.make_examples`.

The pages must not wait for torch, so the pictures lie in `examples/` as PNG files, with captions,
a drag that is known to be possible (arrows and mask) and what the shipped model makes of it (WebP)
in `examples.json`. The same command on the same scene version draws the same pictures; the results
take about half a minute each on a CPU and are those of the machine that made them.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training import scenes
from training.kinds_people import robot_points
from workbench.app import App
from workbench.canvas.drawing import Arrow, Drawing, Polygon
from workbench.canvas.rasterize import rasterise
from workbench.core.config import DragConfig, lora_preset
from workbench.core.request import EditRequest, ModelRef, Point, PointPair
from workbench.storage.settings import Settings

log = logging.getLogger(__name__)
FOLDER = Path(__file__).resolve().parents[1] / "workbench" / "ui" / "examples"
SIDE = 256  # px of a scene's picture
GROW = 7  # px around what really changes, as a careful hand would paint

# kind, seed, title, hint, and how far each handle is asked to move (x right, y down, px)
EXAMPLES: tuple[tuple[str, int, str, str, dict[str, tuple[float, float]]], ...] = (
    ("robot", 784, "Robot with a laser", "Move the arm and the laser upwards.",
     {"gun": (-8, -56)}),
    ("animal", 701, "Cat", "Lift the tail.", {"tail": (-18, -26)}),
    ("face", 705, "Portrait", "Turn the nose and let the mouth follow.", {"nose": (-14, 0)}),
    ("flower", 702, "Flower", "Bend the bloom to the left.", {"bloom": (-38, 8)}),
    ("landscape", 703, "Mountains", "Make the peak higher.", {"peak": (6, -34)}),
    ("sailboat", 705, "Sailing boat", "Tilt the mast.", {"mast": (-26, 4)}),
    ("face", 703, "Long hair", "Make the hair shorter.", {"hair": (0, -34)}),
    ("animal", 707, "Black cat", "Lower the head.", {"head": (4, 26)}),
)  # fmt: skip


def _point(xy: tuple[float, float]) -> Point:
    return Point(round(float(xy[0]), 1), round(float(xy[1]), 1))


def _beyond(
    wrist: tuple[float, float], gun: tuple[float, float], far: float = 26.0
) -> tuple[float, float]:
    """A point of the laser's beam, `far` px from the muzzle."""
    dx, dy = gun[0] - wrist[0], gun[1] - wrist[1]
    k = far / math.hypot(dx, dy)
    return gun[0] + k * dx, gun[1] + k * dy


def _to_border(corner: Point, side: int = SIDE, near: float = 4.0) -> Point:
    """A corner close to the picture's border, on it: a strip that is left there would stay behind."""

    def moved(v: float) -> float:
        return -0.5 if v <= near else side - 0.5 if v >= side - 1 - near else v

    return Point(moved(corner.x), moved(corner.y))


def hull(mask: NDArray[np.bool_]) -> list[Point]:
    """Corners of the convex hull of a mask bool [H,W], clockwise (Andrew's monotone chain)."""
    rows = [(int(y), np.flatnonzero(mask[y])) for y in np.flatnonzero(mask.any(axis=1))]
    points = sorted({(int(x), y) for y, xs in rows for x in (xs[0], xs[-1])})

    def chain(ordered: list[tuple[int, int]]) -> list[tuple[int, int]]:
        kept: list[tuple[int, int]] = []
        for p in ordered:
            while len(kept) > 1 and _turn(kept[-2], kept[-1], p) <= 0:
                kept.pop()
            kept.append(p)
        return kept[:-1]

    corners = chain(points) + chain(points[::-1])
    return [Point(float(x), float(y)) for x, y in corners]


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def make(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Draw all examples into `folder`; returns what stands in `examples.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    listing: list[dict[str, Any]] = []
    for kind, seed, title, hint, moves in EXAMPLES:
        before = scenes.sample(kind, seed)
        start = before.handles
        wanted = {n: (start[n].x + dx, start[n].y + dy) for n, (dx, dy) in moves.items()}
        after = before.drag(wanted)
        end = after.handles
        ways = [((start[n].x, start[n].y), (end[n].x, end[n].y)) for n in moves]
        if kind == "robot":  # the arm and the beam follow the gun with arrows of their own
            wrists = [robot_points(scene.params)["_wrist"] for scene in (before, after)]
            ways.append((wrists[0], wrists[1]))
            beam = [_beyond(wrist, gun) for wrist, gun in zip(wrists, ways[0], strict=True)]
            ways.append((beam[0], beam[1]))
        arrows = [Arrow(PointPair(_point(a), _point(b))) for a, b in ways]
        corners = [_to_border(c) for c in hull(scenes.changed_mask(before, after, grow=GROW))]
        drawing = Drawing(tuple(arrows), (Polygon(tuple(corners)),))
        pixels = (scenes.render([before])[0] * 255 + 0.5).byte().permute(1, 2, 0).numpy()
        name = f"{kind}-{seed}.png"
        Image.fromarray(pixels).save(folder / name, optimize=True)
        listing.append({
            "file": name, "title": title, "prompt": before.caption, "hint": hint,
            "drawing": drawing.to_json(), "after": f"{kind}-{seed}-after.webp",
        })  # fmt: skip
        log.info("%s: %s", name, before.caption)
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in listing)
    text = f"[\n{lines}\n]\n"
    (folder / "examples.json").write_text(text, encoding="utf-8")
    return listing


def finish(listing: list[dict[str, Any]], folder: Path = FOLDER) -> None:
    """Run each example's drag on the shipped model and write its result into `folder`."""
    with tempfile.TemporaryDirectory() as cache:
        app = App(Settings(folder=Path(cache), model="storybook"))
        for entry in listing:
            pixels = np.asarray(Image.open(folder / entry["file"]).convert("RGB"))
            drawing = Drawing.from_json(entry["drawing"])
            request = EditRequest(
                image=app.store.put_image(pixels, entry["title"]),
                mask=app.store.put_mask(rasterise(drawing, SIDE, SIDE)),
                pairs=drawing.pairs,
                prompt=entry["prompt"],
                model=ModelRef(name="storybook"),
                lora=lora_preset("tutorial"),
                drag=DragConfig.preset(app.settings.method, app.settings.preset),
            )
            result = app.store.record(app.perform("edit", request)).result
            assert result is not None
            after = Image.fromarray(app.store.image(result.image))
            after.save(folder / entry["after"], "WEBP", quality=92, method=6)
            log.info("%s: %s", entry["after"], result.stop)
        app.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    finish(make())
